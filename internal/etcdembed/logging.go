package etcdembed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	logQueue     = 256
	logFieldSize = 1024
	// Of one message, samplePerTick are let through in a sampleTick: etcd repeats itself when its disk is slow.
	sampleTick    = 10 * time.Second
	samplePerTick = 5
	// flushLimit bounds how long closing waits for a blocked log destination.
	flushLimit = time.Second
)

// expected are messages that say nothing, because they come at every start.
var expected = map[string]bool{
	// About TLS, which we do not use here.
	"Running http and grpc server on single port. This is not recommended for production.": true,
	// About data so young that no election is in it.
	"Failed to detect schema version": true,
	// About users, which we do not have here.
	"simple token is not cryptographically signed": true,
}

// expectedClosing are messages that say nothing while a member is being stopped.
var expectedClosing = map[string]bool{
	"failed to update cluster version":              true,
	"failed to update storage version":              true,
	"server has stopped; skipping GoAttach":         true,
	"setting up serving from embedded etcd failed.": true,
	"stopping insecure grpc server due to error":    true,
	"stopped insecure grpc server due to error":     true,
}

// newZap gives etcd a logger of its own. It replaces no global one.
func newZap(r *relay, fatal chan<- error, closing *atomic.Bool) *zap.Logger {
	sampled := zapcore.NewSamplerWithOptions(&core{relay: r, closing: closing}, sampleTick, samplePerTick, 0)
	return zap.New(sampled, zap.WithFatalHook(hook(fatal)), zap.WithPanicHook(hook(fatal)))
}

// hook takes etcd's fatal and panic messages. They end only the goroutine that had them: the process belongs to the
// caller. That goroutine acknowledges nothing any more, so what it could not write stays unknown to its client.
type hook chan<- error

// OnWrite implements zapcore.CheckWriteHook.
func (h hook) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	select {
	case h <- describe(ce.Message, fields):
	default: // the first one tells the story
	}
	runtime.Goexit()
}

func describe(message string, fields []zapcore.Field) error {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			return fmt.Errorf("etcd: %s: %w", message, err)
		}
	}
	return errors.New("etcd: " + message)
}

// core hands warnings and errors to the relay and drops the rest.
type core struct {
	relay   *relay
	closing *atomic.Bool
	fields  []zapcore.Field
}

// Enabled implements zapcore.LevelEnabler.
func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{relay: c.relay, closing: c.closing, fields: slices.Concat(c.fields, fields)}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || expected[e.Message] || c.closing.Load() && expectedClosing[e.Message] {
		return ce
	}
	return ce.AddCore(e, c)
}

// Write implements zapcore.Core and never blocks.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.relay.put(record(e, slices.Concat(c.fields, fields)))
	return nil
}

// Sync implements zapcore.Core; the relay flushes when it is closed.
func (c *core) Sync() error { return nil }

// record reads the fields now, because etcd may change what they point to.
func record(e zapcore.Entry, fields []zapcore.Field) slog.Record {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	for _, name := range slices.Sorted(maps.Keys(enc.Fields)) {
		r.AddAttrs(slog.Any(name, bounded(enc.Fields[name])))
	}
	return r
}

func bounded(v any) any {
	switch v.(type) {
	case bool, int, int32, int64, uint, uint32, uint64, float32, float64, time.Duration, time.Time:
		return v
	}
	s := fmt.Sprint(v)
	if len(s) > logFieldSize {
		return s[:logFieldSize] + "..."
	}
	return s
}

// relay writes records in the background, so that a log destination that blocks stops its goroutine and not etcd. What
// does not fit into the queue is counted and reported with the next record.
type relay struct {
	log     *slog.Logger
	queue   chan slog.Record
	dropped atomic.Int64
	stop    chan struct{}
	done    chan struct{}
}

func newRelay(log *slog.Logger) *relay {
	r := &relay{
		log:   log.With("component", "etcd"),
		queue: make(chan slog.Record, logQueue),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	go r.run()
	return r
}

func (r *relay) put(rec slog.Record) {
	select {
	case r.queue <- rec:
	default:
		r.dropped.Add(1)
	}
}

func (r *relay) run() {
	defer close(r.done)
	for {
		select {
		case rec := <-r.queue:
			r.write(rec)
		case <-r.stop:
			r.drain()
			return
		}
	}
}

func (r *relay) drain() {
	for {
		select {
		case rec := <-r.queue:
			r.write(rec)
		default:
			return
		}
	}
}

func (r *relay) write(rec slog.Record) {
	ctx := context.Background()
	h := r.log.Handler()
	if !h.Enabled(ctx, rec.Level) {
		return
	}
	if n := r.dropped.Swap(0); n > 0 {
		rec.AddAttrs(slog.Int64("dropped_before", n))
	}
	_ = h.Handle(ctx, rec) // there is nowhere left to report that logging fails
}

// close writes what is queued, but waits for a blocked destination only so long. It may be called once.
func (r *relay) close() {
	close(r.stop)
	select {
	case <-r.done:
	case <-time.After(flushLimit):
	}
}
