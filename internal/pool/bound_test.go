package pool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// bound gives the pool a bound.
func (r *rotateRig) bound(rotations int, window time.Duration) {
	r.store.Put(&pool.Pool{Name: "p", Spec: pool.Spec{Bound: pool.BoundSpec{Rotations: &rotations, Window: window}}})
}

// use puts tokens that were used some time ago, by name; this replica is shown them only now.
func (r *rotateRig) use(ago time.Duration, names ...string) {
	for _, name := range names {
		r.store.Put(&pool.Token{Pool: "p", Name: name, UsedAt: time.Now().Add(-ago), Key: "before"})
	}
}

// reload gives this replica a mirror that is loaded now, so that it goes by the tokens' dates.
func (r *rotateRig) reload() {
	recs, rev, err := r.store.ReadAll(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	r.mirror.Load(nil, rev, time.Now()) // forgets what was shown
	r.mirror.Load(recs, rev, time.Now())
}

func (r *rotateRig) events(kind pool.EventType) (found []pooltest.StoredEvent) {
	for _, e := range r.store.Events() {
		if e.Type == kind {
			found = append(found, e)
		}
	}
	return found
}

// tokensUsed is how many tokens were used for keys of the test.
func (r *rotateRig) tokensUsed() (n int) {
	r.t.Helper()
	recs, _, err := r.store.List(context.Background(), pool.KindToken, "p", 0)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, rec := range recs {
		if t, ok := rec.(*pool.Token); ok && t.Name != pool.TokenReached && t.Key != "" && t.Key != "before" {
			n++
		}
	}
	return n
}

func (r *rotateRig) get(key string) *pool.Active {
	ref := pool.ActiveRef("p", key)
	return must(pool.Find[*pool.Active](must(r.store.Read(context.Background(), ref)), ref))
}

// retryOf is how long a refusal at the bound says to wait.
func retryOf(err error) time.Duration {
	var refusal *pool.Refusal
	if errors.As(err, &refusal) {
		return refusal.Retry
	}
	return 0
}

func TestBound(t *testing.T) {
	const window = time.Minute
	for name, tt := range map[string]struct {
		limit    int
		set      func(r *rotateRig)
		override bool
		stock    int
		outcome  pool.Outcome
		reason   pool.Reason
		retry    time.Duration
		tokens   int // used
		status   pool.Status
		reached  int // events
	}{
		"no bound":                      {limit: 0, stock: 1, outcome: pool.OutcomeRotated},
		"none used":                     {limit: 2, stock: 1, outcome: pool.OutcomeRotated, tokens: 1},
		"one left":                      {limit: 2, set: func(r *rotateRig) { r.use(0, "1") }, stock: 1, outcome: pool.OutcomeRotated, tokens: 1},
		"the last is used again":        {limit: 1, set: func(r *rotateRig) { r.use(window, "0") }, stock: 1, outcome: pool.OutcomeRotated, tokens: 1},
		"tokens beyond the limit":       {limit: 1, set: func(r *rotateRig) { r.use(0, "1", "7") }, stock: 1, outcome: pool.OutcomeRotated, tokens: 1},
		"parking uses one":              {limit: 1, outcome: pool.OutcomePending, tokens: 1, status: pool.StatusExhausted},
		"overridden, all used":          {limit: 1, set: func(r *rotateRig) { r.use(0, "0") }, override: true, stock: 1, outcome: pool.OutcomeRotated},
		"overridden, none used":         {limit: 1, override: true, stock: 1, outcome: pool.OutcomeRotated},
		"overridden without stock":      {limit: 1, set: func(r *rotateRig) { r.use(0, "0") }, override: true, outcome: pool.OutcomePending, status: pool.StatusExhausted},
		"reached, stock or not":         {limit: 1, set: func(r *rotateRig) { r.use(0, "0") }, reason: pool.ReasonRotationBound, retry: window, status: pool.StatusError, reached: 1},
		"reached":                       {limit: 2, set: func(r *rotateRig) { r.use(20*time.Second, "0"); r.use(50*time.Second, "1") }, stock: 1, reason: pool.ReasonRotationBound, retry: 10 * time.Second, status: pool.StatusError, reached: 1},
		"reached, and it was said":      {limit: 1, set: func(r *rotateRig) { r.use(10*time.Second, "0", pool.TokenReached) }, stock: 1, reason: pool.ReasonRotationBound, retry: 50 * time.Second, status: pool.StatusError},
		"reached, said a window before": {limit: 1, set: func(r *rotateRig) { r.use(10*time.Second, "0"); r.use(window, pool.TokenReached) }, stock: 1, reason: pool.ReasonRotationBound, retry: 50 * time.Second, status: pool.StatusError, reached: 1},
		"dated in the future": {limit: 1, set: func(r *rotateRig) { r.use(-time.Hour, "0") }, stock: 1, // by a clock that is ahead
			reason: pool.ReasonRotationBound, retry: window, status: pool.StatusError, reached: 1},
		"a token that cannot be read": {limit: 1, set: func(r *rotateRig) {
			r.store.Put(&pool.Broken{Of: pool.TokenRef("p", "0"), Err: errors.New("not JSON")})
		},
			stock: 1, reason: pool.ReasonRotationBound, retry: time.Second, status: pool.StatusError, reached: 1},
		"a token of a newer build": {limit: 1, set: func(r *rotateRig) {
			r.store.Put(&pool.Token{Version: pool.Version{Schema: pool.Schema + 1}, Pool: "p", Name: "0"})
		}, stock: 1, reason: pool.ReasonRotationBound, retry: time.Second, status: pool.StatusError, reached: 1},
		"reached, the key is exhausted": {limit: 1, set: func(r *rotateRig) {
			r.use(0, "0")
			a := *r.get("a")
			a.Status = pool.StatusExhausted
			r.store.Put(&a)
		}, stock: 1, reason: pool.ReasonRotationBound, retry: window, status: pool.StatusExhausted, reached: 1},
		"reached, the key cools down longer": {limit: 1, set: func(r *rotateRig) {
			r.use(0, "0")
			a := *r.get("a")
			a.Status, a.StatusUntil = pool.StatusRateLimited, time.Now().Add(time.Hour)
			r.store.Put(&a)
		}, stock: 1, reason: pool.ReasonRotationBound, retry: window, status: pool.StatusRateLimited, reached: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 1, nil)
				r.bound(tt.limit, window)
				life := r.active("a")
				for i := range tt.stock {
					r.backups(fmt.Sprint("b", i))
				}
				if tt.set != nil {
					tt.set(r)
				}
				r.reload()
				req := request(life, "mine")
				if tt.override {
					req.Trigger, req.OverrideBound = pool.TriggerOperator, true
				}
				res, err := r.rotators[0].Rotate(t.Context(), req)
				synctest.Wait()
				r.want("reason", pool.ReasonOf(err), tt.reason)
				r.want("time to wait", retryOf(err), tt.retry)
				r.want("tokens used", r.tokensUsed(), tt.tokens)
				r.want("events that the bound is reached", len(r.events(pool.EventBoundReached)), tt.reached)
				r.want("told", r.seen.bounds, tt.reached)
				r.want("locks left", r.count(pool.KindLock), 0)
				if res != nil {
					r.want("outcome", res.Outcome, tt.outcome)
				}
				if tt.status != 0 {
					r.want("status of the key", r.get("a").Status, tt.status)
				}
				if tt.reason == "" {
					return
				}
				r.want("stock", r.count(pool.KindBackup), tt.stock)
				cooled := r.events(pool.EventKeyCooledDown)
				r.want("cool-downs told", r.seen.cooled, len(cooled))
				if tt.status != pool.StatusError {
					r.want("events of cooling down", len(cooled), 0)
					return
				}
				r.want("events of cooling down", len(cooled), 1)
				r.want("its reason", cooled[0].Reason, "bound")
				r.want("its end", time.Until(cooled[0].Until), tt.retry)
				r.want("the key's reason", r.get("a").StatusReason, "bound")
			})
		})
	}
}

// Every write at the bound, or to it, is lost, before or after it was made: nothing is doubled, and the answer is true.
func TestEveryWriteAtTheBoundIsLost(t *testing.T) { bothWays(t, testLostWritesAtTheBound) }

func testLostWritesAtTheBound(t *testing.T, adjust func(*pool.RotatorConfig)) {
	for name, tt := range map[string]struct {
		stock, used bool
		outcome     pool.Outcome
		reason      pool.Reason
		events      int
	}{
		"rotated": {stock: true, outcome: pool.OutcomeRotated, events: 1},
		"parked":  {outcome: pool.OutcomePending, events: 1},
		"refused": {used: true, reason: pool.ReasonRotationBound, events: 2}, // the bound is reached, and the key cools down
	} {
		for _, made := range []bool{true, false} {
			for _, times := range []int{1, 2, 3, 4} {
				t.Run(fmt.Sprintf("%s made=%v times=%d", name, made, times), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := newRotateRig(t, 1, adjust)
						r.bound(1, time.Minute)
						life := r.active("a")
						if tt.stock {
							r.backups("b")
						}
						if tt.used {
							r.use(0, "0")
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
						synctest.Wait()
						r.want("reason", pool.ReasonOf(err), tt.reason)
						if res != nil {
							r.want("outcome", res.Outcome, tt.outcome)
						}
						r.want("events", len(r.store.Events()), tt.events)
						r.want("active keys", r.count(pool.KindActive), 1)
						r.want("locks left", r.count(pool.KindLock), 0)
						if !tt.used {
							r.want("tokens used", r.tokensUsed(), 1)
						}
					})
				})
			}
		}
	}
}

// A storm at three replicas: exactly as many keys are rotated in a window as the bound says, and the others as soon as they
// may be.
func TestBoundHoldsInAStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, limit, window = 60, 20, 10 * time.Second
		r := newRotateRig(t, 3, nil)
		for i := range r.rotators {
			r.store.Put(&pool.Replica{Name: fmt.Sprint("r", i)})
		}
		r.bound(limit, window)
		var lives []pool.Life
		for i := range keys {
			lives = append(lives, r.active(fmt.Sprint("a", i)))
			r.backups(fmt.Sprint("b", i))
		}
		storm := func() (rotated int) {
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i, l := range lives {
				for k := range r.rotators {
					wg.Go(func() {
						res, err := r.rotators[k].Rotate(t.Context(), request(l, fmt.Sprintf("%d-%d", i, k)))
						mu.Lock()
						defer mu.Unlock()
						switch {
						case err == nil && res.Outcome == pool.OutcomeRotated:
							rotated++
						case err != nil && pool.ReasonOf(err) != pool.ReasonRotationBound:
							t.Errorf("%s: %v", l.Key, err)
						case err != nil && (retryOf(err) <= 0 || retryOf(err) > window):
							t.Errorf("%s: told to wait for %v", l.Key, retryOf(err))
						}
					})
				}
			}
			wg.Wait()
			return rotated
		}
		for round := 1; round <= 3; round++ {
			for range 3 { // again and again within the window
				storm()
			}
			r.want("rotations on record", r.count(pool.KindRotation), limit*round)
			r.want("stock", r.count(pool.KindBackup), keys-limit*round)
			r.want("events that the bound is reached", len(r.events(pool.EventBoundReached)), min(round, 2))
			time.Sleep(window + time.Second)
		}
		r.want("active keys", r.count(pool.KindActive), keys)
	})
}

// A holder stands still with its transaction, and is heard after its token's window: others count from when they were shown
// the use, and not from the date in it.
func TestLateUseCountsFromWhenItWasSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		r.bound(1, time.Minute)
		life := r.active("a")
		r.backups("b")
		r.use(2*time.Minute, "0")
		_, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
		r.want("reason", pool.ReasonOf(err), pool.ReasonRotationBound)
		r.want("time to wait", retryOf(err), time.Minute)
		time.Sleep(time.Minute)
		res, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
		if err != nil {
			t.Fatal(err)
		}
		r.want("outcome", res.Outcome, pool.OutcomeRotated)
	})
}

// A replica that stood still does not send what it dated before.
func TestTransactionMadeUpLongAgoIsNotSent(t *testing.T) {
	for name, tt := range map[string]struct {
		fault  pooltest.Fault
		reason pool.Reason
	}{
		"none was sent":        {pooltest.Fault{Err: pool.Refuse(pool.ReasonNotApplied, "no leader")}, pool.ReasonNotApplied},
		"one may have arrived": {pooltest.Fault{Err: errLost}, pool.ReasonOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var still time.Duration
				r := newRotateRig(t, 1, func(cfg *pool.RotatorConfig) {
					apart(cfg) // else it is made up anew for the second send
					cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(still) }
				})
				life := r.active("a")
				r.backups("b")
				sent := 0
				r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
					if c.Op != "Apply" {
						return pooltest.Fault{}
					}
					mu.Lock()
					defer mu.Unlock()
					sent++
					still += 3 * time.Second
					return tt.fault
				}
				_, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
				r.want("reason", pool.ReasonOf(err), tt.reason)
				r.want("sent", sent, 1)
				r.want("rotations", r.count(pool.KindRotation), 0)
			})
		})
	}
}

// Another replica uses the token first: another one is chosen, and the bound is not called reached.
func TestTokenTakenByARival(t *testing.T) {
	for name, tt := range map[string]struct {
		limit  int
		reason pool.Reason
	}{"another is left": {2, ""}, "it was the last": {1, pool.ReasonRotationBound}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 1, nil)
				r.bound(tt.limit, time.Minute)
				life := r.active("a")
				r.backups("b")
				r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
				var once sync.Once
				r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
					if c.Op != "Apply" {
						return pooltest.Fault{}
					}
					return pooltest.Fault{Before: func() {
						once.Do(func() {
							for _, g := range c.Txn.If {
								if g.Ref.Kind == pool.KindToken {
									r.use(0, g.Ref.Name)
								}
							}
						})
					}}
				}
				_, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
				r.want("reason", pool.ReasonOf(err), tt.reason)
				r.want("commits lost to the token's user", r.seen.causes["token_taken"], 1)
			})
		})
	}
}

// An operator who overrides the bound meets a request that does not: it is refused, and the operator is not.
func TestOverrideBesideARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		r := newRotateRig(t, 1, func(cfg *pool.RotatorConfig) {
			apart(cfg)
			cfg.Steps = func(_ context.Context, s pool.Step, _ pool.Life) error {
				if s == pool.StepLocked {
					<-hold
				}
				return nil
			}
		})
		r.bound(1, time.Minute)
		life := r.active("a")
		r.backups("b")
		var wg sync.WaitGroup
		var refused, overrode error
		var res *pool.RotateResult
		wg.Go(func() { _, refused = r.rotators[0].Rotate(t.Context(), request(life, "first")) })
		synctest.Wait()
		r.use(0, "0")
		wg.Go(func() {
			req := request(life, "operator")
			req.Trigger, req.OverrideBound = pool.TriggerOperator, true
			res, overrode = r.rotators[0].Rotate(t.Context(), req)
		})
		synctest.Wait()
		close(hold)
		wg.Wait()
		if overrode != nil {
			t.Fatal(overrode)
		}
		r.want("outcome of the operator", res.Outcome, pool.OutcomeRotated)
		if refused != nil && pool.ReasonOf(refused) != pool.ReasonRotationBound {
			t.Errorf("the first caller got %v", refused)
		}
		r.want("tokens used", r.tokensUsed(), 0)
	})
}

func TestOverrideIsForOperators(t *testing.T) {
	r := newRotateRig(t, 1, nil)
	for trigger := pool.TriggerProvider; trigger < pool.TriggerOperator; trigger++ {
		_, err := r.rotators[0].Rotate(t.Context(), pool.RotateRequest{Pool: "p", Key: "a", Trigger: trigger, OverrideBound: true})
		var refusal *pool.Refusal
		if !errors.As(err, &refusal) || len(refusal.Fields) != 1 || refusal.Fields[0].Field != "override_bound" {
			t.Errorf("%v overrides the bound: %v, want override_bound refused", trigger, err)
		}
	}
}

// A rotation that waits for stock waits for the bound too: callers are told that it waits, and it is made as soon as a token
// is free, without being tried again and again.
func TestPendingObeysTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window = time.Minute
		r := newRotateRig(t, 2, nil)
		r.bound(1, window)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, rot := range r.rotators {
			wg.Go(func() { rot.Fulfil(ctx) })
		}
		defer func() { cancel(); wg.Wait() }()
		life := r.active("a")
		r.want("outcome without stock", must(r.rotators[0].Rotate(ctx, request(life, "mine"))).Outcome, pool.OutcomePending)
		parked := time.Now()
		r.backups("b")
		time.Sleep(time.Second)
		r.want("outcome at the bound", must(r.rotators[0].Rotate(ctx, request(life, "mine"))).Outcome, pool.OutcomePending)
		before, calls := r.store.Revision(), r.faulty.Calls()
		time.Sleep(window / 2)
		r.want("writes while it waits", r.store.Revision()-before, int64(0))
		r.want("calls of the store while it waits", r.faulty.Calls()-calls, 0)
		time.Sleep(time.Until(parked.Add(window + 2*time.Second)))
		synctest.Wait()
		r.want("waiting", r.count(pool.KindPending), 0)
		r.want("outcome in the end", must(r.rotators[1].Rotate(ctx, request(life, "mine"))).Outcome, pool.OutcomeRotated)
	})
}

// A bound that was changed holds at once, also for a replica that was not shown the change: a lower one because the pool's
// record is compared, a higher one because no refusal rests on memory.
func TestChangedBoundHoldsAtOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		before, since int
		reason        pool.Reason
	}{
		"lowered":    {2, 1, pool.ReasonRotationBound},
		"raised":     {1, 2, ""},
		"taken away": {1, 0, ""},
		"given":      {0, 1, pool.ReasonRotationBound},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotateRig(t, 1, nil)
				life := r.active("a")
				r.backups("b")
				r.use(0, "0")
				r.bound(tt.before, time.Minute)
				r.store.Feed(pool.NewMirror()) // this replica's mirror gets nothing any more
				r.bound(tt.since, time.Minute)
				_, err := r.rotators[0].Rotate(t.Context(), request(life, "mine"))
				r.want("reason", pool.ReasonOf(err), tt.reason)
			})
		})
	}
}

// Joins, repeats and late triggers use no token, and are answered at the bound too.
func TestRepeatsUseNoToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 2, nil)
		r.bound(2, time.Minute)
		a, b := r.active("a"), r.active("b")
		r.backups("s")
		for range 3 {
			for i, id := range []string{"mine", "other"} {
				if _, err := r.rotators[i].Rotate(t.Context(), request(a, id)); err != nil {
					t.Fatal(err)
				}
				r.want("outcome without stock", must(r.rotators[i].Rotate(t.Context(), request(b, id))).Outcome, pool.OutcomePending)
			}
		}
		r.want("tokens used", r.tokensUsed(), 2)
	})
}

// Tokens go with their pool, and a new pool of that name begins with all of them.
func TestTokensGoWithTheirPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		r.bound(1, time.Minute)
		r.backups("b")
		must(r.rotators[0].Rotate(t.Context(), request(r.active("a"), "mine")))
		admin := pool.NewAdmin(pool.AdminConfig{Store: r.store, Sealer: pooltest.FakeSealer{}, Replica: "r0"})
		must(admin.DeletePool(t.Context(), "p", true))
		r.want("tokens left", r.count(pool.KindToken), 0)
		r.bound(1, time.Minute)
		r.backups("c")
		must(r.rotators[0].Rotate(t.Context(), request(r.active("a"), "again")))
	})
}
