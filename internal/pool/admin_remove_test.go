package pool_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// TestRemoveBoundKeyIsRefused names some of the proxies and leaves everything as it was.
func TestRemoveBoundKeyIsRefused(t *testing.T) {
	r := newAdminRig(t).fill()
	for i := range 15 {
		r.bind(fmt.Sprintf("many-%02d", i), "s3")
	}
	unbound, rev, err := r.admin.RemoveKey(r.ctx, "p", "k3", false)
	var refusal *pool.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != pool.ReasonKeyBound || unbound != 0 || rev != 0 {
		t.Fatalf("got %d, %d, %v; want it refused because it is bound", unbound, rev, err)
	}
	named := refusal.Metadata["proxies"]
	if refusal.Metadata["count"] != "15" || strings.Count(named, "many-") != 10 || !strings.Contains(refusal.Message, "proxies (15:") || !strings.Contains(refusal.Message, "many-00") {
		t.Errorf("refusal %q with %v; want 15 counted and 10 named", refusal.Message, refusal.Metadata)
	}
	if read[*pool.Slot](r, pool.SlotRef("p", "s3")).Closing {
		t.Error("the slot is still closed")
	}
	if !r.has(pool.PendingRef("p", "k3")) {
		t.Error("the refused removal has cancelled the waiting rotation")
	}
	r.bind("late", "s3")
	r.sound("after it")
}

// TestRemoveKeyWithManyProxies: more proxies than one transaction could hold.
func TestRemoveKeyWithManyProxies(t *testing.T) {
	r := newAdminRig(t).fill()
	r.byHand = true // the revisions between are checked with fewer proxies
	const n = 300
	for i := range n {
		slots := []string{"s3"}
		if i%2 == 0 {
			slots = []string{"s1", "s3", "s2"}
		}
		r.bind(fmt.Sprintf("proxy-%03d", i), slots...)
	}
	unbound, rev, err := r.admin.RemoveKey(r.ctx, "p", "k3", true)
	r.must(err)
	if unbound != n || rev == 0 {
		t.Errorf("unbound %d at %d, want %d", unbound, rev, n)
	}
	bindings, _, err := r.store.List(r.ctx, pool.KindBinding, "p", 0)
	r.must(err)
	if len(bindings) != n/2+2 {
		t.Errorf("%d bindings are left, want %d", len(bindings), n/2+2)
	}
	b := read[*pool.Binding](r, pool.BindingRef("p", "proxy-000"))
	if len(b.Slots) != 2 || b.Slots[0] != (pool.SlotPriority{Slot: "s1", Priority: 1}) || b.Slots[1] != (pool.SlotPriority{Slot: "s2", Priority: 3}) {
		t.Errorf("a binding is left with %v, want s1 and s2 with their priorities", b.Slots)
	}
	r.sound("after it")
}

// TestRemoveKeyTakesOver: a removal that was interrupted after any of its calls is finished by the next.
func TestRemoveKeyTakesOver(t *testing.T) {
	for _, unbind := range []bool{false, true} {
		r := newAdminRig(t).fill()
		r.must(r.crashAfterClosing(r.ctx, "k1"))
		if !read[*pool.Slot](r, pool.SlotRef("p", "s1")).Closing {
			t.Fatal("the slot is not closed")
		}
		if err := errOf(r.admin.SetBinding(r.ctx, "p", "z", priorities("s2", "s1"))); pool.ReasonOf(err) != pool.ReasonSlotClosing {
			t.Errorf("binding to it: got %v, want %s", err, pool.ReasonSlotClosing)
		}
		r.must(r.rotate("k2", "b2")) // rotations of other keys go on
		unbound, _, err := r.admin.RemoveKey(r.ctx, "p", "k1", unbind)
		if unbind {
			if err != nil || unbound != 1 || r.has(pool.SlotRef("p", "s1")) {
				t.Errorf("unbind: unbound %d, %v; want it finished", unbound, err)
			}
		} else if pool.ReasonOf(err) != pool.ReasonKeyBound || read[*pool.Slot](r, pool.SlotRef("p", "s1")).Closing {
			t.Errorf("no unbind: got %v, want it refused and the slot open", err)
		}
		r.sound("after it")
	}
}

// TestTwoRemovals: the second takes over from the first, which finds the key gone, also if it had nothing else to do than
// to open the slot again because it is bound.
func TestTwoRemovals(t *testing.T) {
	for _, key := range []string{"k3", "k1"} {
		for n := 1; n <= 10; n++ {
			inTime(t, func(t *testing.T) {
				r := newAdminRig(t).fill()
				var second error
				done := false
				r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
					if c.N == n {
						f.Before = func() { second, done = errOf(r.rival.RemoveKey(r.ctx, "p", key, true)), true }
					}
					return f
				}
				first := pool.ReasonOf(errOf(r.admin.RemoveKey(r.ctx, "p", key, false)))
				if !done {
					return
				}
				if bound := key == "k1" && first == pool.ReasonKeyBound; second != nil || first != pool.ReasonKeyNotFound && !bound {
					t.Errorf("%s, before call %d: first %v, second %v; want not found, and success", key, n, first, second)
				}
				if r.has(pool.ActiveRef("p", key)) {
					t.Errorf("%s, before call %d: it is still in service", key, n)
				}
				r.sound(fmt.Sprintf("%s, before call %d", key, n))
			})
		}
	}
}

// TestRemoveKeyOvertakenByRotation: the successor is not removed unasked; its slot is open; the answer says what to do.
func TestRemoveKeyOvertakenByRotation(t *testing.T) {
	for _, unbind := range []bool{false, true} {
		r := newAdminRig(t).fill()
		applies := 0
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Op == "Apply" {
				if applies++; applies == 2 { // closed; now it is to be deleted
					f.Before = func() { r.must(r.rotate("k3", "b1")) }
				}
			}
			return f
		}
		err := errOf(r.admin.RemoveKey(r.ctx, "p", "k3", unbind))
		if pool.ReasonOf(err) != pool.ReasonKeyWrongHome || !strings.Contains(err.Error(), "rotatorctl key remove p b1") {
			t.Errorf("got %v, want to be told that b1 has its slot", err)
		}
		if slot := read[*pool.Slot](r, pool.SlotRef("p", "s3")); slot == nil || slot.Closing {
			t.Errorf("the slot is %+v, want it open", slot)
		}
		if !r.has(pool.ActiveRef("p", "b1")) || !r.has(pool.RetiredRef("p", "k3")) {
			t.Error("the rotation is not as it was made")
		}
		r.must(errOf(r.admin.RemoveKey(r.ctx, "p", "b1", false)))
		r.must(errOf(r.admin.RemoveKey(r.ctx, "p", "k3", false)))
		r.sound("after it")
	}
}

// boundTo counts the bindings that name a slot.
func boundTo(r *adminRig, slot string) (n int) {
	r.t.Helper()
	recs, _, err := r.store.List(r.ctx, pool.KindBinding, "p", 0)
	r.must(err)
	for _, rec := range recs {
		if slices.ContainsFunc(rec.(*pool.Binding).Slots, func(s pool.SlotPriority) bool { return s.Slot == slot }) {
			n++
		}
	}
	return n
}

// notAppliedIf is what a removal that could not go on may say: not "not applied" once it has unbound somebody.
func notAppliedIf(unchanged bool) pool.Reason {
	if unchanged {
		return pool.ReasonNotApplied
	}
	return pool.ReasonOutcomeUnknown
}

// TestRemoveKeyCallerGoesAway: the slot is opened again although the caller's context has ended, whichever call that
// happens before.
func TestRemoveKeyCallerGoesAway(t *testing.T) {
	op := adminOp{name: "remove", do: func(r *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.RemoveKey(ctx, "p", "k1", true))
	}}
	calls, _ := callsOf(t, op)
	closed := slices.IndexFunc(calls, func(c pooltest.Call) bool { return c.Op == "Apply" }) + 1
	for _, call := range calls[closed:] {
		inTime(t, func(t *testing.T) {
			r := newAdminRig(t).fill()
			ctx, cancel := context.WithCancel(r.ctx)
			defer cancel()
			r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
				if c.N == call.N {
					f.Before = cancel
				}
				return f
			}
			bound := boundTo(r, "s1")
			if err := op.do(r, ctx, r.admin); pool.ReasonOf(err) != notAppliedIf(boundTo(r, "s1") == bound) {
				t.Errorf("before call %d (%s): got %v", call.N, call.Op, err)
			}
			if slot := read[*pool.Slot](r, pool.SlotRef("p", "s1")); slot == nil || slot.Closing {
				t.Errorf("before call %d (%s): the slot is %+v, want it open", call.N, call.Op, slot)
			}
			r.sound(fmt.Sprintf("before call %d", call.N))
		})
	}
}

// TestRemoveKeySettlesTheUnknown: when it is not known whether a step was applied, opening the slot again settles it: no
// copy of that step can be applied later.
func TestRemoveKeySettlesTheUnknown(t *testing.T) {
	for _, lost := range []pool.EventType{pool.EventKeyRemoved, pool.EventBindingSet} {
		inTime(t, func(t *testing.T) {
			r := newAdminRig(t).fill()
			var late []func()
			r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
				if c.Txn != nil && c.Txn.Event.Type == lost {
					f = pooltest.Fault{Err: pool.ErrOutcomeUnknown, Late: func(send func()) { late = append(late, send) }}
				}
				return f
			}
			ctx, cancel := context.WithTimeout(r.ctx, 100*time.Millisecond)
			defer cancel()
			bound := boundTo(r, "s1")
			unchanged := func() bool { return lost == pool.EventKeyRemoved && boundTo(r, "s1") == bound } // else it may have unbound somebody
			if err := errOf(r.admin.RemoveKey(ctx, "p", "k1", true)); pool.ReasonOf(err) != notAppliedIf(unchanged()) {
				t.Errorf("%s lost: got %v", lost, err)
			}
			before := r.digest()
			for _, send := range late {
				send()
			}
			if r.digest() != before || !r.has(pool.ActiveRef("p", "k1")) || read[*pool.Slot](r, pool.SlotRef("p", "s1")).Closing {
				t.Errorf("%s lost: the state after the late copies is\n%s\nand was\n%s", lost, r.digest(), before)
			}
			r.sound("after the late copies")
		})
	}
}

// TestRemoveKeyHasUnbound: a removal that has unbound proxies, and was not told so, does not say that nothing was done.
func TestRemoveKeyHasUnbound(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r := newAdminRig(t).fill()
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Txn != nil && (c.Txn.Event.Type == pool.EventBindingSet || c.Txn.Event.Type == pool.EventBindingRemoved) {
				f = pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: true}
			}
			return f
		}
		ctx, cancel := context.WithTimeout(r.ctx, 100*time.Millisecond)
		defer cancel()
		bound := boundTo(r, "s1")
		err := errOf(r.admin.RemoveKey(ctx, "p", "k1", true))
		if boundTo(r, "s1") == bound {
			t.Fatal("nobody was unbound")
		}
		if pool.ReasonOf(err) != pool.ReasonOutcomeUnknown {
			t.Errorf("got %v, want that the outcome is not known", err)
		}
		r.sound("after it")
	})
}

// TestRemoveKeyMendsALostSlot: a key whose slot was lost to a hand edit can be removed.
func TestRemoveKeyMendsALostSlot(t *testing.T) {
	r := newAdminRig(t).fill()
	r.edit().Drop(pool.SlotRef("p", "s3"))
	r.must(errOf(r.admin.RemoveKey(r.ctx, "p", "k3", false)))
	r.sound("after it")
}

func TestRemoveKeyGivesItsSecretFree(t *testing.T) {
	for _, key := range []string{"k3", "b1", "r1"} {
		r := newAdminRig(t).fill()
		r.must(errOf(r.admin.RemoveKey(r.ctx, "p", key, false)))
		r.add("p", pool.HomeBackup, pool.NewKey{ID: "heir", Secret: newKey(key).Secret})
		r.add("p", pool.HomeBackup, pool.NewKey{ID: key, Secret: pool.NewSecret("fresh")})
		r.sound(key)
	}
}
