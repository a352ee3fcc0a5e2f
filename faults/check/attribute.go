package check

import (
	"fmt"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/history"
)

// causes says which calls make which transitions, besides rotations.
var causes = map[string][]string{
	"pool.created":    {history.CreatePool},
	"pool.paused":     {history.PausePool},
	"pool.resumed":    {history.ResumePool},
	"pool.credential": {history.SetCredential},
	"key.retried":     {history.RetryKey},
	"key.added":       {history.AddKeys},
	"key.removed":     {history.RemoveKey},
	"key.restored":    {history.RestoreKey},
	"key.enabled":     {history.EnableKey},
	"key.disabled":    {history.DisableKey},
	"slot.closing":    {history.RemoveKey},
	"slot.reopened":   {history.RemoveKey},
	"binding.set":     {history.SetBinding, history.RemoveKey},
	"binding.removed": {history.RemoveBinding, history.RemoveKey},
}

// attribute: every transition an operator makes was asked for by a caller who was told so, or who does not know. One who
// was told that nothing happened, or that somebody else did it, was told wrong. And an addition that was told is there.
func (r *run) attribute() {
	ops := make(map[string][]history.Op) // by kind and subject
	added := make(map[string]bool)       // additions on record, by key and revision
	for _, op := range r.Ops {
		for _, subject := range subjectsOf(op) {
			ops[op.Kind+" "+subject] = append(ops[op.Kind+" "+subject], op)
		}
	}
	for _, e := range r.world.events {
		kind := strings.TrimSuffix(strings.TrimPrefix(e.Type, "dev.rotatord."), ".v1")
		if kind == "key.added" {
			added[fmt.Sprintf("%s/%s/%d", e.pool, e.Data.KeyID, e.revision)] = true
		}
		if causes[kind] != nil && e.revision > r.Recording[0].Revision {
			r.attributed(kind, e, ops)
		}
	}
	for _, op := range r.Ops {
		for _, a := range op.Added {
			if a.Result == "ADDED" && !added[fmt.Sprintf("%s/%s/%d", op.Pool, a.ID, a.Revision)] {
				r.wrong("I6", op, "key %s was answered as added at revision %d and is not on record there", a.ID, a.Revision)
			}
		}
	}
}

// subjectsOf is what an operation is about, as events name it.
func subjectsOf(op history.Op) (subjects []string) {
	switch op.Kind {
	case history.AddKeys:
		for _, a := range op.Added {
			subjects = append(subjects, op.Pool+"/keys/"+a.ID)
		}
		return subjects
	case history.SetBinding, history.RemoveBinding:
		return []string{op.Pool + "/bindings/" + op.Proxy}
	case history.CreatePool, history.PausePool, history.ResumePool, history.SetCredential:
		return []string{op.Pool + "/pools/" + op.Pool}
	}
	return []string{op.Pool + "/keys/" + op.Key}
}

// lasting is how long after its caller went away a request may still be carried out: by a replica that was stopped, or
// by an etcd that was.
const lasting = 30 * time.Second

// attributed finds the call behind an event.
func (r *run) attributed(kind string, e event, ops map[string][]history.Op) {
	seen := r.world.seenAt(e.revision)
	var all []history.Op
	for _, cause := range causes[kind] {
		subject := e.pool + "/" + e.Subject
		steps := cause == history.RemoveKey && kind != "key.removed" // of a removal, whatever came of it
		if steps && e.Data.KeyID != "" {
			subject = e.pool + "/keys/" + e.Data.KeyID
		} else if steps && e.Data.Slot != "" {
			return // an unbinding names the slot, and its key may be another by now
		}
		asked := ops[cause+" "+subject]
		for i := range asked {
			op := &asked[i]
			if op.Start <= seen && (claims(op, e) || (steps || op.Unknown()) && seen <= op.End+int64(lasting)) {
				return
			}
		}
		all = append(all, nearest(asked, seen)...)
	}
	r.add(Violation{Invariant: "I6", Pool: e.pool, Key: e.Data.KeyID, Revision: e.revision, Ops: all,
		Text: fmt.Sprintf("%s of %s happened, but nobody who asked for it was told so", kind, e.Subject)})
}

// nearest are the last few operations before a moment.
func nearest(ops []history.Op, at int64) []history.Op {
	for len(ops) > 0 && ops[len(ops)-1].Start > at {
		ops = ops[:len(ops)-1]
	}
	return ops[max(0, len(ops)-3):]
}

// claims reports whether a caller was told that its call made the event.
func claims(op *history.Op, e event) bool {
	if op.Kind != history.AddKeys {
		return op.Succeeded() && op.Revision == e.revision
	}
	for _, a := range op.Added {
		if a.ID == e.Data.KeyID && (a.Result == "UNKNOWN" || a.Result == "ADDED" && a.Revision == e.revision) {
			return true
		}
	}
	return false
}
