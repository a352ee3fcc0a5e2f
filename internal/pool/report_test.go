package pool_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// fakeRules judge by the status alone: 401 is a dead key, 402 one whose own budget is spent, 429 a rate limit for as many seconds as the body is long, 418 an
// error of the key; below 400 it works; the rest is nothing.
type fakeRules struct{}

func (fakeRules) Classify(_ pool.UpstreamKind, a pool.Answer, now time.Time, secret pool.Secret) pool.Judgement {
	j := pool.Judgement{Verdict: pool.VerdictIgnore, Rule: "test/unknown", Reason: strings.ReplaceAll(string(a.Headers["Said"]), "the secret", "[redacted]")}
	switch {
	case a.Status == 401:
		j.Verdict, j.Rule, j.Askable = pool.VerdictRotate, "test/dead", true
	case a.Status == 402:
		j.Verdict, j.Rule, j.Own = pool.VerdictRotate, "test/spent", true
	case a.Status == 403:
		j.Verdict, j.Rule = pool.VerdictRotate, "test/account"
	case a.Status == 429:
		j.Verdict, j.Rule, j.Status, j.Until = pool.VerdictCoolDown, "test/limit", pool.StatusRateLimited, now.Add(time.Duration(len(a.Body))*time.Second)
	case a.Status == 418:
		j.Verdict, j.Rule, j.Status, j.Until = pool.VerdictCoolDown, "test/error", pool.StatusError, now.Add(30*time.Second)
	case a.Status < 400:
		j.Works = true
	}
	return j
}

func newReportRig(t *testing.T, replicas int, adjust func(*pool.RotatorConfig)) *rotateRig {
	return newRotateRig(t, replicas, func(cfg *pool.RotatorConfig) {
		cfg.Classify, cfg.Sealer = fakeRules{}, pooltest.FakeSealer{Keyset: "test"}
		if adjust != nil {
			adjust(cfg)
		}
	})
}

func failed(l pool.Life, status int) pool.FailureReport {
	return pool.FailureReport{
		Pool: l.Pool, Key: l.Key, Generation: l.Generation, Source: "gateway",
		Answer: pool.Answer{Status: status, Body: make([]byte, 60), Headers: map[string]string{"Said": "no"}},
	}
}

func (r *rotateRig) report(rep pool.FailureReport) *pool.ReportResult {
	r.t.Helper()
	res, err := r.rotators[0].Report(r.t.Context(), rep)
	if err != nil {
		r.t.Fatalf("reporting %d of %s: %v", rep.Answer.Status, rep.Key, err)
	}
	return res
}

// spec gives the rig's pool a spec.
func (r *rotateRig) spec(change func(*pool.Pool)) {
	p := &pool.Pool{Name: "p"}
	change(p)
	r.store.Put(p)
}

func (r *rotateRig) inService(key string) *pool.Active {
	r.t.Helper()
	st, err := r.store.Read(context.Background(), pool.ActiveRef("p", key))
	if err != nil {
		r.t.Fatal(err)
	}
	a, err := pool.Find[*pool.Active](st, pool.ActiveRef("p", key))
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func (r *rotateRig) eventsOf(kind pool.EventType) (n int) {
	for _, e := range r.store.Events() {
		if e.Type == kind {
			n++
		}
	}
	return n
}

// What a report comes to, by the answer and by how the key is.
func TestReport(t *testing.T) {
	disabled := func(a *pool.Active) { a.Status = pool.StatusDisabled }
	exhausted := func(a *pool.Active) { a.Status = pool.StatusExhausted }
	for name, tt := range map[string]struct {
		status  int
		key     func(*pool.Active)
		verdict pool.Verdict
		rule    string
		matched string
		event   pool.EventType // the only one, if any
		next    string
	}{
		"dead":                   {401, nil, pool.VerdictRotate, "test/dead", "", pool.EventKeyRotated, "b"},
		"rate limit":             {429, nil, pool.VerdictCoolDown, "test/limit", "", pool.EventKeyCooledDown, "other"},
		"error":                  {418, nil, pool.VerdictCoolDown, "test/error", "", pool.EventKeyCooledDown, "other"},
		"nothing":                {500, nil, pool.VerdictIgnore, "test/unknown", "", "", "a"},
		"success":                {200, nil, pool.VerdictIgnore, "test/unknown", "", "", "a"},
		"dead but disabled":      {401, disabled, pool.VerdictIgnore, "disabled", "test/dead", "", "other"},
		"limit but disabled":     {429, disabled, pool.VerdictIgnore, "disabled", "test/limit", "", "other"},
		"limit but exhausted":    {429, exhausted, pool.VerdictIgnore, "exhausted", "test/limit", "", "other"},
		"dead and exhausted too": {401, exhausted, pool.VerdictRotate, "test/dead", "", pool.EventKeyRotated, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReportRig(t, 1, nil)
				r.active("other")
				life := r.active("a")
				r.backups("b")
				if tt.key != nil {
					a := *r.inService("a")
					tt.key(&a)
					r.store.Put(&a)
				}
				res := r.report(failed(life, tt.status))
				r.want("verdict", res.Verdict, tt.verdict)
				r.want("rule", res.Rule, tt.rule)
				r.want("matched rule", res.MatchedRule, tt.matched)
				r.want("reason", res.Reason, "no")
				if res.Key == nil || res.Key.Key != tt.next {
					t.Errorf("key to go on with: got %+v, want %s", res.Key, tt.next)
				}
				events := r.store.Events()
				if tt.event == "" && len(events) != 0 || tt.event != "" && (len(events) != 1 || events[0].Type != tt.event) {
					t.Errorf("events: got %v, want %q alone", events, tt.event)
				}
				r.want("active keys", r.count(pool.KindActive), 2)
			})
		})
	}
}

// What goes on record says which rule matched, who reported and until when.
func TestReportOnRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		life := r.active("a")
		r.backups("b")
		rep := failed(life, 429)
		rep.ProxyID, rep.RequestID = "x", "mine"
		res := r.report(rep)
		a, e := r.inService("a"), r.store.Events()[0]
		r.want("until", res.Until, time.Now().Add(60*time.Second))
		r.want("status", a.StatusAt(time.Now()), pool.StatusRateLimited)
		r.want("status reason", a.StatusReason, "test/limit")
		r.want("status since", a.StatusSince, time.Now())
		r.want("event's rule", e.Rule, "test/limit")
		r.want("event's until", e.Until, res.Until)
		r.want("event's trigger", e.Trigger, pool.TriggerProxy)
		r.want("event's request", e.RequestID, "mine")
		time.Sleep(61 * time.Second)
		r.want("status when the time has passed", r.inService("a").StatusAt(time.Now()), pool.StatusHealthy)

		rep.Answer.Status, rep.RequestID = 401, "other"
		rot := r.report(rep).Rotation
		r.want("trigger", rot.Trigger, pool.TriggerProxy)
		r.want("reason", rot.Reason, "test/dead: no")
		r.want("source", rot.Source, "gateway")
		r.want("request id", rot.RequestID, "other")
	})
}

// Every write of a report is lost, before or after it was made: nothing is doubled, and the answer is the true one.
func TestEveryWriteOfAReportIsLost(t *testing.T) {
	for _, status := range []int{401, 429, 418} {
		for _, made := range []bool{true, false} {
			for _, nth := range []int{1, 2, 3} {
				t.Run(fmt.Sprintf("status=%d made=%v write=%d", status, made, nth), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := newReportRig(t, 1, nil)
						life := r.active("a")
						r.backups("b")
						n := 0
						r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
							if c.Op != "Apply" {
								return pooltest.Fault{}
							}
							if n++; n != nth {
								return pooltest.Fault{}
							}
							return pooltest.Fault{Err: errLost, Made: made}
						}
						r.report(failed(life, status))
						r.want("events", len(r.store.Events()), 1)
						r.want("active keys", r.count(pool.KindActive), 1)
						r.want("locks left", r.count(pool.KindLock), 0)
					})
				})
			}
		}
	}
}

// Many reports of one failure at several replicas cost one write of state, and one note that the key is bad.
func TestReportsAreNoWriteStorm(t *testing.T) {
	for status, writes := range map[int]int64{429: 1, 418: 2, 401: 3} { // rotating has a campaign before it
		synctest.Test(t, func(t *testing.T) {
			r := newReportRig(t, 3, nil)
			life := r.active("a")
			r.backups("b", "c", "d")
			before := r.store.Revision()
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					if _, err := r.rotators[i%3].Report(t.Context(), failed(life, status)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			r.want(fmt.Sprint("events of ", status), len(r.store.Events()), 1)
			// Replicas that campaign at the same moment take the lock one after the other.
			if got := r.store.Revision() - before; got > writes+2 {
				t.Errorf("writes of 50 reports of %d: got %d, want about %d", status, got, writes)
			}
		})
	}
}

// A report that does not lengthen a rest by much writes nothing, and is told when it ends.
func TestReportThatLengthensLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		life := r.active("a")
		until := r.report(failed(life, 429)).Until
		time.Sleep(5 * time.Second)
		before := r.store.Revision()
		r.want("until", r.report(failed(life, 429)).Until, until)
		r.want("revision", r.store.Revision(), before)
		long := failed(life, 429)
		long.Answer.Body = make([]byte, 120)
		r.want("longer", r.report(long).Until, time.Now().Add(120*time.Second))
		r.want("cool-downs", r.eventsOf(pool.EventKeyCooledDown), 2)
	})
}

// A cool-down that lands late changes neither the replacement nor a later life of the same key.
func TestLateCoolDown(t *testing.T) {
	for _, again := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newReportRig(t, 2, nil)
			life := r.active("a")
			r.backups("b")
			r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
				if c.Op != "Apply" || c.Txn.Event == nil || c.Txn.Event.Type != pool.EventKeyCooledDown {
					return pooltest.Fault{}
				}
				return pooltest.Fault{Before: func() {
					if _, err := r.rotators[1].Rotate(t.Context(), request(life, "rival")); err != nil {
						t.Error(err)
					}
					if again {
						r.store.Drop(pool.RetiredRef("p", "a"))
						r.store.Put(&pool.Active{Pool: "p", Key: "a", Slot: "a2", Status: pool.StatusHealthy})
					}
				}}
			}
			res := r.report(failed(life, 429))
			r.want("verdict", res.Verdict, pool.VerdictIgnore)
			r.want("rule", res.Rule, "late")
			r.want("matched rule", res.MatchedRule, "test/limit")
			if res.Rotation == nil || res.Key == nil || res.Key.Key != "b" {
				t.Errorf("the answer has the rotation %v and the key %v, want those that ended the life", res.Rotation, res.Key)
			}
			r.want("cool-downs", r.eventsOf(pool.EventKeyCooledDown), 0)
			r.want("the replacement", r.inService("b").Status, pool.StatusHealthy)
			if again {
				r.want("the later life", r.inService("a").Status, pool.StatusHealthy)
			}
		})
	}
}

// A report about a life that is over changes nothing; what would rotate it is told the rotation.
func TestLateReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		life := r.active("a")
		r.backups("b", "c")
		first := r.report(failed(life, 401))
		r.want("first", first.Outcome, pool.OutcomeRotated)
		before := r.store.Revision()
		for status, want := range map[int]pool.Verdict{401: pool.VerdictRotate, 429: pool.VerdictIgnore, 418: pool.VerdictIgnore, 500: pool.VerdictIgnore, 200: pool.VerdictIgnore} {
			res := r.report(failed(life, status))
			r.want(fmt.Sprint("verdict of ", status), res.Verdict, want)
			r.want("rotation", res.Rotation.ID, first.Rotation.ID)
			r.want("key", res.Key.Key, first.Key.Key)
			if want == pool.VerdictRotate {
				r.want("outcome", res.Outcome, pool.OutcomeAlreadyRotated)
			} else {
				r.want("rule", res.Rule, "late")
			}
		}
		r.want("revision", r.store.Revision(), before)

		// A life that is over and not on record.
		ghost := pool.Life{Pool: "p", Key: first.Key.Key, Generation: first.Key.CreateRevision - 1}
		res := r.report(failed(ghost, 401))
		r.want("rule without a record", res.Rule, "late")
		r.want("verdict without a record", res.Verdict, pool.VerdictIgnore)
		r.want("revision", r.store.Revision(), before)

		for what, tt := range map[string]struct {
			life   pool.Life
			reason pool.Reason
		}{
			"unknown pool": {pool.Life{Pool: "q", Key: "a"}, pool.ReasonPoolNotFound},
			"unknown key":  {pool.Life{Pool: "p", Key: "nobody"}, pool.ReasonKeyNotFound},
			"in stock":     {pool.Life{Pool: "p", Key: map[string]string{"b": "c", "c": "b"}[first.Key.Key]}, pool.ReasonKeyInStock},
			"future":       {pool.Life{Pool: "p", Key: "a", Generation: 1 << 40}, pool.ReasonGenerationInFuture},
		} {
			_, err := r.rotators[0].Report(t.Context(), failed(tt.life, 500))
			r.want(what, pool.ReasonOf(err), tt.reason)
		}
	})
}

// Without a generation the life that is active now is meant, as the store has it and not a mirror that lags.
func TestReportWithoutGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		r.active("a")
		r.backups("b")
		r.want("outcome", r.report(failed(pool.Life{Pool: "p", Key: "a"}, 401)).Outcome, pool.OutcomeRotated)
		r.want("again", r.report(failed(pool.Life{Pool: "p", Key: "a"}, 401)).Outcome, pool.OutcomeAlreadyRotated)
		r.want("a rest", r.report(failed(pool.Life{Pool: "p", Key: "b"}, 429)).Verdict, pool.VerdictCoolDown)
	})
}

// A paused pool rotates nothing and says so, also to reports; keys may still rest.
func TestReportToAPausedPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		life := r.active("a")
		r.backups("b")
		r.spec(func(p *pool.Pool) { p.Paused = true })
		_, err := r.rotators[0].Report(t.Context(), failed(life, 401))
		r.want("dead", pool.ReasonOf(err), pool.ReasonPoolPaused)
		r.want("notes of it", r.count(pool.KindHealth), 0)
		r.want("limit", r.report(failed(life, 429)).Verdict, pool.VerdictCoolDown)
	})
}

// Without stock the rotation waits, the key says so, and further reports change nothing.
func TestReportWithoutStock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		life := r.active("a")
		r.active("other")
		res := r.report(failed(life, 401))
		r.want("outcome", res.Outcome, pool.OutcomePending)
		r.want("key meanwhile", res.Key.Key, "other")
		a := r.inService("a")
		r.want("status reason", a.StatusReason, "pending")
		r.want("status since", a.StatusSince, time.Now())
		before := r.store.Revision()
		r.want("again", r.report(failed(life, 401)).Outcome, pool.OutcomePending)
		r.want("a rest", r.report(failed(life, 429)).Rule, "pending")
		r.want("revision", r.store.Revision(), before)
	})
}

// The store cannot be written: what needs no write is answered all the same.
func TestReportWhileNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ready atomic.Pointer[pool.Refusal]
		r := newReportRig(t, 1, func(cfg *pool.RotatorConfig) {
			cfg.Ready = func() error {
				if why := ready.Load(); why != nil {
					return why
				}
				return nil
			}
		})
		life := r.active("a")
		ready.Store(pool.Refuse(pool.ReasonNotApplied, "no quorum"))
		r.want("nothing", r.report(failed(life, 500)).Verdict, pool.VerdictIgnore)
		for _, status := range []int{401, 429} {
			_, err := r.rotators[0].Report(t.Context(), failed(life, status))
			r.want(fmt.Sprint(status), pool.ReasonOf(err), pool.ReasonNotApplied)
		}
	})
}

// What looks like a secret is not kept, wherever callers say it.
func TestReasonsAndSourcesAreScrubbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, func(cfg *pool.RotatorConfig) {
			cfg.Scrub = func(text string) string { return strings.ReplaceAll(text, "the secret", "[redacted]") }
		})
		life := r.active("a")
		r.backups("b")
		rep := failed(life, 401)
		rep.Source, rep.Answer.Headers["Said"] = "of the secret", "no: the secret"
		rot := r.report(rep).Rotation
		r.want("source", rot.Source, "of [redacted]")
		r.want("reason", rot.Reason, "test/dead: no: [redacted]")
		req := request(r.active("c"), "mine")
		r.backups("d")
		req.Source, req.Reason = "of the secret", "the secret"
		res, err := r.rotators[0].Rotate(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		r.want("source", res.Rotation.Source, "of [redacted]")
		r.want("reason", res.Rotation.Reason, "[redacted]")
	})
}

// Twelve keys are refused at once at three replicas: that is the upstream's failure and not theirs. It costs at most half of
// the keys, has one event, and then nothing changes until it ends.
func TestOutageIsRecognised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 3, nil)
		lives := r.outage(12)
		r.want("incidents", r.eventsOf(pool.EventIncidentBegan), 1)
		if n := r.count(pool.KindRotation); n > 6 {
			t.Errorf("%d of 12 keys were rotated, want 6 at most", n)
		}
		before := r.store.Revision()
		for i, life := range lives {
			for _, status := range []int{401, 429, 418} {
				res, err := r.rotators[i%3].Report(t.Context(), failed(life, status))
				if err != nil {
					t.Fatal(err)
				}
				if late := r.inService(life.Key) == nil; !late && (!res.Incident || res.Rule != "incident" || res.Key == nil) {
					t.Errorf("a report of %d in the incident: %+v", status, res)
				}
			}
		}
		r.want("revision", r.store.Revision(), before)

		var kept pool.Life
		for _, life := range lives {
			if r.inService(life.Key) != nil {
				kept = life
			}
		}
		r.backups("more")
		res, err := r.rotators[1].Rotate(t.Context(), request(kept, "by-hand"))
		if err != nil || res.Outcome != pool.OutcomeRotated {
			t.Errorf("RotateKey in the incident: %+v, %v", res, err)
		}
		time.Sleep(5*time.Minute + time.Second)
		next := r.active("z")
		r.want("after its time", r.report(failed(next, 401)).Verdict, pool.VerdictRotate)
		r.want("events of its end", r.eventsOf(pool.EventIncidentEnded), 0)
	})
}

// outage has n keys refused at once and returns their lives.
func (r *rotateRig) outage(n int) (lives []pool.Life) {
	r.t.Helper()
	for i := range n {
		lives = append(lives, r.active(fmt.Sprint("k", i)))
		r.backups(fmt.Sprint("b", i), fmt.Sprint("c", i))
	}
	var wg sync.WaitGroup
	for i, life := range lives {
		for rep := range len(r.rotators) {
			wg.Go(func() {
				if _, err := r.rotators[(i+rep)%len(r.rotators)].Report(r.t.Context(), failed(life, 401)); err != nil {
					r.t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	return lives
}

// Hundreds of keys fail at once: they are counted in few writes. A write takes a time here, in which all reports come.
func TestManyKeysFailAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 3, func(cfg *pool.RotatorConfig) {
			cfg.Store = &pooltest.Faulty{Store: cfg.Store, Decide: func(c pooltest.Call) pooltest.Fault {
				if c.Op == "Apply" {
					time.Sleep(time.Millisecond)
				}
				return pooltest.Fault{}
			}}
		})
		applied := 0
		r.store.Watch(func(_ int64, _ func() []pool.Record, txn *pool.Txn) {
			if txn != nil && txn.Event == nil && len(txn.Put) == 1 && txn.Put[0].Ref().Kind == pool.KindHealth {
				applied++
			}
		})
		r.outage(300)
		r.want("incidents", r.eventsOf(pool.EventIncidentBegan), 1)
		if n := r.count(pool.KindRotation); n > 150 {
			t.Errorf("%d of 300 keys were rotated, want 150 at most", n)
		}
		if applied > 9 {
			t.Errorf("%d writes counted the reports, want few: three at each replica", applied)
		}
	})
}

// A pool of one key is protected too: its replacements count, although they have the same slot.
func TestOutageOfOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		life := r.active("a")
		r.backups("b0", "b1", "b2", "b3", "b4")
		for range 2 {
			res := r.report(failed(life, 401))
			r.want("outcome", res.Outcome, pool.OutcomeRotated)
			life = res.Key.Life()
		}
		r.want("the third within a minute", r.report(failed(life, 401)).Incident, true)
		r.want("stock", r.count(pool.KindBackup), 3)
	})
}

// Strikes are forgotten after the window.
func TestFailuresFarApartAreNoIncident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		for i := range 8 {
			r.backups(fmt.Sprint("b", i))
			r.want("outcome", r.report(failed(r.active(fmt.Sprint("k", i)), 401)).Outcome, pool.OutcomeRotated)
			time.Sleep(31 * time.Second)
		}
	})
}

// Rate limits say nothing of a key's health: all keys of a pool may have them.
func TestRateLimitsAreNoIncident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		for i := range 12 {
			r.want("verdict", r.report(failed(r.active(fmt.Sprint("k", i)), 429)).Verdict, pool.VerdictCoolDown)
		}
		r.want("incidents", r.eventsOf(pool.EventIncidentBegan), 0)
	})
}

// Keys of one age and equal budgets come to their end together, and all are replaced: that is no outage. They do not make one
// of other keys that are refused, either, but in an incident they change as little.
func TestSpentBudgetsAreNoIncident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		r.bound(0, time.Minute)
		for i := range 12 {
			r.backups(fmt.Sprint("y", i))
			r.want("outcome", r.report(failed(r.active(fmt.Sprint("x", i)), 402)).Outcome, pool.OutcomeRotated)
		}
		spent := request(r.active("s"), "spend")
		spent.Trigger = pool.TriggerSpendChecker
		r.backups("t")
		if res, err := r.rotators[0].Rotate(t.Context(), spent); err != nil || res.Outcome != pool.OutcomeRotated {
			t.Errorf("by the spend checker: %+v, %v", res, err)
		}
		r.want("notes", r.count(pool.KindHealth), 0)
		for i := range 6 {
			r.backups(fmt.Sprint("z", i))
			r.want("outcome", r.report(failed(r.active(fmt.Sprint("d", i)), 401)).Outcome, pool.OutcomeRotated)
		}
		r.want("incidents", r.eventsOf(pool.EventIncidentBegan), 0)
		r.outage(24)
		r.want("incidents", r.eventsOf(pool.EventIncidentBegan), 1)
		r.want("in the incident", r.report(failed(r.active("e"), 402)).Incident, true)
	})
}

// A policy can be switched off.
func TestIncidentsCanBeSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReportRig(t, 1, nil)
		r.spec(func(p *pool.Pool) { p.Spec.Incident.Disabled = true })
		r.outage(12)
		r.want("rotations", r.count(pool.KindRotation), 12)
		r.want("notes", r.count(pool.KindHealth), 0)
	})
}

// The write that begins an incident is lost, or its answer is: there is one event all the same.
func TestTheBeginningOfAnIncidentIsLost(t *testing.T) {
	for _, made := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newReportRig(t, 3, nil)
			lost := 0
			r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
				if c.Op != "Apply" || c.Txn.Event == nil || c.Txn.Event.Type != pool.EventIncidentBegan || lost == 3 {
					return pooltest.Fault{}
				}
				lost++
				return pooltest.Fault{Err: errLost, Made: made}
			}
			r.outage(12)
			r.want("incidents", r.eventsOf(pool.EventIncidentBegan), 1)
		})
	}
}

func TestEndOfAnIncident(t *testing.T) {
	t.Run("by an operator", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newReportRig(t, 1, nil)
			r.outage(12)
			admin := pool.NewAdmin(pool.AdminConfig{Store: r.store, Sealer: pooltest.FakeSealer{}})
			for range 2 {
				p, _, err := admin.EndIncident(t.Context(), "p")
				if err != nil || p.Incident != nil {
					t.Fatalf("got %+v, %v", p, err)
				}
			}
			r.want("events", r.eventsOf(pool.EventIncidentEnded), 1)
			r.want("a report after it", r.report(failed(r.active("z"), 401)).Verdict, pool.VerdictRotate)
		})
	})
	t.Run("by success", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newReportRig(t, 1, nil)
			r.spec(func(p *pool.Pool) { p.Spec.Incident.Share = 0.25 })
			r.outage(12)
			var lives []pool.Life
			for i := range 12 { // with them the pool has 24, of which seven make an incident
				lives = append(lives, r.active(fmt.Sprint("w", i)))
			}
			for range 5 { // one key that works is no proof
				r.want("after one key", r.report(failed(lives[0], 200)).Incident, true)
			}
			for _, life := range lives[1:6] {
				r.want("after "+life.Key, r.report(failed(life, 200)).Incident, true)
			}
			r.want("one fails again", r.report(failed(lives[0], 401)).Incident, true)
			r.want("after the seventh, one of which has failed", r.report(failed(lives[6], 200)).Incident, true)
			r.want("after seven", r.report(failed(lives[7], 200)).Incident, false)
			r.want("events", r.eventsOf(pool.EventIncidentEnded), 1)
			r.want("a report after it", r.report(failed(lives[0], 401)).Verdict, pool.VerdictRotate)
		})
	})
}

// An incident begins while a report's rotation is under way: it is not made, but that of a RotateKey call which had joined it
// is.
func TestIncidentStopsWhatReportsHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reached, way := make(chan struct{}), make(chan struct{})
		var once sync.Once
		r := newReportRig(t, 1, func(cfg *pool.RotatorConfig) {
			cfg.Steps = func(_ context.Context, s pool.Step, _ pool.Life) error {
				if s == pool.StepRead {
					once.Do(func() { close(reached); <-way })
				}
				return nil
			}
		})
		life := r.active("a")
		r.backups("b")
		var report *pool.ReportResult
		var rotation *pool.RotateResult
		var errs [2]error
		var wg sync.WaitGroup
		wg.Go(func() { report, errs[0] = r.rotators[0].Report(t.Context(), failed(life, 401)) })
		<-reached
		wg.Go(func() { rotation, errs[1] = r.rotators[0].Rotate(t.Context(), request(life, "provider")) })
		synctest.Wait()
		r.spec(func(p *pool.Pool) {
			p.Incident = &pool.Incident{Since: time.Now(), Until: time.Now().Add(time.Minute), Keys: 7}
		})
		close(way)
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		r.want("the report is told of the incident", report.Incident, true)
		r.want("RotateKey", rotation.Outcome, pool.OutcomeRotated)
		r.want("whose rotation it is", rotation.Rotation.RequestID, "provider")
	})
}
