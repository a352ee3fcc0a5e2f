package election

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/rotatord/rotatord/internal/etcdwire"
)

// Candidacy is one attempt to get a lock.
type Candidacy struct {
	// Key is the lock's key in etcd.
	Key string
	// Value is what the lock shall hold. It must be different for each candidacy: that is how a replica whose answer was
	// lost knows its own lock.
	Value string
	// Over is the ModRevision of a holder's lock that is to be taken over. 0: only take the lock if it is free.
	Over int64
	// If must hold too, such as that what is to be locked still exists.
	If []etcdwire.Compare
	// Read are the keys that are read in the same transaction, whether it is won or not. The lock's must be the first.
	Read [][]byte
	// Blind leaves out the reads if it is won.
	Blind bool
}

// Term is a won campaign.
type Term struct {
	Key string
	// Fence is the revision at which the lock was written: its ModRevision as long as nobody has taken it over. A write
	// that compares it cannot happen after that.
	Fence int64
	// Done is closed when the session ends, and the lock with it.
	Done <-chan struct{}
}

// Campaign makes one attempt. It returns a term if it won, and the answers to the candidacy's reads, in their order, as of
// the campaign's revision. Errors are ErrUnknown, ErrNoSession, ErrNotNow, or what etcd said for good;
// all but the first mean that nothing was locked.
//
// It sends the transaction again while its outcome is unknown and ctx lives: the compares let it win once.
func (e *Elector) Campaign(ctx context.Context, c Candidacy) (*Term, *etcdwire.Response, error) {
	session := e.current()
	if session == nil {
		return nil, nil, ErrNoSession
	}
	txn, maybe := c.txn(int64(session.Lease())), false
	bound := e.cfg.Attempt / 3 // a member that hangs costs this, and the next attempt goes to another one
	for delay := 10 * time.Millisecond; ; delay, bound = min(2*delay, 200*time.Millisecond), min(2*bound, e.cfg.Attempt) {
		resp, err := e.try(ctx, bound, txn)
		switch {
		case err == nil:
			return e.result(session, c, resp), resp, nil
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			e.expired(session)
			return nil, nil, ErrNoSession
		case refused(err):
			if maybe { // of an earlier attempt that is not known
				return nil, nil, e.abandon(c, maybe, err)
			}
			return nil, nil, fmt.Errorf("campaigning for %s: %w", c.Key, err)
		}
		maybe = maybe || !etcdwire.NotNow(err)
		if pause(ctx, delay); ctx.Err() != nil {
			return nil, nil, e.abandon(c, maybe, err)
		}
	}
}

// CampaignWith makes one attempt to get a free lock in one transaction with what the lock is wanted for: if commit's
// compares hold it is made, and the lock is not written, since its holder would only delete it again. If they do not, the
// lock is taken, as by Campaign, when it is free and what c says holds. Commit must compare that the lock is free.
//
// It sends that once, and waits as long as ctx lives and an attempt may last. It returns etcd's answer to commit, in which
// that to the campaign is nested, and a term if the lock was taken. Errors are those of Campaign; after ErrUnknown commit may
// have been made, or be made later.
func (e *Elector) CampaignWith(ctx context.Context, c Candidacy, commit *etcdwire.Txn) (*Term, *etcdwire.Response, error) {
	session := e.current()
	if session == nil {
		return nil, nil, ErrNoSession
	}
	commit.Else(c.txn(int64(session.Lease())))
	resp, err := e.try(ctx, e.cfg.Attempt, commit)
	switch {
	case err == nil && !resp.Succeeded && len(resp.Nested) == 1 && resp.Nested[0].Succeeded:
		return &Term{Key: c.Key, Fence: resp.Revision, Done: session.Done()}, resp, nil
	case err == nil:
		return nil, resp, nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		e.expired(session)
		return nil, nil, ErrNoSession
	case refused(err):
		return nil, nil, fmt.Errorf("campaigning for %s: %w", c.Key, err)
	}
	return nil, nil, e.abandon(c, !etcdwire.NotNow(err), err)
}

// try sends the transaction once.
func (e *Elector) try(ctx context.Context, bound time.Duration, txn *etcdwire.Txn) (*etcdwire.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return e.cfg.Commit(ctx, txn)
}

// txn is the transaction of a candidacy; it can be sent again.
func (c *Candidacy) txn(lease int64) *etcdwire.Txn {
	key, ops := []byte(c.Key), 2+len(c.If)+2*len(c.Read)
	txn := etcdwire.New(ops, len(c.Value)+ops*len(key))
	txn.If(etcdwire.Compare{Key: key, Created: c.Over == 0, Revision: c.Over})
	for _, compare := range c.If {
		txn.If(compare)
	}
	txn.Put(key, []byte(c.Value), lease)
	for _, read := range c.Read {
		if !c.Blind {
			txn.Get(read)
		}
		txn.ElseGet(read)
	}
	return txn
}

// result tells whether the campaign is won: by this answer, or by an earlier one that was lost, in which case the lock
// is there with this candidacy's value.
func (e *Elector) result(session *concurrency.Session, c Candidacy, resp *etcdwire.Response) *Term {
	term := &Term{Key: c.Key, Done: session.Done()}
	if resp.Succeeded {
		term.Fence = resp.Revision
		return term
	}
	if kvs := resp.Reads[0].Kvs; len(kvs) == 1 && string(kvs[0].Value) == c.Value {
		term.Fence = kvs[0].ModRevision
		return term
	}
	return nil
}

// abandon ends a campaign whose outcome was not known in time. If it may have written the lock, or may still do so,
// the lock is deleted: nobody in this process would ever use it.
func (e *Elector) abandon(c Candidacy, maybe bool, err error) error {
	if !maybe {
		return fmt.Errorf("%w: %w", ErrNotNow, err)
	}
	e.background(func(ctx context.Context) { e.reap(ctx, c) })
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// reap deletes a lock by its value, again and again for as long as a late request may still write it. What it misses
// ends with the session, and does not hinder a waiter's take-over.
func (e *Elector) reap(ctx context.Context, c Candidacy) {
	for delay := 100 * time.Millisecond; delay < 10*time.Second; delay *= 2 {
		tctx, cancel := context.WithTimeout(ctx, e.cfg.Attempt)
		deleted := e.withdraw(tctx, c)
		cancel()
		if deleted {
			return
		}
		if pause(ctx, delay); ctx.Err() != nil {
			return
		}
	}
}

// withdraw deletes a lock by its value, and reports whether it was there. It looks first: a transaction that may delete goes
// through etcd's log even if it deletes nothing, and most often there is nothing.
func (e *Elector) withdraw(ctx context.Context, c Candidacy) bool {
	got, err := e.cfg.Client.Get(ctx, c.Key)
	if err != nil || len(got.Kvs) == 0 || string(got.Kvs[0].Value) != c.Value {
		return false
	}
	resp, err := e.cfg.Client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value(c.Key), "=", c.Value)).
		Then(clientv3.OpDelete(c.Key)).Commit()
	return err == nil && resp.Succeeded
}

// refused reports whether etcd said for good that the transaction was not and will not be applied.
func refused(err error) bool {
	_, refused := etcdwire.Refused(err)
	return refused
}

// Resign gives a lock back if it is still this term's. It does not wait for etcd. If etcd does not hear of it, a waiter
// takes the lock over, or it ends with the session.
func (e *Elector) Resign(t *Term) {
	e.background(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 2*e.cfg.Attempt)
		defer cancel()
		_, err := e.cfg.Client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(t.Key), "=", t.Fence)).
			Then(clientv3.OpDelete(t.Key)).Commit()
		if err != nil && ctx.Err() == nil {
			e.cfg.Log.Debug("lock not released; it will be taken over", "lock", t.Key, "error", err)
		}
	})
}
