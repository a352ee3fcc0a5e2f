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
		resp, err := r.adm.CreatePool(ctx, &v1.CreatePoolRequest{Name: op.Pool, Spec: c.spec(b)})
		op.Revision = resp.GetRevision()
		return err
	})
	if !op.Succeeded() {
		return fmt.Errorf("creating pool %s: %s %s", b.Name, op.Code, op.Message)
	}
	if b.Provider {
		if op := c.credential(ctx, b); !op.Succeeded() {
			return fmt.Errorf("setting the credential of pool %s: %s %s", b.Name, op.Code, op.Message)
		}
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

// What is short here is longer in any pool of use: a run has to see keys revoked and purged, and incidents end.
const (
	grace     = 1500 * time.Millisecond
	retention = time.Minute // the least there is
	outage    = 2 * time.Second
)

func (c *caller) spec(b *board) *v1.PoolSpec {
	spec := &v1.PoolSpec{RotationBound: b.rotationBound(), Incident: &v1.IncidentPolicy{Disabled: !b.Outages}}
	if b.Outages {
		spec.Incident.MinKeys, spec.Incident.Window, spec.Incident.Duration = 4, durationpb.New(outage), durationpb.New(outage)
	}
	if b.Provider {
		spec.Upstream = &v1.UpstreamSpec{Kind: "litellm", BaseUrl: c.Upstream.URL}
		spec.Provider = &v1.ProviderSpec{Provider: &v1.ProviderSpec_Litellm{Litellm: &v1.LiteLLMProvider{}}}
		spec.Stock = &v1.StockPolicy{Min: int32(b.Backup), Max: int32(2 * b.Backup)}
		spec.Retirement = &v1.RetirementPolicy{RevokeAfter: durationpb.New(grace), SecretRetention: durationpb.New(retention)}
	}
	return spec
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
	in     func(Pool) bool
	do     func(*caller, context.Context, *board)
}

func all(Pool) bool        { return true }
func admin(p Pool) bool    { return p.Admin } // with operators
func byHand(p Pool) bool   { return !p.Provider }
func provided(p Pool) bool { return p.Provider }
func reports(p Pool) bool  { return p.Reports }
func outages(p Pool) bool  { return p.Outages }

var actions = []action{
	{30, all, (*caller).incident},
	{6, all, (*caller).lateTrigger},
	{6, all, (*caller).lateRepeat},
	{22, all, (*caller).readPool},
	{16, all, (*caller).readProxy},
	{8, all, (*caller).lookAtKey},
	{8, all, (*caller).lookAtRotation},
	{14, byHand, (*caller).stock},
	{6, all, (*caller).bindProxy},
	{2, all, (*caller).unbindProxy},
	{6, admin, (*caller).disableOrEnable},
	{6, admin, (*caller).replaceByHand},
	{6, admin, (*caller).twins},
	{2, admin, (*caller).pauseShortly},
	{8, admin, (*caller).contest},
	{24, provided, (*caller).tend},
	{16, provided, (*caller).regret},
	{24, reports, (*caller).failure},
	{6, reports, (*caller).lateReport},
	{18, outages, (*caller).allFail},
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
				if !a.in(b.Pool) {
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
	if t, ok := b.pickPast(c); ok && t.request != "" {
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

// tend is an operator of a pool whose keys are minted: what was given up is tried again or cancelled, and now and then what
// was not as well.
func (c *caller) tend(ctx context.Context, b *board) {
	preparing, ok := c.phases(ctx, b, v1.KeyHome_KEY_HOME_PREPARING)
	if !ok {
		return
	}
	for _, key := range preparing[v1.KeyPhase_KEY_PHASE_FAILED] {
		if c.chance(60) {
			c.retry(ctx, b, key)
		} else {
			c.remove(ctx, b, key, false)
		}
	}
	for _, phase := range []v1.KeyPhase{v1.KeyPhase_KEY_PHASE_PLANNED, v1.KeyPhase_KEY_PHASE_MINTING, v1.KeyPhase_KEY_PHASE_VERIFYING} {
		for _, key := range preparing[phase] {
			if c.chance(8) {
				c.remove(ctx, b, key, false)
			}
		}
	}
	retired, _ := c.phases(ctx, b, v1.KeyHome_KEY_HOME_RETIRED)
	for _, key := range retired[v1.KeyPhase_KEY_PHASE_ORPHANED] {
		c.retry(ctx, b, key)
	}
}

// regret puts back keys that are about to be revoked: some are already, and some are at this moment.
func (c *caller) regret(ctx context.Context, b *board) {
	retired, _ := c.phases(ctx, b, v1.KeyHome_KEY_HOME_RETIRED)
	for _, key := range retired[v1.KeyPhase_KEY_PHASE_RETIRED] {
		if c.chance(40) {
			c.restore(ctx, b, key)
		}
	}
}

// failure is a key that its upstream refuses, or asks to rest: several notice at once, and one may trigger besides.
func (c *caller) failure(ctx context.Context, b *board) {
	key, generation, ok := b.pickAlive(c)
	if !ok {
		return
	}
	httpStatus := 401
	if c.chance(40) {
		httpStatus = 429
	}
	var all sync.WaitGroup
	for i := range 1 + c.rng.IntN(4) {
		f := c.fork(i)
		t := trigger{key, generation, f.newRequestID()}
		if f.chance(15) {
			t.generation = 0
		}
		triggers, proxy, first := f.chance(10), f.someProxy(), f.rng.IntN(len(c.replicas))
		pause := time.Duration(f.rng.IntN(4)) * time.Millisecond
		all.Go(func() {
			time.Sleep(pause)
			if triggers {
				f.rotate(ctx, first, b, t, v1.Trigger_TRIGGER_PROXY, proxy)
				return
			}
			f.report(ctx, first, b, t, httpStatus, proxy)
		})
	}
	all.Wait()
}

// lateReport is about a life that may be over.
func (c *caller) lateReport(ctx context.Context, b *board) {
	t, ok := b.pickPast(c)
	if !ok || t.generation == 0 {
		return
	}
	t.request = c.newRequestID()
	c.report(ctx, c.rng.IntN(len(c.replicas)), b, t, []int{401, 429}[c.rng.IntN(2)], "")
}

// allFail is an upstream that refuses every key for a moment, and takes some of them again later.
func (c *caller) allFail(ctx context.Context, b *board) {
	var keys sync.WaitGroup
	for i, t := range b.allAlive() {
		f := c.fork(i)
		t.request = f.newRequestID()
		first, works := f.rng.IntN(len(c.replicas)), f.chance(20)
		keys.Go(func() {
			f.report(ctx, first, b, t, 401, "")
			if works {
				t.request = f.newRequestID()
				f.report(ctx, first, b, t, 200, "")
			}
		})
	}
	keys.Wait()
}
