// Package check holds a run of the fault test against the promises: what was recorded of every etcd revision, and what
// every caller was told.
//
// It shares no code with the service. What it cannot judge it does not pass: an answer that names a revision the
// recording has not, a value it cannot read, a linearizability check that runs out of time are violations.
//
// It does not judge how the run was made; too little traffic before a fault, or a cluster that does not come back, are
// for the harness to notice.
package check

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/internal/recorder"
)

// Fault is something that was done to the system under test.
type Fault struct {
	Kind   string    `json:"kind"`
	Target string    `json:"target"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	Served time.Time `json:"served"` // all replicas and members serve again; zero: at End
}

// Hold is a span in which a holder stood still with a lock, at a step of a rotation.
type Hold struct {
	Replica    string // name
	Pool, Key  string
	Generation int64
	Start, End time.Time
}

// Input is a run.
type Input struct {
	Epoch     time.Time // of the history's clock
	Ops       []history.Op
	Recording []recorder.Revision // the first is the state at the start
	Recorder  []string            // what the recorder complained about
	Faults    []Fault
	// QuorumLoss says which kinds of faults leave callers without a quorum. Default: those that begin with "quorum".
	QuorumLoss func(kind string) bool `json:"-"`
	Single     bool                   // there is one replica: callers may find nobody to refuse them
	Held       []Hold                 // locks whose holders stood still with them
	Healed     time.Time              // no fault since; zero: there was none at all

	Upstream []Deed    // in their order, if there was one
	Minted   []string  // secrets that it was asked for: they may be nowhere
	Ended    time.Time // the recording holds all that was written before; zero: and after

	Canaries []string // texts that may be nowhere
	Files    []string // logs and dumps of metrics to search for them

	Locks      string        // "", "normal", "off" or "always-yes"
	SessionTTL time.Duration // default: 10 s
	Election   time.Duration // etcd's election time-out; default: 1 s
	Try        time.Duration // how long a caller waits for one replica; default: 2.5 s
	// Slack is added to bounds on time, for a busy machine. Default: 0.
	Slack time.Duration
	// Patience bounds the linearizability check of one life. Default: one minute.
	Patience time.Duration
}

// Violation is a broken promise, with what is needed to look into it.
type Violation struct {
	Invariant string       `json:"invariant"` // I1 to I10, linearizability, callers and others
	Text      string       `json:"text"`
	Pool      string       `json:"pool,omitempty"`
	Key       string       `json:"key,omitempty"`
	Revision  int64        `json:"revision,omitempty"`
	Ops       []history.Op `json:"ops,omitempty"`
}

// Report is the outcome of a check.
type Report struct {
	Violations []Violation `json:"violations"`
	More       int         `json:"more,omitempty"` // violations that are not listed
	Stats      Stats       `json:"stats"`
}

// Stats are the figures of a run.
type Stats struct {
	Revisions   int                      `json:"revisions"`
	Rotations   int                      `json:"rotations"`
	Pendings    int                      `json:"pendings"`
	Phases      int                      `json:"phases"` // changes of one
	Mints       int                      `json:"mints"`  // calls to make a key, and keys made before
	Revoking    int                      `json:"revoking"`
	Revoked     int                      `json:"revoked"`
	Purged      int                      `json:"purged"`
	CoolDowns   int                      `json:"coolDowns"`
	Incidents   int                      `json:"incidents"`
	Verdicts    map[string]int           `json:"verdicts"` // of reports
	Requests    map[string]int           `json:"requests"` // by kind
	Calls       int                      `json:"calls"`
	Failed      int                      `json:"failedCalls"` // given up without an answer
	Errors      map[string]int           `json:"errors"`      // requests, by code and reason
	Lives       int                      `json:"livesLinearized"`
	Reads       int                      `json:"readsCompared"`
	Faults      map[string]int           `json:"faults"`
	Schemas     map[int]int              `json:"schemas"`     // puts, by the schema they carry
	Slowest     map[string]time.Duration `json:"slowest"`     // call, by the kind of fault it met; "" for none
	Unavailable map[string]time.Duration `json:"unavailable"` // longest time without any success of a write, by fault
}

// maxViolations bounds the report: what is wrong once is wrong often.
const maxViolations = 100

func (r *Report) add(v Violation) {
	if len(r.Violations) >= maxViolations {
		r.More++
		return
	}
	r.Violations = append(r.Violations, v)
}

// OK reports whether nothing was violated.
func (r *Report) OK() bool { return len(r.Violations) == 0 }

// Broken lists the invariants that were violated, each once.
func (r *Report) Broken() (names []string) {
	for _, v := range r.Violations {
		if !slices.Contains(names, v.Invariant) {
			names = append(names, v.Invariant)
		}
	}
	slices.Sort(names)
	return names
}

// WriteJSON writes everything.
func (r *Report) WriteJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// Write writes the violations for a person.
func (r *Report) Write(out io.Writer) {
	for _, v := range r.Violations {
		fmt.Fprintf(out, "%s %s/%s revision %d: %s\n", v.Invariant, v.Pool, v.Key, v.Revision, v.Text)
		for _, op := range v.Ops {
			line, _ := json.Marshal(op)
			fmt.Fprintf(out, "    %s\n", line)
		}
	}
	if r.More > 0 {
		fmt.Fprintf(out, "and %d more\n", r.More)
	}
	if r.Stats.Phases > 0 {
		fmt.Fprintf(out, "%d changes of phase, %d keys at the upstream or asked for, %d to be revoked, %d revoked, %d purged, %d rests, %d incidents, reports %v\n",
			r.Stats.Phases, r.Stats.Mints, r.Stats.Revoking, r.Stats.Revoked, r.Stats.Purged, r.Stats.CoolDowns, r.Stats.Incidents, r.Stats.Verdicts)
	}
	fmt.Fprintf(out, "%d revisions, %d rotations, %d waited for stock, %d calls, %d given up, %d lives linearized, %d reads compared, %d violations\n",
		r.Stats.Revisions, r.Stats.Rotations, r.Stats.Pendings, r.Stats.Calls, r.Stats.Failed, r.Stats.Lives, r.Stats.Reads, len(r.Violations)+r.More)
}

// run is a check under way.
type run struct {
	Input
	*Report
	world    *world
	reported map[string]bool // requests of reports
	minted   map[string]bool // secrets, as in Minted
}

// Run checks a run.
func Run(in Input) *Report {
	r := &run{Input: in.withDefaults(), Report: &Report{Stats: Stats{
		Verdicts: make(map[string]int), Requests: make(map[string]int), Errors: make(map[string]int), Faults: make(map[string]int), Schemas: make(map[int]int),
		Slowest: make(map[string]time.Duration), Unavailable: make(map[string]time.Duration),
	}}, reported: make(map[string]bool), minted: make(map[string]bool)}
	for _, op := range in.Ops {
		if op.Kind == history.Report {
			r.reported[requestOf(op.Pool, op.Key, op.RequestID)] = true
		}
	}
	for _, secret := range in.Minted {
		r.minted[secret] = true
	}
	for _, v := range in.Recorder {
		r.add(Violation{Invariant: "recorder", Text: v})
	}
	r.replay()
	r.answers()
	r.reports()
	r.upstream()
	r.attribute()
	r.linearize()
	r.callers()
	r.secrets()
	return r.Report
}

func (in Input) withDefaults() Input {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&in.SessionTTL, 10*time.Second)
	set(&in.Election, time.Second)
	set(&in.Try, 2500*time.Millisecond)
	set(&in.Patience, time.Minute)
	if in.QuorumLoss == nil {
		in.QuorumLoss = func(kind string) bool { return strings.HasPrefix(kind, "quorum") }
	}
	return in
}

// since is a moment on the history's clock.
func (in *Input) since(t time.Time) int64 { return int64(t.Sub(in.Epoch)) }
