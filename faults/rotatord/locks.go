package main

import (
	"context"
	"fmt"

	"github.com/rotatord/rotatord/faults/first"
	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/pool"
)

// lock says how the lock is used. Normally every other rotation has it written before its commit, as all would have it if
// somebody else had it first; and it can be replaced by one that does not lock: safety must not need it.
func lock(s *app.Seams, mode string) error {
	campaigns := map[string]campaign{"off": switchedOff, "always-yes": alwaysYes}
	c := campaigns[mode]
	switch {
	case mode == "":
		return nil
	case mode == "normal":
		s.CampaignFirst = first.EveryOther()
		return nil
	case mode == "apart":
		s.CampaignFirst = first.Always
		return nil
	case c == nil:
		return fmt.Errorf("%s is %q, none of normal, apart, off and always-yes", envLock, mode)
	}
	loose := &looseLocks{campaign: c}
	s.CampaignFirst = first.Always
	s.Store = func(store pool.Store) pool.Store { loose.store = store; return store }
	s.Locks = func(inner pool.Locks) pool.Locks { loose.Locks = inner; return loose }
	return nil
}

type campaign func(ctx context.Context, k *looseLocks, l pool.Life) (*pool.Term, *pool.State, error)

// looseLocks implement pool.Locks without its promise.
type looseLocks struct {
	pool.Locks
	store    pool.Store
	campaign campaign
}

// Campaign implements pool.Locks.
func (k *looseLocks) Campaign(ctx context.Context, l pool.Life, _, _ int64, _ pool.Purpose) (*pool.Term, *pool.State, error) {
	return k.campaign(ctx, k, l)
}

// Resign does nothing: there is nothing to give back.
func (k *looseLocks) Resign(*pool.Term) {}

// switchedOff wins every campaign without writing anything, and fences nothing.
func switchedOff(ctx context.Context, k *looseLocks, l pool.Life) (*pool.Term, *pool.State, error) {
	s, err := k.store.Read(ctx, pool.LockRef(l.Pool, l.Key), pool.ActiveRef(l.Pool, l.Key), pool.RotationRef(l), pool.PendingRef(l.Pool, l.Key), pool.PoolRef(l.Pool))
	if err != nil {
		return nil, nil, err
	}
	return &pool.Term{Life: l}, s, nil
}

// alwaysYes takes the lock from whoever has it, at once, and tells nobody.
func alwaysYes(ctx context.Context, k *looseLocks, l pool.Life) (*pool.Term, *pool.State, error) {
	var over int64
	for {
		term, s, err := k.Locks.Campaign(ctx, l, over, 0, pool.Purpose{Stage: pool.StageRotate})
		if err != nil || term != nil {
			return &pool.Term{Life: l}, s, err
		}
		lock, err := pool.Find[*pool.Lock](s, pool.LockRef(l.Pool, l.Key))
		if err != nil || lock == nil {
			return nil, s, err
		}
		over = lock.ModRevision
	}
}
