package pool

import (
	"context"
	"time"
)

// Term is a won campaign: a context that ends with the session behind the lock, and a fence that every write of the
// holder carries.
type Term struct {
	Life
	Fence int64 // the lock's ModRevision. 0 only in tests that switch the lock off: then nothing is fenced
	Done  <-chan struct{}
}

// stake is what a flight has of its life's lock: a term; or a bid, which is a campaign that goes in one transaction with the
// commit that the lock is wanted for.
type stake struct {
	life Life
	won  *Term  // nil: it is a bid that is not won yet
	lost *State // what a bid found that was not won
}

// mayBid reports whether a campaign can go with its commit: once a flight, and not where there is something to be done under
// the lock before, or where it is not known how the life stands.
func (r *Rotator) mayBid(f *flight, known *State) bool {
	if known == nil || f.req.confirm || f.hasBid {
		return false
	}
	f.hasBid = true
	return !r.CampaignFirst()
}

// over reports whether the session behind the lock has ended: then the lock is not the holder's any more.
func (k *stake) over() bool {
	if k.won == nil {
		return false
	}
	select {
	case <-k.won.Done:
		return true
	default:
		return false
	}
}

// alive guards that the life goes on. Who has not campaigned yet knows it from memory: then the record must be as it is
// known, so that no operator's hand on the key is passed over.
func (k *stake) alive(a *Active) Guard {
	if k.won == nil {
		return Same(a)
	}
	return LifeIs(k.life)
}

// guard compares that the lock is still held, and gives it back; or, before it is won, compares that it is free.
func (k *stake) guard(txn *Txn) {
	ref := LockRef(k.life.Pool, k.life.Key)
	switch {
	case k.won == nil:
		txn.If = append(txn.If, Absent(ref))
	case k.won.Fence != 0:
		txn.If = append(txn.If, Unchanged(ref, k.won.Fence))
		txn.Delete = append(txn.Delete, ref)
	}
}

// apply makes a transaction of a stake, and the campaign with it if that is not won yet. Then a result that says no may come
// with a term. makes is the rotation that the transaction makes, or what it has wait.
//
// A copy of a bid with an unknown outcome may be under way for long. What it does is right whenever it is done, but it may
// be after the flight has ended: see Rotator.resolve.
func (r *Rotator) apply(ctx context.Context, f *flight, k *stake, txn *Txn, makes Record) (*Result, error) {
	if k.won != nil {
		return r.applier.apply(ctx, txn)
	}
	if r.applier.outdated(txn) {
		return nil, errOutdated
	}
	res, won, err := r.bid(ctx, f.life, txn)
	switch reason := ReasonOf(err); {
	case reason == ReasonOutcomeUnknown:
		f.unsure = makes
		r.applier.unknown(txn, 1, err)
		return nil, errAgain
	case reason == ReasonNotApplied:
		return nil, errAgain
	case err != nil || res.Applied:
		return res, err
	case won == nil:
		k.lost = res.State
		return res, nil
	}
	k.won = won
	return res, r.Steps(ctx, StepLocked, f.life)
}

// bid sends a commit with its campaign. The answer is waited for as long as a first one is, and longer while such answers
// take long or many rotations are under way: giving one up and beginning anew would only add to the load.
func (r *Rotator) bid(ctx context.Context, l Life, txn *Txn) (*Result, *Term, error) {
	ctx, cancel := context.WithTimeout(ctx, max(firstAnswer, r.answers.get(), min(time.Duration(r.underWay())*answerShare, maxPatience)))
	defer cancel()
	began := time.Now()
	defer func() { r.answers.observe(time.Since(began)) }()
	return r.Locks.CampaignWith(ctx, l, txn)
}

// answerShare is what each rotation under way may add to the time of an answer.
const answerShare = 5 * time.Millisecond

// underWay is the number of flights.
func (r *Rotator) underWay() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flights)
}

// resign gives the lock back, if it was taken.
func (r *Rotator) resign(k *stake) {
	if k.won != nil {
		r.Locks.Resign(k.won)
	}
}
