package telemetry

import (
	"context"
	"log/slog"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// maxError bounds what is logged of an error.
const maxError = 1024

// Rotated implements pool.Observer.
func (t *Telemetry) Rotated(r *pool.Rotation, took time.Duration) {
	t.metrics.rotations.WithLabelValues(t.poolLabel(r.Pool), r.Trigger.String(), pool.OutcomeRotated.String()).Inc()
	t.metrics.duration.Observe(took.Seconds())
	ctx := context.Background()
	if !t.log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	line := slog.NewRecord(time.Now(), slog.LevelInfo, "key rotated", 0) // a Logger would look for its caller, a third of the cost
	line.AddAttrs(slog.String("pool", r.Pool), slog.String("key", r.Key), slog.String("new_key", r.NewKey), slog.String("slot", r.Slot),
		slog.Int64("generation", r.Generation), slog.String("trigger", r.Trigger.String()),
		slog.String("source", pool.Clip(r.Source, pool.MaxSource)), slog.String("reason", pool.Clip(r.Reason, pool.MaxReason)),
		slog.String("request_id", r.RequestID), slog.String("rotation", r.ID), slog.Duration("took", took))
	_ = t.log.Handler().Handle(ctx, line) // as a Logger does
}

// Parked implements pool.Observer. It counts nothing: the calls that are told are counted, and what waits is a gauge.
func (t *Telemetry) Parked(p *pool.Pending) {
	t.log.Warn("no backup in stock: the rotation waits for one",
		"pool", p.Pool, "key", p.Key, "generation", p.Generation,
		"trigger", p.Trigger.String(), "source", pool.Clip(p.Source, pool.MaxSource), "reason", pool.Clip(p.Reason, pool.MaxReason),
		"request_id", p.RequestID)
}

// Blocked implements pool.Observer.
func (t *Telemetry) Blocked(l pool.Life, err error) {
	t.log.Warn("a rotation that waits for stock cannot be made although there is some; it is tried again", life(l, "error", errorText(err))...)
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
		t.sums.add(l, caller{trigger.String(), pool.Clip(source, pool.MaxSource)}, label)
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

// BoundReached implements pool.Observer. Who is refused is counted with the answers.
func (t *Telemetry) BoundReached(p *pool.Pool, key string) {
	t.metrics.bounds.WithLabelValues(p.Name).Inc()
	limit, window := p.Spec.Bound.Limit()
	t.log.Warn("the pool's rotation bound is reached: triggers are refused and their keys cool down until a rotation is possible again; if the keys are surely bad and not the upstream, override or raise it",
		"pool", p.Name, "rotations", limit, "window", window, "key", key)
}

// OutcomeUnknown implements pool.Observer. The first attempt is a warning; further ones are only about the same write.
func (t *Telemetry) OutcomeUnknown(poolName, subject string, attempt int, err error) {
	t.metrics.unknowns.Inc()
	level := slog.LevelWarn
	if attempt > 1 {
		level = slog.LevelDebug
	}
	t.log.Log(context.Background(), level, "etcd did not say whether a write was applied; looking into it",
		"pool", poolName, "subject", subject, "attempt", attempt, "error", errorText(err))
}

// Reported implements pool.Observer. A verdict that changed something has a line of its own.
func (t *Telemetry) Reported(l pool.Life, v pool.Verdict, rule string) {
	t.metrics.reports.WithLabelValues(t.poolLabel(l.Pool), v.String(), rule).Inc()
}

// CooledDown implements pool.Observer.
func (t *Telemetry) CooledDown(a *pool.Active, trigger pool.Trigger, source string) {
	t.log.Info("key cools down", life(a.Life(),
		"slot", a.Slot, "status", a.Status.String(), "until", a.StatusUntil.UTC(), "rule", a.StatusReason,
		"trigger", trigger.String(), "source", pool.Clip(source, pool.MaxSource))...)
}

// IncidentBegan implements pool.Observer.
func (t *Telemetry) IncidentBegan(poolName string, i *pool.Incident) {
	t.metrics.began.WithLabelValues(t.poolLabel(poolName)).Inc()
	t.log.Warn("incident: so many keys were reported bad that the upstream must be at fault; reports change nothing until it ends",
		"pool", poolName, "keys", i.Keys, "until", i.Until.UTC())
}

// IncidentEnded implements pool.Observer.
func (t *Telemetry) IncidentEnded(poolName string, trigger pool.Trigger) {
	t.log.Info("incident ended before its time; reports count again", "pool", poolName, "trigger", trigger.String())
}

// Probed implements pool.Observer.
func (t *Telemetry) Probed(l pool.Life, result pool.ProbeResult, reason string, took time.Duration) {
	t.metrics.probes.WithLabelValues(t.poolLabel(l.Pool), result.String()).Inc()
	t.log.Info("upstream asked about a key that was reported bad",
		life(l, "result", result.String(), "answer", pool.Clip(reason, maxError), "took", took)...)
}

// SpendChecked implements spend.Observer.
func (t *Telemetry) SpendChecked(poolName, result string) {
	t.metrics.spendChecks.WithLabelValues(t.poolLabel(poolName), result).Inc()
}

// SpendDue implements spend.Observer.
func (t *Telemetry) SpendDue(keys int, lag time.Duration) {
	t.metrics.spendDue.Set(float64(keys))
	t.metrics.spendLag.Set(lag.Seconds())
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
	return pool.Clip(err.Error(), maxError)
}
