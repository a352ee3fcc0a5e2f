package spend

import (
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

func usd(n float64) *float64 { return &n }

func TestNextCheck(t *testing.T) {
	at := time.Unix(1000, 0)
	for _, tt := range []struct {
		spend, budget float64
		want          time.Duration
	}{
		{0, 10, 6 * time.Minute}, {4.99, 10, 6 * time.Minute}, {5, 10, 3 * time.Minute}, {8.49, 10, 3 * time.Minute},
		{8.5, 10, 15 * time.Second}, {9.39, 10, 15 * time.Second}, {9.4, 10, 5 * time.Second}, {12, 10, 5 * time.Second},
		{940, 1000, 5 * time.Second}, {0.5, 1, 3 * time.Minute},
	} {
		if got := nextCheck(tt.spend, tt.budget, at).Sub(at); got != tt.want {
			t.Errorf("$%v of $%v: checked again after %v, want %v", tt.spend, tt.budget, got, tt.want)
		}
	}
}

func TestFirstCheck(t *testing.T) {
	now := time.Unix(1e9, 0)
	for name, tt := range map[string]struct {
		a           pool.Active
		least, most time.Duration // from now
	}{
		"never":             {pool.Active{}, 0, 0},
		"imported":          {pool.Active{SpendUSD: usd(3)}, 0, 0},
		"not due yet":       {pool.Active{SpendUSD: usd(3), BudgetUSD: usd(10), SpendAt: now.Add(-time.Minute)}, 5 * time.Minute, 5 * time.Minute},
		"overdue":           {pool.Active{SpendUSD: usd(3), BudgetUSD: usd(10), SpendAt: now.Add(-time.Hour)}, 0, 6 * time.Minute},
		"overdue, near":     {pool.Active{SpendUSD: usd(9.5), BudgetUSD: usd(10), SpendAt: now.Add(-time.Hour)}, 0, 5 * time.Second},
		"a clock far ahead": {pool.Active{SpendUSD: usd(9.5), BudgetUSD: usd(10), SpendAt: now.Add(time.Hour)}, 5 * time.Second, 5 * time.Second},
	} {
		for range 20 {
			if got := firstCheck(&tt.a, now).Sub(now); got < tt.least || got > tt.most {
				t.Errorf("%s: checked after %v, want %v to %v", name, got, tt.least, tt.most)
			}
		}
	}
}

func TestReason(t *testing.T) {
	for _, tt := range []struct {
		r    Reading
		want string
	}{
		{Reading{SpendUSD: usd(9.949)}, ""},
		{Reading{SpendUSD: usd(9.95)}, "proactive_threshold_9.95"},
		{Reading{SpendUSD: usd(10.02107649999999)}, "proactive_threshold_10.02"},
		{Reading{SpendUSD: usd(10.02107649999999), Exceeded: true}, "budget_exceeded_10.02"},
		{Reading{Exceeded: true}, "budget_exceeded"},
		{Reading{SpendUSD: usd(0), Exceeded: true}, ""}, // reserved, not spent
	} {
		p := pool.SpendPolicy{}.WithDefaults()
		if got := reason(tt.r, budgetOf(tt.r, p), p.Threshold); got != tt.want {
			t.Errorf("%+v: got %q, want %q", tt.r, got, tt.want)
		}
	}
}

func TestBudgetOf(t *testing.T) {
	p := pool.SpendPolicy{BudgetUSD: 25}.WithDefaults()
	for _, tt := range []struct {
		says *float64
		want float64
	}{{nil, 25}, {usd(2.5), 2.5}, {usd(0), 25}} {
		if got := budgetOf(Reading{BudgetUSD: tt.says}, p); got != tt.want {
			t.Errorf("the upstream says %v: got %v, want %v", tt.says, got, tt.want)
		}
	}
}

func TestAgain(t *testing.T) {
	now := time.Unix(1e9, 0)
	for before, most := range []time.Duration{5, 10, 20, 40, 80, 160, 320, 360, 360, 360} {
		most *= time.Second
		if d := again(before, now).Sub(now); d < most/2 || d > most {
			t.Errorf("after %d failures tried again after %v, want %v to %v", before, d, most/2, most)
		}
	}
}
