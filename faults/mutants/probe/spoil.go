package main

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/first"
	"github.com/rotatord/rotatord/faults/short"
	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

// spoiler gets between the parts of replicas, from begin to heal.
type spoiler struct {
	kind     string
	on       atomic.Bool
	from, to time.Time // from begin to heal

	mu    sync.Mutex // protects the following fields
	rng   *rand.Rand
	held  []check.Hold
	until map[string]time.Time // no space at a replica
}

// known reports whether there is such a kind of spoiling.
func known(kind string) bool {
	return strings.HasPrefix(kind, "late ") || slices.Contains([]string{"", "lock-off", "lock-yes", "lost", "no-space", "stalls"}, kind)
}

func newSpoiler(kind string, seed uint64) *spoiler {
	return &spoiler{kind: kind, rng: rand.New(rand.NewPCG(seed, 77)), until: make(map[string]time.Time)}
}

func (s *spoiler) begin() { s.from = time.Now(); s.on.Store(true) }
func (s *spoiler) heal()  { s.on.Store(false); s.to = time.Now() }

// faults are what callers may have felt.
func (s *spoiler) faults() []check.Fault {
	return []check.Fault{{Kind: s.kind, Target: "all", Start: s.from, End: s.to}}
}

func (s *spoiler) locks() string {
	switch s.kind {
	case "lock-off":
		return "off"
	case "lock-yes":
		return "always-yes"
	}
	return "normal"
}

func (s *spoiler) holds() []check.Hold {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.held)
}

// chance is true for some percent while spoiling is on.
func (s *spoiler) chance(percent int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on.Load() && s.rng.IntN(100) < percent
}

func (s *spoiler) between(least, most time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return least + time.Duration(s.rng.Int64N(int64(most-least)))
}

func (s *spoiler) seams(replica string) app.Seams {
	seams := app.Seams{Phases: short.Phases, CampaignFirst: first.EveryOther()}
	switch s.kind {
	case "lock-off", "lock-yes":
		loose := &looseLocks{always: s.kind == "lock-yes"}
		seams.Store = func(inner pool.Store) pool.Store {
			loose.store = &lateStore{inner, s, "key.rotated"}
			return loose.store
		}
		seams.Locks = func(inner pool.Locks) pool.Locks { loose.Locks = inner; return loose }
		seams.CampaignFirst = first.Always
	case "lost", "no-space":
		seams.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(s.intercept(replica))}
	case "stalls":
		seams.Steps, seams.Budget = s.stall(replica), 4*time.Second
		seams.CampaignFirst = first.Always
	}
	if kinds, late := strings.CutPrefix(s.kind, "late "); late {
		seams.Store = func(inner pool.Store) pool.Store { return &lateStore{inner, s, kinds} }
		seams.Locks = func(inner pool.Locks) pool.Locks { return &lateLocks{inner, s, kinds} }
	}
	return seams
}

// lateLocks make commits late that go with their campaigns, as lateStore does others.
type lateLocks struct {
	pool.Locks
	s     *spoiler
	kinds string
}

// CampaignWith implements pool.Locks.
func (k *lateLocks) CampaignWith(ctx context.Context, l pool.Life, t *pool.Txn) (*pool.Result, *pool.Term, error) {
	k.s.delay(t, k.kinds)
	return k.Locks.CampaignWith(ctx, l, t)
}

// lateStore makes half of the transitions of some kinds late: what they rest on has been read long before, and all others
// overtake them.
type lateStore struct {
	pool.Store
	s     *spoiler
	kinds string
}

// Apply implements pool.Store.
func (d *lateStore) Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error) {
	d.s.delay(t, d.kinds)
	return d.Store.Apply(ctx, t)
}

func (s *spoiler) delay(t *pool.Txn, kinds string) {
	if t.Event != nil && strings.Contains(kinds, kindOf(t.Event.Type)) && s.chance(50) {
		time.Sleep(s.between(20*time.Millisecond, 400*time.Millisecond))
	}
}

// kindOf is a type without what all have.
func kindOf(t pool.EventType) string {
	return strings.TrimSuffix(strings.TrimPrefix(string(t), "dev.rotatord."), ".v1")
}

// withLock are the steps between taking the lock and giving it back.
var withLock = []pool.Step{pool.StepLocked, pool.StepRead, pool.StepSend}

// stall makes some holders stand still with the lock in their hands, for longer than the others' patience.
func (s *spoiler) stall(replica string) func(context.Context, pool.Step, pool.Life) error {
	return func(_ context.Context, step pool.Step, l pool.Life) error {
		if !slices.Contains(withLock, step) || !s.chance(10) {
			return nil
		}
		h := check.Hold{Replica: replica, Pool: l.Pool, Key: l.Key, Generation: l.Generation, Start: time.Now()}
		time.Sleep(s.between(300*time.Millisecond, 1200*time.Millisecond))
		h.End = time.Now()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held = append(s.held, h)
		return nil
	}
}

// noSpaceFor is how long there is no space.
const noSpaceFor = 2500 * time.Millisecond

// intercept spoils the answers of etcd to transactions: they are applied and their answers lost; or one is applied and
// answered "no space", as the write that fills the quota is, and those after it are refused for a while.
func (s *spoiler) intercept(replica string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		var event bool
		switch r := req.(type) {
		case *etcdwire.Request:
			m, err := r.Proto()
			event = err == nil && putsEvent(m)
		case *pb.TxnRequest:
			if len(r.Compare) == 0 { // a read
				return invoker(ctx, method, req, reply, cc, opts...)
			}
		default:
			return invoker(ctx, method, req, reply, cc, opts...)
		}
		if s.kind == "no-space" && s.full(replica) {
			return errNoSpace
		}
		err := invoker(ctx, method, req, reply, cc, opts...)
		switch {
		case err != nil:
		case s.kind == "lost" && s.chance(25):
			return status.Error(codes.Unavailable, "the connection broke")
		case s.kind == "no-space" && event && s.chance(10):
			s.fill(replica)
			return errNoSpace
		}
		return err
	}
}

var errNoSpace = status.Error(codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded")

func putsEvent(m *pb.TxnRequest) bool {
	return slices.ContainsFunc(m.Success, func(op *pb.RequestOp) bool {
		if nested := op.GetRequestTxn(); nested != nil {
			return putsEvent(nested)
		}
		return strings.HasPrefix(string(op.GetRequestPut().GetKey()), prefix+"events/")
	})
}

func (s *spoiler) full(replica string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[replica]) && s.on.Load()
}

func (s *spoiler) fill(replica string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until[replica] = time.Now().Add(noSpaceFor)
}

// looseLocks do not lock: switched off, or granted to everybody at once.
type looseLocks struct {
	pool.Locks
	store  pool.Store
	always bool
}

// Campaign implements pool.Locks without its promise.
func (k *looseLocks) Campaign(ctx context.Context, l pool.Life, _, _ int64, _ pool.Purpose) (*pool.Term, *pool.State, error) {
	if !k.always {
		s, err := k.store.Read(ctx, pool.LockRef(l.Pool, l.Key), pool.ActiveRef(l.Pool, l.Key), pool.RotationRef(l), pool.PendingRef(l.Pool, l.Key), pool.PoolRef(l.Pool))
		return &pool.Term{Life: l}, s, err
	}
	for over := int64(0); ; {
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

// Resign implements pool.Locks.
func (k *looseLocks) Resign(*pool.Term) {}
