package app

import (
	"context"
	"errors"

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

// Campaign implements pool.Locks.
func (k *locks) Campaign(ctx context.Context, l pool.Life, over, seen int64, p pool.Purpose) (*pool.Term, *pool.State, error) {
	lock := &pool.Lock{
		Version: pool.Version{Schema: pool.Schema}, Life: l, Holder: k.replica, Campaign: uuid.NewString(),
		Stage: p.Stage, BusyUntil: p.BusyUntil,
	}
	value, err := k.store.Encode(lock)
	if err != nil {
		return nil, nil, err
	}
	refs := []pool.Ref{
		lock.Ref(), // first, as the election wants it
		pool.ActiveRef(l.Pool, l.Key), pool.RotationRef(l), pool.PendingRef(l.Pool, l.Key), pool.PoolRef(l.Pool),
	}
	alive, read := pool.LifeIs(l), refs
	if seen != 0 { // the caller knows the rest, and it is read if that turns out wrong
		alive, read = pool.Unchanged(pool.ActiveRef(l.Pool, l.Key), seen), refs[:1]
	}
	term, resp, err := k.elector.Campaign(ctx, election.Candidacy{
		Key: k.store.Layout().Key(lock.Ref()), Value: value, Over: over,
		If: []etcdwire.Compare{k.store.Compare(alive)}, Read: k.store.Keys(read), Blind: seen != 0,
	})
	if err != nil {
		k.suspect(err)
		return nil, nil, campaignError(err)
	}
	var state *pool.State
	if seen == 0 {
		state = k.store.StateOf(refs, resp)
	}
	if term == nil && seen != 0 {
		state, err = k.store.Read(ctx, refs...)
	}
	if term == nil {
		return nil, state, err
	}
	return &pool.Term{Life: l, Fence: term.Fence, Done: term.Done}, state, nil
}

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
