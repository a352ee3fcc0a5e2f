package pool

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The bound on a pool's rotations: N tokens, each of which may be used once in a window. Whatever spends one compares that
// the token is as it was seen and puts when it was used, so two rotations never use one token, whichever replicas make them,
// and in any span as long as the window at most N are used.
//
// When a token was used is told by the clock of the replica that wants to use it again: the time at which its mirror was
// shown that use, which is never before the commit. So neither the difference between two replicas' clocks nor a holder
// that was paused between the making up of its transaction and the sending dates a use too early.
//
// What remains: a replica that has just loaded its mirror was shown no use, and goes by UsedAt. That is off by the
// difference of the clocks, and by as long as the transaction was under way after it was dated: tokenAge, and longer only if
// the holder stood still, or the network kept the transaction, after the last look at its age. A clock that is set while
// rotatord runs does not matter, one that stands still with a suspended machine does.

// tokenAge is how long after its making up a transaction that spends a token may be sent. It is longer than a rotation may
// take (RotatorConfig.Budget), so only one that stood still meets it.
const tokenAge = 2 * time.Second

// unbounded reports whether the pool's spec does not bound rotations.
func (p *Pool) unbounded() bool {
	limit, _ := p.Spec.Bound.Limit()
	return limit == 0
}

// shown is the token as a mirror keeps it that was shown it at a time.
func (t *Token) shown(at time.Time) *Token {
	c := *t
	c.LastUse = at
	return &c
}

// loaded is the token as a mirror keeps it that is loaded at a time, when the use may be long past. before is the token the
// mirror had; nil: none.
func (t *Token) loaded(before *Token, at time.Time) *Token {
	switch {
	case before != nil && before.ModRevision == t.ModRevision:
		at = before.LastUse
	case t.UsedAt.Before(at):
		at = t.UsedAt
	}
	return t.shown(at)
}

// tokenName is the name of token i.
func tokenName(i int) string { return strconv.Itoa(i) }

// Allowance is what a pool's bound leaves.
type Allowance struct {
	Bounded bool
	Left    int       // rotations that can be made now
	NextAt  time.Time // when one more can be; zero: none was made in the window
}

// allowance counts the tokens among the first limit that can be used. used gives a token, and false if it is not to be used
// although there is no telling when it was.
func allowance(b BoundSpec, now time.Time, token func(name string) (*Token, bool)) (left Allowance) {
	limit, window := b.Limit()
	left.Bounded = limit > 0
	for i := range limit {
		t, known := token(tokenName(i))
		switch {
		case !known:
		case t == nil || !now.Before(t.LastUse.Add(window)):
			left.Left++
		case left.NextAt.IsZero() || t.LastUse.Add(window).Before(left.NextAt):
			left.NextAt = t.LastUse.Add(window)
		}
	}
	return left
}

// Allowance is what the pool's bound leaves, as far as this mirror knows.
func (s *Snapshot) Allowance(pool string, now time.Time) Allowance {
	p := s.Pool(pool)
	if p == nil {
		return Allowance{}
	}
	return s.allowance(p.Pool, now)
}

func (s *Snapshot) allowance(p *Pool, now time.Time) Allowance {
	return allowance(p.Spec.Bound, now, func(name string) (*Token, bool) { return s.token(p.Name, name) })
}

// token is a token as the mirror has it, nil if it was never used. It is not known if it cannot be read, or not be rewritten.
func (s *Snapshot) token(pool, name string) (t *Token, known bool) {
	if len(s.Broken) > 0 && s.Broken[TokenRef(pool, name)] != nil {
		return nil, false
	}
	if p := s.Pools[pool]; p != nil {
		t = p.Tokens[name]
	}
	return t, t == nil || !t.TooNew()
}

// anyToken reports whether the mirror has a token that can be used, whoever is about to use it.
func (s *Snapshot) anyToken(p *Pool, now time.Time) bool {
	limit, window := p.Spec.Bound.Limit()
	for i := range limit {
		if t, known := s.token(p.Name, tokenName(i)); known && (t == nil || !now.Before(t.LastUse.Add(window))) {
			return true
		}
	}
	return limit == 0
}

// purse knows the tokens that this process uses or has just used.
type purse struct {
	mu    sync.Mutex    // protects the following fields
	taken map[Ref]int64 // 0: in hand; else the revision at which it was used, which the mirror may not show yet
	moved chan struct{} // closed and replaced when a token is given back
}

// take reserves a token of which is known how it was at a revision. A token that this process has used is not to be had
// before that is known; waiting reports whether it is in somebody's hands and may come free.
func (p *purse) take(ref Ref, revision int64) (taken, waiting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if put, there := p.taken[ref]; there && (put == 0 || revision < put) {
		return false, put == 0
	}
	if p.taken == nil {
		p.taken = make(map[Ref]int64)
	}
	p.taken[ref] = 0
	return true, false
}

// giveBack ends a reservation. put is the revision at which the token was used, 0 if it was not, or nobody knows. What the
// mirror shows at its revision needs no memory.
func (p *purse) giveBack(ref Ref, put, mirror int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.taken, func(_ Ref, put int64) bool { return put != 0 && put <= mirror })
	if put == 0 {
		delete(p.taken, ref)
	} else {
		p.taken[ref] = put
	}
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// next is closed when a token is given back.
func (p *purse) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moved == nil {
		p.moved = make(chan struct{})
	}
	return p.moved
}

// errBound says that no token was found. Whether the bound is reached is for the store to say.
var errBound = errors.New("no token of the pool's bound was found")

// findToken reserves a token for this attempt, nil if it needs none. Tokens that other rotations of this process are about
// to use may come free again, so they are waited for.
func (r *Rotator) findToken(ctx context.Context, f *flight, p *Pool) (*Token, error) {
	if f.req.OverrideBound || p.unbounded() {
		return nil, nil
	}
	for {
		moved := r.purse.next()
		t, reserved := r.chooseToken(p, f.lostTokens)
		switch {
		case t != nil:
			return t, nil
		case !reserved:
			return nil, errBound
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, Refuse(ReasonNotApplied, "the rotation was not made in time; try again").Because(ctx.Err())
		}
	}
}

// settleToken gives back a token; done: the flight's transaction has used it.
func (r *Rotator) settleToken(t *Token, f *flight, done bool) {
	switch {
	case t == nil:
	case done:
		r.purse.giveBack(t.Ref(), f.revision, r.Mirror.Revision())
	default:
		r.purse.giveBack(t.Ref(), 0, r.Mirror.Revision())
	}
}

// chooseToken reserves a token that can be used, other than those in not. Each replica begins with its own share of the
// tokens, at a place of its choice, so that replicas rarely meet. reserved: there are others, in the hands of rotations of
// this process.
func (r *Rotator) chooseToken(p *Pool, not map[string]bool) (chosen *Token, reserved bool) {
	limit, window := p.Spec.Bound.Limit()
	now := r.Now()
	r.Mirror.Read(func(s *Snapshot) {
		replicas := s.ReplicaNames()
		for i := range tokenOrder(limit, max(0, slices.Index(replicas, r.Replica)), max(1, len(replicas))) {
			name := tokenName(i)
			t, known := s.token(p.Name, name)
			if !known || not[name] || t != nil && now.Before(t.LastUse.Add(window)) {
				continue
			}
			if t == nil {
				t = &Token{Pool: p.Name, Name: name}
			}
			taken, waiting := r.purse.take(t.Ref(), s.Revision)
			if taken {
				chosen = t
				return
			}
			reserved = reserved || waiting
		}
	})
	return chosen, reserved
}

// tokenOrder yields the numbers below limit: those of replica self first, from a random one of them on, then the others'.
func tokenOrder(limit, self, replicas int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		own := max(0, (limit-self+replicas-1)/replicas)
		if own > 0 {
			start := rand.IntN(own)
			for k := range own {
				if !yield(self + (start+k)%own*replicas) {
					return
				}
			}
		}
		start := rand.IntN(limit)
		for k := range limit {
			if i := (start + k) % limit; i%replicas != self && !yield(i) {
				return
			}
		}
	}
}

// spend makes txn use the token; a nil one is none.
func (t *Token) spend(txn *Txn, key string, at time.Time) {
	if t == nil {
		return
	}
	txn.If = append(txn.If, Unchanged(t.Ref(), t.ModRevision))
	txn.Put = append(txn.Put, &Token{Version: renewed(t.Version), Pool: t.Pool, Name: t.Name, UsedAt: at, Key: key})
	txn.NotAfter = at.Add(tokenAge)
}

// outOfTokens reports whether, as far as is known, no token can be used for the flight: then the store is asked before a lock
// is. It costs nothing for a pool without a bound.
func (r *Rotator) outOfTokens(f *flight, known *State) (out bool) {
	if known == nil || f.req.OverrideBound {
		return false
	}
	p, err := Find[*Pool](known, PoolRef(f.life.Pool))
	if err != nil || p == nil || p.unbounded() {
		return false
	}
	now := r.Now()
	r.Mirror.Read(func(s *Snapshot) { out = !s.anyToken(p, now) })
	return out
}

// atBound looks in the store whether the pool's bound is reached, and if it is settles the flight: it is refused, and the key
// cools down; or its rotation waits already, and goes on waiting. Nothing is used up. errAgain says that the bound is not
// reached, and comes with what the store holds.
//
// A crash in it leaves at most a key that does not cool down, or a bound that the next refusal tells of.
func (r *Rotator) atBound(ctx context.Context, f *flight) (*State, error) {
	tokens, listed, err := r.Store.List(ctx, KindToken, f.life.Pool, 0)
	if err != nil {
		return nil, err
	}
	refs := lifeRefs(f.life)
	st, err := r.Store.Read(ctx, refs[:]...)
	if err != nil {
		return nil, err
	}
	if done, err := r.ended(ctx, f, st); done || err != nil {
		return nil, err
	}
	now, err := situationOf(f.life, st)
	if err != nil {
		return nil, err
	}
	if f.fulfils && !now.waits(f.life) {
		return nil, errCancelled
	}
	if err := mayRotate(now.pool, now.active, f.req.Trigger); err != nil {
		return nil, err
	}
	if f.req.reported && now.pool.IncidentAt(r.Now()) != nil {
		return nil, errIncident
	}
	clock := r.Now()
	held := r.dated(tokens, clock)
	left := allowance(now.pool.Spec.Bound, clock, func(name string) (*Token, bool) { t, used := held[name]; return t, !used || t != nil })
	if !left.Bounded || left.Left > 0 {
		f.lostTokens = nil
		return st, errAgain
	}
	if left.NextAt.IsZero() { // none can be read
		left.NextAt = clock.Add(time.Second)
	}
	r.sayReached(ctx, f, now.pool, held, listed, clock)
	if now.waits(f.life) {
		f.revision = st.Revision
		return nil, nil
	}
	r.coolDown(ctx, f, now, left.NextAt)
	return nil, boundRefusal(now.pool, left.NextAt.Sub(clock))
}

// dated gives tokens that were listed the times at which they were last used, nil for one that must not be used.
//
// The mirror knows when it was shown a use. One that it was not shown yet counts from now: it may have been committed just
// now, whatever the date in it is. A mirror that hangs makes that a little late, and never early.
func (r *Rotator) dated(listed []Record, now time.Time) map[string]*Token {
	held := make(map[string]*Token, len(listed))
	r.Mirror.Read(func(s *Snapshot) {
		for _, rec := range listed {
			ref := rec.Ref()
			t, ok := rec.(*Token)
			if !ok || t.TooNew() {
				held[ref.Name] = nil
				continue
			}
			last := now
			if seen, _ := s.token(ref.Pool, ref.Name); seen != nil && seen.ModRevision >= t.ModRevision {
				last = seen.LastUse
			}
			held[ref.Name] = t.shown(last)
		}
	})
	return held
}

func boundRefusal(p *Pool, wait time.Duration) *Refusal {
	limit, window := p.Spec.Bound.Limit()
	r := Refuse(ReasonRotationBound, "pool %q has had %d rotations within %v, as many as its bound allows: nothing was used up, and the next is possible in %v",
		p.Name, limit, window, wait.Round(time.Millisecond))
	r.Retry = wait
	r.Metadata = map[string]string{"rotations": strconv.Itoa(limit), "window": window.String()}
	return r
}

// sayReached puts on record that the bound is reached, once in a window: the compare lets one replica do it.
func (r *Rotator) sayReached(ctx context.Context, f *flight, p *Pool, held map[string]*Token, listed int64, now time.Time) {
	limit, window := p.Spec.Bound.Limit()
	before, said := held[TokenReached]
	if said && (before == nil || now.Before(before.LastUse.Add(window))) {
		return
	}
	if before == nil {
		before = &Token{Pool: p.Name, Name: TokenReached}
	}
	if taken, _ := r.purse.take(before.Ref(), listed); !taken {
		return // it is being said
	}
	txn := &Txn{
		If: []Guard{Same(p)},
		Event: &Event{
			ID: NewID(), Type: EventBoundReached, Pool: p.Name, Subject: "pools/" + p.Name, Time: now,
			Trigger: f.req.Trigger, Source: f.req.Source, Key: f.life.Key, Generation: f.life.Generation,
			Reason: strconv.Itoa(limit) + " rotations within " + window.String(),
		},
	}
	before.spend(txn, f.life.Key, now)
	res, err := r.applier.apply(ctx, txn)
	var put int64
	if err == nil && res.Applied {
		put = res.Revision
		r.Observer.BoundReached(p, f.life.Key)
	}
	r.purse.giveBack(before.Ref(), put, r.Mirror.Revision())
}

// coolDown takes a key that cannot be rotated now out of service until it can. The refusal is true without it, so what goes
// wrong here is not told: the next trigger cools the key down.
func (r *Rotator) coolDown(ctx context.Context, f *flight, now situation, until time.Time) {
	want := coolDown{pool: now.pool, active: now.active, to: StatusError, until: until, rule: ruleBound, req: &f.req}
	txn, next := want.txn(r.Now())
	if txn == nil {
		return
	}
	txn.If = append(txn.If, pendingGuard(f.life, now.pending))
	txn.Event.Reason = ruleBound // the bound has caused it, whatever the trigger's reason was
	res, err := r.applier.apply(ctx, txn)
	if err != nil || !res.Applied {
		return
	}
	next.Version = putAt(next.Version, res.Revision)
	r.Observer.CooledDown(next, f.req.Trigger, f.req.Source)
}

// ruleBound is the reason of a status that the bound has caused.
const ruleBound = "bound"
