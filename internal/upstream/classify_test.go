package upstream

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testNow = time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)

func openAIBody(kind, code string) string {
	return fmt.Sprintf(`{"error":{"message":"You exceeded it.","type":%q,"param":null,"code":%q}}`, kind, code)
}

func anthropicBody(kind, message string) string {
	return fmt.Sprintf(`{"type":"error","error":{"type":%q,"message":%q},"request_id":"req_1"}`, kind, message)
}

func litellmBody(message, kind, code string) string {
	return fmt.Sprintf(`{"error":{"message":%q,"type":%q,"param":null,"code":%q}}`, message, kind, code)
}

func openRouterBody(code int, source string) string {
	return fmt.Sprintf(`{"error":{"code":%d,"message":"Key limit exceeded","metadata":{"limit_source":%q}}}`, code, source)
}

func geminiBody(code int, status, reason string) string {
	return fmt.Sprintf(`{"error":{"code":%d,"message":"m","status":%q,"details":[{"@type":"type.googleapis.com/google.rpc.Help"},{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":%q}]}}`, code, status, reason)
}

func quotaBody(id string) string {
	return fmt.Sprintf(`{"error":{"code":429,"message":"You exceeded your current quota","status":"RESOURCE_EXHAUSTED","details":[
		{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaMetric":"requests","quotaId":%q}]},
		{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"37.5s"}]}}`, id)
}

// liveLiteLLM is a body as it was seen.
const liveLiteLLM = `{"error":{"message":"Budget has been exceeded! Key=... Current cost: 0.0, Estimated request cost: 3.64, Max budget: 2.5","type":"budget_exceeded","param":null,"code":"429"}}`

const (
	keyBudget  = "Budget has been exceeded! Key=pool-7 (sk-...yC7w) Current cost: 10.1, Max budget: 10.0"
	userBudget = "ExceededBudget: User=u-1 over budget. Spend=10.02107649999999, Budget=10.0"
)

type row struct {
	kind   Kind
	status int
	body   string
	rule   string // without the kind
	action Action
	scope  Scope
	cool   time.Duration
	header http.Header
}

// rows has every entry of what is known of upstreams: what rotates, what cools down and what must never rotate.
var rows = []row{
	// OpenAI
	{OpenAI, 401, openAIBody("invalid_request_error", "invalid_api_key"), "invalid-api-key", Rotate, ScopeKey, 0, nil},
	{OpenAI, 429, openAIBody("insufficient_quota", "insufficient_quota"), "insufficient-quota", Rotate, ScopeOrganisation, 0, nil},
	{OpenAI, 429, `{"error":{"type":"insufficient_quota","code":null}}`, "insufficient-quota", Rotate, ScopeOrganisation, 0, nil},
	{OpenAI, 429, openAIBody("insufficient_quota", "credit_balance_exhausted"), "organisation-limit", Rotate, ScopeOrganisation, 0, nil},
	{OpenAI, 429, `{"error":{"code":"credit_balance_exhausted"}}`, "organisation-limit", Rotate, ScopeOrganisation, 0, nil},
	{OpenAI, 429, openAIBody("insufficient_quota", "organization_spend_limit_exceeded"), "organisation-limit", Rotate, ScopeOrganisation, 0, nil},
	{OpenAI, 429, openAIBody("insufficient_quota", "organization_usage_limit_exceeded"), "organisation-limit", Rotate, ScopeOrganisation, 0, nil},
	{OpenAI, 429, openAIBody("insufficient_quota", "project_spend_limit_exceeded"), "project-spend-limit", Rotate, ScopeProject, 0, nil},
	{OpenAI, 429, openAIBody("requests", "rate_limit_exceeded"), "rate-limit", CoolDown, ScopeProject, 20 * time.Second, http.Header{"Retry-After": {"20"}}},
	{OpenAI, 429, openAIBody("requests", "slow_down"), "rate-limit", CoolDown, ScopeProject, time.Minute, nil},
	{OpenAI, 401, openAIBody("invalid_request_error", "ip_not_authorized"), "ip-not-authorized-code", Ignore, ScopeRequest, 0, nil},
	{OpenAI, 401, `{"error":{"message":"IP not authorized","code":"invalid_api_key"}}`, "ip-not-authorized", Ignore, ScopeRequest, 0, nil},
	{OpenAI, 401, `{"error":{"message":"Your request IP does not match, it is not authorized."}}`, "ip-not-authorized", Ignore, ScopeRequest, 0, nil},
	{OpenAI, 401, `{"error":{"message":"something new"}}`, "unknown", Ignore, "", 0, nil},
	{OpenAI, 403, `{"error":{"message":"Country, region, or territory not supported","code":"unsupported_country_region_territory"}}`, "region", Ignore, ScopeRequest, 0, nil},
	{OpenAI, 403, openAIBody("invalid_request_error", "model_not_found"), "unknown", Ignore, "", 0, nil},
	{OpenAI, 400, openAIBody("invalid_request_error", "context_length_exceeded"), "unknown", Ignore, "", 0, nil},
	{OpenAI, 500, openAIBody("server_error", "insufficient_quota"), "unknown", Ignore, "", 0, nil},
	{OpenAI, 503, openAIBody("service_unavailable_error", "server_is_overloaded"), "unknown", Ignore, "", 0, nil},

	// Anthropic
	{Anthropic, 401, anthropicBody("authentication_error", "invalid x-api-key"), "authentication", Rotate, ScopeKey, 0, nil},
	{Anthropic, 402, anthropicBody("billing_error", "There is a problem with your billing."), "billing", Rotate, ScopeOrganisation, 0, nil},
	{Anthropic, 400, anthropicBody("invalid_request_error", "Your credit balance is too low to access the Anthropic API."), "credit-balance", Rotate, ScopeOrganisation, 0, nil},
	{Anthropic, 429, `{"type":"error","error":{"type":"rate_limit_error","message":"You have reached your API usage limits. You will regain access on 2026-02-01 at 00:00 UTC.","details":{"error_code":"enforced_spend_limit_reached"}}}`,
		"enforced-spend-limit", Rotate, ScopeOrganisation, 0, nil},
	{Anthropic, 429, anthropicBody("rate_limit_error", "Number of request tokens has exceeded your per-minute rate limit"), "rate-limit", CoolDown, ScopeOrganisation, 42 * time.Second, http.Header{"Retry-After": {"42"}}},
	{Anthropic, 429, anthropicBody("rate_limit_error", "slower"), "rate-limit", CoolDown, ScopeOrganisation, time.Minute, nil},
	{Anthropic, 400, anthropicBody("invalid_request_error", "You have reached your specified API usage limits. You will regain access on 2026-02-01 at 00:00 UTC."),
		"usage-limit-organisation", CoolDown, ScopeOrganisation, 6*24*time.Hour + 12*time.Hour, nil},
	{Anthropic, 400, anthropicBody("invalid_request_error", "You have reached your specified workspace API usage limits. You will regain access on 2026-02-01."),
		"usage-limit-workspace", CoolDown, ScopeWorkspace, 6*24*time.Hour + 12*time.Hour, nil},
	{Anthropic, 529, anthropicBody("overloaded_error", "Overloaded"), "overloaded", Ignore, ScopeUpstream, 0, nil},
	{Anthropic, 403, anthropicBody("permission_error", "Your API key does not have permission to use this model"), "permission", Ignore, ScopeRequest, 0, nil},
	{Anthropic, 400, anthropicBody("invalid_request_error", "max_tokens: required"), "unknown", Ignore, "", 0, nil},
	{Anthropic, 500, anthropicBody("api_error", "Internal server error"), "unknown", Ignore, "", 0, nil},

	// LiteLLM
	{LiteLLM, 429, liveLiteLLM, "budget-exceeded-key", Rotate, ScopeKey, 0, nil},
	{LiteLLM, 400, litellmBody(keyBudget, "budget_exceeded", "400"), "budget-exceeded-key", Rotate, ScopeKey, 0, nil},
	{LiteLLM, 401, litellmBody(keyBudget, "budget_exceeded", "401"), "budget-exceeded-key", Rotate, ScopeKey, 0, nil},
	{LiteLLM, 422, litellmBody(keyBudget, "budget_exceeded", "422"), "budget-exceeded-key", Rotate, ScopeKey, 0, nil},
	{LiteLLM, 401, litellmBody("Authentication Error, Invalid proxy server token passed.", "token_not_found_in_db", "401"), "token-not-found", Rotate, ScopeKey, 0, nil},
	{LiteLLM, 400, litellmBody("Authentication Error - Expired Key.", "expired_key", "400"), "expired-key", Rotate, ScopeKey, 0, nil},
	{LiteLLM, 429, litellmBody(userBudget, "budget_exceeded", "429"), "budget-exceeded-other-429", CoolDown, ScopeUser, time.Minute, nil},
	{LiteLLM, 400, litellmBody(userBudget, "budget_exceeded", "400"), "budget-exceeded-other", Ignore, ScopeUser, 0, nil},
	{LiteLLM, 429, litellmBody("Budget has been exceeded! Team=t Key=k Current cost: 2, Max budget: 1", "budget_exceeded", "429"), "budget-exceeded-other-429", CoolDown, ScopeTeam, time.Minute, nil},
	{LiteLLM, 400, litellmBody("Budget has been exceeded! Tag=engineering Current cost: 2, Max budget: 1", "budget_exceeded", "400"), "budget-exceeded-other", Ignore, ScopeTag, 0, nil},
	{LiteLLM, 400, litellmBody("Budget has been exceeded! User=u in Team=t Current cost: 2", "budget_exceeded", "400"), "budget-exceeded-other", Ignore, ScopeUser, 0, nil},
	{LiteLLM, 400, litellmBody("ExceededBudget: End User=e over budget. Spend=2, Budget=1", "budget_exceeded", "400"), "budget-exceeded-other", Ignore, ScopeEndUser, 0, nil},
	{LiteLLM, 400, litellmBody("Budget has been exceeded! Organization=o Current cost: 2", "budget_exceeded", "400"), "budget-exceeded-other", Ignore, ScopeOrganisation, 0, nil},
	{LiteLLM, 400, litellmBody("Budget has been exceeded! Current cost: 2, Max budget: 1", "budget_exceeded", "400"), "budget-exceeded-other", Ignore, ScopeUnknown, 0, nil},
	{LiteLLM, 429, litellmBody("Max parallel request limit reached.", "rate_limit_error", "429"), "rate-limit", CoolDown, ScopeKey, 7 * time.Second, http.Header{"retry-after": {"7"}}},
	{LiteLLM, 429, litellmBody("litellm.RateLimitError: OpenAIException - quota", "insufficient_quota", "429"), "rate-limit", CoolDown, ScopeKey, time.Minute, nil},
	{LiteLLM, 401, litellmBody("key not allowed to access model.", "key_model_access_denied", "401"), "model-access-denied", Ignore, ScopeRequest, 0, nil},
	{LiteLLM, 503, litellmBody("No connected db.", "no_db_connection", "503"), "no-db-connection", Ignore, ScopeUpstream, 0, nil},
	{LiteLLM, 401, litellmBody("No connected db.", "no_db_connection", "401"), "no-db-connection", Ignore, ScopeUpstream, 0, nil},
	{LiteLLM, 500, litellmBody(keyBudget, "budget_exceeded", "500"), "server-error", Ignore, ScopeUpstream, 0, nil},
	{LiteLLM, 401, litellmBody("litellm.AuthenticationError: OpenAIException - Incorrect API key provided", "", "401"), "unknown", Ignore, "", 0, nil},
	{LiteLLM, 402, "", "unknown", Ignore, "", 0, nil},
	{LiteLLM, 403, "", "unknown", Ignore, "", 0, nil},

	// OpenHands
	{OpenHands, 429, liveLiteLLM, "budget-exceeded-key", Rotate, ScopeKey, 0, nil},
	{OpenHands, 400, litellmBody(userBudget, "budget_exceeded", "400"), "budget-exceeded-user", Rotate, ScopeUser, 0, nil},
	{OpenHands, 429, litellmBody(userBudget, "budget_exceeded", "429"), "budget-exceeded-user", Rotate, ScopeUser, 0, nil},
	{OpenHands, 400, litellmBody("litellm.BadRequestError: Litellm_proxyException - "+userBudget, "", "400"), "budget-exceeded-user", Rotate, ScopeUser, 0, nil},
	{OpenHands, 400, `{"detail":"this key is over budget"}`, "over-budget", Rotate, ScopeUser, 0, nil},
	{OpenHands, 429, "over budget", "over-budget", Rotate, ScopeUser, 0, nil},
	{OpenHands, 401, litellmBody("Invalid proxy server token passed.", "token_not_found_in_db", "401"), "token-not-found", Rotate, ScopeKey, 0, nil},
	{OpenHands, 400, litellmBody("Expired Key", "expired_key", "400"), "expired-key", Rotate, ScopeKey, 0, nil},
	{OpenHands, 401, "", "refused", Rotate, ScopeKey, 0, nil},
	{OpenHands, 402, "<html>Payment Required</html>", "refused", Rotate, ScopeKey, 0, nil},
	{OpenHands, 403, "{}", "refused", Rotate, ScopeKey, 0, nil},
	{OpenHands, 429, litellmBody("Crossed TPM limit", "rate_limit_error", "429"), "rate-limit", CoolDown, ScopeKey, time.Minute, nil},
	{OpenHands, 429, litellmBody("Budget has been exceeded! Team=t Current cost: 2", "budget_exceeded", "429"), "budget-exceeded-other-429", CoolDown, ScopeTeam, time.Minute, nil},
	{OpenHands, 401, litellmBody("Budget has been exceeded! Team=t Current cost: 2", "budget_exceeded", "401"), "budget-exceeded-other", Ignore, ScopeTeam, 0, nil},
	{OpenHands, 400, `{"detail":"Team=3A over budget. Spend=51, Budget=50"}`, "over-budget-other", Ignore, ScopeTeam, 0, nil},
	{OpenHands, 401, litellmBody("key not allowed to access model.", "key_model_access_denied", "401"), "model-access-denied", Ignore, ScopeRequest, 0, nil},
	{OpenHands, 403, `{"error":{"message":"team not allowed to access model. This team can only access mod`, "model-access-denied-text", Ignore, ScopeRequest, 0, nil},
	{OpenHands, 401, litellmBody("No connected db.", "no_db_connection", "401"), "no-db-connection", Ignore, ScopeUpstream, 0, nil},
	{OpenHands, 502, "over budget", "server-error", Ignore, ScopeUpstream, 0, nil},
	{OpenHands, 401, litellmBody("litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key provided", "", "401"), "provider-refused", Ignore, ScopeUpstream, 0, nil},
	{OpenHands, 400, litellmBody("litellm.BadRequestError", "invalid_request_error", "400"), "unknown", Ignore, "", 0, nil},

	// OpenRouter
	{OpenRouter, 401, `{"error":{"code":401,"message":"User not found."}}`, "unauthorized", Rotate, ScopeKey, 0, nil},
	{OpenRouter, 402, openRouterBody(402, "openrouter_key_limit"), "key-limit", Rotate, ScopeKey, 0, nil},
	{OpenRouter, 403, openRouterBody(403, "openrouter_key_limit"), "key-limit", Rotate, ScopeKey, 0, nil},
	{OpenRouter, 402, openRouterBody(402, "openrouter_credits"), "credits", Rotate, ScopeAccount, 0, nil},
	{OpenRouter, 403, openRouterBody(403, "openrouter_credits"), "credits", Rotate, ScopeAccount, 0, nil},
	{OpenRouter, 200, openRouterBody(402, "openrouter_credits"), "credits", Rotate, ScopeAccount, 0, nil},
	{OpenRouter, 429, `{"error":{"code":429,"message":"Provider returned error","metadata":{"retry_after_seconds":11,"retry_after_seconds_raw":10.918}}}`, "rate-limit", CoolDown, ScopeAccount, 11 * time.Second, nil},
	{OpenRouter, 429, "{}", "rate-limit", CoolDown, ScopeAccount, time.Minute, nil},
	{OpenRouter, 402, openRouterBody(402, "openrouter_in_flight_budget"), "payment-other", Ignore, ScopeRequest, 0, nil},
	{OpenRouter, 402, `{"error":{"code":402,"message":"This request requires more credits, or fewer max_tokens."}}`, "payment-other", Ignore, ScopeRequest, 0, nil},
	{OpenRouter, 403, `{"error":{"code":403,"message":"flagged","metadata":{"reasons":["violence"],"flagged_input":"..."}}}`, "forbidden", Ignore, ScopeRequest, 0, nil},
	{OpenRouter, 502, openRouterBody(502, "openrouter_credits"), "unknown", Ignore, "", 0, nil},

	// Gemini
	{Gemini, 400, geminiBody(400, "INVALID_ARGUMENT", "API_KEY_INVALID"), "api-key-invalid", Rotate, ScopeKey, 0, nil},
	{Gemini, 400, "[" + geminiBody(400, "INVALID_ARGUMENT", "API_KEY_INVALID") + "]", "api-key-invalid", Rotate, ScopeKey, 0, nil},
	{Gemini, 403, geminiBody(403, "PERMISSION_DENIED", "CONSUMER_SUSPENDED"), "consumer-suspended", Rotate, ScopeProject, 0, nil},
	{Gemini, 402, geminiBody(402, "RESOURCE_EXHAUSTED", ""), "billing", Rotate, ScopeAccount, 0, nil},
	{Gemini, 429, quotaBody("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), "daily-quota", CoolDown, ScopeProject, 20 * time.Hour, nil},
	{Gemini, 429, "[" + quotaBody("GenerateRequestsPerDayPerProjectPerModel-FreeTier") + "]", "daily-quota", CoolDown, ScopeProject, 20 * time.Hour, nil},
	{Gemini, 429, quotaBody("GenerateRequestsPerMinutePerProjectPerModel"), "rate-limit", CoolDown, ScopeProject, 37500 * time.Millisecond, nil},
	{Gemini, 429, "", "rate-limit", CoolDown, ScopeProject, time.Minute, nil},
	{Gemini, 400, geminiBody(400, "FAILED_PRECONDITION", ""), "failed-precondition", Ignore, ScopeRequest, 0, nil},
	{Gemini, 403, geminiBody(403, "PERMISSION_DENIED", "SERVICE_DISABLED"), "service-disabled", Ignore, ScopeProject, 0, nil},
	{Gemini, 400, geminiBody(400, "INVALID_ARGUMENT", "FIELD"), "unknown", Ignore, "", 0, nil},
	{Gemini, 503, geminiBody(503, "UNAVAILABLE", ""), "unknown", Ignore, "", 0, nil},

	// Factory
	{Factory, 401, "", "refused", Rotate, ScopeKey, 0, nil},
	{Factory, 402, "", "refused", Rotate, ScopeKey, 0, nil},
	{Factory, 403, "{}", "refused", Rotate, ScopeKey, 0, nil},
	{Factory, 400, `{"message":"Ready for more? Reload your tokens"}`, "tokens-spent", Rotate, ScopeAccount, 0, nil},
	{Factory, 429, "Ready to get started? Subscribe", "tokens-spent", Rotate, ScopeAccount, 0, nil},
	{Factory, 400, `{"detail":{"url":"https:\/\/app.factory.ai\/settings\/billing"}}`, "tokens-spent", Rotate, ScopeAccount, 0, nil},
	{Factory, 400, `{"error":{"code":"invalid_api_key"}}`, "key-revoked", Rotate, ScopeKey, 0, nil},
	{Factory, 400, "this key was revoked", "key-revoked", Rotate, ScopeKey, 0, nil},
	{Factory, 429, "", "rate-limit", CoolDown, ScopeKey, time.Minute, nil},
	{Factory, 400, `{"error":"bad request"}`, "unknown", Ignore, "", 0, nil},
	{Factory, 500, "revoked", "unknown", Ignore, "", 0, nil},

	// Any other
	{Generic, 401, "", "refused", Rotate, ScopeKey, 0, nil},
	{Generic, 402, "<!doctype html>", "refused", Rotate, ScopeKey, 0, nil},
	{Generic, 403, `{"error"`, "refused", Rotate, ScopeKey, 0, nil},
	{Generic, 429, "", "rate-limit", CoolDown, ScopeKey, 90 * time.Second, http.Header{"Retry-After": {"Sun, 25 Jan 2026 12:01:30 GMT"}}},
	{Generic, 400, "over budget", "unknown", Ignore, "", 0, nil},
	{Generic, 500, "", "unknown", Ignore, "", 0, nil},
	{Generic, 0, "", "unknown", Ignore, "", 0, nil},
}

func TestClassify(t *testing.T) {
	for _, r := range rows {
		t.Run(fmt.Sprintf("%s/%d/%s", r.kind, r.status, r.rule), func(t *testing.T) {
			v := Classify(r.kind, Response{Status: r.status, Header: r.header, Body: []byte(r.body)}, testNow)
			got := Verdict{Action: v.Action, Until: v.Until, Status: v.Status, Rule: v.Rule, Scope: v.Scope}
			want := Verdict{Action: r.action, Rule: string(r.kind) + "/" + r.rule, Scope: r.scope}
			switch r.action {
			case Rotate:
				want.Status = Exhausted
			case CoolDown:
				want.Status, want.Until = RateLimited, testNow.Add(r.cool)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%d %s: -want +got\n%s", r.status, r.body, diff)
			}
		})
	}
}

// TestEveryRuleDecidesSomething also shows that none is hidden behind another.
func TestEveryRuleDecidesSomething(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rows {
		seen[string(r.kind)+"/"+r.rule] = true
	}
	for _, set := range loaded() {
		for _, rule := range set.Rules {
			if !seen[rule.ID] {
				t.Errorf("no row is decided by %s", rule.ID)
			}
		}
	}
}

func TestUnknownKindIsIgnored(t *testing.T) {
	got := Classify("azure", Response{Status: 401}, testNow)
	if got.Action != Ignore || got.Rule != "unknown" {
		t.Errorf("want it ignored by no rule, got %+v", got)
	}
}

func TestLiveBody(t *testing.T) {
	got := Classify(LiteLLM, Response{Status: 429, Body: []byte(liveLiteLLM)}, testNow)
	want := "HTTP 429 budget_exceeded: Budget has been exceeded! Key=[redacted] Current cost: 0.0, Estimated request cost: 3.64, Max budget: 2.5"
	if got.Reason != want || !got.Confirm {
		t.Errorf("want reason %q, to be confirmed, got %q, %t", want, got.Reason, got.Confirm)
	}
}

// A code that names a key does not cost the message its first word, unless that may be the key.
func TestReasonAfterACodeThatNamesAKey(t *testing.T) {
	for message, want := range map[string]string{
		"Incorrect API key provided: sk-fake-abcdefgh. You can find yours": "HTTP 401 invalid_api_key - Incorrect API key provided: [redacted] You can find yours",
		"hunter2 is wrong":                "HTTP 401 invalid_api_key: [redacted] is wrong",
		"correcthorsebattery is wrong":    "HTTP 401 invalid_api_key: [redacted] is wrong",
		"hunter":                          "HTTP 401 invalid_api_key: [redacted]",
		"hunter, wrong":                   "HTTP 401 invalid_api_key: [redacted], wrong",
		"canary is the key that is meant": "HTTP 401 invalid_api_key - [redacted] is the key that is meant",
	} {
		body := fmt.Sprintf(`{"error":{"code":"invalid_api_key","message":%q}}`, message)
		if got := Classify(OpenAI, Response{Status: 401, Body: []byte(body)}, testNow, "canary").Reason; got != want {
			t.Errorf("%s: got %q, want %q", message, got, want)
		}
	}
}

// What counts for an incident is what may be the upstream's fault.
func TestOwnBudget(t *testing.T) {
	wrapped := `{"detail":"ExceededBudget: User=u over budget. Spend=%v, Budget=%v"}`
	for _, c := range []struct {
		kind   Kind
		status int
		body   string
		want   bool
	}{
		{LiteLLM, 400, litellmBody(keyBudget, "budget_exceeded", "400"), true},
		{LiteLLM, 429, liveLiteLLM, false}, // nothing is spent: it was one expensive request
		{LiteLLM, 400, litellmBody("Budget has been exceeded! Key=k Current cost: 9.95, Max budget: 10.0", "budget_exceeded", "400"), true},
		{LiteLLM, 400, litellmBody("Budget has been exceeded! Key=k Current cost: 9.94, Max budget: 10.0", "budget_exceeded", "400"), false},
		{LiteLLM, 400, litellmBody("Budget has been exceeded! Key=k Current cost: 0, Max budget: 0", "budget_exceeded", "400"), false},
		{LiteLLM, 400, litellmBody("Budget has been exceeded! Key=k", "budget_exceeded", "400"), false},
		{LiteLLM, 400, litellmBody("Budget has been exceeded! Team=t Current cost: 10.1, Max budget: 10.0", "budget_exceeded", "400"), false},
		{LiteLLM, 401, litellmBody("Invalid proxy server token passed.", "token_not_found_in_db", "401"), false},
		{OpenHands, 400, litellmBody(keyBudget, "budget_exceeded", "400"), true},
		{OpenHands, 400, litellmBody(userBudget, "budget_exceeded", "400"), true},
		{OpenHands, 400, fmt.Sprintf(wrapped, 10, 10), true},
		{OpenHands, 400, fmt.Sprintf(wrapped, 5, 10), false},
		{OpenHands, 400, `{"detail":"over budget. Spend=11, Budget=10"}`, true},
		{OpenHands, 429, "over budget", false},
		{OpenHands, 401, "", false},
		{OpenRouter, 402, openRouterBody(402, "openrouter_key_limit"), true},
		{OpenRouter, 402, openRouterBody(402, "openrouter_credits"), false},
		{OpenAI, 429, `{"error":{"type":"insufficient_quota","code":"insufficient_quota"}}`, false},
	} {
		if got := Classify(c.kind, Response{Status: c.status, Body: []byte(c.body)}, testNow); got.Own != c.want {
			t.Errorf("%s %d %s: got own %t by %s, want %t", c.kind, c.status, c.body, got.Own, got.Rule, c.want)
		}
	}
}

func TestForeignBodies(t *testing.T) {
	deep := strings.Repeat(`{"error":`, 20_000)
	for _, body := range []string{
		"null", "[]", "[[[]]]", "[null]", "{}", `{"error":null}`, `{"error":[]}`, `{"error":7}`, `{"error":true}`, `"text"`, "7", "{", "[", `{"`, `{"error":{"type"`,
		`{"error":{"type":{"a":1},"code":[1],"message":{"x":"y"}}}`, `{"error":{"code":1e999,"type":7}}`, "\xff\xfe{", "\ufeff{}", `{"error":{"message":"\ud800"}}`,
		deep, strings.Repeat("[", 65_000), strings.Repeat("a", MaxBody*2), "{}{}", `{"error":{}} trailing`, `{"a":1,}`, `{1:2}`, `{"error":{"details":[[{"reason":{}}]]}}`,
	} {
		for _, kind := range Kinds() {
			got := Classify(kind, Response{Status: 418, Body: []byte(body)}, testNow)
			if got.Action != Ignore {
				t.Errorf("%s: %.40q: want it ignored, got %+v", kind, body, got)
			}
		}
	}
}

// Only a success shows that a key works.
func TestSucceeded(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		want   bool
	}{
		{200, ``, true},
		{204, ``, true},
		{200, `{"choices":[],"error":null}`, true},
		{200, `{"type":"message"}`, true},
		{200, `data: {"choices":[]}`, true},
		{200, `{"error":{"code":429}}`, false},
		{200, `{"error":{"code":"insufficient_quota"}}`, false},
		{200, `[{"error":{"status":"UNAVAILABLE"}}]`, false},
		{200, `{"type":"error","error":{"type":"overloaded_error"}}`, false},
		{200, `{"type":"error"}`, false},
		{200, `{"error":"no"}`, false},
		{100, ``, false},
		{304, ``, false},
		{401, ``, false},
	} {
		if got := (Response{Status: tt.status, Body: []byte(tt.body)}).Succeeded(); got != tt.want {
			t.Errorf("%d %s: succeeded is %t, want %t", tt.status, tt.body, got, tt.want)
		}
	}
}

func TestTypesAndCodesInOtherPlaces(t *testing.T) {
	for name, tt := range map[string]struct {
		kind Kind
		code int
		body string
		rule string
	}{
		"code as a number":   {LiteLLM, 400, `{"error":{"type":"expired_key","code":400}}`, "litellm/expired-key"},
		"no error object":    {OpenAI, 401, `{"code":"invalid_api_key"}`, "openai/invalid-api-key"},
		"in an array":        {OpenAI, 401, `[{"error":{"code":"invalid_api_key"}}]`, "openai/invalid-api-key"},
		"other case":         {OpenAI, 401, `{"error":{"code":"INVALID_API_KEY"}}`, "openai/invalid-api-key"},
		"cut after the type": {LiteLLM, 401, `{"error":{"type":"token_not_found_in_db","message":"Auth`, "litellm/token-not-found"},
		"byte order mark":    {OpenAI, 401, "\ufeff" + `{"error":{"code":"invalid_api_key"}}`, "openai/invalid-api-key"},
		"status in a stream": {LiteLLM, 200, litellmBody(keyBudget, "budget_exceeded", "429"), "litellm/budget-exceeded-key"},
	} {
		if got := Classify(tt.kind, Response{Status: tt.code, Body: []byte(tt.body)}, testNow); got.Rule != tt.rule {
			t.Errorf("%s: want rule %s, got %s", name, tt.rule, got.Rule)
		}
	}
}
