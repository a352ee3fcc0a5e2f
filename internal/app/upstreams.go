package app

import (
	"context"
	"net/http"
	"net/textproto"
	"regexp"
	"strings"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/upstream"
)

// upstreams join what is known of upstreams to the domain: they implement pool.Classifier and pool.Prober.
type upstreams struct {
	client *upstream.Client
}

// Classify implements pool.Classifier.
func (u *upstreams) Classify(kind pool.UpstreamKind, a pool.Answer, now time.Time, secret pool.Secret) pool.Judgement {
	r := upstream.Response{Status: a.Status, Header: make(http.Header, len(a.Headers)), Body: a.Body}
	for name, value := range a.Headers {
		r.Header.Set(textproto.CanonicalMIMEHeaderKey(name), value)
	}
	var secrets []string
	if !secret.IsZero() {
		secrets = []string{secret.Reveal()}
	}
	v := upstream.Classify(upstream.Kind(kind), r, now, secrets...)
	j := pool.Judgement{Verdict: verdicts[v.Action], Status: statuses[v.Status], Until: v.Until, Rule: v.Rule, Reason: v.Reason, Own: v.Own}
	j.Askable = upstream.Askable(upstream.Kind(kind), v)
	j.Works = v.Action == upstream.Ignore && r.Succeeded()
	return j
}

var verdicts = map[upstream.Action]pool.Verdict{
	upstream.Ignore: pool.VerdictIgnore, upstream.CoolDown: pool.VerdictCoolDown, upstream.Rotate: pool.VerdictRotate,
}

var statuses = map[upstream.Status]pool.Status{
	upstream.RateLimited: pool.StatusRateLimited, upstream.Error: pool.StatusError, upstream.Exhausted: pool.StatusExhausted,
}

// Probe implements pool.Prober.
func (u *upstreams) Probe(ctx context.Context, p *pool.Pool, secret pool.Secret) (pool.ProbeResult, string) {
	spec := p.Spec.Upstream
	res := u.client.Probe(ctx, upstream.Kind(spec.Is()), spec.BaseURL, secret)
	return probeResults[res.Health], res.Reason
}

var probeResults = map[upstream.Health]pool.ProbeResult{
	upstream.Unreachable: pool.ProbeUnreachable, upstream.Alive: pool.ProbeAlive, upstream.Dead: pool.ProbeDead,
}

// scrub takes what looks like a secret out of what a caller gave as its source or reason. A text without one stays as it is.
func scrub(text string) string {
	if innocent(text) {
		return text
	}
	clean := upstream.Scrub(text, pool.MaxReason)
	if !strings.Contains(clean, "[redacted]") {
		return text
	}
	return clean
}

// innocent reports whether a text surely has no secret in it, without a look at all that one may look like: it is asked for
// each RotateKey. Secrets stand after such a sign, begin as such keys do, or are long words.
func innocent(text string) bool {
	if strings.ContainsAny(text, `=:\`) || strings.Contains(strings.ToLower(text), "bearer") {
		return false
	}
	for word := range strings.FieldsSeq(text) {
		if !shortWord(word) && !reasonWord.MatchString(word) {
			return false
		}
	}
	return true
}

// reasonWord is a reason as programs give it, such as proactive_threshold_9.96: short words, and at the end a number.
var reasonWord = regexp.MustCompile(`^[a-z]{3,16}(_[a-z]{2,16})*(_[0-9]{1,4}(\.[0-9]{1,20})?)?$`)

// shortWord reports whether a word is too short for a secret and does not begin as one.
func shortWord(word string) bool {
	for i := 1; i < len(word); i++ {
		if (word[i] == '-' || word[i] == '_') && (word[i-1] == 'k' || word[i-1] == 'K') {
			return false
		}
	}
	return len(word) < 12
}
