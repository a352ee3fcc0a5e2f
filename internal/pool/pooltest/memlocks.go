package pooltest

import (
	"context"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/pool"
)

// MemLocks is a pool.Locks on a Store: the lock is a record like any other, without a lease.
type MemLocks struct {
	Store   pool.Store
	Holder  string
	Commits pool.Store // makes the commits that go with campaigns; nil: Store
}

// Campaign implements pool.Locks.
func (k *MemLocks) Campaign(ctx context.Context, l pool.Life, over, seen int64, p pool.Purpose) (*pool.Term, *pool.State, error) {
	lock := &pool.Lock{Version: pool.Version{Schema: pool.Schema}, Life: l, Holder: k.Holder, Campaign: uuid.NewString(), Stage: p.Stage, BusyUntil: p.BusyUntil}
	alive := pool.LifeIs(l)
	if seen != 0 {
		alive = pool.Unchanged(pool.ActiveRef(l.Pool, l.Key), seen)
	}
	res, err := k.Store.Apply(ctx, &pool.Txn{If: []pool.Guard{pool.Unchanged(lock.Ref(), over), alive}, Put: []pool.Record{lock}})
	if err != nil {
		return nil, nil, err
	}
	if res.Applied && seen != 0 {
		return &pool.Term{Life: l, Fence: res.Revision}, nil, nil
	}
	state, err := k.Store.Read(ctx, lock.Ref(), pool.ActiveRef(l.Pool, l.Key), pool.RotationRef(l), pool.PendingRef(l.Pool, l.Key), pool.PoolRef(l.Pool))
	if err != nil || !res.Applied {
		return nil, state, err
	}
	return &pool.Term{Life: l, Fence: res.Revision}, state, nil
}

// CampaignWith implements pool.Locks, in two transactions: what has changed between them costs the lock.
func (k *MemLocks) CampaignWith(ctx context.Context, l pool.Life, t *pool.Txn) (*pool.Result, *pool.Term, error) {
	commits := k.Store
	if k.Commits != nil {
		commits = k.Commits
	}
	res, err := commits.Apply(ctx, t)
	if err != nil || res.Applied {
		return res, nil, err
	}
	active := res.State.Records[pool.ActiveRef(l.Pool, l.Key)]
	if active == nil || active.At().CreateRevision != l.Generation {
		return res, nil, nil
	}
	term, _, err := k.Campaign(ctx, l, 0, active.At().ModRevision, pool.Purpose{Stage: pool.StageRotate})
	return res, term, err
}

// Resign implements pool.Locks.
func (k *MemLocks) Resign(t *pool.Term) {
	ref := pool.LockRef(t.Pool, t.Key)
	_, _ = k.Store.Apply(context.Background(), &pool.Txn{If: []pool.Guard{pool.Unchanged(ref, t.Fence)}, Delete: []pool.Ref{ref}})
}

// Hold is the lock for an errand.
func (k *MemLocks) Hold(ctx context.Context, e pool.Errand) (*pool.Term, *pool.Lock, error) {
	l := e.Life()
	lock := &pool.Lock{
		Version: pool.Version{Schema: pool.Schema}, Life: l, Holder: k.Holder, Campaign: uuid.NewString(), Stage: e.Stage, BusyUntil: e.BusyUntil,
	}
	res, err := k.Store.Apply(ctx, &pool.Txn{If: []pool.Guard{pool.Unchanged(lock.Ref(), e.Over), pool.Same(e.Record)}, Put: []pool.Record{lock}})
	if err != nil {
		return nil, nil, err
	}
	if res.Applied {
		return &pool.Term{Life: l, Fence: res.Revision}, nil, nil
	}
	return nil, pool.LockOf(res.State.Records[lock.Ref()]), nil
}
