package pool

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// What no call of the service and no crash may leave behind.

// homes: a key id is in one home.
func (c *checker) homes(p *PoolState) {
	c.eachKey(p, func(rec Record, _ Sealed) {
		if at := p.at(rec.Ref().Name); at[0] != rec {
			c.twoHomes(at[0], rec)
		}
	})
}

// twoHomes: what serves, or could, stays; the other is the one to delete.
func (c *checker) twoHomes(keep, spare Record) {
	ref := keep.Ref()
	c.find(SeverityError, "one-home", c.name(ref), c.etcdctl("del", spare.Ref()), "key %q of pool %q is under %s/ and under %s/", ref.Name, ref.Pool, ref.Kind, spare.Ref().Kind)
}

// slots: every slot holds one active key, and every active key one slot.
func (c *checker) slots(name string, p *PoolState) {
	holder := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(p.Active)) {
		a := p.Active[key]
		if other, taken := holder[a.Slot]; taken {
			c.find(SeverityError, "slot-active", c.name(a.Ref()), c.etcdctl("get", a.Ref())+" # compare with "+c.name(ActiveRef(name, other))+" and delete the wrong one",
				"keys %q and %q both hold slot %q of pool %q", other, key, a.Slot, name)
		}
		holder[a.Slot] = key
		if slot := SlotRef(name, a.Slot); p.Slots[a.Slot] == nil && !c.thereUnread(slot) {
			c.find(SeverityError, "slot-active", c.name(a.Ref()), fmt.Sprintf("rotatorctl key remove %s %s # and add it again", name, key),
				"key %q holds slot %q, which does not exist", key, a.Slot)
		}
	}
	for slot, s := range p.Slots {
		key, held := holder[slot]
		switch {
		case !held && !c.unreadIn(name, KindActive):
			c.find(SeverityError, "slot-active", c.name(s.Ref()), c.etcdctl("del", s.Ref()), "slot %q of pool %q holds no active key", slot, name)
		case held && s.Closing:
			c.find(SeverityWarning, "slot-closing", c.name(s.Ref()), fmt.Sprintf("rotatorctl key remove %s %s", name, key),
				"the removal of key %q was interrupted: its slot is closed to new bindings", key)
		}
	}
}

// unreadIn reports whether a pool has a record of a kind that cannot be read: then what is missing may be that.
func (c *checker) unreadIn(pool string, kind Kind) bool {
	for ref := range c.snap.Broken {
		if ref.Pool == pool && ref.Kind == kind {
			return true
		}
	}
	return false
}

// bindings: none dangles.
func (c *checker) bindings(name string, p *PoolState) {
	for proxy, b := range p.Bindings {
		var good, bad []string
		for _, s := range b.Slots {
			if c.holds(name, p, s.Slot) {
				good = append(good, fmt.Sprintf("%s=%d", s.Slot, s.Priority))
			} else {
				bad = append(bad, s.Slot)
			}
		}
		remedy := fmt.Sprintf("rotatorctl binding remove %s %s", name, proxy)
		if len(good) > 0 {
			remedy = fmt.Sprintf("rotatorctl binding set %s %s %s", name, proxy, strings.Join(good, " "))
		}
		switch {
		case len(bad) > 0:
			c.find(SeverityError, "binding-dangles", c.name(b.Ref()), remedy, "proxy %q is bound to slots without an active key: %s", proxy, strings.Join(bad, ", "))
		case len(good) == 0:
			c.find(SeverityError, "binding-empty", c.name(b.Ref()), remedy, "proxy %q is bound to nothing, so it gets no keys at all", proxy)
		}
	}
}

// holds reports whether a slot is there and holds an active key, as far as can be read.
func (c *checker) holds(pool string, p *PoolState, slot string) bool {
	slotThere := p.Slots[slot] != nil || c.thereUnread(SlotRef(pool, slot))
	return slotThere && (p.BySlot[slot] != nil || c.unreadIn(pool, KindActive))
}

// fingerprints: every secret is claimed by the key that has it, and every claim has its key.
func (c *checker) fingerprints(name string, p *PoolState) {
	c.eachKey(p, func(rec Record, sealed Sealed) { c.claimed(name, rec, sealed) })
	for hmac, fp := range c.claims[name] {
		if !c.backed(p, fp) {
			c.find(SeverityError, "fingerprint", c.name(fp.Ref()), c.etcdctl("del", fp.Ref()),
				"the secret with fingerprint %s is claimed for key %q, which does not have it: it cannot be added", hmac, fp.Key)
		}
	}
}

// claimed checks the claim of one key.
func (c *checker) claimed(name string, rec Record, sealed Sealed) {
	ref := rec.Ref()
	if sealed.IsZero() {
		if ref.Kind != KindRetired && ref.Kind != KindPreparation {
			c.find(SeverityError, "secret-missing", c.name(ref), fmt.Sprintf("rotatorctl key remove %s %s", name, ref.Name), "key %q has no secret", ref.Name)
		}
		return
	}
	fp := c.claims[name][sealed.Fingerprint]
	switch {
	case fp == nil && !c.thereUnread(FingerprintRef(name, sealed.Fingerprint)):
		c.find(SeverityError, "fingerprint", c.name(ref), fmt.Sprintf("rotatorctl key remove %s %s # and add it again", name, ref.Name),
			"the secret of key %q is not claimed: it could be added under a second id", ref.Name)
	case fp != nil && fp.Key != ref.Name:
		c.find(SeverityError, "fingerprint", c.name(ref), fmt.Sprintf("rotatorctl key remove %s %s", name, ref.Name),
			"keys %q and %q have the same secret", fp.Key, ref.Name)
	}
}

// backed reports whether a claim's key has the secret, or cannot be read.
func (c *checker) backed(p *PoolState, fp *Fingerprint) (backed bool) {
	for _, ref := range HomeRefs(fp.Pool, fp.Key) {
		backed = backed || c.thereUnread(ref)
	}
	for _, rec := range p.at(fp.Key) {
		backed = backed || sealedIn(rec).Fingerprint == fp.HMAC
	}
	return backed
}

// eachKey calls fn for every key of a pool, whatever its home.
func (c *checker) eachKey(p *PoolState, fn func(Record, Sealed)) {
	for _, a := range p.Active {
		fn(a, a.Sealed)
	}
	for _, b := range p.Backup {
		fn(b, b.Sealed)
	}
	for _, r := range p.Retired {
		fn(r, r.Sealed)
	}
	for _, prep := range p.Preparing {
		fn(prep, prep.Sealed)
	}
}

// history: a rotated life is over, its successor names it, and the lives in a slot follow each other.
func (c *checker) history(name string, p *PoolState) {
	bySlot := make(map[string][]*Rotation)
	for _, rots := range p.Rotations {
		for _, rot := range rots {
			bySlot[rot.Slot] = append(bySlot[rot.Slot], rot)
			c.rotation(name, p, rot)
		}
	}
	for _, rots := range bySlot {
		slices.SortFunc(rots, func(a, b *Rotation) int { return cmp.Compare(a.Revision(), b.Revision()) })
		for i := 1; i < len(rots); i++ {
			c.succession(name, rots[i-1], rots[i])
		}
	}
}

func (c *checker) rotation(name string, p *PoolState, rot *Rotation) {
	if a := p.Active[rot.Key]; a != nil && a.CreateRevision == rot.Generation {
		c.find(SeverityError, "rotated-life", c.name(a.Ref()), c.keepEvidence(), "life %d of key %q is in service although it was rotated", rot.Generation, rot.Key)
	}
	if a := p.Active[rot.NewKey]; a != nil && a.CreateRevision == rot.Revision() && (a.Replaces != rot.Key || a.Slot != rot.Slot) {
		c.find(SeverityError, "replaces", c.name(a.Ref()), c.keepEvidence(),
			"key %q says that it replaced %q in slot %q; on record is that it replaced %q in slot %q", a.Key, a.Replaces, a.Slot, rot.Key, rot.Slot)
	}
}

// succession checks two rotations of a slot that follow each other. In between the slot may have been removed and
// added again, with a key that came into service later.
func (c *checker) succession(name string, before, after *Rotation) {
	if after.Generation > before.Revision() || after.Generation == before.Revision() && after.Key == before.NewKey {
		return
	}
	c.find(SeverityError, "slot-history", c.name(after.Ref()), c.keepEvidence(),
		"slot %q of pool %q: after key %q came in at revision %d, the life %d of key %q was rotated out", after.Slot, name, before.NewKey, before.Revision(), after.Generation, after.Key)
}

// keepEvidence is the remedy for what cannot have happened.
func (c *checker) keepEvidence() string {
	return "etcdctl snapshot save rotatord-evidence.db # and report it: no call of the service and no hand edit should do this"
}

// pending: only a life in service waits for stock.
func (c *checker) pending(name string, p *PoolState) {
	for key, pend := range p.Pending {
		a := p.Active[key]
		if c.thereUnread(ActiveRef(name, key)) {
			continue
		}
		if a == nil || a.CreateRevision != pend.Generation {
			c.find(SeverityError, "pending-life", c.name(pend.Ref()), c.etcdctl("del", pend.Ref()),
				"a rotation of key %q waits for a life (%d) that is not in service", key, pend.Generation)
			continue
		}
		remedy := fmt.Sprintf("rotatorctl key import %s FILE --backup", name)
		if p.Pool.Paused {
			remedy = fmt.Sprintf("rotatorctl pool resume %s", name)
		}
		c.find(SeverityWarning, "pending-waiting", c.name(pend.Ref()), remedy, "key %q has waited for a replacement since %s", key, pend.RequestedAt.UTC().Format(time.RFC3339))
	}
}

// locks: each is about a life in service, or a key that is prepared or retired, and belongs to a replica that is there.
func (c *checker) locks(name string, p *PoolState) {
	for key, l := range p.Locks {
		a := p.Active[key]
		switch {
		case c.snap.Replicas[l.Holder] == nil && !c.thereUnread(ReplicaRef(l.Holder)):
			c.find(SeverityWarning, "ghost-lock", c.name(l.Ref()), c.etcdctl("get", l.Ref())+" # it goes with its lease; others take it over meanwhile",
				"the lock of key %q is held by %q, which has no session", key, l.Holder)
		case l.errand() && (p.Retired[key] != nil || p.Preparing[key] != nil):
		case (a == nil || a.CreateRevision != l.Generation) && !c.thereUnread(ActiveRef(name, key)):
			c.find(SeverityWarning, "ghost-lock", c.name(l.Ref()), c.etcdctl("del", l.Ref()), "the lock of key %q is about a life that is over", key)
		}
	}
}
