package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rotatord/rotatord/bench/seed"
	"github.com/rotatord/rotatord/bench/stat"
)

// report is what was measured.
type report struct {
	Time          string     `json:"time"` // of each measurement
	Rounds        int        `json:"rounds"`
	CPUs          int        `json:"cpus"`
	Go            string     `json:"go"`
	Series        []*series  `json:"series"`
	Rows          []*row     `json:"rows"`
	Errors        []string   `json:"errors"`
	RawShape      seed.Shape `json:"rawTransaction"`
	RotationShape seed.Shape `json:"rotationTransaction"`

	byName map[string]*series
	out    io.Writer
}

// series is one measurement in all its rounds.
type series struct {
	Name     string     `json:"name"`
	Measures []*measure `json:"rounds"`
}

// row is a figure that is compared: with its limit, or with what is wanted.
type row struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"` // of the rounds
	stat.Spread
	*target
	Worst bool `json:"worst"` // the worst value counts, not the median
	// Compared are the medians of the figure and its limit, if the values are ratios of the two.
	Compared *compared `json:"compared,omitempty"`
}

type compared struct {
	Figure float64 `json:"figure"` // calls a second, or nanoseconds
	Limit  float64 `json:"limit"`
	show   func(float64) string
}

// target is what a row should be.
type target struct {
	AtMost bool    `json:"atMost"` // smaller is better
	Needed float64 `json:"needed"`
	Goal   float64 `json:"goal"`
}

func atLeast(needed, goal float64) *target { return &target{false, needed, goal} }
func atMost(needed, goal float64) *target  { return &target{true, needed, goal} }

func (t *target) met(value, bound float64) bool {
	if t.AtMost {
		return value <= bound
	}
	return value >= bound
}

func (r *row) verdict() string {
	switch {
	case r.target == nil:
		return ""
	case r.met(r.counted(), r.Goal):
		return "goal"
	case r.met(r.counted(), r.Needed):
		return "met"
	}
	return "MISSED"
}

// counted is the value that is held against the target.
func (r *row) counted() float64 {
	switch {
	case !r.Worst:
		return r.Median
	case r.AtMost:
		return r.Max
	}
	return r.Min
}

func newReport(out io.Writer, o *options) *report {
	return &report{Time: o.time.String(), Rounds: o.rounds, CPUs: runtime.NumCPU(), Go: runtime.Version(), byName: make(map[string]*series), out: out}
}

// add notes the measurement of one round.
func (r *report) add(name string, m *measure) {
	s := r.byName[name]
	if s == nil {
		s = &series{Name: name}
		r.byName[name] = s
		r.Series = append(r.Series, s)
	}
	s.Measures = append(s.Measures, m)
}

// row notes a figure, if it was measured.
func (r *report) row(name, unit string, values []float64, t *target) {
	if len(values) > 0 {
		r.Rows = append(r.Rows, &row{Name: name, Unit: unit, Values: values, Spread: stat.SpreadOf(values), target: t})
	}
}

// compare notes the ratios of a figure to its limit, round by round, if both were measured.
func (r *report) compare(name string, show func(float64) string, figures, limits []float64, t *target) {
	n := min(len(figures), len(limits))
	if n == 0 {
		return
	}
	ratios := make([]float64, n)
	for i := range ratios {
		ratios[i] = figures[i] / limits[i]
	}
	r.row(name, "", ratios, t)
	r.Rows[len(r.Rows)-1].Compared = &compared{stat.SpreadOf(figures).Median, stat.SpreadOf(limits).Median, show}
}

func perSecond(v float64) string { return fmt.Sprintf("%.0f/s", v) }
func duration(v float64) string  { return short(time.Duration(v)) }

// worstRow notes a figure that was measured and of which the worst value counts.
func (r *report) worstRow(name, unit string, values []float64, t *target) {
	r.row(name, unit, values, t)
	r.Rows[len(r.Rows)-1].Worst = true
}

func (r *report) fail(what string, err error) {
	r.Errors = append(r.Errors, fmt.Sprintf("%s: %v", what, err))
	fmt.Fprintf(r.out, "NOT MEASURED %s: %v\n", what, err)
}

func (r *report) missed() bool {
	for _, row := range r.Rows {
		if row.verdict() == "MISSED" {
			return true
		}
	}
	return false
}

// values takes one value of each round of a series.
func (r *report) values(name string, of func(*measure) float64) (values []float64) {
	if s := r.byName[name]; s != nil {
		for _, m := range s.Measures {
			values = append(values, of(m))
		}
	}
	return values
}

func rate(m *measure) float64 { return m.Rate }
func p50(m *measure) float64  { return float64(m.P50) }

// best is the best value of several series in each round.
func best(lists [][]float64, better func(...float64) float64) (values []float64) {
	for _, list := range lists {
		for i, v := range list {
			if i == len(values) {
				values = append(values, v)
			}
			values[i] = better(values[i], v)
		}
	}
	return values
}

// print shows everything: first the measurements, then what is compared.
func (r *report) print() {
	fmt.Fprintf(r.out, "\nMedians of %d rounds of %s, %d CPUs, %s. [lowest..highest]; CPU and writes are for each call.\nOTHERS is the share of the processors that went to programs not measured: with more than a few percent figures mean little.\n\n", r.Rounds, r.Time, r.CPUs, r.Go)
	w := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEASURED\tCALLS/S\t\tP50\tP99\tP99.9\tCPU (us)\tWRITES\tOTHERS")
	for _, s := range r.Series {
		s.print(w)
	}
	_ = w.Flush()
	fmt.Fprintln(r.out)
	fmt.Fprintln(w, "COMPARED\tFIGURE\tLIMIT\tMEDIAN\t\tNEEDED\tGOAL\t")
	for _, row := range r.Rows {
		row.print(w)
	}
	_ = w.Flush()
	r.printShapes()
	for _, e := range r.Errors {
		fmt.Fprintln(r.out, "NOT MEASURED", e)
	}
}

func (r *report) printShapes() {
	if r.RawShape.Puts == 0 || r.RotationShape.Puts == 0 {
		return
	}
	fmt.Fprintf(r.out, "\nA rotation's commit is %v in etcd, the raw transaction %v.\n", r.RotationShape, r.RawShape)
	if !r.RotationShape.Like(r.RawShape) {
		fmt.Fprintln(r.out, "THEY DIFFER: the limit is not the rotation's transaction; seed.Raw has to follow pool.rotationTxn.")
	}
}

func (s *series) print(w io.Writer) {
	of := func(value func(*measure) float64) stat.Spread {
		var values []float64
		for _, m := range s.Measures {
			values = append(values, value(m))
		}
		return stat.SpreadOf(values)
	}
	calls := of(rate)
	percentile := func(d func(*measure) time.Duration) string {
		return short(time.Duration(of(func(m *measure) float64 { return float64(d(m)) }).Median))
	}
	fmt.Fprintf(w, "%s\t%.0f\t[%.0f..%.0f]\t%s\t%s\t%s\t%s\t%.2f\t%.0f%%\n", s.Name, calls.Median, calls.Min, calls.Max,
		percentile(func(m *measure) time.Duration { return m.P50 }), percentile(func(m *measure) time.Duration { return m.P99 }),
		percentile(func(m *measure) time.Duration { return m.P999 }), s.costs(), of(func(m *measure) float64 { return m.Writes }).Median, 100*of(func(m *measure) float64 { return m.Others }).Median)
}

// costs are the medians of the processor times.
func (s *series) costs() string {
	var costs []string
	for _, program := range []string{progEtcd, progReplica, progEmpty, progBench} {
		var values []float64
		for _, m := range s.Measures {
			if cost, has := m.Cost[program]; has {
				values = append(values, cost)
			}
		}
		if len(values) > 0 {
			costs = append(costs, fmt.Sprintf("%s %.0f", program, stat.SpreadOf(values).Median))
		}
	}
	return strings.Join(costs, ", ")
}

// String shows one round.
func (m *measure) String() string {
	return fmt.Sprintf("%8.0f/s  p50 %-8s p99 %-8s p99.9 %s", m.Rate, short(m.P50), short(m.P99), short(m.P999))
}

// short shows three digits of a duration.
func short(d time.Duration) string {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit).String()
}

func (r *row) print(w io.Writer) {
	spread := ""
	if len(r.Values) > 1 {
		spread = fmt.Sprintf("[%s..%s]", digits(r.Min), digits(r.Max))
	}
	wanted, beside := "\t", "\t"
	if c := r.Compared; c != nil {
		beside = c.show(c.Figure) + "\t" + c.show(c.Limit)
	}
	if r.target != nil {
		sign := ">= "
		if r.AtMost {
			sign = "<= "
		}
		wanted = sign + digits(r.Needed) + "\t" + sign + digits(r.Goal)
	}
	fmt.Fprintf(w, "%s\t%s\t%s%s\t%s\t%s\t%s\n", r.Name, beside, digits(r.Median), r.Unit, spread, wanted, r.verdict())
}

// digits shows a number with as many digits as are of use.
func digits(v float64) string {
	switch {
	case math.Abs(v) >= 100, v == math.Trunc(v) && math.Abs(v) >= 10:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// write writes everything as JSON; without a name it does nothing.
func (r *report) write(file string) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return errors.Join(errors.New("the figures cannot be written as JSON"), err)
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
