package upstream

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// Health is what an upstream says of a key when it is asked.
type Health int

const (
	// Unreachable: the upstream did not say, or said what may mean anything. Nothing follows from it.
	Unreachable Health = iota
	// Alive: it took the key.
	Alive
	// Dead: it refused the key with an answer for which the rules say rotate.
	Dead
)

// String is the health's name in logs and metrics.
func (h Health) String() string {
	switch h {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	default:
		return "unreachable"
	}
}

// ProbeResult is what a probe came to.
type ProbeResult struct {
	Health Health
	Reason string // for people: one line without secrets, at most MaxReason bytes
	Rule   string // that decided, if Dead
	Status int    // of the answer; 0: there was none
	Err    error  // why there was no answer, a *CallError; nil if there was one, or the kind cannot be asked
}

// probes are cheap and free of cost, one for each kind that can be asked.
var probes = map[Kind]struct {
	base   string // where the kind is, if the pool does not say
	path   string
	query  func(now time.Time) url.Values
	header func(key string) map[string]string
}{
	OpenAI: {base: "https://api.openai.com", path: "/v1/models", header: bearer},
	Anthropic: {base: "https://api.anthropic.com", path: "/v1/models", query: one, header: func(key string) map[string]string {
		return map[string]string{"X-Api-Key": key, "Anthropic-Version": "2023-06-01"}
	}},
	OpenRouter: {base: "https://openrouter.ai", path: "/api/v1/key", header: bearer},
	Gemini: {base: "https://generativelanguage.googleapis.com", path: "/v1beta/models", header: func(key string) map[string]string {
		return map[string]string{"X-Goog-Api-Key": key} // the API takes it as ?key= too, where proxies would log it
	}},
	LiteLLM: {path: "/key/info", header: litellmHeader},
	// Its keys may not ask /key/info: the refusal would look like that of a dead key.
	OpenHands: {path: activityPath, query: today, header: litellmHeader},
}

func bearer(key string) map[string]string { return map[string]string{"Authorization": "Bearer " + key} }

func one(time.Time) url.Values { return url.Values{"limit": {"1"}} }

// Askable reports whether a probe could show that a key is good for which the rules say rotate. It shows whether the upstream
// takes the key, and whether the key's own budget is spent; of what an account or a project may still spend it shows nothing.
func Askable(kind Kind, v Verdict) bool {
	_, ok := probes[kind]
	return ok && (v.Scope == ScopeKey || v.Confirm)
}

// Probe asks an upstream about a key with the key itself. It blocks for two time-outs of the client at most.
func (c *Client) Probe(ctx context.Context, kind Kind, baseURL string, key Secret) ProbeResult {
	p, ok := probes[kind]
	if !ok {
		return ProbeResult{Reason: "an upstream of kind " + string(kind) + " cannot be asked"}
	}
	base, now := cmp.Or(baseURL, p.base), c.cfg.Now()
	if base == "" {
		return ProbeResult{Reason: "cannot be asked without a base_url"}
	}
	secret := key.Reveal()
	k := call{kind: kind, method: http.MethodGet, base: base, path: p.path, header: p.header(secret), secrets: []string{secret}}
	if p.query != nil {
		k.query = p.query(now)
	}
	r, err := c.do(ctx, k)
	if err != nil {
		var e *CallError
		errors.As(err, &e)
		return ProbeResult{Reason: e.Reason, Err: err}
	}
	return judge(kind, r, now, secret)
}

// judge says what an answer to a probe means. Dead needs a rule that says so; a success must look like the API's.
func judge(kind Kind, r Response, now time.Time, secret string) ProbeResult {
	v := Classify(kind, r, now, secret)
	p := ProbeResult{Status: r.Status, Reason: v.Reason}
	tree, _ := parseTree(r.Body)
	switch {
	case r.Status/100 != 2 && v.Action == Rotate:
		p.Health, p.Rule = Dead, v.Rule
	case r.Status/100 != 2:
	case tree == nil:
		p.Reason = "the answer is not JSON: it may be a login page's"
	default:
		p.Health, p.Reason = Alive, ""
		if rule := nothingLeft[kind]; rule.spent != nil && rule.spent(tree) {
			p.Health, p.Rule, p.Reason = Dead, rule.id, "the upstream says that the key's budget is spent"
		}
	}
	return p
}

// nothingLeft names the rule that a key would be refused by, where the answer to a probe says that its budget is spent:
// such a key is told about itself all the same.
var nothingLeft = map[Kind]struct {
	id    string
	spent func(tree any) bool
}{
	LiteLLM: {"litellm/budget-exceeded-key", func(tree any) bool {
		spend, ok := numberAt(tree, "info.spend")
		budget, bounded := numberAt(tree, "info.max_budget")
		if !bounded {
			budget, bounded = numberAt(tree, "info.litellm_budget_table.max_budget")
		}
		return ok && bounded && spend >= budget
	}},
	OpenRouter: {"openrouter/key-limit", func(tree any) bool {
		left, ok := numberAt(tree, "data.limit_remaining")
		return ok && left <= 0
	}},
}
