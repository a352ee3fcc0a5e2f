package lifecycle

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

const (
	// writeBudget bounds one write or read of the store.
	writeBudget = 3 * time.Second
	// mirrorPatience is how long the mirror is waited for. A watch that hangs is made anew in less.
	mirrorPatience = time.Second
	// tries bounds how often a record is read again because somebody else keeps changing it.
	tries = 12
	// pauseAfter is the wait before a record is looked at again after the store could not be read or written.
	pauseAfter = time.Second
	// goneBy is the wait after a run that came to nothing for good, such as a record that is gone.
	goneBy = 10 * time.Second
)

// errKilled ends a run at once: a test has killed the worker.
var errKilled = errors.New("killed")

// run is the work on one record from its reading to where nothing is to be done now. What it knows dies with it.
type run struct {
	*Worker
	ref    pool.Ref
	term   *pool.Term // nil: the lock is not held
	answer *Answer    // to the call that was made last
	fresh  string     // the intent that was written and not carried out yet
}

// reconcile does what a record needs now, and says when to look again.
func (w *Worker) reconcile(ctx context.Context, ref pool.Ref) time.Time {
	r := &run{Worker: w, ref: ref}
	until, err := r.pursue(ctx)
	if errors.Is(err, errKilled) {
		return w.Now().Add(forever)
	}
	r.release()
	if err != nil {
		return w.Now().Add(pauseAfter)
	}
	if until.IsZero() {
		return w.Now().Add(forever)
	}
	return until
}

// release gives the lock back if no transaction has.
func (r *run) release() {
	if r.term != nil {
		r.Locks.Resign(r.term)
		r.term = nil
	}
}

// pursue reads, decides and acts until nothing is to be done now. When the worker is to finish it still writes down what an
// upstream has answered.
func (r *run) pursue(ctx context.Context) (until time.Time, err error) {
	for range tries {
		if r.answer == nil && r.isFinishing() {
			return r.Now().Add(pauseAfter), nil
		}
		rec, v, err := r.read(ctx)
		if errors.Is(err, errBehind) {
			continue
		}
		if err != nil || rec == nil {
			return r.Now().Add(goneBy), err
		}
		m := r.decide(v, rec)
		switch m.action {
		case skip, rest:
			return m.until, nil
		case ask:
			until, err = r.ask(ctx, rec, v, m)
		case change:
			until, err = r.change(ctx, rec, m)
		}
		if err != nil || !until.IsZero() {
			return until, err
		}
	}
	return r.Now().Add(pauseAfter), nil
}

// decide asks the handler of the record's phase.
func (r *run) decide(v View, rec pool.Record) Move {
	var m Move
	var phase pool.Phase
	now := r.Now().UTC()
	switch rec := rec.(type) {
	case *pool.Preparation:
		m, phase = Prepare(v, rec, now), rec.Phase
	case *pool.Retired:
		m, phase = Retire(v, rec, now), rec.Phase
	}
	if until := r.leftAloneUntil(r.ref.Pool); m.calls() && now.Before(until) {
		m = resting("left_alone", until)
	}
	if m.action == skip {
		r.Observer.Skipped(r.ref.Kind)
		return m
	}
	r.Observer.Reconciled(r.ref.Kind, phase, m.result)
	return m
}

// read reads the record and what its handler may know, linearizably and at one revision. It returns no record if there is
// nothing to do.
func (r *run) read(ctx context.Context) (pool.Record, View, error) {
	ctx, cancel := context.WithTimeout(ctx, writeBudget)
	defer cancel()
	hint, slotKey := r.hint()
	refs := append(pool.HomeRefs(r.ref.Pool, r.ref.Name), pool.PoolRef(r.ref.Pool))
	more := func(ref pool.Ref) {
		if ref.Name != "" && !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	claim, taken := pool.FingerprintRef(r.ref.Pool, hint.Fingerprint), pool.Ref{}
	more(claim)
	if r.answer != nil {
		taken = pool.FingerprintRef(r.ref.Pool, r.answer.Sealed.Fingerprint)
		more(taken)
	}
	slot, holder := pool.SlotRef(r.ref.Pool, slotKey.slot), pool.ActiveRef(r.ref.Pool, slotKey.key)
	more(slot)
	more(holder)
	st, err := r.Store.Read(ctx, refs...)
	if err != nil {
		return nil, View{}, err
	}
	p, err := pool.Find[*pool.Pool](st, pool.PoolRef(r.ref.Pool))
	if err != nil || p == nil || p.Deleting || p.TooNew() {
		return nil, View{}, err
	}
	rec := st.Records[r.ref]
	if _, broken := rec.(*pool.Broken); rec == nil || broken || rec.At().TooNew() {
		return nil, View{}, nil
	}
	if sealedOf(rec).Fingerprint != hint.Fingerprint || slotOf(rec) != slotKey.slot {
		// The mirror is behind: what was read beside the record is about another state of it.
		_ = r.Mirror.Wait(ctx, st.Revision)
		return nil, View{}, errBehind
	}
	v := View{Pool: p, Answer: r.answer, Fresh: r.fresh, Limits: r.Limits}
	_, perr := r.Providers.Provider(p)
	v.Provider = p.Spec.Provider != nil && perr == nil
	v.Claim, v.Taken = claimant(st, claim), claimant(st, taken)
	if old, ok := rec.(*pool.Retired); ok && (old.Phase == pool.PhaseRetired || old.Phase == pool.PhaseRevoking) {
		v.Elsewhere, v.Behind = r.elsewhere(ctx, old, st.Revision)
	}
	if slot.Name != "" {
		v.SlotKnown = st.Has(slot)
	}
	if holder.Name != "" {
		if a, ok := st.Records[holder].(*pool.Active); ok && a.Slot == slotKey.slot {
			v.Slot = a
		}
	}
	return rec, v, nil
}

var errBehind = errors.New("the mirror is behind the store")

// claimant is the key that claims a secret: "" if none does or none was asked about. A claim that cannot be read is
// nobody's that is known.
func claimant(st *pool.State, ref pool.Ref) string {
	if ref.Name == "" {
		return ""
	}
	switch rec := st.Records[ref].(type) {
	case nil:
		return ""
	case *pool.Fingerprint:
		return rec.Key
	}
	return "?"
}

type slotKey struct{ slot, key string }

// hint is what the mirror knows of the record, to know what to read beside it.
func (r *run) hint() (sealed pool.Sealed, in slotKey) {
	r.Mirror.Read(func(s *pool.Snapshot) {
		p := s.Pool(r.ref.Pool)
		if p == nil {
			return
		}
		if prep := p.Preparing[r.ref.Name]; prep != nil && r.ref.Kind == pool.KindPreparation {
			sealed = prep.Sealed
		}
		if old := p.Retired[r.ref.Name]; old != nil && r.ref.Kind == pool.KindRetired {
			sealed, in.slot = old.Sealed, old.Slot
			if a := p.BySlot[old.Slot]; a != nil {
				in.key = a.Key
			}
		}
	})
	return sealed, in
}

// elsewhere names another pool that has a retired key's secret, as of a revision of the store. It is behind if the mirror
// does not come that far in time: after a pause of this process it may be of any age.
func (r *run) elsewhere(ctx context.Context, old *pool.Retired, revision int64) (name string, behind bool) {
	ctx, cancel := context.WithTimeout(ctx, mirrorPatience)
	defer cancel()
	if r.Mirror.Wait(ctx, revision) != nil {
		return "", true
	}
	r.Mirror.Read(func(s *pool.Snapshot) { name = sharing(s, old) })
	return name, false
}

// sharing names another pool that has a retired key's secret in service or in stock. It is asked once a revocation.
func sharing(s *pool.Snapshot, r *pool.Retired) string {
	same := func(other pool.Sealed) bool { return !other.IsZero() && other.Fingerprint == r.Sealed.Fingerprint }
	if r.Sealed.IsZero() {
		return ""
	}
	for name, p := range s.Pools {
		if name == r.Pool {
			continue
		}
		for _, a := range p.Active {
			if same(a.Sealed) {
				return name
			}
		}
		for _, b := range p.Backup {
			if same(b.Sealed) {
				return name
			}
		}
	}
	return ""
}

func sealedOf(rec pool.Record) pool.Sealed {
	switch rec := rec.(type) {
	case *pool.Preparation:
		return rec.Sealed
	case *pool.Retired:
		return rec.Sealed
	}
	return pool.Sealed{}
}

func slotOf(rec pool.Record) string {
	if r, ok := rec.(*pool.Retired); ok {
		return r.Slot
	}
	return ""
}

// hold takes the lock of the record's key, over the head of a holder whose time is over. It says until when to wait if it
// cannot be had.
func (r *run) hold(ctx context.Context, rec pool.Record, stage string) (until time.Time, err error) {
	if r.term != nil {
		return time.Time{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeBudget)
	defer cancel()
	now := r.Now().UTC()
	e := pool.Errand{Record: rec, Stage: stage, BusyUntil: now.Add(r.Limits.Call + r.Limits.Margin)}
	term, inTheWay, err := r.Locks.Hold(ctx, e)
	if err == nil && term == nil && inTheWay != nil {
		if now.Before(inTheWay.BusyUntil) {
			return inTheWay.BusyUntil, nil
		}
		e.Over = inTheWay.ModRevision
		if term, _, err = r.Locks.Hold(ctx, e); term != nil {
			r.Observer.TookOver(e.Life(), inTheWay.Holder, now.Sub(inTheWay.BusyUntil))
		}
	}
	r.term = term
	return time.Time{}, err
}

// ask calls the upstream under the lock. A crash before the call leaves an intent that others look into, a crash after it
// the same: they cannot tell, and ask.
func (r *run) ask(ctx context.Context, rec pool.Record, v View, m Move) (until time.Time, err error) {
	if until, err = r.hold(ctx, rec, m.stage); err != nil || !until.IsZero() || r.term == nil {
		return until, err
	}
	r.fresh = "" // from here on the call may have been made
	if err := r.Steps(ctx, StepAsk, rec); err != nil {
		return time.Time{}, errKilled
	}
	a := r.call(ctx, rec, v, m.call)
	if err := r.Steps(ctx, StepAnswered, rec); err != nil {
		return time.Time{}, errKilled
	}
	r.answer = a
	return time.Time{}, nil
}

// call makes one call, whatever comes of it.
func (r *run) call(ctx context.Context, rec pool.Record, v View, c Call) *Answer {
	phase, work := progress(rec)
	a := &Answer{Call: c, phase: phase, generation: work.Wanted()}
	if work != nil {
		a.intent = work.Intent
	}
	k := pool.ProviderKey{Pool: r.ref.Pool, ID: r.ref.Name, Alias: pool.AliasOf(r.ref.Pool, r.ref.Name), Intent: a.intent}
	if p, ok := rec.(*pool.Preparation); ok && p.Alias != "" {
		k.Alias = p.Alias
	}
	provider, err := r.Providers.Provider(v.Pool)
	if sealed := sealedOf(rec); err == nil && !sealed.IsZero() {
		k.Secret, err = r.Sealer.Open(r.ref.Pool, r.ref.Name, sealed)
	}
	if err != nil {
		a.Result, a.Problem = Nothing, problemOf(err)
		return a
	}
	deadline := r.deadline(c, work)
	if !r.Now().Before(deadline) { // held up since it was announced: others may be looking into it already
		a.Result, a.Problem = Nothing, "the call was not made in time"
		return a
	}
	ctx, cancel := context.WithTimeout(ctx, deadline.Sub(r.Now()))
	defer cancel()
	began := time.Now()
	secret, err := a.make(ctx, provider, k)
	if err == nil && !secret.IsZero() && !secret.Equal(k.Secret) {
		if problem := pool.CheckSecret(secret); problem != "" {
			err = errors.New("the provider's secret " + problem)
		} else if a.Sealed, err = r.Sealer.Seal(r.ref.Pool, r.ref.Name, secret); err != nil {
			err = errors.New("the secret cannot be sealed")
		}
	}
	if err != nil {
		a.failed(err)
	}
	if a.Result == Unsent {
		r.leaveAlone(r.ref.Pool, a.RetryAt)
	}
	r.Observer.Asked(rec, string(c), a.Problem, time.Since(began))
	return a
}

// deadline is when a call must be over. One that changes something has the time its intent was given, however long this
// worker was held up in between.
func (r *run) deadline(c Call, w *pool.Work) time.Time {
	deadline := r.Now().Add(r.Limits.Call)
	if announced := c == CallMint || c == CallRevoke; announced && w != nil {
		if end := w.NotBefore.Add(-r.Limits.Margin); end.Before(deadline) {
			return end
		}
	}
	return deadline
}

// make makes the call and fills in what came of it, unless it failed.
func (a *Answer) make(ctx context.Context, p pool.Provider, k pool.ProviderKey) (secret pool.Secret, err error) {
	a.Result = Done
	switch a.Call {
	case CallMint:
		return p.Mint(ctx, k)
	case CallVerify:
		return secret, p.Verify(ctx, k)
	case CallRevoke:
		return secret, p.Revoke(ctx, k)
	}
	found, secret, err := p.Find(ctx, k)
	if !found {
		a.Result = Missing
	}
	return secret, err
}

func (a *Answer) failed(err error) {
	a.Result, a.Problem, a.Sealed = Unknown, problemOf(err), pool.Sealed{}
	var held *pool.HeldBackError
	switch {
	case errors.As(err, &held):
		a.Result, a.RetryAt = Unsent, held.RetryAt
	case errors.Is(err, pool.ErrNothingDone):
		a.Result = Nothing
	case errors.Is(err, pool.ErrKeyRefused):
		a.Result = Bad
	}
}

// maxProblem bounds what is kept of an upstream's words.
const maxProblem = 512

// problemOf is what is kept of an upstream's words, as a record may hold it.
func problemOf(err error) string { return pool.Clip(pool.Printable(err.Error()), maxProblem) }

func progress(rec pool.Record) (pool.Phase, *pool.Work) {
	switch rec := rec.(type) {
	case *pool.Preparation:
		return rec.Phase, rec.Work
	case *pool.Retired:
		return rec.Phase, rec.Work
	}
	return pool.PhaseUnspecified, nil
}

// change makes a transition. A lost compare means that nothing happened: the record is read again, and an answer stays
// one if it is about what the record still does. An outcome that stays unknown ends the run; whoever comes next finds
// out.
func (r *run) change(ctx context.Context, rec pool.Record, m Move) (until time.Time, err error) {
	if m.fresh != "" {
		if until, err = r.hold(ctx, rec, m.stage); err != nil || !until.IsZero() || r.term == nil {
			return until, err
		}
	}
	if err := r.Steps(ctx, StepRead, rec); err != nil {
		return time.Time{}, errKilled
	}
	released := r.fence(m)
	applied, err := r.apply(ctx, rec, m.txn)
	if err != nil {
		return time.Time{}, err
	}
	if err := r.Steps(ctx, StepWritten, rec); err != nil {
		return time.Time{}, errKilled
	}
	if !applied {
		r.Observer.Conflict(pool.Errand{Record: rec}.Life(), "lifecycle")
		return time.Time{}, r.stillHeld(ctx)
	}
	r.fresh, r.answer = m.fresh, nil
	if released {
		r.term = nil
	}
	r.Observer.Moved(rec, m.txn.Event)
	if m.next == nil || m.next.Ref() != rec.Ref() {
		return r.Now().Add(goneBy), nil
	}
	return time.Time{}, nil
}

// fence adds the lock to a transition: it is compared, and given back unless the call that is announced comes next.
func (r *run) fence(m Move) (releases bool) {
	if r.term == nil || r.term.Fence == 0 {
		return r.term != nil && m.fresh == ""
	}
	ref := pool.LockRef(r.ref.Pool, r.ref.Name)
	m.txn.If = append(m.txn.If, pool.Unchanged(ref, r.term.Fence))
	if m.fresh != "" {
		return false
	}
	m.txn.Delete = append(m.txn.Delete, ref)
	return true
}

// stillHeld forgets a lock that somebody else has taken over or that is gone: a commit under it can only be lost. The
// answer it was held for is as true as before.
func (r *run) stillHeld(ctx context.Context) error {
	if r.term == nil || r.term.Fence == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeBudget)
	defer cancel()
	ref := pool.LockRef(r.ref.Pool, r.ref.Name)
	st, err := r.Store.Read(ctx, ref)
	if err == nil && !pool.Unchanged(ref, r.term.Fence).Holds(st) {
		r.term = nil
	}
	return err
}

// apply sends a transition until its outcome is known.
func (r *run) apply(ctx context.Context, rec pool.Record, t *pool.Txn) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, writeBudget)
	defer cancel()
	if t.Event != nil {
		t.Event.ID = pool.NewID()
	}
	res, err := pool.Apply(ctx, r.Store, t, func(attempt int, err error) {
		r.Observer.OutcomeUnknown(r.ref.Pool, "keys/"+r.ref.Name, attempt, err)
	})
	if err != nil {
		return false, err
	}
	if !res.Applied && t.Event == nil { // it may be this very write, whose first answer was lost
		return wrote(res.State, t), nil
	}
	return res.Applied, nil
}

// wrote reports whether the state shows what an eventless transaction put: its intent, which nobody else can have
// written, and until when to wait, which tells the write that puts a try off from the one that announced it.
func wrote(st *pool.State, t *pool.Txn) bool {
	for _, rec := range t.Put {
		_, want := progress(rec)
		if !st.Asked[rec.Ref()] || st.Records[rec.Ref()] == nil || want == nil || want.Intent == "" {
			return false
		}
		_, got := progress(st.Records[rec.Ref()])
		if got == nil || got.Intent != want.Intent || got.Attempts != want.Attempts || !got.NotBefore.Equal(want.NotBefore) {
			return false
		}
	}
	return true
}
