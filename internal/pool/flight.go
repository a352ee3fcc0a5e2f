package pool

import (
	"context"
	"errors"
	"time"
)

// flight is the work on one life, shared by all in this process who want it. It runs on a context of its own: a first
// caller who goes away must not take the others' rotation along.
type flight struct {
	life  Life
	req   RotateRequest // of the first caller: what goes on record
	began time.Time
	// fulfils: begun for a rotation that waits for stock, and only to be made while it still waits.
	fulfils bool
	done    chan struct{} // closed when the following fields are set

	rotation *Rotation // nil with a nil err: it waits for stock
	key      *Active   // the successor, if this replica made the rotation
	revision int64
	err      error
}

// join returns the flight for a life, and starts one if there is none. It returns nil if the Rotator is closed.
func (r *Rotator) join(l Life, req *RotateRequest, fulfils bool) (f *flight, joined bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.flights[l]; f != nil {
		return f, true
	}
	if r.closed {
		return nil, false
	}
	f = &flight{life: l, req: *req, began: r.Now(), fulfils: fulfils, done: make(chan struct{})}
	r.flights[l] = f
	r.work.Go(func() { r.fly(f) })
	return f, false
}

// errCancelled ends a flight whose rotation does not wait for stock any more: an operator took the key in hand.
var errCancelled = errors.New("the rotation does not wait any more")

// failedForOthers reports whether the flight's error is about the request that began it and says nothing about req.
func (f *flight) failedForOthers(req *RotateRequest) bool {
	return errors.Is(f.err, errCancelled) || ReasonOf(f.err) == ReasonKeyDisabled && req.Trigger == TriggerOperator
}

// fly does the work of a flight. The flight is taken off the table before its callers wake: one who asks again after an
// error must not find the old one.
func (r *Rotator) fly(f *flight) {
	ctx, cancel := context.WithTimeout(r.base, r.Budget)
	defer cancel()
	f.err = r.pursue(ctx, f)
	r.mu.Lock()
	delete(r.flights, f.life)
	r.mu.Unlock()
	close(f.done)
}

// errAgain says that what a step rested on has changed: decide again.
var errAgain = errors.New("decide again")

// pursue campaigns, follows and commits until the life has ended, waits for stock, or must not be rotated.
func (r *Rotator) pursue(ctx context.Context, f *flight) error {
	var over int64 // the holder's lock to take over, 0: none
	for {
		if rival := r.rival(f.life); rival != nil && over == 0 {
			done, next, err := r.follow(ctx, f, rival)
			if done || err != nil {
				return err
			}
			over = next
		}
		if err := r.Steps(ctx, StepCampaign, f.life); err != nil {
			return err
		}
		term, state, err := r.Locks.Campaign(ctx, f.life, over)
		if err != nil {
			return err
		}
		over = 0
		if term != nil {
			err = r.hold(ctx, f, term, state)
		} else {
			err = r.lost(ctx, f, state)
		}
		if !errors.Is(err, errAgain) {
			return err
		}
		if ctx.Err() != nil {
			return Refuse(ReasonNotApplied, "the rotation was not made in time; try again").Because(ctx.Err())
		}
	}
}

// rival is the lock somebody holds on a life's key, as far as the mirror knows.
func (r *Rotator) rival(l Life) (lock *Lock) {
	r.Mirror.Read(func(s *Snapshot) {
		if p := s.Pool(l.Pool); p != nil {
			lock = p.Locks[l.Key]
		}
	})
	return lock
}

// lost looks into a campaign that was not won. The state is linearizable, so what it shows is final.
func (r *Rotator) lost(ctx context.Context, f *flight, s *State) error {
	if done, err := r.ended(ctx, f, s); done || err != nil {
		return err
	}
	lock, err := Find[*Lock](s, LockRef(f.life.Pool, f.life.Key))
	if err != nil {
		return err
	}
	if lock != nil {
		// The mirror will show it in a moment; then the campaign goes on as for any lock that is seen there.
		wctx, cancel := context.WithTimeout(ctx, mirrorGrace)
		defer cancel()
		_ = r.Mirror.Wait(wctx, s.Revision)
	}
	return errAgain
}

// ended settles a flight whose life is over according to a linearizable state: it was rotated by somebody, or it ended
// otherwise. It reports false while the life goes on.
func (r *Rotator) ended(ctx context.Context, f *flight, s *State) (bool, error) {
	rot, err := Find[*Rotation](s, RotationRef(f.life))
	if err != nil {
		return true, err
	}
	if rot != nil {
		f.rotation, f.revision = rot, s.Revision
		return true, nil
	}
	a, err := Find[*Active](s, ActiveRef(f.life.Pool, f.life.Key))
	if err != nil {
		return true, err
	}
	if a != nil && a.CreateRevision == f.life.Generation {
		return false, nil
	}
	return true, r.gone(ctx, f)
}

// gone says what became of a life that ended without a rotation.
func (r *Rotator) gone(ctx context.Context, f *flight) error {
	req := f.req
	req.Generation = f.life.Generation
	st, err := readStanding(ctx, r.Store, &req)
	if err != nil {
		return err
	}
	switch v := decide(&req, st); v.action {
	case refuse:
		return v.refusal
	case report:
		f.rotation, f.revision = v.rotation, st.state.Revision
		return nil
	}
	return errAgain
}

// hold does what a won term is for, and gives the lock back if no transaction has.
func (r *Rotator) hold(ctx context.Context, f *flight, term *Term, s *State) error {
	if err := r.Steps(ctx, StepLocked, f.life); err != nil {
		r.Locks.Resign(term)
		return err
	}
	released, err := r.commit(ctx, f, term, s)
	if !released {
		r.Locks.Resign(term)
	}
	return err
}

// follow waits for the result of a rival's work over the standing watch. It returns done when the flight is settled,
// and otherwise the lock to take over (0: it is free).
func (r *Rotator) follow(ctx context.Context, f *flight, lock *Lock) (done bool, over int64, err error) {
	changed, stop := r.Mirror.Watch(f.life.Pool, f.life.Key)
	defer stop()
	began, seen, patience := r.Now(), lock.ModRevision, r.patience.get()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		lock, done := r.glance(f)
		switch {
		case done:
			return true, 0, nil
		case lock == nil:
			return false, 0, nil
		case lock.ModRevision != seen:
			// Somebody else is on it now. Each such change doubles the patience, so that replicas on a slow store do not
			// take the lock from each other for ever.
			seen, patience = lock.ModRevision, min(2*patience, maxPatience)
			timer.Reset(patience)
		}
		select {
		case <-changed:
		case <-timer.C:
			if wait := lock.BusyUntil.Sub(r.Now()); wait > 0 && lock.Stage != StageRotate {
				timer.Reset(min(wait, patience))
				continue
			}
			r.Observer.TookOver(f.life, lock.Holder, r.Now().Sub(began))
			return false, seen, nil
		case <-ctx.Done():
			return true, 0, Refuse(ReasonNotApplied, "replica %q was at work on this key and did not finish in time; try again", lock.Holder).Because(ctx.Err())
		}
	}
}

// glance looks at the mirror for the end of a flight's life, or who is at work on it.
func (r *Rotator) glance(f *flight) (lock *Lock, done bool) {
	r.Mirror.Read(func(s *Snapshot) {
		p := s.Pool(f.life.Pool)
		if p == nil {
			return
		}
		if rot := p.Rotation(f.life); rot != nil {
			f.rotation, f.revision, done = rot, s.Revision, true
			return
		}
		if pending := p.Pending[f.life.Key]; pending != nil && pending.Generation == f.life.Generation && p.Stock.Len() == 0 {
			f.revision, done = s.Revision, true
			return
		}
		lock = p.Locks[f.life.Key]
	})
	return lock, done
}
