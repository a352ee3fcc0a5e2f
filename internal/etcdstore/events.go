package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/rotatord/rotatord/internal/pool"
	storagev1 "github.com/rotatord/rotatord/proto/rotator/storage/v1"
)

// Bounds on following events. There may be hundreds of thousands of them on record, and a consumer may be slow: what is
// held for it is bounded by eventsKept keys, or by eventsQueued batches.
const (
	eventKeysPage  = 5000            // keys of one page of a scan; values are not sent with it
	eventsKept     = 50_000          // keys that one pass over all events keeps: the oldest that were not delivered yet
	eventsBatch    = 100             // events of one batch; they are read with one transaction
	eventsQueued   = 8               // batches between the watch and a slow consumer
	eventsSlow     = time.Second     // a consumer that takes longer for a batch loses its watch, and gets a new one later
	eventsFarBack  = 10_000          // revisions; beyond that, what is on record is read in pages: a watch's backlog is not bounded
	eventsPatience = 5 * time.Second // how long the store may be unreadable before a stream ends
	eventsTick     = time.Second / 2 // how often a silent watch is asked how far it is
	eventsHang     = 2 * time.Second // a watch that does not say so by then is made anew
	eventsScans    = 2               // passes over all events at one time, in one process
	eventStreams   = 8               // see streamNames
)

var _ pool.EventLog = (*Store)(nil)

var (
	errSlow     = errors.New("the consumer is behind")
	errYield    = errors.New("the consumer is slow, and others wait for their turn")
	errDeliver  = errors.New("the consumer has ended")
	eventStream atomic.Int64
	eventScans  = make(chan struct{}, eventsScans)
	eventsWait  atomic.Int64 // streams that wait for their turn
)

// DecodeEvent reads an event. It never fails: what cannot be read is an event of type EventUnreadable, false for what is
// no event by its key.
func (l Layout) DecodeEvent(kv *mvccpb.KeyValue) (*pool.RecordedEvent, bool) {
	ref, ours := l.Parse(string(kv.Key))
	if !ours || ref.Kind != pool.KindEvent {
		return nil, false
	}
	e := &pool.RecordedEvent{Event: pool.Event{ID: ref.Name, Pool: ref.Pool, Type: pool.EventUnreadable, Subject: "events/" + ref.Name}, Revision: kv.ModRevision}
	m := &storagev1.Event{}
	if !fastDecode(kv.Value, m) && unmarshal(kv.Value, m) != nil {
		return e, true
	}
	d := m.GetData()
	e.Replica = m.Source
	e.Event = pool.Event{
		ID: ref.Name, Type: pool.EventType(m.Type), Pool: ref.Pool, Subject: m.Subject, Time: toTime(m.Time),
		Trigger: pool.Trigger(d.GetTrigger()), Source: d.GetTriggerSource(), Reason: d.GetReason(), RequestID: d.GetRequestId(),
		Key: d.GetKeyId(), NewKey: d.GetNewKeyId(), Generation: d.GetGeneration(), Slot: d.GetSlot(), Proxy: d.GetProxyId(),
		RotationID: d.GetRotationId(), Status: pool.Status(d.GetStatus()), Until: toTime(d.GetStatusUntil()),
		Home: pool.Home(d.GetHome()), Phase: pool.Phase(d.GetPhase()), Rule: d.GetRule(),
	}
	return e, true
}

// AnyEvent implements pool.EventLog.
func (s *Store) AnyEvent(ctx context.Context, poolName string) (bool, error) {
	resp, err := s.page(ctx, prefixSpan(s.layout.PoolPrefix(pool.KindEvent, poolName)), clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	return err == nil && len(resp.Kvs) > 0, err
}

// Follow implements pool.EventLog. What is on record is read in pages, and then a watch goes on from there. A query that
// begins at a recent revision begins with the watch. When the watch finds its revision compacted, what is on record is
// read again from where it is.
func (s *Store) Follow(ctx context.Context, q pool.EventsQuery, deliver func(pool.EventBatch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &eventFollower{store: s, span: prefixSpan(s.layout.PoolPrefix(pool.KindEvent, q.Pool)), after: q.After, upTo: max(q.After.Revision-1, 0), deliver: deliver}
	at, err := s.revision(ctx)
	if err != nil {
		return err
	}
	if f.target = at; q.After.Revision > at+1 {
		return pool.FutureRevision(q.After.Revision, at)
	}
	return f.run(ctx, q)
}

// revision asks for the current one, for eventsPatience.
func (s *Store) revision(ctx context.Context) (at int64, err error) {
	bounded, cancel := context.WithTimeout(ctx, eventsPatience)
	defer cancel()
	err = s.retry(bounded, s.attempt, func(ctx context.Context) error {
		resp, err := s.client.Get(ctx, s.layout.Prefix)
		if err == nil {
			at = resp.Header.Revision
			s.saw(resp.Header.Revision)
		}
		return err
	})
	return at, err
}

// eventFollower follows one query. Everything in it belongs to the goroutine that called Follow.
type eventFollower struct {
	store   *Store
	span    span
	deliver func(pool.EventBatch) error
	failed  error         // of deliver
	took    time.Duration // the last deliver

	after  pool.EventCursor // the last one delivered
	upTo   int64            // all of this revision and before were delivered
	target int64            // where the store was when the query began
}

func (f *eventFollower) run(ctx context.Context, q pool.EventsQuery) error {
	pause := newPauser(20*time.Millisecond, 500*time.Millisecond)
	load := q.Once || q.After.Revision == 0
	for good := time.Now(); ; {
		moved := f.upTo
		err := f.step(ctx, load)
		switch {
		case f.failed != nil:
			return f.failed
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && q.Once:
			return nil
		case err == nil || errors.Is(err, errSlow) || errors.Is(err, errYield) || f.upTo > moved:
			good = time.Now()
			pause.reset()
		case errors.Is(err, errWentBack), time.Since(good) > eventsPatience:
			return readError(err)
		}
		load = err != nil && (load && !errors.Is(err, errSlow) || errors.Is(err, rpctypes.ErrCompacted))
		if err != nil && !errors.Is(err, errSlow) && !errors.Is(err, errYield) && !errors.Is(err, rpctypes.ErrCompacted) {
			pause.wait(ctx)
		}
	}
}

// step reads what is on record, or watches until that ends.
func (f *eventFollower) step(ctx context.Context, load bool) error {
	if !load {
		at, err := f.store.revision(ctx)
		if err != nil {
			return err
		}
		if at < f.upTo {
			return errWentBack
		}
		if load = at-f.upTo > eventsFarBack; !load {
			return f.watch(ctx)
		}
	}
	return f.load(ctx)
}

// give delivers a batch.
func (f *eventFollower) give(b pool.EventBatch) error {
	b.Revision = max(b.Revision, f.upTo)
	b.Live = b.Revision >= f.target
	began := time.Now()
	if f.failed = f.deliver(b); f.failed != nil {
		return errDeliver
	}
	f.took = time.Since(began)
	f.upTo = b.Revision
	if n := len(b.Events); n > 0 {
		f.after = b.Events[n-1].Cursor()
	}
	return nil
}

// load delivers what is on record. Events never change, so that they are not read at one revision, which may be compacted
// meanwhile: those up to the revision of the first page are all there, but for those that were purged.
//
// Few can do it at a time. One whose consumer is slow gives its turn up to those that wait, and goes on when it has another.
func (f *eventFollower) load(ctx context.Context) error {
	if err := takeTurn(ctx); err != nil {
		return err
	}
	defer func() { <-eventScans }()
	var target int64
	for more := true; more; {
		var found []eventPlace
		var err error
		if found, more, err = f.scan(ctx, &target); err != nil {
			return err
		}
		for chunk := range slices.Chunk(found, eventsBatch) {
			if err := f.read(ctx, chunk, target); err != nil {
				return err
			}
			if f.took > eventsSlow && eventsWait.Load() > 0 {
				return errYield
			}
		}
	}
	return f.give(pool.EventBatch{Revision: target})
}

// takeTurn waits for a turn to pass over all events.
func takeTurn(ctx context.Context) error {
	eventsWait.Add(1)
	defer eventsWait.Add(-1)
	select {
	case eventScans <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// eventPlace is where an event is on record, and in the order.
type eventPlace struct {
	revision int64
	key      string
}

func (p eventPlace) cursor() pool.EventCursor {
	return pool.EventCursor{Revision: p.revision, ID: p.key[strings.LastIndexByte(p.key, '/')+1:]}
}

func comparePlaces(p, q eventPlace) int {
	return cmp.Or(cmp.Compare(p.revision, q.revision), p.cursor().Compare(q.cursor()))
}

// scan passes over all keys once and finds the oldest events that were not delivered: all of them, or eventsKept.
func (f *eventFollower) scan(ctx context.Context, target *int64) (found []eventPlace, more bool, err error) {
	rest := f.span
	for pages := true; pages; {
		resp, err := f.store.page(ctx, rest, clientv3.WithKeysOnly(), clientv3.WithLimit(int64(f.store.eventKeysPage)))
		if err != nil {
			return nil, false, err
		}
		if *target == 0 {
			*target = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			p := eventPlace{kv.ModRevision, string(kv.Key)}
			rest.from = p.key + "\x00"
			if p.revision <= *target && p.cursor().Compare(f.after) > 0 {
				found = append(found, p)
			}
		}
		if pages = resp.More; len(found) >= 2*f.store.eventsKept || !pages {
			slices.SortFunc(found, comparePlaces)
			if len(found) > f.store.eventsKept {
				clear(found[f.store.eventsKept:])
				found, more = found[:f.store.eventsKept], true
			}
		}
	}
	return found, more, nil
}

// read reads the values of some events and delivers them. One that has gone was purged.
func (f *eventFollower) read(ctx context.Context, places []eventPlace, target int64) error {
	ops := make([]clientv3.Op, len(places))
	for i, p := range places {
		ops[i] = clientv3.OpGet(p.key)
	}
	var resp *clientv3.TxnResponse
	err := f.store.retry(ctx, pagePatience*f.store.attempt, func(ctx context.Context) (err error) {
		resp, err = f.store.client.Txn(ctx).Then(ops...).Commit()
		return err
	})
	if err != nil {
		return err
	}
	batch := pool.EventBatch{Revision: places[len(places)-1].revision - 1}
	for _, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().Kvs {
			if e, ok := f.store.layout.DecodeEvent(kv); ok && e.Revision <= target {
				batch.Events = append(batch.Events, e)
			}
		}
	}
	if len(batch.Events) == 0 {
		return nil
	}
	return f.give(batch)
}

// watch delivers what a watch brings. It returns an error always.
func (f *eventFollower) watch(ctx context.Context) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "rotatord-events", strconv.FormatInt(eventStream.Add(1)%eventStreams, 10))
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	w := &eventWatch{store: f.store, ctx: ctx, after: f.after, seen: f.upTo, queue: make(chan pool.EventBatch, eventsQueued)}
	w.md, _ = metadata.FromOutgoingContext(ctx)
	hang := time.AfterFunc(eventsHang, cancel) // the client waits for the watch to be made, without end
	responses := f.store.client.Watch(ctx, f.span.from, clientv3.WithRange(f.span.to), clientv3.WithRev(f.upTo+1),
		clientv3.WithFragment(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify(), clientv3.WithFilterDelete())
	hang.Stop()
	ended := make(chan error, 1)
	go func() {
		defer close(w.queue)
		defer cancel() // what the client still holds is of no use
		ended <- w.pump(responses)
	}()
	for batch := range w.queue { // also what came before the watch ended
		if err := f.give(batch); err != nil {
			cancel()
			for range w.queue { // until the pump has seen it
			}
			return err
		}
	}
	return <-ended
}

// eventWatch takes what a watch brings, into a queue. It belongs to one goroutine.
type eventWatch struct {
	store *Store
	ctx   context.Context
	md    metadata.MD // that tells the stream
	after pool.EventCursor
	queue chan pool.EventBatch

	confirmed bool
	seen      int64 // how far the watch is
}

// pump returns why the watch ended.
func (w *eventWatch) pump(responses clientv3.WatchChan) error {
	tick := time.NewTicker(eventsTick)
	defer tick.Stop()
	for at, moved := w.seen, time.Now(); ; {
		select {
		case resp, ok := <-responses:
			if !ok {
				return errWatchDone
			}
			if err := w.take(&resp); err != nil {
				return err
			}
		case <-tick.C:
		}
		newest := w.store.Revision()
		switch {
		case w.seen != at || newest <= w.seen:
			at, moved = w.seen, time.Now()
		case time.Since(moved) > eventsHang:
			return errRewatch
		}
		if w.confirmed && newest > w.seen {
			w.askProgress()
		}
	}
}

// askProgress asks for the watch's revision: it is silent about changes that are no events.
func (w *eventWatch) askProgress() {
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(w.ctx, w.md), lagPatience)
	defer cancel()
	_ = w.store.client.RequestProgress(ctx) // it is asked again
}

// lagPatience bounds a request that is only handed over.
const lagPatience = 100 * time.Millisecond

// take puts one response into the queue, in batches. How far a response goes is told at Follower.
func (w *eventWatch) take(resp *clientv3.WatchResponse) error {
	if err := resp.Err(); err != nil {
		return err
	}
	if resp.Created {
		w.confirmed = true
		return w.put(pool.EventBatch{Revision: w.seen}) // on an idle store nothing else would say that all was delivered
	}
	if len(resp.Events) == 0 {
		w.seen = max(w.seen, resp.Header.Revision)
		return w.put(pool.EventBatch{Revision: w.seen})
	}
	events := make([]*pool.RecordedEvent, 0, len(resp.Events))
	for _, ev := range resp.Events {
		e, ok := w.store.layout.DecodeEvent(ev.Kv)
		if ok && e.Cursor().Compare(w.after) > 0 {
			events = append(events, e)
		}
	}
	w.seen = max(w.seen, resp.Events[len(resp.Events)-1].Kv.ModRevision)
	if len(events) == 0 {
		return w.put(pool.EventBatch{Revision: w.seen})
	}
	slices.SortFunc(events, func(a, b *pool.RecordedEvent) int { return a.Cursor().Compare(b.Cursor()) })
	w.after = events[len(events)-1].Cursor()
	for chunk := range slices.Chunk(events, eventsBatch) {
		batch := pool.EventBatch{Events: chunk, Revision: chunk[len(chunk)-1].Revision - 1}
		if batch.Events[len(chunk)-1] == events[len(events)-1] {
			batch.Revision = w.seen
		}
		if err := w.put(batch); err != nil {
			return err
		}
	}
	return nil
}

// put waits a bounded time for a slow consumer: the client goes on reading from the server meanwhile, and holds that.
func (w *eventWatch) put(b pool.EventBatch) error {
	timer := time.NewTimer(eventsSlow)
	defer timer.Stop()
	select {
	case w.queue <- b:
		return nil
	case <-timer.C:
		return errSlow
	case <-w.ctx.Done():
		return fmt.Errorf("the watch of events: %w", w.ctx.Err())
	}
}

// EventPools names the pools of which events are on record, also those that were deleted.
func (s *Store) EventPools(ctx context.Context) (names []string, err error) {
	for rest := prefixSpan(s.layout.KindPrefix(pool.KindEvent)); ; {
		resp, err := s.page(ctx, rest, clientv3.WithKeysOnly(), clientv3.WithLimit(1))
		if err != nil || len(resp.Kvs) == 0 {
			return names, err
		}
		key := string(resp.Kvs[0].Key)
		rest.from = key + "\x00"
		if ref, ours := s.layout.Parse(key); ours {
			names = append(names, ref.Pool)
			rest.from = prefixSpan(s.layout.PoolPrefix(pool.KindEvent, ref.Pool)).to
		}
	}
}

// EventsByID reads at most limit events of a pool in the order of their ids, which is roughly that of their times, from
// the first one after an id on.
func (s *Store) EventsByID(ctx context.Context, poolName, after string, limit int) ([]*pool.RecordedEvent, error) {
	sp := prefixSpan(s.layout.PoolPrefix(pool.KindEvent, poolName))
	if after != "" {
		sp.from += after + "\x00"
	}
	resp, err := s.page(ctx, sp, clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, err
	}
	var events []*pool.RecordedEvent
	for _, kv := range resp.Kvs {
		if e, ok := s.layout.DecodeEvent(kv); ok {
			events = append(events, e)
		}
	}
	return events, nil
}
