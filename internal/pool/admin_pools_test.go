package pool_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

func TestCreatePool(t *testing.T) {
	r := newAdminRig(t)
	spec := pool.Spec{Description: "d", Labels: map[string]string{"a": "b"}}
	p, rev, err := r.admin.CreatePool(r.ctx, "p", spec)
	r.must(err)
	if diff := cmp.Diff(read[*pool.Pool](r, pool.PoolRef("p")), p); diff != "" || p.ModRevision != rev || p.CreateRevision != rev {
		t.Errorf("the answer at %d is not what is stored (-stored +answer):\n%s", rev, diff)
	}
	if _, again, err := r.admin.CreatePool(r.ctx, "p", spec); err != nil || again != rev {
		t.Errorf("again: got %d, %v; want %d", again, err, rev)
	}
	if err := errOf(r.admin.CreatePool(r.ctx, "p", pool.Spec{})); pool.ReasonOf(err) != pool.ReasonPoolExists {
		t.Errorf("with another spec: got %v, want %s", err, pool.ReasonPoolExists)
	}
}

func TestUpdatePool(t *testing.T) {
	r := newAdminRig(t).fill()
	before := read[*pool.Pool](r, pool.PoolRef("p"))
	r.must(errOf(r.admin.PausePool(r.ctx, "p")))
	paused := read[*pool.Pool](r, pool.PoolRef("p"))
	if err := errOf(r.admin.UpdatePool(r.ctx, "p", pool.Spec{}, before.ModRevision)); pool.ReasonOf(err) != pool.ReasonConflict {
		t.Errorf("at an old revision: got %v, want %s", err, pool.ReasonConflict)
	}
	p, rev, err := r.admin.UpdatePool(r.ctx, "p", pool.Spec{Description: "new"}, paused.ModRevision)
	r.must(err)
	if diff := cmp.Diff(read[*pool.Pool](r, pool.PoolRef("p")), p); diff != "" || p.ModRevision != rev || !p.Paused || !p.CreatedAt.Equal(before.CreatedAt) {
		t.Errorf("got %+v at %d (-stored +answer):\n%s", p, rev, diff)
	}
	if _, same, err := r.admin.UpdatePool(r.ctx, "p", pool.Spec{Description: "new"}, 0); err != nil || same != rev {
		t.Errorf("with an equal spec: got %d, %v; want %d without a write", same, err, rev)
	}
}

// TestUpstreamSince: when a pool's upstream was changed is put by that change only, and kept by every other.
func TestUpstreamSince(t *testing.T) {
	litellm := pool.Spec{
		Upstream: pool.UpstreamSpec{Kind: pool.UpstreamLiteLLM, BaseURL: "https://a.example.org"},
		Provider: &pool.ProviderSpec{LiteLLM: &pool.LiteLLMProvider{}},
	}
	with := func(change func(*pool.Spec)) pool.Spec {
		s := litellm
		change(&s)
		return s
	}
	exec := func(name string) func(*pool.Spec) {
		return func(s *pool.Spec) { s.Provider = &pool.ProviderSpec{Exec: &pool.ExecProvider{Name: name}} }
	}
	for _, tt := range []struct {
		name    string
		from    pool.Spec
		to      pool.Spec
		changed bool
	}{
		{"the first upstream and provider", pool.Spec{}, litellm, false},
		{"another description", litellm, with(func(s *pool.Spec) { s.Description = "d" }), false},
		{"other budgets", litellm, with(func(s *pool.Spec) { s.Provider = &pool.ProviderSpec{LiteLLM: &pool.LiteLLMProvider{MaxBudgetUSD: 5}} }), false},
		{"a kind that was meant", pool.Spec{Upstream: pool.UpstreamSpec{BaseURL: "https://a"}}, pool.Spec{Upstream: pool.UpstreamSpec{Kind: pool.UpstreamGeneric, BaseURL: "https://a"}}, false},
		{"another kind", litellm, with(func(s *pool.Spec) { s.Upstream.Kind = pool.UpstreamOpenHands }), true},
		{"another URL", litellm, with(func(s *pool.Spec) { s.Upstream.BaseURL = "https://b.example.org" }), true},
		{"no URL any more", with(exec("c")), with(func(s *pool.Spec) { exec("c")(s); s.Upstream.BaseURL = "" }), true},
		{"another sort of provider", litellm, with(exec("c")), true},
		{"another command", with(exec("c")), with(exec("d")), true},
		{"no provider any more", litellm, with(func(s *pool.Spec) { s.Provider = nil }), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newAdminRig(t)
			r.must(errOf(r.admin.CreatePool(r.ctx, "p", tt.from)))
			before := time.Now()
			p, _, err := r.admin.UpdatePool(r.ctx, "p", tt.to, 0)
			r.must(err)
			if since := p.UpstreamSince; since.IsZero() == tt.changed || tt.changed && (since.Before(before.Add(-time.Second)) || since.After(time.Now().Add(time.Second))) {
				t.Fatalf("the upstream is said to be what it is since %v", since)
			}
			since := p.UpstreamSince
			r.must(errOf(r.admin.PausePool(r.ctx, "p")))
			r.must(errOf(r.admin.SetPoolCredential(r.ctx, "p", pool.NewSecret("sk-fake-credential"))))
			next := tt.to
			next.Labels = map[string]string{"a": "b"}
			r.must(errOf(r.admin.UpdatePool(r.ctx, "p", next, 0)))
			if got := read[*pool.Pool](r, pool.PoolRef("p")).UpstreamSince; !got.Equal(since) {
				t.Errorf("other changes have made it %v, want %v", got, since)
			}
		})
	}
}

func TestPauseAndResume(t *testing.T) {
	r := newAdminRig(t).fill()
	stalled, err := r.rotation("k1", "b1")
	r.must(err)
	p, paused, err := r.admin.PausePool(r.ctx, "p")
	r.must(err)
	if _, again, err := r.admin.PausePool(r.ctx, "p"); err != nil || again != paused || !p.Paused {
		t.Errorf("paused again: %d, %v; want %d without a write", again, err, paused)
	}
	if err := r.applied(stalled); !errors.Is(err, pool.ErrConflict) {
		t.Errorf("a stalled rotation after the pause: got %v, want it void", err)
	}
	for name, err := range map[string]error{ // a pause does not hinder operators
		"add":     addOne(r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, newKeys("n1"), false)),
		"disable": errOf(r.admin.DisableKey(r.ctx, "p", "k1", "")),
		"bind":    errOf(r.admin.SetBinding(r.ctx, "p", "z", priorities("s1"))),
		"remove":  errOf(r.admin.RemoveKey(r.ctx, "p", "k3", false)),
		"restore": errOf(r.admin.RestoreKey(r.ctx, "p", "r1")),
	} {
		if err != nil {
			t.Errorf("%s in a paused pool: %v", name, err)
		}
	}
	p, resumed, err := r.admin.ResumePool(r.ctx, "p")
	r.must(err)
	if _, again, err := r.admin.ResumePool(r.ctx, "p"); err != nil || again != resumed || p.Paused {
		t.Errorf("resumed again: %d, %v; want %d without a write", again, err, resumed)
	}
	r.sound("after it")
}

func TestDeletePoolRefusesWhatIsFilled(t *testing.T) {
	r := newAdminRig(t).fill()
	before := r.digest()
	err := second(r.admin.DeletePool(r.ctx, "p", false))
	var refusal *pool.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != pool.ReasonPoolNotEmpty {
		t.Fatalf("got %v, want %s", err, pool.ReasonPoolNotEmpty)
	}
	want := map[string]string{"active": "4", "backup": "2", "pending": "1", "bindings": "2"}
	if diff := cmp.Diff(want, refusal.Metadata); diff != "" || !strings.Contains(refusal.Message, "4 active keys, 2 backups, 1 waiting rotations, 2 bindings") {
		t.Errorf("refusal %q (-want +got):\n%s", refusal.Message, diff)
	}
	if r.digest() != before {
		t.Error("the refused deletion has changed something")
	}
}

// TestDeletePoolKeepsWhatIsToBeRevoked: a retired key that may be alive at the upstream is not lost without force.
func TestDeletePoolKeepsWhatIsToBeRevoked(t *testing.T) {
	revokes := pool.Spec{Provider: &pool.ProviderSpec{Exec: &pool.ExecProvider{Name: "fake"}}}
	keeps := revokes
	keeps.Retirement.KeepAtUpstream = true
	for _, tt := range []struct {
		name  string
		spec  pool.Spec
		phase pool.Phase
		want  pool.Reason
	}{
		{"not begun", revokes, pool.PhaseRetired, pool.ReasonPoolNotEmpty},
		{"begun", revokes, pool.PhaseRevoking, pool.ReasonPoolNotEmpty},
		{"given up", revokes, pool.PhaseOrphaned, pool.ReasonPoolNotEmpty},
		{"given up without a provider", pool.Spec{}, pool.PhaseOrphaned, pool.ReasonPoolNotEmpty},
		{"without a provider", pool.Spec{}, pool.PhaseRetired, ""},
		{"kept at the upstream", keeps, pool.PhaseRetired, ""},
		{"revoked", revokes, pool.PhaseRevoked, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newAdminRig(t)
			r.byHand = true
			r.must(errOf(r.rival.CreatePool(r.ctx, "p", tt.spec)))
			sealed, err := pooltest.FakeSealer{}.Seal("p", "r", pool.NewSecret("sk-fake-r"))
			r.must(err)
			res, err := r.store.Apply(r.ctx, &pool.Txn{Put: []pool.Record{&pool.Retired{Pool: "p", Key: "r", Phase: tt.phase, Sealed: sealed, RetiredAt: time.Now()}}})
			if err != nil || !res.Applied {
				t.Fatal(res, err)
			}
			err = second(r.admin.DeletePool(r.ctx, "p", false))
			if pool.ReasonOf(err) != tt.want || (err == nil) != (tt.want == "") {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if left := r.has(pool.RetiredRef("p", "r")); left != (tt.want != "") {
				t.Errorf("the key is left: %t", left)
			}
			if err == nil {
				return
			}
			if p := read[*pool.Pool](r, pool.PoolRef("p")); p.Deleting || !strings.Contains(err.Error(), "1 retired keys") {
				t.Errorf("deleting=%t after %v", p.Deleting, err)
			}
			r.must(second(r.admin.DeletePool(r.ctx, "p", true)))
		})
	}
}

// TestDeletePoolLeavesNothing but its events, and the name can be used again.
func TestDeletePoolLeavesNothing(t *testing.T) {
	r := newAdminRig(t).fill()
	r.lock("k1")
	events := len(r.eventCounts())
	rev, err := r.admin.DeletePool(r.ctx, "p", true)
	r.must(err)
	recs, _, err := r.store.ReadAll(r.ctx)
	r.must(err)
	for _, rec := range recs {
		if rec.Ref().Pool == "p" {
			t.Errorf("%v is left", rec.Ref())
		}
	}
	if _, ok := r.store.(eventLister); ok && len(r.eventCounts()) < events {
		t.Error("events are gone")
	}
	if rev == 0 {
		t.Error("the answer has no revision")
	}
	r.must(errOf(r.admin.CreatePool(r.ctx, "p", pool.Spec{})))
	r.add("p", pool.HomeActive, newKeys("k1")...)
	r.sound("after it")
}

// TestDeletePoolFilledMeanwhile: what is added between the look and the mark is not lost; the pool is opened again.
func TestDeletePoolFilledMeanwhile(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r := newAdminRig(t).fill()
		first := true
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Op == "Apply" && first {
				first = false
				f.Before = func() { r.add("q", pool.HomeBackup, newKey("n1")) }
			}
			return f
		}
		if err := second(r.admin.DeletePool(r.ctx, "q", false)); pool.ReasonOf(err) != pool.ReasonPoolNotEmpty {
			t.Errorf("got %v, want %s", err, pool.ReasonPoolNotEmpty)
		}
		if q := read[*pool.Pool](r, pool.PoolRef("q")); q == nil || q.Deleting {
			t.Errorf("the pool is %+v, want it open", q)
		}
		r.must(errOf(r.admin.RemoveKey(r.ctx, "q", "n1", false)))
		r.must(second(r.admin.DeletePool(r.ctx, "q", false)))
		r.sound("after it")
	})
}

// TestDeletePoolCallerGoesAway before it is known that the pool is empty: the mark is taken back.
func TestDeletePoolCallerGoesAway(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r := newAdminRig(t).fill()
		ctx, cancel := context.WithCancel(r.ctx)
		defer cancel()
		marked := false
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if marked {
				f.Before = cancel
			}
			marked = marked || c.Op == "Apply"
			return f
		}
		if err := second(r.admin.DeletePool(ctx, "q", false)); pool.ReasonOf(err) != pool.ReasonNotApplied {
			t.Errorf("got %v, want not applied", err)
		}
		if q := read[*pool.Pool](r, pool.PoolRef("q")); q == nil || q.Deleting {
			t.Errorf("the pool is %+v, want it open", q)
		}
	})
}

// TestDeletePoolInterrupted: only force goes on where another call has stopped and something is left.
func TestDeletePoolInterrupted(t *testing.T) {
	r := newAdminRig(t).fill()
	r.interruptDeletion("p")
	r.interruptDeletion("q")
	if err := second(r.admin.DeletePool(r.ctx, "p", false)); pool.ReasonOf(err) != pool.ReasonPoolNotEmpty {
		t.Errorf("without force: got %v, want %s", err, pool.ReasonPoolNotEmpty)
	}
	if p := read[*pool.Pool](r, pool.PoolRef("p")); p == nil || !p.Deleting {
		t.Errorf("the pool is %+v; the other call's mark must stay", p)
	}
	r.must(second(r.admin.DeletePool(r.ctx, "p", true)))
	r.must(second(r.admin.DeletePool(r.ctx, "q", false)))
	r.sound("after it")
}

// TestDeletePoolByTwo: with force, while another without force finds it filled and wants to open it again. Either it is
// opened whole or it is gone.
func TestDeletePoolByTwo(t *testing.T) {
	for n := 1; n <= 16; n++ {
		inTime(t, func(t *testing.T) {
			r := newAdminRig(t).fill()
			first := true
			r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
				if c.Op == "Apply" && first {
					first = false
					f.Before = func() {
						_, _, _ = r.rival.AddKeys(r.ctx, "q", pool.HomeBackup, newKeys("n1", "n2", "n3", "n4", "n5"), false)
					}
				}
				if c.N == n {
					before := f.Before
					f.Before = func() {
						if before != nil {
							before()
						}
						_, _ = r.rival.DeletePool(r.ctx, "q", true)
					}
				}
				return f
			}
			err := second(r.admin.DeletePool(r.ctx, "q", false))
			known(t, "delete", err)
			if r.has(pool.PoolRef("q")) {
				stock, _, err := r.store.List(r.ctx, pool.KindBackup, "q", 0)
				r.must(err)
				if q := read[*pool.Pool](r, pool.PoolRef("q")); q.Deleting || len(stock) != 5 {
					t.Errorf("call %d: the pool is left with deleting=%t and %d of 5 keys", n, q.Deleting, len(stock))
				}
			}
			r.sound(fmt.Sprintf("call %d", n))
		})
	}
}

// TestDeletePoolIsNotOpenedHalfDeleted: a call without force that wants to take its mark back while another call with force
// deletes, in the middle of any of that one's calls. The pool is not opened again once something of it is gone.
func TestDeletePoolIsNotOpenedHalfDeleted(t *testing.T) {
	for n := 1; n <= 14; n++ {
		inTime(t, func(t *testing.T) {
			r := newAdminRig(t).fill()
			marked := false
			r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
				switch {
				case c.Txn == nil:
				case c.Txn.Event.Type == pool.EventPoolDeleting && !marked:
					marked = true
					f.Before = func() { r.add("q", pool.HomeBackup, newKeys("n1", "n2", "n3", "n4", "n5")...) }
				case c.Txn.Event.Type == pool.EventPoolUpdated:
					f.Before = sync.OnceFunc(func() { r.deleteByForce("q", n, c.Txn) })
				}
				return f
			}
			err := second(r.admin.DeletePool(r.ctx, "q", false))
			known(t, "delete", err)
			stock, _, err := r.store.List(r.ctx, pool.KindBackup, "q", 0)
			r.must(err)
			if r.has(pool.PoolRef("q")) && !read[*pool.Pool](r, pool.PoolRef("q")).Deleting && len(stock) != 5 {
				t.Errorf("call %d: the pool is open with %d of its 5 keys", n, len(stock))
			}
			r.sound(fmt.Sprintf("call %d", n))
		})
	}
}

// deleteByForce deletes a pool, and lets a transaction in before its nth call.
func (r *adminRig) deleteByForce(name string, n int, txn *pool.Txn) {
	store := &pooltest.Faulty{Store: r.store, Decide: func(c pooltest.Call) (f pooltest.Fault) {
		if c.N == n {
			f.Before = func() { _ = r.applied(txn) }
		}
		return f
	}}
	_, err := pool.NewAdmin(pool.AdminConfig{Store: store, Sealer: pooltest.FakeSealer{}}).DeletePool(r.ctx, name, true)
	known(r.t, "delete by force", err)
}

// TestDeletePoolSweepFails part of the way: the pool stays marked, no binding dangles, and calling again ends it.
func TestDeletePoolSweepFails(t *testing.T) {
	for n := 1; n <= 9; n++ {
		r := newAdminRig(t).fill()
		sweeps := 0
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Op == "Sweep" {
				if sweeps++; sweeps == n {
					f.Err = pool.ErrNotApplied
				}
			}
			return f
		}
		if err := second(r.admin.DeletePool(r.ctx, "p", true)); pool.ReasonOf(err) != pool.ReasonOutcomeUnknown {
			t.Fatalf("sweep %d: got %v, want outcome unknown: something is applied", n, err)
		}
		r.sound(fmt.Sprintf("sweep %d", n))
		report, err := r.rival.Diagnose(r.ctx)
		r.must(err)
		if got := checksOf(report, "pool-deleting"); len(got) != 1 || got[0].Severity != pool.SeverityWarning {
			t.Errorf("sweep %d: the interrupted deletion is reported as %v", n, got)
		}
		r.must(second(r.admin.DeletePool(r.ctx, "p", true)))
		r.sound(fmt.Sprintf("after sweep %d", n))
	}
}

func checksOf(r *pool.Report, check string) (found []pool.Finding) {
	for _, f := range r.Findings {
		if f.Check == check {
			found = append(found, f)
		}
	}
	return found
}

// TestAdminWithoutAStore ends when its caller's patience does, and says that nothing was applied.
func TestAdminWithoutAStore(t *testing.T) {
	for _, op := range adminOps {
		t.Run(op.name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				r := newAdminRig(t).fill()
				r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
					if c.Op == "Apply" {
						f.Err = pool.ErrNotApplied
					}
					return f
				}
				ctx, cancel := context.WithTimeout(r.ctx, time.Second)
				defer cancel()
				began := time.Now()
				if err := op.do(r, ctx, r.admin); pool.ReasonOf(err) != pool.ReasonNotApplied {
					t.Errorf("got %v, want not applied", err)
				}
				if took := time.Since(began); took > 2*time.Second+100*time.Millisecond {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}
