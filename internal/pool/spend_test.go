package pool_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

func TestSpendTier(t *testing.T) {
	for _, tt := range []struct {
		spend, budget float64
		want          int
	}{
		{0, 10, 0}, {4.99, 10, 0}, {5, 10, 1}, {8.49, 10, 1}, {8.5, 10, 2}, {9.39, 10, 2}, {9.4, 10, 3}, {10, 10, 3}, {50, 10, 3}, {94, 100, 3},
	} {
		if got := pool.SpendTier(tt.spend, tt.budget); got != tt.want {
			t.Errorf("$%v of $%v: tier %d, want %d", tt.spend, tt.budget, got, tt.want)
		}
	}
}

func TestSpendMatters(t *testing.T) {
	usd := func(n float64) *float64 { return &n }
	read := time.Unix(1, 0)
	for name, tt := range map[string]struct {
		was           pool.Active
		spend, budget float64
		want          bool
	}{
		"first":                   {pool.Active{}, 0, 10, true},
		"imported, never read":    {pool.Active{SpendUSD: usd(3)}, 3, 10, true},
		"the same":                {pool.Active{SpendUSD: usd(3), BudgetUSD: usd(10), SpendAt: read}, 3, 10, false},
		"a little":                {pool.Active{SpendUSD: usd(3), BudgetUSD: usd(10), SpendAt: read}, 3.09, 10, false},
		"a hundredth":             {pool.Active{SpendUSD: usd(3), BudgetUSD: usd(10), SpendAt: read}, 3.11, 10, true},
		"a hundredth less, reset": {pool.Active{SpendUSD: usd(3), BudgetUSD: usd(10), SpendAt: read}, 0, 10, true},
		"another tier":            {pool.Active{SpendUSD: usd(9.39), BudgetUSD: usd(10), SpendAt: read}, 9.4, 10, true},
		"another budget":          {pool.Active{SpendUSD: usd(3), BudgetUSD: usd(10), SpendAt: read}, 3, 11, true},
	} {
		if got := tt.was.SpendMatters(tt.spend, tt.budget); got != tt.want {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
	}
}

// spendRig has a pool with one active key.
func spendRig(t *testing.T) (*adminRig, *pool.Active) {
	t.Helper()
	r := newAdminRig(t)
	_, _, err := r.rival.CreatePool(r.ctx, "p", pool.Spec{})
	r.must(err)
	r.add("p", pool.HomeActive, newKey("k"))
	return r, r.active("k")
}

func (r *adminRig) active(key string) *pool.Active {
	r.t.Helper()
	st, err := r.store.Read(r.ctx, pool.ActiveRef("p", key))
	r.must(err)
	a, err := pool.Find[*pool.Active](st, pool.ActiveRef("p", key))
	r.must(err)
	return a
}

func TestRecordSpend(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r, before := spendRig(t)
		now := time.Now().UTC()
		r.must(r.admin.RecordSpend(r.ctx, before.Life(), 3, 10, now))
		got := r.active("k")
		if got.SpendUSD == nil || *got.SpendUSD != 3 || got.BudgetUSD == nil || *got.BudgetUSD != 10 || !got.SpendAt.Equal(now) || got.Life() != before.Life() {
			t.Fatalf("the record is %+v, want $3 of $10 at %v in the same life", got, now)
		}
		// What does not matter is not written, and neither is what is older.
		r.must(r.admin.RecordSpend(r.ctx, before.Life(), 3.05, 10, now.Add(time.Minute)))
		r.must(r.admin.RecordSpend(r.ctx, before.Life(), 1, 10, now.Add(-time.Minute)))
		if again := r.active("k"); again.ModRevision != got.ModRevision {
			t.Errorf("the record was written again: %+v", again)
		}
		// A later life is another key's business.
		other := before.Life()
		other.Generation++
		r.must(r.admin.RecordSpend(r.ctx, other, 9, 10, now.Add(time.Hour)))
		if again := r.active("k"); again.ModRevision != got.ModRevision {
			t.Errorf("a reading of another life was written: %+v", again)
		}
		_, _, err := r.rival.RemoveKey(r.ctx, "p", "k", false)
		r.must(err)
		r.must(r.admin.RecordSpend(r.ctx, before.Life(), 9, 10, now.Add(time.Hour)))
		if r.active("k") != nil {
			t.Error("a reading brought a removed key back")
		}
		r.sound("at the end")
	})
}

// Whatever comes between the look and the write is kept.
func TestRecordSpendMeetsOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		rival func(r *adminRig)
		keeps func(a *pool.Active) bool
	}{
		"disabled": {
			func(r *adminRig) { _, _, err := r.rival.DisableKey(r.ctx, "p", "k", ""); r.must(err) },
			func(a *pool.Active) bool { return a != nil && a.Status == pool.StatusDisabled && *a.SpendUSD == 3 },
		},
		"a later reading": {
			func(r *adminRig) {
				r.must(r.rival.RecordSpend(r.ctx, r.active("k").Life(), 5, 10, time.Now().Add(time.Minute)))
			},
			func(a *pool.Active) bool { return a != nil && *a.SpendUSD == 5 },
		},
		"removed": {
			func(r *adminRig) { _, _, err := r.rival.RemoveKey(r.ctx, "p", "k", false); r.must(err) },
			func(a *pool.Active) bool { return a == nil },
		},
		"removed and added again": {
			func(r *adminRig) {
				_, _, err := r.rival.RemoveKey(r.ctx, "p", "k", false)
				r.must(err)
				r.add("p", pool.HomeActive, newKey("k"))
			},
			func(a *pool.Active) bool { return a != nil && a.SpendUSD == nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				r, before := spendRig(t)
				met := false
				r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
					if c.Op != "Apply" || met {
						return pooltest.Fault{}
					}
					met = true
					return pooltest.Fault{Before: func() { tt.rival(r) }}
				}
				r.must(r.admin.RecordSpend(r.ctx, before.Life(), 3, 10, time.Now()))
				if got := r.active("k"); !tt.keeps(got) {
					t.Errorf("the record is %+v", got)
				}
				r.sound("at the end")
			})
		})
	}
}

// An answer that is lost is asked for again: the write is there once, or not at all.
func TestRecordSpendIsNotHeard(t *testing.T) {
	for _, made := range []bool{true, false} {
		inTime(t, func(t *testing.T) {
			r, before := spendRig(t)
			lost := 0
			r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
				if c.Op != "Apply" || lost == 2 {
					return pooltest.Fault{}
				}
				lost++
				return pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: made}
			}
			r.must(r.admin.RecordSpend(r.ctx, before.Life(), 3, 10, time.Now()))
			if got := r.active("k"); got.SpendUSD == nil || *got.SpendUSD != 3 {
				t.Errorf("made: %v: the record is %+v, want $3", made, got)
			}
			r.faulty.Decide = func(c pooltest.Call) pooltest.Fault { return pooltest.Fault{Err: pool.ErrNotApplied} }
			if err := r.admin.RecordSpend(r.ctx, before.Life(), 9, 10, time.Now()); !errors.Is(err, pool.ErrNotApplied) {
				t.Errorf("without a store: got %v, want not applied", err)
			}
		})
	}
}

func TestRecordSpendLeavesNewerRecordsAlone(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r, before := spendRig(t)
		newer := *before
		newer.Schema = pool.Schema + 1
		r.edit().Put(&newer)
		if err := r.admin.RecordSpend(r.ctx, before.Life(), math.Pi, 10, time.Now()); pool.ReasonOf(err) != pool.ReasonSchemaTooNew {
			t.Errorf("got %v, want a refusal", err)
		}
	})
}
