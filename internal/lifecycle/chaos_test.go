package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// chaos is what goes wrong. Each decision is asked for under one lock, so that counters in it need none.
type chaos struct {
	mu      sync.Mutex
	apply   func(t *pool.Txn) pooltest.Fault // of the workers' writes
	kill    func(s lifecycle.Step) bool      // the worker that comes to this step dies there
	pause   func() time.Duration             // how long a worker is stopped at a step
	over    chan struct{}                    // closed when no worker is to be started any more
	guards  sync.WaitGroup
	noLock  bool // the lock always says yes and protects nothing
	workers int
	chooses bool // the upstream chooses secrets, and can show them
	lose    func(call, id string) bool
	killed  int
	rig     *rig
}

// anyLock always says yes.
type anyLock struct{}

func (anyLock) Hold(_ context.Context, e pool.Errand) (*pool.Term, *pool.Lock, error) {
	return &pool.Term{Life: e.Life()}, nil, nil
}
func (anyLock) Resign(*pool.Term) {}

var errDead = errors.New("the worker is dead")

// keepAlive runs workers, and starts another one in place of each that dies.
func (c *chaos) keepAlive(r *rig) {
	for i := range max(c.workers, 1) {
		c.replace(r, fmt.Sprintf("r%d", i), 0)
	}
}

func (c *chaos) replace(r *rig, name string, n int) {
	dead := make(chan struct{})
	var stop func()
	var once sync.Once
	stop = r.start(fmt.Sprintf("%s.%d", name, n), func(cfg *lifecycle.Config) {
		faulty := &pooltest.Faulty{Store: r.store, Decide: func(call pooltest.Call) pooltest.Fault {
			if call.Op != "Apply" || c.apply == nil {
				return pooltest.Fault{}
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.apply(call.Txn)
		}}
		cfg.Store, cfg.Limits = faulty, lifecycle.DefaultLimits()
		cfg.Limits.Attempts = 1000 // chaos wears out any number that is sensible
		if c.noLock {
			cfg.Locks = anyLock{}
		}
		gone := false
		cfg.Steps = func(_ context.Context, s lifecycle.Step, _ pool.Record) error {
			time.Sleep(c.stopped())
			c.mu.Lock()
			defer c.mu.Unlock()
			if !gone && (c.kill == nil || !c.kill(s)) {
				return nil
			}
			gone = true // whatever else it has under way is dead too
			once.Do(func() { c.killed++; close(dead) })
			return errDead
		}
	})
	c.guards.Go(func() {
		select {
		case <-dead:
			stop()
			c.replace(r, name, n+1)
		case <-c.over:
			stop()
		}
	})
}

// end stops all workers.
func (c *chaos) end() {
	close(c.over)
	c.guards.Wait()
}

func (c *chaos) stopped() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pause == nil {
		return 0
	}
	return c.pause()
}

// bump rewrites what a transaction compares, as a rival's write does: the record itself, or the pool's.
func (r *rig) bump(t *pool.Txn) {
	st, err := r.store.Read(context.Background(), t.Refs()...)
	if err != nil {
		return
	}
	for _, g := range t.If {
		switch rec := st.Records[g.Ref].(type) {
		case *pool.Preparation, *pool.Retired, *pool.Token:
			r.store.Put(rec)
			return
		}
	}
	if p := st.Records[pool.PoolRef("p")]; p != nil {
		r.store.Put(p)
	}
}

// soon revokes, purges and deletes within hours.
var soon = func() pool.Spec {
	grace := time.Minute
	s := spec
	s.Retirement, s.RecordRetention = pool.RetirementPolicy{RevokeAfter: &grace, SecretRetention: 30 * time.Minute}, time.Hour
	return s
}()

// scenarios are the lives a key can have, each with what must have happened exactly once.
var scenarios = []struct {
	name   string
	spec   pool.Spec
	begin  func(r *rig)
	done   func(r *rig) (key string, ok bool)
	events map[pool.EventType]int
	calls  map[string]int
	limit  time.Duration
}{
	{
		name: "stocking", spec: withStock(1, 1), begin: func(*rig) {},
		done: func(r *rig) (string, bool) {
			b := records[*pool.Backup](r, pool.KindBackup)
			if len(b) != 1 || len(records[*pool.Token](r, pool.KindToken)) != 0 {
				return "", false
			}
			return b[0].Key, true
		},
		events: map[pool.EventType]int{pool.EventKeyPlanned: 1, pool.EventKeyMinting: 1, pool.EventKeyMinted: 1, pool.EventKeyStocked: 1},
		calls:  map[string]int{"mint": 1, "revoke": 0},
		limit:  time.Hour,
	},
	{
		name: "retirement", spec: soon, begin: func(r *rig) { r.retire("old", "new") },
		done: func(r *rig) (string, bool) { return "old", r.retired("old") == nil },
		events: map[pool.EventType]int{
			pool.EventKeyRevoking: 1, pool.EventKeyRevoked: 1, pool.EventKeyPurged: 1, pool.EventKeyRemoved: 1,
		},
		calls: map[string]int{"mint": 0, "revoke": 1},
		limit: 4 * time.Hour,
	},
}

// run lives through every scenario under chaos and counts.
func (c *chaos) run(t *testing.T, which int) {
	t.Helper()
	s := scenarios[which]
	r := newRig(t, s.spec)
	c.rig, c.over = r, make(chan struct{})
	defer c.end()
	r.byHand = true // bumps are by hand; what is wrong in the end is looked for below
	r.upstream.chooses, r.upstream.shows, r.upstream.lose = c.chooses, true, c.lose
	s.begin(r)
	c.keepAlive(r)
	var key string
	r.until(s.name+" done", s.limit, func() (ok bool) { key, ok = s.done(r); return ok })
	if diff := cmp.Diff(s.events, r.events("keys/"+key)); diff != "" {
		t.Errorf("events (-want +got):\n%s%s", diff, r.dump())
	}
	for call, want := range s.calls {
		if n := r.upstream.count(call, ""); n != want {
			t.Errorf("%s took effect %d times, want %d%s", call, n, want, r.dump())
		}
	}
	if n, want := r.events("")[pool.EventStockLow], min(1, s.events[pool.EventKeyStocked]); n != want {
		t.Errorf("low stock was told %d times, want %d", n, want)
	}
	recs, _, _ := r.store.ReadAll(context.Background())
	for _, f := range pool.Check(recs, time.Now()).Errors() {
		t.Errorf("%s %s: %s", f.Check, f.Subject, f.Message)
	}
}

// TestRivals: before each commit of a transition a rival has changed what it compares, several times over.
func TestRivals(t *testing.T) {
	for i, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chaos{}
				lost := make(map[string]int)
				var conflicts int
				c.apply = func(t *pool.Txn) pooltest.Fault {
					name := "no transition"
					if t.Event != nil {
						name = string(t.Event.Type)
					}
					if lost[name] >= 4 {
						return pooltest.Fault{}
					}
					lost[name]++
					conflicts++
					return pooltest.Fault{Before: func() { c.rig.bump(t) }}
				}
				c.run(t, i)
				if want := 4 * len(s.events); conflicts < want {
					t.Errorf("%d conflicts, want at least %d", conflicts, want)
				}
			})
		})
	}
}

// TestKilledAtEachStep: wherever a worker dies, the next one goes on, and nothing happens twice.
func TestKilledAtEachStep(t *testing.T) {
	for i, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			for at := 1; ; at++ {
				reached := false
				t.Run(fmt.Sprint("step ", at), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						step := 0
						c := &chaos{kill: func(lifecycle.Step) bool { step++; reached = reached || step == at; return step == at }}
						c.run(t, i)
					})
				})
				if !reached {
					if want := 4 * len(s.events) / 2; at <= want {
						t.Errorf("only %d steps were seen, want more than %d", at-1, want)
					}
					return
				}
			}
		})
	}
}

// TestLostAnswers: of each write in turn the store loses the answer, with the write made or not; the upstream loses those
// of its first calls.
func TestLostAnswers(t *testing.T) {
	for i, s := range scenarios {
		for _, made := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s of the store, made %v", s.name, made), func(t *testing.T) {
				for at := 1; ; at++ {
					reached := false
					synctest.Test(t, func(t *testing.T) {
						n := 0
						c := &chaos{apply: func(*pool.Txn) pooltest.Fault {
							n++
							if n != at {
								return pooltest.Fault{}
							}
							reached = true
							return pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: made}
						}}
						c.run(t, i)
					})
					if !reached || t.Failed() {
						return
					}
				}
			})
		}
		t.Run(s.name+" of the upstream", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lost := make(map[string]int)
				c := &chaos{lose: func(call, _ string) bool { lost[call]++; return lost[call] <= 2 }}
				c.run(t, i)
			})
		})
	}
}

// TestChaos: everything at once, with several workers, with the lock and without.
func TestChaos(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 4
	}
	for i, s := range scenarios {
		for seed := range seeds {
			t.Run(fmt.Sprintf("%s/%d", s.name, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					chance := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
					c := &chaos{workers: 1 + seed%3, noLock: seed%2 == 1, chooses: seed%4 >= 2}
					c.apply = func(t *pool.Txn) pooltest.Fault {
						switch n := chance.IntN(100); {
						case n < 20:
							return pooltest.Fault{Before: func() { c.rig.bump(t) }}
						case n < 30:
							return pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: true}
						case n < 40:
							return pooltest.Fault{Err: pool.ErrOutcomeUnknown}
						}
						return pooltest.Fault{}
					}
					c.kill = func(lifecycle.Step) bool { return c.killed < 20 && chance.IntN(100) < 10 }
					c.pause = func() time.Duration {
						if chance.IntN(100) < 60 {
							return time.Duration(chance.IntN(800)) * time.Millisecond
						}
						return time.Duration(chance.IntN(20)) * time.Second
					}
					c.lose = func(string, string) bool { return chance.IntN(100) < 25 }
					c.run(t, i)
				})
			})
		}
	}
}
