package app

import "testing"

func TestScrub(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "",
		"openhands":                           "openhands",
		"budget_exceeded_10.02107649999999":   "budget_exceeded_10.02107649999999",
		"proactive_threshold_9.96":            "proactive_threshold_9.96",
		"401 invalid_api_key at gateway-17":   "401 invalid_api_key at gateway-17",
		"proactive_threshold_9.960000000001":  "proactive_threshold_9.960000000001",
		"budget_exceeded":                     "budget_exceeded",
		"sk_abcdefgh":                         "[redacted]",
		"two\nlines: kept":                    "two\nlines: kept",
		"key sk-fake-abcdefgh was refused":    "key [redacted] was refused",
		"SK-FAKE-ABCDEFGH":                    "[redacted]",
		"Authorization: Bearer abcdefghijkl":  "Authorization: Bearer [redacted]",
		"sent bearer abcdefghijkl":            "sent bearer [redacted]",
		"api_key=abcdefghijkl":                "api_key=[redacted]",
		"for AIzaSyFAKE0123456789":            "for [redacted]",
		"0123456789abcdef0123456789abcdef":    "[redacted]",
		"AbCdEfGhIjKlMnOpQrStUvWxYz012345678": "[redacted]",
	} {
		if got := scrub(text); got != want {
			t.Errorf("scrub(%q) is %q, want %q", text, got, want)
		}
	}
}

func BenchmarkScrubOfAnOrdinaryReason(b *testing.B) {
	for b.Loop() {
		scrub("the provider says 401 invalid_api_key")
	}
}
