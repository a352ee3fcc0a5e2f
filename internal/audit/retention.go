package audit

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rotatord/rotatord/internal/pool"
)

const (
	purgeBatch = 100                    // records deleted by one transaction
	purgePause = 100 * time.Millisecond // after a batch: deleting must not crowd out rotations
	// RetentionEvery is how often old records are looked for.
	RetentionEvery = 10 * time.Minute
)

// RecordStore is where old records are found.
type RecordStore interface {
	Store
	// EventPools names the pools of which events are on record.
	EventPools(ctx context.Context) ([]string, error)
	// EventsByID reads events of a pool in the order of their ids, from the first one after an id on.
	EventsByID(ctx context.Context, pool, after string, limit int) ([]*pool.RecordedEvent, error)
}

// RetentionConfig is what a Retention needs. All fields but Every are required.
type RetentionConfig struct {
	Store      RecordStore
	Mirror     *pool.Mirror
	Lead       Leader
	Now        func() time.Time
	Every      time.Duration // default: RetentionEvery
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Retention deletes events and records of rotations whose time has passed.
//
// The records of rotations that are gone are not missed by what follows: a trigger for the life that one of them ended
// names a generation that no key has any more, and is answered "not found".
type Retention struct {
	RetentionConfig
	purged  *prometheus.CounterVec
	blocked prometheus.Gauge
}

// NewRetention returns a retention that does nothing until Run.
func NewRetention(c RetentionConfig) (*Retention, error) {
	c.Every = cmp.Or(c.Every, RetentionEvery)
	r := &Retention{
		RetentionConfig: c,
		purged: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotator_retention_purged_total",
			Help: "Records this replica deleted because their time had passed, by kind.",
		}, []string{"kind"}),
		blocked: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rotator_retention_blocked",
			Help: "1 while the replica that deletes old records leaves some because a relay on record has not passed them.",
		}),
	}
	for _, m := range []prometheus.Collector{r.purged, r.blocked} {
		if err := c.Registerer.Register(m); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Run deletes whenever this replica leads the role "retention", until ctx ends.
func (r *Retention) Run(ctx context.Context) {
	r.Lead(ctx, "retention", func(ctx context.Context) {
		defer r.blocked.Set(0)
		for first := true; ; first = false {
			wait := r.Every
			if first {
				wait /= 10 // a new leader need not hurry, and a short-lived one should come to something
			}
			if !pause(ctx, wait) {
				return
			}
			if err := r.once(ctx); err != nil && ctx.Err() == nil {
				r.Log.Warn("deleting old records interrupted", "error", err)
			}
		}
	})
}

// round is one look at everything.
type round struct {
	*Retention
	passed *pool.EventCursor // by all relays on record; nil: there are none
	held   bool              // something was left because of a relay
}

func (r *Retention) once(ctx context.Context) error {
	passed, err := r.relayed(ctx)
	if err != nil {
		return err
	}
	p := &round{Retention: r, passed: passed}
	err = p.rotations(ctx)
	if err == nil {
		err = p.events(ctx)
	}
	r.showBlocked(p.held)
	return err
}

func (r *Retention) showBlocked(blocked bool) {
	r.blocked.Set(0)
	if blocked {
		r.blocked.Set(1)
	}
}

// relayed is how far the relay that is furthest behind has come. A relay that comes later begins with what is left.
func (r *Retention) relayed(ctx context.Context) (least *pool.EventCursor, err error) {
	recs, _, err := r.Store.List(ctx, pool.KindRelay, "", 0)
	for _, rec := range recs {
		c := pool.EventCursor{} // of one that cannot be read, too
		if relay, ok := rec.(*pool.Relay); ok {
			c = pool.EventCursor{Revision: relay.Revision, ID: relay.EventID}
		}
		if least == nil || c.Compare(*least) < 0 {
			least = &c
		}
	}
	return least, err
}

// due reports whether a record may be deleted: its time has passed and all relays have passed its event.
func (p *round) due(at time.Time, keep time.Duration, c pool.EventCursor) bool {
	if at.IsZero() || at.Add(keep).After(p.Now()) {
		return false
	}
	if p.passed == nil || c.Compare(*p.passed) <= 0 {
		return true
	}
	if c.Revision > p.passed.Revision || c.ID != lastID { // else it goes with the next event
		p.held = true
	}
	return false
}

// rotations deletes the records of rotations. One's event shares its revision.
func (p *round) rotations(ctx context.Context) error {
	for _, found := range p.oldRotations() {
		for chunk := range slices.Chunk(found.guards, purgeBatch) {
			if err := p.purge(ctx, pool.KindRotation, pool.Same(found.pool), chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// oldRotations are the records of a pool that are due, as they were read.
type oldRotations struct {
	pool   *pool.Pool
	guards []pool.Guard
}

func (p *round) oldRotations() (found []oldRotations) {
	p.Mirror.Read(func(s *pool.Snapshot) {
		for _, state := range s.Pools {
			if state.Pool == nil || state.Pool.Deleting {
				continue // its deletion takes them
			}
			old := oldRotations{pool: state.Pool}
			for _, rotations := range state.Rotations {
				for _, rot := range rotations {
					if p.due(rot.CommittedAt, state.Pool.Spec.RecordsFor(), pool.EventCursor{Revision: rot.ModRevision, ID: lastID}) {
						old.guards = append(old.guards, pool.Same(rot))
					}
				}
			}
			if len(old.guards) > 0 {
				found = append(found, old)
			}
		}
	})
	return found
}

// lastID is greater than any id: a rotation's event is not known by its id here, so the whole revision must have been
// passed.
const lastID = "\xff"

// events deletes events, pool by pool, oldest first.
func (p *round) events(ctx context.Context) error {
	names, err := p.Store.EventPools(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := p.eventsOf(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// eventsOf deletes a pool's events until it comes to a batch with none to delete. One that cannot be read has no time: it
// stays, and does not keep others. A pool that was deleted has the default retention.
func (p *round) eventsOf(ctx context.Context, name string) error {
	state, err := p.Store.Read(ctx, pool.PoolRef(name))
	if err != nil {
		return err
	}
	keep, guard := pool.Spec{}.RecordsFor(), pool.Absent(pool.PoolRef(name))
	if state.Has(pool.PoolRef(name)) {
		rec, err := pool.Find[*pool.Pool](state, pool.PoolRef(name))
		if err != nil {
			return nil // nobody knows how long they are to be kept
		}
		keep, guard = rec.Spec.RecordsFor(), pool.Same(rec)
	}
	for after := ""; ; {
		events, err := p.Store.EventsByID(ctx, name, after, purgeBatch)
		if err != nil {
			return err
		}
		var due []pool.Guard
		end := len(events) == 0
		for _, e := range events {
			after = e.ID
			if p.due(e.Time, keep, e.Cursor()) {
				due = append(due, pool.Unchanged(pool.EventRef(name, e.ID), e.Revision))
			} else if !e.Time.IsZero() {
				end = true
			}
		}
		if len(due) == 0 {
			if end {
				return nil
			}
			continue
		}
		if err := p.purge(ctx, pool.KindEvent, guard, due); err != nil {
			return err
		}
	}
}

// purge deletes records that are as they were read, if the pool is. One transaction that was not made, or is not known to
// have been, is left to the next round: deleting twice what is gone does no harm.
func (p *round) purge(ctx context.Context, kind pool.Kind, of pool.Guard, guards []pool.Guard) error {
	t := &pool.Txn{If: append([]pool.Guard{of}, guards...)}
	for _, g := range guards {
		t.Delete = append(t.Delete, g.Ref)
	}
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	res, err := p.Store.Apply(bounded, t)
	if err != nil {
		return err
	}
	if res.Applied {
		p.purged.WithLabelValues(string(kind)).Add(float64(len(guards)))
	}
	if !pause(ctx, purgePause) {
		return ctx.Err()
	}
	return nil
}
