package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

var outputFormats = []string{"table", "json", "yaml"}

// print writes an answer: as itself, or with table for people.
func (c *cli) print(answer proto.Message, table func(io.Writer)) error {
	if c.output == "table" {
		return c.printTable(table)
	}
	text, err := protojson.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	return c.printJSON(text)
}

func (c *cli) printTable(table func(io.Writer)) error {
	var text bytes.Buffer
	tabs := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	table(tabs)
	if err := tabs.Flush(); err != nil {
		return err
	}
	_, err := c.sys.Out.Write(trimLines(text.Bytes()))
	return err
}

// trimLines removes the padding that tabwriter leaves after a last column that is empty.
func trimLines(text []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		out.Write(bytes.TrimRight(line, " \n"))
		out.WriteByte('\n')
	}
	return out.Bytes()
}

// printJSON formats JSON anew: protojson varies its white space on purpose.
func (c *cli) printJSON(text []byte) error {
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "  "); err != nil {
		return fmt.Errorf("formatting the answer: %w", err)
	}
	out.WriteByte('\n')
	formatted := out.Bytes()
	if c.output == "yaml" {
		var err error
		if formatted, err = yaml.JSONToYAML(formatted); err != nil {
			return fmt.Errorf("formatting the answer: %w", err)
		}
	}
	_, err := c.sys.Out.Write(formatted)
	return err
}

// row writes one line of a table. What comes from outside must not break the line or move the terminal's cursor.
func row(w io.Writer, cells ...string) {
	for i, cell := range cells {
		cells[i] = oneLine(cell)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, text)
}

// field writes one line of a description, unless there is nothing to say.
func field(w io.Writer, name, value string) {
	if value != "" {
		row(w, name, value)
	}
}

func at(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// age is how long ago something was, in its largest unit.
func (c *cli) age(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return span(c.sys.Now().Sub(t.AsTime()))
}

func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// word writes an enum value for people: KEY_STATUS_RATE_LIMITED becomes "rate-limited". Values we do not know show
// their number.
func word(value fmt.Stringer, prefix string) string {
	text := strings.TrimPrefix(value.String(), prefix)
	if text == "UNSPECIFIED" {
		return ""
	}
	return strings.ToLower(strings.ReplaceAll(text, "_", "-"))
}

func home(h rotatorv1.KeyHome) string        { return word(h, "KEY_HOME_") }
func trigger(t rotatorv1.Trigger) string     { return word(t, "TRIGGER_") }
func outcome(o rotatorv1.Outcome) string     { return word(o, "OUTCOME_") }
func severity(s rotatorv1.Severity) string   { return word(s, "SEVERITY_") }
func refusal(r rotatorv1.KeyRefusal) string  { return word(r, "KEY_REFUSAL_") }
func keyStatus(s rotatorv1.KeyStatus) string { return word(s, "KEY_STATUS_") }
func phase(p rotatorv1.KeyPhase) string      { return word(p, "KEY_PHASE_") }

// status says what a key is worth now: a cool-down that has passed counts as healthy, and a rotation that waits for
// stock is marked.
//
// A key that is neither in service nor in stock has a phase instead.
func (c *cli) status(key *rotatorv1.Key) string {
	if p := key.GetPhase(); p != rotatorv1.KeyPhase_KEY_PHASE_UNSPECIFIED && p != rotatorv1.KeyPhase_KEY_PHASE_RETIRED {
		return word(p, "KEY_PHASE_")
	}
	text := keyStatus(key.GetStatus())
	if until := key.GetStatusUntil(); until != nil {
		if until.AsTime().After(c.sys.Now()) {
			text += " until " + at(until)
		} else {
			text = "healthy (" + text + " ended " + at(until) + ")"
		}
	}
	if key.GetPending() {
		text += " [PENDING: waits for a backup]"
	}
	return strings.TrimSpace(text)
}

// state is status for a table: how long a cool-down lasts yet, and how far what a preparing or retired key still needs has
// come.
func (c *cli) state(key *rotatorv1.Key) string {
	text := keyStatus(key.GetStatus())
	if until := key.GetStatusUntil(); until != nil {
		if left := until.AsTime().Sub(c.sys.Now()); left > 0 {
			text += " " + span(left)
		} else {
			text = "healthy"
		}
	}
	if key.GetPending() {
		text += " [PENDING: waits for a backup]"
	}
	if p := key.GetPhase(); p != rotatorv1.KeyPhase_KEY_PHASE_RETIRED {
		text += " " + phase(p)
	}
	if left := key.GetNextTryAt().AsTime().Sub(c.sys.Now()); key.GetNextTryAt() != nil && left > 0 {
		text += ", next try in " + span(left)
	}
	return strings.TrimSpace(text)
}

// barWidth is how many cells a spend has.
const barWidth = 10

// spend is what a key has spent of its budget, such as "9.40/10.00 [#########-]".
func spend(key *rotatorv1.Key) string {
	if key.SpendUsd == nil || key.BudgetUsd == nil || !(key.GetBudgetUsd() > 0) {
		return dollars(key.SpendUsd)
	}
	full := int(min(1, max(0, key.GetSpendUsd()/key.GetBudgetUsd())) * barWidth)
	return fmt.Sprintf("%.2f/%.2f [%s%s]", key.GetSpendUsd(), key.GetBudgetUsd(), strings.Repeat("#", full), strings.Repeat("-", barWidth-full))
}

func dollars(amount *float64) string {
	if amount == nil {
		return ""
	}
	return fmt.Sprintf("$%.2f", *amount)
}

func labels(m map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, name+"="+m[name])
	}
	return strings.Join(out, ", ")
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func slots(list []*rotatorv1.SlotPriority) string {
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%s=%d", s.GetSlot(), s.GetPriority()))
	}
	return strings.Join(out, " ")
}
