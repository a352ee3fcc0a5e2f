package upstream

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of rules into docs/triggers.md")

const (
	docsFile   = "../../docs/triggers.md"
	tableBegin = "<!-- rules: begin; from internal/upstream/rules.yaml by go test ./internal/upstream -run TestDocumentedRules -update -->\n"
	tableEnd   = "<!-- rules: end -->\n"
)

// What operators are shown is what decides.
func TestDocumentedRules(t *testing.T) {
	page, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(page), tableBegin)
	_, after, ends := strings.Cut(rest, tableEnd)
	if !begins || !ends {
		t.Fatalf("%s has no place for the table: want the lines\n%s%s", docsFile, tableBegin, tableEnd)
	}
	want := before + tableBegin + rulesAsMarkdown(loaded()) + tableEnd + after
	if want == string(page) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what rules.yaml says; run go test ./internal/upstream -run TestDocumentedRules -update", docsFile)
	}
	if err := os.WriteFile(docsFile, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDocumentedBounds(t *testing.T) {
	page, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []string{"60 s", "30 s", "at most 24 hours", "at most 32 days", "64 KiB", "512 bytes"} {
		if !strings.Contains(string(page), said) {
			t.Errorf("%s does not say %q", docsFile, said)
		}
	}
	if DefaultCoolDown.Seconds() != 60 || ErrorCoolDown.Seconds() != 30 || MaxRetryAfter.Hours() != 24 || MaxCoolDown.Hours() != 32*24 || MaxBody != 64<<10 || MaxReason != 512 {
		t.Error("a bound was changed: change the list above and the page with it")
	}
}

func rulesAsMarkdown(sets []ruleset) string {
	var out strings.Builder
	for _, set := range sets {
		fmt.Fprintf(&out, "\n### %s: `%s`\n\n%s\n\n", set.Name, set.Kind, set.About)
		out.WriteString("| when | verdict | scope | rule | why |\n|---|---|---|---|---|\n")
		for _, r := range set.Rules {
			fmt.Fprintf(&out, "| %s | %s | %s | `%s` | %s (%s) |\n", whenText(r.When), verdictText(r), scopeText(r), r.ID, cell(r.Why), r.Source)
		}
		fmt.Fprintf(&out, "| anything else | ignore | | `%s/unknown` | %s |\n", set.Kind, unknownWhy)
	}
	out.WriteString("\n")
	return out.String()
}

func whenText(c condition) string {
	var out []string
	if len(c.Status) > 0 {
		out = append(out, strings.Join(c.Status, ", "))
	}
	add := func(name string, values []string) {
		if len(values) > 0 {
			out = append(out, name+" `"+strings.Join(values, "`, `")+"`")
		}
	}
	add("type", c.Type)
	add("code", c.Code)
	for _, path := range slices.Sorted(maps.Keys(c.Fields)) {
		add("`"+path+"`", c.Fields[path])
	}
	add("message matches", patternText(c.Message))
	add("body matches", patternText(c.Body))
	return strings.Join(out, "; ")
}

func patternText(p *regexp.Regexp) []string {
	if p == nil {
		return nil
	}
	return []string{cell(strings.TrimPrefix(p.String(), "(?i)"))}
}

func verdictText(r rule) string {
	switch {
	case r.Verdict == "rotate":
		text := "**rotate**"
		if r.Confirm {
			text += ", perhaps good still"
		}
		if r.Own {
			text += "; the key's own"
		}
		return text
	case r.Verdict == "cool_down" && len(r.Until) > 0:
		return "cool down: " + strings.Join(r.Until, ", ")
	default:
		return strings.ReplaceAll(r.Verdict, "_", " ")
	}
}

func scopeText(r rule) string {
	if r.ScopeFrom != nil {
		return "as the message says"
	}
	return string(r.Scope)
}

// cell keeps a text from ending its cell.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
