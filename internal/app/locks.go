package app

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/election"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

// locks joins the election to the store's layout: it implements pool.Locks.
type locks struct {
	elector *election.Elector
	store   *etcdstore.Store
	replica string
	suspect func(error) // is told what etcd answered to a campaign that failed
}

// lockFor is a lock of this replica's, and the candidacy for it.
func (k *locks) lockFor(l pool.Life, stage string, busyUntil time.Time) (pool.Ref, election.Candidacy, error) {
	lock := &pool.Lock{
		Version: pool.Version{Schema: pool.Schema}, Life: l, Holder: k.replica, Campaign: uuid.NewString(), Stage: stage, BusyUntil: busyUntil,
	}
	value, err := k.store.Encode(lock)
	return lock.Ref(), election.Candidacy{Key: k.store.Layout().Key(lock.Ref()), Value: value}, err
}

// Campaign implements pool.Locks.
func (k *locks) Campaign(ctx context.Context, l pool.Life, over, seen int64, p pool.Purpose) (*pool.Term, *pool.State, error) {
	lock, c, err := k.lockFor(l, p.Stage, p.BusyUntil)
	if err != nil {
		return nil, nil, err
	}
	refs := []pool.Ref{
		lock, // first, as the election wants it
		pool.ActiveRef(l.Pool, l.Key), pool.RotationRef(l), pool.PendingRef(l.Pool, l.Key), pool.PoolRef(l.Pool),
	}
	alive := pool.LifeIs(l)
	if seen != 0 {
		alive = pool.Unchanged(pool.ActiveRef(l.Pool, l.Key), seen)
	}
	c.Over, c.If, c.Read, c.Blind = over, []etcdwire.Compare{k.store.Compare(alive)}, k.store.Keys(refs), seen != 0
	term, resp, err := k.elector.Campaign(ctx, c)
	switch {
	case err != nil:
		k.suspect(err)
		return nil, nil, campaignError(err)
	case term != nil && c.Blind: // the caller knows the rest
		return termOf(l, term), nil, nil
	}
	return termOf(l, term), k.store.StateOf(refs, resp), nil
}

func termOf(l pool.Life, term *election.Term) *pool.Term {
	if term == nil {
		return nil
	}
	return &pool.Term{Life: l, Fence: term.Fence, Done: term.Done}
}

// CampaignWith implements pool.Locks.
func (k *locks) CampaignWith(ctx context.Context, l pool.Life, t *pool.Txn) (*pool.Result, *pool.Term, error) {
	_, c, err := k.lockFor(l, pool.StageRotate, time.Time{})
	if err != nil {
		return nil, nil, err
	}
	commit, err := k.store.Request(t)
	if err != nil {
		return nil, nil, err
	}
	c.If = []etcdwire.Compare{k.store.Compare(pool.LifeIs(l))}
	for _, g := range t.If {
		if g.Ref.Kind == pool.KindPending { // so that a late copy of one that parked the rotation takes no lock
			c.If = append(c.If, k.store.Compare(g))
		}
	}
	term, resp, err := k.elector.CampaignWith(ctx, c, commit.Txn)
	switch {
	case errors.Is(err, election.ErrUnknown):
		k.suspect(err)
		return nil, nil, errNotKnown.Because(err)
	case err != nil:
		k.suspect(err)
		return nil, nil, campaignError(err)
	}
	res := commit.Result(resp)
	if res.Applied && term != nil { // it was sent twice on the way, and this is the second answer
		k.elector.Resign(term)
		term = nil
	}
	return res, termOf(l, term), nil
}

var errNotKnown = pool.Refuse(pool.ReasonOutcomeUnknown, "etcd did not say in time whether the rotation was made; repeat the call")

// campaignError says what a failed campaign means for a rotation: it was not made, whatever became of the lock.
func campaignError(err error) error {
	switch {
	case errors.Is(err, election.ErrNoSession):
		return errNoSession.Because(err)
	case errors.Is(err, election.ErrUnknown), errors.Is(err, election.ErrNotNow), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return pool.Refuse(pool.ReasonNotApplied, "etcd cannot be written now; try again").Because(err)
	}
	return err
}

// Resign implements pool.Locks.
func (k *locks) Resign(t *pool.Term) {
	k.elector.Resign(&election.Term{Key: k.store.Layout().Key(pool.LockRef(t.Pool, t.Key)), Fence: t.Fence})
}
