package pool

import (
	"context"
	"maps"
	"sync"
	"time"
)

// StageProbe is what a lock says while its holder asks the upstream about the key.
const StageProbe = "probe"

const (
	// probeTimeout is how long an upstream may take to say whether a key is good.
	probeTimeout = 5 * time.Second
	// probeMargin is how much longer than it asks a holder says that it is busy: what follows from the answer is written in
	// that time, so that those who wait see it before they take the lock over.
	probeMargin = 500 * time.Millisecond
	probeBusy   = probeTimeout + probeMargin
	// probeGrace is how long the mirror may take to show what the last probe came to before the upstream is asked again.
	probeGrace = time.Second
	// probeRest is how long a key rests that was reported bad and found good.
	probeRest = 60 * time.Second
	// probeMemory is how long after it began a probe that came to nothing is not made again.
	probeMemory = 10 * time.Second
	// confirmBudget bounds a rotation whose key is probed first: another's probe may be waited for, or one made.
	confirmBudget = 9 * time.Second
)

// ProbeResult is what an upstream says of a key when asked.
type ProbeResult int

// The results. An upstream that does not answer, or not about the key, is unreachable.
const (
	ProbeUnreachable ProbeResult = iota
	ProbeAlive
	ProbeDead
)

var probeNames = [...]string{"unreachable", "alive", "dead"}

// String is the result's name in logs and metrics.
func (p ProbeResult) String() string {
	if p < 0 || int(p) >= len(probeNames) {
		return "unknown"
	}
	return probeNames[p]
}

// Prober asks an upstream about a key. Calls block until ctx ends at the latest; one that was not answered is
// ProbeUnreachable. The reason is one bounded line without secrets.
type Prober interface {
	Probe(ctx context.Context, p *Pool, secret Secret) (result ProbeResult, reason string)
}

// probed is why a key was not rotated although a report asked for it.
type probed struct {
	result ProbeResult
	until  time.Time // when its rest ends, if it is alive
}

// budget bounds a flight.
func (r *Rotator) budget(f *flight) time.Duration {
	if f.req.confirm {
		return max(confirmBudget, r.Budget)
	}
	return r.Budget
}

// purpose is what a flight wants the lock for.
func (r *Rotator) purpose(ctx context.Context, f *flight) Purpose {
	if !f.req.confirm {
		return Purpose{Stage: StageRotate}
	}
	f.busyUntil = r.Now().Add(busyTime(ctx))
	return Purpose{Stage: StageProbe, BusyUntil: f.busyUntil}
}

// busyTime is how long a probe that begins now may keep its holder busy.
func busyTime(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return probeBusy
	}
	return max(0, min(probeBusy, time.Until(deadline)))
}

// busyFor is how much longer a holder's call is waited for, beyond the ordinary patience. Only those wait who need the same
// call; the others take the lock over, and its fence voids what the former holder commits.
func (r *Rotator) busyFor(f *flight, lock *Lock) time.Duration {
	if !f.req.confirm || lock.Stage != StageProbe {
		return 0
	}
	return min(lock.BusyUntil.Sub(r.Now()), probeBusy)
}

// alreadyProbed settles a flight whose key was probed for this failure, here or at another replica: it rests, being found
// alive, or it could not be asked just now.
func (r *Rotator) alreadyProbed(f *flight) bool {
	if !f.req.confirm {
		return false
	}
	now := r.Now()
	r.Mirror.Read(func(s *Snapshot) {
		p := s.Pool(f.life.Pool)
		if p == nil {
			return
		}
		a, tried := p.Active[f.life.Key], p.Probed[f.life.Key]
		switch {
		case a == nil || a.Life() != f.life:
		case foundAlive(a, now):
			f.probed, f.revision = &probed{ProbeAlive, a.StatusUntil}, s.Revision
		case r.inVain.has(a, now), r.triedInVain(f.life, tried, now):
			f.probed, f.revision = &probed{result: ProbeUnreachable}, s.Revision
		}
	})
	return f.probed != nil
}

// triedInVain reports whether another replica's probe came to nothing a short while ago: its lock has gone, and the life
// goes on as it was. A lock of this replica's own says nothing: it knows what its probes came to.
func (r *Rotator) triedInVain(l Life, tried *Lock, now time.Time) bool {
	return tried != nil && tried.Life == l && tried.Holder != r.Replica && now.Before(tried.BusyUntil.Add(probeMemory-probeBusy))
}

// inVain are the keys about which this process has asked in vain.
type inVain struct {
	mu    sync.Mutex // protects the following field
	began map[Guard]time.Time
}

// add remembers a probe that began at a time, of a key as it was then.
func (v *inVain) add(a *Active, began time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.began, func(_ Guard, at time.Time) bool { return !began.Before(at.Add(probeMemory)) })
	if v.began == nil {
		v.began = make(map[Guard]time.Time)
	}
	v.began[Same(a)] = began
}

func (v *inVain) has(a *Active, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	at, found := v.began[Same(a)]
	return found && now.Before(at.Add(probeMemory))
}

// foundAlive reports whether a key rests because a probe found it good.
func foundAlive(a *Active, now time.Time) bool {
	return a.StatusReason == ruleProbeAlive && a.StatusAt(now) == StatusRateLimited
}

// confirm asks the upstream about the key under the lock, and then ends the life, lets the key rest, or does nothing.
//
// A crash while it asks leaves a lock that says until when: those who need the answer wait until then and ask themselves,
// others take it over at once. What the former holder then commits is void.
func (r *Rotator) confirm(ctx context.Context, f *flight, k *stake, s *State) (released bool, err error) {
	busy, cancel := context.WithTimeout(ctx, f.busyUntil.Sub(r.Now())) // as the lock says, however long the campaign took
	defer cancel()
	// The lock was free, so who held it before is done: that must be seen before the upstream is asked again.
	r.seen(busy, k.won.Fence)
	if r.alreadyProbed(f) {
		return false, nil
	}
	if done, err := r.ended(ctx, f, s); done || err != nil {
		return false, err
	}
	now, err := situationOf(f.life, s)
	if err != nil {
		return false, err
	}
	if err := mayRotate(now.pool, now.active, f.req.Trigger); err != nil {
		return false, err
	}
	if foundAlive(now.active, r.Now()) { // the mirror is behind
		f.probed, f.revision = &probed{ProbeAlive, now.active.StatusUntil}, s.Revision
		return false, nil
	}
	began := r.Now()
	switch r.probe(busy, f, now) {
	case ProbeDead:
		return r.commit(ctx, f, k, s)
	case ProbeAlive:
		return r.rest(ctx, f, k, s)
	}
	r.inVain.add(now.active, began)
	f.probed, f.revision = &probed{result: ProbeUnreachable}, s.Revision
	return false, nil
}

// seen waits a little until the mirror shows a revision. What is waited is taken from the time of the call that follows.
func (r *Rotator) seen(ctx context.Context, revision int64) {
	ctx, cancel := context.WithTimeout(ctx, probeGrace)
	defer cancel()
	_ = r.Mirror.Wait(ctx, revision)
}

// probe asks the upstream about the key. A secret that does not open cannot be asked about.
func (r *Rotator) probe(ctx context.Context, f *flight, now situation) ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, busyTime(ctx)-probeMargin)
	defer cancel()
	began := time.Now()
	result, reason := ProbeUnreachable, "this replica has no way to ask"
	if r.Prober != nil && r.Sealer != nil {
		secret, err := r.Sealer.Open(f.life.Pool, f.life.Key, now.active.Sealed)
		if err == nil {
			result, reason = r.Prober.Probe(ctx, now.pool, secret)
		} else {
			reason = "the secret cannot be opened"
		}
	}
	r.Observer.Probed(f.life, result, reason, time.Since(began))
	return result
}

// rest lets a key rest that was found alive. Its transaction carries the fence, so that it is not made after somebody has
// taken the lock over, and gives the lock back.
func (r *Rotator) rest(ctx context.Context, f *flight, k *stake, s *State) (released bool, err error) {
	for ctx.Err() == nil && !k.over() {
		if done, err := r.ended(ctx, f, s); done || err != nil {
			return false, err
		}
		now, err := situationOf(f.life, s)
		if err != nil {
			return false, err
		}
		if now.pool.IncidentAt(r.Now()) != nil {
			return false, errIncident
		}
		want := coolDown{
			pool: now.pool, active: now.active, to: StatusRateLimited, until: r.Now().Add(probeRest), rule: ruleProbeAlive, req: &f.req,
		}
		txn, next := want.txn(r.Now())
		if txn == nil { // it is out of service for as long anyway
			f.probed, f.revision = &probed{ProbeAlive, now.active.StatusUntil}, s.Revision
			return false, nil
		}
		txn.If = append(txn.If, Absent(RotationRef(f.life)), pendingGuard(f.life, now.pending))
		k.guard(txn)
		res, err := r.applier.apply(ctx, txn)
		if err != nil {
			return false, err
		}
		if res.Applied {
			next.Version = putAt(next.Version, res.Revision)
			f.probed, f.revision = &probed{ProbeAlive, next.StatusUntil}, res.Revision
			r.Observer.CooledDown(next, f.req.Trigger, f.req.Source)
			return true, nil
		}
		lost, err := lostTo(txn, res)
		if err != nil {
			return false, err
		}
		if err := r.reconsider(f, lost, nil); err != nil {
			return false, err
		}
		s = lost.result.State
	}
	return false, errAgain
}
