package pool_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// rotateRig is replicas' Rotators on one store in memory. Run it in a synctest bubble: then waits take no time, and what
// takes long is seen in the clock.
type rotateRig struct {
	t        *testing.T
	store    *pooltest.MemStore
	faulty   *pooltest.Faulty // of the first replica
	mirror   *pool.Mirror
	rotators []*pool.Rotator
	seen     *sightings
}

// sightings counts what an Observer is told.
type sightings struct {
	pool.NopObserver
	mu                           sync.Mutex
	rotated, parked, tookOver    int
	blocked                      int
	unknown, answered, conflicts int
	shared, bounds, cooled       int
	causes                       map[string]int
}

func (s *sightings) count(n *int) { s.mu.Lock(); *n++; s.mu.Unlock() }

func (s *sightings) Rotated(*pool.Rotation, time.Duration)     { s.count(&s.rotated) }
func (s *sightings) Parked(*pool.Pending)                      { s.count(&s.parked) }
func (s *sightings) Blocked(pool.Life, error)                  { s.count(&s.blocked) }
func (s *sightings) TookOver(pool.Life, string, time.Duration) { s.count(&s.tookOver) }
func (s *sightings) BoundReached(*pool.Pool, string)           { s.count(&s.bounds) }
func (s *sightings) CooledDown(*pool.Active, pool.Trigger, string) {
	s.count(&s.cooled)
}
func (s *sightings) OutcomeUnknown(string, string, int, error) { s.count(&s.unknown) }
func (s *sightings) Answered(_ pool.Life, _ pool.Trigger, _, _ string, shared bool, _ time.Duration) {
	s.count(&s.answered)
	if shared {
		s.count(&s.shared)
	}
}

func (s *sightings) Conflict(_ pool.Life, cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.causes == nil {
		s.causes = make(map[string]int)
	}
	s.causes[cause]++
	s.conflicts++
}

func newRotateRig(t *testing.T, replicas int, adjust func(*pool.RotatorConfig)) *rotateRig {
	t.Helper()
	r := &rotateRig{t: t, store: pooltest.NewMemStore(), mirror: pool.NewMirror(), seen: &sightings{}}
	r.faulty = &pooltest.Faulty{Store: r.store}
	r.store.Put(&pool.Pool{Name: "p"})
	r.store.Feed(r.mirror)
	for i := range replicas {
		name := fmt.Sprint("r", i)
		var store pool.Store = r.store
		if i == 0 {
			store = r.faulty
		}
		cfg := pool.RotatorConfig{
			Store: store, Locks: &pooltest.MemLocks{Store: r.store, Holder: name, Commits: store}, Mirror: r.mirror, Observer: r.seen, Replica: name,
		}
		if adjust != nil {
			adjust(&cfg)
		}
		rot := pool.NewRotator(cfg)
		t.Cleanup(rot.Close)
		r.rotators = append(r.rotators, rot)
	}
	return r
}

// apart has campaigns made before their commits.
func apart(cfg *pool.RotatorConfig) { cfg.CampaignFirst = func() bool { return true } }

// bothWays runs a test with campaigns that take their commits along, and with such as are made before.
func bothWays(t *testing.T, test func(t *testing.T, adjust func(*pool.RotatorConfig))) {
	for name, adjust := range map[string]func(*pool.RotatorConfig){"with the commit": nil, "before the commit": apart} {
		t.Run("campaign "+name, func(t *testing.T) { test(t, adjust) })
	}
}

// active puts a key in service and returns its life.
func (r *rotateRig) active(key string) pool.Life {
	r.store.Put(&pool.Active{Pool: "p", Key: key, Slot: key, Status: pool.StatusHealthy}, &pool.Slot{Pool: "p", Name: key})
	return pool.Life{Pool: "p", Key: key, Generation: r.store.Revision()}
}

func (r *rotateRig) backups(keys ...string) {
	for _, k := range keys {
		r.store.Put(&pool.Backup{Pool: "p", Key: k})
	}
}

func request(l pool.Life, id string) pool.RotateRequest {
	return pool.RotateRequest{Pool: l.Pool, Key: l.Key, Generation: l.Generation, Trigger: pool.TriggerPool, RequestID: id}
}

func (r *rotateRig) count(kind pool.Kind) int {
	r.t.Helper()
	recs, _, err := r.store.List(context.Background(), kind, "p", 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return len(recs)
}

func (r *rotateRig) want(what string, got, want any) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

var errLost = pool.Refuse(pool.ReasonOutcomeUnknown, "the answer was lost")

// Every write of a rotation is lost, before or after it was made: nothing is doubled, and the answer is the true one.
func TestEveryWriteOfARotationIsLost(t *testing.T) { bothWays(t, testLostWrites) }

func testLostWrites(t *testing.T, adjust func(*pool.RotatorConfig)) {
	for _, stocked := range []bool{true, false} {
		for _, made := range []bool{true, false} {
			for _, times := range []int{1, 3} {
				t.Run(fmt.Sprintf("stocked=%v made=%v times=%d", stocked, made, times), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := newRotateRig(t, 1, adjust)
						life := r.active("a")
						if stocked {
							r.backups("b")
						}
						lost := 0
						r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
							if c.Op != "Apply" || lost == times {
								return pooltest.Fault{}
							}
							lost++
							return pooltest.Fault{Err: errLost, Made: made}
						}
						res, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
						if err != nil {
							t.Fatal(err)
						}
						want := pool.OutcomeRotated
						if !stocked {
							want = pool.OutcomePending
						}
						r.want("outcome", res.Outcome, want)
						told := times
						if made && adjust == nil { // the campaign that follows finds out
							told = 1
						}
						r.want("unknown outcomes told", r.seen.unknown, told)
						r.want("events", len(r.store.Events()), 1)
						r.want("active keys", r.count(pool.KindActive), 1)
						r.want("locks left", r.count(pool.KindLock), 0)
					})
				})
			}
		}
	}
}

// The store never says what became of the commit: the caller is told just that, and asking again gets the truth.
func TestOutcomeUnknownIsResolvable(t *testing.T) { bothWays(t, testUnknownOutcome) }

func testUnknownOutcome(t *testing.T, adjust func(*pool.RotatorConfig)) {
	for _, made := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRotateRig(t, 1, adjust)
			life := r.active("a")
			r.backups("b")
			r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
				if c.Op != "Apply" {
					return pooltest.Fault{}
				}
				return pooltest.Fault{Err: errLost, Made: made}
			}
			_, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
			if !made || adjust != nil { // a commit that went with its campaign is looked for
				r.want("reason", pool.ReasonOf(err), pool.ReasonOutcomeUnknown)
			} else if err != nil {
				t.Error(err)
			}
			r.faulty.Decide = nil
			res, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
			if err != nil {
				t.Fatal(err)
			}
			r.want("outcome of the same request", res.Outcome, pool.OutcomeRotated)
			r.want("rotations", r.count(pool.KindRotation), 1)
		})
	}
}

// A commit whose answer was lost is observed as one whose answer came, whether it was made or had to be made again.
func TestLostAnswerIsObserved(t *testing.T) {
	bothWays(t, func(t *testing.T, adjust func(*pool.RotatorConfig)) {
		for _, made := range []bool{true, false} {
			for _, backups := range [][]string{{"b"}, nil} {
				synctest.Test(t, func(t *testing.T) { testLostAnswer(t, adjust, made, backups) })
			}
		}
	})
}

func testLostAnswer(t *testing.T, adjust func(*pool.RotatorConfig), made bool, backups []string) {
	r := newRotateRig(t, 1, adjust)
	life := r.active("a")
	r.backups(backups...)
	lost := false
	r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
		if c.Op == "Apply" && !lost {
			lost = true
			f = pooltest.Fault{Err: errLost, Made: made}
		}
		return f
	}
	if _, err := r.rotators[0].Rotate(t.Context(), request(life, "mine")); err != nil {
		t.Error(err)
	}
	r.want("answers lost", lost, true)
	r.want("rotations observed", r.seen.rotated, len(backups))
	r.want("waits observed", r.seen.parked, 1-len(backups))
}

// A commit that never left is not called unknown.
func TestNotAppliedIsNotUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		life := r.active("a")
		r.backups("b")
		r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
			return pooltest.Fault{Err: pool.Refuse(pool.ReasonNotApplied, "not sent")}
		}
		_, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
		r.want("reason", pool.ReasonOf(err), pool.ReasonNotApplied)
		r.want("rotations", r.count(pool.KindRotation), 0)
	})
}

// A rival changes what the commit rests on, between its reads and its transaction.
func TestRivalsOfACommit(t *testing.T) { bothWays(t, testRivals) }

func testRivals(t *testing.T, adjust func(*pool.RotatorConfig)) {
	type rig = *rotateRig
	cases := map[string]struct {
		rival   func(r rig)
		outcome pool.Outcome
		reason  pool.Reason
		cause   string // if the campaign was made before
		with    string // if it takes the commit along; "": the same, "none": it is not lost
	}{
		"the backups it sees are taken": {
			rival:   func(r rig) { r.store.Drop(pool.BackupRef("p", "b0"), pool.BackupRef("p", "b1")); r.backups("c") },
			outcome: pool.OutcomeRotated, cause: "backup_taken",
		},
		"all backups are taken": {
			rival:   func(r rig) { r.store.Drop(pool.BackupRef("p", "b0"), pool.BackupRef("p", "b1")) },
			outcome: pool.OutcomePending, cause: "backup_taken",
		},
		"the pool is changed": {
			rival:   func(r rig) { r.store.Put(&pool.Pool{Name: "p", Spec: pool.Spec{Description: "new"}}) },
			outcome: pool.OutcomeRotated, cause: "pool_changed",
		},
		"the pool is paused": {
			rival:  func(r rig) { r.store.Put(&pool.Pool{Name: "p", Paused: true}) },
			reason: pool.ReasonPoolPaused, cause: "pool_changed",
		},
		"the pool is being deleted": {
			rival:  func(r rig) { r.store.Put(&pool.Pool{Name: "p", Deleting: true}) },
			reason: pool.ReasonPoolDeleting, cause: "pool_changed",
		},
		"the pool is gone with all it had": {
			rival: func(r rig) {
				r.store.Drop(pool.ActiveRef("p", "a"), pool.BackupRef("p", "b0"), pool.BackupRef("p", "b1"), pool.LockRef("p", "a"), pool.PoolRef("p"))
			},
			reason: pool.ReasonPoolNotFound, cause: "life_ended", with: "none",
		},
		"the key cools down": {
			rival: func(r rig) {
				r.store.Put(&pool.Active{Pool: "p", Key: "a", Slot: "a", Status: pool.StatusRateLimited, StatusUntil: time.Now().Add(time.Minute)})
			},
			outcome: pool.OutcomeRotated, with: "status_changed",
		},
		"the key is removed": {
			rival:  func(r rig) { r.store.Drop(pool.ActiveRef("p", "a"), pool.LockRef("p", "a")) },
			reason: pool.ReasonKeyNotFound, cause: "life_ended", with: "none",
		},
		"the lock is lost": {
			rival:   func(r rig) { r.store.Drop(pool.LockRef("p", "a")) },
			outcome: pool.OutcomeRotated, cause: "lock_lost", with: "none",
		},
		"the key is disabled": {
			rival: func(r rig) {
				r.store.Put(&pool.Active{Pool: "p", Key: "a", Slot: "a", Status: pool.StatusDisabled})
				r.store.Drop(pool.LockRef("p", "a"))
			},
			reason: pool.ReasonKeyDisabled, cause: "lock_lost", with: "status_changed",
		},
		"somebody rotates it": {
			rival: func(r rig) {
				a := must(pool.Find[*pool.Active](must(r.store.Read(context.Background(), pool.ActiveRef("p", "a"))), pool.ActiveRef("p", "a")))
				r.store.Drop(pool.LockRef("p", "a"))
				if _, err := r.rotators[1].Rotate(context.Background(), request(a.Life(), "rival")); err != nil {
					r.t.Error(err)
				}
			},
			outcome: pool.OutcomeAlreadyRotated, cause: "life_ended", with: "none",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 2, adjust)
				life := r.active("a")
				r.backups("b0", "b1")
				var once sync.Once
				r.faulty.Decide = func(call pooltest.Call) pooltest.Fault {
					if call.Op != "Apply" {
						return pooltest.Fault{}
					}
					return pooltest.Fault{Before: func() { once.Do(func() { c.rival(r) }) }}
				}
				res, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
				r.want("reason", pool.ReasonOf(err), c.reason)
				if res != nil {
					r.want("outcome", res.Outcome, c.outcome)
				} else if c.outcome != 0 {
					t.Errorf("no result, %v; want outcome %v", err, c.outcome)
				}
				cause := c.cause
				if adjust == nil && c.with != "" {
					cause = c.with
				}
				switch {
				case cause == "none" && len(r.seen.causes) > 0:
					t.Errorf("causes counted: %v, want none", r.seen.causes)
				case cause != "none" && cause != "" && r.seen.causes[cause] == 0:
					t.Errorf("causes counted: %v, want %s", r.seen.causes, cause)
				}
				r.want("locks left", r.count(pool.KindLock), 0)
			})
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A dead holder's lock costs callers the patience, and a slow store makes it longer.
func TestTakeOverAfterPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		life := r.active("a")
		r.backups("b")
		r.store.Put(&pool.Lock{Life: life, Holder: "dead", Stage: pool.StageRotate})
		began := time.Now()
		res, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
		if err != nil {
			t.Fatal(err)
		}
		r.want("outcome", res.Outcome, pool.OutcomeRotated)
		r.want("took over", r.seen.tookOver, 1)
		if took := time.Since(began); took < 50*time.Millisecond || took > 300*time.Millisecond {
			t.Errorf("the take-over took %v", took)
		}
	})
}

// Calls for one life share one flight, and the mirror answers those that come after it.
func TestCallsCollapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		r := newRotateRig(t, 1, func(cfg *pool.RotatorConfig) {
			cfg.Steps = func(_ context.Context, s pool.Step, _ pool.Life) error {
				if s == pool.StepRead {
					<-hold
				}
				return nil
			}
		})
		life := r.active("a")
		r.backups("b")
		var wg sync.WaitGroup
		outcomes := make([]pool.Outcome, 100)
		for i := range outcomes {
			wg.Go(func() {
				res, err := r.rotators[0].Rotate(t.Context(), request(life, fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
					return
				}
				outcomes[i] = res.Outcome
			})
		}
		synctest.Wait()
		close(hold)
		wg.Wait()
		rotated := 0
		for _, o := range outcomes {
			if o == pool.OutcomeRotated {
				rotated++
			}
		}
		r.want("callers told ROTATED", rotated, 1)
		r.want("calls that made no work", r.seen.shared, 99)
		calls := r.faulty.Calls()
		res, err := r.rotators[0].Rotate(t.Context(), request(life, "late"))
		if err != nil {
			t.Fatal(err)
		}
		r.want("late outcome", res.Outcome, pool.OutcomeAlreadyRotated)
		r.want("calls of the store for a late trigger", r.faulty.Calls()-calls, 0)
	})
}

// Callers without a generation share reads, and never one that began before they asked.
func TestReadsAreSharedAndNeverStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		r.backups("b") // in stock, so that each call is one read and a refusal
		reads := 0
		var mu sync.Mutex
		r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
			if c.Op != "Read" {
				return pooltest.Fault{}
			}
			return pooltest.Fault{Before: func() {
				mu.Lock()
				reads++
				mu.Unlock()
				time.Sleep(10 * time.Millisecond) // a read under way, in fake time
			}}
		}
		ask := func() error {
			_, err := r.rotators[0].Rotate(t.Context(), pool.RotateRequest{Pool: "p", Key: "b", Trigger: pool.TriggerPool})
			return err
		}
		var wg sync.WaitGroup
		wg.Go(func() { _ = ask() })
		synctest.Wait()
		for range 50 {
			wg.Go(func() {
				if err := ask(); pool.ReasonOf(err) != pool.ReasonKeyInStock {
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		r.want("reads for 51 callers", reads, 2)
	})
}

// Close does not wait for ever, and leaves callers with an answer.
func TestCloseEndsFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		life := r.active("a")
		r.backups("b")
		r.store.Put(&pool.Lock{Life: life, Holder: "busy", Stage: "probe", BusyUntil: time.Now().Add(time.Hour)})
		done := make(chan error, 1)
		go func() {
			_, err := r.rotators[0].Rotate(context.Background(), request(life, "mine"))
			done <- err
		}()
		synctest.Wait()
		r.rotators[0].Close()
		if err := <-done; !errors.Is(err, pool.ErrOutcomeUnknown) { // the busy holder may rotate it yet
			t.Errorf("a flight that was stopped while it followed another replica's work: %v", err)
		}
		_, err := r.rotators[0].Rotate(context.Background(), request(life, "later"))
		r.want("reason after Close", pool.ReasonOf(err), pool.ReasonNotApplied)
	})
}

// The mirror lags: it does not show a dead holder's lock yet, or still shows one that is gone. Callers pay the patience,
// not their whole budget.
func TestTakeOverWithAMirrorThatLags(t *testing.T) {
	for name, hide := range map[string]func(r *rotateRig, life pool.Life){
		"the lock is not shown yet": func(r *rotateRig, life pool.Life) {
			r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
			r.store.Put(&pool.Lock{Life: life, Holder: "dead", Stage: pool.StageRotate})
		},
		"the lock is gone": func(r *rotateRig, life pool.Life) {
			r.store.Put(&pool.Lock{Life: life, Holder: "gone", Stage: pool.StageRotate})
			r.store.Feed(pool.NewMirror())
			r.store.Drop(pool.LockRef("p", "a"))
		},
		"the lock cannot be read": func(r *rotateRig, life pool.Life) {
			r.store.Put(&pool.Broken{Of: pool.LockRef("p", "a"), Err: errors.New("not JSON")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 1, nil)
				life := r.active("a")
				r.backups("b")
				hide(r, life)
				began := time.Now()
				res, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
				if err != nil {
					t.Fatal(err)
				}
				r.want("outcome", res.Outcome, pool.OutcomeRotated)
				if took := time.Since(began); took > 700*time.Millisecond {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// History: faults -seed 5, pool strict, key k30. The key had been in stock before its life, and the mirror of a replica
// still showed it there: the key was chosen to succeed itself, and callers got INTERNAL.
func TestKeyIsNotItsOwnSuccessor(t *testing.T) {
	for range 20 { // the choice is random
		r := newRotateRig(t, 1, nil)
		r.backups("a")
		r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
		r.store.Drop(pool.BackupRef("p", "a"))
		life := r.active("a")
		r.backups("b")
		res, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
		if err != nil {
			t.Fatal(err)
		}
		r.want("outcome", res.Outcome, pool.OutcomeRotated)
		r.want("successor", res.Rotation.NewKey, "b")
	}
}

// History: faults -seed 21 -lock off, pool admin, key k1. A caller joined a rotation that had been parked before and whose
// replica learned it late. By then an operator had enabled the key and another replica had rotated it; the caller was
// told PENDING.
func TestPendingThatIsOverIsNotToldToJoiners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		learns := make(chan struct{})
		parked := &parkingStore{Store: r.faulty, learns: learns}
		late := pool.NewRotator(pool.RotatorConfig{
			Store: parked, Locks: &pooltest.MemLocks{Store: r.store, Holder: "late", Commits: parked}, Mirror: r.mirror, Observer: r.seen, Replica: "late",
		})
		defer late.Close()
		life := r.active("a")
		var first, joiner *pool.RotateResult
		var calls sync.WaitGroup
		calls.Go(func() { first = must(late.Rotate(t.Context(), request(life, "first"))) })
		synctest.Wait()
		r.store.Drop(pool.PendingRef("p", "a"))
		calls.Go(func() { joiner = must(late.Rotate(t.Context(), request(life, "joiner"))) })
		synctest.Wait()
		r.backups("b")
		winner := must(r.rotators[0].Rotate(t.Context(), request(life, "winner")))
		close(learns)
		calls.Wait()
		r.want("outcome of the first", first.Outcome, pool.OutcomePending)
		r.want("outcome of the joiner", joiner.Outcome, pool.OutcomeAlreadyRotated)
		if joiner.Rotation != nil {
			r.want("rotation of the joiner", joiner.Rotation.ID, winner.Rotation.ID)
		}
	})
}

// parkingStore tells late that a rotation was parked.
type parkingStore struct {
	pool.Store
	learns chan struct{}
}

func (s *parkingStore) Apply(ctx context.Context, txn *pool.Txn) (*pool.Result, error) {
	res, err := s.Store.Apply(ctx, txn)
	<-s.learns
	return res, err
}

// History: faults -seed 3, pool admin, key k70. The other key of a PENDING answer came from a mirror that was behind the
// answer's revision, and was in use no more.
func TestPendingAnswerIsAsNewAsItsRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		life := r.active("a")
		r.active("other")
		r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
		r.store.Put(&pool.Active{Pool: "p", Key: "other", Slot: "other", Status: pool.StatusExhausted})
		res := must(r.rotators[0].Rotate(t.Context(), request(life, "mine")))
		r.want("outcome", res.Outcome, pool.OutcomePending)
		if res.Key != nil {
			t.Errorf("with revision %d the answer gives key %s, which was healthy before", res.Revision, res.Key.Key)
		}
	})
}

// What a replica remembers may be old: a key that an operator has disabled since, a pool that was paused, a rotation that
// waits. None of it is passed over, and none of it is refused from memory.
func TestRotationFromOldMemory(t *testing.T) { bothWays(t, testOldMemory) }

func testOldMemory(t *testing.T, adjust func(*pool.RotatorConfig)) {
	a := func(status pool.Status) *pool.Active {
		return &pool.Active{Pool: "p", Key: "a", Slot: "a", Status: status}
	}
	for name, tt := range map[string]struct {
		before, since pool.Record
		want          pool.Reason // "": it is rotated
	}{
		"disabled since":     {a(pool.StatusHealthy), a(pool.StatusDisabled), pool.ReasonKeyDisabled},
		"enabled since":      {a(pool.StatusDisabled), a(pool.StatusHealthy), ""},
		"cooling down since": {a(pool.StatusHealthy), a(pool.StatusRateLimited), ""},
		"paused since":       {&pool.Pool{Name: "p"}, &pool.Pool{Name: "p", Paused: true}, pool.ReasonPoolPaused},
		"resumed since":      {&pool.Pool{Name: "p", Paused: true}, &pool.Pool{Name: "p"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRotateRig(t, 1, adjust)
			life := r.active("a")
			r.backups("b")
			r.store.Put(tt.before)
			r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
			r.store.Put(tt.since)
			_, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
			if got := pool.ReasonOf(err); got != tt.want || err != nil && tt.want == "" {
				t.Errorf("rotated with %v, want %q", err, tt.want)
			}
		})
	}
}

// Crash tests stop a rotation at its steps, so each is passed, in order, whatever the rotation comes to. At the last one
// before it is sent, nothing of the commit is in the store.
func TestSteps(t *testing.T) { bothWays(t, testSteps) }

func testSteps(t *testing.T, adjust func(*pool.RotatorConfig)) {
	want := "[campaign locked read send commit answer]"
	if adjust == nil {
		adjust, want = func(*pool.RotatorConfig) {}, "[campaign read send commit answer]"
	}
	for _, test := range []struct {
		name  string
		stock []string
	}{{"rotated", []string{"b"}}, {"waits for stock", nil}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var passed []pool.Step
				var sent, answered int64
				var r *rotateRig
				r = newRotateRig(t, 1, func(cfg *pool.RotatorConfig) {
					adjust(cfg)
					cfg.Steps = func(_ context.Context, s pool.Step, _ pool.Life) error {
						passed = append(passed, s)
						switch s {
						case pool.StepSend:
							sent = r.store.Revision()
						case pool.StepCommit:
							answered = r.store.Revision()
						}
						return nil
					}
				})
				life := r.active("a")
				r.backups(test.stock...)
				if _, err := r.rotators[0].Rotate(t.Context(), request(life, "r")); err != nil {
					t.Fatal(err)
				}
				r.want("steps", fmt.Sprint(passed), want)
				r.want("revisions between the last two", answered-sent, int64(1))
			})
		})
	}
}

// A replica that finds nothing in its way makes one write, and no lock is ever there. One that does has taken the lock with
// the same write, and chooses again under it.
func TestOneWriteOrTheLock(t *testing.T) {
	for name, taken := range map[string]bool{"nothing in the way": false, "the backup is taken": true} {
		t.Run(name, func(t *testing.T) {
			r := newRotateRig(t, 1, nil)
			life := r.active("a")
			r.backups("b")
			locks := 0
			r.store.Watch(func(_ int64, _ func() []pool.Record, txn *pool.Txn) {
				if txn != nil && slices.ContainsFunc(txn.Put, func(rec pool.Record) bool { return rec.Ref().Kind == pool.KindLock }) {
					locks++
				}
			})
			if taken {
				r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
				r.store.Drop(pool.BackupRef("p", "b"))
				r.backups("c")
			}
			before := r.store.Revision()
			res := must(r.rotators[0].Rotate(t.Context(), request(life, "mine")))
			r.want("outcome", res.Outcome, pool.OutcomeRotated)
			writes, held := int64(1), 0
			if taken {
				writes, held = 2, 1
			}
			r.want("writes", r.store.Revision()-before, writes)
			r.want("locks written", locks, held)
			r.want("locks left", r.count(pool.KindLock), 0)
		})
	}
}

// What became of a commit that went with its campaign is not known, and it may still be made. Until the record it compares
// has changed, nobody is told that there was no rotation, whatever the reason is.
func TestNoAfterAnUnknownCommit(t *testing.T) {
	for name, then := range map[string]error{
		"the commit under the lock never leaves": pool.Refuse(pool.ReasonNotApplied, "not sent"),
		"it can never be made":                   errors.New("too large"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 1, nil)
				life := r.active("a")
				r.backups("b")
				var send func()
				r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
					switch {
					case c.Op == "Apply" && send == nil:
						return pooltest.Fault{Err: errLost, Before: func() { time.Sleep(time.Millisecond) }, Late: func(late func()) { send = late }}
					case c.Op == "Apply":
						return pooltest.Fault{Err: then}
					}
					return pooltest.Fault{}
				}
				var first, joiner error
				var calls sync.WaitGroup
				calls.Go(func() { _, first = r.rotators[0].Rotate(t.Context(), request(life, "first")) })
				calls.Go(func() { _, joiner = r.rotators[0].Rotate(t.Context(), request(life, "joiner")) })
				calls.Wait()
				r.want("reason", pool.ReasonOf(first), pool.ReasonOutcomeUnknown)
				r.want("reason for who joined", pool.ReasonOf(joiner), pool.ReasonOutcomeUnknown)
				r.faulty.Decide = nil
				send()
				res := must(r.rotators[0].Rotate(t.Context(), request(life, "later")))
				r.want("outcome", res.Outcome, pool.OutcomeAlreadyRotated)
				r.want("rotations", r.count(pool.KindRotation), 1)
			})
		})
	}
}

// A rotation waits for stock as far as is remembered, and there is none. That it waits is said by the store, which knows that
// it was made since, or that an operator took the key in hand.
func TestPendingIsNotSaidFromMemory(t *testing.T) {
	type rig = *rotateRig
	for name, tt := range map[string]struct {
		since   func(r rig, l pool.Life)
		outcome pool.Outcome
	}{
		"it was made since": {func(r rig, l pool.Life) {
			must(r.rotators[1].Rotate(context.Background(), request(l, "other")))
		}, pool.OutcomeAlreadyRotated},
		"it was cancelled since, and the backup is gone": {func(r rig, _ pool.Life) {
			r.store.Put(&pool.Active{Pool: "p", Key: "a", Slot: "a", Status: pool.StatusHealthy})
			r.store.Drop(pool.PendingRef("p", "a"), pool.BackupRef("p", "b"))
		}, pool.OutcomePending}, // it waits anew
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 2, nil)
				life := r.active("a")
				must(r.rotators[0].Rotate(t.Context(), request(life, "waits")))
				r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
				r.backups("b")
				looks := 0
				r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
					if c.Op == "List" {
						looks++
					}
					if c.Op != "List" || looks != 2 { // the first look at the stock decides, the second is for a backup
						return pooltest.Fault{}
					}
					return pooltest.Fault{Before: func() { tt.since(r, life) }}
				}
				res := must(r.rotators[0].Rotate(t.Context(), request(life, "mine")))
				r.want("outcome", res.Outcome, tt.outcome)
				r.want("it waits on record", r.count(pool.KindPending) == 1, tt.outcome == pool.OutcomePending)
			})
		})
	}
}

// lostOnce loses the answer to a campaign with a commit.
type lostOnce struct {
	pool.Locks
	lost bool
}

func (k *lostOnce) CampaignWith(ctx context.Context, l pool.Life, txn *pool.Txn) (*pool.Result, *pool.Term, error) {
	res, term, err := k.Locks.CampaignWith(ctx, l, txn)
	if !k.lost {
		k.lost = true
		return nil, nil, errLost
	}
	return res, term, err
}

// The commit was lost to somebody else's, the lock was taken instead, and the answer that says so is lost. The lock is in
// its own writer's way, for no longer than another's would be.
func TestLockThatNobodyKnowsOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, func(cfg *pool.RotatorConfig) { cfg.Locks = &lostOnce{Locks: cfg.Locks} })
		life := r.active("a")
		r.backups("b")
		r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
		r.store.Drop(pool.BackupRef("p", "b"))
		r.backups("c")
		began := time.Now()
		res := must(r.rotators[0].Rotate(t.Context(), request(life, "mine")))
		r.want("outcome", res.Outcome, pool.OutcomeRotated)
		r.want("locks taken over", r.seen.tookOver, 1)
		r.want("locks left", r.count(pool.KindLock), 0)
		if took := time.Since(began); took > 300*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// slowLocks answer campaigns with commits late, and not at all if the caller does not wait.
type slowLocks struct {
	pool.Locks
	takes time.Duration
}

func (k *slowLocks) CampaignWith(ctx context.Context, l pool.Life, txn *pool.Txn) (*pool.Result, *pool.Term, error) {
	select {
	case <-time.After(k.takes):
		return k.Locks.CampaignWith(ctx, l, txn)
	case <-ctx.Done():
		return nil, nil, errLost
	}
}

// A store under load answers late. What is given up is begun anew and adds to the load, so that is soon not done any more.
func TestBidsWaitForASlowStore(t *testing.T) {
	for name, tt := range map[string]struct {
		takes time.Duration
		most  int // that may be given up, of 20
		wait  time.Duration
	}{
		"slow":  {300 * time.Millisecond, 4, 300 * time.Millisecond},
		"quick": {2 * time.Millisecond, 0, 2 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 1, func(cfg *pool.RotatorConfig) { cfg.Locks = &slowLocks{cfg.Locks, tt.takes} })
				for i := range 20 {
					life := r.active(fmt.Sprint("a", i))
					r.backups(fmt.Sprint("b", i))
					began := time.Now()
					must(r.rotators[0].Rotate(t.Context(), request(life, fmt.Sprint(i))))
					if took := time.Since(began); i == 19 && took != tt.wait {
						t.Errorf("the last one took %v, want %v", took, tt.wait)
					}
				}
				if r.seen.unknown > tt.most {
					t.Errorf("%d of 20 were given up", r.seen.unknown)
				}
			})
		})
	}
}

// Many rotations begin at once, and nothing has been measured yet: a store that takes longer for so many is waited for.
func TestBidsWaitForABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, func(cfg *pool.RotatorConfig) { cfg.Locks = &slowLocks{cfg.Locks, 250 * time.Millisecond} })
		const n = 100
		r.bound(n, time.Minute)
		lives := make([]pool.Life, n)
		for i := range lives {
			lives[i] = r.active(fmt.Sprint("a", i))
			r.backups(fmt.Sprint("b", i))
		}
		var calls sync.WaitGroup
		for i, life := range lives {
			calls.Go(func() {
				if _, err := r.rotators[0].Rotate(t.Context(), request(life, fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
		// The first ones were sent before it was known how many would follow.
		if r.seen.unknown > 60 {
			t.Errorf("%d of %d were given up", r.seen.unknown, n)
		}
	})
}
