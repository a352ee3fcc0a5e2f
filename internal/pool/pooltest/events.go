package pooltest

import (
	"context"

	"github.com/rotatord/rotatord/internal/pool"
)

var _ pool.EventLog = (*MemStore)(nil)

// Follow implements pool.EventLog.
func (m *MemStore) Follow(ctx context.Context, q pool.EventsQuery, deliver func(pool.EventBatch) error) error {
	changed := make(chan struct{}, 1)
	m.Watch(func(int64, func() []pool.Record, *pool.Txn) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if at := m.Revision(); q.After.Revision > at+1 {
		return pool.FutureRevision(q.After.Revision, at)
	}
	for after := q.After; ; {
		batch := m.eventsAfter(q.Pool, after)
		if n := len(batch.Events); n > 0 {
			after = batch.Events[n-1].Cursor()
		}
		if err := deliver(batch); err != nil || q.Once {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *MemStore) eventsAfter(poolName string, after pool.EventCursor) pool.EventBatch {
	batch := pool.EventBatch{Revision: m.Revision(), Live: true}
	for _, e := range m.Events() {
		r := &pool.RecordedEvent{Event: e.Event, Replica: "rotatord/test", Revision: e.Revision}
		if r.Revision <= batch.Revision && r.Cursor().Compare(after) > 0 && (poolName == "" || poolName == r.Pool) {
			batch.Events = append(batch.Events, r)
		}
	}
	return batch
}

// AnyEvent implements pool.EventLog.
func (m *MemStore) AnyEvent(_ context.Context, poolName string) (bool, error) {
	return len(m.eventsAfter(poolName, pool.EventCursor{}).Events) > 0, nil
}
