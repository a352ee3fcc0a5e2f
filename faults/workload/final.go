package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rotatord/rotatord/faults/history"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// Final is called when everything is healed: it makes one rotation in each pool, which must succeed, asks again for
// every outcome that its caller was not told, and waits until no rotation waits for stock. All of it is in the history,
// as phase final; the error says what did not work within the bound.
func (w *Workload) Final(ctx context.Context) error {
	w.phase.Store(history.Final)
	if w.Upstream != nil {
		w.Upstream.Heal()
	}
	open := openRequests(w.History.Ops())
	errs := make([]error, len(w.boards))
	var pools sync.WaitGroup
	for i, b := range w.boards {
		pools.Go(func() { errs[i] = w.caller("final-"+b.Name, uint64(2000+i)).finish(ctx, b, open[b.Name]) })
	}
	pools.Wait()
	return errors.Join(errs...)
}

// openRequests are the rotations whose callers do not know their outcome, or were told that it is pending, by pool.
func openRequests(ops []history.Op) map[string][]history.Op {
	last := make(map[string]history.Op) // by what makes a request
	var order []string
	for _, op := range ops {
		if op.Kind != history.Rotate && op.Kind != history.Report {
			continue
		}
		id := fmt.Sprint(op.Kind, "/", op.Pool, "/", op.Key, "/", op.Generation, "/", op.RequestID)
		before, has := last[id]
		if !has {
			order = append(order, id)
		}
		if !has || before.Rotation == nil { // one who was told the rotation knows it
			last[id] = op
		}
	}
	open := make(map[string][]history.Op)
	for _, id := range order {
		if op := last[id]; op.Kind == history.Report && !op.Unknown() {
			continue // whoever was told that nothing was done has nothing to ask
		} else if op.Unknown() || op.Outcome == history.Pending || op.Reason == "NOT_APPLIED" {
			open[op.Pool] = append(open[op.Pool], op)
		}
	}
	return open
}

// finish brings one pool to an end.
func (c *caller) finish(ctx context.Context, b *board, open []history.Op) error {
	if op := c.resume(ctx, b); !op.Succeeded() {
		return fmt.Errorf("pool %s cannot be resumed after everything was healed: %s %s", b.Name, op.Code, op.Message)
	}
	waiting := 0
	if counts := c.counts(ctx, b); counts != nil {
		waiting = int(counts.GetPending())
	}
	if !b.Provider {
		// New keys and not restored ones: the open requests must not meet lives that begin only now.
		c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_BACKUP, 0, b.newKeys(waiting+4)...)
	} else if err := c.settled(ctx, b); err != nil {
		return err
	}
	if err := c.fulfilled(ctx, b); err != nil {
		return err
	}
	for _, was := range open {
		op := c.again(ctx, b, was)
		if op.Unknown() {
			return fmt.Errorf("the outcome of request %s is still unknown after everything was healed: %s %s", op.RequestID, op.Code, op.Message)
		}
	}
	return c.lastRotation(ctx, b)
}

// again asks once more for what was asked.
func (c *caller) again(ctx context.Context, b *board, was history.Op) history.Op {
	t, first := trigger{was.Key, was.Generation, was.RequestID}, c.rng.IntN(len(c.replicas))
	if was.Kind == history.Report {
		return c.report(ctx, first, b, t, was.Status, "")
	}
	return c.rotate(ctx, first, b, t, v1.Trigger_TRIGGER_POOL, "")
}

// settling bounds how long it takes until no key is half done: an upstream that has failed is left alone for a while.
const settling = 30 * time.Second

// settled has everything tried again that was given up, and waits until the stock is full enough, nothing is being prepared,
// and nothing retired is still to be revoked.
func (c *caller) settled(ctx context.Context, b *board) error {
	var preparing, retired map[v1.KeyPhase][]string
	for deadline := time.Now().Add(settling); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		var known [2]bool
		preparing, known[0] = c.phases(ctx, b, v1.KeyHome_KEY_HOME_PREPARING)
		retired, known[1] = c.phases(ctx, b, v1.KeyHome_KEY_HOME_RETIRED)
		for _, key := range slices.Concat(preparing[v1.KeyPhase_KEY_PHASE_FAILED], retired[v1.KeyPhase_KEY_PHASE_ORPHANED]) {
			c.retry(ctx, b, key)
		}
		open := len(preparing)
		for phase := range retired {
			if phase != v1.KeyPhase_KEY_PHASE_REVOKED && phase != v1.KeyPhase_KEY_PHASE_PURGED {
				open++
			}
		}
		if counts := c.counts(ctx, b); known == [2]bool{true, true} && open == 0 && counts != nil && int(counts.GetBackup()) >= b.Backup && counts.GetPending() == 0 {
			return nil
		}
	}
	return fmt.Errorf("pool %s is not settled %v after everything was healed: preparing %v, retired %v, %v", b.Name, settling, preparing, retired, c.counts(ctx, b))
}

// fulfilled waits until nothing waits for stock, which there is.
func (c *caller) fulfilled(ctx context.Context, b *board) error {
	deadline := time.Now().Add(c.Bound)
	for {
		counts := c.counts(ctx, b)
		switch {
		case counts != nil && counts.GetPending() == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("pool %s has rotations that wait for stock %v after it came: %v", b.Name, c.Bound, counts)
		case counts != nil && counts.GetBackup() == 0 && !b.Provider:
			c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_BACKUP, 0, b.newKeys(4)...)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// lastRotation makes a rotation that nothing may hinder.
func (c *caller) lastRotation(ctx context.Context, b *board) error {
	if !b.Provider {
		c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_BACKUP, 0, b.newKeys(2)...)
	}
	keys := c.getKeys(ctx, b, "", c.seen[b.Name]).Keys
	if len(keys) == 0 {
		c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_ACTIVE, 0, b.newKeys(1)...)
		keys = c.getKeys(ctx, b, "", c.seen[b.Name]).Keys
	}
	if len(keys) == 0 {
		return fmt.Errorf("pool %s has no usable key after everything was healed", b.Name)
	}
	t := trigger{keys[0].ID, keys[0].Generation, c.newRequestID()}
	if op := c.rotate(ctx, 0, b, t, v1.Trigger_TRIGGER_PROXY, ""); op.Outcome != history.Rotated {
		return fmt.Errorf("the last rotation of pool %s came to %s %s %s", b.Name, op.Outcome, op.Code, op.Message)
	}
	return nil
}
