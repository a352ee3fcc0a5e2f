package check

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/history"
)

// Bounds on what callers are put through.
const (
	// quick is how long a caller may wait beside what etcd's own election and its own time-outs cost.
	quick = time.Second
	// refuseWithin is how soon a write is refused when there is no quorum.
	refuseWithin = 2 * time.Second
	// tail is how long a fault may still be felt after all serve again: pauses between repeats.
	tail = 2 * time.Second
	// noticeable is how long it takes until a loss of the quorum has been noticed.
	noticeable = time.Second
	// deaf is for how many election time-outs more there is no leader where it may be the leader that hears nothing: the
	// others hear it until it resigns, which it does when it has heard of no majority from one check to the next.
	deaf = 2
)

// bounds say how long a call may take that meets a kind of fault, by the beginning of its name, and whether a caller
// may be left waiting by a replica that does not answer, or by a call of its that does not. Kinds that are not listed,
// those with which etcd does not work, are not bounded here.
var bounds = []struct {
	kind string
	hung bool
}{
	{"replica-kill", false}, {"crash-", false}, {"member-", false}, {"leader-", false}, {"compaction", true},
	{"replica-stop", true}, {"pause-", true}, {"replica-rolling", true}, {"upgrade", true}, {"replica-cut-off", true},
	{"client-", true}, {"peer-delay", true}, {"answer-", true}, {"lease-", false},
}

// call is all requests of one call.
type call struct {
	history.Op // the last one
	began      int64
	requests   []history.Op
}

// callers checks that calls fail, and take long, only where that is allowed.
func (r *run) callers() {
	for _, f := range r.Faults {
		r.Stats.Faults[f.Kind]++
	}
	for _, c := range r.calls() {
		r.Stats.Calls++
		if r.business(c.Op) {
			r.took(c)
			continue
		}
		r.Stats.Failed++
		if !r.excused(c) {
			r.add(Violation{Invariant: "callers", Pool: c.Pool, Key: c.Key, Ops: c.requests,
				Text: fmt.Sprintf("a %s that was repeated for %v came to %s %s, and no fault excuses that (%s)", c.Kind, time.Duration(c.End-c.began), c.Code, c.Reason, r.met(c.began, c.End))})
		}
	}
	byEnd := slices.SortedFunc(slices.Values(r.Ops), func(a, b history.Op) int { return cmp.Compare(a.End, b.End) })
	for _, f := range r.Faults {
		r.unavailability(f, byEnd)
		if r.QuorumLoss(f.Kind) && f.Kind != "no-space" && !r.Single { // a full etcd is noticed later, and slow
			r.withoutQuorum(f)
		}
	}
}

// calls joins requests to calls, and counts them.
func (r *run) calls() (calls []*call) {
	open := make(map[int64]*call)
	for _, op := range r.Ops {
		r.Stats.Requests[op.Kind]++
		if !op.Succeeded() {
			r.Stats.Errors[strings.TrimSpace(op.Code+" "+op.Reason)]++
		}
		c := open[op.Call]
		if c == nil {
			c = &call{began: op.Start}
			open[op.Call] = c
			calls = append(calls, c)
		}
		c.Op = op
		c.requests = append(c.requests, op)
	}
	return slices.DeleteFunc(calls, func(c *call) bool { return !c.Last })
}

// business reports whether a call was answered: with a success or with a refusal that waiting would not change.
func (r *run) business(op history.Op) bool {
	switch op.Code {
	case history.OK, "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS":
		return op.Reason != "REVISION_IN_FUTURE"
	}
	return op.Reason == "ROTATION_BOUND"
}

// excused reports whether a call may have failed: there was no quorum, or no space.
func (r *run) excused(c *call) bool {
	switch c.Code {
	case "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED":
	default:
		return false
	}
	return slices.ContainsFunc(r.Faults, func(f Fault) bool {
		return r.QuorumLoss(f.Kind) && r.since(f.Start) <= c.End && c.began <= r.since(f.served())+int64(tail)
	})
}

// met names the faults of a span of time.
func (r *run) met(from, to int64) string {
	var kinds []string
	for _, f := range r.Faults {
		if r.since(f.Start) <= to && from <= r.since(f.served())+int64(tail) {
			kinds = append(kinds, f.Kind+" "+f.Target)
		}
	}
	return strings.Join(kinds, ", ")
}

// took checks how long a call took that was answered.
func (r *run) took(c *call) {
	took := time.Duration(c.End - c.began)
	kind, limit, bounded := "", quick+r.Slack, true
	for _, f := range r.Faults {
		if r.since(f.Start) > c.End || c.began > r.since(f.served())+int64(tail) {
			continue
		}
		kind = f.Kind
		l, has := r.limit(f)
		limit, bounded = max(limit, l), bounded && has
	}
	r.Stats.Slowest[kind] = max(r.Stats.Slowest[kind], took)
	if r.Single && kind != "" {
		return // a lone node that is down costs its callers its restart
	}
	if bounded && took > limit && c.Phase == history.Main {
		r.add(Violation{Invariant: "callers", Pool: c.Pool, Key: c.Key, Ops: c.requests,
			Text: fmt.Sprintf("a %s took %v, the bound is %v (%s)", c.Kind, took, limit, r.met(c.began, c.End))})
	}
}

func (r *run) limit(f Fault) (time.Duration, bool) {
	for _, b := range bounds {
		if strings.HasPrefix(f.Kind, b.kind) {
			limit := quick + r.Election + r.Slack
			if b.hung {
				limit += r.Try
			}
			if f.Kind == "member-cut-in" {
				limit += deaf * r.Election
			}
			return limit, true
		}
	}
	return 0, false
}

// unavailability measures the longest time around a fault in which no rotation succeeded although somebody asked.
func (r *run) unavailability(f Fault, byEnd []history.Op) {
	from, to := r.since(f.Start), r.since(f.served())
	last, longest := from, int64(0)
	for _, op := range byEnd {
		if op.Kind != history.Rotate || !op.Succeeded() || op.End < from {
			continue
		}
		longest = max(longest, op.End-last)
		if last = op.End; last > to {
			break
		}
	}
	r.Stats.Unavailable[f.Kind] = max(r.Stats.Unavailable[f.Kind], time.Duration(longest))
}

// withoutQuorum: replicas that run refuse writes soon, and serve reads.
func (r *run) withoutQuorum(f Fault) {
	from, to := r.since(f.Start)+int64(noticeable), r.since(f.End)
	for _, op := range r.Ops {
		if op.Start < from || op.End > to {
			continue
		}
		if limit := refuseWithin + r.Slack; op.Took() > limit {
			r.wrong("callers", op, "with %s a %s took %v, the bound is %v", f.Kind, op.Kind, op.Took(), limit)
		}
		if op.Kind == history.GetKeys && op.MinRevision == 0 && !op.Succeeded() {
			r.wrong("callers", op, "with %s keys could not be read: %s %s", f.Kind, op.Code, op.Reason)
		}
		if !op.Succeeded() && op.Code != "UNAVAILABLE" && !r.business(op) && !(op.Reason == "STORAGE_FULL") {
			r.wrong("callers", op, "with %s a %s was answered %s %s", f.Kind, op.Kind, op.Code, op.Reason)
		}
	}
}

// secrets: no canary is anywhere.
func (r *run) secrets() {
	for _, rev := range r.Recording {
		for _, c := range rev.Changes {
			r.search(fmt.Sprintf("revision %d: %s", rev.Revision, c.Key), []byte(c.Key), c.Value)
		}
	}
	for _, op := range r.Ops {
		r.search(fmt.Sprintf("operation %d", op.ID), []byte(op.Message), []byte(op.Reason))
	}
	for _, name := range r.Files {
		content, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // etcd takes old snapshots away, also since they were listed
		}
		if err != nil {
			r.add(Violation{Invariant: "I10", Text: fmt.Sprintf("cannot be searched for secrets: %v", err)})
		}
		r.search(name, content)
	}
}

func (r *run) search(where string, texts ...[]byte) {
	for _, canary := range r.Canaries {
		for _, text := range texts {
			if bytes.Contains(text, []byte(canary)) {
				r.add(Violation{Invariant: "I10", Text: where + " holds a secret"})
				return
			}
		}
	}
	for _, text := range texts {
		r.searchMinted(where, text)
	}
}

// searchMinted looks for secrets that were made up in the run: each begins as keys do, and all are as long.
func (r *run) searchMinted(where string, text []byte) {
	const length = 35
	for at := 0; len(r.minted) > 0; at++ {
		next := bytes.Index(text[at:], []byte("sk-"))
		if next < 0 {
			return
		}
		if at += next; at+length <= len(text) && r.minted[string(text[at:at+length])] {
			r.add(Violation{Invariant: "I10", Text: where + " holds a secret that was minted"})
			return
		}
	}
}
