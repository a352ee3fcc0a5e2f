package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	"github.com/rotatord/rotatord/internal/pool"
)

// patient is an attempt timeout no healthy etcd needs, also on a busy machine.
const patient = 10 * time.Second

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// connect returns a client of a new etcd.
func connect(t *testing.T, opts ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	return connectTo(t, newEtcd(t), opts...)
}

func connectTo(t *testing.T, endpoint string, opts ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	client, err := Connect(Config{Endpoints: []string{endpoint}, DialOptions: opts})
	if err != nil {
		t.Fatalf("connecting: %v", err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newStore(client *clientv3.Client) *Store {
	return New(client, Options{Replica: "test", AttemptTimeout: patient})
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func apply(t *testing.T, s *Store, txn *pool.Txn) *pool.Result {
	t.Helper()
	res, err := s.Apply(t.Context(), txn)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return res
}

// applied is apply for what must succeed; it returns the revision.
func applied(t *testing.T, s *Store, txn *pool.Txn) int64 {
	t.Helper()
	res := apply(t, s, txn)
	if !res.Applied {
		t.Fatalf("Apply: not applied, the guards %+v do not hold", res.Failed(txn))
	}
	return res.Revision
}

func active(key, slot string) *pool.Active {
	return &pool.Active{Pool: "p", Key: key, Slot: slot, Status: pool.StatusHealthy, Sealed: sealedAs(key)}
}

func backup(key string) *pool.Backup { return &pool.Backup{Pool: "p", Key: key, Sealed: sealedAs(key)} }

func event(id string) *pool.Event {
	return &pool.Event{ID: id, Type: pool.EventKeyAdded, Pool: "p", Subject: "keys/k", Time: morning}
}

// txnFault is what happens to one transaction on its way.
type txnFault func(send func(context.Context) error, ctx context.Context) error

// faulty lets the next transactions through the faults, in their order, and all others through unharmed.
type faulty struct {
	mu     sync.Mutex
	faults []txnFault
	sent   int // transactions sent by the client
}

func (f *faulty) next(faults ...txnFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, faults...)
}

func (f *faulty) take() txnFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent++
	if len(f.faults) == 0 {
		return func(send func(context.Context) error, ctx context.Context) error { return send(ctx) }
	}
	fault := f.faults[0]
	f.faults = f.faults[1:]
	return fault
}

func (f *faulty) option() grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		send := func(ctx context.Context) error { return invoker(ctx, method, req, reply, cc, opts...) }
		if !strings.HasSuffix(method, "/Txn") {
			return send(ctx)
		}
		return f.take()(send, ctx)
	})
}

// answerWith sends the transaction and replaces its answer.
func answerWith(err error) txnFault {
	return func(send func(context.Context) error, ctx context.Context) error { return errors.Join(send(ctx), err) }
}

// gate holds streams of one method up: those there are end, new ones are refused, as by a member that went away.
type gate struct {
	mu     sync.Mutex
	closed bool
	ends   map[int]context.CancelFunc
	next   int
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, end := range g.ends {
		end()
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}

var errShut = status.Error(codes.Unavailable, "the gate is shut")

func (g *gate) pass(ctx context.Context) (context.Context, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errShut
	}
	ctx, cancel := context.WithCancel(ctx)
	if g.ends == nil {
		g.ends = make(map[int]context.CancelFunc)
	}
	g.ends[g.next] = cancel
	g.next++
	return ctx, nil
}

func (g *gate) option(method string) grpc.DialOption {
	return grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, called string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if !strings.HasSuffix(called, method) {
			return streamer(ctx, desc, cc, called, opts...)
		}
		ctx, err := g.pass(ctx)
		if err != nil {
			return nil, err
		}
		stream, err := streamer(ctx, desc, cc, called, opts...)
		return &gatedStream{ClientStream: stream}, err
	})
}

type gatedStream struct{ grpc.ClientStream }

// RecvMsg makes the end of a stream look like one that can be resumed.
func (s *gatedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if status.Code(err) == codes.Canceled {
		return errShut
	}
	return err
}

// valve is on the way from a server: what comes through it can be held up.
type valve struct {
	mu      sync.Mutex
	blocked chan struct{} // nil: flowing
}

func (v *valve) block() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blocked = make(chan struct{})
}

func (v *valve) flow() {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.blocked)
	v.blocked = nil
}

// valved is a connection with a valve.
type valved struct {
	net.Conn
	*valve
}

// Read implements net.Conn. What arrives while the valve is blocked stays until it flows again.
func (v valved) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	v.mu.Lock()
	blocked := v.blocked
	v.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	return n, err
}

func (v *valve) option() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		return valved{conn, v}, err
	})
}

func name(i int) string { return fmt.Sprintf("k%03d", i) }

func newEtcd(t *testing.T) string {
	t.Helper()
	return etcdtest.Start(t)
}
