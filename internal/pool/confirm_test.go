package pool_test

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// fakeProber answers after a time, which may be longer than anybody waits.
type fakeProber struct {
	takes  time.Duration
	result pool.ProbeResult

	mu     sync.Mutex // protects the following fields
	asked  int
	secret pool.Secret
}

func (f *fakeProber) Probe(ctx context.Context, _ *pool.Pool, secret pool.Secret) (pool.ProbeResult, string) {
	f.mu.Lock()
	f.asked++
	f.secret = secret
	f.mu.Unlock()
	select {
	case <-time.After(f.takes):
		return f.result, "as told"
	case <-ctx.Done():
		return pool.ProbeUnreachable, "no answer in time"
	}
}

func (f *fakeProber) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// newConfirmRig has a pool whose reports are confirmed, with a key in service that has a secret.
func newConfirmRig(t *testing.T, replicas int, f *fakeProber) (*rotateRig, pool.Life) {
	t.Helper()
	r := newReportRig(t, replicas, func(cfg *pool.RotatorConfig) { cfg.Prober = f })
	r.spec(func(p *pool.Pool) { p.Spec.ConfirmReports = true })
	sealed, err := pooltest.FakeSealer{Keyset: "test"}.Seal("p", "a", pool.NewSecret("sk-fake-a"))
	if err != nil {
		t.Fatal(err)
	}
	r.store.Put(&pool.Active{Pool: "p", Key: "a", Slot: "a", Status: pool.StatusHealthy, Sealed: sealed}, &pool.Slot{Pool: "p", Name: "a"})
	return r, pool.Life{Pool: "p", Key: "a", Generation: r.store.Revision()}
}

// However many report, at however many replicas: the upstream is asked once, and all are told what it said.
func TestOneProbePerFailure(t *testing.T) {
	for name, tt := range map[string]struct {
		prober  *fakeProber
		verdict pool.Verdict
		rule    string
		event   pool.EventType
	}{
		"alive":            {&fakeProber{takes: time.Second, result: pool.ProbeAlive}, pool.VerdictCoolDown, "probe-alive", pool.EventKeyCooledDown},
		"alive at once":    {&fakeProber{result: pool.ProbeAlive}, pool.VerdictCoolDown, "probe-alive", pool.EventKeyCooledDown},
		"dead":             {&fakeProber{takes: time.Second, result: pool.ProbeDead}, pool.VerdictRotate, "test/dead", pool.EventKeyRotated},
		"dead at once":     {&fakeProber{result: pool.ProbeDead}, pool.VerdictRotate, "test/dead", pool.EventKeyRotated},
		"unreachable":      {&fakeProber{takes: time.Second}, pool.VerdictIgnore, "probe-unreachable", ""},
		"refused at once":  {&fakeProber{}, pool.VerdictIgnore, "probe-unreachable", ""},
		"does not answer":  {&fakeProber{takes: time.Hour}, pool.VerdictIgnore, "probe-unreachable", ""},
		"answers too late": {&fakeProber{takes: 6 * time.Second, result: pool.ProbeDead}, pool.VerdictIgnore, "probe-unreachable", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, life := newConfirmRig(t, 3, tt.prober)
				r.backups("b", "c")
				began := time.Now()
				var wg sync.WaitGroup
				for i := range 50 {
					wg.Go(func() {
						res, err := r.rotators[i%3].Report(t.Context(), failed(life, 401))
						if err != nil {
							t.Error(err)
							return
						}
						if res.Verdict != tt.verdict || res.Rule != tt.rule {
							t.Errorf("got %v by %s, want %v by %s", res.Verdict, res.Rule, tt.verdict, tt.rule)
						}
					})
				}
				wg.Wait()
				if took := time.Since(began); took > 7*time.Second {
					t.Errorf("the callers waited %v", took)
				}
				// One who comes a moment later is told the same.
				late := r.report(failed(life, 401))
				r.want("verdict of a later report", late.Verdict, tt.verdict)
				r.want("its rule", late.Rule, tt.rule)
				r.want("probes", tt.prober.count(), 1)
				r.want("with the key's own secret", tt.prober.secret.Reveal(), "sk-fake-a")
				r.want("locks left", r.count(pool.KindLock), 0)
				if tt.event == "" {
					r.want("events", len(r.store.Events()), 0)
				} else {
					r.want("events", r.eventsOf(tt.event), 1)
				}
			})
		})
	}
}

// belatedLocks are locks whose campaigns take a while, and what they were wanted for.
type belatedLocks struct {
	pool.Locks
	takes time.Duration
	last  pool.Purpose
}

func (k *belatedLocks) Campaign(ctx context.Context, l pool.Life, over, seen int64, p pool.Purpose) (*pool.Term, *pool.State, error) {
	k.last = p
	time.Sleep(k.takes)
	return k.Locks.Campaign(ctx, l, over, seen, p)
}

// However long the campaign took, the upstream is asked only for as long as the lock says.
func TestProbeEndsWhenTheLockSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProber{takes: time.Hour}
		r, life := newConfirmRig(t, 1, f)
		locks := &belatedLocks{Locks: &pooltest.MemLocks{Store: r.store, Holder: "slow"}, takes: 2 * time.Second}
		slow := pool.NewRotator(pool.RotatorConfig{
			Store: r.store, Locks: locks, Mirror: r.mirror, Observer: r.seen, Replica: "slow",
			Classify: fakeRules{}, Sealer: pooltest.FakeSealer{Keyset: "test"}, Prober: f,
		})
		t.Cleanup(slow.Close)
		if _, err := slow.Report(t.Context(), failed(life, 401)); err != nil {
			t.Fatal(err)
		}
		r.want("probes", f.count(), 1)
		if now := time.Now(); now.After(locks.last.BusyUntil) {
			t.Errorf("it was still asking %v after the lock had said it would be done", now.Sub(locks.last.BusyUntil))
		}
	})
}

// A mirror that is behind does not have the upstream asked again.
func TestOneProbeBesideALateMirror(t *testing.T) {
	for _, result := range []pool.ProbeResult{pool.ProbeAlive, pool.ProbeDead, pool.ProbeUnreachable} {
		for _, lag := range []time.Duration{time.Second / 2, 3 * time.Second} {
			if result == pool.ProbeUnreachable && lag > time.Second { // only the mirror tells
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				f := &fakeProber{result: result}
				late := pool.NewMirror()
				r, life := newConfirmRig(t, 1, f)
				r.backups("b")
				r.feedLate(late, lag)
				behind := pool.NewRotator(pool.RotatorConfig{
					Store: r.store, Locks: &pooltest.MemLocks{Store: r.store, Holder: "late"}, Mirror: late, Observer: r.seen, Replica: "late",
					Classify: fakeRules{}, Sealer: pooltest.FakeSealer{Keyset: "test"}, Prober: f,
				})
				t.Cleanup(behind.Close)
				first := r.report(failed(life, 401))
				second, err := behind.Report(t.Context(), failed(life, 401))
				if err != nil {
					t.Fatal(err)
				}
				r.want(fmt.Sprintf("verdict at the replica that is %v behind", lag), second.Verdict, first.Verdict)
				r.want(fmt.Sprintf("probes that say %v, %v behind", result, lag), f.count(), 1)
			})
		}
	}
}

// feedLate has a mirror see everything, each change a time after it was made.
func (r *rotateRig) feedLate(m *pool.Mirror, lag time.Duration) {
	recs, revision, err := r.store.ReadAll(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	m.Load(recs, revision, time.Now())
	shown, queue := make(map[pool.Ref]int64), make(chan func(context.Context), 1000) // more than there are changes
	for _, rec := range recs {
		shown[rec.Ref()] = rec.At().ModRevision
	}
	r.store.Watch(func(revision int64, records func() []pool.Record, _ *pool.Txn) {
		var changes []pool.Change
		gone := maps.Clone(shown)
		for _, rec := range records() {
			ref, at := rec.Ref(), rec.At().ModRevision
			if delete(gone, ref); shown[ref] != at {
				shown[ref], changes = at, append(changes, pool.Change{Put: rec})
			}
		}
		for ref := range gone {
			delete(shown, ref)
			changes = append(changes, pool.Change{Delete: ref})
		}
		due := time.Now().Add(lag)
		queue <- func(ctx context.Context) {
			select {
			case <-time.After(time.Until(due)):
				m.Apply(changes, revision)
			case <-ctx.Done():
			}
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var showing sync.WaitGroup
	showing.Go(func() {
		for ctx.Err() == nil {
			select {
			case show := <-queue:
				show(ctx)
			case <-ctx.Done():
			}
		}
	})
	r.t.Cleanup(func() { cancel(); showing.Wait() })
}

// An upstream that could not be asked is asked again after a time.
func TestUnreachableIsNotRememberedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProber{}
		r, life := newConfirmRig(t, 2, f)
		for range 3 {
			for i := range 4 {
				if _, err := r.rotators[i%2].Report(t.Context(), failed(life, 401)); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(11 * time.Second)
		}
		r.want("probes in half a minute", f.count(), 3)
	})
}

// A holder is stopped while it asks. Who does not need the answer takes the lock over after the ordinary patience, and what
// the holder then commits is void.
func TestRotateKeyTakesOverAProbe(t *testing.T) {
	for _, result := range []pool.ProbeResult{pool.ProbeAlive, pool.ProbeDead, pool.ProbeUnreachable} {
		for _, at := range []int{0, 1} { // the same replica, another one
			t.Run(fmt.Sprint(result, " at ", at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := &fakeProber{takes: 4 * time.Second, result: result}
					r, life := newConfirmRig(t, 2, f)
					r.backups("b", "c")
					var report *pool.ReportResult
					var err error
					var wg sync.WaitGroup
					wg.Go(func() { report, err = r.rotators[0].Report(t.Context(), failed(life, 401)) })
					time.Sleep(time.Second)
					began := time.Now()
					rotated, rerr := r.rotators[at].Rotate(t.Context(), request(life, "provider"))
					if rerr != nil {
						t.Fatal(rerr)
					}
					if took := time.Since(began); took > 700*time.Millisecond {
						t.Errorf("RotateKey waited %v for a probe that it does not need", took)
					}
					r.want("outcome", rotated.Outcome, pool.OutcomeRotated)
					wg.Wait()
					if err != nil {
						t.Fatal(err)
					}
					if result != pool.ProbeUnreachable {
						r.want("the report's verdict", report.Verdict, pool.VerdictRotate)
						r.want("its rotation", report.Rotation.ID, rotated.Rotation.ID)
						r.want("its outcome", report.Outcome, pool.OutcomeAlreadyRotated)
					}
					r.want("events", len(r.store.Events()), 1)
					r.want("active keys", r.count(pool.KindActive), 1)
				})
			})
		}
	}
}

// A holder died while it asked: reporters wait for as long as it said, and then ask themselves.
func TestProbeOfADeadHolderIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProber{result: pool.ProbeDead}
		r, life := newConfirmRig(t, 1, f)
		r.backups("b")
		began := time.Now()
		r.store.Put(&pool.Lock{Life: life, Holder: "dead", Stage: pool.StageProbe, BusyUntil: began.Add(3 * time.Second)})
		r.want("outcome", r.report(failed(life, 401)).Outcome, pool.OutcomeRotated)
		if took := time.Since(began); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("the lock of a holder that said it would ask for 3 s was taken over after %v", took)
		}
		r.want("probes", f.count(), 1)
	})
}

// Where the upstream's answer about the key would show nothing it is not asked: the key would rest and fail for ever.
func TestOnlyWhatAnAnswerCanRefuteIsAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProber{result: pool.ProbeAlive}
		r, life := newConfirmRig(t, 1, f)
		r.backups("b")
		res := r.report(failed(life, 403))
		r.want("verdict", res.Verdict, pool.VerdictRotate)
		r.want("outcome", res.Outcome, pool.OutcomeRotated)
		r.want("asked", f.count(), 0)
	})
}

// The upstream calls the key dead, and the rotation then cannot be made: to the same report the upstream was not unreachable.
func TestDeadKeyThatCouldNotBeRotatedIsNoUnreachableUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProber{result: pool.ProbeDead}
		r, life := newConfirmRig(t, 1, f)
		r.backups("b")
		asked := func() bool { return f.count() > 0 }
		r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
			if c.Op == "Apply" && asked() {
				return pooltest.Fault{Err: pool.ErrNotApplied}
			}
			return pooltest.Fault{}
		}
		_, err := r.rotators[0].Report(t.Context(), failed(life, 401))
		r.want("when the store cannot be written", pool.ReasonOf(err), pool.ReasonNotApplied)
		r.faulty.Decide = nil
		r.want("verdict of the same report again", r.report(failed(life, 401)).Verdict, pool.VerdictRotate)
	})
}

// Every write of a confirmed report is lost, before or after it was made.
func TestEveryWriteOfAConfirmedReportIsLost(t *testing.T) {
	for _, result := range []pool.ProbeResult{pool.ProbeAlive, pool.ProbeDead, pool.ProbeUnreachable} {
		for _, made := range []bool{true, false} {
			for _, nth := range []int{1, 2, 3} {
				synctest.Test(t, func(t *testing.T) {
					r, life := newConfirmRig(t, 1, &fakeProber{result: result})
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
					res := r.report(failed(life, 401))
					want := map[pool.ProbeResult]pool.Verdict{
						pool.ProbeAlive: pool.VerdictCoolDown, pool.ProbeDead: pool.VerdictRotate, pool.ProbeUnreachable: pool.VerdictIgnore,
					}[result]
					r.want(fmt.Sprint("verdict when ", result), res.Verdict, want)
					events := 1
					if want == pool.VerdictIgnore {
						events = 0
					}
					r.want("events", len(r.store.Events()), events)
					r.want("locks left", r.count(pool.KindLock), 0)
				})
			}
		}
	}
}

// A report of a bad key during another's rest is told of the rest, and one that an operator enables again is asked about anew.
func TestProbeAfterAnOperatorEnabledTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProber{result: pool.ProbeAlive}
		r, life := newConfirmRig(t, 1, f)
		r.report(failed(life, 401))
		until := r.inService("a").StatusUntil
		time.Sleep(30 * time.Second)
		r.want("until", r.report(failed(life, 401)).Until, until)
		r.want("probes", f.count(), 1)
		admin := pool.NewAdmin(pool.AdminConfig{Store: r.store, Sealer: pooltest.FakeSealer{}})
		a, _, err := admin.EnableKey(t.Context(), "p", "a", "")
		if err != nil {
			t.Fatal(err)
		}
		r.want("status", a.Status, pool.StatusHealthy)
		r.want("until", a.StatusUntil, time.Time{})
		r.want("reason", a.StatusReason, "")
		r.want("since", a.StatusSince.Equal(time.Now()), true)
		r.report(failed(life, 401))
		r.want("probes", f.count(), 2)
	})
}
