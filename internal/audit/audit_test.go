package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
)

var now = time.Date(2026, 1, 25, 10, 0, 0, 0, time.UTC)

func clock() time.Time { return now }

// world is an etcd with a store, and what was written there.
type world struct {
	store  *etcdstore.Store
	client *clientv3.Client
	ids    []string // of the events, in order
}

func newWorld(t *testing.T) *world {
	t.Helper()
	client, err := etcdstore.Connect(etcdstore.Config{Endpoints: []string{etcdtest.Start(t)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return &world{store: etcdstore.New(client, etcdstore.Options{Replica: "r", AttemptTimeout: 10 * time.Second}), client: client}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// event writes one, with what else its transaction puts.
func (w *world) event(t *testing.T, poolName string, at time.Time, puts ...pool.Record) int64 {
	t.Helper()
	id := fmt.Sprintf("e%04d", len(w.ids))
	res, err := w.store.Apply(within(t), &pool.Txn{Put: puts, Event: &pool.Event{ID: id, Type: pool.EventKeyAdded, Pool: poolName, Subject: "keys/k", Time: at}})
	if err != nil || !res.Applied {
		t.Fatalf("writing an event: %v, %v", res, err)
	}
	w.ids = append(w.ids, id)
	return res.Revision
}

func (w *world) relay(t *testing.T, name string, sink Sink, store Store, lead Leader) *Relay {
	t.Helper()
	r, err := NewRelay(RelayConfig{Name: name, Sink: sink, Events: w.store, Store: store, Lead: lead, Revision: w.store.Revision, Now: clock,
		Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func always(ctx context.Context, _ string, work func(context.Context)) { work(ctx) }

// run runs it until stop.
func run(t *testing.T, work func(context.Context)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { work(ctx); close(done) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// memSink keeps ids, and fails when told to: before it has taken anything, or after.
type memSink struct {
	mu     sync.Mutex
	ids    []string
	fail   func() (before, after error)
	change chan struct{}
}

func newMemSink() *memSink { return &memSink{change: make(chan struct{}, 1)} }

func (m *memSink) Write(lines []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var before, after error
	if m.fail != nil {
		before, after = m.fail()
	}
	if before != nil {
		return before
	}
	m.ids = append(m.ids, idsOf(lines)...)
	select {
	case m.change <- struct{}{}:
	default:
	}
	return after
}

func (m *memSink) taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.ids)
}

func (m *memSink) wait(t *testing.T, id string) {
	t.Helper()
	for ctx := within(t); !slices.Contains(m.taken(), id); {
		select {
		case <-m.change:
		case <-ctx.Done():
			t.Fatalf("%s did not come in time; there are %v", id, m.taken())
		}
	}
}

// idsOf reads the ids of whole lines; torn ones are left out.
func idsOf(lines []byte) (ids []string) {
	for line := range bytes.Lines(lines) {
		var e struct{ ID string }
		if json.Unmarshal(line, &e) == nil && e.ID != "" {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

func unique(ids []string) []string {
	var once []string
	for _, id := range ids {
		if !slices.Contains(once, id) {
			once = append(once, id)
		}
	}
	return once
}

func (w *world) cursor(t *testing.T, name string) *pool.Relay {
	t.Helper()
	c, err := read(within(t), w.store, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) waitCursor(t *testing.T, name, id string) {
	t.Helper()
	for ctx := within(t); ; {
		if c := w.cursor(t, name); c != nil && c.EventID == id {
			return
		}
		if !pause(ctx, 10*time.Millisecond) {
			t.Fatalf("the cursor is %+v, want it at %s", w.cursor(t, name), id)
		}
	}
}

func TestRelayGoesOnWhereItWas(t *testing.T) {
	w, sink := newWorld(t), newMemSink()
	for range 5 {
		w.event(t, "p", now)
	}
	for range 3 { // lives of the relay
		stop := run(t, w.relay(t, "x", sink, w.store, always).Run)
		w.event(t, "q", now)
		last := w.ids[len(w.ids)-1]
		sink.wait(t, last)
		w.waitCursor(t, "x", last)
		stop()
		w.event(t, "p", now)
	}
	if got := sink.taken(); !slices.Equal(got, w.ids[:len(got)]) || len(got) != len(w.ids)-1 {
		t.Errorf("taken %v, want all but the last of %v, each once: every life has ended after its cursor was moved", got, w.ids)
	}
}

// Whatever fails, none is missing: the sink fails before and after it has taken the lines, etcd loses the answer to the
// cursor's write or never gets it, and etcd is compacted.
func TestRelayMissesNothing(t *testing.T) {
	w, sink := newWorld(t), newMemSink()
	n := 0
	sink.fail = func() (before, after error) {
		switch n++; n % 5 {
		case 1:
			return errors.New("the disk is full"), nil
		case 3:
			return nil, errors.New("fsync failed")
		}
		return nil, nil
	}
	store := &lossyStore{Store: w.store}
	for range 4 {
		stop := run(t, w.relay(t, "x", sink, store, always).Run)
		for range 10 {
			rev := w.event(t, "p", now)
			if _, err := w.client.Compact(within(t), rev); err != nil {
				t.Fatal(err)
			}
		}
		sink.wait(t, w.ids[len(w.ids)-1])
		stop()
	}
	if got := unique(sink.taken()); !slices.Equal(got, w.ids) {
		t.Errorf("taken %v, want each of %v, in their order", got, w.ids)
	}
}

// lossyStore loses every third answer, and every third request.
type lossyStore struct {
	Store
	n int
}

func (l *lossyStore) Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error) {
	switch l.n++; l.n % 3 {
	case 1:
		_, _ = l.Store.Apply(ctx, t)
		return nil, pool.Refuse(pool.ReasonOutcomeUnknown, "the answer is lost")
	case 2:
		return nil, pool.Refuse(pool.ReasonOutcomeUnknown, "the request is lost")
	}
	return l.Store.Apply(ctx, t)
}

// Two replicas relay at one time, since one does not know yet that it does not lead any more. Neither moves the cursor
// back, and none is missed.
func TestTwoRelaysDoNotMoveTheCursorBack(t *testing.T) {
	w := newWorld(t)
	a, b := newMemSink(), newMemSink()
	hold := make(chan struct{})
	var once sync.Once
	a.fail = func() (error, error) { once.Do(func() { <-hold }); return nil, nil } // paused between the sink and the cursor
	w.event(t, "p", now)
	stopA := run(t, w.relay(t, "x", a, w.store, always).Run)
	for ctx := within(t); w.cursor(t, "x") == nil; {
		if !pause(ctx, 5*time.Millisecond) {
			t.Fatal("no cursor")
		}
	}
	run(t, w.relay(t, "x", b, w.store, always).Run)
	for range 3 {
		w.event(t, "p", now)
	}
	last := w.ids[len(w.ids)-1]
	b.wait(t, last)
	w.waitCursor(t, "x", last)
	at := w.cursor(t, "x")
	close(hold)
	a.wait(t, w.ids[0])
	stopA()
	if c := w.cursor(t, "x"); c.Revision < at.Revision {
		t.Errorf("the cursor went back from %+v to %+v", at, c)
	}
	if got := unique(b.taken()); !slices.Equal(got, w.ids) {
		t.Errorf("the second relay has %v, want %v", got, w.ids)
	}
}

func TestRelayBeginsAnewWhenEtcdHasGoneBack(t *testing.T) {
	w, sink := newWorld(t), newMemSink()
	w.event(t, "p", now)
	if _, err := put(within(t), w.store, nil, pool.Relay{Name: "x", Revision: 1 << 40, EventID: "e", UpdatedAt: now}); err != nil {
		t.Fatal(err)
	}
	run(t, w.relay(t, "x", sink, w.store, always).Run)
	sink.wait(t, w.ids[0])
}

// A relay whose sink fails again and again leaves the role to one whose sink does not.
func TestARelayWhoseSinkFailsHandsOver(t *testing.T) {
	w := newWorld(t)
	w.event(t, "p", now)
	role := make(chan struct{}, 1)
	inTurn := func(ctx context.Context, _ string, work func(context.Context)) {
		for ctx.Err() == nil {
			select {
			case role <- struct{}{}:
				work(ctx)
				<-role
				pause(ctx, 10*time.Millisecond)
			case <-ctx.Done():
			}
		}
	}
	full, good := newMemSink(), newMemSink()
	failed := make(chan struct{}, 100)
	full.fail = func() (before, after error) { failed <- struct{}{}; return errors.New("the disk is full"), nil }
	run(t, w.relay(t, "x", full, w.store, inTurn).Run)
	<-failed
	run(t, w.relay(t, "x", good, w.store, inTurn).Run)
	good.wait(t, w.ids[0])
	if n := len(failed) + 1; n != relayTries {
		t.Errorf("it was given up after %d tries, want %d", n, relayTries)
	}
}

// While a sink hangs the lag grows.
func TestTheLagOfASinkThatHangs(t *testing.T) {
	w := newWorld(t)
	first := w.event(t, "p", now)
	began, hold := make(chan struct{}, 1), make(chan struct{})
	r := w.relay(t, "x", hanging{began, hold}, w.store, always)
	var later atomic.Int64
	r.Now = func() time.Time { return now.Add(time.Duration(later.Load())) }
	run(t, r.Run)
	<-began
	later.Store(int64(time.Hour))
	last := w.event(t, "p", now)
	if got, want := valueOf(t, r.seconds), time.Hour.Seconds(); got != want {
		t.Errorf("the sink has hung for an hour: lag of %v s, want %v", got, want)
	}
	if got, want := valueOf(t, r.behind), float64(last-first+1); got != want {
		t.Errorf("the sink hangs since revision %d, and %d is there: %v behind, want %v", first, last, got, want)
	}
	close(hold)
	w.waitCursor(t, "x", w.ids[len(w.ids)-1])
	if seconds, behind := valueOf(t, r.seconds), valueOf(t, r.behind); seconds != 0 || behind != 0 {
		t.Errorf("nothing is waiting: lag of %v s, %v behind", seconds, behind)
	}
}

// A sink that hangs, such as a pipe that nobody reads, does not hold up the stop.
func TestASinkThatHangsDoesNotHoldUpTheStop(t *testing.T) {
	w := newWorld(t)
	w.event(t, "p", now)
	began, hold := make(chan struct{}, 1), make(chan struct{})
	defer close(hold)
	stop := run(t, w.relay(t, "x", hanging{began, hold}, w.store, always).Run)
	<-began
	stop()
	if c := w.cursor(t, "x"); c == nil || c.Revision != 0 {
		t.Errorf("the cursor is %+v, want it where it was: nothing was taken", c)
	}
}

type hanging struct{ began, hold chan struct{} }

func (h hanging) Write([]byte) error { h.began <- struct{}{}; <-h.hold; return nil }

func TestFileSink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	name, sink, err := OpenSink("file:"+path, nil)
	if err != nil || name != "file" {
		t.Fatal(name, err)
	}
	write := func(text string) {
		t.Helper()
		if err := sink.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	write("one\n")
	write("two\nthr") // as a crash leaves it
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode: %v, %v; want 0600", info.Mode(), err)
	}
	_, sink, _ = OpenSink("file:"+path, nil)
	write("three\n")
	if got, want := read(path), "one\ntwo\nthr\nthree\n"; got != want {
		t.Errorf("the file holds %q, want %q", got, want)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("four\n")
	if got := read(path); got != "four\n" {
		t.Errorf("after the rotation the file holds %q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := sink.Write([]byte("five\n")); err == nil {
		t.Error("a directory was written to")
	}
	for _, target := range []string{"", "file:", "file:a", "/a", "stderr"} {
		if _, _, err := OpenSink(target, nil); err == nil {
			t.Errorf("the target %q was taken", target)
		}
	}
	var out bytes.Buffer
	_, stdout, _ := OpenSink("stdout", &out)
	if err := stdout.Write([]byte("x\n")); err != nil || out.String() != "x\n" {
		t.Errorf("stdout got %q, %v", out.String(), err)
	}
}

func (w *world) retention(t *testing.T) *Retention {
	t.Helper()
	mirror := pool.NewMirror()
	recs, rev, err := w.store.ReadAll(within(t))
	if err != nil {
		t.Fatal(err)
	}
	mirror.Load(recs, rev, time.Now())
	r, err := NewRetention(RetentionConfig{Store: w.store, Mirror: mirror, Lead: always, Now: clock, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// left lists what is there of kinds, as keys without the prefix.
func (w *world) left(t *testing.T, kind string) (keys []string) {
	t.Helper()
	resp, err := w.client.Get(within(t), "/rotator/"+kind+"/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		keys = append(keys, strings.TrimPrefix(string(kv.Key), "/rotator/"+kind+"/"))
	}
	return keys
}

func rotation(key string, generation int64, at time.Time) *pool.Rotation {
	return &pool.Rotation{Life: pool.Life{Pool: "p", Key: key, Generation: generation}, ID: "r-" + key, Slot: "s", NewKey: "n", Trigger: pool.TriggerOperator, CommittedAt: at}
}

func valueOf(t *testing.T, g prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

func TestRetention(t *testing.T) {
	old, older := now.Add(-2*time.Hour), now.Add(-40*24*time.Hour)
	w := newWorld(t)
	p := &pool.Pool{Name: "p", Spec: pool.Spec{RecordRetention: time.Hour}, CreatedAt: older}
	w.event(t, "p", older, p)                              // e0
	first := w.event(t, "p", old, rotation("k1", 7, old))  // e1
	second := w.event(t, "p", old, rotation("k2", 8, old)) // e2
	w.event(t, "p", now, rotation("k3", 9, now))           // e3
	w.event(t, "gone", old)                                // e4: its pool's record is gone, the default is 30 days
	last := w.event(t, "gone", older)                      // e5
	check := func(what string, rotations, events []string, blocked float64) {
		t.Helper()
		r := w.retention(t)
		if err := r.once(within(t)); err != nil {
			t.Fatal(err)
		}
		if got := w.left(t, "rotations"); !slices.Equal(got, rotations) {
			t.Errorf("%s: rotations left: %v, want %v", what, got, rotations)
		}
		if got := w.left(t, "events"); !slices.Equal(got, events) {
			t.Errorf("%s: events left: %v, want %v", what, got, events)
		}
		if got := valueOf(t, r.blocked); got != blocked {
			t.Errorf("%s: blocked is %v, want %v", what, got, blocked)
		}
	}
	// A relay that has passed nothing keeps everything.
	cursor, err := put(within(t), w.store, nil, pool.Relay{Name: "x", UpdatedAt: now})
	if err != nil {
		t.Fatal(err)
	}
	everything := []string{"gone/e0004", "gone/e0005", "p/e0000", "p/e0001", "p/e0002", "p/e0003"}
	check("nothing relayed", []string{"p/k1/7", "p/k2/8", "p/k3/9"}, everything, 1)
	// One that stands in a revision keeps what comes after it there, and a rotation whose event may be among that.
	cursor, err = put(within(t), w.store, cursor, pool.Relay{Name: "x", Revision: second, EventID: "e0001x", UpdatedAt: now})
	if err != nil {
		t.Fatal(err)
	}
	if first >= second {
		t.Fatal("the test shows nothing")
	}
	check("some relayed", []string{"p/k2/8", "p/k3/9"}, []string{"gone/e0004", "gone/e0005", "p/e0002", "p/e0003"}, 1)
	if _, err = put(within(t), w.store, cursor, pool.Relay{Name: "x", Revision: last, EventID: "e0005", UpdatedAt: now}); err != nil {
		t.Fatal(err)
	}
	check("all relayed", []string{"p/k3/9"}, []string{"gone/e0004", "p/e0003"}, 0)
}

// What has changed since it was looked at is not deleted.
func TestRetentionDeletesOnlyWhatItHasSeen(t *testing.T) {
	w := newWorld(t)
	old := now.Add(-2 * time.Hour)
	w.event(t, "p", old, &pool.Pool{Name: "p", Spec: pool.Spec{RecordRetention: time.Hour}, CreatedAt: old}, rotation("k1", 7, old))
	r := w.retention(t)
	w.event(t, "p", now, &pool.Pool{Name: "p", Spec: pool.Spec{RecordRetention: 24 * time.Hour}, CreatedAt: old}) // longer than seen
	if err := r.once(within(t)); err != nil {
		t.Fatal(err)
	}
	if got := w.left(t, "rotations"); len(got) != 1 {
		t.Errorf("rotations left: %v, want the one whose pool has got a longer retention meanwhile", got)
	}
}

// More events than one batch has are deleted in several transactions.
func TestRetentionInBatches(t *testing.T) {
	w := newWorld(t)
	old := now.Add(-40 * 24 * time.Hour)
	for range 250 {
		w.event(t, "p", old)
	}
	keep := w.event(t, "p", now)
	if err := w.retention(t).once(within(t)); err != nil {
		t.Fatal(err)
	}
	if got := w.left(t, "events"); len(got) != 1 {
		t.Errorf("%d events left, want the one of revision %d", len(got), keep)
	}
}

// Events that cannot be read stay, and do not keep those after them.
func TestRetentionPassesWhatItCannotRead(t *testing.T) {
	w := newWorld(t)
	const broken = 2*purgeBatch + 1
	for i := range broken {
		if _, err := w.client.Put(within(t), fmt.Sprintf("/rotator/events/p/a%04d", i), "{"); err != nil {
			t.Fatal(err)
		}
	}
	w.event(t, "p", now.Add(-40*24*time.Hour))
	w.event(t, "p", now)
	if err := w.retention(t).once(within(t)); err != nil {
		t.Fatal(err)
	}
	if got := w.left(t, "events"); len(got) != broken+1 || got[broken] != "p/e0001" {
		t.Errorf("%d events left, the last one %s, want the %d broken ones and p/e0001", len(got), got[len(got)-1], broken)
	}
}
