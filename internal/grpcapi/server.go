package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// MaxMessage bounds a request. A thousand keys with secrets and labels of usual size fit many times.
const MaxMessage = 8 << 20

// Config is what the server works with. Rotator, Queries, Admin, Ready, Log and Registerer are required.
type Config struct {
	Rotator Rotator
	Queries Queries
	Admin   Admin
	// Ready says why writes cannot work now (no session, no quorum, draining), as a refusal; nil if they can. It is asked
	// at each write and must not block.
	Ready      func() error
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Timeouts   Timeouts
	Options    []grpc.ServerOption // such as credentials
}

// Server is the gRPC server with its health.
type Server struct {
	*grpc.Server
	Health *Health

	endStreams context.CancelFunc
}

// NewServer returns a server for all services, with health and reflection. Nothing serves until Health says so.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Rotator == nil || cfg.Queries == nil || cfg.Admin == nil || cfg.Ready == nil || cfg.Log == nil || cfg.Registerer == nil {
		return nil, errors.New("grpcapi: Config needs Rotator, Queries, Admin, Ready, Log and Registerer")
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	stopping, endStreams := context.WithCancel(context.Background())
	around := &calls{log: cfg.Log, metrics: m, ready: cfg.Ready, timeouts: cfg.Timeouts.withDefaults(), stopping: stopping}
	s := &Server{Server: grpc.NewServer(options(around, cfg.Options)...), Health: newHealth(), endStreams: endStreams}
	v1.RegisterRotationServiceServer(s, &rotationService{rotator: cfg.Rotator, queries: cfg.Queries, log: cfg.Log, streams: make(chan struct{}, maxEventStreams)})
	v1.RegisterKeyServiceServer(s, &keyService{queries: cfg.Queries})
	v1.RegisterAdminServiceServer(s, &adminService{admin: cfg.Admin, queries: cfg.Queries})
	healthv1.RegisterHealthServer(s, s.Health.server)
	reflection.Register(s)
	return s, nil
}

// streamWorkers are goroutines that serve call after call. One that is new for each call grows its stack each time, which
// costs a sixth of a call that is answered from memory. When all are busy new ones are made as usual.
const streamWorkers = 32

// window is that of flow control, of a call and of a connection. To find out by itself how large it may be, gRPC would
// answer each request with a ping, which costs both sides a packet for every call.
const window = 1 << 20

func options(around *calls, more []grpc.ServerOption) []grpc.ServerOption {
	return append([]grpc.ServerOption{
		grpc.UnaryInterceptor(around.unary),
		grpc.ChainStreamInterceptor(around.streams()...),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		// Clients may ping every ten seconds, also while idle: gateways keep connections open behind balancers that drop
		// silent ones. The margin is for pings that arrive bunched.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}, more...)
}

// Shutdown stops in order: health says so, streams end, calls under way finish, and when ctx ends the rest is cut off. It
// can be called again.
func (s *Server) Shutdown(ctx context.Context) {
	s.Health.Shutdown()
	s.endStreams()
	done := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.Stop() // ends the calls' contexts; what ignores that is not waited for
	}
}
