package spend

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// intervals says how often a key is looked at, by pool.SpendTier.
var intervals = [...]time.Duration{6 * time.Minute, 3 * time.Minute, 15 * time.Second, 5 * time.Second}

// nextCheck is when a key is to be looked at again whose spend was read at a time.
func nextCheck(spend, budget float64, at time.Time) time.Time {
	return at.Add(intervals[pool.SpendTier(spend, budget)])
}

// firstCheck is when a key is to be looked at of which nothing is known but its record. One that was never looked at is
// due now. What should have been looked at before is spread over the time that it is looked at in: what is on record is
// older than the last look, so after a change of leader nearly all keys would seem to be due.
func firstCheck(a *pool.Active, now time.Time) time.Time {
	if a.SpendAt.IsZero() || a.SpendUSD == nil || a.BudgetUSD == nil {
		return now
	}
	next := nextCheck(*a.SpendUSD, *a.BudgetUSD, a.SpendAt)
	every := next.Sub(a.SpendAt)
	switch {
	case next.Before(now):
		return now.Add(rand.N(every))
	case next.After(now.Add(every)): // a clock that is ahead of ours
		return now.Add(every)
	}
	return next
}

// jittered puts a time off by up to a tenth of the way there, so that keys do not stay together.
func jittered(next, now time.Time) time.Time {
	if d := next.Sub(now) / 10; d > 0 {
		return next.Add(rand.N(d))
	}
	return next
}

// again is when something that has not worked a number of times before is tried again.
func again(before int, now time.Time) time.Time {
	d := intervals[0]
	if before < 8 { // beyond, the shortest doubled is more
		d = min(intervals[len(intervals)-1]<<before, d)
	}
	return now.Add(d/2 + rand.N(d/2))
}

// budgetOf is what a reading is held against: what the upstream says, else the policy's. A budget of nothing is none: every
// key would be at its end.
func budgetOf(r Reading, p pool.SpendPolicy) float64 {
	if r.BudgetUSD != nil && *r.BudgetUSD > 0 {
		return *r.BudgetUSD
	}
	return p.BudgetUSD
}

// reason is why a key has to go, empty if it need not.
//
// A refusal for a spend that is below the threshold is no reason: where LiteLLM reserves budget for requests under way it
// refuses more for a while, and what is reserved comes back.
func reason(r Reading, budget, threshold float64) string {
	switch spent := r.SpendUSD != nil && *r.SpendUSD >= threshold*budget; {
	case r.Exceeded && r.SpendUSD == nil:
		return "budget_exceeded"
	case r.Exceeded && spent:
		return fmt.Sprintf("budget_exceeded_%.2f", *r.SpendUSD)
	case spent:
		return fmt.Sprintf("proactive_threshold_%.2f", *r.SpendUSD)
	}
	return ""
}
