package app

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
)

const (
	probeEvery    = time.Second
	probeEveryIll = 200 * time.Millisecond // while there is no quorum: what recovers is used soon
	probeTimeout  = 1200 * time.Millisecond
	probeAttempt  = 200 * time.Millisecond // of one member; the next attempt goes to another one
	alarmsEvery   = 15 * time.Second       // how often etcd's alarms are looked at
	lagEvery      = 100 * time.Millisecond // how often the mirror is compared with what etcd is known to be at
	mirrorMayHang = 500 * time.Millisecond // then the watch is made anew: it may hang with its member
)

// monitor watches over etcd: whether a quorum answers, whether it has gone back, whether alarms are raised, whether
// another process uses this replica's name. It decides what health says.
func (r *Replica) monitor(ctx context.Context) {
	var alarmsAt time.Time
	for ctx.Err() == nil {
		began, had := time.Now(), r.mirror.Revision()
		revision, err := r.probe(ctx)
		if err == nil {
			r.confirm(revision, had, began)
		}
		r.setQuorum(err == nil, err)
		if closed(r.looked) && !closed(r.judged) {
			r.checkKeyset()
		}
		if err == nil && (r.full.Load() || time.Since(alarmsAt) > alarmsEvery) {
			alarmsAt = time.Now()
			r.checkAlarms(ctx)
			r.checkName(ctx)
		}
		r.updateHealth()
		r.sleep(ctx, r.Writable() != nil)
	}
}

// watchLoading looks at the records when they are there, and lets health say so at once.
func (r *Replica) watchLoading(ctx context.Context) {
	select {
	case <-r.mirror.Loaded():
		r.checkKeyset()
		close(r.looked)
		r.updateHealth()
	case <-ctx.Done():
	}
}

// probe asks etcd for its revision. It fails if no member could say for as long as probeTimeout: one that hangs must not
// look like a lost quorum.
func (r *Replica) probe(ctx context.Context) (revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for ctx.Err() == nil {
		attempt, stop := context.WithTimeout(ctx, probeAttempt)
		revision, err = r.store.Probe(attempt)
		if err != nil {
			<-attempt.Done() // an error that comes at once is not worth asking about at once again
		}
		stop()
		if err == nil {
			return revision, nil
		}
	}
	return 0, err
}

// confirm tells the mirror, which was at revision had before, at which revision etcd was found.
func (r *Replica) confirm(revision, had int64, at time.Time) {
	if revision < had {
		r.log.Error("etcd has gone back in time: it was restored without --bump-revision, or --etcd-endpoints name different clusters; loading everything anew", "etcd_revision", revision, "seen_revision", had)
		r.follower.Rewatch()
		return
	}
	r.mirror.Confirm(revision, at)
}

// keepUp makes the watch anew when it hangs: etcd is known to be ahead, and the mirror does not move. A watch that is
// merely slow moves, and one that is ahead of changes outside the prefix says so when it is asked.
func (r *Replica) keepUp(ctx context.Context) {
	tick := time.NewTicker(lagEvery)
	defer tick.Stop()
	moved, at := time.Now(), int64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		etcd, mirror := r.store.Revision(), r.mirror.Revision()
		switch {
		case mirror >= etcd || mirror != at || mirror == 0 || !r.quorum.Load(): // not loaded, no quorum: other matters
			moved, at = time.Now(), mirror
			if mirror < etcd {
				r.requestProgress()
			}
		case time.Since(moved) > mirrorMayHang:
			r.log.Warn("the watch of etcd does not move; making it anew", "mirror_revision", mirror, "etcd_revision", etcd)
			r.follower.Rewatch()
			moved = time.Now()
		}
	}
}

// requestProgress asks the watch for its revision: it is silent about changes outside the prefix.
func (r *Replica) requestProgress() {
	ctx, cancel := context.WithTimeout(context.Background(), lagEvery)
	defer cancel()
	_ = r.follower.RequestProgress(ctx) // without a watch there is none to ask; it is being made
}

func (r *Replica) setQuorum(ok bool, err error) {
	if was := r.quorum.Swap(ok); was != ok {
		if ok {
			r.log.Info("etcd answers with a quorum")
		} else {
			r.log.Warn("etcd has no quorum: keys are served from memory, writes are refused", "error", err)
		}
	}
}

// updateHealth tells health and readiness what works now. It is called from several goroutines; the lock keeps an older
// finding from overwriting a newer one.
func (r *Replica) updateHealth() {
	r.healthMu.Lock()
	defer r.healthMu.Unlock()
	if !r.stopping.Load() {
		r.server.Health.SetServing(r.loaded(), r.Writable() == nil)
	}
}

func (r *Replica) sleep(ctx context.Context, ill bool) {
	d := probeEvery
	if ill {
		d = probeEveryIll
	}
	timer := time.NewTimer(d + rand.N(d/10))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-r.suspected:
		r.checkAlarms(ctx)
	}
}

// checkAlarms looks for the alarm behind which etcd refuses writes while it answers every health check.
func (r *Replica) checkAlarms(ctx context.Context) {
	alarms, err := r.store.Alarms(ctx)
	if err != nil {
		return // the next probe says more
	}
	full := slices.ContainsFunc(alarms, isFull)
	if was := r.full.Swap(full); was != full {
		if full {
			r.log.Error("etcd has no space left and refuses writes: "+makeRoom(r.cfg), "alarms", alarms)
		} else {
			r.log.Info("etcd has space again")
		}
	}
}

// isFull reports whether an alarm of etcd says that its quota is used up.
func isFull(alarm string) bool { return strings.HasPrefix(alarm, "NOSPACE") }

// makeRoom is what to do then.
func makeRoom(cfg *Config) string {
	const disarm = "compact and defragment etcd, then run `etcdctl alarm disarm`; if it fills up again, "
	if cfg.Embedded() {
		return disarm + "keep records for less time (record_retention), or move to a cluster: the embedded etcd's 2 GiB are fixed"
	}
	return disarm + "keep records for less time (record_retention), or raise its quota"
}

// checkName looks for another process that announced itself under this replica's name: both would hold each other's
// share of the stock for their own, and an operator would see one replica where there are two. When the other one has
// gone, and this one's announcement with it, it is made again.
func (r *Replica) checkName(ctx context.Context) {
	if !r.elector.Alive() {
		return
	}
	var found *pool.Replica
	r.mirror.Read(func(s *pool.Snapshot) { found = s.Replicas[r.cfg.Name] })
	switch {
	case found == nil:
		if err := r.elector.Announce(ctx); err != nil {
			r.log.Warn("this replica is not on record, trying again", "error", err)
		}
	case found.Instance != r.instance:
		r.log.Error("another process uses this replica's name: give each its own --name", "name", r.cfg.Name, "address", found.Address)
	}
}

// checkKeyset looks whether this replica's keyset is the one the stored secrets were sealed with. One that is not would
// seal what the other replicas cannot open, so such a replica writes nothing. While nothing is stored there is nothing to
// tell it by, and it is looked at again.
func (r *Replica) checkKeyset() {
	opened, tried := 0, 0
	try := func(poolName, key string, sealed pool.Sealed) {
		if tried++; tried > keysetSamples {
			return
		}
		if _, err := r.keys.Open(poolName, key, sealed); err == nil {
			opened++
		}
	}
	r.mirror.Read(func(s *pool.Snapshot) {
		for name, p := range s.Pools {
			if p.Pool != nil && !p.Pool.Credential.IsZero() {
				try(name, pool.CredentialID, p.Pool.Credential)
			}
			for key, a := range p.Active {
				try(name, key, a.Sealed)
			}
			for key, b := range p.Backup {
				try(name, key, b.Sealed)
			}
		}
	})
	if tried == 0 {
		return
	}
	if opened == 0 {
		r.strange.Store(true)
		r.log.Error("this replica's keyset does not open the stored keys: give it the keyset file of the other replicas and restart it; until then it writes nothing", "file", r.cfg.KeysetFile)
	}
	close(r.judged)
}

// keysetSamples is how many secrets tell whether the keyset is the right one.
const keysetSamples = 8

// suspectFull looks at what etcd answered to a write. If it says that it is full, the monitor looks at the alarms at once.
func (r *Replica) suspectFull(err error) {
	if !etcdstore.IsNoSpace(err) {
		return
	}
	select {
	case r.suspected <- struct{}{}:
	default:
	}
}

// observer passes on what the domain observes, and notices what it says about etcd.
type observer struct {
	pool.Observer
	suspect func(error)
}

// OutcomeUnknown implements pool.Observer.
func (o observer) OutcomeUnknown(poolName, subject string, attempt int, err error) {
	o.suspect(err)
	o.Observer.OutcomeUnknown(poolName, subject, attempt, err)
}
