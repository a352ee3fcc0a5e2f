package upstream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestScrubShapes(t *testing.T) {
	for text, want := range map[string]string{
		"Incorrect API key provided: sk-proj-abcd1234. Find yours":  "Incorrect API key provided: [redacted] Find yours",
		"Consumer 'api_key:AIzaSyA1234567890abcdefghijk' suspended": "Consumer 'api_key:[redacted]' suspended",
		"Key=alias (sk-...yC7w) Current cost: 0.1":                  "Key=[redacted] ([redacted]) Current cost: 0.1",
		"fk-abc123 and sk_live_abc123":                              "[redacted] and [redacted]",
		"Authorization: Bearer abc.def":                             "Authorization: Bearer [redacted]",
		"Authorization: Basic dTpw":                                 "Authorization: Basic [redacted]",
		"GET /v1?key=abc&alt=sse":                                   "GET /v1?key=[redacted]&alt=sse",
		`{"api_key": "hunter2", "n": 1}`:                            `{"api_key": "[redacted]", "n": 1}`,
		"\x1b[31msk-abc123\x1b[0m and \\u001b[1mAPIKEY=abc":         "[redacted] and APIKEY=[redacted]",
		"token deadbeefdeadbeef0123 bad":                            "token [redacted] bad",
		"id 123e4567-e89b-12d3-a456-426614174000 bad":               "id [redacted] bad",
		"q8Zk-1bX_a7Yc-2dWe3Fv-4gUh5Ti-6jSk7Rl":                     "[redacted]",
		"a risk-free task-force of the gpt-4o-mini model":           "a risk-free task-force of the gpt-4o-mini model",
		"see https://ai.google.dev/gemini-api/docs/rate-limits":     "see https://ai.google.dev/gemini-api/docs/rate-limits",
		"a\x00b\x1b[2Jc\r\nd\u2028e\u200bf":                         "a b c d ef",
		"bad \xff byte":                                             "bad \uFFFD byte",
		`one \"two\" \\\\\"three\\\\\" \u0034 \q`:                   `one "two" "three" 4 \q`,
	} {
		if got := Scrub(text, 200); got != want {
			t.Errorf("Scrub(%q): want %q, got %q", text, want, got)
		}
	}
}

func TestScrubBounds(t *testing.T) {
	for _, tt := range []struct {
		text  string
		limit int
		want  string
	}{
		{"four", 4, "four"}, {"fives", 4, "f..."}, {"ééé", 6, "ééé"}, {"éééé", 7, "éé..."}, {"éééé", 6, "é..."}, {"abcdef", 2, ".."}, {"abc", 0, ""},
	} {
		if got := Scrub(tt.text, tt.limit); got != tt.want {
			t.Errorf("Scrub(%q, %d): want %q, got %q", tt.text, tt.limit, tt.want, got)
		}
	}
}

// TestScrubSecrets hides a secret, which looks like nothing, in all the ways that bodies have.
func TestScrubSecrets(t *testing.T) {
	const canary = `Tr0ub/dor & <3 "café"`
	quoted := canary
	for n := range 4 {
		text, err := json.Marshal(map[string]string{"message": quoted})
		if err != nil {
			t.Fatal(err)
		}
		quoted = string(text)
		mustNotShow(t, fmt.Sprintf("quoted %d times", n+1), quoted, canary)
	}
	every := ""
	for _, r := range canary {
		every += fmt.Sprintf(`\u%04x`, r)
	}
	for name, text := range map[string]string{
		"plain": canary, "every letter escaped": every, "escaped twice": strings.ReplaceAll(every, `\`, `\\`), "escaped by its backslash": strings.ReplaceAll(every, `\`, `\u005c`),
		"query": url.QueryEscape(canary), "path": url.PathEscape(canary), "HTML": html.EscapeString(canary), "other case": strings.ToUpper(canary),
		"control characters": strings.Join(strings.Split(canary, ""), "\x01"), "broken over lines": strings.ReplaceAll(canary, "d", "\\\r\n d"),
		"zero width": strings.ReplaceAll(canary, "d", "\u200bd"), "at the bound": strings.Repeat("x ", 250) + canary, "twice": canary + canary,
		"cut in the middle": strings.Repeat(" ", maxScrub-10) + strings.ReplaceAll(canary, " ", ""),
	} {
		mustNotShow(t, name, "before "+text+" after", canary)
	}
}

func mustNotShow(t *testing.T, name, text, canary string) {
	t.Helper()
	got := Scrub(text, MaxReason, canary)
	for _, trace := range []string{"Tr0ub", "r0ub", "caf", "u0054"} {
		if strings.Contains(strings.ToLower(got), strings.ToLower(trace)) {
			t.Errorf("%s: want nothing of the secret, got %q", name, got)
		}
	}
}

func TestScrubLongSecret(t *testing.T) {
	secret := strings.Repeat("-----secret line\n", 200)
	if got := Scrub("before "+secret+"after", MaxReason, secret); strings.Contains(got, "secret") {
		t.Errorf("want nothing of the secret, got %q", got)
	}
}

// TestScrubOddSecrets: what cannot be left out leaves nothing behind.
func TestScrubOddSecrets(t *testing.T) {
	for _, secret := range []string{"e", " ", "[", "redacted", "[redacted]", "\xff", "\uFFFD", "...", "\\", "\n"} {
		if got := Scrub("here is a text. "+strings.Repeat("And another ", 100), 100, secret); strings.Contains(got, secret) {
			t.Errorf("secret %q: got %q", secret, got)
		}
	}
	if got := Scrub("text", 100, ""); got != "text" {
		t.Errorf("no secret: want the text, got %q", got)
	}
}

// TestReasonHasNoSecret looks where a long type would be cut in the middle of the secret.
func TestReasonHasNoSecret(t *testing.T) {
	canary := strings.Repeat("correct horse ", 8) + "battery"
	for _, field := range []string{"message", "type", "code", "other"} {
		body, err := json.Marshal(map[string]any{"error": map[string]string{field: "it is " + canary}})
		if err != nil {
			t.Fatal(err)
		}
		if got := Classify(Gemini, Response{Status: 400, Body: body}, testNow, canary); strings.Contains(got.Reason, "correct") || strings.Contains(got.Reason, "horse") {
			t.Errorf("in %s: want nothing of the secret, got %q", field, got.Reason)
		}
	}
}

func FuzzScrub(f *testing.F) {
	f.Add("Incorrect API key provided: canary-1234567", "canary-1234567", 64)
	f.Add(`\\u0063anary-1234567 \u005cu0063anary-1234567`, "canary-1234567", 512)
	f.Add("a[redacted]b", "ab", 5)
	f.Fuzz(func(t *testing.T, text, secret string, limit int) {
		limit = max(0, limit%2048)
		checkScrubbed(t, Scrub(text+secret+text, limit, secret), limit, secret)
	})
}

func checkScrubbed(t *testing.T, got string, limit int, secret string) {
	t.Helper()
	if len(got) > limit || !utf8.ValidString(got) {
		t.Errorf("want at most %d bytes of UTF-8, got %q", limit, got)
	}
	if strings.IndexFunc(got, unicode.IsControl) >= 0 {
		t.Errorf("want no control characters, got %q", got)
	}
	if secret != "" && strings.Contains(got, secret) {
		t.Errorf("want no secret %q, got %q", secret, got)
	}
	if decoded := unescape(got); len(secret) > 3 && strings.Contains(decoded, secret) && !bytes.Equal([]byte(decoded), []byte(got)) {
		t.Errorf("want no secret %q to be had by unescaping, got %q", secret, got)
	}
}
