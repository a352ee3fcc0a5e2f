package upstream

import (
	"net/http"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		name, value string
		want        time.Duration
		from        string
	}{
		{"Retry-After", "30", 30 * time.Second, "retry-after"},
		{"Retry-After", " 1.5 ", 1500 * time.Millisecond, "retry-after"},
		{"Retry-After", "0", MinCoolDown, "retry-after"},
		{"Retry-After", "999999999999", MaxRetryAfter, "retry-after"},
		{"Retry-After", "1e400", MaxRetryAfter, "retry-after"},
		{"Retry-After", "-5", DefaultCoolDown, "default"},
		{"Retry-After", "NaN", DefaultCoolDown, "default"},
		{"Retry-After", "soon", DefaultCoolDown, "default"},
		{"Retry-After", "", DefaultCoolDown, "default"},
		{"Retry-After", "Sun, 25 Jan 2026 12:10:00 GMT", 10 * time.Minute, "retry-after"},
		{"Retry-After", "Sun, 25 Jan 2026 11:00:00 GMT", MinCoolDown, "retry-after"},
		{"Retry-After", "Sun, 25 Jan 2099 11:00:00 GMT", MaxRetryAfter, "retry-after"},
		{"Retry-After-Ms", "2500", 2500 * time.Millisecond, "retry-after"},
		{"retry-after-ms", "2500", 2500 * time.Millisecond, "retry-after"},
	} {
		// Not with Set, which would make the name canonical.
		got := Classify(Generic, Response{Status: 429, Header: http.Header{tt.name: {tt.value}}}, testNow)
		if wait := got.Until.Sub(testNow); wait != tt.want || got.UntilFrom != tt.from {
			t.Errorf("%s: %q: want %s from %s, got %s from %s", tt.name, tt.value, tt.want, tt.from, wait, got.UntilFrom)
		}
	}
}

func TestMillisecondsBeforeSeconds(t *testing.T) {
	got := Classify(OpenAI, Response{Status: 429, Header: http.Header{"Retry-After-Ms": {"1200"}, "Retry-After": {"2"}}}, testNow)
	if wait := got.Until.Sub(testNow); wait != 1200*time.Millisecond {
		t.Errorf("want 1.2s, got %s", wait)
	}
}

func TestRegainAccess(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"You will regain access on 2026-01-26 at 06:30 UTC.": 18*time.Hour + 30*time.Minute,
		"You will regain access on 2026-01-26.":              12 * time.Hour,
		"You will regain access on 2099-01-01 at 00:00 UTC.": MaxCoolDown,
		"You will regain access on 2026-01-01 at 00:00 UTC.": DefaultCoolDown,
		"You will regain access on 2026-13-77 at 99:99 UTC.": DefaultCoolDown,
		"You will regain access soon.":                       DefaultCoolDown,
	} {
		body := anthropicBody("invalid_request_error", "You have reached your specified API usage limits. "+text)
		got := Classify(Anthropic, Response{Status: 400, Body: []byte(body)}, testNow)
		if wait := got.Until.Sub(testNow); got.Action != CoolDown || wait != want {
			t.Errorf("%s: want a cool-down of %s, got %s of %s", text, want, got.Action, wait)
		}
	}
}

// TestMidnightPacific has both nights on which California changes its clocks.
func TestMidnightPacific(t *testing.T) {
	for now, want := range map[string]string{
		"2026-01-25T12:00:00Z": "2026-01-26T08:00:00Z",
		"2026-07-01T06:59:59Z": "2026-07-01T07:00:00Z",
		"2026-07-01T07:00:00Z": "2026-07-02T07:00:00Z",
		"2026-03-08T09:00:00Z": "2026-03-09T07:00:00Z",
		"2026-11-01T08:00:00Z": "2026-11-02T08:00:00Z",
	} {
		at, err := time.Parse(time.RFC3339, now)
		if err != nil {
			t.Fatal(err)
		}
		got := Classify(Gemini, Response{Status: 429, Body: []byte(quotaBody("RequestsPerDay"))}, at)
		if text := got.Until.Format(time.RFC3339); text != want {
			t.Errorf("at %s: want %s, got %s", now, want, text)
		}
	}
}

// TestErrorRestsShorter: no rule has it yet, and the table may say it.
func TestErrorRestsShorter(t *testing.T) {
	sets, err := parseRules([]byte(`[{kind: generic, rules: [{id: generic/x, verdict: cool_down, status: error, scope: key}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	got := sets[0].Rules[0].verdict(answer{}, testNow)
	if got.Status != Error || got.Until.Sub(testNow) != ErrorCoolDown {
		t.Errorf("want error for %s, got %s for %s", ErrorCoolDown, got.Status, got.Until.Sub(testNow))
	}
}
