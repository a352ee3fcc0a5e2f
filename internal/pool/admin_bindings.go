package pool

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// SetBinding binds a proxy to slots, replacing what it was bound to. A priority of 0 is 1.
func (a *Admin) SetBinding(ctx context.Context, pool, proxy string, slots []SlotPriority) (*Binding, int64, error) {
	if err := checkBinding(pool, proxy, slots); err != nil {
		return nil, 0, err
	}
	slots = inBindingOrder(slots)
	refs := []Ref{PoolRef(pool), BindingRef(pool, proxy)}
	for _, s := range slots {
		refs = append(refs, SlotRef(pool, s.Slot))
	}
	var out *Binding
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, refs...)
		if err != nil {
			return nil, err
		}
		p, err := openPool(st, pool)
		if err != nil {
			return nil, err
		}
		seen, err := Find[*Binding](st, BindingRef(pool, proxy))
		if err != nil {
			return nil, err
		}
		if seen != nil && slices.Equal(seen.Slots, slots) {
			out = seen
			return nil, nil
		}
		guards, err := openSlots(st, pool, slots)
		if err != nil {
			return nil, err
		}
		out = &Binding{Version: Version{Schema: Schema}, Pool: pool, Proxy: proxy, Slots: slots, UpdatedAt: a.Now().UTC()}
		if seen != nil {
			if err := rewritable(seen); err != nil {
				return nil, err
			}
			out.Version = renewed(seen.Version)
		}
		return a.bindTxn(st, p, out, guards), nil
	})
	if err != nil {
		return nil, 0, err
	}
	done := *out
	done.Version = putAt(out.Version, rev)
	return &done, done.ModRevision, nil
}

func checkBinding(pool, proxy string, slots []SlotPriority) error {
	var f violations
	f.name("pool", pool)
	f.name("proxy_id", proxy)
	switch {
	case len(slots) == 0:
		f.add("slots", "is required")
	case len(slots) > MaxBindingSlots:
		f.add("slots", fmt.Sprintf("has %d slots, at most %d are allowed", len(slots), MaxBindingSlots))
		return f.refusal()
	}
	first := make(map[string]int)
	for i, s := range slots {
		path := fmt.Sprintf("slots[%d].", i)
		f.name(path+"slot", s.Slot)
		if j, twice := first[s.Slot]; twice && s.Slot != "" {
			f.add(path+"slot", fmt.Sprintf("is the same as slots[%d].slot", j))
		} else {
			first[s.Slot] = i
		}
		if s.Priority < 0 || s.Priority > MaxPriority {
			f.add(path+"priority", fmt.Sprintf("must be 1 to %d", MaxPriority))
		}
	}
	return f.refusal()
}

// inBindingOrder completes and sorts a copy of slots.
func inBindingOrder(slots []SlotPriority) []SlotPriority {
	slots = slices.Clone(slots)
	for i := range slots {
		slots[i].Priority = max(slots[i].Priority, 1)
	}
	SortSlots(slots)
	return slots
}

// openSlots guards that each slot is there and open, as it was read.
func openSlots(st *State, pool string, slots []SlotPriority) (guards []Guard, err error) {
	var missing, closed []string
	for _, s := range slots {
		slot, err := Find[*Slot](st, SlotRef(pool, s.Slot))
		switch {
		case err != nil:
			return nil, err
		case slot == nil:
			missing = append(missing, s.Slot)
		case slot.Closing:
			closed = append(closed, s.Slot)
		default:
			guards = append(guards, Same(slot))
		}
	}
	if len(missing) > 0 {
		r := Refuse(ReasonSlotNotFound, "pool %q has no slot %s; the slots are those of its active keys", pool, strings.Join(missing, ", "))
		r.Metadata = map[string]string{"slots": strings.Join(missing, ", ")}
		return nil, r
	}
	if len(closed) > 0 {
		r := Refuse(ReasonSlotClosing, "the key of slot %s is being removed; bind another slot", strings.Join(closed, ", "))
		r.Metadata = map[string]string{"slots": strings.Join(closed, ", ")}
		return nil, r
	}
	return guards, nil
}

// bindTxn puts a binding. Since it compares every slot as it was read open, it and the removal of one of them cannot both
// succeed: whichever commits first voids the other. A crash leaves the binding as it was, or as asked for.
func (a *Admin) bindTxn(st *State, p *Pool, next *Binding, slots []Guard) *Txn {
	t := &Txn{
		If:    append(slots, Same(p), unseen(st, next.Ref())),
		Put:   []Record{next},
		Event: a.event(EventBindingSet, p.Name, "bindings/"+next.Proxy),
	}
	t.Event.Proxy = next.Proxy
	return t
}

// RemoveBinding unbinds a proxy, also one whose record cannot be read.
func (a *Admin) RemoveBinding(ctx context.Context, pool, proxy string) (int64, error) {
	if err := checkPoolAnd("proxy_id", pool, proxy); err != nil {
		return 0, err
	}
	ref := BindingRef(pool, proxy)
	return a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(pool), ref)
		if err != nil {
			return nil, err
		}
		p, err := openPool(st, pool)
		if err != nil {
			return nil, err
		}
		if !st.Has(ref) {
			return nil, Refuse(ReasonBindingNotFound, "proxy %q has no binding in pool %q", proxy, pool)
		}
		t := &Txn{If: []Guard{Same(p), unseen(st, ref)}, Delete: []Ref{ref}, Event: a.event(EventBindingRemoved, pool, "bindings/"+proxy)}
		t.Event.Proxy = proxy
		return t, nil
	})
}
