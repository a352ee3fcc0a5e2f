// Package audit brings events to where they are kept for good, and deletes old records.
//
// A Relay appends events to a sink. It promises that every event is delivered at least once, in the order of (revision,
// id) within one run, and that none is missed: its cursor is on record in etcd and is moved only after the sink has
// taken what comes before. That holds over crashes, hand-overs between replicas and compactions of etcd. It does not
// promise that an event comes once: after a crash, or when two replicas believe for a moment that they lead, some are
// written again, with the same id.
//
// A Retention deletes events and the records of rotations after their time, and never before every relay has passed them that
// was on record when the round of deletions began. It does not delete what a pool still works with, such as keys.
//
// Both work on one replica at a time. That saves work and nothing rests on it: cursors move, and records are deleted, in
// transactions that compare what they were decided from.
package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// Store is what relays and retention need of pool.Store; see there.
type Store interface {
	Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error)
	Read(ctx context.Context, refs ...pool.Ref) (*pool.State, error)
	List(ctx context.Context, kind pool.Kind, pool string, limit int) (recs []pool.Record, revision int64, err error)
}

// Leader runs work while this replica leads a role, until ctx ends. work may run at two replicas at one time.
type Leader func(ctx context.Context, role string, work func(ctx context.Context))

// writeTimeout bounds the writing of one cursor or one batch of deletions, repeats included.
const writeTimeout = 2 * time.Second

// errOvertaken: somebody else has changed the record; what is here is old.
var errOvertaken = errors.New("somebody else has moved the cursor")

// put writes a record that must be as it was read, or absent if it was not there, and returns it as it is on record now.
// A write whose outcome is not known is looked for, and made again only if it is not there: the compare lets it happen
// once.
func put(ctx context.Context, store Store, was *pool.Relay, now pool.Relay) (*pool.Relay, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	guard := pool.Absent(now.Ref())
	if was != nil && was.TooNew() {
		return nil, fmt.Errorf("the cursor of relay %s was written by a newer rotatord: upgrade this replica", now.Name)
	}
	if was != nil {
		guard = pool.Same(was)
	}
	now.Version = pool.Version{Schema: pool.Schema}
	for {
		res, err := store.Apply(ctx, &pool.Txn{If: []pool.Guard{guard}, Put: []pool.Record{&now}})
		if err == nil && res.Applied {
			now.ModRevision = res.Revision
			return &now, nil
		}
		if err != nil && !errors.Is(err, pool.ErrOutcomeUnknown) && !errors.Is(err, pool.ErrNotApplied) {
			return nil, err
		}
		found, err := read(ctx, store, now.Name)
		switch {
		case err != nil:
			return nil, err
		case found != nil && found.Revision == now.Revision && found.EventID == now.EventID && found.UpdatedAt.Equal(now.UpdatedAt):
			return found, nil // it was made after all
		case !guard.Holds(&pool.State{Asked: map[pool.Ref]bool{now.Ref(): true}, Records: recordsOf(found)}):
			return nil, errOvertaken
		}
		if !pause(ctx, 50*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

func recordsOf(r *pool.Relay) map[pool.Ref]pool.Record {
	if r == nil {
		return nil
	}
	return map[pool.Ref]pool.Record{r.Ref(): r}
}

// read reads a relay's record, nil if there is none.
func read(ctx context.Context, store Store, name string) (*pool.Relay, error) {
	state, err := store.Read(ctx, pool.RelayRef(name))
	if err != nil {
		return nil, err
	}
	return pool.Find[*pool.Relay](state, pool.RelayRef(name))
}

// pause waits with jitter and reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
