package ctl

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/rotatord/rotatord/internal/ctl/mongoexport"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// What became of one document.
const (
	resultNote    = "note"    // imported, with a change
	resultSame    = "same"    // was there, elsewhere than the file says
	resultChanged = "changed" // was there and is different now
	resultSkipped = "skipped" // left out, as it should be
	resultRefused = "refused" // left out, and somebody should look
	resultUnknown = "unknown" // not known in time
)

// mongoReport says what became of every document. It never holds a secret.
type mongoReport struct {
	Pool        string `json:"pool"`
	DryRun      bool   `json:"dryRun"`
	PoolCreated bool   `json:"poolCreated"`
	// Keys and Backups count documents. Bindings counts the documents that were read, skipped and refused; Proxies what
	// became of the proxies they are about.
	Keys     section `json:"keys"`
	Backups  section `json:"backups"`
	Bindings section `json:"bindings"`
	Proxies  section `json:"proxies"`
	// UsedActive and UsedGone are among the skipped backups, Inactive among the skipped and Orphans among the refused
	// bindings.
	UsedActive int          `json:"usedActive"`
	UsedGone   int          `json:"usedGone"`
	Inactive   int          `json:"inactive"`
	Orphans    int          `json:"orphans"`
	Items      []reportItem `json:"items"`
	// UnknownFields are fields we do not know, NotKept fields the service has no place for.
	UnknownFields []reportField `json:"unknownFields"`
	NotKept       []reportField `json:"notKept"`

	started bool
}

// section counts one kind of thing: Read is the sum of the others, except for bindings.
type section struct {
	kind    string
	File    string `json:"file,omitempty"`
	Read    int    `json:"read"`
	New     int    `json:"new"`
	Same    int    `json:"same"`
	Changed int    `json:"changed"`
	Skipped int    `json:"skipped"`
	Refused int    `json:"refused"`
	Unknown int    `json:"unknown"`
}

// reportItem is one document that is not simply imported.
type reportItem struct {
	Kind    string `json:"kind"`
	Line    int    `json:"line"`
	ID      string `json:"id,omitempty"`
	Result  string `json:"result"`
	Message string `json:"message"`
}

type reportField struct {
	Kind  string `json:"kind"`
	Field string `json:"field"`
	Count int    `json:"count"`
}

// newMongoReport starts with what the parser found.
func newMongoReport(pool string, files mongoFiles, source mongoSource) *mongoReport {
	r := &mongoReport{
		Pool:     pool,
		DryRun:   files.dryRun,
		Keys:     section{kind: "key", File: files.keys, Read: source.keys.Documents()},
		Backups:  section{kind: "backup", File: files.backups, Read: source.backups.Documents()},
		Bindings: section{kind: "binding", File: files.bindings, Read: source.bindings.Documents()},
		Proxies:  section{kind: "proxy"},
		Items:    []reportItem{}, UnknownFields: []reportField{}, NotKept: []reportField{},
	}
	r.parsed(&r.Keys, source.keys.Problems, source.keys.Unknown, source.keys.NotKept)
	r.parsed(&r.Backups, source.backups.Problems, source.backups.Unknown, source.backups.NotKept)
	r.parsed(&r.Bindings, source.bindings.Problems, source.bindings.Unknown, source.bindings.NotKept)
	return r
}

func (r *mongoReport) parsed(s *section, problems []mongoexport.Problem, unknown, notKept []mongoexport.FieldCount) {
	for _, p := range problems {
		if p.Refused {
			r.drop(s, p.Line, p.ID, resultRefused, p.Message)
		} else {
			r.item(s, p.Line, p.ID, resultNote, p.Message)
		}
	}
	for _, f := range unknown {
		r.UnknownFields = append(r.UnknownFields, reportField{s.kind, f.Field, f.Count})
	}
	for _, f := range notKept {
		r.NotKept = append(r.NotKept, reportField{s.kind, f.Field, f.Count})
	}
}

func (r *mongoReport) item(s *section, line int, id, result, message string) {
	r.Items = append(r.Items, reportItem{s.kind, line, id, result, message})
}

// drop counts and names a document that is left out.
func (r *mongoReport) drop(s *section, line int, id, result, message string) {
	if result == resultSkipped {
		s.Skipped++
	} else {
		s.Refused++
	}
	r.item(s, line, id, result, message)
}

func (r *mongoReport) orphan(proxy plannedProxy, key plannedBinding) {
	r.Orphans++
	r.drop(&r.Bindings, key.line, proxy.id, resultRefused,
		"orphan: key "+shorten(key.id)+" is neither among the imported active keys nor a slot of the pool")
}

func (r *mongoReport) twice(proxy plannedProxy, key plannedBinding, first *rotatorv1.SlotPriority) {
	r.drop(&r.Bindings, key.line, proxy.id, resultSkipped,
		fmt.Sprintf("duplicate: bound to %s twice; priority %d is kept", first.GetSlot(), first.GetPriority()))
}

func (r *mongoReport) unbound(proxy plannedProxy) {
	r.item(&r.Proxies, proxy.keys[0].line, proxy.id, resultNote, "none of its bindings can be kept; what is bound now stays, and without a binding it may use the whole pool")
}

// print writes the report; people get a summary and the items, tools everything.
func (r *mongoReport) print(c *cli) error {
	order := map[string]int{"key": 1, "backup": 2, "binding": 3, "proxy": 4}
	slices.SortStableFunc(r.Items, func(a, b reportItem) int {
		return cmp.Or(cmp.Compare(order[a.Kind], order[b.Kind]), cmp.Compare(a.Line, b.Line))
	})
	if c.output == "table" {
		return c.printTable(r.table)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the report: %w", err)
	}
	return c.printJSON(text)
}

func (r *mongoReport) table(w io.Writer) {
	fmt.Fprintln(w, r.title())
	row(w, "", "READ", "NEW", "SAME", "CHANGED", "SKIPPED", "REFUSED", "UNKNOWN")
	for _, s := range []section{r.Keys, r.Backups} {
		row(w, s.kind+"s", fmt.Sprint(s.Read), fmt.Sprint(s.New), fmt.Sprint(s.Same), "", fmt.Sprint(s.Skipped), fmt.Sprint(s.Refused), fmt.Sprint(s.Unknown))
	}
	row(w, "bindings", fmt.Sprint(r.Bindings.Read), "", "", "", fmt.Sprint(r.Bindings.Skipped), fmt.Sprint(r.Bindings.Refused), "")
	p := r.Proxies
	row(w, "bound proxies", fmt.Sprint(p.Read), fmt.Sprint(p.New), fmt.Sprint(p.Same), fmt.Sprint(p.Changed), "", fmt.Sprint(p.Refused), "")
	fmt.Fprintf(w, "of the skipped: %d used backups that are active, %d used and gone, %d inactive bindings; of the refused: %d orphan bindings\n",
		r.UsedActive, r.UsedGone, r.Inactive, r.Orphans)
	r.fieldLine(w, "unknown fields", r.UnknownFields)
	r.fieldLine(w, "fields not kept", r.NotKept)
	for _, item := range r.Items {
		fmt.Fprintln(w, oneLine(fmt.Sprintf("%s: %s, line %d, %s: %s", item.Result, item.Kind, item.Line, cmp.Or(item.ID, "(no id)"), item.Message)))
	}
}

func (r *mongoReport) title() string {
	title := "import into pool " + r.Pool
	if r.PoolCreated {
		title += ", which is new"
	}
	if r.DryRun {
		title += " (dry run: nothing was changed)"
	}
	return oneLine(title)
}

func (r *mongoReport) fieldLine(w io.Writer, title string, fields []reportField) {
	var out []string
	for _, f := range fields {
		out = append(out, fmt.Sprintf("%s.%s (%d)", f.Kind, shorten(f.Field), f.Count))
	}
	if len(out) > 0 {
		fmt.Fprintln(w, oneLine(title+": "+strings.Join(out, ", ")))
	}
}

func (r *mongoReport) verdict() error {
	refused := r.Keys.Refused + r.Backups.Refused + r.Bindings.Refused + r.Proxies.Refused
	unknown := r.Keys.Unknown + r.Backups.Unknown
	switch {
	case refused > 0:
		return &adviceError{failf(exitFailed, "%s refused, named in the report", count(refused, "document")+were(refused)),
			"correct the files or the pool, then run the command again"}
	case unknown > 0:
		return &adviceError{failf(exitUnavailable, "it is not known of %s whether it was added", count(unknown, "key")),
			"run the same command again: what was imported is counted as same"}
	default:
		return nil
	}
}
