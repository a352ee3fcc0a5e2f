package upstream

import (
	"bytes"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// rulesFile explains its own format.
//
//go:embed rules.yaml
var rulesFile []byte

// ruleset is what is known of one kind.
type ruleset struct {
	Kind  Kind   `yaml:"kind"`
	Name  string `yaml:"name"`
	About string `yaml:"about"`
	Rules []rule `yaml:"rules"`
}

// rule is documented in rules.yaml.
type rule struct {
	ID        string         `yaml:"id"`
	When      condition      `yaml:"when"`
	Verdict   string         `yaml:"verdict"`
	Status    Status         `yaml:"status"`
	Until     []string       `yaml:"until"`
	Scope     Scope          `yaml:"scope"`
	ScopeFrom *regexp.Regexp `yaml:"scope_from"`
	Confirm   bool           `yaml:"confirm"`
	Own       bool           `yaml:"own"`
	Why       string         `yaml:"why"`
	Source    string         `yaml:"source"`
}

// condition holds if all that it names hold. A list holds if one of its entries does.
type condition struct {
	Status  []string            `yaml:"status"`
	Type    []string            `yaml:"type"`
	Code    []string            `yaml:"code"`
	Fields  map[string][]string `yaml:"fields"`
	Message *regexp.Regexp      `yaml:"message"`
	Body    *regexp.Regexp      `yaml:"body"`
}

// loaded reads the embedded table once. That it can be read, and makes sense, is tested, so a panic here is a build that
// skipped its tests.
var loaded = sync.OnceValue(func() []ruleset {
	sets, err := parseRules(rulesFile)
	if err != nil {
		panic(fmt.Sprintf("internal/upstream/rules.yaml: %v", err))
	}
	return sets
})

func parseRules(text []byte) ([]ruleset, error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	var sets []ruleset
	err := d.Decode(&sets)
	return sets, err
}

// rulesOf returns an empty set for a kind that is not known.
func rulesOf(kind Kind) ruleset {
	sets := loaded()
	if i := slices.IndexFunc(sets, func(s ruleset) bool { return s.Kind == kind }); i >= 0 {
		return sets[i]
	}
	return ruleset{}
}

// match returns the first rule that holds, or nil.
func (s ruleset) match(a answer) *rule {
	for i := range s.Rules {
		if s.Rules[i].When.holds(a) {
			return &s.Rules[i]
		}
	}
	return nil
}

func (c condition) holds(a answer) bool {
	return (len(c.Status) == 0 || slices.ContainsFunc(c.Status, func(s string) bool { return statusIs(s, a.status) })) &&
		(len(c.Type) == 0 || oneOf(c.Type, a.kind)) &&
		(len(c.Code) == 0 || oneOf(c.Code, a.code)) &&
		(c.Message == nil || c.Message.MatchString(a.message)) &&
		(c.Body == nil || c.Body.MatchString(a.text)) &&
		c.fieldsHold(a)
}

func (c condition) fieldsHold(a answer) bool {
	for path, want := range c.Fields {
		if !slices.ContainsFunc(lookup(a.tree, path), func(got string) bool { return oneOf(want, got) }) {
			return false
		}
	}
	return true
}

// statusIs compares with a status such as 429, or a class such as 5xx.
func statusIs(pattern string, status int) bool {
	if class, ok := strings.CutSuffix(pattern, "xx"); ok {
		return class == strconv.Itoa(status/100)
	}
	return pattern == strconv.Itoa(status)
}

func oneOf(want []string, got string) bool {
	return slices.ContainsFunc(want, func(w string) bool { return strings.EqualFold(w, got) })
}

func (r *rule) verdict(a answer, now time.Time) Verdict {
	v := Verdict{Rule: r.ID, Scope: r.scope(a), Confirm: r.Confirm, Why: r.Why}
	switch r.Verdict {
	case Rotate.String():
		v.Action, v.Status = Rotate, Exhausted
		v.Own = r.Own && (!r.Confirm || a.spent())
	case CoolDown.String():
		v.Action, v.Status = CoolDown, r.coolStatus()
		v.Until, v.UntilFrom = r.until(a, now)
	}
	return v
}

func (r *rule) coolStatus() Status {
	if r.Status != "" {
		return r.Status
	}
	return RateLimited
}

// scopeNames are the words of LiteLLM's messages.
var scopeNames = map[string]Scope{
	"key": ScopeKey, "user": ScopeUser, "end user": ScopeEndUser, "customer": ScopeEndUser, "team": ScopeTeam, "tag": ScopeTag,
	"project": ScopeProject, "organization": ScopeOrganisation, "organisation": ScopeOrganisation, "org": ScopeOrganisation,
}

// scope takes the message's word for it where the rule says where to look.
func (r *rule) scope(a answer) Scope {
	if r.ScopeFrom == nil {
		return r.Scope
	}
	if found := r.ScopeFrom.FindStringSubmatch(a.message); found != nil {
		if scope, ok := scopeNames[strings.ToLower(found[1])]; ok {
			return scope
		}
	}
	return r.Scope
}
