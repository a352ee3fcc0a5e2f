package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

// Bounds on one transaction.
const (
	maxOps   = 128                 // etcd's default --max-txn-ops, for compares and for each branch
	maxBytes = 3 * 1024 * 1024 / 2 // etcd's default --max-request-bytes
)

// Options of a Store.
type Options struct {
	// Layout says where the state is; the zero value means DefaultPrefix.
	Layout Layout
	// Replica is named as the source of events.
	Replica string
	// AttemptTimeout bounds each call to etcd. Default: 600 ms.
	AttemptTimeout time.Duration
	// Mirror says which other replicas are on record, and so which schema can be written. Default: there are no others.
	Mirror *pool.Mirror
	// Committer sends the writes. Default: one of this store's own.
	Committer *Committer
}

// Store implements pool.Store on etcd. It is safe for concurrent use.
type Store struct {
	client    *clientv3.Client
	committer *Committer
	layout    Layout
	source    string
	attempt   time.Duration
	schemas   *schemas
	newest    atomic.Int64 // see Revision

	eventKeysPage, eventsKept int // see the constants of these names
}

var _ pool.Store = (*Store)(nil)

// New returns a store on a client made by Connect. With any other client it is as safe, but says "outcome unknown" of
// writes that could not even be sent.
func New(client *clientv3.Client, opts Options) *Store {
	s := &Store{client: client, layout: opts.Layout, source: "rotatord/" + opts.Replica, attempt: opts.AttemptTimeout, committer: opts.Committer,
		schemas: newSchemas(opts.Replica, opts.Mirror, pool.Schema), eventKeysPage: eventKeysPage, eventsKept: eventsKept}
	if s.layout.Prefix == "" {
		s.layout.Prefix = DefaultPrefix
	}
	if s.attempt <= 0 {
		s.attempt = 600 * time.Millisecond
	}
	if s.committer == nil {
		s.committer = NewCommitter(client, s.attempt)
	}
	return s
}

// Layout says where this store keeps its records.
func (s *Store) Layout() Layout { return s.layout }

// Revision is the newest revision that etcd is known to be at; a mirror that stays behind it is being held up.
func (s *Store) Revision() int64 { return s.newest.Load() }

// saw remembers the revision of an answer.
func (s *Store) saw(revision int64) {
	for seen := s.newest.Load(); revision > seen; seen = s.newest.Load() {
		if s.newest.CompareAndSwap(seen, revision) {
			return
		}
	}
}

// Request is a pool.Txn in etcd's terms, for this store.
type Request struct {
	Txn   *etcdwire.Txn
	store *Store
	refs  []pool.Ref // the guarded ones, each once; they are read if a guard does not hold
	event bool       // then the event is read last
}

// Apply implements pool.Store.
//
// A crash here leaves all of t or nothing of it. The event's absence is compared too: whatever the guards say, no second
// copy of t can be applied while its event is kept.
func (s *Store) Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error) {
	req, err := s.Request(t)
	if err != nil {
		return nil, err
	}
	resp, err := s.commit(ctx, req.Txn)
	if err != nil {
		return nil, err
	}
	return req.Result(resp), nil
}

// Result is what etcd's answer says.
func (r *Request) Result(resp *etcdwire.Response) *pool.Result {
	r.store.saw(resp.Revision)
	if resp.Succeeded {
		return &pool.Result{Applied: true, Revision: resp.Revision}
	}
	if r.event {
		if kvs := resp.Reads[len(r.refs)].Kvs; len(kvs) == 1 {
			return &pool.Result{Applied: true, Revision: kvs[0].ModRevision}
		}
	}
	return &pool.Result{State: r.store.StateOf(r.refs, resp)}
}

// commit sends one transaction once.
func (s *Store) commit(ctx context.Context, t *etcdwire.Txn) (*etcdwire.Response, error) {
	resp, err := s.committer.Commit(ctx, t)
	if err != nil {
		return nil, writeError(err)
	}
	s.saw(resp.Revision)
	return resp, nil
}

// attemptContext bounds one call to etcd. A member without a leader answers at once instead of holding the call until
// its deadline, so that another member can be asked, or the caller told "not applied".
func (s *Store) attemptContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(clientv3.WithRequireLeader(ctx), s.attempt)
}

const (
	usualKey   = 40  // bytes of a key after the prefix; longer ones cost an allocation
	usualValue = 512 // bytes of a value
)

// Request puts t into etcd's terms. Its errors are for what can never work.
func (s *Store) Request(t *pool.Txn) (*Request, error) {
	req := &Request{store: s, refs: guarded(t.If), event: t.Event != nil}
	ops := len(t.If) + len(req.refs) + len(t.Delete) + len(t.Put) + 3
	req.Txn = etcdwire.New(ops, ops*(len(s.layout.Prefix)+usualKey)+(len(t.Put)+1)*usualValue)
	s.guard(req.Txn, t.If)
	w := writer{layout: s.layout, txn: req.Txn, schema: s.schemas.now()}
	for _, ref := range t.Delete {
		w.delete(ref)
	}
	for _, rec := range t.Put {
		w.put(rec)
	}
	for _, ref := range req.refs {
		w.elseGet(ref)
	}
	if t.Event != nil {
		w.event(t.Event, s.source)
	}
	if err := errors.Join(w.err, req.Txn.Check(maxOps, maxBytes)); err != nil {
		return nil, err
	}
	return req, nil
}

// writer adds to a transaction what belongs to records.
type writer struct {
	layout Layout
	txn    *etcdwire.Txn
	schema int
	key    [256]byte
	value  [1024]byte
	err    error
}

func (w *writer) keyOf(ref pool.Ref) []byte { return w.layout.appendKey(w.key[:0], ref) }

func (w *writer) delete(ref pool.Ref) { w.txn.Delete(w.keyOf(ref)) }

func (w *writer) elseGet(ref pool.Ref) { w.txn.ElseGet(w.keyOf(ref)) }

func (w *writer) put(rec pool.Record) {
	value, err := appendRecord(w.value[:0], rec, w.schema)
	w.err = errors.Join(w.err, err)
	w.txn.Put(w.keyOf(rec.Ref()), value, leaseOf(rec))
}

// event has it written if it is not there yet, and read if it is.
func (w *writer) event(e *pool.Event, source string) {
	value, err := appendMessage(w.value[:0], eventMessage(e, source, int32(w.schema)))
	w.err = errors.Join(w.err, err)
	key := w.keyOf(pool.EventRef(e.Pool, e.ID))
	w.txn.If(etcdwire.Compare{Key: key, Created: true})
	w.txn.Put(key, value, 0)
	w.txn.ElseGet(key)
}

func guarded(guards []pool.Guard) []pool.Ref {
	refs := make([]pool.Ref, 0, len(guards))
	for _, g := range guards {
		if !slices.Contains(refs, g.Ref) { // they are few
			refs = append(refs, g.Ref)
		}
	}
	return refs
}

// guard adds the guards as compares.
func (s *Store) guard(txn *etcdwire.Txn, guards []pool.Guard) {
	var room [256]byte
	for _, g := range guards {
		txn.If(compareOf(s.layout.appendKey(room[:0], g.Ref), g))
	}
}

// Compare is a guard as etcd's compare.
func (s *Store) Compare(g pool.Guard) etcdwire.Compare {
	return compareOf([]byte(s.layout.Key(g.Ref)), g)
}

func compareOf(key []byte, g pool.Guard) etcdwire.Compare {
	return etcdwire.Compare{Key: key, Created: g.Rule == pool.Created, Revision: g.Revision}
}

// Keys are where the records are.
func (s *Store) Keys(refs []pool.Ref) [][]byte {
	keys := make([][]byte, len(refs))
	for i, ref := range refs {
		keys[i] = []byte(s.layout.Key(ref))
	}
	return keys
}

// StateOf reads the answers to reads of refs, which must be the first ones.
func (s *Store) StateOf(refs []pool.Ref, resp *etcdwire.Response) *pool.State {
	state := newState(resp.Revision, len(refs))
	s.addTo(state, refs, resp.Reads)
	return state
}

func newState(revision int64, size int) *pool.State {
	return &pool.State{Revision: revision, Asked: make(map[pool.Ref]bool, size), Records: make(map[pool.Ref]pool.Record, size)}
}

func (s *Store) addTo(state *pool.State, refs []pool.Ref, reads []*pb.RangeResponse) {
	for i, ref := range refs {
		state.Asked[ref] = true
		for _, kv := range reads[i].Kvs {
			state.Records[ref] = s.read(decode(ref, kv))
		}
	}
}

// Encode is the value a record is stored as now.
func (s *Store) Encode(rec pool.Record) (string, error) { return EncodeRecord(rec, s.schemas.now()) }

// read takes note of a record that was read: its schema is known to all.
func (s *Store) read(rec pool.Record) pool.Record {
	s.schemas.rise(rec.At().Schema)
	return rec
}

func leaseOf(rec pool.Record) int64 {
	switch r := rec.(type) {
	case *pool.Lock:
		return r.Lease
	case *pool.Replica:
		return r.Lease
	}
	return 0
}

// PutReplica announces this replica for as long as the lease lives. Its errors are those of Apply; a lease that is gone
// is rpctypes.ErrLeaseNotFound in the chain. Putting again is safe.
func (s *Store) PutReplica(ctx context.Context, r *pool.Replica, lease clientv3.LeaseID) error {
	value, err := s.Encode(r)
	if err != nil {
		return err
	}
	txn := new(etcdwire.Txn)
	txn.Put([]byte(s.layout.Key(r.Ref())), []byte(value), int64(lease))
	_, err = s.commit(ctx, txn)
	return err
}

// Sweep implements pool.Store.
//
// A crash between batches leaves records of a pool that is still marked as being deleted: the next sweep takes them.
func (s *Store) Sweep(ctx context.Context, kind pool.Kind, p *pool.Pool) error {
	if kind == pool.KindPool || kind == pool.KindReplica {
		return fmt.Errorf("sweeping %s: records of this kind do not belong to a pool", kind)
	}
	pause := newPauser(20*time.Millisecond, 250*time.Millisecond)
	for {
		keys, err := s.keysOf(ctx, prefixSpan(s.layout.PoolPrefix(kind, p.Name)))
		if err != nil || len(keys) == 0 {
			return err
		}
		err = s.sweepBatch(ctx, keys, p)
		switch {
		case err == nil:
			pause.reset()
		case !again(err) || !pause.wait(ctx):
			return err
		}
	}
}

// again reports whether a harmless write may simply be sent again.
func again(err error) bool {
	return errors.Is(err, pool.ErrOutcomeUnknown) || errors.Is(err, pool.ErrNotApplied)
}

func (s *Store) sweepBatch(ctx context.Context, keys []string, p *pool.Pool) error {
	txn := new(etcdwire.Txn)
	txn.If(s.Compare(pool.Same(p)))
	for _, key := range keys {
		txn.Delete([]byte(key))
	}
	resp, err := s.commit(ctx, txn)
	if err == nil && !resp.Succeeded {
		err = pool.Refuse(pool.ReasonConflict, "pool %s was changed by somebody else while its records were being deleted; try again", p.Name)
	}
	return err
}
