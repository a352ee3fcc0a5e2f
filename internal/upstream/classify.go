package upstream

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Response is what an upstream answered.
type Response struct {
	Status int
	// Header may be nil. Names are canonical or in lower case.
	Header http.Header
	// Body may be empty, cut short, or anything but JSON. What is beyond MaxBody is not read.
	Body []byte
}

// Succeeded reports whether the upstream did what it was asked to. It did not if the body tells of an error: one in the
// middle of a stream comes after a 200.
func (r Response) Succeeded() bool {
	a := newAnswer(r)
	return a.status/100 == 2 && !a.tellsOfError()
}

// Classify says what an answer means for the key it was given to, at the time now. A kind that is not known is ignored.
// The secrets, as a rule the key itself, are kept out of the verdict.
func Classify(kind Kind, r Response, now time.Time, secrets ...string) Verdict {
	a := newAnswer(r)
	v := Verdict{Rule: string(kind) + "/unknown", Why: unknownWhy}
	if !kind.Known() {
		v.Rule, v.Why = "unknown", "There are no rules for this kind of upstream."
	}
	if rule := rulesOf(kind).match(a); rule != nil {
		v = rule.verdict(a, now)
	}
	v.Reason = Scrub(a.summary(secrets), MaxReason, secrets...)
	return v
}

// unknownWhy is why most answers are ignored.
const unknownWhy = "No rule knows this answer, and what is not known costs no key."

// answer is a response that was read.
type answer struct {
	body
	status int
	header http.Header
}

func newAnswer(r Response) answer {
	a := answer{body: parseBody(r.Body), status: r.Status, header: r.Header}
	// An error in the middle of a stream comes after a 200 and has its status in the body (OpenRouter, LiteLLM).
	if code, err := strconv.Atoi(a.code); err == nil && r.Status/100 == 2 && code >= 400 && code < 600 {
		a.status = code
	}
	return a
}

// get reads a header, whether its name is canonical, as in net/http, or in lower case, as in HTTP/2 and gRPC metadata.
func (a answer) get(name string) string {
	if value := a.header.Get(name); value != "" {
		return strings.TrimSpace(value)
	}
	if values := a.header[strings.ToLower(name)]; len(values) > 0 {
		return strings.TrimSpace(values[0])
	}
	return ""
}

// maxLabel bounds the type and the code in a summary: they are words, or not what they should be.
const maxLabel = 64

// summary is what the upstream said. The message is not scrubbed yet; what is cut is, before it is cut.
func (a answer) summary(secrets []string) string {
	out := fmt.Sprintf("HTTP %d", a.status)
	if a.kind != "" {
		out += " " + Scrub(a.kind, maxLabel, secrets...)
	}
	if a.code != "" && a.code != a.kind && a.code != strconv.Itoa(a.status) {
		out += " " + Scrub(a.code, maxLabel, secrets...)
	}
	if said := strings.TrimSpace(cmp.Or(a.message, a.text)); said != "" {
		out += separator(out, said) + said
	}
	return out
}

// separator stands between a code and a message. What follows "api_key:" and the like is taken for a secret, so a code such as
// invalid_api_key is parted from a message in another way, if the message surely begins with a word and not with a secret.
func separator(label, said string) string {
	if namesSecret.MatchString(label) && plainStart.MatchString(said) {
		return " - "
	}
	return ": "
}

var (
	namesSecret = regexp.MustCompile(`(?i)(?:key|secret|password)$`)
	plainStart  = regexp.MustCompile(`^[A-Z]?[a-z]{0,10} [A-Za-z]{1,11} `)
)
