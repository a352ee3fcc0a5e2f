package app_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// A replica dies at each step of a rotation. Another one gives the answer within a second, and the dead one's request
// has its own outcome there.
func TestHolderDiesAtEachStep(t *testing.T) {
	for _, step := range []pool.Step{stepCampaign, stepLocked, stepRead, stepSend, stepCommit, stepAnswer} {
		t.Run(string(step), func(t *testing.T) { holderDies(t, newGate(step, true)) })
		if step != stepLocked && step != stepCampaign {
			t.Run(string(step)+" with the campaign", func(t *testing.T) { holderDies(t, newGate(step, false)) })
		}
	}
}

func holderDies(t *testing.T, steps *gate) {
	c := newCluster(t, 2, steps.seams)
	t.Cleanup(steps.open)
	c.pool("p", 3, 3)
	req := c.request("p", "a0")
	req.RequestId = "of-the-dead"
	go func() { _, _ = c.replicas[0].rot.RotateKey(context.Background(), req) }()
	steps.await(t)

	other := c.request("p", "a0")
	other.RequestId = "of-the-living"
	began := time.Now()
	resp, err := c.rotateUntilAnswered(&v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Generation: req.Generation, Trigger: v1.Trigger_TRIGGER_POOL, RequestId: "of-the-living"}, c.replicas[1])
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the other replica answered after %v", took)
	}
	again, err := c.rotateUntilAnswered(req, c.replicas[1])
	if err != nil {
		t.Fatal(err)
	}
	c.want("rotation of the repeated request", again.Rotation.Id, resp.Rotation.Id)
	committed := steps.step == stepCommit || steps.step == stepAnswer
	c.want("the dead replica's request is on record", resp.Rotation.RequestId == "of-the-dead", committed)
	c.want("its outcome is ROTATED", again.Outcome == v1.Outcome_OUTCOME_ROTATED, committed)
	c.want("rotations", len(c.settled().Rotations()), 1)
	c.want("stock", c.count("backup", "p"), 2)
}

// stalled is a replica whose first rotation stops at a step, with everything it needs to go on later.
func stalled(t *testing.T, steps *gate) (*cluster, <-chan error) {
	t.Helper()
	c := newCluster(t, 2, steps.seams)
	t.Cleanup(steps.open)
	c.pool("p", 3, 3)
	req := c.request("p", "a0")
	req.RequestId = "stalled"
	done := make(chan error, 1)
	go func() {
		_, err := c.replicas[0].rot.RotateKey(context.Background(), req)
		done <- err
	}()
	steps.await(t)
	return c, done
}

// wakes lets the stalled replica go on and waits until it has given up what it was doing.
func (c *cluster) wakes(steps *gate, done <-chan error) {
	c.t.Helper()
	steps.open()
	<-done
	ctx, cancel := context.WithTimeout(c.ctx(), 10*time.Second)
	defer cancel()
	if err := c.replicas[0].Close(ctx); err != nil { // waits for its rotations
		c.t.Error(err)
	}
}

// A holder stands still with all that it has read, or with a commit that is made up. What others do meanwhile is not undone.
func TestPausedHolderIsFencedOut(t *testing.T) {
	for way, apart := range ways {
		for _, step := range []pool.Step{stepRead, stepSend} {
			t.Run(string(step)+", campaign "+way, func(t *testing.T) { pausedHolder(t, step, apart) })
		}
	}
}

func pausedHolder(t *testing.T, step pool.Step, apart bool) {
	t.Run("after its lease", func(t *testing.T) {
		steps := newGate(step, apart)
		c, done := stalled(t, steps)
		c.revokeSession("r0")
		c.rotate(c.replicas[1], c.request2("p", "a0"))
		c.wakes(steps, done)
		c.want("rotations", len(c.settled().Rotations()), 1)
		c.want("stock", c.count("backup", "p"), 2)
	})
	t.Run("after its lock was taken over", func(t *testing.T) {
		steps := newGate(step, apart)
		c, done := stalled(t, steps)
		resp, err := c.rotateUntilAnswered(c.request2("p", "a0"), c.replicas[1])
		if err != nil {
			t.Fatal(err)
		}
		c.want("rotated by", resp.Rotation.Holder, "r1")
		c.wakes(steps, done)
		c.want("rotations", len(c.settled().Rotations()), 1)
	})
	t.Run("after a pause of the pool", func(t *testing.T) {
		steps := newGate(step, apart)
		c, done := stalled(t, steps)
		if _, err := c.replicas[1].adm.PausePool(c.ctx(), &v1.PausePoolRequest{Name: "p"}); err != nil {
			t.Fatal(err)
		}
		c.wakes(steps, done)
		c.want("rotations", len(c.settled().Rotations()), 0)
	})
	t.Run("after disabling the key", func(t *testing.T) {
		steps := newGate(step, apart)
		c, done := stalled(t, steps)
		if _, err := c.replicas[1].adm.DisableKey(c.ctx(), &v1.DisableKeyRequest{Pool: "p", KeyId: "a0"}); err != nil {
			t.Fatal(err)
		}
		c.wakes(steps, done)
		c.want("rotations", len(c.settled().Rotations()), 0)
	})
	t.Run("after removing the key", func(t *testing.T) {
		steps := newGate(step, apart)
		c, done := stalled(t, steps)
		if _, err := c.replicas[1].adm.RemoveKey(c.ctx(), &v1.RemoveKeyRequest{Pool: "p", KeyId: "a0"}); err != nil {
			t.Fatal(err)
		}
		c.wakes(steps, done)
		c.want("rotations", len(c.settled().Rotations()), 0)
		c.want("active keys", c.count("active", "p"), 2)
		c.want("stock", c.count("backup", "p"), 3)
	})
	t.Run("after the pool was deleted", func(t *testing.T) {
		steps := newGate(step, apart)
		c, done := stalled(t, steps)
		if _, err := c.replicas[1].adm.DeletePool(c.ctx(), &v1.DeletePoolRequest{Name: "p", Force: true}); err != nil {
			t.Fatal(err)
		}
		c.wakes(steps, done)
		for _, kind := range []string{"pools", "active", "backup", "retired", "rotations", "slots", "fingerprints", "locks", "bindings", "pending"} {
			c.want(kind+" left", c.count(kind, "p"), 0)
		}
	})
	t.Run("after its backups were removed", func(t *testing.T) {
		steps := newGate(step, apart)
		c, done := stalled(t, steps)
		for i := range 3 {
			if _, err := c.replicas[1].adm.RemoveKey(c.ctx(), &v1.RemoveKeyRequest{Pool: "p", KeyId: fmt.Sprintf("b%d", i)}); err != nil {
				t.Fatal(err)
			}
		}
		c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", 3, 1)
		c.wakes(steps, done)
		rotations := c.settled().Rotations()
		c.want("rotations", len(rotations), 1)
		c.want("the new key", rotations[0].New, "b3")
		c.want("stock", c.count("backup", "p"), 0)
	})
}

// request2 is request through the second replica, for when the first is stopped.
func (c *cluster) request2(pool, id string) *v1.RotateKeyRequest {
	c.t.Helper()
	return &v1.RotateKeyRequest{Pool: pool, KeyId: id, Generation: c.key(c.replicas[1], pool, id).Generation, Trigger: v1.Trigger_TRIGGER_POOL, RequestId: "second"}
}

// revokeSession ends a replica's session behind its back, as etcd does when it has not heard of it for a TTL.
func (c *cluster) revokeSession(name string) {
	c.t.Helper()
	resp, err := c.replicas[len(c.replicas)-1].adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range resp.Replicas {
		if r.Name == name {
			lease, err := strconv.ParseInt(r.Lease, 16, 64)
			if err != nil {
				c.t.Fatal(err)
			}
			if _, err := c.client.Revoke(c.ctx(), clientv3.LeaseID(lease)); err != nil {
				c.t.Fatal(err)
			}
			return
		}
	}
	c.t.Fatalf("no replica %q in %v", name, resp.Replicas)
}

// Without a session a replica refuses writes at once and serves reads; then it gets a new one by itself.
func TestSessionLost(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.pool("p", 3, 3)
	r := c.replicas[0]
	before := c.lease("r0")
	c.revokeSession("r0")
	c.eventually("a new session", func() bool { return c.lease("r0") != before && c.lease("r0") != "" && r.Writable() == nil })
	c.want("outcome", c.rotate(r, c.request("p", "a0")).Outcome, v1.Outcome_OUTCOME_ROTATED)
}

func (c *cluster) lease(name string) string {
	resp, err := c.replicas[0].adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range resp.Replicas {
		if r.Name == name {
			return r.Lease
		}
	}
	return ""
}

// looseLocks are locks that do not lock: safety must not need them.
type looseLocks struct {
	pool.Locks
	store    func() *etcdstore.Store
	campaign func(ctx context.Context, inner pool.Locks, store *etcdstore.Store, l pool.Life) (*pool.Term, *pool.State, error)
}

func (k *looseLocks) Campaign(ctx context.Context, l pool.Life, _, _ int64, _ pool.Purpose) (*pool.Term, *pool.State, error) {
	return k.campaign(ctx, k.Locks, k.store(), l)
}

func (k *looseLocks) Resign(*pool.Term) {}

func always() bool { return true }

// switchedOff wins every campaign without writing anything, and fences nothing.
func switchedOff(ctx context.Context, _ pool.Locks, store *etcdstore.Store, l pool.Life) (*pool.Term, *pool.State, error) {
	s, err := store.Read(ctx, pool.LockRef(l.Pool, l.Key), pool.ActiveRef(l.Pool, l.Key), pool.RotationRef(l), pool.PendingRef(l.Pool, l.Key), pool.PoolRef(l.Pool))
	if err != nil {
		return nil, nil, err
	}
	return &pool.Term{Life: l}, s, nil
}

// alwaysYes takes the lock from whoever has it, at once, and tells nobody.
func alwaysYes(ctx context.Context, inner pool.Locks, _ *etcdstore.Store, l pool.Life) (*pool.Term, *pool.State, error) {
	var over int64
	for {
		term, s, err := inner.Campaign(ctx, l, over, 0, pool.Purpose{Stage: pool.StageRotate})
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

func TestSafetyWithoutTheLock(t *testing.T) {
	for name, campaign := range map[string]func(context.Context, pool.Locks, *etcdstore.Store, pool.Life) (*pool.Term, *pool.State, error){
		"switched off": switchedOff, "always says yes": alwaysYes,
	} {
		t.Run(name, func(t *testing.T) {
			const keys = 20
			var c *cluster
			store := sync.OnceValue(func() *etcdstore.Store { return etcdstore.New(c.client, etcdstore.Options{}) })
			c = newCluster(t, 3, func(int) app.Seams {
				return app.Seams{CampaignFirst: always, Locks: func(inner pool.Locks) pool.Locks {
					return &looseLocks{Locks: inner, store: store, campaign: campaign}
				}}
			})
			c.pool("p", keys, keys+5)
			var generations [keys]int64
			for i := range keys {
				generations[i] = c.key(c.replicas[0], "p", fmt.Sprint("a", i)).Generation
			}
			answers := c.storm(9*keys, func(i int) (*replica, *v1.RotateKeyRequest) {
				return c.replicas[i%3], &v1.RotateKeyRequest{Pool: "p", KeyId: fmt.Sprint("a", i/9), Generation: generations[i/9], Trigger: v1.Trigger_TRIGGER_POOL}
			})
			byKey := make(map[string]string)
			for _, a := range answers {
				if id := byKey[a.Rotation.OldKeyId]; id != "" && id != a.Rotation.Id {
					t.Errorf("%s was rotated by %s and by %s", a.Rotation.OldKeyId, id, a.Rotation.Id)
				}
				byKey[a.Rotation.OldKeyId] = a.Rotation.Id
			}
			c.want("rotations", len(c.settled().Rotations()), keys)
			c.want("active keys", c.count("active", "p"), keys)
			c.want("stock", c.count("backup", "p"), 5)
		})
	}
}

// mischief spoils a share of a replica's transactions.
type mischief struct {
	share float64
	spoil func(ctx context.Context, call func(context.Context) error) error
	did   atomic.Int64
}

func (m *mischief) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	call := func(ctx context.Context) error {
		if late, _ := ctx.Value(lateKey{}).(bool); late { // the caller has gone on, and with it what its answer would be put into
			return invoker(ctx, method, req, reflect.New(reflect.TypeOf(reply).Elem()).Interface(), cc)
		}
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	if method != "/etcdserverpb.KV/Txn" || rand.Float64() >= m.share {
		return call(ctx)
	}
	m.did.Add(1)
	return m.spoil(ctx, call)
}

type lateKey struct{}

// Answers of etcd are lost, late, repeated, or lie about what happened.
func TestEtcdAnswersGoWrong(t *testing.T) {
	lost := status.Error(codes.Unavailable, "the connection broke")
	kinds := map[string]func(ctx context.Context, call func(context.Context) error) error{
		"applied but lost": func(ctx context.Context, call func(context.Context) error) error {
			if err := call(ctx); err != nil {
				return err
			}
			return lost
		},
		"never sent": func(context.Context, func(context.Context) error) error { return lost },
		"sent twice": func(ctx context.Context, call func(context.Context) error) error {
			if err := call(ctx); err != nil {
				return err
			}
			return call(ctx)
		},
		"applied but cancelled": func(ctx context.Context, call func(context.Context) error) error {
			if err := call(ctx); err != nil {
				return err
			}
			return status.Error(codes.Canceled, "context canceled")
		},
		"applied but no space": func(ctx context.Context, call func(context.Context) error) error {
			if err := call(ctx); err != nil {
				return err
			}
			return status.Error(codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded")
		},
		"applied late": func(ctx context.Context, call func(context.Context) error) error {
			go func() {
				<-time.After(time.Duration(rand.IntN(40)) * time.Millisecond)
				late, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), lateKey{}, true), 5*time.Second)
				defer cancel()
				_ = call(late)
			}()
			return lost
		},
	}
	for name, spoil := range kinds {
		t.Run(name, func(t *testing.T) {
			const keys = 12
			m := &mischief{share: 0.4, spoil: spoil}
			c := newCluster(t, 2, func(int) app.Seams {
				return app.Seams{DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(m.intercept)}}
			})
			c.pool("p", keys, keys)
			var generations [keys]int64
			for i := range keys {
				generations[i] = c.key(c.replicas[0], "p", fmt.Sprint("a", i)).Generation
			}
			answers := c.storm(4*keys, func(i int) (*replica, *v1.RotateKeyRequest) {
				return c.replicas[i%2], &v1.RotateKeyRequest{
					Pool: "p", KeyId: fmt.Sprint("a", i/4), Generation: generations[i/4], Trigger: v1.Trigger_TRIGGER_POOL, RequestId: fmt.Sprint("r", i),
				}
			})
			winners := make(map[string]int)
			for _, a := range answers {
				if a.Outcome == v1.Outcome_OUTCOME_ROTATED {
					winners[a.Rotation.OldKeyId]++
				}
			}
			for key, n := range winners {
				c.want("callers told ROTATED for "+key, n, 1)
			}
			c.want("keys with a winner", len(winners), keys)
			c.want("rotations", len(c.settled().Rotations()), keys)
			c.want("active keys", c.count("active", "p"), keys)
			c.want("stock", c.count("backup", "p"), 0)
			if m.did.Load() < keys {
				t.Errorf("only %d answers were spoilt", m.did.Load())
			}
		})
	}
}

// A lock whose writer never learned that it has it does not stay.
func TestGhostLockGoesAway(t *testing.T) {
	var once atomic.Bool
	c := newCluster(t, 1, func(int) app.Seams {
		return app.Seams{CampaignFirst: always, DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(
			func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				err := invoker(ctx, method, req, reply, cc, opts...)
				if once.Load() && method == "/etcdserverpb.KV/Txn" && err == nil {
					return status.Error(codes.Unavailable, "the connection broke")
				}
				return err
			})}}
	})
	c.pool("p", 1, 1)
	req := c.request("p", "a0")
	once.Store(true)
	_, err := c.replicas[0].rot.RotateKey(c.ctx(), req)
	c.want("reason", reason(err), "NOT_APPLIED")
	once.Store(false)
	c.eventually("no lock is left", func() bool { return c.count("locks", "p") == 0 })
	c.want("outcome", c.rotate(c.replicas[0], req).Outcome, v1.Outcome_OUTCOME_ROTATED)
}
