package check

import (
	"fmt"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/history"
)

// answers checks what callers were told of rotations: one rotation for a life, the one on record, and nothing that was
// denied before it happened.
func (r *run) answers() {
	byRequest := make(map[string][]history.Op)
	winners := make(map[string]string)
	for _, op := range r.Ops {
		switch {
		case op.Kind == history.Rotate || op.Kind == history.Report:
			byRequest[requestOf(op.Pool, op.Key, op.RequestID)] = append(byRequest[requestOf(op.Pool, op.Key, op.RequestID)], op)
			if op.Rotates() {
				r.rotateAnswer(op, winners)
			}
		case op.Kind == history.GetRotation && op.Succeeded():
			r.onRecord(op)
		case op.Kind == history.GetKeys && op.Succeeded():
			r.fresh(op)
		}
	}
	r.recordsHaveRequests(byRequest)
	r.stillOpen(byRequest)
}

func requestOf(pool, key, request string) string { return pool + "/" + key + "/" + request }

func (r *run) wrong(invariant string, op history.Op, format string, args ...any) {
	r.add(Violation{Invariant: invariant, Pool: op.Pool, Key: op.Key, Revision: op.Revision, Text: fmt.Sprintf(format, args...), Ops: []history.Op{op}})
}

// rotateAnswer checks one answer to a trigger.
func (r *run) rotateAnswer(op history.Op, winners map[string]string) {
	switch {
	case op.Outcome == history.Pending && op.Succeeded():
		r.pendingAnswer(op)
	case op.Kind == history.Report && op.Succeeded() && op.Rotation == nil:
		r.wrong("I6", op, "told to rotate and neither of a rotation nor that one waits")
	case op.Succeeded():
		rot := r.onRecord(op)
		if rot == nil {
			return
		}
		life := lifeOf(op.Pool, op.Key, rot.generation)
		mine := rot.RequestID == op.RequestID
		if mine != (op.Outcome == history.Rotated) {
			r.wrong("I4", op, "the answer is %s, the record is of request %q", op.Outcome, rot.RequestID)
		}
		if other := winners[life]; op.Outcome == history.Rotated && other != "" && other != op.RequestID {
			r.wrong("I4", op, "requests %q and %q were both told that they rotated %s", other, op.RequestID, life)
		} else if op.Outcome == history.Rotated {
			winners[life] = op.RequestID
		}
		r.rightLife(op, rot)
	default:
		r.refusal(op)
	}
}

// onRecord finds the record of the rotation an answer names and compares them.
func (r *run) onRecord(op history.Op) *rotation {
	got := op.Rotation
	if got == nil {
		r.wrong("I6", op, "a success without a rotation")
		return nil
	}
	rot := r.world.rotated[got.ID]
	if rot == nil {
		r.wrong("I6", op, "rotation %s was answered and is not on record", got.ID)
		return nil
	}
	want := history.Rotation{
		ID: rot.ID, Pool: rot.pool, Slot: rot.Slot, Generation: rot.generation, Old: rot.old, New: rot.NewKeyID, Trigger: got.Trigger,
		RequestID: rot.RequestID, Holder: rot.Holder, Revision: rot.revision,
	}
	if *got != want {
		r.wrong("I4", op, "the record is %+v, the answer %+v", want, *got)
	}
	if op.Key != rot.old || op.Pool != rot.pool {
		r.wrong("I4", op, "the answer is a rotation of %s/%s", rot.pool, rot.old)
	}
	if op.Generation != 0 && op.Generation != rot.generation {
		r.wrong("I5", op, "a trigger for generation %d was answered with the rotation of generation %d", op.Generation, rot.generation)
	}
	if op.Revision < rot.revision {
		r.wrong("read", op, "the answer is from revision %d, its rotation of revision %d", op.Revision, rot.revision)
	}
	return rot
}

// answerGrace is how much later than its commit a revision may have been recorded. More only weakens the check.
const answerGrace = 3 * time.Second

// window are the revisions an answer may be about: from what was surely there when it was asked to what may have been
// there when it was answered.
func (r *run) window(op history.Op) (from, to int64) {
	to = r.world.committedBefore(op.End + int64(answerGrace))
	return r.world.committedBefore(op.Start), max(to, op.Revision)
}

// rightLife: a trigger that names no life is about the one in service, or the last one.
func (r *run) rightLife(op history.Op, rot *rotation) {
	if op.Generation != 0 || rot.RequestID == op.RequestID {
		return
	}
	from, to := r.window(op)
	for _, e := range r.world.keyBetween(op.Pool+"/"+op.Key, from, to) {
		if e.home == "active" && e.generation == rot.generation || e.home != "active" && e.home != "backup" && r.lastBefore(op.Pool+"/"+op.Key, to).generation >= rot.generation {
			return
		}
	}
	r.wrong("I5", op, "a trigger without generation was answered with the rotation of generation %d, which was over long before", rot.generation)
}

func (r *run) lastBefore(id string, revision int64) *rotation {
	last := &rotation{}
	for _, rot := range r.world.byOld[id] {
		if rot.revision <= revision {
			last = rot
		}
	}
	return last
}

// pendingAnswer: the rotation really waited at some moment of the call.
func (r *run) pendingAnswer(op history.Op) {
	from, to := r.window(op)
	for _, e := range r.world.keyBetween(op.Pool+"/"+op.Key, from, to) {
		if e.pending != 0 && (op.Generation == 0 || op.Generation == e.pending) {
			return
		}
	}
	r.wrong("I6", op, "told PENDING, but no such rotation waited between revisions %d and %d", from, to)
}

// refusal: what a refusal says was so at some moment of the call.
func (r *run) refusal(op history.Op) {
	from, to := r.window(op)
	keys := r.world.keyBetween(op.Pool+"/"+op.Key, from, to)
	any := func(holds func(keyEntry) bool) bool {
		for _, e := range keys {
			if holds(e) {
				return true
			}
		}
		return false
	}
	ok := true
	switch op.Reason {
	case "POOL_PAUSED":
		ok = false
		for _, p := range r.world.poolBetween(op.Pool, from, to) {
			ok = ok || p.paused
		}
	case "ROTATION_BOUND":
		ok = r.atBound(op)
	case "KEY_DISABLED":
		ok = any(func(e keyEntry) bool { return e.disabled })
	case "KEY_IN_STOCK":
		ok = any(func(e keyEntry) bool { return e.home == "backup" })
	case "KEY_NOT_FOUND":
		ok = any(func(e keyEntry) bool { return e.home == "" })
	case "ROTATION_NOT_FOUND":
		ok = op.Generation == 0 || r.world.ended[lifeOf(op.Pool, op.Key, op.Generation)] == nil || r.world.ended[lifeOf(op.Pool, op.Key, op.Generation)].revision > from
	case "POOL_NOT_FOUND", "POOL_DELETING", "GENERATION_IN_FUTURE", "RECORD_UNREADABLE", "SECRET_UNREADABLE", "SCHEMA_TOO_NEW", "INVALID_ARGUMENT", "UNSPECIFIED":
		ok = false // the workload gives no cause for these
	}
	if !ok {
		r.wrong("I6", op, "refused with %s %s, which was so at no moment between revisions %d and %d", op.Code, op.Reason, from, to)
	}
}

// recordsHaveRequests: each rotation, and each that waits, was asked for by somebody who was not told that nothing
// happened. A request that got several answers may have been applied by any that leaves it open: one who was told
// PENDING, or not told, has not been told "not applied".
func (r *run) recordsHaveRequests(byRequest map[string][]history.Op) {
	for _, rot := range r.world.rotated {
		r.askedFor(byRequest, rot.pool, rot.old, rot.RequestID, rot.generation, rot.revision, "rotation "+rot.ID)
	}
	for _, parks := range r.world.parks {
		for _, p := range parks {
			r.askedFor(byRequest, p.pool, p.key, p.request, p.generation, p.revision, "a rotation that waits")
		}
	}
}

func (r *run) askedFor(byRequest map[string][]history.Op, pool, key, request string, generation, revision int64, what string) {
	ops := byRequest[requestOf(pool, key, request)]
	denied := false
	for _, op := range ops {
		if op.Start > r.world.seenAt(revision) || op.Generation != 0 && op.Generation != generation {
			continue
		}
		if !op.NotApplied() && !(op.Succeeded() && op.Verdict == history.VerdictIgnore) {
			return
		}
		denied = true
	}
	text := fmt.Sprintf("%s of generation %d carries request %q, which nobody had made for that life", what, generation, request)
	invariant := "I5"
	if denied {
		invariant, text = "I6", fmt.Sprintf("%s of generation %d carries request %q, whose callers were told that it was not applied", what, generation, request)
	}
	r.add(Violation{Invariant: invariant, Pool: pool, Key: key, Revision: revision, Text: text, Ops: ops})
}

// stillOpen: every outcome a caller was not told is known in the end.
func (r *run) stillOpen(byRequest map[string][]history.Op) {
	if r.Healed.IsZero() {
		return
	}
	for _, ops := range byRequest {
		last := ops[len(ops)-1]
		known := false
		for _, op := range ops {
			known = known || op.Rotation != nil
		}
		if !known && last.Unknown() {
			r.add(Violation{Invariant: "I6", Pool: last.Pool, Key: last.Key, Text: fmt.Sprintf("the outcome of request %q was never told", last.RequestID), Ops: ops})
		}
	}
	r.finals()
}

// finals: after everything was healed each pool was rotated once more.
func (r *run) finals() {
	done, pools := make(map[string]bool), make(map[string]bool)
	for _, op := range r.Ops {
		pools[op.Pool] = true
		if op.Phase == history.Final && op.Kind == history.Rotate && op.Outcome == history.Rotated && strings.HasPrefix(op.Client, "final-") {
			done[op.Pool] = true
		}
	}
	for pool := range pools {
		if !done[pool] {
			r.add(Violation{Invariant: "I9", Pool: pool, Text: "no rotation succeeded after everything was healed"})
		}
	}
}
