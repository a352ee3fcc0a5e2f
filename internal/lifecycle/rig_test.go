package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// upstream is a provider that counts: the truth about what happened at the upstream.
type upstream struct {
	chooses bool // secrets, instead of us
	shows   bool // the secret of a key it has, when asked

	mu     sync.Mutex // protects the following fields
	keys   map[string]pool.Secret
	calls  map[string]int // by call and key id, those that took effect
	bad    bool           // the keys it makes do not work
	refuse error          // is answered instead of anything done
	lose   func(call, id string) bool
}

func newUpstream() *upstream {
	return &upstream{keys: make(map[string]pool.Secret), calls: make(map[string]int)}
}

var errLost = errors.New("the answer was lost")

// does counts a call that takes effect, and says whether its answer is lost.
func (u *upstream) does(call, id string) error {
	u.calls[call+" "+id]++
	if u.lose != nil && u.lose(call, id) {
		return errLost
	}
	return nil
}

func (u *upstream) Choose() pool.Secret {
	if u.chooses {
		return pool.Secret{}
	}
	return pool.NewSecret("sk-fake-" + pool.NewID())
}

func (u *upstream) Mint(_ context.Context, k pool.ProviderKey) (pool.Secret, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.refuse != nil {
		return pool.Secret{}, u.refuse
	}
	secret := k.Secret
	if u.chooses {
		secret = pool.NewSecret("sk-fake-chosen-" + pool.NewID())
	}
	u.keys[k.Alias] = secret
	if err := u.does("mint", k.ID); err != nil || !u.chooses {
		return pool.Secret{}, err
	}
	return secret, nil
}

func (u *upstream) Find(_ context.Context, k pool.ProviderKey) (bool, pool.Secret, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.refuse != nil {
		return false, pool.Secret{}, u.refuse
	}
	secret, there := u.keys[k.Alias]
	if !there || !u.chooses || !u.shows {
		secret = pool.Secret{}
	}
	return there, secret, u.does("find", k.ID)
}

func (u *upstream) Verify(_ context.Context, k pool.ProviderKey) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.refuse != nil:
		return u.refuse
	case u.bad || !u.keys[k.Alias].Equal(k.Secret):
		return pool.ErrKeyRefused
	}
	return u.does("verify", k.ID)
}

func (u *upstream) Revoke(_ context.Context, k pool.ProviderKey) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.refuse != nil {
		return u.refuse
	}
	delete(u.keys, k.Alias)
	return u.does("revoke", k.ID)
}

func (u *upstream) set(fn func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fn()
}

// count is how often a call took effect for a key; for all keys if id is "".
func (u *upstream) count(call, id string) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, c := range u.calls {
		if k == call+" "+id || id == "" && len(k) > len(call) && k[:len(call)+1] == call+" " {
			n += c
		}
	}
	return n
}

// alive is how many keys the upstream has.
func (u *upstream) alive() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.keys)
}

func (u *upstream) Provider(*pool.Pool) (pool.Provider, error) { return u, nil }

// observed counts what the Observer is told.
type observed struct {
	mu      sync.Mutex
	skipped int
	results map[string]int
}

func (o *observed) Reconciled(_ pool.Kind, _ pool.Phase, result string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.results == nil {
		o.results = make(map[string]int)
	}
	o.results[result]++
}
func (o *observed) Skipped(pool.Kind) { o.mu.Lock(); o.skipped++; o.mu.Unlock() }

func (o *observed) skips() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.skipped
}

func (*observed) Moved(pool.Record, *pool.Event)                   {}
func (*observed) Asked(pool.Record, string, string, time.Duration) {}
func (*observed) Conflict(pool.Life, string)                       {}
func (*observed) TookOver(pool.Life, string, time.Duration)        {}
func (*observed) OutcomeUnknown(string, string, int, error)        {}

// rig is replicas' workers on one store in memory. It runs in a synctest bubble.
type rig struct {
	t        *testing.T
	store    *pooltest.MemStore
	mirror   *pool.Mirror
	upstream *upstream
	seen     *observed
	admin    *pool.Admin
	byHand   bool // the test makes states that no call makes
}

var spec = pool.Spec{Provider: &pool.ProviderSpec{Exec: &pool.ExecProvider{Name: "fake"}}}

func withStock(min, max int) pool.Spec {
	s := spec
	s.Stock = &pool.StockPolicy{Min: min, Max: max}
	return s
}

func newRig(t *testing.T, s pool.Spec) *rig {
	t.Helper()
	r := &rig{t: t, store: pooltest.NewMemStore(), mirror: pool.NewMirror(), upstream: newUpstream(), seen: &observed{}}
	r.store.Put(&pool.Pool{Name: "p", Spec: s})
	r.store.Feed(r.mirror)
	r.store.Watch(r.checkRevision)
	r.admin = pool.NewAdmin(pool.AdminConfig{Store: r.store, Sealer: pooltest.FakeSealer{}, Replica: "r0"})
	return r
}

// checkRevision holds every revision to the invariants.
func (r *rig) checkRevision(revision int64, recs func() []pool.Record, _ *pool.Txn) {
	if r.byHand {
		return
	}
	for _, f := range pool.Check(recs(), time.Now()).Errors() {
		r.t.Errorf("revision %d: %s %s: %s", revision, f.Check, f.Subject, f.Message)
	}
}

// start runs a worker until stop is called or the test ends.
func (r *rig) start(name string, adjust func(*lifecycle.Config)) (stop func()) {
	r.t.Helper()
	return r.run(name, r.worker(name, adjust))
}

func (r *rig) worker(name string, adjust func(*lifecycle.Config)) *lifecycle.Worker {
	r.t.Helper()
	r.store.Put(&pool.Replica{Name: name})
	cfg := lifecycle.Config{
		Store: r.store, Locks: &pooltest.MemLocks{Store: r.store, Holder: name}, Mirror: r.mirror, Sealer: pooltest.FakeSealer{},
		Providers: r.upstream, Observer: r.seen, Replica: name,
	}
	if adjust != nil {
		adjust(&cfg)
	}
	return lifecycle.New(cfg)
}

func (r *rig) run(name string, w *lifecycle.Worker) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		r.store.Drop(pool.ReplicaRef(name))
	})
	r.t.Cleanup(stop)
	return stop
}

// until waits in the bubble's time until a condition holds.
func (r *rig) until(what string, limit time.Duration, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(limit / 600) {
		if time.Now().After(end) {
			r.t.Fatalf("after %v: still not %s; %s", limit, what, r.dump())
		}
	}
}

func (r *rig) dump() (text string) {
	recs, _, _ := r.store.ReadAll(context.Background())
	for _, rec := range recs {
		switch rec := rec.(type) {
		case *pool.Preparation:
			text += fmt.Sprintf("\nstock/%s %s %+v", rec.Key, rec.Phase, rec.Work)
		case *pool.Retired:
			text += fmt.Sprintf("\nretired/%s %s %+v", rec.Key, rec.Phase, rec.Work)
		case *pool.Lock, *pool.Token:
			text += fmt.Sprintf("\n%+v", rec)
		}
	}
	for _, e := range r.store.Events() {
		text += fmt.Sprintf("\n%d %s %s %s", e.Revision, e.Type, e.Subject, e.Reason)
	}
	return text
}

// records of a kind.
func records[R pool.Record](r *rig, kind pool.Kind) (recs []R) {
	r.t.Helper()
	all, _, err := r.store.List(context.Background(), kind, "p", 0)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, rec := range all {
		recs = append(recs, rec.(R))
	}
	return recs
}

// events counts events by type, of one subject if that is not "".
func (r *rig) events(subject string) map[pool.EventType]int {
	n := make(map[pool.EventType]int)
	for _, e := range r.store.Events() {
		if subject == "" || e.Subject == subject {
			n[e.Type]++
		}
	}
	return n
}

// retire puts an active key new into a slot and old, which held it, among the retired keys.
func (r *rig) retire(old, successor string) {
	r.t.Helper()
	secret := func(key string) pool.Sealed {
		s, err := pooltest.FakeSealer{}.Seal("p", key, pool.NewSecret("sk-fake-secret-of-"+key))
		if err != nil {
			r.t.Fatal(err)
		}
		return s
	}
	claim := func(key string) *pool.Fingerprint {
		return &pool.Fingerprint{Pool: "p", HMAC: secret(key).Fingerprint, Key: key}
	}
	r.upstream.set(func() { r.upstream.keys[pool.AliasOf("p", old)] = pool.NewSecret("sk-fake-secret-of-" + old) })
	r.store.Put(
		&pool.Slot{Pool: "p", Name: "s-" + old}, claim(old), claim(successor),
		&pool.Active{Pool: "p", Key: successor, Slot: "s-" + old, Status: pool.StatusHealthy, Sealed: secret(successor), Replaces: old},
		&pool.Retired{Pool: "p", Key: old, Phase: pool.PhaseRetired, Slot: "s-" + old, Generation: 2, ReplacedBy: successor, Sealed: secret(old), AddedAt: time.Now(), RetiredAt: time.Now()},
	)
}

func (r *rig) retired(key string) *pool.Retired {
	for _, rec := range records[*pool.Retired](r, pool.KindRetired) {
		if rec.Key == key {
			return rec
		}
	}
	return nil
}
