package pool

import (
	"context"
	"math"
	"time"
)

// SpendTier says how near a spend is to a budget: 0 below half of it, 1 from there, 2 from 85 %, 3 from 94 %. It is how
// often it is worth looking.
func SpendTier(spend, budget float64) int {
	switch share := spend / budget; {
	case share >= 0.94:
		return 3
	case share >= 0.85:
		return 2
	case share >= 0.5:
		return 1
	}
	return 0
}

// spendStep is the least by which a spend has to have moved to be written, as a share of the budget.
const spendStep = 0.01

// SpendMatters reports whether a reading says enough that is not on record to be worth a write: it is the first one, the
// budget or the tier is another, or the spend has moved by a hundredth of the budget.
func (a *Active) SpendMatters(spend, budget float64) bool {
	if a.SpendAt.IsZero() || a.SpendUSD == nil || a.BudgetUSD == nil || *a.BudgetUSD != budget {
		return true
	}
	return SpendTier(spend, budget) != SpendTier(*a.SpendUSD, budget) || math.Abs(spend-*a.SpendUSD) >= spendStep*budget
}

// conflictSpend is the cause under which lost compares of readings are counted.
const conflictSpend = "spend"

// RecordSpend puts what was read of a life's spend on its record, if that matters. It writes no event: nothing about the
// key has changed but what is known of it.
//
// A reading of a life that has ended is dropped, and so is one that is older than what is on record. A crash before the
// write loses a reading, which is made again. The write compares the very record that was read, so however late it comes
// it neither undoes a change nor brings a key back.
func (a *Admin) RecordSpend(ctx context.Context, l Life, spend, budget float64, at time.Time) error {
	for try := range adminTries {
		if try > 0 && !wait(ctx, adminBackoff(try)) {
			break
		}
		seen, err := a.spent(ctx, l)
		if err != nil || seen == nil || seen.SpendAt.After(at) || !seen.SpendMatters(spend, budget) {
			return err
		}
		if err := rewritable(seen); err != nil {
			return err
		}
		next := *seen
		next.Version = renewed(seen.Version)
		next.SpendUSD, next.BudgetUSD, next.SpendAt = &spend, &budget, at.UTC()
		res, err := a.applier.apply(ctx, &Txn{If: []Guard{Same(seen)}, Put: []Record{&next}})
		if err != nil || res.Applied {
			return err
		}
		a.Observer.Conflict(l, conflictSpend) // perhaps with an earlier send of this very write: look
	}
	return Refuse(ReasonConflict, "somebody else kept changing the record of key %q; its spend was not written", l.Key)
}

// spent reads the record of a life, nil if it has ended.
func (a *Admin) spent(ctx context.Context, l Life) (*Active, error) {
	ref := ActiveRef(l.Pool, l.Key)
	st, err := a.Store.Read(ctx, ref)
	if err != nil {
		return nil, err
	}
	seen, err := Find[*Active](st, ref)
	if err != nil || seen == nil || seen.Life() != l {
		return nil, err
	}
	return seen, nil
}
