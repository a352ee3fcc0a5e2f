package check

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/internal/recorder"
)

// replay goes through all revisions: each must be made of whole transitions with their events, or none. On the way it
// compares the reads that name a revision with what was there.
func (r *run) replay() {
	r.world = newWorld()
	reads := r.readsByRevision()
	for i, rev := range r.Recording {
		r.Stats.Revisions++
		for len(reads) > 0 && reads[0].Revision < rev.Revision {
			if i > 0 {
				r.compareRead(reads[0])
			}
			reads = reads[1:]
		}
		before := r.apply(rev, i == 0)
		if i > 0 {
			for _, changes := range rev.Transitions() {
				r.transition(rev.Revision, r.since(rev.Seen), changes, before)
			}
		}
		r.world.revs = append(r.world.revs, rev.Revision)
		r.world.seen = append(r.world.seen, r.since(rev.Seen))
	}
	for _, op := range reads {
		r.compareRead(op)
	}
	r.leftovers()
	r.bounds()
}

// apply makes a revision's changes, and returns what the changed keys held before.
func (r *run) apply(rev recorder.Revision, first bool) map[string]*record {
	before := make(map[string]*record)
	replicas := false
	for _, c := range rev.Changes {
		kind, pool, name := split(c.Key)
		replicas = replicas || kind == "replicas"
		before[c.Key] = r.world.at[c.Key]
		if c.Deleted {
			r.world.set(c.Key, nil)
			if kind == "slots" { // a slot of that name that comes later begins a history of its own
				delete(r.world.last, pool+"/"+name)
			}
			continue
		}
		rec, err := parse(c, rev.Revision)
		if err != nil {
			r.add(Violation{Invariant: "I8", Revision: rev.Revision, Pool: pool, Key: name, Text: fmt.Sprintf("%s cannot be read: %v", c.Key, err)})
		}
		r.written(c.Key, rec, rev.Revision, first)
		if (c.Lease != 0) != leased(kind) {
			r.add(Violation{Invariant: "I7", Revision: rev.Revision, Pool: pool, Key: name, Text: fmt.Sprintf("%s is put with lease %x", c.Key, c.Lease)})
		}
		if before[c.Key] != nil && (kind == "rotations" || kind == "events") {
			r.add(Violation{Invariant: "I1", Revision: rev.Revision, Pool: pool, Key: name, Text: c.Key + " is written a second time"})
		}
		if kind == "events" {
			rec.ID = name
			r.world.events = append(r.world.events, event{rec.value, pool, rev.Revision})
			if !first {
				continue
			}
		}
		r.world.set(c.Key, rec)
	}
	if replicas {
		r.world.schema = max(r.world.schema, r.world.known())
	}
	r.world.note(rev.Revision, rev.Changes)
	return before
}

// step is one transition.
type step struct {
	*run
	revision int64
	arrived  int64               // at the recorder, on the history's clock
	before   map[string]*record  // of the keys that changed at this revision
	changed  map[string][]string // names with the pool, by kind
	events   []event
	durable  int
}

// was is what a key held before this revision.
func (s *step) was(key string) *record {
	if rec, changed := s.before[key]; changed {
		return rec
	}
	return s.world.at[key]
}

func (s *step) is(key string) *record { return s.world.at[key] }

func (s *step) violate(invariant, id, format string, args ...any) {
	pool, key, _ := strings.Cut(id, "/")
	s.add(Violation{Invariant: invariant, Pool: pool, Key: key, Revision: s.revision, Text: fmt.Sprintf(format, args...)})
}

// transition checks one transition of a revision.
func (r *run) transition(revision, arrived int64, changes []recorder.Change, before map[string]*record) {
	s := &step{run: r, revision: revision, arrived: arrived, before: before, changed: make(map[string][]string)}
	for _, c := range changes {
		kind, pool, name := split(c.Key)
		if kind == "relays" || kind == "leaders" {
			continue // they say nothing of keys
		}
		if s.recorded(c, kind, pool+"/"+name); recorder.NoTransition(c.Key, raw(s.was(c.Key)), c.Value) {
			continue
		}
		s.changed[kind] = append(s.changed[kind], pool+"/"+name)
		if !transient(kind) && kind != "events" {
			s.durable++
		}
	}
	for i := len(r.world.events) - 1; i >= 0 && r.world.events[i].revision == revision; i-- {
		if e := r.world.events[i]; slices.Contains(s.changed["events"], e.pool+"/"+e.ID) {
			s.events = append(s.events, e)
		}
	}
	s.locks()
	if s.durable == 0 && len(s.events) == 0 || s.swept() {
		return
	}
	s.homes()
	s.bindings()
	s.schemas()
	kind, subject := s.classify()
	s.removedByHand(kind, subject)
	switch {
	case len(s.events) != 1:
		s.violate("I8", subject, "a transition (%s) with %d events", kind, len(s.events))
	case kind == "":
		s.violate("I8", subject, "changes that are no transition, with event %s %s: %v", s.events[0].Type, s.events[0].Subject, s.changed)
	case s.events[0].Type != "dev.rotatord."+kind+".v1" || s.events[0].pool+"/"+s.events[0].Subject != subject:
		s.violate("I8", subject, "transition %s with event %s of %s/%s", kind, s.events[0].Type, s.events[0].pool, s.events[0].Subject)
	}
}

// removedByHand remembers a key that left its home for none.
func (s *step) removedByHand(kind, subject string) {
	pool, key, _ := strings.Cut(subject, "/keys/")
	if kind != "key.removed" {
		return
	}
	for _, home := range []string{"active", "backup", "retired", "stock"} {
		if was := s.was(home + "/" + pool + "/" + key); was != nil && s.is("retired/"+pool+"/"+key) == nil {
			s.world.dropped[pool+"/"+key] = was
		}
	}
}

// swept reports whether a pool is being deleted; then its records go in batches.
func (s *step) swept() bool {
	for kind, names := range s.changed {
		for _, id := range names {
			pool, _, _ := strings.Cut(id, "/")
			if p := s.was("pools/" + pool); kind != "pools" && p != nil && p.Deleting {
				return true
			}
		}
	}
	return false
}

// homes: a key has one home, its own slot, and is neither used twice nor lost.
func (s *step) homes() {
	ids := slices.Concat(s.changed["active"], s.changed["backup"], s.changed["retired"], s.changed["stock"])
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		var is, was []string
		for _, home := range []string{"active", "backup", "retired", "stock"} {
			if s.is(home+"/"+id) != nil {
				is = append(is, home)
			}
			if s.was(home+"/"+id) != nil {
				was = append(was, home)
			}
		}
		if len(is) > 1 {
			s.violate("I2", id, "the key is in %s", strings.Join(is, " and in "))
		}
		if len(is) == 0 && len(was) > 0 && !s.has("dev.rotatord.key.removed.v1") {
			s.violate("I2", id, "the key was in %s and is lost", strings.Join(was, " and in "))
		}
	}
	if s.has("dev.rotatord.key.added.v1") || s.has("dev.rotatord.key.removed.v1") {
		return
	}
	delta := 0
	for _, id := range s.changed["active"] {
		if s.is("active/"+id) != nil {
			delta++
		}
		if s.was("active/"+id) != nil {
			delta--
		}
	}
	if delta != 0 {
		s.violate("I2", ids[0], "the number of active keys changes by %d", delta)
	}
}

func (s *step) has(eventType string) bool {
	return slices.ContainsFunc(s.events, func(e event) bool { return e.Type == eventType })
}

// bindings: every slot that is bound, and every slot there is, holds one active key.
func (s *step) bindings() {
	if len(s.changed["active"])+len(s.changed["slots"])+len(s.changed["bindings"]) == 0 {
		return
	}
	pools := make(map[string]bool)
	for _, id := range slices.Concat(s.changed["active"], s.changed["slots"], s.changed["bindings"]) {
		pool, _, _ := strings.Cut(id, "/")
		pools[pool] = true
	}
	for pool := range pools {
		held := make(map[string]string)
		for key, a := range s.world.byPool["active/"+pool] {
			if other := held[a.Slot]; other != "" {
				s.violate("I2", pool+"/"+key, "slot %s is held by %s too", a.Slot, other)
			}
			if s.is("slots/"+pool+"/"+a.Slot) == nil {
				s.violate("I2", pool+"/"+key, "the key holds slot %s, which does not exist", a.Slot)
			}
			held[a.Slot] = key
		}
		for proxy, b := range s.world.byPool["bindings/"+pool] {
			for _, slot := range b.Slots {
				if held[slot.Slot] == "" {
					s.violate("I3", pool+"/"+proxy, "the proxy is bound to slot %s, which holds no active key", slot.Slot)
				}
			}
		}
	}
}

// classify says which transition the changes are, and of what; "" if they are none.
func (s *step) classify() (kind, subject string) {
	switch {
	case len(s.changed["rotations"]) > 0:
		return s.rotation(s.changed["rotations"][0])
	case len(s.changed["pools"]) > 0:
		return s.pool(s.changed["pools"][0])
	case len(s.changed["stock"]) > 0:
		return s.preparation(s.changed["stock"][0])
	case len(s.changed["bindings"]) > 0:
		id := s.changed["bindings"][0]
		return pickKind(s.is("bindings/"+id) != nil, "binding.set", "binding.removed"), s.within(id, "bindings")
	case len(s.changed["backup"]) > 0 && s.is("backup/"+s.changed["backup"][0]) != nil:
		id := s.changed["backup"][0]
		if s.was("retired/"+id) != nil && s.is("retired/"+id) == nil {
			s.restorable(id)
			return s.restored(id)
		}
		return pickKind(s.was("backup/"+id) == nil && len(s.changed["fingerprints"]) == 1, "key.added", ""), s.within(id, "keys")
	case len(s.changed["active"]) > 0:
		return s.active(s.changed["active"][0])
	case len(s.changed["backup"]) > 0:
		return "key.removed", s.within(s.changed["backup"][0], "keys")
	case len(s.changed["retired"]) > 0:
		return s.retirement(s.changed["retired"][0])
	case len(s.changed["slots"]) > 0:
		id := s.changed["slots"][0]
		slot := s.is("slots/" + id)
		return pickKind(slot != nil && slot.State == "SLOT_STATE_CLOSING", "slot.closing", "slot.reopened"), s.within(id, "slots")
	case len(s.changed["tokens"]) == 1:
		pool, name, _ := strings.Cut(s.changed["tokens"][0], "/")
		return pickKind(name == "reached", "pool.bound_reached", pickKind(name == stockLow, "pool.stock_low", "")), s.within(pool+"/"+pool, "pools")
	}
	return "", "/"
}

func pickKind(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

func (s *step) within(id, kind string) string {
	pool, name, _ := strings.Cut(id, "/")
	return pool + "/" + kind + "/" + name
}

// pool is a change of a pool's own record.
func (s *step) pool(id string) (kind, subject string) {
	pool, _, _ := strings.Cut(id, "/")
	is, was := s.is("pools/"+pool), s.was("pools/"+pool)
	subject = pool + "/pools/" + pool
	switch {
	case was == nil:
		return "pool.created", subject
	case is == nil:
		return "pool.deleted", subject
	case is.Deleting && !was.Deleting:
		return "pool.deleting", subject
	case is.Paused != was.Paused:
		return pickKind(is.Paused, "pool.paused", "pool.resumed"), subject
	case s.has("dev.rotatord.pool.credential.v1"):
		return pickKind(sameBut(is, was, "credential"), "pool.credential", ""), subject
	case is.Incident != nil && (was.Incident == nil || *is.Incident != *was.Incident):
		return s.incident(pool, is, was), subject
	case is.Incident == nil && was.Incident != nil:
		return "pool.incident_ended", subject
	}
	return "pool.updated", subject
}

// active is a change of a key in service that is no rotation.
func (s *step) active(id string) (kind, subject string) {
	subject = s.within(id, "keys")
	is, was := s.is("active/"+id), s.was("active/"+id)
	parked := slices.Contains(s.changed["pending"], id)
	switch {
	case was == nil && is != nil:
		return pickKind(len(s.changed["slots"]) == 1 && len(s.changed["fingerprints"]) == 1, "key.added", ""), subject
	case is == nil:
		s.world.removed[lifeOf2(id, was.create)] = s.revision
		return pickKind(len(s.changed["slots"]) == 1, "key.removed", ""), subject
	case is.create != was.create:
		return "", subject
	case parked && s.is("pending/"+id) != nil:
		return s.parked(id, is)
	case is.Status == "KEY_STATUS_DISABLED":
		return "key.disabled", subject
	case is.Status == "KEY_STATUS_HEALTHY":
		return "key.enabled", subject
	case is.Status == "KEY_STATUS_ERROR" || is.Status == "KEY_STATUS_RATE_LIMITED":
		return s.cooled(id, is, was), subject
	}
	return "", subject
}

func lifeOf2(id string, generation int64) string { return fmt.Sprintf("%s/%d", id, generation) }

// parked is a rotation that begins to wait.
func (s *step) parked(id string, a *record) (kind, subject string) {
	pool, key, _ := strings.Cut(id, "/")
	p := s.is("pending/" + id)
	s.Stats.Pendings++
	s.world.parks[id] = append(s.world.parks[id], park{pool, key, p.RequestID, p.Generation, s.revision})
	if p.Generation != a.create || a.Status != "KEY_STATUS_EXHAUSTED" {
		s.violate("I1", id, "a rotation of generation %d waits, the key is of generation %d and %s", p.Generation, a.create, a.Status)
	}
	s.allowed(id, s.was("active/"+id))
	s.fenced(id, s.events)
	s.spent(id)
	return "key.pending", s.within(id, "keys")
}

// restored is a key that goes back into stock.
func (s *step) restored(id string) (kind, subject string) {
	if s.is("backup/"+id).Sealed.Fingerprint != s.was("retired/"+id).Sealed.Fingerprint {
		s.violate("I2", id, "the key was restored with another secret")
	}
	return "key.restored", s.within(id, "keys")
}

// rotation checks every part of a rotation.
func (s *step) rotation(id string) (kind, subject string) {
	pool, rest, _ := strings.Cut(id, "/")
	old, generation, _ := strings.Cut(rest, "/")
	rec := s.is("rotations/" + id)
	rot := &rotation{value: rec.value, pool: pool, old: old, generation: number(generation), revision: s.revision}
	key := pool + "/" + old
	s.Stats.Rotations++
	if len(s.changed["rotations"]) > 1 {
		s.violate("I1", key, "%d rotations in one revision", len(s.changed["rotations"]))
	}
	if before := s.world.ended[lifeOf(pool, old, rot.generation)]; before != nil {
		s.violate("I1", key, "the life of generation %d is rotated by %s and by %s", rot.generation, before.ID, rot.ID)
	}
	if before := s.world.rotated[rot.ID]; before != nil {
		s.violate("I1", key, "rotation id %s is used twice", rot.ID)
	}
	s.swapped(key, rot)
	s.chain(rot)
	s.allowed(key, s.was("active/"+key))
	s.fenced(key, s.events)
	s.spent(key)
	s.inIncident(key, rot.RequestID, rec.CommittedAt)
	s.world.ended[lifeOf(pool, old, rot.generation)], s.world.rotated[rot.ID] = rot, rot
	s.world.byOld[key] = append(s.world.byOld[key], rot)
	return "key.rotated", s.within(key, "keys")
}

// swapped: the old key leaves, one backup takes its place.
func (s *step) swapped(key string, rot *rotation) {
	successor := rot.pool + "/" + rot.NewKeyID
	was, backup := s.was("active/"+key), s.was("backup/"+successor)
	is, retired := s.is("active/"+successor), s.is("retired/"+key)
	switch {
	case was == nil:
		s.violate("I1", key, "a key is rotated that was not in service (rotation %s)", rot.ID)
		return
	case was.create != rot.generation:
		s.violate("I5", key, "a rotation of generation %d took the key of generation %d (rotation %s)", rot.generation, was.create, rot.ID)
	case s.is("active/"+key) != nil:
		s.violate("I1", key, "the key is still in service after rotation %s", rot.ID)
	}
	switch {
	case backup == nil:
		s.violate("I2", successor, "rotation %s uses a key that was not in stock", rot.ID)
		return
	case s.is("backup/"+successor) != nil:
		s.violate("I2", successor, "the key is still in stock after rotation %s", rot.ID)
	case is == nil || retired == nil:
		s.violate("I2", key, "after rotation %s the new key is in service: %v, the old one retired: %v", rot.ID, is != nil, retired != nil)
		return
	}
	if is.Slot != was.Slot || is.Slot != rot.Slot || is.Replaces != rot.old || is.create != s.revision || is.Sealed != backup.Sealed {
		s.violate("I1", key, "rotation %s: slot %s, record says %s, new key has %s, replaces %q, generation %d", rot.ID, was.Slot, rot.Slot, is.Slot, is.Replaces, is.create)
	}
	if retired.Generation != rot.generation || retired.ReplacedBy != rot.NewKeyID || retired.Sealed != was.Sealed {
		s.violate("I1", key, "rotation %s: the retired key says generation %d, replaced by %q", rot.ID, retired.Generation, retired.ReplacedBy)
	}
	if p := s.was("pending/" + key); p != nil && (s.is("pending/"+key) != nil || p.Generation != rot.generation || p.RequestID != rot.RequestID) {
		s.violate("I1", key, "rotation %s by request %q was made while request %q waited for generation %d; that is still there: %v", rot.ID, rot.RequestID, p.RequestID, p.Generation, s.is("pending/"+key) != nil)
	}
	s.saysTheSame(key, rot)
}

// saysTheSame: the event tells the rotation as the record does.
func (s *step) saysTheSame(key string, rot *rotation) {
	if len(s.events) != 1 {
		return
	}
	d := s.events[0].Data
	if d.RotationID != rot.ID || d.KeyID != rot.old || d.NewKeyID != rot.NewKeyID || d.Generation != rot.generation || d.RequestID != rot.RequestID || d.Slot != rot.Slot {
		s.violate("I8", key, "the event says %+v, the record is rotation %s of generation %d by %q", d, rot.ID, rot.generation, rot.RequestID)
	}
}

// chain: a slot's rotations follow each other without a gap.
func (s *step) chain(rot *rotation) {
	slot := rot.pool + "/" + rot.Slot
	if before := s.world.last[slot]; before != nil && (before.NewKeyID != rot.old || before.revision != rot.generation) {
		s.violate("I1", rot.pool+"/"+rot.old, "slot %s: rotation %s ends %s of generation %d, but the one before brought %s of generation %d", rot.Slot, rot.ID, rot.old, rot.generation, before.NewKeyID, before.revision)
	}
	s.world.last[slot] = rot
}

// allowed: neither a pause of the pool nor an operator's hand on the key is passed over. The latter rests on the fence of
// those that hold the lock: they compare the life of the key and not its status.
func (s *step) allowed(key string, a *record) {
	pool, _, _ := strings.Cut(key, "/")
	if p := s.was("pools/" + pool); p == nil || p.Paused || p.Deleting {
		s.violate("pause", key, "a rotation in a pool that is paused, being deleted, or gone")
	}
	if a != nil && a.Status == "KEY_STATUS_DISABLED" && s.locked() {
		s.violate("disabled", key, "a rotation of a key that an operator disabled")
	}
}

// locked reports whether the lock locks in this run. One that was replaced is never given back either.
func (in *Input) locked() bool { return in.Locks == "" || in.Locks == "normal" }

// fenced: with a lock that locks, only its holder commits, or who finds it free: then the commit was made with the campaign.
func (s *step) fenced(key string, events []event) {
	if !s.locked() || len(events) != 1 {
		return
	}
	lock, writer := s.was("locks/"+key), strings.TrimPrefix(events[0].Source, "rotatord/")
	switch {
	case lock != nil && lock.Holder != writer:
		s.violate("fence", key, "%s commits while %s holds the lock", writer, lock.Holder)
	case s.is("locks/"+key) != nil:
		s.violate("fence", key, "the lock is still there after the commit of %s", writer)
	}
}

// readsByRevision are the answers that name the revision they are from, in its order.
func (r *run) readsByRevision() (reads []history.Op) {
	for _, op := range r.Ops {
		if op.Succeeded() && op.Revision > 0 && op.Kind != history.CreatePool && op.Kind != history.AddKeys {
			reads = append(reads, op)
		}
	}
	sort.SliceStable(reads, func(i, j int) bool { return reads[i].Revision < reads[j].Revision })
	return reads
}
