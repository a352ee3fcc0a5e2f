package pool

import (
	"cmp"
	"context"
	"strconv"
)

// EventUnreadable is the type under which an event is delivered whose record cannot be read, so that its id is not
// missed. It is never written.
const EventUnreadable EventType = "dev.rotatord.event.unreadable.v1"

// RecordedEvent is an event as it is on record.
type RecordedEvent struct {
	Event
	Replica  string // that wrote it, as "rotatord/{replica}"
	Revision int64  // of its transaction
}

// Cursor is the event's place in the order of events.
func (e *RecordedEvent) Cursor() EventCursor { return EventCursor{e.Revision, e.ID} }

// EventCursor is a place in the order of events, which is by revision and then by id: several transactions can share a
// revision.
type EventCursor struct {
	Revision int64
	ID       string
}

// Compare orders places.
func (c EventCursor) Compare(d EventCursor) int {
	return cmp.Or(cmp.Compare(c.Revision, d.Revision), cmp.Compare(c.ID, d.ID))
}

// EventsQuery says which events are wanted: those after a place, of one pool or of all.
type EventsQuery struct {
	Pool  string // empty: all pools
	After EventCursor
	Once  bool // only those on record now
}

// EventBatch is some events in order, of whole places: the next batch begins after the last one's.
type EventBatch struct {
	Events   []*RecordedEvent
	Revision int64 // all events up to it were delivered with this batch and those before it
	Live     bool  // all that were on record when the query began were delivered
}

// EventLog is where events are read.
type EventLog interface {
	// Follow delivers events in order, none missing and none twice, until ctx ends, deliver returns an error, or the store
	// could not be read for some seconds. It returns nil only for a query with Once, after the last batch. Batches may be
	// empty and only say how far it is; the last one with Once does. While deliver blocks a bounded number of events is held.
	// Events that were purged before they could be delivered are left out: who must see all keeps a Relay on record.
	//
	// Its errors are ctx's, deliver's, ReasonRevisionInFuture if the query begins beyond the state of the store (which may
	// have been restored), and ReasonNotApplied if the store cannot be read.
	Follow(ctx context.Context, q EventsQuery, deliver func(EventBatch) error) error
	// AnyEvent reports whether events of the pool are on record. Its errors are those of Read.
	AnyEvent(ctx context.Context, pool string) (bool, error)
}

// WatchEvents checks the query and follows it; see EventLog. A pool that was deleted can be asked for while its events
// are kept.
func (q *Queries) WatchEvents(ctx context.Context, req EventsQuery, deliver func(EventBatch) error) error {
	var f violations
	f.optionalName("pool", req.Pool)
	f.notNegative("from_revision", req.After.Revision)
	f.optionalName("after_id", req.After.ID)
	if req.After.ID != "" && req.After.Revision == 0 {
		f.add("after_id", "needs from_revision, the revision of the event it names")
	}
	if err := f.refusal(); err != nil {
		return err
	}
	if err := q.knowsEvents(ctx, req.Pool); err != nil {
		return err
	}
	return q.events.Follow(ctx, req, deliver)
}

// knowsEvents refuses a pool that neither exists nor has left events.
func (q *Queries) knowsEvents(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	known := false
	q.mirror.Read(func(s *Snapshot) { known = s.Pools[name] != nil })
	if known {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	state, err := q.store.Read(bounded, PoolRef(name))
	if err == nil && !state.Has(PoolRef(name)) {
		known, err = q.events.AnyEvent(bounded, name)
		if err == nil && !known {
			return noSuchPool(name)
		}
	}
	if err != nil {
		return q.unconfirmed(ctx, err, "this pool is not known here, and etcd cannot be read now; try again")
	}
	return nil
}

// FutureRevision is the refusal of a query for events that begins beyond the state of the store.
func FutureRevision(asked, at int64) *Refusal {
	r := Refuse(ReasonRevisionInFuture, "from_revision %d is newer than the state of etcd, which is at revision %d; was etcd restored from a snapshot?", asked, at)
	r.Metadata = map[string]string{"revision": strconv.FormatInt(at, 10)}
	return r
}
