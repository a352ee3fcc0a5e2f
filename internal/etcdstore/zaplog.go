package etcdstore

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// quietFor is how long a message is held back after it was logged. The client warns of every failed call.
const quietFor = 10 * time.Second

// zapTo hands the client's warnings and errors to log, each message at most every quietFor.
func zapTo(log *slog.Logger) *zap.Logger {
	if log == nil {
		return zap.NewNop()
	}
	return zap.New(&slogCore{log: log, held: &heldBack{since: make(map[string]time.Time), count: make(map[string]int)}})
}

// slogCore is a zapcore.Core on slog.
type slogCore struct {
	log  *slog.Logger
	held *heldBack
}

// Enabled implements zapcore.LevelEnabler.
func (c *slogCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log.With(attrs(fields)...), held: c.held}
}

// Check implements zapcore.Core.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	more, ok := c.held.pass(e.Message, e.Time)
	if !ok {
		return nil
	}
	args := append(attrs(fields), slog.String("message", e.Message))
	if more > 0 {
		args = append(args, slog.Int("held_back", more))
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	c.log.Log(context.Background(), level, "etcd client", args...)
	return nil
}

// Sync implements zapcore.Core.
func (c *slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]any, 0, len(fields)+2)
	for _, f := range fields {
		if v, there := enc.Fields[f.Key]; there {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}

// heldBack counts messages that came too soon after one like them. The client has a dozen different ones.
type heldBack struct {
	mu    sync.Mutex // protects following fields
	since map[string]time.Time
	count map[string]int
}

// pass reports whether a message may be logged, and how many like it were not since the last that was.
func (h *heldBack) pass(message string, now time.Time) (more int, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if last, seen := h.since[message]; seen && now.Sub(last) < quietFor {
		h.count[message]++
		return 0, false
	}
	more = h.count[message]
	h.since[message], h.count[message] = now, 0
	return more, true
}
