package pooltest

import (
	"context"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/pool"
)

// MemLocks is a pool.Locks on a Store: the lock is a record like any other, without a lease.
type MemLocks struct {
	Store  pool.Store
	Holder string
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
