package app

import (
	"context"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/election"
	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

// Hold takes the lock of a key that is not in service: for a call to its upstream, as long as its record is as it was
// read. It implements lifecycle.Locks.
func (k *locks) Hold(ctx context.Context, e pool.Errand) (*pool.Term, *pool.Lock, error) {
	l := e.Life()
	lock := &pool.Lock{
		Version: pool.Version{Schema: pool.Schema}, Life: l, Holder: k.replica, Campaign: uuid.NewString(), Stage: e.Stage, BusyUntil: e.BusyUntil,
	}
	value, err := k.store.Encode(lock)
	if err != nil {
		return nil, nil, err
	}
	refs := []pool.Ref{lock.Ref()}
	term, resp, err := k.elector.Campaign(ctx, election.Candidacy{
		Key: k.store.Layout().Key(lock.Ref()), Value: value, Over: e.Over,
		If: []etcdwire.Compare{k.store.Compare(pool.Same(e.Record))}, Read: k.store.Keys(refs),
	})
	if err != nil {
		k.suspect(err)
		return nil, nil, campaignError(err)
	}
	if term == nil {
		return nil, pool.LockOf(k.store.StateOf(refs, resp).Records[lock.Ref()]), nil
	}
	return &pool.Term{Life: l, Fence: term.Fence, Done: term.Done}, nil, nil
}
