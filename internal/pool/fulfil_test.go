package pool_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// What waits for stock is finished by somebody as soon as there is some, and only while it waits.
func TestFulfil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 3, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, rot := range r.rotators {
			wg.Go(func() { rot.Fulfil(ctx) })
		}
		defer func() { cancel(); wg.Wait() }()
		lives := []pool.Life{r.active("a0"), r.active("a1"), r.active("a2")}
		for i, l := range lives {
			res, err := r.rotators[i].Rotate(ctx, request(l, "waits"))
			if err != nil || res.Outcome != pool.OutcomePending {
				t.Fatalf("without stock: %v, %v", res, err)
			}
		}
		r.store.Put(&pool.Active{Pool: "p", Key: "a1", Slot: "a1", Status: pool.StatusHealthy}) // as enabling does
		r.store.Drop(pool.PendingRef("p", "a1"))
		r.backups("b0", "b1", "b2")
		time.Sleep(5 * time.Second) // in fake time: every replica has had its turn
		synctest.Wait()
		r.want("waiting", r.count(pool.KindPending), 0)
		r.want("rotations", r.count(pool.KindRotation), 2)
		r.want("stock", r.count(pool.KindBackup), 1)
		res, err := r.rotators[1].Rotate(ctx, request(lives[2], "waits"))
		if err != nil {
			t.Fatal(err)
		}
		r.want("outcome of the request that waited", res.Outcome, pool.OutcomeRotated)
	})
}

// A rotation that cannot be finished is neither tried without pause nor keeps the stock from others.
func TestFulfilDoesNotSpinOrStarve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.rotators[0].Fulfil(ctx) })
		defer func() { cancel(); wg.Wait() }()
		for _, key := range []string{"a0", "a1"} {
			if _, err := r.rotators[0].Rotate(ctx, request(r.active(key), "waits")); err != nil {
				t.Fatal(err)
			}
		}
		// a0 is written by a newer build: this one must not rotate it.
		r.store.Put(&pool.Active{Version: pool.Version{Schema: pool.Schema + 1}, Pool: "p", Key: "a0", Slot: "a0", Status: pool.StatusExhausted})
		r.store.Put(&pool.Backup{Version: pool.Version{Schema: pool.Schema + 1}, Pool: "p", Key: "newer"})
		time.Sleep(3 * time.Second) // in fake time
		before := r.store.Revision()
		time.Sleep(10 * time.Second)
		if n := r.store.Revision() - before; n > 40 {
			t.Errorf("%d writes in ten seconds in which nothing can be finished", n)
		}
		r.backups("b")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		r.want("rotations", r.count(pool.KindRotation), 1)
		r.want("still waiting", r.count(pool.KindPending), 1)
		r.want("told of it", r.seen.blocked, 1)
	})
}

// While the store cannot be written nothing is begun.
func TestFulfilWhileNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		r := newRotateRig(t, 1, func(cfg *pool.RotatorConfig) {
			cfg.Ready = func() error {
				if full.Load() {
					return pool.Refuse(pool.ReasonStorageFull, "etcd is full")
				}
				return nil
			}
		})
		if _, err := r.rotators[0].Rotate(t.Context(), request(r.active("a"), "waits")); err != nil {
			t.Fatal(err)
		}
		full.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.rotators[0].Fulfil(ctx) })
		defer func() { cancel(); wg.Wait() }()
		r.backups("b")
		before := r.faulty.Calls()
		time.Sleep(10 * time.Second) // in fake time
		r.want("calls to a store that is full", r.faulty.Calls()-before, 0)
		full.Store(false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		r.want("rotations after it", r.count(pool.KindRotation), 1)
	})
}
