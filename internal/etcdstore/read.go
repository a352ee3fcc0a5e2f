package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/pool"
)

const (
	pageSize  = 1000
	sweepSize = 100
	// pagePatience is how many attempt timeouts a page may take: a thousand records are more work than one.
	pagePatience = 5
)

// Read implements pool.Store.
func (s *Store) Read(ctx context.Context, refs ...pool.Ref) (state *pool.State, err error) {
	err = s.atOneRevision(ctx, func(ctx context.Context) error {
		state, err = s.readOnce(ctx, refs)
		return err
	})
	return state, err
}

// readOnce asks in as many transactions as it takes; the later ones ask for the revision of the first.
func (s *Store) readOnce(ctx context.Context, refs []pool.Ref) (*pool.State, error) {
	var state *pool.State
	for chunk := range slices.Chunk(refs, maxOps) {
		ops := make([]clientv3.Op, len(chunk))
		for i, ref := range chunk {
			ops[i] = clientv3.OpGet(s.layout.Key(ref), at(state)...)
		}
		var resp *clientv3.TxnResponse
		err := s.retry(ctx, s.attempt, func(ctx context.Context) (err error) {
			resp, err = s.client.Txn(ctx).Then(ops...).Commit()
			return err
		})
		if err != nil {
			return nil, err
		}
		s.saw(resp.Header.Revision)
		if state == nil {
			state = newState(resp.Header.Revision, len(refs))
		}
		s.addTo(state, chunk, reads(resp))
	}
	if state == nil {
		revision, err := s.Probe(ctx)
		return newState(revision, 0), err
	}
	return state, nil
}

func reads(resp *clientv3.TxnResponse) []*pb.RangeResponse {
	reads := make([]*pb.RangeResponse, len(resp.Responses))
	for i, r := range resp.Responses {
		reads[i] = r.GetResponseRange()
	}
	return reads
}

func at(state *pool.State) []clientv3.OpOption {
	if state == nil {
		return nil
	}
	return []clientv3.OpOption{clientv3.WithRev(state.Revision)}
}

// List implements pool.Store. Rotations come by key and then by generation; without a pool it lists all pools' records.
func (s *Store) List(ctx context.Context, kind pool.Kind, poolName string, limit int) ([]pool.Record, int64, error) {
	recs, revision, err := s.scan(ctx, []span{prefixSpan(s.layout.PoolPrefix(kind, poolName))}, limit)
	if kind == pool.KindRotation {
		sortRotations(recs)
	}
	return recs, revision, err
}

// sortRotations orders by what the generations are and not by how they are spelled.
func sortRotations(recs []pool.Record) {
	slices.SortStableFunc(recs, func(a, b pool.Record) int {
		x, y := a.Ref(), b.Ref()
		return cmp.Or(cmp.Compare(x.Pool, y.Pool), cmp.Compare(x.Name, y.Name), cmp.Compare(x.Generation, y.Generation))
	})
}

// Rotations implements pool.Store. One that cannot be read is a refusal: leaving it out would be a wrong answer.
func (s *Store) Rotations(ctx context.Context, poolName, key string) ([]*pool.Rotation, int64, error) {
	recs, revision, err := s.scan(ctx, []span{prefixSpan(s.layout.RotationsPrefix(poolName, key))}, 0)
	if err != nil {
		return nil, 0, err
	}
	sortRotations(recs)
	rotations := make([]*pool.Rotation, 0, len(recs))
	for _, rec := range recs {
		switch r := rec.(type) {
		case *pool.Rotation:
			rotations = append(rotations, r)
		case *pool.Broken:
			return nil, 0, pool.Refuse(pool.ReasonRecordUnreadable, "the record %s cannot be read; `rotatorctl doctor` says more", s.layout.Key(r.Of)).Because(r.Err)
		}
	}
	return rotations, revision, nil
}

// ReadAll implements pool.Store. What is under the prefix and is none of our records comes as a *pool.Broken of
// KindUnknown; the election's candidates are left out.
func (s *Store) ReadAll(ctx context.Context) ([]pool.Record, int64, error) {
	return s.scan(ctx, s.layout.allBut(pool.KindEvent, kindLeader), 0)
}

// scan reads spans at one revision, that of the first page.
func (s *Store) scan(ctx context.Context, spans []span, limit int) (recs []pool.Record, revision int64, err error) {
	err = s.atOneRevision(ctx, func(ctx context.Context) error {
		recs, revision = nil, 0
		for _, sp := range spans {
			if err := s.scanSpan(ctx, sp, limit, &recs, &revision); err != nil {
				return err
			}
		}
		return nil
	})
	return recs, revision, err
}

func (s *Store) scanSpan(ctx context.Context, sp span, limit int, recs *[]pool.Record, revision *int64) error {
	for more := true; more && (limit == 0 || len(*recs) < limit); {
		size := pageSize
		if limit > 0 {
			size = min(size, limit-len(*recs))
		}
		resp, err := s.page(ctx, sp, clientv3.WithLimit(int64(size)), clientv3.WithRev(*revision))
		if err != nil {
			return err
		}
		if *revision == 0 {
			*revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			*recs = append(*recs, s.read(s.layout.Decode(kv)))
			sp.from = string(kv.Key) + "\x00"
		}
		more = resp.More
	}
	return nil
}

func (s *Store) page(ctx context.Context, sp span, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	opts = append(opts, clientv3.WithRange(sp.to))
	err = s.retry(ctx, pagePatience*s.attempt, func(ctx context.Context) (err error) {
		resp, err = s.client.Get(ctx, sp.from, opts...)
		return err
	})
	return resp, err
}

func (s *Store) keysOf(ctx context.Context, sp span) ([]string, error) {
	resp, err := s.page(ctx, sp, clientv3.WithKeysOnly(), clientv3.WithLimit(sweepSize))
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		keys[i] = string(kv.Key)
	}
	return keys, nil
}

// Probe is one linearizable read of next to nothing: it says that a quorum answers, and at which revision it stands.
// It is not repeated. Its errors are those of Read.
func (s *Store) Probe(ctx context.Context) (int64, error) {
	ctx, cancel := s.attemptContext(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, s.layout.Prefix)
	if err != nil {
		return 0, readError(err)
	}
	s.newest.Store(resp.Header.Revision) // also if the store went back
	return resp.Header.Revision, nil
}

// Alarms names the alarms that are raised in the cluster, such as "NOSPACE member 8e9e05c52164694d". It is not repeated.
func (s *Store) Alarms(ctx context.Context) ([]string, error) {
	ctx, cancel := s.attemptContext(ctx)
	defer cancel()
	resp, err := s.client.AlarmList(ctx)
	if err != nil {
		return nil, readError(err)
	}
	alarms := make([]string, len(resp.Alarms))
	for i, a := range resp.Alarms {
		alarms[i] = fmt.Sprintf("%s member %x", a.Alarm, a.MemberID)
	}
	return alarms, nil
}

// atOneRevision starts over when the revision of the first page is compacted before the last page is read.
func (s *Store) atOneRevision(ctx context.Context, read func(context.Context) error) error {
	for {
		err := read(ctx)
		if !errors.Is(err, rpctypes.ErrCompacted) || ctx.Err() != nil {
			return err
		}
	}
}

// retry repeats a read until it is answered, cannot be, or ctx ends. Each attempt has its own deadline, which doubles up
// to most. It is short at first: a member that hangs costs that, and the next attempt goes to another one.
func (s *Store) retry(ctx context.Context, most time.Duration, read func(context.Context) error) error {
	pause := newPauser(10*time.Millisecond, 250*time.Millisecond)
	for bound := s.attempt / 3; ; bound = min(2*bound, most) {
		attempt, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), bound)
		err := read(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if final := hopeless(err); final != nil || errors.Is(err, rpctypes.ErrCompacted) {
			return readError(err)
		}
		if !pause.wait(ctx) {
			return readError(err)
		}
	}
}

func readError(err error) error {
	if final := hopeless(err); final != nil {
		return final
	}
	return notRead(err)
}

// pauser waits, each time twice as long, with jitter so that replicas do not come back in step.
type pauser struct{ first, most, next time.Duration }

func newPauser(first, most time.Duration) *pauser { return &pauser{first, most, first} }

func (b *pauser) reset() { b.next = b.first }

// wait reports false if ctx ended first.
func (b *pauser) wait(ctx context.Context) bool {
	d := b.next/2 + rand.N(b.next)
	b.next = min(2*b.next, b.most)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
