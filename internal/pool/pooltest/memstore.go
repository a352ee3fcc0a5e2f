// Package pooltest has what tests of the domain and of its users need: a store in memory that compares like etcd, a store
// that fails on demand around any other, and a sealer that is clearly not one.
//
// MemStore does not promise etcd's timing, limits on sizes, leases or history. What depends on those is tested with etcd.
package pooltest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// MaxOps is etcd's default limit on the compares, and on the changes, of one transaction.
const MaxOps = 128

// MemStore is a pool.Store in memory. A commit raises the revision by one; a record's CreateRevision is that of the put
// that brought it into being, its ModRevision that of the last put, as in etcd.
type MemStore struct {
	mu       sync.Mutex // protects the following fields
	revision int64
	records  map[pool.Ref]pool.Record
	events   map[pool.Ref]StoredEvent
	mirror   *pool.Mirror
	watchers []func(revision int64, records func() []pool.Record, t *pool.Txn)
}

// StoredEvent is an event with the revision of its transaction.
type StoredEvent struct {
	pool.Event
	Revision int64
}

var _ pool.Store = (*MemStore)(nil)

// NewMemStore returns an empty store.
func NewMemStore() *MemStore {
	return &MemStore{revision: 1, records: make(map[pool.Ref]pool.Record), events: make(map[pool.Ref]StoredEvent)}
}

// Feed keeps a mirror up to date from now on, as the watch of a replica does.
func (m *MemStore) Feed(mirror *pool.Mirror) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mirror = mirror
	recs, _ := m.all()
	mirror.Load(recs, m.revision, time.Now())
}

// Watch calls fn after each commit, with a function that lists all records of the new revision, and with the
// transaction (nil for sweeps and edits by hand). fn must not call the store.
func (m *MemStore) Watch(fn func(revision int64, records func() []pool.Record, t *pool.Txn)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers = append(m.watchers, fn)
}

// Revision is the store's revision.
func (m *MemStore) Revision() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision
}

// Events lists the events in the order (revision, id).
func (m *MemStore) Events() []StoredEvent {
	m.mu.Lock()
	defer m.mu.Unlock()
	var events []StoredEvent
	for _, e := range m.events {
		events = append(events, e)
	}
	slices.SortFunc(events, func(a, b StoredEvent) int {
		if a.Revision != b.Revision {
			return int(a.Revision - b.Revision)
		}
		return strings.Compare(a.ID, b.ID)
	})
	return events
}

// Put puts records by hand, without guards and with the schema they have (0: the current one), and returns the revision.
func (m *MemStore) Put(recs ...pool.Record) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commit(nil, recs, nil)
	return m.revision
}

// Drop deletes records by hand.
func (m *MemStore) Drop(refs ...pool.Ref) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commit(nil, nil, refs)
	return m.revision
}

// Apply implements pool.Store.
func (m *MemStore) Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, pool.Refuse(pool.ReasonNotApplied, "not applied").Because(err)
	}
	if err := checkTxn(t); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.Event != nil {
		if e, there := m.events[pool.EventRef(t.Event.Pool, t.Event.ID)]; there {
			return &pool.Result{Applied: true, Revision: e.Revision}, nil
		}
	}
	st := m.state(guarded(t))
	for _, g := range t.If {
		if !g.Holds(st) {
			return &pool.Result{State: st}, nil
		}
	}
	if len(t.Put)+len(t.Delete) > 0 || t.Event != nil {
		m.commit(t, t.Put, t.Delete)
	}
	return &pool.Result{Applied: true, Revision: m.revision}, nil
}

// checkTxn refuses what etcd refuses, and a put under active/ that compares nothing about what it overwrites.
func checkTxn(t *pool.Txn) error {
	if len(t.If) > MaxOps || len(t.Put)+len(t.Delete)+1 > MaxOps {
		return fmt.Errorf("pooltest: too many operations in a transaction: %d compares, %d changes", len(t.If), len(t.Put)+len(t.Delete))
	}
	seen := make(map[pool.Ref]bool)
	for _, ref := range touched(t) {
		if seen[ref] {
			return fmt.Errorf("pooltest: duplicate key in a transaction: %+v", ref)
		}
		seen[ref] = true
	}
	for _, rec := range t.Put {
		if ref := rec.Ref(); ref.Kind == pool.KindActive && !slices.Contains(guarded(t), ref) {
			return fmt.Errorf("pooltest: %+v is put without a compare", ref)
		}
	}
	return nil
}

func touched(t *pool.Txn) []pool.Ref {
	refs := slices.Clone(t.Delete)
	for _, rec := range t.Put {
		refs = append(refs, rec.Ref())
	}
	return refs
}

func guarded(t *pool.Txn) []pool.Ref {
	var refs []pool.Ref
	for _, g := range t.If {
		refs = append(refs, g.Ref)
	}
	return refs
}

// commit is called with mu held.
func (m *MemStore) commit(t *pool.Txn, puts []pool.Record, deletes []pool.Ref) {
	m.revision++
	var changes []pool.Change
	for _, ref := range deletes {
		if _, there := m.records[ref]; there {
			delete(m.records, ref)
			changes = append(changes, pool.Change{Delete: ref})
		}
	}
	for _, rec := range puts {
		v := pool.Version{Schema: rec.At().Schema, CreateRevision: m.revision, ModRevision: m.revision}
		if v.Schema == 0 {
			v.Schema = pool.Schema
		}
		if before := m.records[rec.Ref()]; before != nil {
			v.CreateRevision = before.At().CreateRevision
		}
		stored := withVersion(rec, v)
		m.records[rec.Ref()] = stored
		changes = append(changes, pool.Change{Put: stored})
	}
	if t != nil && t.Event != nil {
		m.events[pool.EventRef(t.Event.Pool, t.Event.ID)] = StoredEvent{*t.Event, m.revision}
	}
	if m.mirror != nil {
		m.mirror.Apply(changes, m.revision)
	}
	for _, fn := range m.watchers {
		fn(m.revision, func() []pool.Record { recs, _ := m.all(); return recs }, t)
	}
}

// withVersion copies a record.
func withVersion(rec pool.Record, v pool.Version) pool.Record {
	switch r := rec.(type) {
	case *pool.Pool:
		c := *r
		c.Version = v
		return &c
	case *pool.Slot:
		c := *r
		c.Version = v
		return &c
	case *pool.Active:
		c := *r
		c.Version = v
		return &c
	case *pool.Backup:
		c := *r
		c.Version = v
		return &c
	case *pool.Retired:
		c := *r
		c.Version = v
		return &c
	case *pool.Rotation:
		c := *r
		c.Version = v
		return &c
	case *pool.Pending:
		c := *r
		c.Version = v
		return &c
	case *pool.Binding:
		c := *r
		c.Version = v
		return &c
	case *pool.Fingerprint:
		c := *r
		c.Version = v
		return &c
	case *pool.Lock:
		c := *r
		c.Version = v
		return &c
	case *pool.Replica:
		c := *r
		c.Version = v
		return &c
	case *pool.Token:
		c := *r
		c.Version = v
		return &c
	case *pool.Health:
		c := *r
		c.Version = v
		return &c
	case *pool.Preparation:
		c := *r
		c.Version = v
		return &c
	case *pool.Relay:
		c := *r
		c.Version = v
		return &c
	case *pool.Broken:
		c := *r
		c.Version = v
		return &c
	}
	panic(fmt.Sprintf("pooltest: unknown record %T", rec))
}

// state is called with mu held.
func (m *MemStore) state(refs []pool.Ref) *pool.State {
	st := &pool.State{Revision: m.revision, Asked: make(map[pool.Ref]bool), Records: make(map[pool.Ref]pool.Record)}
	for _, ref := range refs {
		st.Asked[ref] = true
		if rec := m.records[ref]; rec != nil {
			st.Records[ref] = rec
		}
	}
	return st
}

// Read implements pool.Store.
func (m *MemStore) Read(ctx context.Context, refs ...pool.Ref) (*pool.State, error) {
	if err := ctx.Err(); err != nil {
		return nil, pool.Refuse(pool.ReasonNotApplied, "not read").Because(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state(refs), nil
}

// List implements pool.Store.
func (m *MemStore) List(ctx context.Context, kind pool.Kind, name string, limit int) ([]pool.Record, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, pool.Refuse(pool.ReasonNotApplied, "not read").Because(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	recs := m.find(func(ref pool.Ref) bool { return ref.Kind == kind && ref.Pool == name })
	if limit > 0 && len(recs) > limit {
		recs = recs[:limit]
	}
	return recs, m.revision, nil
}

// find lists records by kind, pool, name and generation; it is called with mu held.
func (m *MemStore) find(want func(pool.Ref) bool) []pool.Record {
	var recs []pool.Record
	for ref, rec := range m.records {
		if want(ref) {
			recs = append(recs, rec)
		}
	}
	slices.SortFunc(recs, func(a, b pool.Record) int { return compareRefs(a.Ref(), b.Ref()) })
	return recs
}

func compareRefs(a, b pool.Ref) int {
	for _, pair := range [][2]string{{string(a.Kind), string(b.Kind)}, {a.Pool, b.Pool}, {a.Name, b.Name}} {
		if c := strings.Compare(pair[0], pair[1]); c != 0 {
			return c
		}
	}
	return int(a.Generation - b.Generation)
}

// Rotations implements pool.Store.
func (m *MemStore) Rotations(ctx context.Context, name, key string) ([]*pool.Rotation, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, pool.Refuse(pool.ReasonNotApplied, "not read").Because(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var rots []*pool.Rotation
	for _, rec := range m.find(func(ref pool.Ref) bool {
		return ref.Kind == pool.KindRotation && ref.Pool == name && ref.Name == key
	}) {
		if rot, ok := rec.(*pool.Rotation); ok {
			rots = append(rots, rot)
		}
	}
	return rots, m.revision, nil
}

// sweepBatch is small, so that tests see what a sweep looks like from outside.
const sweepBatch = 3

// Sweep implements pool.Store.
func (m *MemStore) Sweep(ctx context.Context, kind pool.Kind, p *pool.Pool) error {
	for {
		if err := ctx.Err(); err != nil {
			return pool.Refuse(pool.ReasonNotApplied, "not swept").Because(err)
		}
		if done, err := m.sweepSome(kind, p); done || err != nil {
			return err
		}
	}
}

func (m *MemStore) sweepSome(kind pool.Kind, p *pool.Pool) (done bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !pool.Same(p).Holds(m.state([]pool.Ref{p.Ref()})) {
		return false, pool.Refuse(pool.ReasonConflict, "pool %q was changed while it was swept", p.Name)
	}
	recs := m.find(func(ref pool.Ref) bool { return ref.Kind == kind && ref.Pool == p.Name })
	if len(recs) == 0 {
		return true, nil
	}
	var refs []pool.Ref
	for _, rec := range recs[:min(len(recs), sweepBatch)] {
		refs = append(refs, rec.Ref())
	}
	m.commit(nil, nil, refs)
	return false, nil
}

// ReadAll implements pool.Store.
func (m *MemStore) ReadAll(ctx context.Context) ([]pool.Record, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, pool.Refuse(pool.ReasonNotApplied, "not read").Because(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	recs, rev := m.all()
	return recs, rev, nil
}

// all is called with mu held.
func (m *MemStore) all() ([]pool.Record, int64) {
	return m.find(func(pool.Ref) bool { return true }), m.revision
}
