package spend

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/upstream"
)

// term is the time in which this replica leads, and what it remembers of it.
type term struct {
	*Checker
	checks sync.WaitGroup
	ended  chan struct{} // gets a value when a check has ended

	mu      sync.Mutex // protects the following fields
	keys    map[pool.Life]*watched
	failing map[string]map[pool.Life]bool // by pool, the keys that could not be read
	running int
	atHost  map[string]int // checks under way, by base URL
}

// watched is what is remembered of a key.
type watched struct {
	next   time.Time // this and the next two are protected by the term's mu
	busy   bool      // a check is under way
	paused bool      // it was to be rotated and its pool was paused

	failures int    // readings that failed in a row; this and the next two belong to the check that is under way
	held     int    // rotations that could not be made in a row
	request  string // id of the request to rotate it, the same for all tries
}

// key is a key as it is on record, with its pool.
type key struct {
	*pool.Active
	pool  *pool.Pool
	waits bool // a rotation of it waits for stock
}

func (k *key) policy() pool.SpendPolicy { return k.pool.Spec.Spend.WithDefaults() }

func (k *key) host() string { return k.pool.Spec.Upstream.BaseURL }

// look starts the checks that are due, as far as there is room, and says when to look again.
func (t *term) look(ctx context.Context) time.Time {
	keys, now := t.onRecord(), time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	due, next := t.due(keys, now)
	t.observe(due, now)
	for _, k := range due {
		if t.running < t.AtOnce && t.atHost[k.host()] < t.PerHost {
			t.start(ctx, k)
		}
	}
	return next
}

// onRecord lists the keys whose spend is watched. A key that an operator disabled is used by nobody and rotated by nobody.
func (t *term) onRecord() (keys []*key) {
	t.Mirror.Read(func(s *pool.Snapshot) {
		for name := range s.Pools {
			p := s.Pool(name)
			if p == nil || p.Pool.Spec.Spend == nil || p.Pool.Deleting {
				continue
			}
			for _, a := range p.Active {
				if a.Status != pool.StatusDisabled {
					pending := p.Pending[a.Key]
					keys = append(keys, &key{a, p.Pool, pending != nil && pending.Generation == a.CreateRevision})
				}
			}
		}
	})
	return keys
}

// due keeps what is remembered to the keys there are, and lists those to be looked at now, the longest overdue first. It
// is called with mu held.
func (t *term) due(keys []*key, now time.Time) (due []*key, next time.Time) {
	next = now.Add(intervals[0])
	known := make(map[pool.Life]*watched, len(keys))
	for _, k := range keys {
		w := t.keys[k.Life()]
		if w == nil {
			w = &watched{next: firstCheck(k.Active, now)}
		}
		known[k.Life()] = w
		if w.paused && !k.pool.Paused && !w.busy {
			w.paused, w.next = false, now
		}
		switch {
		case w.busy:
		case w.next.After(now):
			next = earlier(next, w.next)
		default:
			due = append(due, k)
		}
	}
	t.keys = known
	slices.SortFunc(due, func(a, b *key) int {
		return cmp.Or(known[a.Life()].next.Compare(known[b.Life()].next), cmp.Compare(a.Key, b.Key))
	})
	return due, next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (t *term) observe(due []*key, now time.Time) {
	var lag time.Duration
	if len(due) > 0 {
		lag = now.Sub(t.keys[due[0].Life()].next)
	}
	t.Observer.SpendDue(len(due), lag)
}

// start is called with mu held.
func (t *term) start(ctx context.Context, k *key) {
	w := t.keys[k.Life()]
	w.busy = true
	t.running++
	if t.atHost == nil {
		t.atHost = make(map[string]int)
	}
	t.atHost[k.host()]++
	t.checks.Go(func() {
		t.check(ctx, k, w)
		t.mu.Lock()
		defer t.mu.Unlock()
		w.busy = false
		t.running--
		if t.atHost[k.host()]--; t.atHost[k.host()] == 0 {
			delete(t.atHost, k.host())
		}
		select {
		case t.ended <- struct{}{}:
		default:
		}
	})
}

// check looks at one key. A crash anywhere in it loses a reading, which the next leader makes; a rotation that was asked
// for is made once or not at all, whoever asks again.
func (t *term) check(ctx context.Context, k *key, w *watched) {
	at := time.Now()
	r, err := t.read(ctx, k)
	if ctx.Err() != nil {
		return // somebody else leads, and looks
	}
	if err != nil {
		t.failed(k, w, err)
		return
	}
	t.works(k, w)
	policy := k.policy()
	budget := budgetOf(r, policy)
	next := again(0, at) // refused, and no number: look again soon
	if r.SpendUSD != nil {
		next = jittered(nextCheck(*r.SpendUSD, budget, at), at)
		t.record(ctx, k, *r.SpendUSD, budget, at)
	}
	t.plan(w, next)
	if why := reason(r, budget, policy.Threshold); why != "" {
		t.rotate(ctx, k, w, why)
		return
	}
	w.held = 0
	t.Observer.SpendChecked(k.Pool, ResultOK)
}

// plan says when a key is looked at next.
func (t *term) plan(w *watched, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.next = next
}

func (t *term) read(ctx context.Context, k *key) (Reading, error) {
	q := Target{Kind: k.pool.Spec.Upstream.Is(), BaseURL: k.host()}
	var err error
	if q.Key, err = t.Sealer.Open(k.Pool, k.Key, k.Sealed); err != nil {
		return Reading{}, err
	}
	if !k.pool.Credential.IsZero() {
		if q.Credential, err = t.Sealer.Open(k.Pool, pool.CredentialID, k.pool.Credential); err != nil {
			return Reading{}, err
		}
	}
	return t.Reader.Read(ctx, q)
}

// failed puts a key off, for longer each time, and at least until the upstream may be asked.
func (t *term) failed(k *key, w *watched, err error) {
	now := time.Now()
	next := again(w.failures, now)
	var e *upstream.CallError
	if errors.As(err, &e) && e.RetryAt.After(next) {
		next = jittered(e.RetryAt, now)
	}
	if e == nil || !e.Unsent { // what was not asked has not failed
		w.failures++
	}
	t.plan(w, next)
	t.Observer.SpendChecked(k.Pool, ResultFailed)
	t.mu.Lock()
	first := len(t.failing[k.Pool]) == 0
	if first {
		t.failing[k.Pool] = make(map[pool.Life]bool)
	}
	t.failing[k.Pool][k.Life()] = true
	t.mu.Unlock()
	if first { // one line a pool, not one a key
		t.Log.Warn("a key's spend cannot be read; it is tried again", "pool", k.Pool, "key", k.Key, "error", err)
	}
}

func (t *term) works(k *key, w *watched) {
	w.failures = 0
	t.mu.Lock()
	defer t.mu.Unlock()
	failing := t.failing[k.Pool]
	if len(failing) == 0 {
		return
	}
	delete(failing, k.Life())
	for l := range failing { // keys that have gone meanwhile
		if t.keys[l] == nil {
			delete(failing, l)
		}
	}
	if len(failing) == 0 {
		t.Log.Info("the spend of all keys can be read again", "pool", k.Pool)
	}
}

// record writes a reading down if it matters. If that fails the next reading matters as much.
func (t *term) record(ctx context.Context, k *key, spend, budget float64, at time.Time) {
	if !k.SpendMatters(spend, budget) {
		return
	}
	if err := t.Record(ctx, k.Life(), spend, budget, at); err != nil {
		t.Log.Debug("a key's spend was not written; the next reading is", "pool", k.Pool, "key", k.Key, "error", err)
	}
}

// rotate asks for a key's rotation. It may be refused: then it is asked for again, later each time.
func (t *term) rotate(ctx context.Context, k *key, w *watched, why string) {
	switch {
	case k.pool.Paused:
		t.hold(k, w, why, "the pool is paused")
		return
	case k.waits:
		t.hold(k, w, why, "it waits for a backup")
		return
	}
	if w.request == "" {
		w.request = uuid.NewString()
	}
	res, err := t.Rotate(ctx, pool.RotateRequest{
		Pool: k.Pool, Key: k.Key, Generation: k.CreateRevision, Trigger: pool.TriggerSpendChecker,
		Source: Source, Reason: why, RequestID: w.request,
	})
	switch {
	case err != nil && ctx.Err() != nil:
	case err != nil:
		t.hold(k, w, why, err.Error())
	case res.Outcome == pool.OutcomePending:
		t.hold(k, w, why, "it waits for a backup")
	case res.Outcome == pool.OutcomeRotated:
		t.Observer.SpendChecked(k.Pool, ResultRotated)
	default:
		t.Observer.SpendChecked(k.Pool, ResultAlreadyRotated)
	}
}

// hold puts off a key that has to be rotated and cannot be now, with one line in the log for all tries.
func (t *term) hold(k *key, w *watched, why, because string) {
	t.Observer.SpendChecked(k.Pool, ResultHeld)
	if w.held == 0 {
		t.Log.Warn("a key's budget is spent and it cannot be rotated now; it is tried again", "pool", k.Pool, "key", k.Key, "reason", why, "because", because)
	}
	next := again(w.held, time.Now())
	w.held++
	t.mu.Lock()
	defer t.mu.Unlock()
	w.next, w.paused = next, k.pool.Paused
}
