// Package history records what callers did and what they were answered: one JSON line for each request, with its start
// and end on one monotonic clock.
//
// It promises that an operation is in the record as soon as Add has returned, and that the times of all operations of
// one Writer can be compared. It does not promise to survive a crash of the process that writes it.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Kinds of operations, named like the calls of the API.
const (
	Rotate        = "rotate"
	GetRotation   = "get-rotation"
	GetKeys       = "get-keys"
	GetKey        = "get-key"
	AddKeys       = "add-keys"
	RestoreKey    = "restore-key"
	DisableKey    = "disable-key"
	EnableKey     = "enable-key"
	RemoveKey     = "remove-key"
	SetBinding    = "set-binding"
	RemoveBinding = "remove-binding"
	PausePool     = "pause-pool"
	ResumePool    = "resume-pool"
	CreatePool    = "create-pool"
	SetCredential = "set-credential"
	Report        = "report"
	RetryKey      = "retry-key"
)

// Phases of a run.
const (
	Setup = "setup" // before the first fault
	Main  = ""      // under faults
	Final = "final" // after everything was healed
)

// Outcomes of a Rotate, as in the API without prefix.
const (
	Rotated        = "ROTATED"
	AlreadyRotated = "ALREADY_ROTATED"
	Pending        = "PENDING"
)

// Verdicts of a Report, as in the API without prefix.
const (
	VerdictRotate   = "ROTATE"
	VerdictCoolDown = "COOL_DOWN"
	VerdictIgnore   = "IGNORE"
)

// OK is the Code of a request that succeeded.
const OK = "OK"

// Op is one request and its answer. A call that was repeated is several operations with the same Call.
type Op struct {
	ID      int64  `json:"id"`   // 1, 2, ... in the order of their ends
	Call    int64  `json:"call"` // the same for all repeats of one call
	Try     int    `json:"try,omitempty"`
	Last    bool   `json:"last,omitempty"` // the caller did not repeat it after this answer
	Client  string `json:"client"`
	Phase   string `json:"phase,omitempty"`
	Kind    string `json:"kind"`
	Replica string `json:"replica"` // address that was asked
	Start   int64  `json:"start"`   // ns since the epoch of the Writer
	End     int64  `json:"end"`

	Pool        string  `json:"pool,omitempty"`
	Key         string  `json:"key,omitempty"`
	Generation  int64   `json:"generation,omitempty"`
	RequestID   string  `json:"requestId,omitempty"`
	Trigger     string  `json:"trigger,omitempty"`
	Proxy       string  `json:"proxy,omitempty"`
	MinRevision int64   `json:"minRevision,omitempty"`
	Home        string  `json:"home,omitempty"` // of AddKeys: ACTIVE or BACKUP
	Added       []Added `json:"added,omitempty"`
	Slots       []Slot  `json:"slots,omitempty"`
	Unbind      bool    `json:"unbind,omitempty"`
	Status      int     `json:"status,omitempty"` // that a Report is about

	Code     string    `json:"code"`
	Reason   string    `json:"reason,omitempty"`
	Message  string    `json:"message,omitempty"`
	Outcome  string    `json:"outcome,omitempty"`
	Rotation *Rotation `json:"rotation,omitempty"`
	Current  *Key      `json:"current,omitempty"` // the key of the answer
	Keys     []Key     `json:"keys,omitempty"`    // of GetKeys
	Bound    bool      `json:"bound,omitempty"`
	Revision int64     `json:"revision,omitempty"`
	AsOf     time.Time `json:"asOf,omitzero"`
	Verdict  string    `json:"verdict,omitempty"` // of Report
	Rule     string    `json:"rule,omitempty"`
	Until    time.Time `json:"until,omitzero"`
	Incident bool      `json:"incident,omitempty"`
}

// Rotation is a rotation as a caller was told it.
type Rotation struct {
	ID         string `json:"id"`
	Pool       string `json:"pool"`
	Slot       string `json:"slot"`
	Generation int64  `json:"generation"`
	Old        string `json:"old"`
	New        string `json:"new"`
	Trigger    string `json:"trigger,omitempty"`
	RequestID  string `json:"requestId"`
	Holder     string `json:"holder,omitempty"`
	Revision   int64  `json:"revision"`
}

// Key is a key as a caller was told it, never with its secret.
type Key struct {
	ID         string `json:"id"`
	Home       string `json:"home,omitempty"`
	Slot       string `json:"slot,omitempty"`
	Generation int64  `json:"generation,omitempty"`
	Status     string `json:"status,omitempty"`
	Priority   int    `json:"priority,omitempty"`
	Pending    bool   `json:"pending,omitempty"`
	Revision   int64  `json:"revision,omitempty"`
	// SecretRight is false if the secret was asked for and was not the one the key was added with.
	SecretRight bool `json:"secretRight,omitempty"`
}

// Added is one key of an AddKeys with what happened to it.
type Added struct {
	ID       string `json:"id"`
	Result   string `json:"result,omitempty"` // ADDED, SAME, REFUSED, UNKNOWN; empty without an answer
	Refusal  string `json:"refusal,omitempty"`
	Home     string `json:"home,omitempty"`
	Revision int64  `json:"revision,omitempty"`
}

// Slot is a slot of a binding.
type Slot struct {
	Slot     string `json:"slot"`
	Priority int    `json:"priority"`
}

// Rotates reports whether the request was to rotate its key, as far as its caller knows: a trigger, or a report that was
// taken for one or whose verdict was not told.
func (o *Op) Rotates() bool {
	return o.Kind == Rotate || o.Kind == Report && (o.Verdict == VerdictRotate || o.Code != OK)
}

// Succeeded reports whether the request got its answer.
func (o *Op) Succeeded() bool { return o.Code == OK }

// NotApplied reports whether the answer promises that the request did nothing.
func (o *Op) NotApplied() bool {
	return o.Code != OK && o.Reason != "" && !o.Unknown()
}

// Unknown reports whether the request may have been applied, or may still be, although its caller was not told so.
//
// An error without a reason comes from the connection and not from the service: a request may have gone out before.
func (o *Op) Unknown() bool {
	switch o.Reason {
	case "", "OUTCOME_UNKNOWN", "CANCELLED", "UNSPECIFIED", "DEADLINE_EXCEEDED":
		return o.Code != OK
	}
	return false
}

// Took is how long the caller waited for the answer.
func (o *Op) Took() time.Duration { return time.Duration(o.End - o.Start) }

// Writer collects operations. It is safe for concurrent use.
type Writer struct {
	epoch time.Time

	mu  sync.Mutex // protects the following fields
	out *json.Encoder
	buf *bufio.Writer
	ops []Op
	err error
}

// NewWriter returns a Writer whose clock begins now. out may be nil.
func NewWriter(out io.Writer) *Writer {
	w := &Writer{epoch: time.Now()}
	if out != nil {
		w.buf = bufio.NewWriter(out)
		w.out = json.NewEncoder(w.buf)
	}
	return w
}

// Epoch is when the clock began.
func (w *Writer) Epoch() time.Time { return w.epoch }

// Now is the time on the Writer's clock.
func (w *Writer) Now() int64 { return int64(time.Since(w.epoch)) }

// Add gives op its id and records it.
func (w *Writer) Add(op Op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	op.ID = int64(len(w.ops)) + 1
	w.ops = append(w.ops, op)
	if w.out != nil && w.err == nil {
		w.err = w.out.Encode(&op)
	}
}

// Ops are the operations so far.
func (w *Writer) Ops() []Op {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ops)
}

// Flush writes out what was added, and returns the first error of writing.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.buf == nil {
		return nil
	}
	return errors.Join(w.err, w.buf.Flush())
}

// Read reads what a Writer wrote.
func Read(in io.Reader) ([]Op, error) {
	var ops []Op
	for d := json.NewDecoder(in); ; {
		var op Op
		err := d.Decode(&op)
		if errors.Is(err, io.EOF) {
			return ops, nil
		}
		if err != nil {
			return ops, fmt.Errorf("reading operation %d of the history: %w", len(ops)+1, err)
		}
		ops = append(ops, op)
	}
}
