package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	"github.com/rotatord/rotatord/internal/etcdwire"
)

// barrier lets transactions through to etcd one by one, or loses their answers.
type barrier struct {
	calls atomic.Int64
	pass  chan struct{} // one receive for each transaction; nil: all pass
	lose  atomic.Bool
}

func (g *barrier) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method != "/etcdserverpb.KV/Txn" {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	g.calls.Add(1)
	if g.pass != nil {
		<-g.pass
	}
	err := invoker(ctx, method, req, reply, cc, opts...)
	if err == nil && g.lose.Load() {
		return status.Error(codes.Unavailable, "the connection broke")
	}
	return err
}

type groupRig struct {
	*testing.T
	client    *clientv3.Client
	committer *Committer
	barrier   *barrier
}

func newGroupRig(t *testing.T, g *barrier) *groupRig {
	t.Helper()
	client, err := Connect(Config{Endpoints: []string{etcdtest.Start(t)}, DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(g.intercept)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return &groupRig{t, client, NewCommitter(client, 10*time.Second), g}
}

// create puts a key that must not exist, and reads it if it does.
func (r *groupRig) create(ctx context.Context, key, value string, lease int64) (*etcdwire.Response, error) {
	txn := new(etcdwire.Txn)
	txn.If(etcdwire.Compare{Key: []byte(key), Created: true})
	txn.Put([]byte(key), []byte(value), lease)
	txn.ElseGet([]byte(key))
	return r.committer.Commit(ctx, txn)
}

func (r *groupRig) value(key string) string {
	r.Helper()
	resp, err := r.client.Get(r.Context(), key)
	if err != nil {
		r.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// busy has all flights under way until the barrier opens, and returns a function that opens it and waits for their end.
func (r *groupRig) busy() (open func()) {
	r.Helper()
	var all sync.WaitGroup
	for i := range maxFlights {
		all.Go(func() { _, _ = r.create(context.Background(), fmt.Sprint("busy", i), "", 0) })
	}
	r.until(func() bool { return r.barrier.calls.Load() == maxFlights })
	return func() { close(r.barrier.pass); all.Wait() }
}

// together has n transactions wait for one flight, then lets everything pass. do makes the i-th.
func (r *groupRig) together(n int, do func(i int)) {
	r.Helper()
	open := r.busy()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { do(i) })
	}
	r.until(func() bool { return r.waiting() == n })
	open()
	all.Wait()
}

func (r *groupRig) waiting() int {
	r.committer.mu.Lock()
	defer r.committer.mu.Unlock()
	return len(r.committer.waiting)
}

func (r *groupRig) until(cond func() bool) {
	r.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatal("it did not come to pass")
		}
	}
}

// Each in a group is decided by its own compares and gets its own answer.
func TestGroupsAnswerEachForItself(t *testing.T) {
	r := newGroupRig(t, &barrier{pass: make(chan struct{})})
	const n = 60
	for i := 0; i < n; i += 3 {
		if _, err := r.client.Put(r.Context(), fmt.Sprint("k", i), "there before"); err != nil {
			t.Fatal(err)
		}
	}
	r.together(n, func(i int) {
		key := fmt.Sprint("k", i)
		resp, err := r.create(context.Background(), key, "mine", 0)
		switch {
		case err != nil:
			t.Errorf("%s: %v", key, err)
		case resp.Succeeded == (i%3 == 0):
			t.Errorf("%s: succeeded %v", key, resp.Succeeded)
		case i%3 == 0 && string(resp.Reads[0].Kvs[0].Value) != "there before":
			t.Errorf("%s: the answer reads %v", key, resp.Reads)
		case i%3 != 0:
			got, err := r.client.Get(context.Background(), key)
			if err != nil || got.Kvs[0].ModRevision != resp.Revision {
				t.Errorf("%s: answered with revision %d, is %v, %v", key, resp.Revision, got, err)
			}
		}
	})
	if calls := r.barrier.calls.Load(); calls > maxFlights+4 {
		t.Errorf("%d transactions were sent for %d that waited together", calls-maxFlights, n)
	}
}

// Transactions that meet do not share a group: etcd would evaluate both before it makes either.
func TestGroupsKeepApartWhatMeets(t *testing.T) {
	r := newGroupRig(t, &barrier{pass: make(chan struct{})})
	there, err := r.client.Put(t.Context(), "there", "")
	if err != nil {
		t.Fatal(err)
	}
	var won, moved atomic.Int64
	r.together(40, func(i int) {
		ctx := context.Background()
		if i%2 == 0 { // all want the same key
			if resp, err := r.create(ctx, "one", fmt.Sprint(i), 0); err != nil {
				t.Error(err)
			} else if resp.Succeeded {
				won.Add(1)
			}
			return
		}
		// All compare what each deletes.
		move := new(etcdwire.Txn)
		move.If(etcdwire.Compare{Key: []byte("there"), Created: true, Revision: there.Header.Revision})
		move.Put(fmt.Append(nil, "to", i), nil, 0)
		move.Delete([]byte("there"))
		resp, err := r.committer.Commit(ctx, move)
		if err != nil {
			t.Error(err)
		} else if resp.Succeeded {
			moved.Add(1)
		}
	})
	if won.Load() != 1 || moved.Load() != 1 {
		t.Errorf("%d created the one key and %d moved the other, want 1 and 1", won.Load(), moved.Load())
	}
}

// What is the fault of one in a group is no error of the others.
func TestGroupsDoNotShareBlame(t *testing.T) {
	r := newGroupRig(t, &barrier{pass: make(chan struct{})})
	r.together(20, func(i int) {
		var lease int64
		if i == 7 {
			lease = 4711 // there is none
		}
		resp, err := r.create(context.Background(), fmt.Sprint("k", i), "", lease)
		if i == 7 {
			if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				t.Errorf("without its lease: %v, %v", resp, err)
			}
		} else if err != nil || !resp.Succeeded {
			t.Errorf("beside one without its lease: %v, %v", resp, err)
		}
	})
}

// A group whose answer is lost is unknown to each, although it was made.
func TestGroupsOfUnknownOutcome(t *testing.T) {
	r := newGroupRig(t, &barrier{pass: make(chan struct{})})
	r.barrier.lose.Store(true)
	r.together(10, func(i int) {
		_, err := r.create(context.Background(), fmt.Sprint("k", i), "v", 0)
		if notSent := (*etcdwire.NotSentError)(nil); err == nil || errors.As(err, &notSent) {
			t.Errorf("the lost answer is told as %v", err)
		}
	})
	for i := range 10 {
		if r.value(fmt.Sprint("k", i)) != "v" {
			t.Errorf("k%d was not made", i)
		}
	}
}

// Who goes away before the next flight has sent nothing.
func TestWithdrawnFromTheGroup(t *testing.T) {
	r := newGroupRig(t, &barrier{pass: make(chan struct{})})
	open := r.busy()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := r.create(ctx, "k", "v", 0)
	if notSent := (*etcdwire.NotSentError)(nil); !errors.As(err, &notSent) {
		t.Errorf("withdrawn in time: %v", err)
	}
	open()
	if r.value("k") != "" {
		t.Error("what was withdrawn was made")
	}
}

// Transactions with another one for the case that they are lost share groups too, and each of the two gets its own answer.
// What goes wrong in the part that is not done is nobody's error.
func TestGroupsOfTransactionsWithAnElse(t *testing.T) {
	r := newGroupRig(t, &barrier{pass: make(chan struct{})})
	const n = 40
	for i := 0; i < n; i += 2 {
		if _, err := r.client.Put(r.Context(), fmt.Sprint("k", i), "there before"); err != nil {
			t.Fatal(err)
		}
	}
	var locked atomic.Int64
	r.together(n, func(i int) {
		var lease int64
		if i == 7 || i == 8 { // the first is made, and has no use for it
			lease = 4711 // there is none
		}
		lock := new(etcdwire.Txn)
		name := fmt.Appendf(nil, "lock%d", i%20) // two want each, but for one
		if i == 8 {
			name = []byte("its own lock")
		}
		lock.If(etcdwire.Compare{Key: name, Created: true})
		lock.Put(name, fmt.Append(nil, i), lease)
		txn := new(etcdwire.Txn)
		txn.If(etcdwire.Compare{Key: fmt.Append(nil, "k", i), Created: true})
		txn.Put(fmt.Append(nil, "k", i), []byte("mine"), 0)
		txn.ElseGet(fmt.Append(nil, "k", i))
		txn.Else(lock)
		resp, err := r.committer.Commit(context.Background(), txn)
		switch {
		case i == 8:
			if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				t.Errorf("a lock without its lease: %v, %v", resp, err)
			}
		case err != nil:
			t.Errorf("k%d: %v", i, err)
		case resp.Succeeded != (i%2 == 1) || resp.Succeeded != (len(resp.Nested) == 0):
			t.Errorf("k%d: %+v", i, resp)
		case !resp.Succeeded && resp.Nested[0].Succeeded:
			locked.Add(1)
			if got := r.value(string(name)); got != fmt.Sprint(i) {
				t.Errorf("%s was taken for k%d, and is %s's", name, i, got)
			}
		}
	})
	if locked.Load() != 10 { // of twenty those with an even number
		t.Errorf("%d locks were taken, want 10", locked.Load())
	}
}
