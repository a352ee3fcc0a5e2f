package telemetry

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rotatord/rotatord/internal/pool"
)

// unknownPool stands for all pools that do not exist: callers may send any name.
const unknownPool = "unknown"

// Outcomes that are not pool's own.
const (
	outcomeRepeated = "repeated" // the request that made the rotation was sent again
	outcomeOther    = "other"    // no outcome and no refusal: mostly a caller who went away
)

// metrics are what is counted when it happens.
type metrics struct {
	rotations *prometheus.CounterVec
	duration  prometheus.Histogram
	conflicts *prometheus.CounterVec
	takeovers prometheus.Counter
	unknowns  prometheus.Counter
	reports   *prometheus.CounterVec
	probes    *prometheus.CounterVec
	began     *prometheus.CounterVec
	bounds    *prometheus.CounterVec

	spendChecks        *prometheus.CounterVec
	spendDue, spendLag prometheus.Gauge
}

// newMetrics is long and straight: its substance is the help texts.
func newMetrics() metrics {
	return metrics{
		rotations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_rotations_total",
			Help: "What triggers came to at this replica. outcome=rotated counts each rotation once, at the replica that committed it, " +
				"so its sum over all replicas is the number of backups used, but for those of which that replica could not learn in time whether they were made; also those that had waited for stock, for which nobody is calling any more. " +
				"All other outcomes count answered calls that made no rotation: already_rotated (another call's rotation was the answer), " +
				"repeated (the same request_id was sent again), pending (waits for stock), canceled (the caller went away), " +
				"or why the call was refused, such as pool_paused or not_applied. pool=unknown stands for pools that do not exist.",
		}, []string{"pool", "trigger", "outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "rotator_rotation_duration_seconds",
			Help: "Time from the first caller's request to the commit, of the rotations this replica committed.",
			Buckets: []float64{
				0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5,
			},
		}),
		conflicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_commit_conflicts_total",
			Help: "Commits of this replica that were not applied because somebody else had changed what they rest on, by what had changed. " +
				"Each was decided anew, so some are normal; a high rate means that replicas or operators work against each other.",
		}, []string{"cause"}),
		takeovers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rotator_lock_takeovers_total",
			Help: "Locks this replica took over from a holder that did not finish in time, because it died, was paused, or etcd was slow for it.",
		}),
		unknowns: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rotator_unknown_outcomes_total",
			Help: "Answers, or missing answers, of etcd that left open whether a write was applied. Each was looked into: by sending the guarded write again, or, of a rotation that was sent with its campaign, by reading what etcd holds.",
		}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_reports_total",
			Help: "Reports of failures that this replica has answered, by verdict (rotate, cool_down, ignore) and by the rule that matched or what overruled it " +
				"(incident, late, disabled, exhausted, pending, probe-alive, probe-unreachable).",
		}, []string{"pool", "verdict", "rule"}),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_probes_total",
			Help: "Times this replica has asked an upstream about a key before rotating it, by result (alive, dead, unreachable).",
		}, []string{"pool", "result"}),
		began: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_incidents_total",
			Help: "Incidents that this replica was the one to recognise, so the sum over all replicas is their number.",
		}, []string{"pool"}),
		spendChecks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_spend_checks_total",
			Help: "Keys whose spend this replica has looked at, by what came of it: ok (enough is left), failed (it could not be read), rotated, " +
				"already_rotated (somebody else was first), held (it has to be rotated and cannot be: paused, at its bound, without stock). One replica at a time checks.",
		}, []string{"pool", "result"}),
		spendDue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rotator_spend_checks_due",
			Help: "Keys whose spend should be looked at now, at the last look. 0 at replicas that do not check.",
		}),
		spendLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rotator_spend_check_lag_seconds",
			Help: "For how long the most overdue of them has been due. It grows if upstreams answer slowly. 0 at replicas that do not check.",
		}),
		bounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_rotation_bound_reached_total",
			Help: "Windows in which a pool's rotation bound was found reached. Each is counted once, at the replica that put it on record, so add replicas up. " +
				"Refused triggers are in rotator_rotations_total with outcome=rotation_bound.",
		}, []string{"pool"}),
	}
}

func (m metrics) register(to prometheus.Registerer) {
	to.MustRegister(m.rotations, m.duration, m.conflicts, m.takeovers, m.unknowns, m.reports, m.probes, m.began, m.bounds, m.spendChecks, m.spendDue, m.spendLag)
}

// ofPools are those with a series, or several, for each pool.
func (m metrics) ofPools() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{m.rotations, m.spendChecks, m.reports, m.probes, m.began, m.bounds}
}

// poolLabel is a pool's name if the pool exists.
func (t *Telemetry) poolLabel(name string) (label string) {
	label = unknownPool
	t.mirror.Read(func(s *pool.Snapshot) {
		if s.Pool(name) != nil {
			label = name
		}
	})
	return label
}

// outcomeLabel names what a call came to. made: its own work made the rotation.
func outcomeLabel(outcome string, shared bool) (label string, made bool) {
	switch label = strings.ToLower(outcome); {
	case label == "":
		return outcomeOther, false
	case label == pool.OutcomeRotated.String() && shared:
		return outcomeRepeated, false
	}
	return label, label == pool.OutcomeRotated.String()
}
