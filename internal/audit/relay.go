package audit

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rotatord/rotatord/internal/cloudevent"
	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/specpb"
)

const (
	relayBatches = 32          // that wait for the sink
	relayMost    = 1000        // events of one write to the sink
	relayPause   = time.Second // before a relay that failed begins again
	relayTries   = 5           // in a row that come to nothing, before another replica gets its turn
	// relayBeat is how often a relay says on record that it is there, although nothing happens. One that has not said so
	// for long was switched off, and holds up the deletion of old events.
	relayBeat = time.Hour
)

// RelayConfig is what a Relay needs. All fields are required.
type RelayConfig struct {
	Name       string // of its record and its role
	Sink       Sink
	Events     pool.EventLog
	Store      Store
	Lead       Leader
	Revision   func() int64 // the newest one known
	Now        func() time.Time
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Relay appends events to a sink.
type Relay struct {
	RelayConfig
	sink     *bounded
	taken    int // events by the sink; of the goroutine that relays
	events   prometheus.Counter
	failures prometheus.Counter
	waiting  atomic.Pointer[backlog] // nil: nothing is known to wait
	seconds  prometheus.GaugeFunc
	behind   prometheus.GaugeFunc
}

// backlog is what the sink has not taken: the lag is reckoned from it at each scrape, for the sink may hang.
type backlog struct {
	since time.Time // when the first of it happened, or a little before
	after int64     // revision up to which everything was taken
}

// NewRelay returns a relay that does nothing until Run.
func NewRelay(c RelayConfig) (*Relay, error) {
	labels := prometheus.Labels{"relay": c.Name}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
	}
	r := &Relay{RelayConfig: c, sink: newBounded(c.Sink)}
	lag := func(name, help string, of func(backlog) float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			if b := r.waiting.Load(); b != nil {
				return max(of(*b), 0)
			}
			return 0
		})
	}
	r.events = counter("rotator_relay_events_total", "Events that the relay's sink has taken from this replica. An event that is delivered again counts again.")
	r.failures = counter("rotator_relay_failures_total", "Times this replica's relay could not go on, because of its sink or of etcd, and began again at its cursor.")
	r.seconds = lag("rotator_relay_lag_seconds", "How long ago the first event happened that the sink has not taken; 0 if none is waiting, and at replicas that do not relay.",
		func(b backlog) float64 { return r.Now().Sub(b.since).Seconds() })
	r.behind = lag("rotator_relay_lag_revisions", "How many etcd revisions the relay is behind while events are waiting; 0 if none are, and at replicas that do not relay.",
		func(b backlog) float64 { return float64(r.Revision() - b.after) })
	for _, m := range []prometheus.Collector{r.events, r.failures, r.seconds, r.behind} {
		if err := c.Registerer.Register(m); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Run relays whenever this replica leads the relay's role, until ctx ends.
func (r *Relay) Run(ctx context.Context) {
	r.Lead(ctx, "relay-"+r.Name, r.lead)
}

// lead relays until ctx ends, or until the sink has taken nothing for several tries: it may be better at another replica.
func (r *Relay) lead(ctx context.Context) {
	defer r.waiting.Store(nil)
	for tries := 0; tries < relayTries; {
		before := r.taken
		err := r.once(ctx)
		if ctx.Err() != nil {
			return
		}
		r.failures.Inc()
		r.Log.Warn("relay of events interrupted; it begins again at its cursor", "relay", r.Name, "error", err)
		if tries++; r.taken != before {
			tries = 0
		}
		pause(ctx, relayPause)
	}
	r.Log.Error("relay of events failed again and again; it is left to another replica, if there is one", "relay", r.Name, "tries", relayTries)
}

// once relays from the cursor on until something goes wrong.
func (r *Relay) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cursor, err := r.begin(ctx)
	if err != nil {
		return err
	}
	batches, followed := make(chan pool.EventBatch, relayBatches), make(chan error, 1)
	go func() {
		query := pool.EventsQuery{After: pool.EventCursor{Revision: cursor.Revision, ID: cursor.EventID}}
		followed <- r.Events.Follow(ctx, query, func(b pool.EventBatch) error {
			select {
			case batches <- b:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	beat := time.NewTicker(relayBeat)
	defer beat.Stop()
	for {
		select {
		case b := <-batches:
			cursor, err = r.deliver(ctx, cursor, gather(b, batches))
		case <-beat.C:
			cursor, err = r.move(ctx, cursor, pool.EventCursor{Revision: cursor.Revision, ID: cursor.EventID})
		case err = <-followed:
			if pool.ReasonOf(err) == pool.ReasonRevisionInFuture {
				err = r.restart(ctx, cursor, err)
			}
			return err
		}
		if err != nil {
			cancel()
			<-followed
			return err
		}
	}
}

// begin reads the cursor. A relay without one begins with all that is on record, and says so there at once: from the
// next round of deletions on nothing is deleted before it has passed.
func (r *Relay) begin(ctx context.Context) (*pool.Relay, error) {
	cursor, err := read(ctx, r.Store, r.Name)
	if err != nil || cursor != nil {
		return cursor, err
	}
	return put(ctx, r.Store, nil, pool.Relay{Name: r.Name, UpdatedAt: r.Now().UTC()})
}

// restart begins anew with all that is on record: etcd is older than the cursor, so it was restored from a snapshot, and
// what came after that has other revisions.
func (r *Relay) restart(ctx context.Context, cursor *pool.Relay, cause error) error {
	r.Log.Error("the relay's cursor is beyond the state of etcd, which must have been restored: all events on record are delivered again", "relay", r.Name, "error", cause)
	_, err := r.move(ctx, cursor, pool.EventCursor{})
	return err
}

// gather takes what else is waiting, so that the sink syncs and the cursor moves once for all of it.
func gather(b pool.EventBatch, more <-chan pool.EventBatch) pool.EventBatch {
	for len(b.Events) < relayMost {
		select {
		case next := <-more:
			next.Events = append(b.Events[:len(b.Events):len(b.Events)], next.Events...)
			b = next
		default:
			return b
		}
	}
	return b
}

// deliver gives events to the sink and then moves the cursor. A crash between the two has them delivered again.
func (r *Relay) deliver(ctx context.Context, cursor *pool.Relay, b pool.EventBatch) (*pool.Relay, error) {
	if len(b.Events) == 0 { // it only says how far it is
		if b.Live {
			r.waiting.Store(nil)
		}
		return cursor, nil
	}
	var lines []byte
	for _, e := range b.Events {
		line, err := cloudevent.Line(specpb.FromEvent(e))
		if err != nil {
			return nil, err
		}
		lines = append(lines, line...)
	}
	r.waiting.Store(&backlog{b.Events[0].Time, b.Events[0].Revision - 1})
	if err := r.sink.write(ctx, lines); err != nil {
		return nil, err
	}
	r.events.Add(float64(len(b.Events)))
	r.taken += len(b.Events)
	last := b.Events[len(b.Events)-1]
	r.waiting.Store(nil)
	if !b.Live {
		r.waiting.Store(&backlog{last.Time, last.Revision})
	}
	return r.move(context.WithoutCancel(ctx), cursor, last.Cursor()) // a stop in between need not have them delivered again
}

// move moves the cursor if it is where this relay has put it. One that has lost its role meanwhile moves nothing.
func (r *Relay) move(ctx context.Context, from *pool.Relay, to pool.EventCursor) (*pool.Relay, error) {
	return put(ctx, r.Store, from, pool.Relay{Name: r.Name, Revision: to.Revision, EventID: to.ID, UpdatedAt: r.Now().UTC()})
}
