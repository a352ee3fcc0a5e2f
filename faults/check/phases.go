package check

import (
	"encoding/json"
	"reflect"
	"strings"
	"time"

	"github.com/rotatord/rotatord/internal/recorder"
)

// The phases of a key before it is in stock and after it was retired. Which change of phase has which event is written down
// here once more, from the documentation and not from the service.

// stockLow is the token that is there from when a pool's stock is low until it is filled.
const stockLow = "stock-low"

// work is how far a record has come.
type work struct {
	Generation         int64 `json:",string"`
	ObservedGeneration map[string]string
	NotBefore          time.Time
	Intent             string
}

func (w work) wanted() int64 { return max(w.Generation, 1) }

func (w work) observed(phase string) int64 { return number(w.ObservedGeneration[phase]) }

// intent is a call that was announced.
type intent struct {
	id        string
	phase     string
	revision  int64
	seen      int64 // on the history's clock
	notBefore int64 // nobody else looks into it before
}

func raw(rec *record) json.RawMessage {
	if rec == nil {
		return nil
	}
	return rec.raw
}

// short is a phase as work names it, from how records and events do.
func short(phase string) string {
	for _, prefix := range []string{"STOCK_PHASE_", "RETIRED_PHASE_", "KEY_PHASE_"} {
		phase = strings.TrimPrefix(phase, prefix)
	}
	return strings.ToLower(phase)
}

// sameBut reports whether two records are the same but for a field.
func sameBut(a, b *record, field string) bool {
	var x, y map[string]any
	if json.Unmarshal(a.raw, &x) != nil || json.Unmarshal(b.raw, &y) != nil {
		return false
	}
	delete(x, field)
	delete(y, field)
	return reflect.DeepEqual(x, y)
}

// recorded notes what a change says of a key's phases, whether it is a transition or another try.
func (s *step) recorded(c recorder.Change, kind, id string) {
	if kind != "stock" && kind != "retired" || c.Deleted {
		return
	}
	is := s.is(c.Key)
	if is == nil {
		return
	}
	if was := s.was(c.Key); was != nil {
		s.forward(id, was.Work, is.Work)
	}
	if short(is.Phase) == "revoking" && s.world.revokes[id] == 0 {
		s.world.revokes[id] = s.arrived
	}
	if announced := is.Work.Intent; announced != "" && !s.announced(id, announced) {
		s.world.intents[id] = append(s.world.intents[id], intent{announced, short(is.Phase), s.revision, s.arrived, s.since(is.Work.NotBefore)})
	}
}

func (s *step) announced(id, announced string) bool {
	for _, i := range s.world.intents[id] {
		if i.id == announced {
			return true
		}
	}
	return false
}

// forward: what is wanted and what is complete only grows, and nothing is complete that was not wanted.
func (s *step) forward(id string, was, is work) {
	if is.wanted() < was.wanted() || is.wanted() > was.wanted()+1 {
		s.violate("I8", id, "the generation that is wanted goes from %d to %d", was.wanted(), is.wanted())
	}
	for phase := range was.ObservedGeneration {
		if is.observed(phase) < was.observed(phase) {
			s.violate("I8", id, "phase %s had completed generation %d, and now %d", phase, was.observed(phase), is.observed(phase))
		}
	}
	for phase := range is.ObservedGeneration {
		if is.observed(phase) > is.wanted() {
			s.violate("I8", id, "phase %s has completed generation %d, and %d is wanted", phase, is.observed(phase), is.wanted())
		}
	}
}

// arrow is a change of phase; "" is a key that is not there.
type arrow struct{ from, to string }

var preparing = map[arrow]string{
	{"", "planned"}: "key.planned", {"planned", "minting"}: "key.minting", {"minting", "verifying"}: "key.minted",
	{"planned", "failed"}: "key.mint_failed", {"minting", "failed"}: "key.mint_failed", {"verifying", "failed"}: "key.mint_failed",
	{"failed", "planned"}: "key.retried",
}

var retiring = map[arrow]string{
	{"retired", "revoking"}: "key.revoking", {"revoking", "revoked"}: "key.revoked", {"revoking", "orphaned"}: "key.orphaned",
	{"retired", "orphaned"}: "key.orphaned", {"orphaned", "revoking"}: "key.retried", {"retired", "purged"}: "key.purged",
	{"revoked", "purged"}: "key.purged",
}

// preparation is a change of phase of a key in preparation, which may end it.
func (s *step) preparation(id string) (kind, subject string) {
	subject = s.within(id, "keys")
	s.Stats.Phases++
	if len(s.changed["stock"]) > 1 {
		s.violate("I8", id, "%d keys in preparation change in one transition", len(s.changed["stock"]))
	}
	is, was := s.is("stock/"+id), s.was("stock/"+id)
	gone, stocked := s.is("retired/"+id), s.is("backup/"+id)
	switch {
	case is != nil:
		change := arrow{to: short(is.Phase)}
		if was != nil {
			change.from = short(was.Phase)
			s.completes(id, preparing[change], change, was.Work, is.Work)
		}
		kind = preparing[change]
		s.tells(id, kind, "KEY_HOME_PREPARING", is.Phase, nil)
	case stocked != nil:
		kind = pickKind(short(was.Phase) == "verifying" && stocked.Sealed == was.Sealed, "key.stocked", "")
		s.tells(id, kind, "KEY_HOME_BACKUP", "", nil)
	case gone != nil:
		kind = pickKind(s.has("dev.rotatord.key.mint_failed.v1") && short(was.Phase) != "failed", "key.mint_failed", "key.removed")
		if short(gone.Phase) != "revoking" || gone.Work.wanted() != was.Work.wanted()+1 || gone.Sealed != was.Sealed {
			s.violate("I8", id, "a key that may be at the upstream is given up, and is %s with generation %d after %d", gone.Phase, gone.Work.wanted(), was.Work.wanted())
		}
		s.tells(id, kind, "KEY_HOME_RETIRED", gone.Phase, gone)
	default:
		kind = "key.removed"
		if was.Work.Intent != "" || was.Work.observed("minting") > 0 {
			s.violate("I8", id, "a key that may be at the upstream is deleted in phase %s, and nobody can revoke it", was.Phase)
		}
		s.tells(id, kind, "KEY_HOME_PREPARING", was.Phase, nil)
	}
	return kind, subject
}

// retirement is a change of phase of a retired key, which may end it.
func (s *step) retirement(id string) (kind, subject string) {
	subject = s.within(id, "keys")
	s.Stats.Phases++
	is, was := s.is("retired/"+id), s.was("retired/"+id)
	switch {
	case was == nil:
		return "", subject
	case is == nil:
		return "key.removed", subject
	}
	change := arrow{short(was.Phase), short(is.Phase)}
	kind = retiring[change]
	s.completes(id, kind, change, was.Work, is.Work)
	s.tells(id, kind, "KEY_HOME_RETIRED", is.Phase, is)
	switch change.to {
	case "revoking":
		s.Stats.Revoking++
		s.revocable(id, kind, is)
	case "revoked":
		s.Stats.Revoked++
	case "purged":
		s.Stats.Purged++
		s.waited(id, "its secret is purged", is, s.retirementOf(id).SecretRetention)
		if is.Sealed.Fingerprint != "" {
			s.violate("I8", id, "a purged key has its secret still")
		}
	}
	return kind, subject
}

// completes: a phase that ends has done its work for the generation that is wanted, and had not before. A retry raises that.
func (s *step) completes(id, kind string, change arrow, was, is work) {
	done := change.from
	switch kind {
	case "":
		return
	case "key.retried":
		if is.wanted() != was.wanted()+1 {
			s.violate("I8", id, "a retry that goes from generation %d to %d", was.wanted(), is.wanted())
		}
		return
	case "key.mint_failed", "key.orphaned":
		done = change.to
	}
	if is.wanted() != was.wanted() {
		s.violate("I8", id, "from %s to %s the generation goes from %d to %d", change.from, change.to, was.wanted(), is.wanted())
	}
	if was.observed(done) >= was.wanted() || is.observed(done) != is.wanted() {
		s.violate("I8", id, "from %s to %s: phase %s had completed generation %d and now %d, and %d is wanted", change.from, change.to, done, was.observed(done), is.observed(done), is.wanted())
	}
}

// tells: the event says what the records do.
func (s *step) tells(id, kind, home, phase string, retired *record) {
	if len(s.events) != 1 || kind == "" {
		return
	}
	_, key, _ := strings.Cut(id, "/")
	switch d := s.events[0].Data; {
	case d.KeyID != key || d.Home != home || short(d.Phase) != short(phase):
		s.violate("I8", id, "the event %s says key %s, %s, %s; the records %s, %s, %s", kind, d.KeyID, d.Home, d.Phase, key, home, phase)
	case retired != nil && kind != "key.removed" && kind != "key.mint_failed" && d.Generation != retired.Generation:
		s.violate("I8", id, "the event %s says generation %d, the record %d", kind, d.Generation, retired.Generation)
	}
}

func (s *step) retirementOf(id string) (policy struct{ RevokeAfter, SecretRetention string }) {
	pool, _, _ := strings.Cut(id, "/")
	if p := s.is("pools/" + pool); p != nil {
		return p.Spec.Retirement
	}
	return policy
}

// waited: nothing is done to a retired key before its time, as the one who did it read the clock.
func (s *step) waited(id, what string, r *record, least string) {
	after, err := time.ParseDuration(least)
	if len(s.events) != 1 || err != nil {
		return
	}
	if age := s.events[0].Time.Sub(r.RetiredAt); age < after {
		s.violate("phases", id, "%s %v after it was retired, and not after %v", what, age, after)
	}
}

// revocable: what took the place of a key that is to be revoked is in service, with another secret.
func (s *step) revocable(id, kind string, r *record) {
	if kind == "key.revoking" {
		s.waited(id, "it is to be revoked", r, s.retirementOf(id).RevokeAfter)
	}
	pool, _, _ := strings.Cut(id, "/")
	if r.Generation == 0 || kind != "key.revoking" || s.is("slots/"+pool+"/"+r.Slot) == nil {
		return
	}
	for _, a := range s.world.byPool["active/"+pool] {
		if a.Slot == r.Slot {
			if a.Sealed.Fingerprint == r.Sealed.Fingerprint {
				s.violate("phases", id, "it is to be revoked, and the key in its slot has the same secret")
			}
			return
		}
	}
	s.violate("phases", id, "it is to be revoked, and its slot has no key in service")
}

// restorable: a key is restored only while nobody is to revoke it.
func (s *step) restorable(id string) {
	if was := s.was("retired/" + id); was.Phase != "" && short(was.Phase) != "retired" {
		s.violate("phases", id, "a key is restored that is %s", was.Phase)
	}
}

// stuck: when everything is healed and over, nothing is left half done: what was planned is in stock or has failed, what was
// retired is revoked after its grace.
func (r *run) stuck() {
	if r.Healed.IsZero() || len(r.world.seen) == 0 {
		return
	}
	end := r.world.seen[len(r.world.seen)-1]
	for key, rec := range r.world.at {
		kind, pool, name := split(key)
		p := r.world.at["pools/"+pool]
		if kind != "stock" && kind != "retired" || p == nil || p.Spec.Provider == nil || p.Paused {
			continue
		}
		since, grace := rec.PlannedAt, time.Duration(0)
		if kind == "retired" {
			since = rec.RetiredAt
			grace, _ = time.ParseDuration(p.Spec.Retirement.RevokeAfter)
		}
		waited := time.Duration(end-max(r.since(since), r.since(r.Healed))) - grace
		switch phase := short(rec.Phase); {
		case waited < finishing:
		case phase == "planned" || phase == "minting" || phase == "verifying" || phase == "retired" || phase == "revoking":
			r.add(Violation{Invariant: "I9", Pool: pool, Key: name, Revision: rec.mod, Text: "the key is " + phase + " still, " + waited.String() + " after its time and after everything was healed"})
		}
	}
}

// finishing is how long phases may take when nothing is wrong any more: an upstream that has failed some times in a row is
// left alone for seconds.
const finishing = 20 * time.Second
