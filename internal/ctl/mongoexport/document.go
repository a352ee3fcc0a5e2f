package mongoexport

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// document reads the fields of one document and collects what is wrong with them. Fields without which the document
// means nothing refuse it; the others are left out.
type document struct {
	line   int
	id     string
	fields map[string]json.RawMessage
	found  []Problem
}

// open returns a document even if it is broken: it has the problem then.
func open(r raw) (*document, bool) {
	d := &document{line: r.line}
	if r.problem != "" {
		d.refuse("%s", r.problem)
		return d, false
	}
	if err := json.Unmarshal(r.text, &d.fields); err != nil || d.fields == nil {
		d.refuse("not a JSON document")
		return d, false
	}
	return d, true
}

func (d *document) refuse(format string, args ...any) {
	d.found = append(d.found, Problem{Line: d.line, Message: fmt.Sprintf(format, args...), Refused: true})
}

func (d *document) note(format string, args ...any) {
	d.found = append(d.found, Problem{Line: d.line, Message: fmt.Sprintf(format, args...)})
}

func (d *document) refused() bool {
	return slices.ContainsFunc(d.found, func(p Problem) bool { return p.Refused })
}

// problems joins the reasons of a refusal: a refused document is one problem.
func (d *document) problems() []Problem {
	if !d.refused() {
		return d.withID(d.found)
	}
	var messages []string
	for _, p := range d.found {
		if p.Refused {
			messages = append(messages, p.Message)
		}
	}
	return d.withID([]Problem{{Line: d.line, Message: strings.Join(messages, "; "), Refused: true}})
}

func (d *document) withID(problems []Problem) []Problem {
	for i := range problems {
		problems[i].ID = d.id
	}
	return problems
}

func (d *document) countFields(kept, notKept []string, unknown, dropped map[string]int) {
	for name := range d.fields {
		switch {
		case slices.Contains(kept, name):
		case slices.Contains(notKept, name):
			dropped[name]++
		default:
			unknown[name]++
		}
	}
}

// has says whether a field is there with a value.
func (d *document) has(name string) bool {
	text, ok := d.fields[name]
	return ok && string(text) != "null"
}

// identity reads _id. An id that is the secret itself would be shown everywhere, so it is refused and not kept.
func (d *document) identity() string {
	id := d.text("_id")
	if secret, ok := asText(d.fields["apiKey"]); ok && id != "" && secret == id {
		d.refuse("_id is the secret itself; give the key another id")
		return ""
	}
	d.id = id
	return id
}

func (d *document) secret(name string) Secret {
	return NewSecret(d.text(name))
}

// text reads a field without which the document means nothing.
func (d *document) text(name string) string {
	value, ok := asText(d.fields[name])
	switch {
	case !d.has(name):
		d.refuse("%s is missing", name)
	case !ok:
		d.refuse("%s is not a string", name)
	case value == "":
		d.refuse("%s is empty", name)
	case strings.ContainsRune(value, utf8.RuneError):
		// The decoder puts this rune where bytes were not UTF-8; a secret changed in silence would be worse than none.
		d.refuse("%s is not valid UTF-8", name)
	}
	return value
}

func (d *document) optionalText(name string) string {
	value, ok := asText(d.fields[name])
	if d.has(name) && !ok {
		d.note("%s is not a string; left out", name)
	}
	return value
}

func (d *document) flag(name string) bool {
	value, ok := asBool(d.fields[name])
	switch {
	case !d.has(name):
		d.refuse("%s is missing", name)
	case !ok:
		d.refuse("%s is neither true nor false", name)
	}
	return value
}

func (d *document) optionalFlag(name string) bool {
	value, ok := asBool(d.fields[name])
	if d.has(name) && !ok {
		d.note("%s is neither true nor false; left out", name)
	}
	return value
}

func (d *document) date(name string) time.Time {
	if !d.has(name) {
		return time.Time{}
	}
	at, ok := asDate(d.fields[name])
	if !ok {
		d.note("%s is not a date; left out", name)
	}
	return at
}

func (d *document) amount(name string) *float64 {
	if !d.has(name) {
		return nil
	}
	value, ok := asNumber(d.fields[name])
	if !ok || value < 0 || math.IsNaN(value) || math.IsInf(value, 0) {
		d.note("%s is not an amount; left out", name)
		return nil
	}
	return &value
}

func (d *document) priority(name string) int {
	if !d.has(name) {
		d.note("%s is missing; taken as 1", name)
		return 1
	}
	value, ok := asNumber(d.fields[name])
	if !ok || value != math.Trunc(value) || value < 1 || value > MaxPriority {
		d.refuse("%s is not a whole number from 1 to %d", name, MaxPriority)
		return 0
	}
	return int(value)
}

// keyReference reads the one field of the two layouts that names the key.
func (d *document) keyReference() (Layout, string) {
	openHands, factory := d.has(string(LayoutOpenHands)), d.has(string(LayoutFactory))
	switch {
	case openHands && factory:
		d.refuse("both %s and %s are given", LayoutOpenHands, LayoutFactory)
		return "", ""
	case openHands:
		return LayoutOpenHands, d.text(string(LayoutOpenHands))
	case factory:
		return LayoutFactory, d.text(string(LayoutFactory))
	default:
		d.refuse("neither %s nor %s is given", LayoutOpenHands, LayoutFactory)
		return "", ""
	}
}

// asText reads a string or {"$oid": "..."}.
func asText(text json.RawMessage) (string, bool) {
	if inner, ok := wrapped(text, "$oid"); ok {
		text = inner
	}
	var value *string
	if json.Unmarshal(text, &value) != nil || value == nil {
		return "", false
	}
	return *value, true
}

func asBool(text json.RawMessage) (bool, bool) {
	var value *bool
	if json.Unmarshal(text, &value) != nil || value == nil {
		return false, false
	}
	return *value, true
}

// asNumber reads a number or one of {"$numberInt"|"$numberLong"|"$numberDouble": "..."}.
func asNumber(text json.RawMessage) (float64, bool) {
	for _, name := range []string{"$numberInt", "$numberLong", "$numberDouble"} {
		if inner, ok := wrapped(text, name); ok {
			return parseNumber(inner)
		}
	}
	var value *float64
	if json.Unmarshal(text, &value) != nil || value == nil {
		return 0, false
	}
	return *value, true
}

func parseNumber(text json.RawMessage) (float64, bool) {
	digits, ok := asText(text)
	if !ok {
		return 0, false
	}
	value, err := strconv.ParseFloat(digits, 64)
	return value, err == nil
}

// Old versions of mongoexport write the offset without a colon.
var dateLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700"}

// asDate reads {"$date": "<RFC 3339>"} or {"$date": <milliseconds>}, those also as {"$numberLong": "..."}.
func asDate(text json.RawMessage) (time.Time, bool) {
	inner, ok := wrapped(text, "$date")
	if !ok {
		return time.Time{}, false
	}
	if written, ok := asText(inner); ok {
		return parseDate(written)
	}
	millis, ok := asNumber(inner)
	if !ok || !(millis >= minMillis && millis <= maxMillis) {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(millis)).UTC(), true
}

func parseDate(written string) (time.Time, bool) {
	for _, layout := range dateLayouts {
		at, err := time.Parse(layout, written)
		if at = at.UTC(); err == nil && at.Year() >= 1 && at.Year() <= 9999 {
			return at, true
		}
	}
	return time.Time{}, false
}

// The first and last millisecond of the years 1 to 9999, which is what a protobuf timestamp and RFC 3339 can hold.
const (
	minMillis = -62135596800000
	maxMillis = 253402300799999
)

// wrapped returns the value of an object whose only field is name.
func wrapped(text json.RawMessage, name string) (json.RawMessage, bool) {
	if len(text) == 0 || text[0] != '{' {
		return nil, false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil || len(fields) != 1 {
		return nil, false
	}
	inner, ok := fields[name]
	return inner, ok
}
