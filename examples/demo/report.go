package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// check counts, shows the counts and compares them with what was promised.
func (d *demo) check(ctx context.Context) error {
	found, err := d.etcd.read(ctx)
	if err != nil {
		return err
	}
	for _, p := range d.pools {
		if p.after, err = found.count(p.name); err != nil {
			return err
		}
	}
	violations, revision, err := d.etcd.verdict(ctx)
	if err != nil {
		return err
	}
	d.say("who got what")
	d.keyTable()
	d.say("the count, read from etcd with %s", d.etcd.reader())
	d.countTable()
	d.answerLines()
	fmt.Fprintf(d.out, "   every revision of etcd up to %d was checked from outside: %d broke a promise\n", revision, len(violations))
	failures := slices.Concat(d.broken, d.failures(), violations)
	if text, err := d.ctl(ctx, "doctor"); err != nil {
		failures = append(failures, err.Error())
	} else {
		fmt.Fprintf(d.out, "   rotatorctl doctor: %s\n", lastLine(text))
	}
	return d.conclude(failures)
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

func (d *demo) conclude(failures []string) error {
	fmt.Fprintln(d.out)
	for _, f := range failures {
		fmt.Fprintln(d.out, "FAILED:", f)
	}
	if len(failures) > 0 {
		return errBroken
	}
	fmt.Fprintf(d.out, "OK: %s triggers, %d keys, %d rotations; every caller has the one answer of its key. It took %s.\n",
		thousands(d.triggers*len(d.targets)), len(d.targets), d.sum(func(p *poolState) int { return p.rotations() }), time.Since(d.began).Round(100*time.Millisecond))
	return nil
}

func (p *poolState) rotations() int   { return p.after.Rotations - p.before.Rotations }
func (p *poolState) backupsUsed() int { return p.before.Backups - p.after.Backups }

func (d *demo) sum(of func(*poolState) int) (n int) {
	for _, p := range d.pools {
		n += of(p)
	}
	return n
}

// keysOf are the targets of a pool.
func (d *demo) keysOf(p *poolState) []*target {
	return slices.DeleteFunc(slices.Clone(d.targets), func(t *target) bool { return t.pool != p })
}

// outcomes are the distinct results the callers of a key were given: which rotation, and which key to use now.
func (t *target) outcomes() []string {
	var out []string
	for _, a := range t.answers {
		if a.err == nil {
			out = append(out, a.response.GetRotation().GetId()+" "+a.response.GetKey().GetId())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (t *target) count(o rotatorv1.Outcome) (n int) {
	for _, a := range t.answers {
		if a.err == nil && a.response.GetOutcome() == o {
			n++
		}
	}
	return n
}

// rotation is the one of the first caller that has one.
func (t *target) rotation() *rotatorv1.Rotation {
	for _, a := range t.answers {
		if r := a.response.GetRotation(); r != nil {
			return r
		}
	}
	return nil
}

func word(value fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(value.String(), prefix), "_", " "))
}

// table writes aligned columns; the first is a title and the others are numbers or names.
func (d *demo) table(rows [][]string) {
	tabs := tabwriter.NewWriter(d.out, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tabs, "   "+strings.Join(row, "\t"))
	}
	_ = tabs.Flush()
}

func (d *demo) keyTable() {
	rows := [][]string{{"KEY", "ITS PLACE WAS TAKEN BY", "FIRST TRIGGER", "MADE AT", "CALLERS", "DISTINCT OUTCOMES"}}
	for _, t := range d.targets {
		r := t.rotation()
		rows = append(rows, []string{t.key.GetId(), r.GetNewKeyId(), word(r.GetTrigger(), "TRIGGER_"), r.GetHolder(),
			thousands(len(t.answers)), strconv.Itoa(len(t.outcomes()))})
	}
	d.table(rows)
}

func (d *demo) countTable() {
	header := []string{""}
	for _, p := range d.pools {
		header = append(header, strings.ToUpper(p.name))
	}
	rows := [][]string{append(header, "ALL")}
	add := func(title string, of func(*poolState) int) {
		row := []string{title}
		for _, p := range d.pools {
			row = append(row, thousands(of(p)))
		}
		rows = append(rows, append(row, thousands(d.sum(of))))
	}
	add("triggers sent", func(p *poolState) int { return len(d.keysOf(p)) * d.triggers })
	add("rotations made", (*poolState).rotations)
	add("backups used", (*poolState).backupsUsed)
	add("active keys before", func(p *poolState) int { return p.before.Active })
	add("active keys after", func(p *poolState) int { return p.after.Active })
	add("bindings that dangle", func(p *poolState) int { return p.after.Dangling })
	rows = append(rows, d.distinctRow())
	d.table(rows)
}

// distinctRow is the worst key's, not a sum.
func (d *demo) distinctRow() []string {
	row, worst := []string{"distinct outcomes per key"}, 0
	for _, p := range d.pools {
		most := 0
		for _, t := range d.keysOf(p) {
			most = max(most, len(t.outcomes()))
		}
		row = append(row, strconv.Itoa(most))
		worst = max(worst, most)
	}
	return append(row, strconv.Itoa(worst))
}

// answerLines sums the answers up over all keys.
func (d *demo) answerLines() {
	byOutcome := map[string]int{}
	var times []time.Duration
	repeated := 0
	for _, a := range d.answers() {
		times = append(times, a.took)
		if a.calls > 1 {
			repeated++
		}
		if a.err != nil {
			byOutcome["no answer"]++
		} else {
			byOutcome[word(a.response.GetOutcome(), "OUTCOME_")]++
		}
	}
	slices.Sort(times)
	fmt.Fprintln(d.out)
	d.table([][]string{
		{"answers", listed(byOutcome)},
		{"asked again, elsewhere", thousands(repeated) + " callers"},
		{"time to the answer", fmt.Sprintf("p50 %s, p99 %s", percentile(times, 50), percentile(times, 99))},
	})
	fmt.Fprintln(d.out)
}

func (d *demo) answers() (all []answer) {
	for _, t := range d.targets {
		all = append(all, t.answers...)
	}
	return all
}

// listed writes counts with their names, the largest first.
func listed(by map[string]int) string {
	var names, out []string
	for name := range by {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return by[b] - by[a] })
	for _, name := range names {
		out = append(out, thousands(by[name])+" "+name)
	}
	return strings.Join(out, ", ")
}

// percentile of sorted times, by nearest rank.
func percentile(times []time.Duration, p int) time.Duration {
	if len(times) == 0 {
		return 0
	}
	return times[max(0, (len(times)*p+99)/100-1)].Round(100 * time.Microsecond)
}

func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// failures are the promises that the counts break.
func (d *demo) failures() (out []string) {
	for _, p := range d.pools {
		keys := len(d.keysOf(p))
		for _, c := range []struct {
			what      string
			got, want int
		}{
			{"rotations made", p.rotations(), keys},
			{"backups used", p.backupsUsed(), keys},
			{"active keys after", p.after.Active, p.before.Active},
			{"bindings that dangle", p.after.Dangling, 0},
		} {
			if c.got != c.want {
				out = append(out, fmt.Sprintf("pool %s, %s: %d, and it should be %d", p.name, c.what, c.got, c.want))
			}
		}
	}
	for _, t := range d.targets {
		out = append(out, t.failures()...)
	}
	return out
}

func (t *target) failures() (out []string) {
	if n := len(t.outcomes()); n != 1 {
		out = append(out, fmt.Sprintf("key %s has %d distinct outcomes, and it should be 1: %v", t.key.GetId(), n, t.outcomes()))
	}
	if n := t.count(rotatorv1.Outcome_OUTCOME_ROTATED); n != 1 {
		out = append(out, fmt.Sprintf("of the callers for key %s %d were told that theirs made the rotation, and it should be 1", t.key.GetId(), n))
	}
	lost := 0
	for _, a := range t.answers {
		if a.err == nil {
			continue
		}
		if lost++; lost == 1 {
			out = append(out, fmt.Sprintf("a caller for key %s got no answer: %v", t.key.GetId(), a.err))
		}
	}
	if lost > 1 {
		out = append(out, fmt.Sprintf("and %d more callers for key %s", lost-1, t.key.GetId()))
	}
	return out
}
