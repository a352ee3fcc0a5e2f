package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/pool"
)

// calls is what happens around every handler.
type calls struct {
	log      *slog.Logger
	metrics  *metrics
	ready    func() error
	timeouts Timeouts
	stopping context.Context // ends when the server begins to stop
}

// unary is the one interceptor of calls: each that is parted from the others costs an allocation or two for every call.
//
// The order matters: what a caller is told is decided outside the server's bound, where it can be seen whose deadline has
// passed.
func (c *calls) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	m, ours := methods[info.FullMethod]
	resp, err := c.bound(ctx, m, req, info, handler)
	if err != nil {
		resp, err = nil, c.tell(ctx, m, ours, err)
	}
	took := time.Since(began)
	c.metrics.observe(info.FullMethod, status.Code(err), took)
	c.record(ctx, info.FullMethod, err, took)
	return resp, err
}

// record writes a call's line. It has nothing of the request.
func (c *calls) record(ctx context.Context, name string, err error, took time.Duration) {
	code := status.Code(err)
	level, text := slog.LevelDebug, "call"
	switch code {
	case codes.Unavailable, codes.Internal, codes.DataLoss, codes.Unknown:
		level, text = slog.LevelWarn, "call failed"
	}
	if !c.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("method", name), slog.String("code", code.String()), slog.Duration("took", took)}
	var f *failure
	if errors.As(err, &f) {
		attrs = append(attrs, slog.String("reason", string(f.reason)), slog.Any("error", f.cause))
	} else if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	c.log.LogAttrs(ctx, level, text, attrs...)
}

// tell makes of an error what the caller is told. Errors of other services, such as health, are theirs.
func (c *calls) tell(ctx context.Context, m method, ours bool, err error) error {
	var p *panicked
	if !ours && !errors.As(err, &p) {
		return err
	}
	return translate(ctx, m, err)
}

// bound ends the call's context after the server's own time.
func (c *calls) bound(ctx context.Context, m method, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeouts.of(m))
	defer cancel()
	if err := c.gate(m); err != nil {
		return nil, err
	}
	return c.survive(ctx, req, info, handler)
}

// gate fails calls that cannot work now, without trying. What only keeps writes from working, such as a full store, does
// not keep a long read: it may be what finds that out.
func (c *calls) gate(m method) error {
	if m.gated() {
		if err := c.ready(); err != nil && (m.writes || errors.Is(err, pool.ErrNotApplied)) {
			return err
		}
	}
	return nil
}

// panicked is a handler's panic. The stack is logged where it is caught.
type panicked struct{ value string }

// Error implements error.
func (p *panicked) Error() string { return "panic: " + p.value }

// survive turns a panic into an error, so that one call does not end all others.
func (c *calls) survive(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = c.caught(ctx, info.FullMethod, v)
		}
	}()
	return handler(ctx, req)
}

// streams lists the interceptors of streams, outermost first. Streams have no bound of their own; they end when the server
// begins to stop: one who watches health would otherwise hold it up for as long as it may take.
func (c *calls) streams() []grpc.StreamServerInterceptor {
	return []grpc.StreamServerInterceptor{c.observeStream, c.tellStream, c.surviveStream, c.endStream}
}

func (c *calls) observeStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	began := time.Now()
	err := handler(srv, stream)
	c.metrics.streamed(info.FullMethod, status.Code(err))
	c.record(stream.Context(), info.FullMethod, err, time.Since(began))
	return err
}

// tellStream is tell for streams.
func (c *calls) tellStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := handler(srv, stream)
	if err == nil {
		return nil
	}
	m, ours := methods[info.FullMethod]
	return c.tell(stream.Context(), m, ours, err)
}

func (c *calls) surviveStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = c.caught(stream.Context(), info.FullMethod, v)
		}
	}()
	return handler(srv, stream)
}

func (c *calls) endStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(c.stopping, cancel)()
	return handler(srv, &endingStream{stream, ctx})
}

// endingStream is a stream with another context.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *endingStream) Context() context.Context { return s.ctx }

// caught logs a panic. Its value is shown only if it is an error or a text: anything else might be a part of the
// request.
func (c *calls) caught(ctx context.Context, name string, v any) error {
	p := &panicked{value: fmt.Sprintf("a value of type %T", v)}
	switch v := v.(type) {
	case error:
		p.value = v.Error()
	case string:
		p.value = v
	}
	c.log.LogAttrs(ctx, slog.LevelError, "handler panicked",
		slog.String("method", name), slog.String("panic", p.value), slog.String("stack", string(debug.Stack())))
	return p
}
