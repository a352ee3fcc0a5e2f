package pool

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// Bounds on how reads wait.
const (
	readPatience   = 50 * time.Millisecond   // how long the watch may take before it is asked where it is
	maxReadPause   = 500 * time.Millisecond  // longest time between two such questions
	confirmTimeout = 1500 * time.Millisecond // how long the store may take to confirm that something is not there
	maxLooks       = 5                       // how often a read looks again because the store had what the mirror had not
)

// QueriesConfig is what Queries needs. All but Progress are required; Events only for WatchEvents.
type QueriesConfig struct {
	Mirror *Mirror
	Store  Store
	Events EventLog
	Sealer Sealer
	Now    func() time.Time
	// Progress asks the watch that feeds the mirror to say which revision it is at. It must not block.
	Progress func()
}

// Queries are the reads. Each answer is the state at one revision, and says which.
//
// What is there is answered from memory, so that it is also answered while the store cannot be read. What is not there
// is never said from memory: the store is asked first, and if it cannot be read the answer is ReasonNotApplied, not "not
// found". A filter that nothing matches is no such negative: a list may be as old as its revision says.
//
// All methods are safe for concurrent use and end with ctx at the latest. Their errors are refusals or wrap ctx's error.
type Queries struct {
	mirror   *Mirror
	store    Store
	events   EventLog
	sealer   Sealer
	now      func() time.Time
	progress func()
}

// NewQueries returns the reads over a mirror and the store it mirrors.
func NewQueries(c QueriesConfig) *Queries {
	q := &Queries{mirror: c.Mirror, store: c.Store, events: c.Events, sealer: c.Sealer, now: c.Now, progress: c.Progress}
	if q.progress == nil {
		q.progress = func() {}
	}
	return q
}

// gap is what a snapshot has not: the pool itself, or one of refs in it. The caller is told only if the store has it
// not either.
type gap struct {
	pool       string
	refs       []Ref    // any of them would do; none: the pool is what is missing
	latestOf   string   // instead of refs: any rotation of this key
	generation int64    // the life that was asked for, if one was
	refusal    *Refusal // what to tell if the pool is there but none of refs is
}

// Error implements error, so that a look can return a gap. It is never shown.
func (g *gap) Error() string { return "not in the mirror" }

// answer calls look with a snapshot that is at least at minRevision, again if the store turns out to have what look
// did not find.
func (q *Queries) answer(ctx context.Context, pool string, minRevision int64, look func(*Snapshot) error) error {
	if err := q.reach(ctx, pool, minRevision); err != nil {
		return err
	}
	for range maxLooks {
		var err error
		q.mirror.Read(func(s *Snapshot) { err = look(s) })
		missing, ok := err.(*gap)
		if !ok {
			return err
		}
		if err := q.confirm(ctx, missing); err != nil {
			return err
		}
	}
	return Refuse(ReasonConflict, "what was asked for came and went again and again while it was read; try again")
}

// reach waits until the mirror is at revision. Only a revision that the store has reached is worth waiting for.
func (q *Queries) reach(ctx context.Context, pool string, revision int64) error {
	select {
	case <-q.mirror.Loaded():
	default:
		return Refuse(ReasonNotApplied, "this replica is still loading its records; try again or ask another replica")
	}
	if revision == 0 || q.mirror.Revision() >= revision || q.waitShortly(ctx, revision, readPatience) {
		return nil
	}
	q.progress()
	at, err := q.storeRevision(ctx, pool)
	if err != nil {
		return err
	}
	if revision > at {
		r := Refuse(ReasonRevisionInFuture, "min_revision %d is newer than the state of etcd, which is at revision %d", revision, at)
		r.Metadata = map[string]string{"revision": strconv.FormatInt(at, 10)}
		return r
	}
	return q.catchUp(ctx, revision)
}

// storeRevision asks the store where it is. Any ref will do for that; pool may be empty.
func (q *Queries) storeRevision(ctx context.Context, pool string) (int64, error) {
	if pool == "" {
		pool = "any"
	}
	bounded, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	state, err := q.store.Read(bounded, PoolRef(pool))
	if err != nil {
		return 0, q.unconfirmed(ctx, err, "this replica has not reached min_revision, and etcd cannot be read now; try again")
	}
	return state.Revision, nil
}

func (q *Queries) waitShortly(ctx context.Context, revision int64, patience time.Duration) bool {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return q.mirror.Wait(short, revision) == nil
}

// catchUp waits for a revision that the store has reached. A watch is silent about revisions that changed nothing it
// watches, so it is asked now and then.
func (q *Queries) catchUp(ctx context.Context, revision int64) error {
	for pause := readPatience; !q.waitShortly(ctx, revision, pause); pause = min(2*pause, maxReadPause) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("waiting for revision %d: %w", revision, err)
		}
		q.progress()
	}
	return nil
}

// confirm asks the store for what is missing. It returns nil once the mirror has caught up with a store that has it,
// and otherwise what to tell the caller.
func (q *Queries) confirm(ctx context.Context, g *gap) error {
	refs, state, err := q.readGap(ctx, g)
	if err != nil {
		return err
	}
	pool, err := Find[*Pool](state, PoolRef(g.pool))
	switch {
	case err != nil:
		return err
	case pool == nil:
		return noSuchPool(g.pool)
	case g.refusal == nil:
		return q.catchUp(ctx, pool.ModRevision)
	}
	newest, err := newestOf(state, refs)
	switch {
	case err != nil:
		return err
	case newest > 0:
		return q.catchUp(ctx, newest)
	case g.generation > state.Revision:
		return Refuse(ReasonGenerationInFuture, "generation %d is newer than the state of etcd, which is at revision %d", g.generation, state.Revision)
	}
	return g.refusal
}

func (q *Queries) readGap(ctx context.Context, g *gap) ([]Ref, *State, error) {
	bounded, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	refs := g.refs
	if g.latestOf != "" {
		rotations, _, err := q.store.Rotations(bounded, g.pool, g.latestOf)
		if err != nil {
			return nil, nil, q.unconfirmed(ctx, err, "it is not known here, and etcd cannot be read now; try again")
		}
		for _, r := range rotations {
			refs = []Ref{r.Ref()}
		}
	}
	state, err := q.store.Read(bounded, append([]Ref{PoolRef(g.pool)}, refs...)...)
	if err != nil {
		return nil, nil, q.unconfirmed(ctx, err, "it is not known here, and etcd cannot be read now; try again")
	}
	return refs, state, nil
}

// newestOf is the newest modification of the records at refs, zero if there are none.
func newestOf(state *State, refs []Ref) (newest int64, err error) {
	for _, ref := range refs {
		rec, err := Find[Record](state, ref)
		if err != nil {
			return 0, err
		}
		if rec != nil {
			newest = max(newest, rec.At().ModRevision)
		}
	}
	return newest, nil
}

// unconfirmed is the answer if the store cannot be read. A caller whose own time is up is told that instead, and a
// refusal with another reason says more than this can.
func (q *Queries) unconfirmed(ctx context.Context, err error, text string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("reading the store: %w", ctx.Err())
	}
	if r := ReasonOf(err); r != "" && r != ReasonNotApplied {
		return err
	}
	return Refuse(ReasonNotApplied, "%s", text).Because(err)
}

// pooled returns a pool's state. Its own record is nil if that cannot be decoded: what else is in the pool can be read
// all the same.
func (s *Snapshot) pooled(name string) (*PoolState, error) {
	if p := s.Pool(name); p != nil {
		return p, nil
	}
	err := s.broken(PoolRef(name))
	if p := s.Pools[name]; p != nil && err != nil {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	return nil, &gap{pool: name}
}

// broken is the refusal for a record that is there and cannot be decoded, nil if none of refs is such a one.
func (s *Snapshot) broken(refs ...Ref) error {
	if len(s.Broken) == 0 {
		return nil
	}
	for _, ref := range refs {
		if b := s.Broken[ref]; b != nil {
			_, err := Find[Record](&State{Asked: map[Ref]bool{ref: true}, Records: map[Ref]Record{ref: b}}, ref)
			return err
		}
	}
	return nil
}

func noSuchPool(pool string) *Refusal {
	return Refuse(ReasonPoolNotFound, "pool %q does not exist; `rotatorctl pool list` shows those that do", pool)
}

func noSuchKey(pool, key string) *Refusal {
	return Refuse(ReasonKeyNotFound, "pool %q has no key %q; it may have been removed", pool, key)
}
