package telemetry

import (
	"context"
	"log/slog"
	"time"
	"unicode/utf8"

	"github.com/rotatord/rotatord/internal/pool"
)

// maxError bounds what is logged of an error.
const maxError = 1024

// Rotated implements pool.Observer.
func (t *Telemetry) Rotated(r *pool.Rotation, took time.Duration) {
	t.metrics.rotations.WithLabelValues(t.poolLabel(r.Pool), r.Trigger.String(), pool.OutcomeRotated.String()).Inc()
	t.metrics.duration.Observe(took.Seconds())
	t.log.LogAttrs(context.Background(), slog.LevelInfo, "key rotated",
		slog.String("pool", r.Pool), slog.String("key", r.Key), slog.String("new_key", r.NewKey), slog.String("slot", r.Slot),
		slog.Int64("generation", r.Generation), slog.String("trigger", r.Trigger.String()),
		slog.String("source", clip(r.Source, pool.MaxSource)), slog.String("reason", clip(r.Reason, pool.MaxReason)),
		slog.String("request_id", r.RequestID), slog.String("rotation", r.ID), slog.Duration("took", took))
}

// Parked implements pool.Observer. It counts nothing: the calls that are told are counted, and what waits is a gauge.
func (t *Telemetry) Parked(p *pool.Pending) {
	t.log.Warn("no backup in stock: the rotation waits for one",
		"pool", p.Pool, "key", p.Key, "generation", p.Generation,
		"trigger", p.Trigger.String(), "source", clip(p.Source, pool.MaxSource), "reason", clip(p.Reason, pool.MaxReason),
		"request_id", p.RequestID)
}

// Answered implements pool.Observer. A call that made a rotation, or found that it has to wait, is told by Rotated and
// Parked; all others are summed up.
func (t *Telemetry) Answered(l pool.Life, trigger pool.Trigger, source, outcome string, shared bool, _ time.Duration) {
	label, made := outcomeLabel(outcome, shared)
	if made {
		return
	}
	t.metrics.rotations.WithLabelValues(t.poolLabel(l.Pool), trigger.String(), label).Inc()
	if shared || label != pool.OutcomePending.String() {
		t.sums.add(l, caller{trigger.String(), clip(source, pool.MaxSource)}, label)
	}
}

// Conflict implements pool.Observer.
func (t *Telemetry) Conflict(l pool.Life, cause string) {
	if cause == "" {
		cause = outcomeOther
	}
	t.metrics.conflicts.WithLabelValues(cause).Inc()
	t.log.Info("commit lost to somebody else's change; deciding again", life(l, "cause", cause)...)
}

// TookOver implements pool.Observer.
func (t *Telemetry) TookOver(l pool.Life, holder string, after time.Duration) {
	t.metrics.takeovers.Inc()
	t.log.Warn("lock taken over from a holder that did not finish in time", life(l, "holder", holder, "after", after)...)
}

// OutcomeUnknown implements pool.Observer. The first attempt is a warning; further ones are only about the same write.
func (t *Telemetry) OutcomeUnknown(poolName, subject string, attempt int, err error) {
	t.metrics.unknowns.Inc()
	level := slog.LevelWarn
	if attempt > 1 {
		level = slog.LevelDebug
	}
	t.log.Log(context.Background(), level, "etcd did not say whether a write was applied; sending it again",
		"pool", poolName, "subject", subject, "attempt", attempt, "error", errorText(err))
}

// life are the fields of a life, followed by more. A generation of 0 means that the caller gave none.
func life(l pool.Life, more ...any) []any {
	fields := []any{"pool", l.Pool, "key", l.Key}
	if l.Generation != 0 {
		fields = append(fields, "generation", l.Generation)
	}
	return append(fields, more...)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return clip(err.Error(), maxError)
}

// clip bounds a caller's text to max bytes without cutting a character in two.
func clip(text string, max int) string {
	if len(text) <= max {
		return text
	}
	for max > 0 && !utf8.RuneStart(text[max]) {
		max--
	}
	return text[:max]
}
