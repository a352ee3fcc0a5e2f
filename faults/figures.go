package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/faults/nemesis"
)

// figures are what a part is described by. Durations are in milliseconds.
type figures struct {
	Rotations int                       `json:"rotations"` // in etcd
	Calls     map[string]*callFigures   `json:"calls"`     // by kind
	Faults    map[string]*faultFigures  `json:"faults"`    // by kind
	Reasons   map[string]map[string]int `json:"reasons"`   // of calls that failed in the end, by fault and reason
}

// callFigures are about the calls of one kind. A call that was repeated counts once, with its last answer.
type callFigures struct {
	Calls    int            `json:"calls"`
	OK       int            `json:"ok"`
	Requests int            `json:"requests"` // repeats included
	Failed   map[string]int `json:"failed"`   // calls, by code and reason
	Refused  map[string]int `json:"refused"`  // requests that were repeated, by code and reason
}

// faultFigures are about the faults of one kind.
type faultFigures struct {
	Count int `json:"count"`
	// Unavailable is the longest time without an answer to a rotation that succeeded, with the pause that is normal.
	Unavailable int64 `json:"unavailableMs"`
	// Slowest is the longest time a call took from its first request to its answer.
	Slowest int64 `json:"slowestCallMs"`
	Failed  int   `json:"failedCalls"` // UNAVAILABLE, DEADLINE_EXCEEDED or ABORTED after all repeats
	Served  int64 `json:"servedMs"`    // longest time from the heal until all replicas served
}

func answer(op *history.Op) string {
	if op.Reason == "" {
		return op.Code
	}
	return op.Code + " " + op.Reason
}

// outage reports whether a call failed for want of the service, and not because of what it asked for.
func outage(op *history.Op) bool {
	return op.Code == "UNAVAILABLE" || op.Code == "DEADLINE_EXCEEDED" || op.Code == "ABORTED"
}

func figure(h *history.Writer, events []nemesis.Event) *figures {
	f := &figures{Calls: make(map[string]*callFigures), Faults: make(map[string]*faultFigures), Reasons: make(map[string]map[string]int)}
	ops := h.Ops()
	f.count(ops)
	calls := spans(ops)
	for _, e := range events {
		f.fault(h, e, calls)
	}
	return f
}

func (f *figures) count(ops []history.Op) {
	for i := range ops {
		op := &ops[i]
		c := f.Calls[op.Kind]
		if c == nil {
			c = &callFigures{Failed: make(map[string]int), Refused: make(map[string]int)}
			f.Calls[op.Kind] = c
		}
		c.Requests++
		switch {
		case !op.Last:
			c.Refused[answer(op)]++
			continue
		case op.Succeeded():
			c.OK++
		default:
			c.Failed[answer(op)]++
		}
		c.Calls++
	}
}

// span is one call with all its repeats.
type span struct {
	start, end int64
	last       *history.Op
}

// spans are all calls that ended, in the order of their ends.
func spans(ops []history.Op) []span {
	start := make(map[int64]int64)
	var calls []span
	for i := range ops {
		op := &ops[i]
		if at, has := start[op.Call]; !has || op.Start < at {
			start[op.Call] = op.Start
		}
		if op.Last {
			calls = append(calls, span{start[op.Call], op.End, op})
		}
	}
	slices.SortFunc(calls, func(a, b span) int { return cmp.Compare(a.end, b.end) })
	return calls
}

// fault adds what callers saw of one fault: those who began between its start and when all served again.
func (f *figures) fault(h *history.Writer, e nemesis.Event, calls []span) {
	k := f.Faults[e.Kind]
	if k == nil {
		k = new(faultFigures)
		f.Faults[e.Kind] = k
	}
	k.Count++
	k.Served = max(k.Served, e.Served.Sub(e.End).Milliseconds())
	from, to := int64(e.Start.Sub(h.Epoch())), int64(e.Served.Sub(h.Epoch()))
	answered := from
	for _, c := range calls {
		if c.last.Kind == history.Rotate && c.last.Succeeded() && c.end > from && answered <= to {
			k.Unavailable = max(k.Unavailable, ms(c.end-answered))
			answered = c.end
		}
		if c.start < from || c.start > to {
			continue
		}
		k.Slowest = max(k.Slowest, ms(c.end-c.start))
		if outage(c.last) {
			k.Failed++
			f.reason(e.Kind, answer(c.last))
		}
	}
}

func (f *figures) reason(kind, answer string) {
	if f.Reasons[kind] == nil {
		f.Reasons[kind] = make(map[string]int)
	}
	f.Reasons[kind][answer]++
}

func ms(ns int64) int64 { return time.Duration(ns).Milliseconds() }

func (f *figures) print(out io.Writer) {
	fmt.Fprintf(out, "%d rotations\n\n", f.Rotations)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CALLS\tALL\tOK\tERRORS")
	for _, kind := range slices.Sorted(maps.Keys(f.Calls)) {
		c := f.Calls[kind]
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", kind, c.Calls, c.OK, list(c.Failed))
		if len(c.Refused) > 0 {
			fmt.Fprintf(w, "\t\t\trepeated after %s\n", list(c.Refused))
		}
	}
	_ = w.Flush()
	fmt.Fprintln(out)
	fmt.Fprintln(w, "FAULTS\tTIMES\tNO ROTATION FOR\tSLOWEST CALL\tSERVES AFTER HEAL\tFAILED CALLS")
	for _, kind := range slices.Sorted(maps.Keys(f.Faults)) {
		k := f.Faults[kind]
		fmt.Fprintf(w, "%s\t%d\t%d ms\t%d ms\t%d ms\t%s\n", kind, k.Count, k.Unavailable, k.Slowest, k.Served, list(f.Reasons[kind]))
	}
	_ = w.Flush()
}

func list(counts map[string]int) string {
	text := ""
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%d %s", counts[what], what)
	}
	return text
}
