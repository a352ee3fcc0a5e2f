package election_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/rotatord/rotatord/internal/election"
	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
)

// hanging is a stream to a member that never answers.
type hanging struct{ grpc.ClientStream }

func (h hanging) RecvMsg(any) error {
	<-h.Context().Done()
	return h.Context().Err()
}

// A member that hangs must not cost the session: every second request to renew the lease is never answered here, the
// first one included.
func TestSessionOutlivesRenewalsThatHang(t *testing.T) {
	var asked atomic.Int64
	hang := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := streamer(ctx, desc, cc, method, opts...)
		if err == nil && method == "/etcdserverpb.Lease/LeaseKeepAlive" && asked.Add(1)%2 == 1 {
			return hanging{stream}, nil
		}
		return stream, err
	}
	client := connect(t, etcdtest.Start(t), grpc.WithChainStreamInterceptor(hang))
	var sessions atomic.Int64
	e, err := election.New(election.Config{
		Client: client, TTL: 2 * time.Second, Log: slog.New(slog.DiscardHandler),
		Announce: func(context.Context, clientv3.LeaseID) error { sessions.Add(1); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "eight requests, of which four were answered, a third of the TTL apart", func() bool { return asked.Load() >= 8 })
	if !e.Alive() || sessions.Load() != 1 {
		t.Errorf("the session is lost: alive %v, %d sessions", e.Alive(), sessions.Load())
	}
}
