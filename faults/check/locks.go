package check

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// locks checks what became of locks in a revision.
func (s *step) locks() {
	now := s.seenNow()
	for _, id := range s.changed["locks"] {
		was := s.was("locks/" + id)
		if was == nil {
			continue
		}
		held := time.Duration(now - s.world.seenAt(was.mod))
		if limit := s.SessionTTL + s.Election + lockGrace; held > limit && s.locked() && s.calm(now-int64(held), now) {
			s.violate("I9", id, "%s held the lock for %v, longer than its session could live without it (%v)", was.Holder, held, limit)
		}
		if s.is("locks/"+id) == nil && s.durable == 0 && !s.sessionEnded(was) && (s.frozen(was.Holder, now) || s.held(id, was, now)) {
			s.violate("release", id, "the lock of %s was released while %s could not do anything: somebody else released it", was.Holder, was.Holder)
		}
	}
}

// lockGrace covers what a lease lives on after its time: a new leader of etcd extends it, expiry is checked now and then.
const lockGrace = 3 * time.Second

// seenNow is when this revision arrived; it is the next to be added to what was seen.
func (s *step) seenNow() int64 { return s.since(s.Recording[len(s.world.revs)].Seen) }

// sessionEnded reports whether a lock went with the lease behind it, which takes the replica's own record along. One that a
// former life of the holder took goes with that one's lease, while the record is under another by then.
func (s *step) sessionEnded(lock *record) bool {
	if own := s.was("replicas/" + lock.Holder); own != nil && own.lease != lock.lease {
		return true
	}
	return slices.ContainsFunc(s.changed["replicas"], func(id string) bool {
		was := s.before["replicas/"+strings.TrimSuffix(id, "/")]
		return was != nil && was.lease == lock.lease && s.is("replicas/"+strings.TrimSuffix(id, "/")) == nil
	})
}

// settle is how long something that was sent before a stop may still take to arrive.
const settle = time.Second

// Frozen is the beginning of kinds of faults during which a replica does nothing at all.
const Frozen = "replica-stop"

func (r *run) frozen(replica string, at int64) bool {
	return slices.ContainsFunc(r.Faults, func(f Fault) bool {
		return strings.HasPrefix(f.Kind, Frozen) && f.Target == replica && r.since(f.Start)+int64(settle) < at && at < r.since(f.End)
	})
}

// arrives is how long after its commit a revision may be recorded while nothing is wrong with etcd.
const arrives = 50 * time.Millisecond

// held reports whether a lock was in the hands of a holder who stood still. One that the same replica took later, for
// something else, was not.
func (r *run) held(id string, lock *record, at int64) bool {
	taken := r.world.seenAt(lock.mod)
	return slices.ContainsFunc(r.Held, func(h Hold) bool {
		stood := r.since(h.Start) + int64(arrives)
		return h.Pool+"/"+h.Key == id && h.Generation == lock.Generation && h.Replica == lock.Holder && taken <= stood && stood < at && at < r.since(h.End)
	})
}

// served is when a fault was over for callers.
func (f Fault) served() time.Time {
	if f.Served.After(f.End) {
		return f.Served
	}
	return f.End
}

// calm reports whether no fault touches a span of time.
func (r *run) calm(from, to int64) bool {
	return !slices.ContainsFunc(r.Faults, func(f Fault) bool { return r.since(f.Start) <= to && from <= r.since(f.served()) })
}

// leftovers: when everything is healed and over, no lock stays and nothing waits that could be done.
func (r *run) leftovers() {
	if len(r.world.seen) == 0 {
		return
	}
	end := r.world.seen[len(r.world.seen)-1]
	age := func(rec *record) time.Duration { return time.Duration(end - r.world.seenAt(rec.mod)) }
	for key, rec := range r.world.at {
		kind, pool, name := split(key)
		switch {
		case kind == "locks" && r.locked() && age(rec) > r.SessionTTL+lockGrace:
			r.add(Violation{Invariant: "I9", Pool: pool, Key: name, Revision: rec.mod, Text: fmt.Sprintf("the lock of %s is %v old when all is over", rec.Holder, age(rec))})
		case kind == "pending" && age(rec) > r.SessionTTL && r.couldBeFulfilled(pool):
			r.add(Violation{Invariant: "I9", Pool: pool, Key: name, Revision: rec.mod, Text: fmt.Sprintf("a rotation still waits after %v although there is stock", age(rec))})
		}
	}
}

// couldBeFulfilled reports whether a pool has had stock for long enough.
func (r *run) couldBeFulfilled(pool string) bool {
	end := r.world.seen[len(r.world.seen)-1]
	p := r.world.at["pools/"+pool]
	if p == nil || p.Paused || p.Deleting || time.Duration(end-r.world.seenAt(p.mod)) < r.SessionTTL {
		return false
	}
	for _, b := range r.world.byPool["backup/"+pool] {
		if time.Duration(end-r.world.seenAt(b.mod)) > r.SessionTTL {
			return true
		}
	}
	return false
}
