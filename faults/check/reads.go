package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/rotatord/rotatord/faults/history"
)

// read is an answer beside what was there at the revision it names.
type read struct {
	*run
	op history.Op
}

func (c *read) violate(invariant, format string, args ...any) {
	c.add(Violation{Invariant: invariant, Pool: c.op.Pool, Key: c.op.Key, Revision: c.op.Revision, Text: fmt.Sprintf(format, args...), Ops: []history.Op{c.op}})
}

func (c *read) at(kind string) *record { return c.world.at[kind+"/"+c.op.Pool+"/"+c.op.Key] }

// compareRead compares an answer with the state at its revision, which the world is at.
func (r *run) compareRead(op history.Op) {
	r.Stats.Reads++
	c := &read{r, op}
	if op.Revision < op.MinRevision {
		c.violate("read", "the answer is from revision %d, older than the min_revision %d", op.Revision, op.MinRevision)
	}
	switch op.Kind {
	case history.GetKeys:
		c.keys()
	case history.GetKey:
		c.key()
	case history.GetRotation:
		c.rotation()
	case history.Rotate:
		c.current()
	case history.Report:
		c.goOn()
	default:
		c.written()
	}
}

// keys: exactly the keys that could be used, in order.
func (c *read) keys() {
	want, bound := c.usable()
	if bound != c.op.Bound {
		c.violate("read", "the proxy has a binding: %v; the answer says %v", bound, c.op.Bound)
	}
	got := slices.Clone(c.op.Keys)
	for i := range got {
		if !got[i].SecretRight {
			c.violate("read", "the secret of key %s is not the one it was added with", got[i].ID)
		}
		got[i] = history.Key{ID: got[i].ID, Slot: got[i].Slot, Generation: got[i].Generation, Priority: got[i].Priority, Pending: got[i].Pending}
	}
	if !slices.Equal(want, got) {
		c.violate("read", "the keys that could be used were %+v, the answer has %+v", want, got)
	}
}

// fresh: the answer was the newest state when it says it was.
func (r *run) fresh(op history.Op) {
	newest := r.world.committedBefore(r.since(op.AsOf))
	if !op.AsOf.IsZero() && newest > op.Revision {
		r.wrong("read", op, "the answer says it was the newest state as of %v, but revision %d was committed before that", op.AsOf, newest)
	}
}

func (c *read) usable() (keys []history.Key, bound bool) {
	priority := map[string]int{}
	if b := c.world.at["bindings/"+c.op.Pool+"/"+c.op.Proxy]; b != nil && c.op.Proxy != "" {
		bound = true
		for _, s := range b.Slots {
			priority[s.Slot] = max(1, s.Priority)
		}
	}
	for id, a := range c.world.byPool["active/"+c.op.Pool] {
		rank := priority[a.Slot]
		if !bound {
			rank = 1
		}
		if c.healthy(id, a) && rank > 0 {
			p := c.world.at["pending/"+c.op.Pool+"/"+id]
			keys = append(keys, history.Key{ID: id, Slot: a.Slot, Generation: a.create, Priority: rank, Pending: p != nil && p.Generation == a.create})
		}
	}
	slices.SortFunc(keys, func(a, b history.Key) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), strings.Compare(a.Slot, b.Slot))
	})
	return keys, bound
}

// healthy reports whether a key could be used. A cool-down ends at its time without a write: if that was within the call,
// the answer says whether it had ended.
func (c *read) healthy(id string, a *record) bool {
	if a.Status == "KEY_STATUS_HEALTHY" || a.StatusUntil.IsZero() {
		return a.Status == "KEY_STATUS_HEALTHY"
	}
	until := c.since(a.StatusUntil)
	if until < c.op.Start || until > c.op.End {
		return until < c.op.Start
	}
	return slices.ContainsFunc(c.op.Keys, func(k history.Key) bool { return k.ID == id })
}

// key: the one key, wherever it was.
func (c *read) key() {
	got := c.op.Current
	if got == nil {
		c.violate("read", "an answer without a key")
		return
	}
	want := history.Key{ID: c.op.Key}
	if a := c.at("active"); a != nil {
		p := c.at("pending")
		want = history.Key{ID: c.op.Key, Home: "ACTIVE", Slot: a.Slot, Generation: a.create, Pending: p != nil && p.Generation == a.create, Revision: a.mod, Status: strings.TrimPrefix(a.Status, "KEY_STATUS_")}
	} else if b := c.at("backup"); b != nil {
		want.Home, want.Revision, want.Status = "BACKUP", b.mod, "UNSPECIFIED"
	} else if r := c.at("retired"); r != nil {
		want.Home, want.Slot, want.Generation, want.Revision, want.Status = "RETIRED", r.Slot, r.Generation, r.mod, "UNSPECIFIED"
	} else if p := c.at("stock"); p != nil {
		want.Home, want.Revision, want.Status = "PREPARING", p.mod, "UNSPECIFIED"
	}
	have := *got
	have.SecretRight = false
	if have != want {
		c.violate("read", "the key was %+v, the answer has %+v", want, have)
	}
}

// rotation: the record, as it is.
func (c *read) rotation() {
	if got := c.op.Rotation; got == nil || got.Revision > c.op.Revision {
		c.violate("read", "the rotation is %+v, the answer is from revision %d", got, c.op.Revision)
	}
}

// current: the key that came with a rotation's answer is the slot's key at the answer's revision, and while a rotation
// waits another one that can be used.
func (c *read) current() {
	got := c.op.Current
	if got == nil {
		return
	}
	if !got.SecretRight {
		c.violate("read", "the secret of key %s is not the one it was added with", got.ID)
	}
	a := c.world.at["active/"+c.op.Pool+"/"+got.ID]
	switch {
	case a == nil || a.create != got.Generation || a.Slot != got.Slot:
		c.violate("read", "the answer gives key %s of generation %d in slot %s, which was not in service there at revision %d", got.ID, got.Generation, got.Slot, c.op.Revision)
	case c.op.Rotation != nil && got.Slot != c.op.Rotation.Slot:
		c.violate("read", "the answer gives the key of slot %s for a rotation in slot %s", got.Slot, c.op.Rotation.Slot)
	case c.op.Outcome == history.Pending && a.Status != "KEY_STATUS_HEALTHY" && (a.StatusUntil.IsZero() || c.since(a.StatusUntil) > c.op.End):
		c.violate("read", "the answer gives key %s to go on with, which is %s", got.ID, a.Status)
	case c.op.Outcome == history.Pending && got.ID == c.op.Key:
		c.violate("read", "the answer gives the failing key to go on with")
	}
}

// goOn: the key that came with a report's answer is one to go on with.
func (c *read) goOn() {
	got := c.op.Current
	if c.op.Verdict == history.VerdictRotate || got == nil {
		c.current()
		return
	}
	if !got.SecretRight {
		c.violate("read", "the secret of key %s is not the one it was added with", got.ID)
	}
	switch a := c.world.at["active/"+c.op.Pool+"/"+got.ID]; {
	case c.op.Rotation != nil: // of a life that is over: the slot's key, whatever it is
	case a == nil || a.create != got.Generation || a.Slot != got.Slot:
		c.violate("read", "the answer gives key %s of generation %d in slot %s, which was not in service there at revision %d", got.ID, got.Generation, got.Slot, c.op.Revision)
	case a.Status != "KEY_STATUS_HEALTHY" && (a.StatusUntil.IsZero() || c.since(a.StatusUntil) > c.op.End):
		c.violate("read", "the answer gives key %s to go on with, which is %s", got.ID, a.Status)
	}
}

// written: what a write says it did is there at the revision it says.
func (c *read) written() {
	active, p := c.at("active"), c.world.at["pools/"+c.op.Pool+"/"]
	if p == nil {
		p = c.world.at["pools/"+c.op.Pool]
	}
	ok := true
	switch c.op.Kind {
	case history.EnableKey:
		ok = active != nil && active.Status == "KEY_STATUS_HEALTHY" && active.create == c.op.Current.Generation
	case history.DisableKey:
		ok = active != nil && active.Status == "KEY_STATUS_DISABLED" && active.create == c.op.Current.Generation
	case history.RestoreKey:
		b := c.at("backup")
		ok = b != nil && b.create == c.op.Revision
	case history.RemoveKey:
		r := c.at("retired") // one that may be at the upstream is to be revoked there
		ok = active == nil && c.at("backup") == nil && c.at("stock") == nil && (r == nil || r.create == c.op.Revision && r.Phase == "RETIRED_PHASE_REVOKING")
	case history.RetryKey:
		prep, r := c.at("stock"), c.at("retired")
		ok = prep != nil && prep.mod == c.op.Revision && prep.Phase == "STOCK_PHASE_PLANNED" || r != nil && r.mod == c.op.Revision && r.Phase == "RETIRED_PHASE_REVOKING"
	case history.SetBinding:
		ok = c.bound()
	case history.RemoveBinding:
		ok = c.world.at["bindings/"+c.op.Pool+"/"+c.op.Proxy] == nil
	case history.PausePool:
		ok = p != nil && p.Paused
	case history.ResumePool:
		ok = p != nil && !p.Paused
	}
	if !ok {
		c.violate("I6", "a %s that succeeded is not there at the revision it was answered with", c.op.Kind)
	}
}

func (c *read) bound() bool {
	b := c.world.at["bindings/"+c.op.Pool+"/"+c.op.Proxy]
	if b == nil || len(b.Slots) != len(c.op.Slots) {
		return false
	}
	for _, want := range c.op.Slots {
		if !slices.ContainsFunc(b.Slots, func(s struct {
			Slot     string
			Priority int
		}) bool {
			return s.Slot == want.Slot && s.Priority == want.Priority
		}) {
			return false
		}
	}
	return true
}
