package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// errClosingLost is returned by a step of a removal whose slot somebody else has put since: another removal has taken
// over, or the slot is gone.
var errClosingLost = errors.New("the slot was put by somebody else")

// errMoved is returned by a step that does not find the key where it was: look for it again.
var errMoved = errors.New("the key is not where it was")

// RemoveKey deletes a key from whatever home it is in. An active key takes its slot with it, so no proxy may be bound to
// that; with unbind the slot is first taken out of the bindings that name it, and unbound counts them.
//
// Removing an active key takes several transactions. A crash between them leaves the key in service and its slot closed
// to new bindings; calling again takes over.
func (a *Admin) RemoveKey(ctx context.Context, pool, key string, unbind bool) (unbound int, revision int64, err error) {
	if err := checkPoolAnd("key_id", pool, key); err != nil {
		return 0, 0, err
	}
	if unbound, revision, err = a.remove(ctx, pool, key, unbind); unbound > 0 {
		err = unfinished("the removal of key "+key, err)
	}
	return unbound, revision, err
}

// remove removes the key from where it is, and looks for it again when it is not there any more.
func (a *Admin) remove(ctx context.Context, pool, key string, unbind bool) (unbound int, revision int64, err error) {
	for try := range adminTries {
		if try > 0 && !wait(ctx, adminBackoff(try)) {
			return unbound, 0, Refuse(ReasonNotApplied, "not applied in time, because others changed the same records").Because(ctx.Err())
		}
		n, revision, err := a.removeOnce(ctx, pool, key, unbind)
		unbound += n
		if !errors.Is(err, errMoved) && !errors.Is(err, errClosingLost) {
			return unbound, revision, err
		}
	}
	return unbound, 0, Refuse(ReasonConflict, "somebody else kept changing key %q or its slot; it is not removed, repeat the call", key)
}

// removeOnce removes the key from the home it is in now.
func (a *Admin) removeOnce(ctx context.Context, pool, key string, unbind bool) (unbound int, revision int64, err error) {
	st, _, err := a.readKey(ctx, pool, key)
	if err != nil {
		return 0, 0, err
	}
	switch home, sealed := whereIs(st, HomeRefs(pool, key)...); home {
	case HomeActive:
		return a.removeActive(ctx, pool, key, unbind)
	case HomeBackup:
		revision, err = a.removeStored(ctx, BackupRef(pool, key), home, sealed)
	case HomeRetired:
		revision, err = a.removeStored(ctx, RetiredRef(pool, key), home, sealed)
	case HomePreparing:
		revision, err = a.removePreparing(ctx, pool, key)
	default:
		err = noSuchKey(pool, key)
	}
	return 0, revision, err
}

// removeStored deletes a key that is not in service, with the claim on its secret.
func (a *Admin) removeStored(ctx context.Context, ref Ref, home Home, sealed Sealed) (int64, error) {
	claim := FingerprintRef(ref.Pool, sealed.Fingerprint)
	return a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, ref, PoolRef(ref.Pool), claim)
		if err != nil {
			return nil, err
		}
		p, err := openPool(st, ref.Pool)
		if err != nil {
			return nil, err
		}
		rec, err := Find[Record](st, ref)
		if err != nil {
			return nil, err
		}
		if rec == nil {
			return nil, errMoved // promoted, restored or removed since
		}
		if sealedIn(rec).Fingerprint != sealed.Fingerprint {
			return nil, errMoved // removed and added again
		}
		t := &Txn{If: []Guard{Same(p), Same(rec)}, Delete: []Ref{ref}, Event: a.event(EventKeyRemoved, ref.Pool, "keys/"+ref.Name)}
		t.Delete = append(t.Delete, claimOf(st, claim, ref.Name)...)
		t.Event.Key, t.Event.Home = ref.Name, home
		if r, ok := rec.(*Retired); ok {
			t.Event.Slot, t.Event.Generation = r.Slot, r.Generation
		}
		return t, nil
	})
}

// claimOf is the claim on its secret that a key gives up. It may be another key's: a purged key has given its claim up
// already, and somebody may have added the secret again.
func claimOf(st *State, claim Ref, key string) []Ref {
	if fp, ok := st.Records[claim].(*Fingerprint); ok && fp.Key == key {
		return []Ref{claim}
	}
	return nil
}

// closing is a slot that this call has closed in order to remove its key.
type closing struct {
	Life
	slot   *Slot // as this call put it: its ModRevision is the fence of all that follows
	sealed Sealed
}

// removeActive closes the slot, sees to its bindings, and deletes key and slot together.
//
// From the close on no binding to the slot can be made, because each compares that its slots are as they were when they
// were open. So a listing after it shows all there will ever be.
func (a *Admin) removeActive(ctx context.Context, pool, key string, unbind bool) (unbound int, revision int64, err error) {
	c, err := a.closeSlot(ctx, pool, key)
	if err != nil {
		return 0, 0, err
	}
	if unbound, err = a.clearBindings(ctx, c, unbind); err == nil {
		revision, err = a.finishRemoval(ctx, c)
	}
	if err != nil {
		return unbound, 0, a.giveUp(ctx, c, err)
	}
	return unbound, revision, nil
}

// closeSlot closes the slot of an active key, also if another call has: that one's fence is void then, and its work is
// done again. A key that has lost its slot gets a closed one.
//
// A crash after it, or an outcome that stays unknown, leaves a closed slot: its key serves and rotates, but nothing new
// can be bound to it until it is removed or found bound by another call.
func (a *Admin) closeSlot(ctx context.Context, pool, key string) (*closing, error) {
	var c *closing
	rev, err := a.transition(ctx, func() (*Txn, error) {
		p, act, st, err := a.readWithSlot(ctx, pool, key)
		if err != nil {
			return nil, err
		}
		seen, err := Find[*Slot](st, SlotRef(pool, act.Slot))
		if err != nil {
			return nil, err
		}
		next := &Slot{Version: Version{Schema: Schema}, Pool: pool, Name: act.Slot, CreatedAt: a.Now().UTC()}
		if seen != nil {
			if err := rewritable(seen); err != nil {
				return nil, err
			}
			next.Version, next.CreatedAt = renewed(seen.Version), seen.CreatedAt
		}
		next.Closing = true
		c = &closing{Life: act.Life(), slot: next, sealed: act.Sealed}
		return a.slotTxn(st, p, c, next, EventSlotClosing, LifeIs(c.Life)), nil
	})
	if err != nil {
		return nil, err
	}
	slot := *c.slot
	slot.Version = putAt(c.slot.Version, rev)
	c.slot = &slot
	return c, nil
}

// readWithSlot reads an active key together with the slot it holds.
func (a *Admin) readWithSlot(ctx context.Context, pool, key string) (*Pool, *Active, *State, error) {
	st, err := a.Store.Read(ctx, ActiveRef(pool, key))
	if err != nil {
		return nil, nil, nil, err
	}
	first, err := Find[*Active](st, ActiveRef(pool, key))
	if err != nil {
		return nil, nil, nil, err
	}
	if first == nil {
		return nil, nil, nil, errMoved
	}
	if st, err = a.Store.Read(ctx, PoolRef(pool), ActiveRef(pool, key), SlotRef(pool, first.Slot)); err != nil {
		return nil, nil, nil, err
	}
	p, err := openPool(st, pool)
	if err != nil {
		return nil, nil, nil, err
	}
	act, err := Find[*Active](st, ActiveRef(pool, key))
	if err != nil {
		return nil, nil, nil, err
	}
	if act == nil || act.Slot != first.Slot {
		return nil, nil, nil, errLookAgain // rotated or removed between the two reads
	}
	return p, act, st, nil
}

// slotTxn puts a slot over what was read.
func (a *Admin) slotTxn(st *State, p *Pool, c *closing, next *Slot, kind EventType, more ...Guard) *Txn {
	t := &Txn{
		If:    append(more, Same(p), unseen(st, next.Ref())),
		Put:   []Record{next},
		Event: a.event(kind, p.Name, "slots/"+next.Name),
	}
	t.Event.Slot, t.Event.Key, t.Event.Generation = next.Name, c.Key, c.Generation
	return t
}

// clearBindings makes sure that no binding names the slot.
func (a *Admin) clearBindings(ctx context.Context, c *closing, unbind bool) (unbound int, err error) {
	for {
		bound, err := a.boundTo(ctx, c)
		if err != nil || len(bound) == 0 {
			return unbound, err
		}
		if !unbind {
			return unbound, refuseBound(c, bound)
		}
		n, err := a.unbindAll(ctx, c, bound)
		unbound += n
		if err != nil {
			return unbound, err
		}
	}
}

// boundTo lists the proxies that are bound to the slot, by name. A binding that cannot be read might be, so it stops the
// removal.
func (a *Admin) boundTo(ctx context.Context, c *closing) (proxies []string, err error) {
	recs, _, err := a.Store.List(ctx, KindBinding, c.Pool, 0)
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		b, ok := rec.(*Binding)
		if !ok {
			return nil, Refuse(ReasonRecordUnreadable, "the binding of proxy %q cannot be read and may name slot %q; `rotatorctl binding remove %s %s` deletes it",
				rec.Ref().Name, c.slot.Name, c.Pool, rec.Ref().Name)
		}
		if b.names(c.slot.Name) {
			proxies = append(proxies, b.Proxy)
		}
	}
	return proxies, nil
}

// maxNamed is how many proxies a refusal names.
const maxNamed = 10

func refuseBound(c *closing, proxies []string) error {
	named := strings.Join(proxies[:min(len(proxies), maxNamed)], ", ")
	dots := ""
	if len(proxies) > maxNamed {
		dots = ", ..."
	}
	r := Refuse(ReasonKeyBound, "slot %q of key %q is bound by proxies (%d: %s%s): bind them to another slot, or remove the key with --unbind",
		c.slot.Name, c.Key, len(proxies), named, dots)
	r.Metadata = map[string]string{"proxies": named, "count": strconv.Itoa(len(proxies)), "slot": c.slot.Name}
	return r
}

// unbindAll takes the slot out of the bindings of proxies, each in its own transaction: how many there are does not
// matter to etcd's limit. It counts those it may have unbound as well. A crash in between leaves some unbound and the slot closed.
func (a *Admin) unbindAll(ctx context.Context, c *closing, proxies []string) (int, error) {
	var done atomic.Int64
	var work errgroup.Group
	work.SetLimit(adminParallel)
	for _, proxy := range proxies {
		work.Go(func() error {
			rev, err := a.unbindOne(ctx, c, proxy)
			if rev != 0 || errors.Is(err, ErrOutcomeUnknown) { // then it may be
				done.Add(1)
			}
			return err
		})
	}
	err := work.Wait()
	return int(done.Load()), err
}

func (a *Admin) unbindOne(ctx context.Context, c *closing, proxy string) (int64, error) {
	ref := BindingRef(c.Pool, proxy)
	return a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(c.Pool), c.slot.Ref(), ref)
		if err != nil {
			return nil, err
		}
		p, err := c.stillMine(st)
		if err != nil {
			return nil, err
		}
		seen, err := Find[*Binding](st, ref)
		if err != nil || seen == nil || !seen.names(c.slot.Name) {
			return nil, err // somebody else has unbound it
		}
		return a.unbindTxn(p, c, seen)
	})
}

// stillMine finds the pool and makes sure that nobody has put the slot since.
func (c *closing) stillMine(st *State) (*Pool, error) {
	p, err := openPool(st, c.Pool)
	if err == nil && !Same(c.slot).Holds(st) {
		err = errClosingLost
	}
	return p, err
}

// unbindTxn takes the slot out of a binding. The other slots need no compare: while the binding names them unchanged
// they cannot be removed.
func (a *Admin) unbindTxn(p *Pool, c *closing, seen *Binding) (*Txn, error) {
	t := &Txn{
		If:    []Guard{Same(p), Same(c.slot), Same(seen)},
		Event: a.event(EventBindingSet, p.Name, "bindings/"+seen.Proxy),
	}
	t.Event.Proxy, t.Event.Slot = seen.Proxy, c.slot.Name
	t.Event.Reason = fmt.Sprintf("slot %s is removed with key %s", c.slot.Name, c.Key)
	left := slices.DeleteFunc(slices.Clone(seen.Slots), func(s SlotPriority) bool { return s.Slot == c.slot.Name })
	if len(left) == 0 {
		t.Delete, t.Event.Type = []Ref{seen.Ref()}, EventBindingRemoved
		return t, nil
	}
	if err := rewritable(seen); err != nil {
		return nil, err
	}
	next := *seen
	next.Version, next.Slots, next.UpdatedAt = renewed(seen.Version), left, a.Now().UTC()
	t.Put = []Record{&next}
	return t, nil
}

// finishRemoval deletes key and slot together. A crash before it leaves the key in service with a closed slot; after it
// the key is gone whole.
func (a *Admin) finishRemoval(ctx context.Context, c *closing) (int64, error) {
	claim := FingerprintRef(c.Pool, c.sealed.Fingerprint)
	return a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(c.Pool), ActiveRef(c.Pool, c.Key), c.slot.Ref(), PendingRef(c.Pool, c.Key), claim)
		if err != nil {
			return nil, err
		}
		p, err := c.stillMine(st)
		if err != nil {
			return nil, err
		}
		if !LifeIs(c.Life).Holds(st) {
			return nil, a.lifeEnded(ctx, c)
		}
		return a.removalTxn(st, p, c, claim), nil
	})
}

func (a *Admin) removalTxn(st *State, p *Pool, c *closing, claim Ref) *Txn {
	pending := PendingRef(c.Pool, c.Key)
	t := &Txn{
		If: []Guard{Same(p), LifeIs(c.Life), Same(c.slot), unseen(st, pending)},
		// The lock goes too: the life it is about ends here, whoever holds it.
		Delete: []Ref{ActiveRef(c.Pool, c.Key), c.slot.Ref(), LockRef(c.Pool, c.Key)},
		Event:  a.event(EventKeyRemoved, c.Pool, "keys/"+c.Key),
	}
	if st.Has(pending) {
		t.Delete = append(t.Delete, pending)
	}
	t.Delete = append(t.Delete, claimOf(st, claim, c.Key)...)
	t.Event.Key, t.Event.Slot, t.Event.Generation, t.Event.Home = c.Key, c.slot.Name, c.Generation, HomeActive
	return t
}

// lifeEnded answers a removal that a rotation has overtaken: what was asked for, one key less in service, has not
// happened, and the successor must not be removed unasked.
func (a *Admin) lifeEnded(ctx context.Context, c *closing) error {
	st, err := a.Store.Read(ctx, HomeRefs(c.Pool, c.Key)...)
	if err != nil {
		return err
	}
	old, _ := st.Records[RetiredRef(c.Pool, c.Key)].(*Retired)
	if old == nil || old.Generation != c.Generation {
		return Refuse(ReasonConflict, "key %q was rotated while it was being removed, and has moved on since; look at it and at slot %q again", c.Key, c.slot.Name)
	}
	r := Refuse(ReasonKeyWrongHome, "key %q was rotated while it was being removed: key %q holds slot %q now. "+
		"`rotatorctl key remove %s %s` takes that out of service; removing %q again deletes it from the retired keys",
		c.Key, old.ReplacedBy, c.slot.Name, c.Pool, old.ReplacedBy, c.Key)
	r.Metadata = map[string]string{"home": HomeRetired.String(), "replaced_by": old.ReplacedBy}
	return r
}

// giveUp opens the slot again after a step has failed, and says what the call came to.
//
// Opening it also settles an unknown outcome: every step compares the slot as it was closed, so once it is open no copy
// of a step under way can be applied any more.
func (a *Admin) giveUp(ctx context.Context, c *closing, cause error) error {
	if errors.Is(cause, errClosingLost) {
		return cause
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
	defer cancel()
	reopened, err := a.reopen(undo, c)
	switch {
	case err != nil:
		return a.leftClosed(c, cause, err)
	case reopened && errors.Is(cause, ErrOutcomeUnknown):
		return Refuse(ReasonNotApplied, "key %q is not removed; try again", c.Key).Because(cause)
	}
	return cause
}

// leftClosed answers when the slot could not be opened again: the same reason, with what is left behind.
func (a *Admin) leftClosed(c *closing, cause, err error) error {
	var r *Refusal
	if cause = unfinished("the removal of key "+c.Key, cause); !errors.As(cause, &r) {
		return cause
	}
	told := *r
	told.Message += fmt.Sprintf(" (slot %q may stay closed to new bindings until key %q is removed again)", c.slot.Name, c.Key)
	told.Cause = errors.Join(r.Cause, err)
	return &told
}

// reopen opens a slot this call has closed. It reports false if the slot is not this call's any more.
func (a *Admin) reopen(ctx context.Context, c *closing) (bool, error) {
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(c.Pool), c.slot.Ref())
		if err != nil {
			return nil, err
		}
		p, err := c.stillMine(st)
		if err != nil {
			return nil, err
		}
		next := *c.slot
		next.Closing = false
		return a.slotTxn(st, p, c, &next, EventSlotReopened), nil
	})
	if errors.Is(err, errClosingLost) || ReasonOf(err) == ReasonPoolNotFound || ReasonOf(err) == ReasonPoolDeleting {
		return false, nil // there is nothing to open
	}
	return rev != 0, err
}
