package pool

import (
	"context"
	"time"
)

// claim is a lock to be taken over from a holder that did not finish in time.
type claim struct {
	lock   int64 // its ModRevision; 0: there is nothing to take over
	holder string
	after  time.Duration
}

// LockOf is the lock in a record. One that cannot be read is a lock too: it is respected, and taken over, by its revision.
func LockOf(rec Record) *Lock {
	switch r := rec.(type) {
	case *Lock:
		return r
	case *Broken:
		return &Lock{Version: r.Version, Life: Life{Pool: r.Of.Pool, Key: r.Of.Name}, Stage: StageRotate}
	}
	return nil
}

// rival is who is at work on the flight's life: as the mirror has it, or as the store had it last when the mirror is behind.
func (r *Rotator) rival(f *flight, last *State) (lock *Lock) {
	ref := LockRef(f.life.Pool, f.life.Key)
	r.Mirror.Read(func(s *Snapshot) {
		if last != nil && s.Revision < last.Revision {
			lock = LockOf(last.Records[ref])
			return
		}
		if b := s.Broken[ref]; b != nil {
			lock = LockOf(b)
		} else if p := s.Pool(f.life.Pool); p != nil {
			lock = p.Locks[f.life.Key]
		}
	})
	return lock
}

// follow waits for the result of a rival's work, if there is one, over the standing watch. It returns done when the flight is
// settled, and otherwise what to take over, nothing if the lock is free.
func (r *Rotator) follow(ctx context.Context, f *flight, last *State) (over claim, done bool, err error) {
	rival := r.rival(f, last)
	if rival == nil {
		return claim{}, false, nil
	}
	changed, stop := r.Mirror.Watch(f.life.Pool, f.life.Key)
	defer stop()
	began, seen, patience := r.Now(), rival.ModRevision, r.patience.get()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		if done, err := r.settled(ctx, f); done || err != nil {
			return claim{}, done, err
		}
		lock := r.rival(f, last)
		switch {
		case lock == nil:
			return claim{}, false, nil
		case lock.ModRevision != seen:
			// Somebody else is on it now. Each such change doubles the patience, so that replicas on a slow store do not
			// take the lock from each other for ever.
			seen, patience = lock.ModRevision, min(2*patience, maxPatience)
			timer.Reset(patience)
		}
		select {
		case <-changed:
		case <-timer.C:
			if wait := r.busyFor(f, lock); wait > 0 {
				timer.Reset(min(wait, patience))
				continue
			}
			return claim{seen, lock.Holder, r.Now().Sub(began)}, false, nil
		case <-ctx.Done():
			return claim{}, true, Refuse(ReasonOutcomeUnknown, "replica %q is at work on this key and did not finish in time; repeat the call", lock.Holder).Because(ctx.Err())
		}
	}
}

// settled looks for the end of a flight's life in the mirror.
func (r *Rotator) settled(ctx context.Context, f *flight) (bool, error) {
	var rot *Rotation
	waits := false
	r.Mirror.Read(func(s *Snapshot) {
		p := s.Pool(f.life.Pool)
		if p == nil {
			return
		}
		if rot = p.Rotation(f.life); rot != nil {
			f.rotation, f.revision = rot, s.Revision
			return
		}
		pending := p.Pending[f.life.Key]
		waits = pending != nil && pending.Generation == f.life.Generation && p.Stock.Len() == 0
	})
	if waits {
		return r.lookUp(ctx, f)
	}
	return rot != nil, nil
}

// lookUp asks the store how the life stands, and reports false if it is in service and can be rotated. The mirror may not
// have seen the stock that somebody has just been told is there, so "it waits" is not said from memory.
func (r *Rotator) lookUp(ctx context.Context, f *flight) (bool, error) {
	req := f.req
	req.Generation = f.life.Generation
	st, err := readStanding(ctx, r.Store, f.life)
	if err != nil {
		return true, err
	}
	switch v := decide(&req, st); v.action {
	case refuse:
		return true, v.refusal
	case report:
		f.rotation, f.revision = v.rotation, st.state.Revision
		return true, nil
	case parked:
		f.revision = v.revision
		return true, nil
	}
	return false, nil
}
