package ctl

import (
	"strings"
	"testing"
)

// nobody is a server that is not there: classify must not ask one.
const nobody = "127.0.0.1:1"

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		args       []string
		want       string
	}{
		{"cool-down", `{"error":{"code":"slow_down","message":"slower"}}`, []string{"openai", "--status", "429", "--header", "retry-after=20"}, `
Verdict:     cool-down
Until:       2026-01-25T12:00:20Z (retry-after)
Rule:        openai/rate-limit
Scope:       project
Key status:  rate-limited
Reason:      HTTP 429 slow_down: slower
Why:         Requests came too fast (rate_limit_exceeded, slow_down), and the key is good again after the pause.
`},
		{"ignored", "\x1b[2Jmykey=canary", []string{"generic", "--status", "500"}, `
Verdict:  ignore
Rule:     generic/unknown
Reason:   HTTP 500: mykey=[redacted]
Why:      No rule knows this answer, and what is not known costs no key.
`},
		{"as JSON", "", []string{"generic", "--status", "429", "-o", "json"}, `
{
  "upstream": "generic",
  "verdict": "VERDICT_COOL_DOWN",
  "until": "2026-01-25T12:01:00Z",
  "untilFrom": "default",
  "rule": "generic/rate-limit",
  "scope": "key",
  "keyStatus": "KEY_STATUS_RATE_LIMITED",
  "reason": "HTTP 429",
  "why": "Requests came too fast."
}
`},
	} {
		got := runAt(t, nobody, tt.body, append([]string{"classify"}, tt.args...)...)
		if want := (result{0, strings.TrimPrefix(tt.want, "\n"), ""}); got != want {
			t.Errorf("%s: want %+v, got %+v", tt.name, want, got)
		}
	}
}

func TestClassifyWrongUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string
	}{
		{"", "takes UPSTREAM and was given 0 arguments"},
		{"generic", `required flag(s) "status" not set`},
		{"azure --status 429", "it can be openai, anthropic, litellm"},
		{"generic --status 42", "--status is 42; it must be an HTTP status, 100 to 599"},
		{"generic --status x", `invalid argument "x"`},
		{"generic --status 429 --header Retry-After", "--header number 1 is not name=value, such as Retry-After=30"},
		{"generic --status 429 --header a=b --header canary:=c", "--header number 2 is not name=value"},
	} {
		got := runAt(t, nobody, "", append([]string{"classify"}, strings.Fields(tt.args)...)...)
		if got.Code != int(exitUsage) || !strings.Contains(got.Err, tt.want) || strings.Contains(got.Err, "canary") || got.Out != "" {
			t.Errorf("classify %s: want exit code %d and %q, got %+v", tt.args, exitUsage, tt.want, got)
		}
	}
	if got := runAt(t, nobody, strings.Repeat("x", maxClassified+1), "classify", "generic", "--status", "429"); got.Code != int(exitUsage) || !strings.Contains(got.Err, "larger than") {
		t.Errorf("a body that is too large: want exit code %d, got %+v", exitUsage, got)
	}
}
