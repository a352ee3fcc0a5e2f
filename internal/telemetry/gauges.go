package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/version"
)

// gauges is a collector of what is so at the moment of the scrape. Nothing is kept between scrapes, so there is nothing
// that could be wrong.
type gauges struct {
	Config
	build version.Info

	backups, active, retired, pending, oldest, paused *prometheus.Desc
	incidents, spend, budget, left                    *prometheus.Desc
	revision, age, replicas, session, quorum, info    *prometheus.Desc
}

const sameEverywhere = " Every replica shows the same, so do not add replicas up."

func newGauges(cfg Config) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &gauges{
		Config: cfg, build: version.Get(),
		backups:   desc("rotator_backup_keys", "Keys in stock."+sameEverywhere, "pool"),
		active:    desc("rotator_active_keys", "Keys in service by their status now: a cool-down that has passed is healthy."+sameEverywhere, "pool", "status"),
		retired:   desc("rotator_retired_keys", "Keys that rotations took out of service."+sameEverywhere, "pool"),
		pending:   desc("rotator_pending_rotations", "Rotations that wait for stock."+sameEverywhere, "pool"),
		oldest:    desc("rotator_oldest_pending_seconds", "How long the longest waiting rotation has waited for stock, 0 if none waits."+sameEverywhere, "pool"),
		paused:    desc("rotator_pool_paused", "1 if an operator has paused the pool, so that nothing rotates, else 0."+sameEverywhere, "pool"),
		incidents: desc("rotator_incidents", "1 while the pool is in an incident: its upstream itself is taken to be at fault and reports change nothing; else 0."+sameEverywhere, "pool"),
		spend:     desc("rotator_pool_spend_usd", "What the pool's keys in service have spent, in dollars, as far as it is on record. Only of pools whose spend is watched."+sameEverywhere, "pool"),
		budget:    desc("rotator_pool_budget_usd", "The budgets of the same keys, in dollars."+sameEverywhere, "pool"),
		revision:  desc("rotator_mirror_revision", "The etcd revision up to which this replica has seen everything."),
		age:       desc("rotator_mirror_age_seconds", "Time since this replica's state was last known to be the newest. It grows while etcd has no quorum."),
		replicas:  desc("rotator_replicas", "Replicas with a live session, as this one sees it."),
		session:   desc("rotator_session_alive", "1 if this replica has a session with etcd, without which it does not rotate, else 0."),
		quorum:    desc("rotator_etcd_quorum", "1 if etcd answered this replica's last check with a quorum, else 0: then keys are served from memory and writes are refused."),
		info:      desc("rotator_build_info", "Always 1; the labels say which build this is.", "version", "go"),
		left:      desc("rotator_rotations_left", "Rotations that the pool's bound still allows in its window, as far as this replica knows. Pools without a bound have none."+sameEverywhere, "pool"),
	}
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		g.backups, g.active, g.retired, g.pending, g.oldest, g.paused, g.incidents, g.spend, g.budget, g.left,
		g.revision, g.age, g.replicas, g.session, g.quorum, g.info,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	send(g.info, 1, g.build.Version, g.build.Go)
	if g.SessionAlive != nil {
		send(g.session, oneIf(g.SessionAlive()))
	}
	if g.Quorum != nil {
		send(g.quorum, oneIf(g.Quorum()))
	}
	select {
	case <-g.Mirror.Loaded():
		g.collectMirror(send)
	default: // a 0 for what has not been looked at yet would be a lie
	}
}

func (g *gauges) collectMirror(send func(*prometheus.Desc, float64, ...string)) {
	now := g.Now()
	f := countAll(g.Mirror, now)
	send(g.revision, float64(f.revision))
	send(g.replicas, float64(f.replicas))
	send(g.age, max(0, now.Sub(g.Mirror.AsOf()).Seconds()))
	for name, p := range f.pools {
		send(g.backups, float64(p.backups), name)
		send(g.retired, float64(p.retired), name)
		send(g.pending, float64(p.pending), name)
		send(g.oldest, p.oldest.Seconds(), name)
		send(g.paused, oneIf(p.paused), name)
		send(g.incidents, oneIf(p.incident), name)
		if p.watched {
			send(g.spend, p.spend, name)
			send(g.budget, p.budget, name)
		}
		if p.left.Bounded {
			send(g.left, float64(p.left.Left), name)
		}
		for status, n := range p.active {
			send(g.active, float64(n), name, status.String())
		}
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// figures are the numbers of one revision.
type figures struct {
	revision int64
	replicas int
	pools    map[string]poolFigures
}

type poolFigures struct {
	backups, retired, pending int
	active                    map[pool.Status]int
	oldest                    time.Duration
	paused, incident, watched bool
	spend, budget             float64 // of keys of which both are known
	left                      pool.Allowance
}

// countAll counts under the mirror's lock and leaves the rest to be done outside it.
func countAll(m *pool.Mirror, now time.Time) (f figures) {
	f.pools = make(map[string]poolFigures)
	m.Read(func(s *pool.Snapshot) {
		f.revision, f.replicas = s.Revision, len(s.Replicas)
		for name := range s.Pools {
			if p := s.Pool(name); p != nil {
				counted := countPool(p, now)
				counted.left = s.Allowance(name, now)
				f.pools[name] = counted
			}
		}
	})
	return f
}

func countPool(p *pool.PoolState, now time.Time) poolFigures {
	f := poolFigures{
		backups: len(p.Backup), retired: len(p.Retired), pending: len(p.Pending), paused: p.Pool.Paused,
		incident: p.Pool.IncidentAt(now) != nil, watched: p.Pool.Spec.Spend != nil,
		// All usual statuses are there with a 0, so that an alert on one is not silent for want of a series.
		active: map[pool.Status]int{
			pool.StatusHealthy: 0, pool.StatusRateLimited: 0, pool.StatusExhausted: 0, pool.StatusError: 0, pool.StatusDisabled: 0,
		},
	}
	for _, a := range p.Active {
		f.active[known(a.StatusAt(now))]++
		if a.SpendUSD != nil && a.BudgetUSD != nil {
			f.spend += *a.SpendUSD
			f.budget += *a.BudgetUSD
		}
	}
	for _, w := range p.Pending {
		f.oldest = max(f.oldest, now.Sub(w.RequestedAt))
	}
	return f
}

// known takes all statuses of newer builds for one: two of them must not make one series twice.
func known(s pool.Status) pool.Status {
	if s < pool.StatusUnspecified || s > pool.StatusDisabled {
		return -1
	}
	return s
}
