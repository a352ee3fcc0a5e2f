package lifecycle_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
)

// betweenLists is a Store in which something happens right before the nth list is made.
type betweenLists struct {
	pool.Store
	n    int64
	do   func()
	made atomic.Int64
}

func (b *betweenLists) List(ctx context.Context, kind pool.Kind, name string, limit int) ([]pool.Record, int64, error) {
	if b.made.Add(1) == b.n {
		b.do()
	}
	return b.Store.List(ctx, kind, name, limit)
}

// TestStockedWhileCounted: a key that goes into stock between the two lists of one count is not missed by both.
func TestStockedWhileCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(2, 3))
		r.byHand = true
		verified := &pool.Preparation{Pool: "p", Key: "m", Phase: pool.PhaseVerifying, Work: &pool.Work{Generation: 1, NotBefore: time.Now().Add(time.Hour)}}
		r.store.Put(&pool.Token{Pool: "p", Name: pool.TokenStockLow}, &pool.Backup{Pool: "p", Key: "b"}, verified)
		// One key is missing. The second count, after it was planned, is the one that must find that none is any more.
		store := &betweenLists{Store: r.store, n: 4, do: func() {
			r.store.Put(&pool.Backup{Pool: "p", Key: "m"})
			r.store.Drop(verified.Ref())
		}}
		r.start("r0", func(cfg *lifecycle.Config) { cfg.Store = store })
		r.until("filled", time.Minute, func() bool { return len(records[*pool.Backup](r, pool.KindBackup)) >= 3 })
		time.Sleep(time.Hour)
		if n := r.upstream.count("mint", ""); n != 1 || store.made.Load() < 4 {
			t.Errorf("%d keys were minted in %d lists, want the one that was missing", n, store.made.Load())
		}
	})
}

// TestFilledToTheMaximum although the first keys are in stock long before the last are planned, and although the pool is
// paused on the way.
func TestFilledToTheMaximum(t *testing.T) {
	for _, paused := range []bool{false, true} {
		t.Run(fmt.Sprint("paused on the way: ", paused), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withStock(1, 50))
				r.start("r0", nil)
				stock := func() int { return len(records[*pool.Backup](r, pool.KindBackup)) }
				r.until("not low", time.Minute, func() bool { return stock() >= 1 })
				if paused {
					if _, _, err := r.admin.PausePool(t.Context(), "p"); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Hour)
					if n := stock(); n < 1 || n >= 50 {
						t.Fatalf("paused with %d keys: the test shows nothing", n)
					}
					if _, _, err := r.admin.ResumePool(t.Context(), "p"); err != nil {
						t.Fatal(err)
					}
				}
				r.until("filled", time.Minute, func() bool { return stock() == 50 })
				r.until("not to be filled", time.Minute, func() bool { return len(records[*pool.Token](r, pool.KindToken)) == 0 })
				time.Sleep(time.Hour)
				if n, told := r.upstream.count("mint", ""), r.events("")[pool.EventStockLow]; n != 50 || told != 1 {
					t.Errorf("%d keys were minted and low stock told %d times, want 50 and once", n, told)
				}
			})
		})
	}
}
