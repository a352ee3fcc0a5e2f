package check

import (
	"time"

	"github.com/rotatord/rotatord/faults/history"
)

// What reports of failures may do: rotate a life as a trigger does, let it rest, begin and end incidents.

// cooled is a key that begins to rest, or rests for longer, in one life.
func (s *step) cooled(id string, is, was *record) string {
	s.Stats.CoolDowns++
	over := was.Status != "KEY_STATUS_HEALTHY" && !was.StatusUntil.IsZero() && len(s.events) == 1 && !s.events[0].Time.Before(was.StatusUntil)
	switch {
	case was.Status == "KEY_STATUS_DISABLED" || was.Status == "KEY_STATUS_EXHAUSTED":
		return ""
	case is.StatusUntil.IsZero() || !over && !is.StatusUntil.After(was.StatusUntil):
		return ""
	case len(s.events) != 1:
		return "key.cooled_down"
	}
	d := s.events[0].Data
	if d.Status != is.Status || !d.StatusUntil.Equal(is.StatusUntil) || d.Generation != is.create || d.Slot != is.Slot {
		s.violate("I8", id, "the event says %+v, the key is %s until %v, of generation %d", d, is.Status, is.StatusUntil, is.create)
	}
	s.world.rests[id] = append(s.world.rests[id], rest{s.events[0], is.StatusUntil, is.StatusReason})
	s.inIncident(id, d.RequestID, s.events[0].Time)
	return "key.cooled_down"
}

// rest is a cool-down that was written.
type rest struct {
	event
	until  time.Time
	reason string
}

// incident is one that begins: never in another one.
func (s *step) incident(pool string, is, was *record) string {
	s.Stats.Incidents++
	if was.Incident != nil && is.Incident.Since.Before(was.Incident.Until) {
		s.violate("incident", pool+"/", "an incident begins at %v in another one, which lasts until %v", is.Incident.Since, was.Incident.Until)
	}
	if s.is("health/"+pool) != nil || s.is("health/"+pool+"/") != nil {
		s.violate("incident", pool+"/", "what was noted of bad keys is there still after the incident began")
	}
	return "pool.incident_began"
}

// inIncident: while an incident goes on, as the one who decided read the clock, no report changes a key. One that waited for
// stock before is finished.
func (s *step) inIncident(id, request string, decided time.Time) {
	pool := id[:len(id)-len(keyOf(id))-1]
	in := s.was("pools/" + pool)
	if in == nil || in.Incident == nil || decided.Before(in.Incident.Since) || !decided.Before(in.Incident.Until) || s.was("pending/"+id) != nil {
		return
	}
	if s.reported[requestOf(pool, keyOf(id), request)] {
		s.violate("incident", id, "report %q changed the key at %v, in the incident from %v to %v", request, decided, in.Incident.Since, in.Incident.Until)
	}
}

// reports checks what reporters were told, and that each rest was asked for by a report of that life.
func (r *run) reports() {
	asked := make(map[string][]history.Op)
	for _, op := range r.Ops {
		if op.Kind == history.Report || op.Kind == history.Rotate {
			id := requestOf(op.Pool, op.Key, op.RequestID)
			asked[id] = append(asked[id], op)
		}
		if op.Kind == history.Report && op.Succeeded() {
			r.told(op)
		}
	}
	for _, rests := range r.world.rests {
		for _, c := range rests {
			if c.reason == "bound" { // of a trigger that was refused
				continue
			}
			r.askedFor(asked, c.pool, c.Data.KeyID, c.Data.RequestID, c.Data.Generation, c.revision, "a rest")
		}
	}
}

// told checks one answer to a report; those that say ROTATE are checked as those to triggers are.
func (r *run) told(op history.Op) {
	r.Stats.Verdicts[op.Verdict]++
	from, to := r.window(op)
	if op.Revision > 0 { // what changes nothing may be decided from a state as old as the answer says
		from = min(from, op.Revision)
	}
	id := op.Pool + "/" + op.Key
	switch {
	case op.Incident != (op.Rule == "incident"):
		r.wrong("incident", op, "the rule is %s, and incident %v", op.Rule, op.Incident)
	case op.Incident:
		for _, p := range r.world.poolBetween(op.Pool, from, to) {
			if p.incident != nil && r.since(p.incident.Since) <= op.End && op.Start <= r.since(p.incident.Until) {
				return
			}
		}
		r.wrong("incident", op, "told of an incident, and there was none between revisions %d and %d", from, to)
	case op.Verdict == history.VerdictCoolDown:
		for _, c := range r.world.rests[id] {
			if c.until.Equal(op.Until) && (op.Generation == 0 || op.Generation == c.Data.Generation) {
				return
			}
		}
		if r.since(op.Until) > op.End {
			r.wrong("I6", op, "told that the key rests until %v, which is not on record", op.Until)
		}
	case op.Verdict == history.VerdictIgnore && op.Rule == "late":
		for _, e := range r.world.keyBetween(id, from, to) {
			if e.home != "active" || e.generation != op.Generation {
				return
			}
		}
		r.wrong("I5", op, "told that it was late, and generation %d was in service all the time", op.Generation)
	case op.Verdict == history.VerdictIgnore && op.Rule == "disabled":
		for _, e := range r.world.keyBetween(id, from, to) {
			if e.disabled {
				return
			}
		}
		r.wrong("I6", op, "told that the key was disabled, which it was at no moment between revisions %d and %d", from, to)
	case op.Verdict == "" || op.Verdict == "UNSPECIFIED":
		r.wrong("I6", op, "a report without a verdict")
	}
}

func keyOf(id string) string {
	for i := range id {
		if id[i] == '/' {
			return id[i+1:]
		}
	}
	return ""
}
