// Package telemetry tells operators what the rotations of this replica come to: metrics for Prometheus, one log line
// for each thing that happens seldom, and sums of what happens often.
//
// It promises that nothing it is told blocks the teller; that what callers send cannot make the number of metrics or
// log lines grow without bound (sources and key ids never become labels, pool names only if the pool exists, and lines
// about single calls are sums over a bounded number of keys and callers); and that callers' text is only ever logged as
// the value of a field. It is never given a secret.
//
// It does not promise that every call is in the log, nor that counters survive a restart: the audit events and the
// rotation records are for that.
package telemetry

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/rotatord/rotatord/internal/pool"
)

// SumEvery is how often the sums of calls are logged.
const SumEvery = 10 * time.Second

// Config is what a Telemetry works with.
type Config struct {
	Log        *slog.Logger
	Registerer prometheus.Registerer // gets all metrics, Go's and the process's among them
	Mirror     *pool.Mirror
	// SessionAlive and Quorum are asked at each scrape and must not block. Without one its metric is left out.
	SessionAlive func() bool
	Quorum       func() bool
	Now          func() time.Time // default: time.Now
}

// Telemetry is the pool.Observer of the service. All methods are safe for concurrent use.
type Telemetry struct {
	log     *slog.Logger
	mirror  *pool.Mirror
	metrics metrics
	phases  phaseMetrics
	sums    sums
}

var _ pool.Observer = (*Telemetry)(nil)

// New registers the metrics; it panics if they are registered already. Run must be called for the sums to be logged.
func New(cfg Config) *Telemetry {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &Telemetry{log: cfg.Log, mirror: cfg.Mirror, metrics: newMetrics(), phases: newPhaseMetrics()}
	t.metrics.register(cfg.Registerer)
	t.phases.register(cfg.Registerer)
	cfg.Registerer.MustRegister(
		newGauges(cfg),
		newPhaseGauges(cfg),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return t
}

// Run logs the sums of calls every SumEvery, and once more when ctx ends. It returns after that.
func (t *Telemetry) Run(ctx context.Context) {
	tick := time.NewTicker(SumEvery)
	defer tick.Stop()
	known := make(map[string]bool)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.sums.log(t.log)
			return
		}
		t.sums.log(t.log)
		known = t.forget(known)
	}
}

// forget drops the metrics of pools that were there at the last look and are not any more, so that pools that come and
// go do not pile up. It returns the pools that are there.
func (t *Telemetry) forget(before map[string]bool) (now map[string]bool) {
	now = make(map[string]bool)
	t.mirror.Read(func(s *pool.Snapshot) {
		for name := range s.Pools {
			if s.Pool(name) != nil {
				now[name] = true
			}
		}
	})
	for name := range before {
		if !now[name] {
			for _, c := range t.metrics.ofPools() {
				c.DeletePartialMatch(prometheus.Labels{"pool": name})
			}
		}
	}
	return now
}
