package check

import (
	"fmt"
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/rotatord/rotatord/faults/history"
)

// The life of a key as a sequential object: it is in service, a rotation of it may wait, and it ends in one rotation or
// by removal. What callers did to one life and were told of it must be in some order, in agreement with the clock, that
// this object allows. Lives are independent of each other, so each is checked by itself.

// phase is where a life stands.
type phase int

const (
	serving phase = iota
	waiting       // a rotation waits for stock, by request
	ended         // rotated, by request
	gone          // removed
)

// lifeState is the state of a life.
type lifeState struct {
	phase   phase
	request string
	id      string // of the rotation
}

// deed is something done to a life. Its answer is part of it: a deed whose caller was not told may also have done
// nothing.
type deed struct {
	kind     string // of the operation
	request  string
	unknown  bool
	parks    bool   // the recording shows that this request began to wait
	outcome  string // of a rotate
	rotation string // id
	by       string // whose request is on record
	op       int64  // its number in the history
}

var lifeModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{lifeState{}} },
	Step: func(state, input, _ any) []any {
		var next []any
		for _, s := range input.(deed).from(state.(lifeState)) {
			next = append(next, s)
		}
		return next
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, _ any) string {
		d := input.(deed)
		return fmt.Sprintf("#%d %s %s -> %s %s by %s, unknown %v", d.op, d.kind, d.request, d.outcome, d.rotation, d.by, d.unknown)
	},
}

// from lists the states a deed may lead to; none if its answer is impossible.
func (d deed) from(s lifeState) []lifeState {
	switch {
	case d.kind == history.Rotate && d.unknown:
		return d.maybe(s, lifeState{phase: waiting, request: d.request}, s.phase == serving) // or it is made at once
	case d.kind == history.RemoveKey && d.unknown:
		return d.maybe(s, lifeState{phase: gone}, s.phase == serving || s.phase == waiting)
	case d.unknown: // enabled or disabled: what waits is cancelled
		return d.maybe(s, lifeState{}, s.phase == waiting)
	case d.kind == history.Rotate || d.kind == history.GetRotation:
		return d.told(s)
	case s.phase == ended || s.phase == gone: // nothing else can be done to it
		return nil
	case d.kind == history.RemoveKey:
		return []lifeState{{phase: gone}}
	}
	return []lifeState{{}}
}

// maybe is a deed that may have happened, if it could.
func (d deed) maybe(s, then lifeState, could bool) []lifeState {
	if could {
		return []lifeState{s, then}
	}
	return []lifeState{s}
}

// told is what a caller was told of the life's rotation. A rotation that waits is made at any time, in the name of the
// request that waits.
func (d deed) told(s lifeState) []lifeState {
	made := lifeState{phase: ended, request: d.by, id: d.rotation}
	switch {
	case d.outcome == history.Pending && s.phase == serving && d.parks:
		return []lifeState{{phase: waiting, request: d.request}}
	case d.outcome == history.Pending:
		return d.only(s, s.phase == waiting)
	case d.rotation == "" && d.kind == history.GetRotation:
		return d.only(s, s.phase != ended)
	case d.rotation == "":
		return d.only(s, s.phase == gone)
	case s.phase == serving && d.kind == history.Rotate && d.by == d.request, s.phase == waiting && s.request == d.by:
		return []lifeState{made}
	}
	return d.only(s, s == made)
}

func (d deed) only(s lifeState, possible bool) []lifeState {
	if possible {
		return []lifeState{s}
	}
	return nil
}

// never is when deeds whose outcome is not known may still happen.
const never = int64(1) << 61

// reduce leaves out what says nothing that another operation does not say as well: the time it takes to find an order
// grows fast with the operations under way at once, and a storm has dozens that were told the same.
//
//   - Of those told of one rotation by somebody else, or that the life is gone, only the first to return counts: a life
//     that has ended stays so.
//   - Of those told that nothing is on record, only the last to begin counts, for the same reason.
//   - Of those told that it waits, one whose time encloses another's says no more than that one.
func reduce(ops []porcupine.Operation) []porcupine.Operation {
	first, last := make(map[deed]int), make(map[deed]int)
	for i, op := range ops {
		said := op.Input.(deed).said()
		if f, there := first[said]; !there || op.Return < ops[f].Return {
			first[said] = i
		}
		if l, there := last[said]; !there || op.Call > ops[l].Call {
			last[said] = i
		}
	}
	var kept []porcupine.Operation
	for i, op := range ops {
		d := op.Input.(deed)
		switch said := d.said(); {
		case d.acts():
		case d.rotation != "" && first[said] != i:
			continue
		case d.rotation == "" && d.outcome == "" && d.kind == history.Rotate && first[said] != i:
			continue
		case d.rotation == "" && d.outcome == "" && d.kind == history.GetRotation && last[said] != i:
			continue
		case d.outcome == history.Pending && encloses(ops, i):
			continue
		}
		kept = append(kept, op)
	}
	return kept
}

// acts reports whether a deed may have changed something.
func (d deed) acts() bool {
	return d.unknown || d.parks || d.kind != history.Rotate && d.kind != history.GetRotation || d.rotation != "" && d.by == d.request
}

// said is what a deed that changed nothing was told.
func (d deed) said() deed {
	if d.acts() {
		return d
	}
	said := deed{outcome: d.outcome, rotation: d.rotation, by: d.by}
	if d.rotation != "" {
		said.outcome = ""
	} else if d.outcome == "" {
		said.kind = d.kind // a Rotate and a GetRotation mean different things by it
	}
	return said
}

// encloses reports whether another operation that was told the same lies within the time of the i-th.
func encloses(ops []porcupine.Operation, i int) bool {
	said := ops[i].Input.(deed).said()
	for j, other := range ops {
		if j == i || other.Input.(deed).said() != said || other.Call < ops[i].Call || other.Return > ops[i].Return {
			continue
		}
		if same := other.Call == ops[i].Call && other.Return == ops[i].Return; !same || j < i {
			return true
		}
	}
	return false
}

// linearize checks each life.
func (r *run) linearize() {
	lives := r.deeds()
	model := lifeModel.ToModel()
	for _, life := range slices.Sorted(maps.Keys(lives)) {
		r.Stats.Lives++
		result := porcupine.CheckOperationsTimeout(model, reduce(lives[life]), r.Patience)
		if result == porcupine.Ok {
			continue
		}
		v := Violation{Invariant: "linearizability", Key: life, Text: fmt.Sprintf("the answers about this life have no order (porcupine says %s)", result)}
		for _, o := range lives[life] {
			v.Ops = append(v.Ops, r.Ops[o.Input.(deed).op-1])
		}
		r.add(v)
	}
}

// deeds are all operations by the life they are about.
func (r *run) deeds() map[string][]porcupine.Operation {
	lives := make(map[string][]porcupine.Operation)
	number := make(map[string]int) // clients
	for i, op := range r.Ops {
		life, d, about := r.deed(op)
		if !about {
			continue
		}
		if _, known := number[op.Client]; !known {
			number[op.Client] = len(number)
		}
		d.kind, d.request, d.op = op.Kind, op.RequestID, int64(i+1)
		if op.Kind == history.Report { // that was to rotate, as a trigger is
			d.kind = history.Rotate
		}
		d.parks = r.parked(op)
		end := op.End
		if d.unknown {
			end = never
		}
		lives[life] = append(lives[life], porcupine.Operation{ClientId: number[op.Client], Input: d, Call: op.Start, Return: end})
		if d.parks && d.rotation != "" { // one call may have had it wait, not heard of it, found stock, and made it
			lives[life] = append(lives[life], porcupine.Operation{
				ClientId: number[op.Client], Input: deed{kind: history.Rotate, request: d.request, unknown: true, op: d.op}, Call: op.Start, Return: end,
			})
		}
	}
	return lives
}

// deed says what an operation did to which life. It is about none if it did nothing, or nothing that anybody saw.
func (r *run) deed(op history.Op) (life string, d deed, about bool) {
	id := op.Pool + "/" + op.Key
	switch {
	case !op.Rotates() && op.Kind != history.GetRotation:
		return r.operatorsDeed(op)
	case op.Succeeded() && op.Rotation != nil:
		return lifeOf2(id, op.Rotation.Generation), deed{outcome: op.Outcome, rotation: op.Rotation.ID, by: op.Rotation.RequestID}, true
	case op.Succeeded():
		generation := op.Generation
		if generation == 0 { // the life that waits now: an earlier one, in which its request waited, may be over
			generation = r.waitingIn(op)
		}
		if generation == 0 {
			generation = r.lifeOfRequest(op)
		}
		return lifeOf2(id, generation), deed{outcome: history.Pending}, generation != 0
	case op.Reason == "ROTATION_NOT_FOUND" && op.Generation != 0:
		return lifeOf2(id, op.Generation), deed{}, r.world.lived(id, op.Generation)
	case op.Rotates() && op.Unknown():
		generation := r.lifeOfRequest(op)
		return lifeOf2(id, generation), deed{unknown: true}, generation != 0
	}
	return "", d, false
}

// parked reports whether an operation's request began to wait, in any life of its key: requests are not used twice.
func (r *run) parked(op history.Op) bool {
	return slices.ContainsFunc(r.world.parks[op.Pool+"/"+op.Key], func(p park) bool { return p.request == op.RequestID })
}

// waitingIn is the life a PENDING answer to a trigger without generation is about; 0 if that cannot be told.
func (r *run) waitingIn(op history.Op) (generation int64) {
	from, to := r.window(op)
	for _, e := range r.world.keyBetween(op.Pool+"/"+op.Key, from, to) {
		if e.pending != 0 && generation != 0 && e.pending != generation {
			return 0
		}
		generation = max(generation, e.pending)
	}
	return generation
}

// lifeOfRequest is the life in which a request left a trace, 0: none.
func (r *run) lifeOfRequest(op history.Op) int64 {
	id := op.Pool + "/" + op.Key
	_, to := r.window(op)
	begun := never
	if op.Outcome == history.Pending {
		begun = op.Revision // the life it waits in
	}
	if op.Unknown() || op.Outcome == history.Pending {
		to = never // it may be made later
	}
	for _, rot := range r.world.byOld[id] {
		if rot.revision <= to && rot.generation <= begun && rot.RequestID == op.RequestID && (op.Generation == 0 || op.Generation == rot.generation) {
			return rot.generation
		}
	}
	for _, p := range r.world.parks[id] {
		if p.generation <= begun && p.request == op.RequestID && (op.Generation == 0 || op.Generation == p.generation) {
			return p.generation
		}
	}
	return 0
}

// operatorsDeed is about the life that the recording shows to have been in service.
func (r *run) operatorsDeed(op history.Op) (life string, d deed, about bool) {
	id := op.Pool + "/" + op.Key
	switch op.Kind {
	case history.EnableKey, history.DisableKey:
		if op.Succeeded() && op.Current != nil {
			return lifeOf2(id, op.Current.Generation), d, true
		}
	case history.RemoveKey:
	default:
		return "", d, false
	}
	from, to := r.window(op)
	for _, e := range r.world.keyBetween(id, from, to) {
		removed := r.world.removed[lifeOf2(id, e.generation)]
		switch {
		case e.home != "active":
		case op.Kind == history.RemoveKey && op.Succeeded() && removed == op.Revision:
			return lifeOf2(id, e.generation), d, true
		case op.Unknown() && (op.Kind != history.RemoveKey || removed != 0):
			return lifeOf2(id, e.generation), deed{unknown: true}, true
		}
	}
	return "", d, false
}
