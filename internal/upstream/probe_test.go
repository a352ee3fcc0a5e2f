package upstream

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestProbeRequests(t *testing.T) {
	for _, tt := range []struct {
		kind              Kind
		base, want        string
		header, headValue string
	}{
		{OpenAI, "", "https://api.openai.com/v1/models", "Authorization", "Bearer " + fakeKey.Reveal()},
		{OpenAI, "https://eu.api.openai.com/v1", "https://eu.api.openai.com/v1/models", "Authorization", "Bearer " + fakeKey.Reveal()},
		{Anthropic, "", "https://api.anthropic.com/v1/models?limit=1", "X-Api-Key", fakeKey.Reveal()},
		{Anthropic, "", "https://api.anthropic.com/v1/models?limit=1", "Anthropic-Version", "2023-06-01"},
		{OpenRouter, "", "https://openrouter.ai/api/v1/key", "Authorization", "Bearer " + fakeKey.Reveal()},
		{Gemini, "", "https://generativelanguage.googleapis.com/v1beta/models", "X-Goog-Api-Key", fakeKey.Reveal()},
		{LiteLLM, "http://litellm:4000", "http://litellm:4000/key/info", "X-Litellm-Api-Key", fakeKey.Reveal()},
		{OpenHands, "http://litellm:4000/", "http://litellm:4000/user/daily/activity?end_date=2026-01-25&page=1&page_size=1&start_date=2026-01-25",
			"X-Litellm-Api-Key", fakeKey.Reveal()},
	} {
		var sent *http.Request
		c := NewClient(ClientConfig{
			Now: func() time.Time { return time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC) },
			Transport: transport(func(r *http.Request) (*http.Response, error) {
				sent = r
				return answerOf(200, "{}"), nil
			}),
		})
		got := c.Probe(t.Context(), tt.kind, tt.base, fakeKey)
		if got.Health != Alive || sent.URL.String() != tt.want || sent.Method != http.MethodGet || sent.Header.Get(tt.header) != tt.headValue {
			t.Errorf("%s: want GET %s with %s, got %s %s with %v: %+v", tt.kind, tt.want, tt.header, sent.Method, sent.URL, sent.Header, got)
		}
	}
}

// Whatever comes for a key without a rule that it is dead costs no key.
func TestProbeVerdicts(t *testing.T) {
	for _, tt := range []struct {
		kind   Kind
		status int
		body   string
		want   Health
		rule   string
	}{
		{OpenAI, 200, `{"data":[]}`, Alive, ""},
		{OpenAI, 200, `<html>log in</html>`, Unreachable, ""},
		{OpenAI, 204, ``, Unreachable, ""},
		{OpenAI, 301, ``, Unreachable, ""},
		{OpenAI, 401, `{"error":{"code":"invalid_api_key"}}`, Dead, "openai/invalid-api-key"},
		{OpenAI, 401, `{"error":{"message":"your IP is not authorized"}}`, Unreachable, ""},
		{OpenAI, 401, ``, Unreachable, ""},
		{OpenAI, 403, `{}`, Unreachable, ""},
		{OpenAI, 429, `{"error":{"code":"rate_limit_exceeded"}}`, Unreachable, ""},
		{OpenAI, 429, `{"error":{"type":"insufficient_quota"}}`, Dead, "openai/insufficient-quota"},
		{OpenAI, 500, `{"error":{"code":"invalid_api_key"}}`, Unreachable, ""},
		{Anthropic, 401, `{"type":"error","error":{"type":"authentication_error"}}`, Dead, "anthropic/authentication"},
		{Anthropic, 529, `{}`, Unreachable, ""},
		{Gemini, 400, `{"error":{"details":[{"reason":"API_KEY_INVALID"}]}}`, Dead, "gemini/api-key-invalid"},
		{Gemini, 400, `{"error":{"status":"FAILED_PRECONDITION"}}`, Unreachable, ""},
		{OpenRouter, 200, `{"data":{"limit_remaining":0.5}}`, Alive, ""},
		{OpenRouter, 200, `{"data":{"limit_remaining":null}}`, Alive, ""},
		{OpenRouter, 200, `{"data":{"limit_remaining":0}}`, Dead, "openrouter/key-limit"},
		{OpenRouter, 401, `{}`, Dead, "openrouter/unauthorized"},
		{LiteLLM, 200, `{"info":{"spend":9.5,"max_budget":10}}`, Alive, ""},
		{LiteLLM, 200, `{"info":{"spend":9.5,"max_budget":null}}`, Alive, ""},
		{LiteLLM, 200, `{"info":{"spend":9.5,"max_budget":null,"litellm_budget_table":{"max_budget":9}}}`, Dead, "litellm/budget-exceeded-key"},
		{LiteLLM, 200, `{"info":{"spend":9.5,"max_budget":10,"litellm_budget_table":{"max_budget":9}}}`, Alive, ""},
		{LiteLLM, 200, `{"info":{"spend":10,"max_budget":10}}`, Dead, "litellm/budget-exceeded-key"},
		{LiteLLM, 401, `{"error":{"type":"token_not_found_in_db","code":"401"}}`, Dead, "litellm/token-not-found"},
		{LiteLLM, 401, `{"error":{"type":"auth_error"}}`, Unreachable, ""},
		{LiteLLM, 404, `{"detail":"Not Found"}`, Unreachable, ""},
		{LiteLLM, 400, `{"error":{"type":"no_db_connection"}}`, Unreachable, ""},
		{OpenHands, 403, `{}`, Dead, "openhands/refused"},
		{OpenHands, 400, `{"error":{"message":"ExceededBudget: User=u over budget. Spend=10.02, Budget=10.0","type":"budget_exceeded"}}`, Dead, "openhands/budget-exceeded-user"},
		{OpenHands, 502, ``, Unreachable, ""},
		{Factory, 200, `{}`, Unreachable, ""},
		{Generic, 200, `{}`, Unreachable, ""},
		{Kind("none"), 200, `{}`, Unreachable, ""},
	} {
		c := NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) { return answerOf(tt.status, tt.body), nil })})
		got := c.Probe(t.Context(), tt.kind, "https://host", fakeKey)
		if got.Health != tt.want || got.Rule != tt.rule || got.Health != Alive && got.Reason == "" {
			t.Errorf("%s, %d %s: want %s by %q with a reason, got %+v", tt.kind, tt.status, tt.body, tt.want, tt.rule, got)
		}
	}
}

// A probe is no judge of what an account may still spend.
func TestAskable(t *testing.T) {
	for _, tt := range []struct {
		kind   Kind
		status int
		body   string
		want   bool
	}{
		{OpenAI, 401, `{"error":{"code":"invalid_api_key"}}`, true},
		{OpenAI, 429, `{"error":{"type":"insufficient_quota"}}`, false},
		{Anthropic, 400, `{"error":{"message":"Your credit balance is too low"}}`, false},
		{OpenRouter, 402, `{"error":{"metadata":{"limit_source":"openrouter_key_limit"}}}`, true},
		{OpenRouter, 402, `{"error":{"metadata":{"limit_source":"openrouter_credits"}}}`, false},
		{LiteLLM, 400, `{"error":{"message":"Budget has been exceeded! Key=sk-fake Current cost: 1","type":"budget_exceeded"}}`, true},
		{OpenHands, 400, `{"error":{"message":"ExceededBudget: User=u over budget. Spend=10.02, Budget=10.0","type":"budget_exceeded"}}`, true},
		{Factory, 401, ``, false},
		{Generic, 401, ``, false},
	} {
		v := Classify(tt.kind, Response{Status: tt.status, Body: []byte(tt.body)}, time.Now())
		if got := Askable(tt.kind, v); got != tt.want || v.Action != Rotate {
			t.Errorf("%s, %d %s: %s says %s, askable %t, want %t", tt.kind, tt.status, tt.body, v.Rule, v.Action, got, tt.want)
		}
	}
}

func TestProbeWithoutWayThere(t *testing.T) {
	c := NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") })})
	for kind, reason := range map[Kind]string{Generic: "cannot be asked", LiteLLM: "base_url", OpenAI: "no route"} {
		if got := c.Probe(t.Context(), kind, "", fakeKey); got.Health != Unreachable || !strings.Contains(got.Reason, reason) {
			t.Errorf("%s: want unreachable because of %q, got %+v", kind, reason, got)
		}
	}
}

// A rule that a probe may name is one of the table.
func TestNothingLeftNamesRules(t *testing.T) {
	for kind, left := range nothingLeft {
		found := false
		for _, r := range rulesOf(kind).Rules {
			found = found || r.ID == left.id && r.Verdict == Rotate.String()
		}
		if !found {
			t.Errorf("%s: want a rule %s that rotates", kind, left.id)
		}
	}
}
