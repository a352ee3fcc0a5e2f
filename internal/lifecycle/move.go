package lifecycle

import (
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// Call is a call to an upstream.
type Call string

// The calls.
const (
	CallMint   Call = "mint"
	CallFind   Call = "find"
	CallVerify Call = "verify"
	CallRevoke Call = "revoke"
)

// Result is what came of a call.
type Result int

// The results.
const (
	Unknown Result = iota // it may have taken effect
	Done                  // it has; of a find: the key is there
	Missing               // of a find: the key is not there
	Nothing               // it surely has not and will not
	Bad                   // of a verification: the upstream refuses the key
	Unsent                // it was not sent at all, and nothing is wrong with it: the upstream is left alone, or there was no room
)

// Answer is what the upstream said, and to what.
type Answer struct {
	Call    Call
	Result  Result
	Sealed  pool.Sealed // the secret that came with it, zero if none did
	Problem string      // without secrets
	RetryAt time.Time   // of one that was not sent: when the upstream may be asked again; zero: that is not known

	// The call was made for this phase of this generation under this intent; to nothing else is it an answer.
	phase      pool.Phase
	generation int64
	intent     string
}

// answers reports whether the answer is about what the record is doing now.
func (a *Answer) answers(p pool.Phase, w *pool.Work) bool {
	return a != nil && w != nil && a.phase == p && a.generation == w.Wanted() && a.intent == w.Intent
}

// View is what a handler may know besides its record: the world as of the record's revision, and its worker's own doing.
type View struct {
	Pool      *pool.Pool
	Slot      *pool.Active // the key that holds a retired key's slot now; nil: none
	SlotKnown bool         // the slot exists
	Claim     string       // the key that claims the record's secret in the pool
	Taken     string       // the key that claims the secret of the answer; "" if none does
	Elsewhere string       // another pool that has a key with the same secret
	Behind    bool         // that is not known as of the record's revision
	Provider  bool         // the pool's provider can be called here
	Answer    *Answer      // to the call this worker has just made; nil: none
	Fresh     string       // the intent this worker has written and not carried out yet
	Limits    Limits
}

// Limits are the times and numbers of the phases.
type Limits struct {
	Call      time.Duration // one call takes at most this
	Margin    time.Duration // and others leave it this much longer, for clocks that differ
	Attempts  int           // calls for one generation before it is given up; one that was not sent is none
	FirstWait time.Duration // before the second; doubles
	LongWait  time.Duration // at the most
	Recheck   time.Duration // when what stands in the way may be gone
}

// DefaultLimits give up after some 37 minutes.
func DefaultLimits() Limits {
	return Limits{
		Call: 5 * time.Second, Margin: time.Second, Attempts: 12, FirstWait: 2 * time.Second, LongWait: 10 * time.Minute,
		Recheck: 30 * time.Second,
	}
}

// backoff is the wait after an attempt, counted from 1.
func (l Limits) backoff(attempt int) time.Duration {
	return min(l.FirstWait<<min(max(attempt-1, 0), 20), l.LongWait)
}

// action is what a handler wants.
type action int

const (
	skip   action = iota // the phase has done its work for this generation
	rest                 // nothing to do before a time
	ask                  // a call to the upstream is due
	change               // a transition
)

// Move is what a handler wants: at most one transition.
type Move struct {
	action action
	result string    // one of a few fixed words, for the metrics
	until  time.Time // of rest; zero: until the record or the pool changes
	call   Call      // of ask
	stage  string    // of ask, and of a change whose intent is carried out next: the stage of the lock it needs
	next   pool.Record
	txn    *pool.Txn // of change: what is done besides putting next; the event too
	fresh  string    // the intent that next announces and this worker is to carry out
}

func skipped() Move { return Move{action: skip, result: "observed_generation_match"} }

func resting(result string, until time.Time) Move {
	return Move{action: rest, result: result, until: until}
}

func asking(call Call, stage string) Move {
	return Move{action: ask, result: string(call), call: call, stage: stage}
}

// calls reports whether the upstream is to be asked, now or when this move is written.
func (m Move) calls() bool { return m.action == ask || m.fresh != "" }

// changing is a transition of rec to next, nil if the record goes. It carries everything that every transition of this
// package compares.
func changing(v View, rec, next pool.Record, result string) Move {
	m := Move{action: change, result: result, next: next, txn: &pool.Txn{If: append(pool.AtHome(rec), pool.Same(v.Pool))}}
	if next != nil {
		m.txn.Put = []pool.Record{next}
	}
	if next == nil || next.Ref() != rec.Ref() {
		m.txn.Delete = []pool.Ref{rec.Ref()}
	}
	return m
}

// telling adds the event of a transition.
func (m Move) telling(kind pool.EventType, rec pool.Record, home pool.Home, to pool.Phase, reason string, now time.Time) Move {
	ref := rec.Ref()
	m.txn.Event = &pool.Event{
		Type: kind, Pool: ref.Pool, Subject: "keys/" + ref.Name, Time: now, Source: "lifecycle", Reason: reason,
		Key: ref.Name, Home: home, Phase: to,
	}
	if r, ok := rec.(*pool.Retired); ok {
		m.txn.Event.Generation, m.txn.Event.Slot = r.Generation, r.Slot
	}
	return m
}

// intending says that next announces a call that this worker makes once it is written.
func (m Move) intending(stage, intent string) Move {
	m.stage, m.fresh = stage, intent
	return m
}

// intent gives work the id of a call that is about to be made, and the time it takes: nobody else looks into it before.
func intent(w *pool.Work, l Limits, now time.Time) string {
	w.Intent, w.Attempts, w.Problem = pool.NewID(), w.Attempts+1, ""
	w.NotBefore = now.Add(l.Call + l.Margin)
	return w.Intent
}

// clone copies work for a change within its phase.
func clone(w *pool.Work) *pool.Work {
	next := *w
	return &next
}

// putOff is the work after an attempt that has failed. A call that was not sent was none: it waits for as long as the upstream
// is left alone, and no longer.
func putOff(w *pool.Work, a *Answer, l Limits, now time.Time) *pool.Work {
	next := clone(w)
	announced := a.Call == CallMint || a.Call == CallRevoke // those were counted with their intent
	switch unsent := a.Result == Unsent; {
	case unsent && announced:
		next.Attempts--
	case !unsent && !announced:
		next.Attempts++
	}
	next.Problem, next.NotBefore = a.Problem, now.Add(l.backoff(next.Attempts))
	if a.RetryAt.After(now) {
		next.NotBefore = a.RetryAt.UTC()
	}
	if announced && (a.Result == Nothing || a.Result == Unsent) {
		next.Intent = ""
	}
	return next
}
