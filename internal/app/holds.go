package app

import (
	"context"

	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

// Hold takes the lock of a key that is not in service: for a call to its upstream, as long as its record is as it was
// read. It implements lifecycle.Locks.
func (k *locks) Hold(ctx context.Context, e pool.Errand) (*pool.Term, *pool.Lock, error) {
	l := e.Life()
	lock, c, err := k.lockFor(l, e.Stage, e.BusyUntil)
	if err != nil {
		return nil, nil, err
	}
	refs := []pool.Ref{lock}
	c.Over, c.If, c.Read = e.Over, []etcdwire.Compare{k.store.Compare(pool.Same(e.Record))}, k.store.Keys(refs)
	term, resp, err := k.elector.Campaign(ctx, c)
	if err != nil {
		k.suspect(err)
		return nil, nil, campaignError(err)
	}
	if term == nil {
		return nil, pool.LockOf(k.store.StateOf(refs, resp).Records[lock]), nil
	}
	return termOf(l, term), nil, nil
}
