package etcdembed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

const (
	// drainTime is what calls in flight get at a stop. Watch streams never end by themselves and take all of it.
	drainTime = 500 * time.Millisecond
	// lingerTime is what connections get to notice that they are closed. One that never said anything does not: etcd's
	// multiplexer waits for its first byte for ever.
	lingerTime = 500 * time.Millisecond
	// stopLimit bounds how long a stop waits for the data to be closed.
	stopLimit = 10 * time.Second
)

// abandonedError says that etcd could not be stopped and may still have the data open.
type abandonedError struct{ error }

func (e abandonedError) Unwrap() error { return e.error }

// member is one run of etcd.
type member struct {
	etcd    *embed.Etcd
	grpc    atomic.Pointer[grpc.Server] // set by etcd when it begins to serve
	fatal   chan error                  // filled by the logger, capacity 1
	failed  chan error                  // filled by watch with what ends etcd if it is not stop, capacity 1
	stopped chan struct{}               // closed when stop begins
	closing atomic.Bool                 // the same for the logger
}

// startMember returns when etcd serves. After an error etcd is stopped, or the error is an abandonedError.
func startMember(ctx context.Context, ec *embed.Config, r *relay) (*member, error) {
	m := &member{fatal: make(chan error, 1), failed: make(chan error, 1), stopped: make(chan struct{})}
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(r, m.fatal, &m.closing))
	ec.ServiceRegister = func(g *grpc.Server) { m.grpc.Store(g) }
	etcd, err := m.await(ctx, launch(ec, r))
	if err != nil {
		return nil, err
	}
	m.etcd = etcd
	go m.watch()
	if err := m.ready(ctx); err != nil {
		return nil, errors.Join(err, m.stop())
	}
	return m, nil
}

type launched struct {
	etcd *embed.Etcd
	err  error
}

// launch calls StartEtcd in a goroutine, because it can block (on a file, or on a goroutine that a fatal message has
// ended), be ended itself (see hook), and panic, all of them on damaged data.
func launch(ec *embed.Config, r *relay) <-chan launched {
	done := make(chan launched, 1)
	go func() {
		result := launched{err: abandonedError{errors.New("etcd ended its own start")}}
		defer func() {
			if p := recover(); p != nil {
				r.put(slog.NewRecord(time.Now(), slog.LevelError, string(debug.Stack()), 0))
				result.err = abandonedError{fmt.Errorf("etcd panicked, its data may be damaged: %v", p)}
			}
			done <- result
		}()
		result.etcd, result.err = embed.StartEtcd(ec)
	}()
	return done
}

func (m *member) await(ctx context.Context, done <-chan launched) (*embed.Etcd, error) {
	var err error
	select {
	case r := <-done:
		if r.err == nil {
			return r.etcd, nil
		}
		return nil, m.cause(r.err)
	case err = <-m.fatal:
	case <-ctx.Done():
		err = m.cause(fmt.Errorf("etcd did not start in time: %w", context.Cause(ctx)))
	}
	go reap(done)
	return nil, abandonedError{err}
}

// reap stops what an abandoned start comes to in the end.
func reap(done <-chan launched) {
	if r := <-done; r.err == nil {
		r.etcd.Server.Stop()
		r.etcd.Close()
	}
}

// cause prefers what etcd said before it ended a goroutine.
func (m *member) cause(err error) error {
	select {
	case fatal := <-m.fatal:
		return abandonedError{fatal}
	default:
		return err
	}
}

func (m *member) ready(ctx context.Context) error {
	select {
	case <-m.etcd.Server.ReadyNotify():
		return nil
	case err := <-m.failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("etcd did not become ready in time: %w", context.Cause(ctx))
	}
}

// watch owns the receiving side of fatal and of etcd's errors once etcd has started. It ends with the first of them, or
// at stop.
func (m *member) watch() {
	select {
	case err := <-m.fatal:
		m.failed <- err
	case err := <-m.etcd.Err():
		if err == nil {
			err = errors.New("etcd: a listener ended")
		}
		m.failed <- err
	case <-m.etcd.Server.StopNotify():
		m.failed <- m.cause(errors.New("etcd stopped by itself"))
	case <-m.stopped:
	}
}

// stop goes in an order of its own: etcd's Close would wait for calls seven seconds, and then, before it closes the
// data, for ever for a connection that never said anything. Its error is an abandonedError. It may be called once.
func (m *member) stop() error {
	m.closing.Store(true)
	close(m.stopped)
	m.drain()
	if !within(stopLimit, m.etcd.Server.Stop) {
		return abandonedError{fmt.Errorf("etcd did not stop within %v", stopLimit)}
	}
	within(lingerTime, m.etcd.Close)
	within(stopLimit, awaitForks)
	return nil
}

// awaitForks waits for the processes that are being made at this moment. Until it becomes another program each of them has
// a copy of every open file, also of those that etcd has just closed, and so holds etcd's locks on them.
func awaitForks() {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
}

// drain lets calls end, then cancels them; it stops accepting at once.
func (m *member) drain() {
	g := m.grpc.Load()
	if g == nil || within(drainTime, g.GracefulStop) {
		return
	}
	within(lingerTime, g.Stop)
}

// within runs f and reports whether it ended in time. If not, f goes on in the background.
func within(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
