package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

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
func (s *Store) saw(h *pb.ResponseHeader) {
	for seen := s.newest.Load(); h.GetRevision() > seen; seen = s.newest.Load() {
		if s.newest.CompareAndSwap(seen, h.GetRevision()) {
			return
		}
	}
}

// request is a pool.Txn in etcd's terms.
type request struct {
	refs  []pool.Ref // the guarded ones, each once; their Gets lead the else branch
	cmps  []*pb.Compare
	ops   []*pb.RequestOp
	gets  []*pb.RequestOp
	event bool // the last of gets asks for the event
}

// Apply implements pool.Store.
//
// A crash here leaves all of t or nothing of it. The event's absence is compared too: whatever the guards say, no second
// copy of t can be applied while its event is kept.
func (s *Store) Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error) {
	req, err := s.request(t)
	if err != nil {
		return nil, err
	}
	resp, err := s.commit(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.Succeeded {
		return &pool.Result{Applied: true, Revision: resp.Header.Revision}, nil
	}
	if req.event {
		if kvs := resp.Responses[len(req.refs)].GetResponseRange().GetKvs(); len(kvs) == 1 {
			return &pool.Result{Applied: true, Revision: kvs[0].ModRevision}, nil
		}
	}
	return &pool.Result{State: s.StateOf(req.refs, resp)}, nil
}

// commit sends one transaction once.
func (s *Store) commit(ctx context.Context, req *request) (*pb.TxnResponse, error) {
	resp, err := s.committer.Commit(ctx, &pb.TxnRequest{Compare: req.cmps, Success: req.ops, Failure: req.gets})
	if err != nil {
		return nil, writeError(err)
	}
	s.saw(resp.Header)
	return resp, nil
}

// attemptContext bounds one call to etcd. A member without a leader answers at once instead of holding the call until
// its deadline, so that another member can be asked, or the caller told "not applied".
func (s *Store) attemptContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(clientv3.WithRequireLeader(ctx), s.attempt)
}

func (s *Store) request(t *pool.Txn) (*request, error) {
	req := &request{refs: guarded(t.If), cmps: s.Cmps(t.If), event: t.Event != nil}
	req.gets = s.Gets(req.refs)
	n := len(t.Delete) + len(t.Put) + 1
	w, keys, schema := writes{ops: make([]*pb.RequestOp, 0, n)}, s.layout.room(n), s.schemas.now()
	for _, ref := range t.Delete {
		w.delete(keys.of(ref))
	}
	for _, rec := range t.Put {
		value, err := EncodeRecord(rec, schema)
		if err != nil {
			return nil, err
		}
		w.put(keys.of(rec.Ref()), value, leaseOf(rec))
	}
	if t.Event != nil {
		key := keys.of(pool.EventRef(t.Event.Pool, t.Event.ID))
		value, err := EncodeEvent(t.Event, s.source, schema)
		if err != nil {
			return nil, err
		}
		w.put(key, value, 0)
		req.cmps = append(req.cmps, new(cmpOp).set(key, pool.Created, 0))
		req.gets = append(req.gets, new(getOp).set(key))
	}
	req.ops = w.ops
	return req, errors.Join(w.err, checkSize(req, w.bytes))
}

func checkSize(req *request, bytes int) error {
	if n := max(len(req.cmps), len(req.ops), len(req.gets)); n > maxOps {
		return fmt.Errorf("a transaction with %d operations, at most %d are possible: it must be split", n, maxOps)
	}
	if bytes > maxBytes {
		return fmt.Errorf("a transaction with %d bytes, at most %d are possible: it must be split", bytes, maxBytes)
	}
	return nil
}

// writes collects what a transaction changes. etcd refuses a key that is changed twice; it is refused here first, with
// its name.
type writes struct {
	ops   []*pb.RequestOp
	bytes int
	err   error
}

func (w *writes) delete(key []byte) { w.add(key, 0, new(delOp).set(key)) }

func (w *writes) put(key []byte, value string, lease int64) {
	w.add(key, len(value), new(putOp).set(key, value, lease))
}

func (w *writes) add(key []byte, size int, op *pb.RequestOp) {
	for _, other := range w.ops {
		if changed, _ := keyOf(other); bytes.Equal(changed, key) && w.err == nil {
			w.err = fmt.Errorf("a transaction that changes %s twice", key)
		}
	}
	w.bytes += len(key) + size
	w.ops = append(w.ops, op)
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

// Cmps are the guards as etcd's compares.
func (s *Store) Cmps(guards []pool.Guard) []*pb.Compare {
	cmps := make([]*pb.Compare, len(guards), len(guards)+1)
	room, keys := make([]cmpOp, len(guards)), s.layout.room(len(guards))
	for i, g := range guards {
		cmps[i] = room[i].set(keys.of(g.Ref), g.Rule, g.Revision)
	}
	return cmps
}

// Gets asks for refs, in their order.
func (s *Store) Gets(refs []pool.Ref) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, len(refs), len(refs)+1)
	room, keys := make([]getOp, len(refs)), s.layout.room(len(refs))
	for i, ref := range refs {
		ops[i] = room[i].set(keys.of(ref))
	}
	return ops
}

// StateOf reads the answers to Gets(refs), which must be the first of the branch that was taken.
func (s *Store) StateOf(refs []pool.Ref, resp *pb.TxnResponse) *pool.State {
	state := newState(resp.Header.Revision, len(refs))
	s.addTo(state, refs, resp)
	return state
}

func newState(revision int64, size int) *pool.State {
	return &pool.State{Revision: revision, Asked: make(map[pool.Ref]bool, size), Records: make(map[pool.Ref]pool.Record, size)}
}

func (s *Store) addTo(state *pool.State, refs []pool.Ref, resp *pb.TxnResponse) {
	for i, ref := range refs {
		state.Asked[ref] = true
		for _, kv := range resp.Responses[i].GetResponseRange().GetKvs() {
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
	_, err = s.commit(ctx, &request{ops: []*pb.RequestOp{put(s.layout.Key(r.Ref()), value, int64(lease))}})
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
	req := &request{cmps: s.Cmps([]pool.Guard{pool.Same(p)})}
	for _, key := range keys {
		req.ops = append(req.ops, del(key))
	}
	resp, err := s.commit(ctx, req)
	if err == nil && !resp.Succeeded {
		err = pool.Refuse(pool.ReasonConflict, "pool %s was changed by somebody else while its records were being deleted; try again", p.Name)
	}
	return err
}
