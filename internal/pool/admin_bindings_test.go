package pool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

func TestSetBinding(t *testing.T) {
	r := newAdminRig(t).fill()
	b, rev, err := r.admin.SetBinding(r.ctx, "p", "z", []pool.SlotPriority{{Slot: "s3", Priority: 7}, {Slot: "s2"}, {Slot: "s1"}})
	r.must(err)
	want := []pool.SlotPriority{{Slot: "s1", Priority: 1}, {Slot: "s2", Priority: 1}, {Slot: "s3", Priority: 7}}
	if diff := cmp.Diff(want, b.Slots); diff != "" || b.ModRevision != rev || b.UpdatedAt.IsZero() {
		t.Errorf("bound as %+v at %d (-want +got):\n%s", b, rev, diff)
	}
	if diff := cmp.Diff(read[*pool.Binding](r, pool.BindingRef("p", "z")), b); diff != "" {
		t.Errorf("the answer is not what is stored (-stored +answer):\n%s", diff)
	}
	if _, same, err := r.admin.SetBinding(r.ctx, "p", "z", []pool.SlotPriority{{Slot: "s1"}, {Slot: "s2", Priority: 1}, {Slot: "s3", Priority: 7}}); err != nil || same != rev {
		t.Errorf("again in another order: got %d, %v; want %d without a write", same, err, rev)
	}
	if b, _, err = r.admin.SetBinding(r.ctx, "p", "z", priorities("s3")); err != nil || b.CreateRevision != rev || len(b.Slots) != 1 {
		t.Errorf("replaced: %+v, %v", b, err)
	}
	if gone, err := r.admin.RemoveBinding(r.ctx, "p", "z"); err != nil || gone == 0 || r.has(pool.BindingRef("p", "z")) {
		t.Errorf("removed at %d: %v", gone, err)
	}
}

func TestSetBindingNamesTheSlots(t *testing.T) {
	r := newAdminRig(t).fill()
	r.must(r.crashAfterClosing(r.ctx, "k3"))
	for _, tt := range []struct {
		slots []string
		want  pool.Reason
		names string
	}{
		{[]string{"s1", "nope", "neither"}, pool.ReasonSlotNotFound, "nope, neither"},
		{[]string{"s1", "s3"}, pool.ReasonSlotClosing, "s3"},
	} {
		err := errOf(r.admin.SetBinding(r.ctx, "p", "z", priorities(tt.slots...)))
		var refusal *pool.Refusal
		if !errors.As(err, &refusal) || refusal.Reason != tt.want || refusal.Metadata["slots"] != tt.names {
			t.Errorf("%v: got %v, want %s naming %s", tt.slots, err, tt.want, tt.names)
		}
	}
}

// TestSetBindingWithAllItsSlots: the most slots a binding may have fit into one transaction.
func TestSetBindingWithAllItsSlots(t *testing.T) {
	r := newAdminRig(t).fill()
	var keys []pool.NewKey
	var slots []string
	for i := range pool.MaxBindingSlots {
		keys, slots = append(keys, newKey(fmt.Sprint("m", i))), append(slots, fmt.Sprint("m", i))
	}
	r.add("p", pool.HomeActive, keys...)
	r.must(errOf(r.admin.SetBinding(r.ctx, "p", "z", priorities(slots...))))
	r.sound("after it")
}

// TestBindAgainstRemoval binds and removes at the same time, many times: no revision shows a binding that dangles (the
// rig looks at each), and of bind and removal without unbind only one succeeds.
func TestBindAgainstRemoval(t *testing.T) {
	r := newAdminRig(t).fill()
	for round := range 30 {
		key := fmt.Sprint("race", round)
		r.add("p", pool.HomeActive, newKey(key))
		var wg sync.WaitGroup
		var bound, removed error
		wg.Go(func() { bound = errOf(r.rival.SetBinding(r.ctx, "p", "z"+key, priorities(key, "s1"))) })
		wg.Go(func() { removed = errOf(r.rival.RemoveKey(r.ctx, "p", key, round%2 == 0)) })
		wg.Wait()
		if round%2 == 1 && (bound == nil) == (removed == nil) {
			// Both can fail: the bind met the closed slot, which was opened again for another binding. There is none here.
			t.Errorf("round %d: bind: %v, removal: %v; want one of them", round, bound, removed)
		}
		if round%2 == 0 && removed != nil {
			t.Errorf("round %d: removal with unbind: %v", round, removed)
		}
	}
	r.sound("after it")
}

// TestStalledBindAgainstRemoval: a bind that was decided while the slot was open, and whose transaction arrives before any
// call of the removal, is bound or void, and the removal sees which.
func TestStalledBindAgainstRemoval(t *testing.T) {
	op := adminOp{name: "remove", do: func(r *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.RemoveKey(ctx, "p", "k3", false))
	}}
	calls, _ := callsOf(t, op)
	for _, call := range calls {
		inTime(t, func(t *testing.T) {
			r := newAdminRig(t).fill()
			bind := r.decided(func(ctx context.Context, a *pool.Admin) {
				_, _, _ = a.SetBinding(ctx, "p", "z", priorities("s3", "s1"))
			})
			var bound error
			r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
				if c.N == call.N {
					f.Before = func() { bound = r.applied(bind) }
				}
				return f
			}
			removed := op.do(r, r.ctx, r.admin)
			if (bound == nil) == (removed == nil) {
				t.Errorf("before call %d (%s): bind: %v, removal: %v; want one of them", call.N, call.Op, bound, removed)
			}
			r.sound(fmt.Sprintf("before call %d", call.N))
		})
	}
}

// decided lets an operation decide, and takes its first transaction before it is sent.
func (r *adminRig) decided(do func(context.Context, *pool.Admin)) (txn *pool.Txn) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	store := &pooltest.Faulty{Store: r.store, Decide: func(c pooltest.Call) (f pooltest.Fault) {
		if c.Op == "Apply" {
			txn = c.Txn
			f = pooltest.Fault{Before: cancel, Err: pool.ErrNotApplied}
		}
		return f
	}}
	do(ctx, pool.NewAdmin(pool.AdminConfig{Store: store, Sealer: pooltest.FakeSealer{}}))
	if txn == nil {
		r.t.Fatal("nothing was decided")
	}
	return txn
}
