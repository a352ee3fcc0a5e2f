package upstream

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// budgetExceeded is LiteLLM's error type.
const budgetExceeded = "budget_exceeded"

// BudgetError says that an upstream refuses a key because its budget is spent. It is found with errors.As.
type BudgetError struct {
	SpendUSD  *float64 // as the message says; nil: it does not
	BudgetUSD *float64
	Scope     Scope
	Rule      string // that knows the answer
}

// Error implements error.
func (e *BudgetError) Error() string {
	return fmt.Sprintf("budget exceeded (spend %s, budget %s)", amount(e.SpendUSD), amount(e.BudgetUSD))
}

func amount(usd *float64) string {
	if usd == nil {
		return "unknown"
	}
	return fmt.Sprintf("$%.2f", *usd)
}

var (
	budgetWords   = regexp.MustCompile(`(?i)budget_exceeded|budget has been exceeded|ExceededBudget|\bover budget\b`)
	spendPattern  = regexp.MustCompile(`(?i)(?:\bspend=|\bcurrent cost:)\s*\$?(\d+(?:\.\d+)?(?:e[-+]?\d+)?)`)
	budgetPattern = regexp.MustCompile(`(?i)(?:\bbudget=|\bmax budget:)\s*\$?(\d+(?:\.\d+)?(?:e[-+]?\d+)?)`)
)

// budgetError reads a refusal that is about the budget of the key that was sent. A wider budget, such as a team's, is none
// that another key cures; the rules tell them apart.
func budgetError(err error, r Response) error {
	var e *CallError
	if !errors.As(err, &e) || e.Verdict.Action != Rotate {
		return err
	}
	a := newAnswer(r)
	if !strings.EqualFold(a.kind, budgetExceeded) && !budgetWords.MatchString(a.text) {
		return err
	}
	e.cause = &BudgetError{
		SpendUSD: dollarsIn(spendPattern, a.text), BudgetUSD: dollarsIn(budgetPattern, a.text),
		Scope: e.Verdict.Scope, Rule: e.Verdict.Rule,
	}
	return e
}

// spentShare is how much of its budget a key must have spent for a refusal to be about its spend, and not about a request that
// costs more than is left. It is the threshold of the spend checker if the pool sets none.
const spentShare = 0.995

// spent reports whether the answer says that the budget it is about is spent.
func (a answer) spent() bool {
	spend, budget := dollarsIn(spendPattern, a.text), dollarsIn(budgetPattern, a.text)
	return spend != nil && budget != nil && *budget > 0 && *spend >= spentShare**budget
}

func dollarsIn(pattern *regexp.Regexp, text string) *float64 {
	found := pattern.FindStringSubmatch(text)
	if found == nil {
		return nil
	}
	n, err := strconv.ParseFloat(found[1], 64)
	if err != nil || !isAmount(n) {
		return nil
	}
	return &n
}

// isAmount reports whether a number can be one of dollars.
func isAmount(n float64) bool { return n >= 0 && !math.IsInf(n, 0) }

// numberAt reads a number at a path.
func numberAt(tree any, path string) (float64, bool) {
	found := lookup(tree, path)
	if len(found) != 1 {
		return 0, false
	}
	n, err := strconv.ParseFloat(found[0], 64)
	return n, err == nil && !math.IsNaN(n)
}
