package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rotatord/rotatord/internal/pool"
)

// phaseMetrics are about what keys need before they are in stock and after they were retired.
type phaseMetrics struct {
	reconciled *prometheus.CounterVec
	skipped    *prometheus.CounterVec
	asked      *prometheus.HistogramVec
}

func newPhaseMetrics() phaseMetrics {
	return phaseMetrics{
		reconciled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_reconcile_total",
			Help: "What handlers of phases wanted when a record was read, by the kind of record (stock: keys in preparation, retired) and its phase. " +
				"result is a transition (intended, minted, stocked, failed, revoked, orphaned, purged, deleted, discarded), a call (mint, find, verify, revoke), " +
				"put_off, or what is waited for (waiting, grace, retention, paused, held, behind, left_alone, no_provider_here, given_up).",
		}, []string{"kind", "phase", "result"}),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_reconcile_skipped_total",
			Help: "Records that a handler passed over. reason=observed_generation_match: the phase has done its work for the generation that is wanted.",
		}, []string{"kind", "reason"}),
		asked: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "rotator_provider_call_duration_seconds",
			Help:    "Time of calls to providers. outcome=failed also counts those of which it is not known what they did.",
			Buckets: []float64{0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10},
		}, []string{"call", "outcome"}),
	}
}

func (m phaseMetrics) register(to prometheus.Registerer) {
	to.MustRegister(m.reconciled, m.skipped, m.asked)
}

// Reconciled implements lifecycle.Observer.
func (t *Telemetry) Reconciled(kind pool.Kind, phase pool.Phase, result string) {
	t.phases.reconciled.WithLabelValues(string(kind), phase.String(), result).Inc()
}

// Skipped implements lifecycle.Observer.
func (t *Telemetry) Skipped(kind pool.Kind) {
	t.phases.skipped.WithLabelValues(string(kind), "observed_generation_match").Inc()
}

// Moved implements lifecycle.Observer.
func (t *Telemetry) Moved(rec pool.Record, e *pool.Event) {
	if e == nil {
		return
	}
	fields := []any{"pool", e.Pool, "event", string(e.Type), "subject", e.Subject, "phase", e.Phase.String(), "reason", pool.Clip(e.Reason, pool.MaxReason)}
	switch e.Type {
	case pool.EventKeyOrphaned, pool.EventKeyMintFailed, pool.EventStockLow:
		t.log.Warn("a key or a pool's stock needs attention", fields...)
	default:
		t.log.Info("a key has moved on", fields...)
	}
}

// Asked implements lifecycle.Observer.
func (t *Telemetry) Asked(rec pool.Record, call, problem string, took time.Duration) {
	outcome := "done"
	if problem != "" {
		outcome = "failed"
		ref := rec.Ref()
		t.log.Warn("a provider's call did not work", "pool", ref.Pool, "key", ref.Name, "call", call, "problem", pool.Clip(problem, maxError), "took", took)
	}
	t.phases.asked.WithLabelValues(call, outcome).Observe(took.Seconds())
}

// phaseGauges is a collector of what keys are going through at the moment of the scrape.
type phaseGauges struct {
	Config
	keys, age, min, low *prometheus.Desc
}

func newPhaseGauges(cfg Config) *phaseGauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help+sameEverywhere, labels, nil)
	}
	return &phaseGauges{
		Config: cfg,
		keys:   desc("rotator_phase_keys", "Keys in preparation and retired keys, by phase.", "pool", "phase"),
		age:    desc("rotator_phase_age_seconds", "How long the key that has been longest in the phase has been in it.", "pool", "phase"),
		min:    desc("rotator_stock_min", "The least stock that the pool's policy wants; only for pools with one.", "pool"),
		low:    desc("rotator_stock_low", "1 if the pool has fewer backups than its policy wants, else 0; only for pools with one.", "pool"),
	}
}

// Describe implements prometheus.Collector.
func (g *phaseGauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.keys, g.age, g.min, g.low} {
		ch <- d
	}
}

// inPhase is how many keys are in a phase, and since when the first.
type inPhase struct {
	keys  int
	since time.Time
}

type stockFigures struct {
	phases map[pool.Phase]inPhase
	policy *pool.StockPolicy
	stock  int
}

// Collect implements prometheus.Collector.
func (g *phaseGauges) Collect(ch chan<- prometheus.Metric) {
	select {
	case <-g.Mirror.Loaded():
	default:
		return
	}
	now := g.Now()
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for name, f := range countPhases(g.Mirror) {
		for phase, in := range f.phases {
			send(g.keys, float64(in.keys), name, phase.String())
			age := 0.0
			if !in.since.IsZero() {
				age = max(0, now.Sub(in.since).Seconds())
			}
			send(g.age, age, name, phase.String())
		}
		if f.policy != nil {
			send(g.min, float64(f.policy.Min), name)
			send(g.low, oneIf(f.stock < f.policy.Min), name)
		}
	}
}

// countPhases counts under the mirror's lock and leaves the rest to be done outside it.
func countPhases(m *pool.Mirror) map[string]stockFigures {
	pools := make(map[string]stockFigures)
	m.Read(func(s *pool.Snapshot) {
		for name := range s.Pools {
			if p := s.Pool(name); p != nil {
				pools[name] = stockFigures{phasesOf(p), p.Pool.Spec.Stock, p.Stock.Len()}
			}
		}
	})
	return pools
}

// phasesOf always has the phases that need attention, so that an alert on one is not silent for want of a series.
func phasesOf(p *pool.PoolState) map[pool.Phase]inPhase {
	phases := map[pool.Phase]inPhase{pool.PhaseFailed: {}, pool.PhaseOrphaned: {}}
	add := func(phase pool.Phase, since time.Time) {
		in := phases[phase]
		if in.keys++; in.since.IsZero() || since.Before(in.since) {
			in.since = since
		}
		phases[phase] = in
	}
	for _, prep := range p.Preparing {
		add(prep.Phase, sinceOf(prep.Work, prep.PlannedAt))
	}
	for _, r := range p.Retired {
		add(r.Phase, sinceOf(r.Work, r.RetiredAt))
	}
	return phases
}

func sinceOf(w *pool.Work, otherwise time.Time) time.Time {
	if w == nil || w.PhaseSince.IsZero() {
		return otherwise
	}
	return w.PhaseSince
}
