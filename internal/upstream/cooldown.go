package upstream

import (
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	// The image is built from scratch and has no time zones of its own; Gemini's quota days are California's.
	_ "time/tzdata"
)

// A source finds in an answer until when the upstream wants the key to rest. It returns the zero time if the answer does
// not say, or says what makes no sense.
type source func(a answer, now time.Time) time.Time

// sources are those that a rule's `until` may name, in the order in which it names them.
var sources = map[string]source{
	"retry-after":      retryAfter,
	"body-retry-after": bodyRetryAfter,
	"retry-delay":      retryDelay,
	"regain-access":    regainAccess,
	"midnight-pacific": midnightPacific,
}

// until asks the rule's sources, and takes the default if none knows.
func (r *rule) until(a answer, now time.Time) (time.Time, string) {
	for _, name := range r.Until {
		if t := sources[name](a, now); !t.IsZero() {
			return clamp(t, now, MaxCoolDown), name
		}
	}
	if r.coolStatus() == Error {
		return now.Add(ErrorCoolDown), "default"
	}
	return now.Add(DefaultCoolDown), "default"
}

func clamp(t, now time.Time, most time.Duration) time.Time {
	switch {
	case t.Before(now.Add(MinCoolDown)):
		return now.Add(MinCoolDown)
	case t.After(now.Add(most)):
		return now.Add(most)
	default:
		return t
	}
}

// retryAfter reads the headers: retry-after-ms, which OpenAI has for what is shorter than a second, and Retry-After in
// seconds or as a date (RFC 9110, 10.2.3).
func retryAfter(a answer, now time.Time) time.Time {
	if t := after(now, a.get("Retry-After-Ms"), time.Millisecond); !t.IsZero() {
		return t
	}
	text := a.get("Retry-After")
	if t := after(now, text, time.Second); !t.IsZero() {
		return t
	}
	if t, err := http.ParseTime(text); err == nil {
		return clamp(t, now, MaxRetryAfter)
	}
	return time.Time{}
}

// after reads a number of units, which may have a fraction.
func after(now time.Time, text string, unit time.Duration) time.Time {
	n, err := strconv.ParseFloat(text, 64)
	if math.IsNaN(n) || n < 0 || err != nil && !math.IsInf(n, 1) {
		return time.Time{}
	}
	if n >= float64(MaxRetryAfter/unit) {
		return now.Add(MaxRetryAfter)
	}
	return now.Add(time.Duration(n * float64(unit)))
}

// bodyRetryAfter reads OpenRouter's retry_after_seconds.
func bodyRetryAfter(a answer, now time.Time) time.Time {
	for _, path := range []string{"error.metadata.retry_after_seconds", "error.retry_after_seconds", "metadata.retry_after_seconds", "retry_after_seconds"} {
		for _, text := range lookup(a.tree, path) {
			if t := after(now, text, time.Second); !t.IsZero() {
				return t
			}
		}
	}
	return time.Time{}
}

// retryDelay reads google.rpc.RetryInfo, such as {"retryDelay": "37s"}.
func retryDelay(a answer, now time.Time) time.Time {
	for _, text := range lookup(a.tree, "error.details.retryDelay") {
		if seconds, ok := strings.CutSuffix(text, "s"); ok {
			if t := after(now, seconds, time.Second); !t.IsZero() {
				return t
			}
		}
	}
	return time.Time{}
}

var regainPattern = regexp.MustCompile(`(?i)regain access on (\d{4}-\d{2}-\d{2})(?: at (\d{2}:\d{2}))?`)

// regainAccess reads Anthropic's "You will regain access on 2026-04-01 at 00:00 UTC." A date that has passed says nothing.
func regainAccess(a answer, now time.Time) time.Time {
	found := regainPattern.FindStringSubmatch(a.message)
	if found == nil {
		return time.Time{}
	}
	if found[2] == "" {
		found[2] = "00:00"
	}
	t, err := time.Parse("2006-01-02 15:04", found[1]+" "+found[2])
	if err != nil || !t.After(now) {
		return time.Time{}
	}
	return t
}

// midnightPacific is when Gemini's daily quotas are reset (ai.google.dev/gemini-api/docs/rate-limits).
func midnightPacific(_ answer, now time.Time) time.Time {
	zone, err := time.LoadLocation("America/Los_Angeles")
	if err != nil {
		return time.Time{}
	}
	y, m, d := now.In(zone).Date()
	return time.Date(y, m, d+1, 0, 0, 0, 0, zone).In(now.Location())
}
