package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/pool"
)

// follow runs a follower until the test ends and waits until the mirror is loaded.
func follow(t *testing.T, s *Store) (*Follower, *pool.Mirror) {
	t.Helper()
	m := pool.NewMirror()
	f := NewFollower(s, m, quiet())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v, want the context's error", err)
		}
	})
	select {
	case <-m.Loaded():
	case <-within(t, patient).Done():
		t.Fatal("the mirror was not loaded")
	}
	return f, m
}

func waitFor(t *testing.T, m *pool.Mirror, revision int64) {
	t.Helper()
	if err := m.Wait(within(t, patient), revision); err != nil {
		t.Fatalf("the mirror stays at %d, want %d", m.Revision(), revision)
	}
}

// everything lists a mirror the way ReadAll lists the store, so that the two can be compared.
func everything(m *pool.Mirror) (map[pool.Ref]pool.Record, int64) {
	recs := make(map[pool.Ref]pool.Record)
	var revision int64
	m.Read(func(s *pool.Snapshot) {
		revision = s.Revision
		collect(recs, s.Broken)
		collect(recs, s.Replicas)
		for _, p := range s.Pools {
			if p.Pool != nil {
				recs[p.Pool.Ref()] = p.Pool
			}
			collect(recs, p.Slots)
			collect(recs, p.Active)
			collect(recs, p.Backup)
			collect(recs, p.Retired)
			collect(recs, p.Pending)
			collect(recs, p.Bindings)
			collect(recs, p.Locks)
			for _, list := range p.Rotations {
				for _, r := range list {
					recs[r.Ref()] = r
				}
			}
		}
	})
	return recs, revision
}

func collect[K comparable, R pool.Record](into map[pool.Ref]pool.Record, from map[K]R) {
	for _, rec := range from {
		into[rec.Ref()] = rec
	}
}

// compare checks that the mirror holds what the store holds. Nothing may be written meanwhile.
func compare(t *testing.T, s *Store, m *pool.Mirror) {
	t.Helper()
	recs, revision, err := s.ReadAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, m, revision)
	want := make(map[pool.Ref]pool.Record)
	for _, rec := range recs {
		if rec.Ref().Kind != pool.KindFingerprint {
			want[rec.Ref()] = rec
		}
	}
	got, at := everything(m)
	sameText := cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
	if diff := cmp.Diff(want, got, sameText); diff != "" || at != revision {
		t.Errorf("the mirror at %d differs from the store at %d (-store +mirror):\n%s", at, revision, diff)
	}
}

// randomTxn puts and deletes a few records of any kind.
func randomTxn(rng *rand.Rand, id int) *pool.Txn {
	txn := &pool.Txn{Event: event(fmt.Sprintf("e%d", id))}
	used := make(map[pool.Ref]bool)
	for range 1 + rng.IntN(6) {
		rec := randomRecord(rng)
		if used[rec.Ref()] {
			continue
		}
		used[rec.Ref()] = true
		if rng.IntN(3) == 0 {
			txn.Delete = append(txn.Delete, rec.Ref())
		} else {
			txn.Put = append(txn.Put, rec)
		}
	}
	return txn
}

func randomRecord(rng *rand.Rand) pool.Record {
	p, key := fmt.Sprintf("p%d", rng.IntN(3)), name(rng.IntN(12))
	life := pool.Life{Pool: p, Key: key, Generation: 1 + rng.Int64N(20)}
	slot := "s" + key
	switch rng.IntN(10) {
	case 0:
		return &pool.Pool{Name: p, Paused: rng.IntN(2) == 0}
	case 1:
		return &pool.Slot{Pool: p, Name: slot}
	case 2:
		return &pool.Backup{Pool: p, Key: key, Sealed: sealedAs(key)}
	case 3:
		return &pool.Retired{Pool: p, Key: key, Phase: pool.PhaseRetired, Slot: slot, Generation: life.Generation, ReplacedBy: "n"}
	case 4:
		return &pool.Rotation{Life: life, ID: "r", Slot: slot, NewKey: "n", Trigger: pool.TriggerPool}
	case 5:
		return &pool.Pending{Life: life, Trigger: pool.TriggerProvider}
	case 6:
		return &pool.Binding{Pool: p, Proxy: key, Slots: []pool.SlotPriority{{Slot: slot, Priority: 1}}}
	case 7:
		return &pool.Fingerprint{Pool: p, HMAC: key, Key: key}
	case 8:
		return &pool.Lock{Life: life, Holder: "h", Campaign: "c"}
	default:
		return &pool.Active{Pool: p, Key: key, Slot: slot, Status: pool.StatusHealthy, Sealed: sealedAs(key)}
	}
}

func TestMirrorEqualsTheStore(t *testing.T) {
	s := newStore(connect(t))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range 150 {
		applied(t, s, randomTxn(rng, i))
	}
	f, m := follow(t, s)
	compare(t, s, m)
	for i := range 300 {
		revision := applied(t, s, randomTxn(rng, 1000+i))
		switch {
		case i%50 == 0:
			garble(t, s, rng)
		case i%70 == 0:
			f.Rewatch()
		case i%40 == 0:
			waitFor(t, m, revision)
		}
	}
	compare(t, s, m)
}

// garble writes what no rotatord would.
func garble(t *testing.T, s *Store, rng *rand.Rand) {
	t.Helper()
	for _, key := range []string{s.layout.Key(randomRecord(rng).Ref()), "/rotator/notes/x", "/rotator/leaders/role/1"} {
		if _, err := s.client.Put(t.Context(), key, "{"); err != nil {
			t.Fatal(err)
		}
	}
}

// Compaction under a watch that is held up loses nothing: also what was deleted meanwhile is gone (hazard 20).
func TestCompactionUnderTheWatch(t *testing.T) {
	endpoint := newEtcd(t)
	g := new(gate)
	s, other := newStore(connectTo(t, endpoint, g.option("/Watch"))), newStore(connectTo(t, endpoint))
	first := applied(t, other, &pool.Txn{Put: []pool.Record{&pool.Pool{Name: "p"}, backup("stays"), backup("goes"), active("a", "s")}})
	_, m := follow(t, s)
	waitFor(t, m, first)

	for range 3 {
		g.shut()
		stale := applied(t, other, &pool.Txn{Delete: []pool.Ref{pool.BackupRef("p", "goes"), pool.ActiveRef("p", "a")}, Put: []pool.Record{active("b", "s")}})
		now := applied(t, other, &pool.Txn{Put: []pool.Record{backup("comes")}})
		if _, err := other.client.Compact(t.Context(), now, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		if m.Revision() >= stale {
			t.Fatalf("the mirror is at %d although its watch is held up", m.Revision())
		}
		g.open()
		compare(t, other, m)
		after := applied(t, other, &pool.Txn{Put: []pool.Record{backup("goes"), active("a", "s")}, Delete: []pool.Ref{pool.BackupRef("p", "comes"), pool.ActiveRef("p", "b")}})
		waitFor(t, m, after)
		compare(t, other, m)
	}
}

// A watch that is held up without a compaction goes on where it was, revision by revision.
func TestAWatchThatEndsGoesOn(t *testing.T) {
	g := new(gate)
	s := newStore(connect(t, g.option("/Watch")))
	f, m := follow(t, s)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		switch i % 3 {
		case 0:
			g.shut()
		case 1:
			f.Rewatch()
		}
		revision := applied(t, s, randomTxn(rng, i))
		if i%3 == 2 {
			g.open()
			waitFor(t, m, revision)
		}
	}
	compare(t, s, m)
}

// Rotation-shaped transactions are never seen half, also not in the large batches of a watch that catches up.
func TestRevisionsAreSeenWhole(t *testing.T) {
	const slots, stock, writers, rounds = 4, 8, 4, 400
	g := new(gate)
	s := newStore(connect(t, g.option("/Watch")))
	setUp := new(pool.Txn)
	for i := range slots {
		setUp.Put = append(setUp.Put, active(name(i), fmt.Sprint("s", i)))
	}
	for i := range stock {
		setUp.Put = append(setUp.Put, backup(name(100+i)))
	}
	applied(t, s, setUp)
	_, m := follow(t, s)

	var looks atomic.Int64
	stop, looked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		for {
			select {
			case <-stop:
				return
			default:
				m.Read(func(snap *pool.Snapshot) { checkWhole(t, snap, slots, stock) })
				looks.Add(1)
			}
		}
	}()
	var last atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			// Each writer has its slot and its part of the stock, and puts what it takes out back into stock.
			out, in := name(w), []string{name(100 + 2*w), name(101 + 2*w)}
			for i := range rounds {
				// Held up for more than the thousand revisions that etcd sends in one batch.
				if w == 0 && i == rounds/10 {
					g.shut()
				} else if w == 0 && i == rounds-rounds/20 {
					g.open()
				}
				res, err := s.Apply(t.Context(), turn(w, out, in[0]))
				if err != nil || !res.Applied {
					t.Errorf("writer %d, round %d: %+v, %v", w, i, res, err)
					return
				}
				out, in = in[0], []string{in[1], out}
				last.Store(max(last.Load(), res.Revision))
			}
		})
	}
	wg.Wait()
	g.open()
	compare(t, s, m)
	close(stop)
	<-looked
	if n := looks.Load(); n < rounds {
		t.Errorf("looked %d times, want %d or more for the test to mean something", n, rounds)
	}
}

func turn(w int, out, in string) *pool.Txn {
	return &pool.Txn{
		If:     []pool.Guard{pool.Absent(pool.ActiveRef("p", in)), pool.Absent(pool.BackupRef("p", out))},
		Delete: []pool.Ref{pool.ActiveRef("p", out), pool.BackupRef("p", in)},
		Put:    []pool.Record{active(in, fmt.Sprint("s", w)), backup(out)},
	}
}

func checkWhole(t *testing.T, snap *pool.Snapshot, slots, stock int) {
	p := snap.Pools["p"]
	if len(p.Active) != slots || len(p.BySlot) != slots || len(p.Backup) != stock || p.Stock.Len() != stock {
		t.Errorf("at revision %d: %d active keys in %d slots and %d in stock, want %d, %d, %d", snap.Revision, len(p.Active), len(p.BySlot), len(p.Backup), slots, slots, stock)
	}
	for key := range p.Active {
		if p.Backup[key] != nil {
			t.Errorf("at revision %d: %s has two homes", snap.Revision, key)
		}
	}
}

// The answer to a progress request moves the mirror past revisions that are about other keys.
func TestProgressMovesTheRevision(t *testing.T) {
	s := newStore(connect(t))
	f, m := follow(t, s)
	put, err := s.client.Put(t.Context(), "/elsewhere", "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t, patient)
	for ctx.Err() == nil && m.Revision() < put.Header.Revision {
		// Until the watch is set up there is no stream to ask on.
		if err := f.RequestProgress(ctx); err != nil && !errors.Is(err, ErrNoWatch) {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, patient/1000)
		_ = m.Wait(short, put.Header.Revision)
		cancel()
	}
	waitFor(t, m, put.Header.Revision)
}

// A store that was restored to an older state is loaded again once Rewatch is called.
func TestAStoreThatWentBack(t *testing.T) {
	s := newStore(connect(t))
	applied(t, s, &pool.Txn{Put: []pool.Record{backup("k")}})
	f, m := follow(t, s)
	m.Load([]pool.Record{backup("from the future")}, 1_000_000, morning)
	f.Rewatch()
	ctx := within(t, patient)
	changed, end := m.WatchAll()
	defer end()
	for m.Revision() >= 1_000_000 {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the mirror stays in the future")
		}
	}
	compare(t, s, m)
}
