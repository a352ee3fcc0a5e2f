package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotatord/rotatord/faults/history"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// create makes a pool with its keys.
func (c *caller) create(ctx context.Context, b *board) error {
	op := c.call(ctx, history.Op{Kind: history.CreatePool, Pool: b.Name}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.CreatePool(ctx, &v1.CreatePoolRequest{Name: op.Pool, Spec: &v1.PoolSpec{RotationBound: b.rotationBound()}})
		op.Revision = resp.GetRevision()
		return err
	})
	if !op.Succeeded() {
		return fmt.Errorf("creating pool %s: %s %s", b.Name, op.Code, op.Message)
	}
	err := errors.Join(c.fill(ctx, b, v1.KeyHome_KEY_HOME_ACTIVE, b.Active), c.fill(ctx, b, v1.KeyHome_KEY_HOME_BACKUP, b.Backup))
	c.getKeys(ctx, b, "", c.seen[b.Name]) // the board has to know; whether it is right is for the check to say
	return err
}

// fill adds keys, and asks again about those of which it was not told whether they are there.
func (c *caller) fill(ctx context.Context, b *board, home v1.KeyHome, n int) error {
	ids := b.newKeys(n)
	for range 5 {
		op := c.addKeys(ctx, b, home, 0, ids...)
		if !op.Succeeded() {
			return fmt.Errorf("adding keys to pool %s: %s %s", b.Name, op.Code, op.Message)
		}
		ids = nil
		for _, a := range op.Added {
			if a.Result != "ADDED" && a.Result != "SAME" {
				ids = append(ids, a.ID)
			}
		}
		if len(ids) == 0 {
			return nil
		}
	}
	return fmt.Errorf("adding keys to pool %s: %v are not there yet", b.Name, ids)
}

func (p Pool) rotationBound() *v1.RotationBound {
	bound := &v1.RotationBound{Rotations: proto.Int32(int32(p.Bound))}
	if p.Bound > 0 {
		bound.Window = durationpb.New(boundWindow)
	}
	return bound
}

// action is something a caller does, with how often.
type action struct {
	weight int
	admin  bool // only in pools with operators
	do     func(*caller, context.Context, *board)
}

var actions = []action{
	{30, false, (*caller).incident},
	{6, false, (*caller).lateTrigger},
	{6, false, (*caller).lateRepeat},
	{22, false, (*caller).readPool},
	{16, false, (*caller).readProxy},
	{8, false, (*caller).lookAtKey},
	{8, false, (*caller).lookAtRotation},
	{14, false, (*caller).stock},
	{6, false, (*caller).bindProxy},
	{2, false, (*caller).unbindProxy},
	{6, true, (*caller).disableOrEnable},
	{6, true, (*caller).replaceByHand},
	{6, true, (*caller).twins},
	{2, true, (*caller).pauseShortly},
	{8, true, (*caller).contest},
}

// work does one thing after the other until ctx ends.
func (c *caller) work(ctx context.Context) {
	for ctx.Err() == nil {
		b := c.boards[c.rng.IntN(len(c.boards))]
		c.chooseAction(b).do(c, ctx, b)
		select {
		case <-time.After(time.Duration(c.rng.Int64N(2 * int64(c.Think)))):
		case <-ctx.Done():
		}
	}
}

func (c *caller) chooseAction(b *board) action {
	for {
		total := 0
		for _, a := range actions {
			total += a.weight
		}
		n := c.rng.IntN(total)
		for _, a := range actions {
			if n -= a.weight; n < 0 {
				if a.admin && !b.Admin {
					break
				}
				return a
			}
		}
	}
}

// parties are those who notice that a key is dead.
var parties = []v1.Trigger{v1.Trigger_TRIGGER_PROVIDER, v1.Trigger_TRIGGER_POOL, v1.Trigger_TRIGGER_PROXY, v1.Trigger_TRIGGER_SPEND_CHECKER}

// incident is a key that dies: several parties notice at the same moment and ask different replicas. Some know the
// key's generation and some do not, and some send the same request twice.
func (c *caller) incident(ctx context.Context, b *board) {
	key, generation, ok := b.pickAlive(c)
	if !ok {
		c.readPool(ctx, b)
		return
	}
	var all sync.WaitGroup
	twice := ""
	for i := range 1 + c.rng.IntN(4) {
		f := c.fork(i)
		t := trigger{key, generation, f.newRequestID()}
		if twice != "" && f.chance(20) {
			t.request = twice
		}
		twice = t.request
		if f.chance(15) {
			t.generation = 0
		}
		who, proxy, first := parties[f.rng.IntN(len(parties))], f.someProxy(), f.rng.IntN(len(c.replicas))
		pause := time.Duration(f.rng.IntN(4)) * time.Millisecond
		all.Go(func() {
			time.Sleep(pause)
			f.rotate(ctx, first, b, t, who, proxy)
		})
	}
	all.Wait()
}

// lateTrigger reports a key that died long ago, in a life that may be over.
func (c *caller) lateTrigger(ctx context.Context, b *board) {
	t, ok := b.pickPast(c)
	if !ok || t.generation == 0 {
		return
	}
	t.request = c.newRequestID()
	c.rotate(ctx, c.rng.IntN(len(c.replicas)), b, t, parties[c.rng.IntN(len(parties))], "")
}

// lateRepeat asks again what was asked before, by whomever.
func (c *caller) lateRepeat(ctx context.Context, b *board) {
	if t, ok := b.pickPast(c); ok {
		c.rotate(ctx, c.rng.IntN(len(c.replicas)), b, t, parties[c.rng.IntN(len(parties))], "")
	}
}

// someMinRevision is what this caller was last told, half of the time.
func (c *caller) someMinRevision(b *board) int64 {
	if c.chance(50) {
		return c.seen[b.Name]
	}
	return 0
}

func (c *caller) readPool(ctx context.Context, b *board) {
	c.getKeys(ctx, b, "", c.someMinRevision(b))
}

// proxies is how many proxies a pool has.
const proxies = 5

func (c *caller) someProxy() string { return fmt.Sprintf("proxy-%d", c.rng.IntN(proxies)) }

func (c *caller) readProxy(ctx context.Context, b *board) {
	c.getKeys(ctx, b, c.someProxy(), c.someMinRevision(b))
}

func (c *caller) lookAtKey(ctx context.Context, b *board) {
	if t, ok := b.pickPast(c); ok {
		c.getKey(ctx, b, t.key, c.someMinRevision(b))
	}
}

func (c *caller) lookAtRotation(ctx context.Context, b *board) {
	if t, ok := b.pickPast(c); ok {
		c.getRotation(ctx, b, t)
	}
}

// stock fills up the stock: with retired keys that are restored, so that they live again, and with new ones.
func (c *caller) stock(ctx context.Context, b *board) {
	counts := c.counts(ctx, b)
	if counts == nil || int(counts.GetBackup()) >= b.Backup && !c.chance(5) {
		return
	}
	if b.Scarce && c.chance(60) {
		return // late
	}
	for range 1 + c.rng.IntN(3) {
		if key, ok := b.pickRetired(c); ok && c.chance(80) {
			c.restore(ctx, b, key)
		} else if counts.GetRetired() < 40 {
			c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_BACKUP, 0, b.newKeys(1)...)
		}
	}
}

// bindProxy binds a proxy to slots as they were named by some answer, so that some are gone.
func (c *caller) bindProxy(ctx context.Context, b *board) {
	keys := c.getKeys(ctx, b, "", 0).Keys
	if len(keys) == 0 {
		return
	}
	first, second := c.rng.IntN(len(keys)), c.rng.IntN(len(keys))
	slots := []history.Slot{{Slot: keys[first].Slot, Priority: 1}}
	if second != first {
		slots = append(slots, history.Slot{Slot: keys[second].Slot, Priority: 2})
	}
	c.bind(ctx, b, c.someProxy(), slots...)
}

func (c *caller) unbindProxy(ctx context.Context, b *board) { c.unbind(ctx, b, c.someProxy()) }

// disableOrEnable takes a key out of service for a while, or cancels what waits.
func (c *caller) disableOrEnable(ctx context.Context, b *board) {
	key, _, ok := b.pickAlive(c)
	if !ok {
		return
	}
	if c.chance(70) {
		c.disable(ctx, b, key)
		time.Sleep(time.Duration(c.rng.IntN(100)) * time.Millisecond)
	}
	c.enable(ctx, b, key)
}

// replaceByHand removes a key and adds another to service, from whatever home the id has.
func (c *caller) replaceByHand(ctx context.Context, b *board) {
	key, _, ok := b.pickAlive(c)
	if retired, has := b.pickRetired(c); has && c.chance(40) {
		if op := c.remove(ctx, b, retired, false); op.Succeeded() {
			b.notRetired(retired)
		}
		return
	}
	counts := c.counts(ctx, b)
	switch {
	case counts == nil:
	case int(counts.GetActive()) < b.Active:
		c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_ACTIVE, 0, b.newKeys(1)...)
	case ok:
		c.remove(ctx, b, key, c.chance(60))
		c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_ACTIVE, 0, b.newKeys(1)...)
	}
}

// contest is a key that dies at the moment an operator removes or disables it.
func (c *caller) contest(ctx context.Context, b *board) {
	key, generation, ok := b.pickAlive(c)
	if !ok {
		return
	}
	removes, proxy := c.chance(50), c.someProxy()
	var all sync.WaitGroup
	for i := range 3 {
		f := c.fork(i)
		pause := time.Duration(f.rng.IntN(12)) * time.Millisecond
		all.Go(func() {
			time.Sleep(pause)
			switch {
			case i < 2:
				f.rotate(ctx, f.rng.IntN(len(c.replicas)), b, trigger{key, generation, f.newRequestID()}, parties[i], proxy)
			case removes:
				f.remove(ctx, b, key, true)
			default:
				f.disable(ctx, b, key)
			}
		})
	}
	all.Wait()
	if !removes {
		c.enable(ctx, b, key)
	} else if counts := c.counts(ctx, b); counts != nil && int(counts.GetActive()) < b.Active {
		c.addKeys(ctx, b, v1.KeyHome_KEY_HOME_ACTIVE, 0, b.newKeys(1)...)
	}
}

// twins are two operators who add different keys under one id, to different homes, at the same moment.
func (c *caller) twins(ctx context.Context, b *board) {
	counts := c.counts(ctx, b)
	if counts == nil || int(counts.GetActive()) >= b.Active+2 {
		return
	}
	id := b.newKeys(1)[0]
	var both sync.WaitGroup
	for i, home := range []v1.KeyHome{v1.KeyHome_KEY_HOME_ACTIVE, v1.KeyHome_KEY_HOME_BACKUP} {
		f := c.fork(i)
		both.Go(func() { f.addKeys(ctx, b, home, i, id) })
	}
	both.Wait()
}

// pauseShortly stops all rotations of a pool for a moment.
func (c *caller) pauseShortly(ctx context.Context, b *board) {
	c.pause(ctx, b)
	time.Sleep(time.Duration(c.rng.IntN(150)) * time.Millisecond)
	c.resume(ctx, b)
}
