package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/pool"
)

// writeEvents puts n events at random places of three pools, up to four in a revision, and returns their places in order.
func writeEvents(t *testing.T, s *Store, rng *rand.Rand, n int) (places []pool.EventCursor) {
	t.Helper()
	for n > 0 {
		var ops []clientv3.Op
		var ids []string
		for range min(n, 1+rng.IntN(4)) {
			id := fmt.Sprintf("e%016x", rng.Uint64())
			e := event(id)
			e.Pool = fmt.Sprint("p", rng.IntN(3))
			value, err := EncodeEvent(e, s.source, pool.Schema)
			if err != nil {
				t.Fatal(err)
			}
			ops = append(ops, clientv3.OpPut(s.layout.Key(pool.EventRef(e.Pool, id)), value))
			ids = append(ids, id)
		}
		resp, err := s.client.Txn(t.Context()).Then(ops...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(ids)
		for _, id := range ids {
			places = append(places, pool.EventCursor{Revision: resp.Header.Revision, ID: id})
		}
		n -= len(ops)
	}
	return places
}

// taker collects what a query delivers.
type taker struct {
	mu     sync.Mutex
	places []pool.EventCursor
	upTo   int64
	live   bool
	grown  chan struct{}
	slow   func()
}

func (k *taker) deliver(b pool.EventBatch) error {
	if k.slow != nil {
		k.slow()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range b.Events {
		k.places = append(k.places, e.Cursor())
	}
	k.upTo, k.live = b.Revision, b.Live
	select {
	case k.grown <- struct{}{}:
	default:
	}
	return nil
}

func (k *taker) taken() []pool.EventCursor {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.places)
}

// take follows a query until the test ends.
func take(t *testing.T, s *Store, q pool.EventsQuery, slow func()) *taker {
	t.Helper()
	k := &taker{grown: make(chan struct{}, 1), slow: slow}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx, q, k.deliver) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("following events: %v", err)
		}
	})
	return k
}

// wait waits until n events were delivered.
func (k *taker) wait(t *testing.T, n int) {
	t.Helper()
	for ctx := within(t, 2*time.Minute); len(k.taken()) < n; {
		select {
		case <-k.grown:
		case <-ctx.Done():
			t.Fatalf("%d of %d events in time", len(k.taken()), n)
		}
	}
}

func (k *taker) check(t *testing.T, want []pool.EventCursor) {
	t.Helper()
	k.wait(t, len(want))
	if diff := cmp.Diff(want, k.taken()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// small makes a store that needs several passes, of several pages each, for a few events.
func small(s *Store) *Store {
	s.eventKeysPage, s.eventsKept = 7, 10
	return s
}

func TestEventsComeInOrderFromEveryPlace(t *testing.T) {
	s := small(newStore(connect(t)))
	rng := rand.New(rand.NewPCG(1, 2))
	places := writeEvents(t, s, rng, 60)
	for i := -1; i < len(places); i += 3 {
		var after pool.EventCursor
		if i >= 0 {
			after = places[i]
		}
		k := &taker{grown: make(chan struct{}, 1)}
		if err := s.Follow(t.Context(), pool.EventsQuery{After: after, Once: true}, k.deliver); err != nil {
			t.Fatalf("after %v: %v", after, err)
		}
		if diff := cmp.Diff(places[i+1:], k.taken(), cmp.Transformer("len", func(p []pool.EventCursor) []pool.EventCursor { return slices.Clip(p) })); diff != "" && i+1 < len(places) {
			t.Errorf("events on record after %v (-want +got):\n%s", after, diff)
		}
		if !k.live || k.upTo < places[len(places)-1].Revision {
			t.Errorf("the last batch says live %t, up to %d; want all, up to %d at least", k.live, k.upTo, places[len(places)-1].Revision)
		}
	}
	all := take(t, s, pool.EventsQuery{}, nil)
	from := take(t, s, pool.EventsQuery{After: places[20]}, nil)
	revision := take(t, s, pool.EventsQuery{After: pool.EventCursor{Revision: places[20].Revision}}, nil)
	first := slices.IndexFunc(places, func(p pool.EventCursor) bool { return p.Revision == places[20].Revision })
	all.wait(t, 60)
	places = append(places, writeEvents(t, s, rng, 40)...)
	all.check(t, places)
	from.check(t, places[21:])
	revision.check(t, places[first:])
}

// As many slow consumers as can read what is on record at a time do not keep others from it, and miss nothing.
func TestSlowConsumersTakeTurns(t *testing.T) {
	s := newStore(connect(t))
	places := writeEvents(t, s, rand.New(rand.NewPCG(7, 8)), 3*eventsBatch)
	done := make(chan struct{})
	var at sync.WaitGroup // who has its first batch
	var slow []*taker
	for range eventsScans {
		at.Add(1)
		var first sync.Once
		batches := 0
		slow = append(slow, take(t, s, pool.EventsQuery{}, func() {
			first.Do(at.Done)
			if batches++; batches == 1 {
				until(t, func() bool { return eventsWait.Load() > 0 })
				<-time.After(eventsSlow + 10*time.Millisecond) // that is what is slow
			} else {
				<-done
			}
		}))
	}
	at.Wait()
	quick := &taker{grown: make(chan struct{}, 1)}
	if err := s.Follow(within(t, time.Minute), pool.EventsQuery{Once: true}, quick.deliver); err != nil {
		t.Errorf("the quick one: %v", err)
	}
	close(done)
	for _, k := range append(slow, quick) {
		k.check(t, places)
	}
}

// until waits for a condition that nothing announces.
func until(t *testing.T, ok func() bool) {
	for limit := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(limit) {
			t.Error("not in time")
			return
		}
		<-time.After(time.Millisecond)
	}
}

func TestEventsOfOnePool(t *testing.T) {
	s := newStore(connect(t))
	applied(t, s, &pool.Txn{Event: event("a")})
	other := event("b")
	other.Pool = "p-and-more" // whose name begins with the other's
	applied(t, s, &pool.Txn{Event: other})
	k := take(t, s, pool.EventsQuery{Pool: "p"}, nil)
	k.wait(t, 1)
	other.ID = "c"
	applied(t, s, &pool.Txn{Event: other})
	rev := applied(t, s, &pool.Txn{Event: event("d")})
	k.wait(t, 2)
	if got := k.taken(); len(got) != 2 || got[0].ID != "a" || got[1] != (pool.EventCursor{Revision: rev, ID: "d"}) {
		t.Errorf("events of p: %v, want a and d", got)
	}
	for name, want := range map[string]bool{"p": true, "p-and": false, "q": false} {
		if any, err := s.AnyEvent(t.Context(), name); err != nil || any != want {
			t.Errorf("any event of %s: %t, %v, want %t", name, any, err, want)
		}
	}
}

// etcd is compacted all the time, while the consumer is slow and its watch breaks: nothing is missing or comes twice.
func TestEventsThroughCompactionsAndBrokenWatches(t *testing.T) {
	g := &gate{}
	s := small(newStore(connect(t, g.option("/Watch"))))
	rng := rand.New(rand.NewPCG(3, 4))
	places := writeEvents(t, s, rng, 30)
	k := take(t, s, pool.EventsQuery{After: pool.EventCursor{Revision: 1}}, nil)
	for range 20 {
		places = append(places, writeEvents(t, s, rng, 15)...)
		if _, err := s.client.Compact(t.Context(), places[len(places)-1].Revision); err != nil {
			t.Fatal(err)
		}
		g.shut()
		places = append(places, writeEvents(t, s, rng, 15)...)
		if _, err := s.client.Compact(t.Context(), places[len(places)-1].Revision); err != nil {
			t.Fatal(err)
		}
		g.open()
	}
	k.check(t, places)
}

// A consumer that stops for longer than eventsSlow loses its watch, and with it what the client would hold; it goes on
// where it was.
func TestASlowConsumerMissesNothing(t *testing.T) {
	s := newStore(connect(t))
	rng := rand.New(rand.NewPCG(5, 6))
	var once sync.Once
	hold := make(chan struct{})
	places := writeEvents(t, s, rng, 1)
	k := take(t, s, pool.EventsQuery{After: places[0]}, func() { once.Do(func() { <-hold }) })
	places = append(places, writeEvents(t, s, rng, 3000)...)
	timer := time.NewTimer(2 * eventsSlow)
	<-timer.C
	close(hold)
	k.check(t, places[1:])
}

func TestFollowingEventsEndsWhenTheWatchCannotBeMade(t *testing.T) {
	g := &gate{}
	s := newStore(connect(t, g.option("/Watch")))
	at := applied(t, s, &pool.Txn{Event: event("a")})
	g.shut()
	k := &taker{grown: make(chan struct{}, 1)}
	err := s.Follow(within(t, 30*time.Second), pool.EventsQuery{After: pool.EventCursor{Revision: at}}, k.deliver)
	if !errors.Is(err, pool.ErrNotApplied) {
		t.Errorf("following without a watch: %v, want ErrNotApplied after %v", err, eventsPatience)
	}
}

func TestEventsFromTheFuture(t *testing.T) {
	s := newStore(connect(t))
	at := applied(t, s, &pool.Txn{Event: event("a")})
	err := s.Follow(t.Context(), pool.EventsQuery{After: pool.EventCursor{Revision: at + 2}}, nil)
	if pool.ReasonOf(err) != pool.ReasonRevisionInFuture {
		t.Errorf("following from a revision that is yet to come: %v", err)
	}
	k := take(t, s, pool.EventsQuery{After: pool.EventCursor{Revision: at + 1}}, nil) // the next one may be asked for
	k.check(t, []pool.EventCursor{{Revision: applied(t, s, &pool.Txn{Event: event("b")}), ID: "b"}})
}

// Nothing happens while a query follows from now on: it is told all the same that there is nothing to wait for.
func TestFollowingAnIdleStoreSaysThatAllWasDelivered(t *testing.T) {
	s := newStore(connect(t))
	at := applied(t, s, &pool.Txn{Event: event("a")})
	k := take(t, s, pool.EventsQuery{After: pool.EventCursor{Revision: at + 1}}, nil)
	select {
	case <-k.grown:
	case <-within(t, 20*time.Second).Done():
		t.Fatal("no batch in time")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.places) != 0 || !k.live || k.upTo != at {
		t.Errorf("the first batch: %d events up to %d, live %t; want none, up to %d, live", len(k.places), k.upTo, k.live, at)
	}
}

func TestEventsOnRecordAreReadBack(t *testing.T) {
	s := newStore(connect(t))
	want := &pool.Event{
		ID: "e", Type: pool.EventKeyRotated, Pool: "p", Subject: "keys/k", Time: morning, Trigger: pool.TriggerProxy, Source: "src",
		Reason: "why", RequestID: "req", Key: "k", NewKey: "n", Generation: 7, Slot: "s", Proxy: "x", RotationID: "rot",
		Status: pool.StatusError, Until: morning.Add(time.Hour), Home: pool.HomeRetired, Phase: pool.PhaseRevoking, Rule: "r",
	}
	rev := applied(t, s, &pool.Txn{Event: want})
	if _, err := s.client.Put(t.Context(), s.layout.Key(pool.EventRef("p", "f")), "no JSON"); err != nil {
		t.Fatal(err)
	}
	var got []*pool.RecordedEvent
	err := s.Follow(t.Context(), pool.EventsQuery{Once: true}, func(b pool.EventBatch) error { got = append(got, b.Events...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	unreadable := pool.Event{ID: "f", Type: pool.EventUnreadable, Pool: "p", Subject: "events/f"}
	if diff := cmp.Diff([]*pool.RecordedEvent{{Event: *want, Replica: "rotatord/test", Revision: rev}, {Event: unreadable, Revision: rev + 1}}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}
