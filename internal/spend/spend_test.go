package spend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// rig is a checker over a whole domain in memory, with an upstream that is a map.
type rig struct {
	t       testing.TB
	store   *pooltest.MemStore
	mirror  *pool.Mirror
	admin   *pool.Admin
	rotator *pool.Rotator
	seen    *seen
	log     *buffer
	cfg     Config
	stop    func()

	mu      sync.Mutex // protects the following fields
	says    map[string]Reading
	fails   map[string]error
	reads   map[string][]time.Time // by key
	reading int
	most    int           // readings at once
	slow    time.Duration // a reading takes
}

// buffer keeps the log.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), text)
}

// seen is the observer.
type seen struct {
	mu      sync.Mutex
	results map[string]int
	due     int
	maxLag  time.Duration
}

func (s *seen) SpendChecked(_, result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.results[result]++
}

func (s *seen) SpendDue(keys int, lag time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due, s.maxLag = keys, max(s.maxLag, lag)
}

func (s *seen) of(result string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.results[result]
}

// Read implements Reader.
func (r *rig) Read(ctx context.Context, q Target) (Reading, error) {
	key := q.Key.Reveal()
	r.mu.Lock()
	r.reads[key] = append(r.reads[key], time.Now())
	r.reading++
	r.most = max(r.most, r.reading)
	says, err, slow := r.says[key], r.fails[key], r.slow
	r.mu.Unlock()
	pause(ctx, slow)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reading--
	if says == (Reading{}) && err == nil {
		says.SpendUSD = usd(0)
	}
	return says, errors.Join(err, ctx.Err())
}

func newRig(t testing.TB, spec pool.Spec) *rig {
	t.Helper()
	store, mirror := pooltest.NewMemStore(), pool.NewMirror()
	store.Feed(mirror)
	r := &rig{
		t: t, store: store, mirror: mirror, seen: &seen{results: make(map[string]int)}, log: &buffer{},
		says: make(map[string]Reading), fails: make(map[string]error), reads: make(map[string][]time.Time),
	}
	r.admin = pool.NewAdmin(pool.AdminConfig{Store: store, Sealer: pooltest.FakeSealer{}, Replica: "r0"})
	r.rotator = pool.NewRotator(pool.RotatorConfig{
		Store: store, Locks: &pooltest.MemLocks{Store: store, Holder: "r0"}, Mirror: mirror, Observer: pool.NopObserver{}, Replica: "r0",
	})
	r.cfg = Config{
		Mirror: mirror, Sealer: pooltest.FakeSealer{}, Reader: r, Rotate: r.rotator.Rotate, Record: r.admin.RecordSpend,
		Observer: r.seen, Log: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	if _, _, err := r.admin.CreatePool(t.Context(), "p", spec); err != nil {
		t.Fatal(err)
	}
	return r
}

// watchedSpec is the spec of a pool whose spend is watched.
func watchedSpec() pool.Spec {
	return pool.Spec{
		Upstream: pool.UpstreamSpec{Kind: pool.UpstreamLiteLLM, BaseURL: "http://litellm"}, Spend: &pool.SpendPolicy{},
		Bound: pool.BoundSpec{Rotations: new(int)}, // any number
	}
}

func (r *rig) add(home pool.Home, keys ...string) {
	r.t.Helper()
	var news []pool.NewKey
	for _, k := range keys {
		news = append(news, pool.NewKey{ID: k, Secret: pool.NewSecret(k)}) // the upstream knows them by these
	}
	added, _, err := r.admin.AddKeys(r.t.Context(), "p", home, news, false)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, a := range added {
		if a.Result != pool.AddResultAdded {
			r.t.Fatalf("adding %s: %+v", a.ID, a)
		}
	}
}

// run starts the checker; the function that ends it is called at the end of the test too.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); New(r.cfg).Run(ctx) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	r.stop = stop
	return stop
}

// end stops all that runs: a bubble waits for it.
func (r *rig) end() {
	r.stop()
	r.rotator.Close()
}

func (r *rig) say(key string, reading Reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.says[key] = reading
}

func (r *rig) fail(key string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails[key] = err
}

func (r *rig) count(key string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reads[key])
}

// counts is the number of readings of each key.
func (r *rig) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := make(map[string]int)
	for key, reads := range r.reads {
		n[key] = len(reads)
	}
	return n
}

func (r *rig) active(key string) (a *pool.Active) {
	r.mirror.Read(func(s *pool.Snapshot) { a = s.Pool("p").Active[key] })
	return a
}

// rotations counts the events.
func (r *rig) rotations() (reasons []string) {
	for _, e := range r.store.Events() {
		if e.Type == pool.EventKeyRotated {
			reasons = append(reasons, fmt.Sprintf("%s>%s %s %s %s", e.Key, e.NewKey, e.Trigger, e.Source, e.Reason))
		}
	}
	return reasons
}

// sleep lets fake time pass, and what happens in it happen.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestKeysAreCheckedByTheirTiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		spends := map[string]float64{"far": 1, "half": 6, "near": 9, "there": 9.5}
		for key, spend := range spends {
			r.add(pool.HomeActive, key)
			r.say(key, Reading{SpendUSD: usd(spend)})
		}
		r.run()
		defer r.end()
		sleep(time.Second)
		for key, spend := range spends {
			if a := r.active(key); r.count(key) != 1 || a.SpendUSD == nil || *a.SpendUSD != spend || *a.BudgetUSD != 10 {
				t.Errorf("%s: want it read at once and on record, got %d readings and %+v", key, r.count(key), a)
			}
		}
		sleep(time.Hour)
		for key, every := range map[string]time.Duration{"far": 6 * time.Minute, "half": 3 * time.Minute, "near": 15 * time.Second, "there": 5 * time.Second} {
			most := int(time.Hour/every) + 1
			// Up to a tenth later each time, and a pause between two looks.
			if got := r.count(key); got > most || float64(got) < float64(most)/1.2-1 {
				t.Errorf("%s: %d readings in an hour, want about %d", key, got, most)
			}
		}
		if got := r.rotations(); len(got) != 0 {
			t.Errorf("want no rotation, got %v", got)
		}
	})
}

func TestOnlyWhatMattersIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		r.add(pool.HomeActive, "k")
		r.say("k", Reading{SpendUSD: usd(9.5)})
		r.run()
		defer r.end()
		sleep(time.Second)
		before := r.store.Revision()
		sleep(time.Hour)
		if got := r.store.Revision(); got != before {
			t.Errorf("%d writes in an hour without news", got-before)
		}
		r.say("k", Reading{SpendUSD: usd(9.7)})
		sleep(6 * time.Second)
		if got := r.store.Revision(); got != before+1 || *r.active("k").SpendUSD != 9.7 {
			t.Errorf("%d writes of one piece of news, and $%v on record", got-before, *r.active("k").SpendUSD)
		}
	})
}

func TestRotationsAtTheEndOfABudget(t *testing.T) {
	for name, tt := range map[string]struct {
		spec    pool.SpendPolicy
		reading Reading
		want    string
	}{
		"threshold":            {pool.SpendPolicy{}, Reading{SpendUSD: usd(9.95)}, "k>b spend-checker spend proactive_threshold_9.95"},
		"exceeded":             {pool.SpendPolicy{}, Reading{SpendUSD: usd(10.02), BudgetUSD: usd(10), Exceeded: true}, "k>b spend-checker spend budget_exceeded_10.02"},
		"exceeded, no number":  {pool.SpendPolicy{}, Reading{Exceeded: true}, "k>b spend-checker spend budget_exceeded"},
		"the policy's numbers": {pool.SpendPolicy{BudgetUSD: 50, Threshold: 0.5}, Reading{SpendUSD: usd(25)}, "k>b spend-checker spend proactive_threshold_25.00"},
		"the upstream's budget": {
			pool.SpendPolicy{BudgetUSD: 50}, Reading{SpendUSD: usd(2.6), BudgetUSD: usd(2.5)}, "k>b spend-checker spend proactive_threshold_2.60",
		},
		"below":                            {pool.SpendPolicy{}, Reading{SpendUSD: usd(9.94)}, ""},
		"the upstream's budget is greater": {pool.SpendPolicy{}, Reading{SpendUSD: usd(11), BudgetUSD: usd(100)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spec := watchedSpec()
				spec.Spend = &tt.spec
				r := newRig(t, spec)
				r.add(pool.HomeActive, "k")
				r.add(pool.HomeBackup, "b")
				r.say("k", tt.reading)
				r.run()
				defer r.end()
				sleep(2 * time.Second)
				if got := strings.Join(r.rotations(), "; "); got != tt.want {
					t.Errorf("got the rotations %q, want %q", got, tt.want)
				}
				if tt.want != "" && (r.count("b") != 1 || r.seen.of(ResultRotated) != 1) {
					t.Errorf("want the new key looked at, and one rotation counted, got %d readings, %v", r.count("b"), r.seen.results)
				}
			})
		})
	}
}

// Nothing is watched where no policy says so, and nothing of keys that are out of service.
func TestWhatIsNotWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		r.add(pool.HomeActive, "k", "off")
		r.add(pool.HomeBackup, "b")
		if _, _, err := r.admin.DisableKey(t.Context(), "p", "off", ""); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.admin.CreatePool(t.Context(), "q", pool.Spec{}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.admin.AddKeys(t.Context(), "q", pool.HomeActive, []pool.NewKey{{ID: "x", Secret: pool.NewSecret("x")}}, false); err != nil {
			t.Fatal(err)
		}
		r.run()
		defer r.end()
		sleep(10 * time.Minute)
		if r.count("off")+r.count("b")+r.count("x") != 0 || r.count("k") == 0 {
			t.Errorf("want k read and nothing else, got %v", r.counts())
		}
	})
}

func TestPausedPoolsAreReadAndNotRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		r.add(pool.HomeActive, "k")
		r.add(pool.HomeBackup, "b")
		r.say("k", Reading{SpendUSD: usd(9.96)})
		if _, _, err := r.admin.PausePool(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
		r.run()
		defer r.end()
		sleep(30 * time.Minute)
		if n := r.count("k"); n < 5 || n > 15 || r.active("k").SpendUSD == nil || len(r.rotations()) != 0 {
			t.Errorf("want the key read ever more seldom, and not rotated, got %d readings and %v", n, r.rotations())
		}
		if n := r.log.count("cannot be rotated now"); n != 1 {
			t.Errorf("want it logged once, got %d times", n)
		}
		if _, _, err := r.admin.ResumePool(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		if len(r.rotations()) != 1 {
			t.Errorf("want it rotated soon after the pool is resumed, got %v", r.rotations())
		}
	})
}

func TestWithoutStock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		r.add(pool.HomeActive, "k")
		r.say("k", Reading{SpendUSD: usd(9.96)})
		r.run()
		defer r.end()
		sleep(time.Second)
		before := r.store.Revision()
		sleep(30 * time.Minute)
		parked := 0
		for _, e := range r.store.Events() {
			if e.Type == pool.EventKeyPending {
				parked++
			}
		}
		if n := r.log.count("cannot be rotated now"); parked != 1 || n != 1 || r.store.Revision() != before {
			t.Errorf("want one rotation that waits and one line, got %d and %d, and %d more writes", parked, n, r.store.Revision()-before)
		}
	})
}

func TestRefusalsAreTriedAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		r.add(pool.HomeActive, "k")
		r.add(pool.HomeBackup, "b")
		r.say("k", Reading{SpendUSD: usd(9.96)})
		var tries atomic.Int32
		var open atomic.Bool
		var requests sync.Map
		r.cfg.Rotate = func(ctx context.Context, req pool.RotateRequest) (*pool.RotateResult, error) {
			tries.Add(1)
			if requests.Store(req.RequestID, true); !open.Load() {
				return nil, pool.Refuse(pool.ReasonRotationBound, "the pool is at its bound")
			}
			return r.rotator.Rotate(ctx, req)
		}
		r.run()
		defer r.end()
		sleep(10 * time.Minute)
		// Nine come if all waits come out at their shortest.
		if n := tries.Load(); n < 4 || n > 9 || r.log.count("cannot be rotated now") != 1 {
			t.Errorf("want a few tries and one line; got %d and %d", n, r.log.count("cannot be rotated now"))
		}
		ids := 0
		requests.Range(func(any, any) bool { ids++; return true })
		if ids != 1 {
			t.Errorf("want one request id for all tries, got %d", ids)
		}
		open.Store(true)
		sleep(6 * time.Minute)
		if len(r.rotations()) != 1 {
			t.Errorf("want one rotation once that is possible, got %v", r.rotations())
		}
	})
}

func TestReadingsThatFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		r.add(pool.HomeActive, "k", "l")
		r.fail("k", errors.New("HTTP 503"))
		r.fail("l", errors.New("HTTP 503"))
		r.run()
		defer r.end()
		sleep(30 * time.Minute)
		if n := r.count("k"); n < 8 || n > 18 {
			t.Errorf("%d readings in half an hour, want ever fewer", n)
		}
		if got := r.log.count("cannot be read"); got != 1 || r.seen.of(ResultOK) != 0 || r.active("k").SpendUSD != nil {
			t.Errorf("want one line for the pool and nothing on record, got %d lines", got)
		}
		r.fail("k", nil)
		r.fail("l", nil)
		sleep(7 * time.Minute)
		if r.log.count("can be read again") != 1 || r.active("k").SpendUSD == nil {
			t.Errorf("want one line that it works again, got %d", r.log.count("can be read again"))
		}
	})
}

func TestChecksAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		var keys []string
		for i := range 50 {
			keys = append(keys, fmt.Sprintf("k%d", i))
		}
		r.add(pool.HomeActive, keys...)
		r.slow = time.Second
		r.run()
		defer r.end()
		sleep(20 * time.Second)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.most != 4 || len(r.reads) != 50 || r.seen.maxLag == 0 {
			t.Errorf("want all 50 keys of one upstream read, 4 at once, and a lag, got %d, %d, %v", len(r.reads), r.most, r.seen.maxLag)
		}
	})
}

// A new leader goes by what is on record: it does not read all keys at once.
func TestChangeOfLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		var keys []string
		for i := range 100 {
			keys = append(keys, fmt.Sprintf("k%d", i))
		}
		r.add(pool.HomeActive, keys...)
		stop := r.run()
		sleep(time.Hour)
		stop()
		if r.seen.due != 0 {
			t.Errorf("want nothing due where nobody checks, got %d", r.seen.due)
		}
		before := r.counts()
		r.run()
		defer r.end()
		sleep(10 * time.Second)
		again := 0
		for key, n := range r.counts() {
			again += n - before[key]
		}
		if again > 15 { // 100 keys over six minutes
			t.Errorf("%d of 100 keys read within 10 s of a change of leader", again)
		}
		sleep(7 * time.Minute)
		for key, n := range r.counts() {
			if n == before[key] {
				t.Errorf("%s was not read by the new leader", key)
			}
		}
	})
}

// Provider, pool and checker ask for the same key at the same moment, again and again: each time one rotation, and the
// number of keys stays.
func TestRacesWithOtherTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watchedSpec())
		const rounds = 200
		r.say("k0", Reading{SpendUSD: usd(9.96)})
		r.add(pool.HomeActive, "k0")
		for i := range rounds {
			key := fmt.Sprintf("k%d", i+1)
			r.say(key, Reading{SpendUSD: usd(9.96)})
			r.add(pool.HomeBackup, key)
		}
		r.slow = lookPause // so that the checker asks when the others do
		r.run()
		defer r.end()
		outcomes := make(map[pool.Outcome]int)
		var mu sync.Mutex
		for len(r.rotations()) < rounds {
			a := r.inService()
			var wg sync.WaitGroup
			for _, trigger := range []pool.Trigger{pool.TriggerPool, pool.TriggerProvider} {
				wg.Go(func() {
					req := pool.RotateRequest{Pool: "p", Key: a.Key, Generation: a.CreateRevision, Trigger: trigger, Source: "test", Reason: "401"}
					res, err := r.rotator.Rotate(t.Context(), req)
					if err != nil {
						t.Errorf("%s: %v", a.Key, err)
						return
					}
					mu.Lock()
					outcomes[res.Outcome]++
					mu.Unlock()
				})
			}
			wg.Wait()
			sleep(2 * lookPause)
		}
		made := outcomes[pool.OutcomeRotated] + r.seen.of(ResultRotated)
		if made != rounds || r.seen.of(ResultAlreadyRotated) == 0 || r.inService() == nil {
			t.Errorf("%d rotations of %d are claimed, by others %v, by the checker %v", made, rounds, outcomes, r.seen.results)
		}
	})
}

// inService is the one active key.
func (r *rig) inService() (only *pool.Active) {
	r.t.Helper()
	r.mirror.Read(func(s *pool.Snapshot) {
		if n := len(s.Pool("p").Active); n != 1 {
			r.t.Errorf("%d active keys, want 1", n)
		}
		for _, a := range s.Pool("p").Active {
			only = a
		}
	})
	return only
}
