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

	// Of the flight's own goroutine.
	lostTokens map[string]bool // found used by others
	busyUntil  time.Time       // as its lock says, if an upstream is asked
	hasBid     bool            // the one campaign that may go with a commit was made
	unsure     Record          // what became of that commit is not known: the rotation it makes, or what it has wait; or nil

	rotation *Rotation // nil with a nil err: it waits for stock, or probed says why not
	probed   *probed
	key      *Active // the successor, if this replica made the rotation
	revision int64
	err      error
}

// flightKey is what requests must have in common to share a flight.
type flightKey struct {
	life     Life
	confirm  bool // who wants the upstream asked first, and who does not, do not wait for each other
	override bool // who overrides the bound must not be told what another is refused
}

// placeOf is where the flight for a request about a life is.
func placeOf(l Life, req *RotateRequest) flightKey {
	return flightKey{l, req.confirm, req.OverrideBound}
}

// join returns the flight for a life, and starts one if there is none. It returns nil if the Rotator is closed.
func (r *Rotator) join(l Life, req *RotateRequest, fulfils bool) (f *flight, joined bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	place := placeOf(l, req)
	if f := r.flights[place]; f != nil {
		return f, true
	}
	if r.closed {
		return nil, false
	}
	f = &flight{life: l, req: *req, began: r.Now(), fulfils: fulfils, done: make(chan struct{})}
	r.flights[place] = f
	r.work.Go(func() { r.fly(f) })
	return f, false
}

// errCancelled ends a flight whose rotation does not wait for stock any more: an operator took the key in hand.
var errCancelled = errors.New("the rotation does not wait any more")

// decidedBefore reports whether what the flight came to may be older than a request that joined it, or about another one.
// A rotation stays true; that one waits, or cannot be made, may be over by the time that is known.
func (f *flight) decidedBefore() bool {
	if f.err == nil {
		return f.rotation == nil
	}
	reason := ReasonOf(f.err)
	return reason != ReasonNotApplied && reason != ReasonOutcomeUnknown
}

// await waits for the end of the flight, and reports false if ctx ended before.
func (f *flight) await(ctx context.Context) bool {
	select {
	case <-f.done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-f.done: // both: the answer is worth more
		return true
	default:
		return false
	}
}

// fly does the work of a flight. The flight is taken off the table before its callers wake: one who asks again after an
// error must not find the old one.
func (r *Rotator) fly(f *flight) {
	growStack(0)
	ctx, cancel := context.WithTimeout(r.base, r.budget(f))
	defer cancel()
	f.err = r.pursue(ctx, f)
	r.resolve(f)
	r.mu.Lock()
	delete(r.flights, placeOf(f.life, &f.req))
	r.mu.Unlock()
	close(f.done)
}

// resolve ends a flight that was not told what became of its commit. What it came to shows that: then the observer hears of
// it now.
func (r *Rotator) resolve(f *flight) {
	switch sent := f.unsure.(type) {
	case *Rotation:
		if f.rotation != nil && f.rotation.ID == sent.ID {
			r.Observer.Rotated(f.rotation, r.Now().Sub(f.began))
		}
	case *Pending:
		if f.err == nil && f.rotation == nil && f.probed == nil {
			r.Observer.Parked(sent)
		}
	}
	if f.unsure != nil && f.err != nil && !errors.Is(f.err, errCancelled) && !errors.Is(f.err, errIncident) { // these two void the commit
		f.err = errNotKnown.Because(f.err)
	}
}

// growStack has this goroutine's stack grow while there is nothing on it. It would be doubled and moved three times on the
// way down to the store, which took a twentieth of the processor time of a rotation.
//
//go:noinline
func growStack(at int) byte {
	var room [8 << 10]byte
	return room[at]
}

// errAgain says that what a step rested on has changed: decide again.
var errAgain = errors.New("decide again")

// pursue campaigns, commits and follows until the life has ended, waits for stock, or must not be rotated.
func (r *Rotator) pursue(ctx context.Context, f *flight) error {
	var last *State // what the store was last found to hold
	for {
		found, err := r.try(ctx, f, last)
		if !errors.Is(err, errAgain) {
			return err
		}
		if ctx.Err() != nil {
			return Refuse(ReasonNotApplied, "the rotation was not made in time; try again").Because(ctx.Err())
		}
		if found != nil {
			last = found
		}
	}
}

// try follows who is at work on the life, and then makes one campaign, and the commit if that is won. With errAgain it may
// return what it found in the store.
func (r *Rotator) try(ctx context.Context, f *flight, last *State) (found *State, err error) {
	over, done, err := r.follow(ctx, f, last)
	if done || err != nil {
		return nil, err
	}
	if err := r.Steps(ctx, StepCampaign, f.life); err != nil {
		return nil, err
	}
	if r.alreadyProbed(f) {
		return nil, nil
	}
	known := r.known(f, last)
	if r.outOfTokens(f, known) {
		if last, err = r.atBound(ctx, f); !errors.Is(err, errAgain) {
			return nil, err
		}
		known = r.known(f, last)
	}
	k, state, err := r.campaign(ctx, f, over, known)
	if err != nil {
		return nil, err
	}
	if k != nil {
		if err := r.hold(ctx, f, k, state); errors.Is(err, errBound) {
			return r.atBound(ctx, f)
		} else if !errors.Is(err, errAgain) {
			return nil, err
		}
		state = k.lost
	}
	if state == nil {
		return last, errAgain
	}
	if done, err := r.ended(ctx, f, state); done || err != nil {
		return nil, err
	}
	return state, errAgain
}

// campaign makes a campaign, or begins one that is to be won with the commit. It returns what the flight has of the lock
// then, nil if it was not won, with the state that decided.
func (r *Rotator) campaign(ctx context.Context, f *flight, over claim, known *State) (*stake, *State, error) {
	if over.lock == 0 && r.mayBid(f, known) {
		return &stake{life: f.life}, known, nil
	}
	term, state, err := r.Locks.Campaign(ctx, f.life, over.lock, known.version(f.life), r.purpose(ctx, f))
	if err != nil || term == nil {
		return nil, state, err
	}
	if over.lock != 0 {
		r.Observer.TookOver(f.life, over.holder, over.after)
	}
	if state == nil {
		state = known
	}
	return &stake{life: f.life, won: term}, state, nil
}

// ended settles a flight whose life is over according to a state: it was rotated by somebody, or it ended otherwise. It
// reports false while the life goes on.
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
	return true, r.ask(ctx, f)
}

// ask settles a flight by how the store says that its life stands: one that ended without a rotation, or that may have one
// of an unknown outcome. It returns errAgain if the life is in service and can be rotated.
func (r *Rotator) ask(ctx context.Context, f *flight) error {
	done, err := r.lookUp(ctx, f)
	if err == nil && !done {
		return errAgain
	}
	return err
}

// hold does what a stake is for, and gives the lock back if no transaction has.
func (r *Rotator) hold(ctx context.Context, f *flight, k *stake, s *State) error {
	if k.won != nil {
		if err := r.Steps(ctx, StepLocked, f.life); err != nil {
			r.resign(k)
			return err
		}
	}
	end := r.commit
	if f.req.confirm {
		end = r.confirm
	}
	released, err := end(ctx, f, k, s)
	if !released {
		r.resign(k)
	}
	if f.unsure != nil && k.won == nil && errors.Is(err, errAgain) {
		return r.ask(ctx, f) // before anything is decided of a life that may be over
	}
	return err
}
