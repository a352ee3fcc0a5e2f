package grpcapi

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// world is a server with a client. Without stubs the real domain is behind it, over a store in memory.
type world struct {
	conn     *grpc.ClientConn
	server   *Server
	store    *pooltest.MemStore
	registry *prometheus.Registry
	log      *logBuffer
	ready    atomic.Pointer[pool.Refusal] // why writes cannot work
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu  sync.Mutex // protects buf
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newWorld starts a server; change may replace what is behind it.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{store: pooltest.NewMemStore(), registry: prometheus.NewRegistry(), log: &logBuffer{}}
	mirror := pool.NewMirror()
	w.store.Feed(mirror)
	sealer := pooltest.FakeSealer{Keyset: "test"}
	rotator := pool.NewRotator(pool.RotatorConfig{
		Store: w.store, Locks: yesLocks{w.store}, Mirror: mirror, Observer: pool.NopObserver{}, Replica: "r1",
	})
	t.Cleanup(rotator.Close)
	cfg := Config{
		Rotator: rotator,
		Queries: pool.NewQueries(pool.QueriesConfig{Mirror: mirror, Store: w.store, Events: w.store, Sealer: sealer, Now: time.Now}),
		Admin:   pool.NewAdmin(pool.AdminConfig{Store: w.store, Sealer: sealer, Replica: "r1"}),
		Ready: func() error {
			if r := w.ready.Load(); r != nil {
				return r
			}
			return nil
		},
		Log:        slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: w.registry,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.server, err = NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	w.serve(t)
	return w
}

func (w *world) serve(t *testing.T) {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(l) }()
	t.Cleanup(func() {
		w.server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	var err error
	w.conn, err = grpc.NewClient("passthrough:///bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(MaxMessage*2)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.conn.Close() })
}

// call makes a call by its full method name. Of a stream it takes the first message.
func (w *world) call(ctx context.Context, name string, req proto.Message) (proto.Message, error) {
	method := descriptorOf(name)
	resp := newMessage(method.Output())
	if !method.IsStreamingServer() {
		return resp, w.conn.Invoke(ctx, name, req, resp)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil {
		return nil, err
	}
	return resp, stream.RecvMsg(resp)
}

// descriptorOf finds an rpc of the contract by its full method name.
func descriptorOf(name string) protoreflect.MethodDescriptor {
	for _, m := range contract() {
		if fullMethod(m) == name {
			return m
		}
	}
	panic("no such method: " + name)
}

// contract is every rpc of the contract.
func contract() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	for _, file := range []protoreflect.FileDescriptor{
		v1.File_rotator_v1_rotation_service_proto, v1.File_rotator_v1_key_service_proto, v1.File_rotator_v1_admin_service_proto,
	} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				all = append(all, methods.Get(j))
			}
		}
	}
	return all
}

func fullMethod(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return t.New().Interface()
}

// errorInfo returns the ErrorInfo of an error, empty if there is none.
func errorInfo(err error) *errdetails.ErrorInfo {
	return detail[*errdetails.ErrorInfo](err)
}

func detail[T any](err error) (found T) {
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(T); ok {
			return d
		}
	}
	return found
}

// violated lists the fields a BadRequest names.
func violated(err error) (fields []string) {
	for _, v := range detail[*errdetails.BadRequest](err).GetFieldViolations() {
		fields = append(fields, v.GetField())
	}
	return fields
}

// yesLocks always says yes: the compares alone have to do.
type yesLocks struct{ store pool.Store }

func (y yesLocks) Campaign(ctx context.Context, l pool.Life, _, _ int64, _ pool.Purpose) (*pool.Term, *pool.State, error) {
	st, err := y.store.Read(ctx, pool.LockRef(l.Pool, l.Key), pool.ActiveRef(l.Pool, l.Key), pool.RotationRef(l),
		pool.PendingRef(l.Pool, l.Key), pool.PoolRef(l.Pool))
	if err != nil {
		return nil, nil, err
	}
	return &pool.Term{Life: l, Done: make(chan struct{})}, st, nil
}

func (yesLocks) CampaignWith(context.Context, pool.Life, *pool.Txn) (*pool.Result, *pool.Term, error) {
	return nil, nil, pool.ErrNotApplied
}

func (yesLocks) Resign(*pool.Term) {}
