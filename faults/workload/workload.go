// Package workload is the callers of a fault test: gateways that trigger rotations, several for one key at different
// replicas at once, proxies that read and bind, operators that stock, restore, disable, add and remove keys.
//
// Everything that is asked and answered goes into a history. Callers repeat as the README advises: with the same
// request id, at the next replica, after a growing pause.
//
// It promises that a seed gives the same callers with the same intentions. It does not promise the same history: that
// also depends on the answers and on timing.
package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/faults/litellm"
	"github.com/rotatord/rotatord/faults/redial"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// Options of a workload.
type Options struct {
	Replicas []string // host:port of each
	Seed     uint64
	History  *history.Writer

	// Clients is how many callers there are. Default: 12.
	Clients int
	// Think is the mean pause of a caller between two calls. Default: 40 ms.
	Think time.Duration
	// Try bounds one request. Default: 2.5 s, a little more than a replica takes to answer.
	Try time.Duration
	// GiveUp is when a caller stops to repeat. Default: 6 s.
	GiveUp time.Duration
	// Bound is how long the operations of Final may take, repeats included. Default: 15 s.
	Bound time.Duration
	// Pools to make and use. Default: Pools(), without those that have a provider if there is no Upstream.
	Pools []Pool
	// Upstream is asked for keys by pools with a provider.
	Upstream *litellm.Upstream
}

// Pool is one pool of the workload.
type Pool struct {
	Name   string
	Active int  // keys in service
	Backup int  // keys in stock at first, and what it is filled up to
	Admin  bool // keys are disabled, removed and added, rotations paused
	Scarce bool // stock is filled late and little
	Bound  int  // rotations in boundWindow; 0: any number
	// Provider: keys are minted at the upstream, and revoked there soon after they were retired.
	Provider bool
	Reports  bool // keys are reported bad
	Outages  bool // so many at once now and then that the pool takes it for an incident
}

// boundWindow is short, so that a run has many.
const boundWindow = 2 * time.Second

// Pools are the default pools: busy ones, one that is out of stock again and again, one in which no operator changes what
// is in service, so that the number of its keys is the same at every revision, one whose bound is reached all the time, one whose
// stock is minted, one whose keys are reported bad, and one whose upstream fails now and then.
func Pools() []Pool {
	return []Pool{
		{Name: "strict", Active: 8, Backup: 6},
		{Name: "busy", Active: 10, Backup: 12},
		{Name: "scarce", Active: 6, Backup: 2, Scarce: true},
		{Name: "admin", Active: 8, Backup: 6, Admin: true},
		{Name: "admin-scarce", Active: 6, Backup: 2, Admin: true, Scarce: true},
		{Name: "bounded", Active: 8, Backup: 6, Bound: 3},
		{Name: "minted", Active: 6, Backup: 4, Provider: true, Reports: true},
		{Name: "reported", Active: 8, Backup: 6, Reports: true},
		{Name: "outages", Active: 8, Backup: 6, Reports: true, Outages: true},
	}
}

func (o Options) withDefaults() Options {
	if o.Clients == 0 {
		o.Clients = 12
	}
	if o.Think == 0 {
		o.Think = 40 * time.Millisecond
	}
	if o.Try == 0 {
		o.Try = 2500 * time.Millisecond
	}
	if o.GiveUp == 0 {
		o.GiveUp = 6 * time.Second
	}
	if o.Bound == 0 {
		o.Bound = 15 * time.Second
	}
	if o.Pools == nil {
		o.Pools = slices.DeleteFunc(Pools(), func(p Pool) bool { return p.Provider && o.Upstream == nil })
	}
	return o
}

// Workload is the callers, and what they know in common.
type Workload struct {
	Options
	conns     []*grpc.ClientConn
	replicas  []*replica
	boards    []*board
	calls     atomic.Int64
	succeeded atomic.Int64
	rotations atomic.Int64
	requests  atomic.Int64 // numbers request ids
	phase     atomic.Value // string
}

type replica struct {
	address string
	rot     v1.RotationServiceClient
	keys    v1.KeyServiceClient
	adm     v1.AdminServiceClient
}

// New connects, and makes the pools with their keys.
func New(ctx context.Context, opts Options) (*Workload, error) {
	w := &Workload{Options: opts.withDefaults()}
	w.phase.Store(history.Setup)
	for _, address := range w.Replicas {
		r, err := w.dial(address)
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
		w.replicas = append(w.replicas, r)
	}
	for i, p := range w.Pools {
		b := &board{Pool: p, alive: make(map[string]int64), retired: make(map[string]bool)}
		w.boards = append(w.boards, b)
		if err := w.caller(fmt.Sprintf("setup-%d", i), uint64(1000+i)).create(ctx, b); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	w.phase.Store(history.Main)
	return w, nil
}

func (w *Workload) dial(address string) (*replica, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), redial.Quickly())
	if err != nil {
		return nil, fmt.Errorf("connecting to replica %s: %w", address, err)
	}
	w.conns = append(w.conns, conn)
	return &replica{address: address, rot: v1.NewRotationServiceClient(conn), keys: v1.NewKeyServiceClient(conn), adm: v1.NewAdminServiceClient(conn)}, nil
}

// Close ends the connections.
func (w *Workload) Close() error {
	var errs []error
	for _, conn := range w.conns {
		errs = append(errs, conn.Close())
	}
	w.conns = nil
	return errors.Join(errs...)
}

// Run makes calls until ctx ends, and waits for those under way.
func (w *Workload) Run(ctx context.Context) {
	var clients sync.WaitGroup
	for i := range w.Clients {
		c := w.caller(fmt.Sprintf("c%d", i), uint64(i))
		clients.Go(func() { c.work(ctx) })
	}
	clients.Wait()
}

// Succeeded is how many calls have succeeded so far.
func (w *Workload) Succeeded() int64 { return w.succeeded.Load() }

// Rotations is how many rotations callers were told they made.
func (w *Workload) Rotations() int64 { return w.rotations.Load() }

// canary is part of every secret, and of nothing else.
const canary = "CANARY"

// Canaries are texts that may be found nowhere but in answers that were asked for secrets.
func (w *Workload) Canaries() []string { return []string{canary} }

// secretOf is the secret of a key; another version of it for another key of the same id.
func secretOf(pool, key string, version int) string {
	return fmt.Sprintf("sk-fake-%s-%s-%s-%d-not-a-real-key", canary, pool, key, version)
}

// caller is one client. It is used by one goroutine, but for the requests it makes at once.
type caller struct {
	*Workload
	name string
	rng  *rand.Rand
	seen map[string]int64 // newest revision it was told, by pool
}

func (w *Workload) caller(name string, stream uint64) *caller {
	return &caller{Workload: w, name: name, rng: rand.New(rand.NewPCG(w.Seed, stream)), seen: make(map[string]int64)}
}

// fork is a caller for a goroutine of its own.
func (c *caller) fork(i int) *caller {
	return &caller{Workload: c.Workload, name: fmt.Sprintf("%s.%d", c.name, i), rng: rand.New(rand.NewPCG(c.rng.Uint64(), uint64(i))), seen: make(map[string]int64)}
}

func (c *caller) chance(percent int) bool { return c.rng.IntN(100) < percent }

// newRequestID makes an id that says who made it up.
func (c *caller) newRequestID() string {
	return fmt.Sprintf("%s-%d", c.name, c.requests.Add(1))
}
