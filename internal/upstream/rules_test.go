package upstream

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	idPattern     = regexp.MustCompile(`^[a-z]+/[a-z0-9]+(-[a-z0-9]+)*$`)
	statusPattern = regexp.MustCompile(`^[1-5]([0-9]{2}|xx)$`)
	scopes        = []Scope{ScopeUnknown, ScopeKey, ScopeUser, ScopeEndUser, ScopeTag, ScopeTeam, ScopeProject, ScopeWorkspace, ScopeOrganisation, ScopeAccount, ScopeRequest, ScopeUpstream}
)

func TestRulesAreValid(t *testing.T) {
	sets, err := parseRules(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []Kind
	ids := map[string]bool{}
	for _, set := range sets {
		kinds = append(kinds, set.Kind)
		if set.Name == "" || set.About == "" {
			t.Errorf("%s: want a name and something about it", set.Kind)
		}
		for _, r := range set.Rules {
			for _, problem := range problems(set, r) {
				t.Errorf("%s: %s", r.ID, problem)
			}
			if ids[r.ID] {
				t.Errorf("%s: the id is used twice", r.ID)
			}
			ids[r.ID] = true
		}
	}
	if !slices.Equal(kinds, Kinds()) {
		t.Errorf("kinds: want %v, got %v", Kinds(), kinds)
	}
}

func problems(set ruleset, r rule) (out []string) {
	check := func(ok bool, problem string) {
		if !ok {
			out = append(out, problem)
		}
	}
	check(idPattern.MatchString(r.ID) && strings.HasPrefix(r.ID, string(set.Kind)+"/"), "the id must be "+string(set.Kind)+"/words-like-this")
	check(r.ID != string(set.Kind)+"/unknown", "the id is for what no rule matches")
	check(slices.Contains([]string{"rotate", "cool_down", "ignore"}, r.Verdict), "verdict must be rotate, cool_down or ignore")
	check(slices.Contains(scopes, r.Scope), "the scope is not known")
	check(r.Scope != "" || r.ScopeFrom != nil, "a scope is missing")
	check(r.ScopeFrom == nil || r.ScopeFrom.NumSubexp() == 1, "scope_from must have one group")
	check(r.Verdict == "cool_down" || len(r.Until) == 0 && r.Status == "", "until and status are for cool_down")
	check(slices.Contains([]Status{"", RateLimited, Error}, r.Status), "status must be rate_limited or error")
	check(r.Verdict == "rotate" || !r.Confirm, "confirm is for rotate")
	check(r.Verdict == "rotate" || !r.Own, "own is for rotate")
	check(!r.Own || r.Scope == ScopeKey || r.Scope == ScopeUser && set.Kind == OpenHands, "own is for what no two keys share")
	for _, name := range r.Until {
		check(sources[name] != nil, "until names the unknown source "+name)
	}
	check(strings.HasSuffix(r.Why, ".") && strings.Count(r.Why, ". ") == 0, "why must be one sentence")
	check(r.Source != "", "the source is missing")
	return append(out, conditionProblems(r.When)...)
}

func conditionProblems(c condition) (out []string) {
	if len(c.Status)+len(c.Type)+len(c.Code)+len(c.Fields) == 0 {
		out = append(out, "when must name a status, type, code or field: text alone would match what callers wrote")
	}
	for _, s := range c.Status {
		if !statusPattern.MatchString(s) {
			out = append(out, "status "+s+" is neither a status nor a class")
		}
	}
	for _, p := range []*regexp.Regexp{c.Message, c.Body} {
		if p != nil && p.MatchString("") {
			out = append(out, "the pattern "+p.String()+" matches nothing at all")
		}
	}
	return out
}

// TestQuotaBeforeRateLimit: both come as 429, so what rotates on a 429 must be asked before what takes any 429.
func TestQuotaBeforeRateLimit(t *testing.T) {
	for _, set := range loaded() {
		caught := ""
		for _, r := range set.Rules {
			on429 := len(r.When.Status) == 0 || slices.ContainsFunc(r.When.Status, func(s string) bool { return statusIs(s, 429) })
			if on429 && r.Verdict == "rotate" && caught != "" {
				t.Errorf("%s is never asked about a 429: %s stands above it", r.ID, caught)
			}
			if w := r.When; on429 && len(w.Type)+len(w.Code)+len(w.Fields) == 0 && w.Message == nil && w.Body == nil {
				caught = r.ID
			}
		}
	}
}

func TestUnknownFieldsOfRulesAreRefused(t *testing.T) {
	for _, text := range []string{"- {kind: x, rulez: []}", "- {kind: x, rules: [{id: a, when: {stat: [1]}}]}", "- {kind: x, rules: [{id: a, when: {body: '('}}]}"} {
		if _, err := parseRules([]byte(text)); err == nil {
			t.Errorf("%s: want an error, got none", text)
		}
	}
}
