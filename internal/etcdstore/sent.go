package etcdstore

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc/stats"
)

// sending follows one call through gRPC, to tell a write that never left from one whose answer was lost. With no member
// reachable every call ends in the same DeadlineExceeded; only this tells callers "not applied" instead of "unknown".
type sending struct {
	followed atomic.Bool // the handler below saw the call
	sent     atomic.Bool // its headers went out, so its body may have
}

type sendingKey struct{}

func followSending(ctx context.Context) (context.Context, *sending) {
	s := new(sending)
	return context.WithValue(ctx, sendingKey{}, s), s
}

// surelyNotSent is false for a call that nobody followed, as through a client that Connect did not make.
func (s *sending) surelyNotSent() bool { return s.followed.Load() && !s.sent.Load() }

// sendingHandler is the gRPC stats handler behind sending.
type sendingHandler struct{}

// TagRPC implements stats.Handler. It runs before a connection is chosen.
func (sendingHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	if s, ok := ctx.Value(sendingKey{}).(*sending); ok {
		s.followed.Store(true)
	}
	return ctx
}

// HandleRPC implements stats.Handler. OutHeader comes when a stream is open, before any of the body is written, and
// on the goroutine of the call (grpc internal/transport/http2_client.go, NewStream).
func (sendingHandler) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if _, isHeader := event.(*stats.OutHeader); !isHeader {
		return
	}
	if s, ok := ctx.Value(sendingKey{}).(*sending); ok {
		s.sent.Store(true)
	}
}

// TagConn implements stats.Handler.
func (sendingHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (sendingHandler) HandleConn(context.Context, stats.ConnStats) {}
