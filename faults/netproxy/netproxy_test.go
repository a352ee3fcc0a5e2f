package netproxy

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

const method = "/grpc.health.v1.Health/Check"

// server counts the calls that reach it.
type server struct {
	healthv1.UnimplementedHealthServer
	calls atomic.Int64
}

func (s *server) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	s.calls.Add(1)
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
}

// rig is a client and a server with a proxy between them.
type rig struct {
	net    *Network
	server *server
	client healthv1.HealthClient
}

func newRig(t *testing.T) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{net: New(1), server: new(server)}
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, r.server)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	p := &Proxy{Net: r.net, Listen: "127.0.0.1:0", Target: l.Addr().String(), From: "client", To: "server", Calls: true}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	cc, err := grpc.NewClient(p.listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	r.client = healthv1.NewHealthClient(cc)
	return r
}

func (r *rig) call(limit time.Duration) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := r.client.Check(ctx, &healthv1.HealthCheckRequest{Service: strings.Repeat("x", 300)})
	return status.Code(err)
}

func (r *rig) works(t *testing.T) {
	t.Helper()
	if code := r.call(5 * time.Second); code != codes.OK {
		t.Fatalf("a call through the proxy ended with %v", code)
	}
}

func TestAnswersAreSpoilt(t *testing.T) {
	for _, test := range []struct {
		kind  Spoil
		code  codes.Code
		calls int64 // that reach the server for each
	}{
		{Drop, codes.DeadlineExceeded, 1}, {Cancel, codes.Canceled, 1}, {Reset, codes.Unavailable, 1}, {Duplicate, codes.OK, 2},
	} {
		t.Run(string(test.kind), func(t *testing.T) {
			r := newRig(t)
			r.works(t)
			r.net.Spoil(Way{"client", "server"}, Spoiling{Kind: test.kind, Methods: map[string]bool{method: true}, Share: 1})
			const n = 20
			for range n {
				limit := 5 * time.Second
				if test.kind == Drop {
					limit = 200 * time.Millisecond
				}
				if code := r.call(limit); code != test.code {
					t.Fatalf("a call whose answer is spoilt with %s ended with %v, not %v", test.kind, code, test.code)
				}
			}
			r.net.Heal()
			r.works(t)
			want := n*test.calls + 2
			for limit := time.Now().Add(5 * time.Second); r.server.calls.Load() != want; time.Sleep(time.Millisecond) {
				if time.Now().After(limit) {
					t.Fatalf("%d calls reached the server, not %d", r.server.calls.Load(), want)
				}
			}
			if got := r.net.Spoilt(); got != n {
				t.Errorf("%d answers were counted as spoilt, not %d", got, n)
			}
		})
	}
}

func TestCutHoldsUntilHealed(t *testing.T) {
	for name, test := range map[string]struct {
		way   Way
		calls int64 // that reach the server during the cut
	}{
		"to the server": {Way{"client", "server"}, 0}, "from the server": {Way{"server", "client"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.works(t)
			r.net.Set(test.way, Rule{Cut: true})
			if code := r.call(200 * time.Millisecond); code != codes.DeadlineExceeded {
				t.Fatalf("a call into a cut ended with %v", code)
			}
			if got := r.server.calls.Load() - 1; got != test.calls {
				t.Errorf("%d calls reached the server during the cut, not %d", got, test.calls)
			}
			r.net.Heal()
			r.works(t)
		})
	}
}

// A kernel gives a connection up whose data are not acknowledged.
func TestLongCutBreaksTheConnection(t *testing.T) {
	r := newRig(t)
	r.net.UserTimeout = 100 * time.Millisecond
	r.works(t)
	r.net.Set(Way{"client", "server"}, Rule{Cut: true})
	if code := r.call(3 * time.Second); code != codes.Unavailable {
		t.Errorf("a call into a long cut ended with %v", code)
	}
}

func TestDelay(t *testing.T) {
	r := newRig(t)
	r.works(t)
	r.net.Set(Way{"client", "server"}, Rule{Delay: 100 * time.Millisecond})
	r.net.Set(Way{"server", "client"}, Rule{Delay: 100 * time.Millisecond})
	began := time.Now()
	r.works(t)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("a call took %v with 100 ms of delay each way", took)
	}
}
