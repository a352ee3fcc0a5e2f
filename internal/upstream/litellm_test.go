package upstream

import (
	"errors"
	"net/http"
	"testing"
)

func TestBudgetErrors(t *testing.T) {
	usd := func(n float64) *float64 { return &n }
	for _, tt := range []struct {
		kind          Kind
		status        int
		body          string
		spend, budget *float64
		scope         Scope
		other         bool // not about the key's budget
	}{
		{OpenHands, 400, `{"error":{"message":"ExceededBudget: User=u over budget. Spend=10.02107649999999, Budget=10.0","type":"budget_exceeded","code":"400"}}`,
			usd(10.02107649999999), usd(10), ScopeUser, false},
		{LiteLLM, 429, `{"error":{"message":"Budget has been exceeded! Key=sk-...x Current cost: 0.0, Estimated request cost: 3.64, Max budget: 2.5","type":"budget_exceeded","param":null,"code":"429"}}`,
			usd(0), usd(2.5), ScopeKey, false},
		{LiteLLM, 401, `{"error":{"message":"Budget has been exceeded! Key=k","type":"budget_exceeded"}}`, nil, nil, ScopeKey, false},
		{OpenHands, 400, `over budget: Spend=1e1, Budget=`, usd(10), nil, ScopeUser, false},
		{LiteLLM, 400, `{"error":{"message":"Budget has been exceeded! Team=t Current cost: 10.0, Max budget: 10.0","type":"budget_exceeded"}}`, nil, nil, "", true},
		{OpenHands, 403, `{"error":{"message":"no"}}`, nil, nil, "", true},
		{OpenHands, 500, `{"error":{"message":"ExceededBudget: User=u","type":"budget_exceeded"}}`, nil, nil, "", true},
	} {
		c := NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) { return answerOf(tt.status, tt.body), nil })})
		l := LiteLLMAPI{Client: c, Kind: tt.kind, BaseURL: "https://host"}
		_, err := l.SpendByKey(t.Context(), fakeKey)
		var e *CallError
		var b *BudgetError
		if is := errors.As(err, &b); is == tt.other || !errors.As(err, &e) {
			t.Errorf("%s %d %s: budget exceeded? want %v, got %v (%v)", tt.kind, tt.status, tt.body, !tt.other, is, err)
			continue
		}
		if b != nil && (amount(b.SpendUSD) != amount(tt.spend) || amount(b.BudgetUSD) != amount(tt.budget) || b.Scope != tt.scope) {
			t.Errorf("%s: want %s of %s, scope %s, got %v, scope %s", tt.body, amount(tt.spend), amount(tt.budget), tt.scope, b, b.Scope)
		}
	}
}
