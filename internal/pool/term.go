package pool

import (
	"context"
	"errors"
	"time"
)

// Term is a won campaign: a context that ends with the session behind the lock, and a fence that every write of the
// holder carries.
type Term struct {
	Life
	Fence int64 // the lock's ModRevision. 0 only in tests that switch the lock off: then nothing is fenced
	Done  <-chan struct{}

	bid *bid // nil: it is won
}

// bid is a campaign that goes in one transaction with the commit that the lock is wanted for.
type bid struct {
	lost *State // what was found, if neither was made
}

// bidFor is a term that is to be won with the commit: once a flight, and not where there is something to be done under the
// lock before, or where it is not known how the life stands.
func (r *Rotator) bidFor(f *flight, known *State) *Term {
	if known == nil || f.req.confirm || f.hasBid {
		return nil
	}
	if f.hasBid = true; r.CampaignFirst() {
		return nil
	}
	return &Term{Life: f.life, bid: new(bid)}
}

// over reports whether the session behind the lock has ended: then the lock is not the holder's any more.
func (t *Term) over() bool {
	select {
	case <-t.Done:
		return true
	default:
		return false
	}
}

// notWon is what was found by a bid that did not win, nil of any other term.
func (t *Term) notWon() *State {
	if t.bid == nil {
		return nil
	}
	return t.bid.lost
}

// alive guards that the life goes on. Who has not campaigned yet knows it from memory: then the record must be as it is
// known, so that no operator's hand on the key is passed over.
func (t *Term) alive(a *Active) Guard {
	if t.bid != nil {
		return Same(a)
	}
	return LifeIs(a.Life())
}

// guard compares that the lock is still this term's; or, before it is won, that it is free.
func (t *Term) guard(txn *Txn) {
	ref := LockRef(t.Pool, t.Key)
	switch {
	case t.bid != nil:
		txn.If = append(txn.If, Absent(ref))
	case t.Fence != 0:
		txn.If = append(txn.If, Unchanged(ref, t.Fence))
		txn.Delete = append(txn.Delete, ref)
	}
}

// apply makes a transaction of a term, and the campaign with it if the term is not won yet. Then a result that says no may
// come with the term won.
//
// A copy of a bid with an unknown outcome may be under way for long. What it does is right whenever it is done, but it may
// be after the flight has ended: see flight.unsure.
func (r *Rotator) apply(ctx context.Context, f *flight, term *Term, txn *Txn) (*Result, error) {
	if term.bid == nil {
		return r.applier.apply(ctx, txn)
	}
	if r.applier.outdated(txn) {
		return nil, errOutdated
	}
	res, won, err := r.bid(ctx, f.life, txn)
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		f.unsure = true
		r.applier.unknown(txn, 1, err)
		return nil, errAgain
	case errors.Is(err, ErrNotApplied):
		return nil, errAgain
	case err != nil || res.Applied:
		return res, err
	case won == nil:
		term.bid.lost = res.State
		return res, nil
	}
	*term = *won
	return res, r.Steps(ctx, StepLocked, f.life)
}

// bid sends a commit with its campaign. The answer is waited for as long as a first one is, and longer while such answers
// take long or many rotations are under way: giving one up and beginning anew would only add to the load.
func (r *Rotator) bid(ctx context.Context, l Life, txn *Txn) (*Result, *Term, error) {
	ctx, cancel := context.WithTimeout(ctx, max(firstAnswer, r.answers.get(), min(r.underWay()*answerShare, maxPatience)))
	defer cancel()
	began := time.Now()
	defer func() { r.answers.observe(time.Since(began)) }()
	return r.Locks.CampaignWith(ctx, l, txn)
}

// answerShare is what each rotation under way may add to the time of an answer.
const answerShare = 5 * time.Millisecond

// underWay is the number of flights.
func (r *Rotator) underWay() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Duration(len(r.flights))
}

// resign gives the lock back, if it was taken.
func (r *Rotator) resign(t *Term) {
	if t.bid == nil {
		r.Locks.Resign(t)
	}
}
