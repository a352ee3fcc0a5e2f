// Package nemesis injects faults into a cluster, one at a time, in an order that a seed decides.
//
// Every fault has a start and an end. After the end everything that was taken away has been given back, and the next
// fault waits until all of it serves again and callers have had answers: a fault that hits an idle or a sick system
// shows nothing.
package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/cluster"
)

// Event is one fault.
type Event struct {
	Kind   string    `json:"kind"`
	Target string    `json:"target"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`    // healed
	Served time.Time `json:"served"` // all replicas serve, and all members answer
	Holds  []Hold    `json:"holds,omitempty"`
}

// Hold is a rotation that a fault had stand still at a step, in a replica that went on otherwise.
type Hold struct {
	Replica    string    `json:"replica"`
	Step       string    `json:"step"`
	Pool       string    `json:"pool"`
	Key        string    `json:"key"`
	Generation int64     `json:"generation"`
	Start      time.Time `json:"start"`
	End        time.Time `json:"end"`
}

// Options say what to do to whom.
type Options struct {
	Cluster *cluster.Cluster
	Seed    uint64
	Kinds   []string // names or groups, see Select; none: all
	// Succeeded is how many calls of the workload have succeeded so far.
	Succeeded func() int64
	// MinTraffic is how many must have succeeded between two faults. Default: 30.
	MinTraffic int64
	// Patience bounds the wait for that, and for everything to serve again. Default: 30 s.
	Patience time.Duration
	// Recorded waits until a revision has been recorded. Nothing is compacted before.
	Recorded func(ctx context.Context, revision int64) error
	// Schema is the newest schema that was recorded.
	Schema func() int
	Log    func(format string, args ...any)
	Event  func(Event) // called after each fault; may be nil
}

// ErrNoProgress is returned when after a fault the cluster did not serve again, or callers were not answered.
var ErrNoProgress = errors.New("no progress after a fault healed")

// fault is one kind.
type fault struct {
	name     string
	groups   []string
	embedded bool // makes sense with etcd embedded in one replica
	quorum   bool // takes the quorum, or the only node, away
	run      func(*run) error
}

// run is one execution of a fault.
type run struct {
	*Nemesis
	ctx    context.Context
	target []string
	holds  []Hold
}

// Nemesis injects faults.
type Nemesis struct {
	Options
	c      *cluster.Cluster
	rng    *rand.Rand
	events []Event
}

// Names lists the kinds that make sense in a cluster, or with etcd embedded.
func Names(embedded bool) (names []string) {
	for _, f := range faults {
		if !embedded || f.embedded {
			names = append(names, f.name)
		}
	}
	return names
}

// QuorumLoss reports whether a kind of fault leaves callers without a quorum, so that they may be refused meanwhile.
func QuorumLoss(kind string) bool {
	i := slices.IndexFunc(faults, func(f fault) bool { return f.name == kind })
	return i >= 0 && faults[i].quorum
}

// Select finds the faults of a list of names, groups and beginnings of names that end in *.
func Select(kinds []string, embedded bool) ([]string, error) {
	if len(kinds) == 0 {
		return Names(embedded), nil
	}
	var names []string
	for _, kind := range kinds {
		found := match(kind)
		if len(found) == 0 {
			return nil, fmt.Errorf("no fault is called %q; there are %s", kind, strings.Join(Names(false), ", "))
		}
		for _, f := range found {
			if (!embedded || f.embedded) && !slices.Contains(names, f.name) {
				names = append(names, f.name)
			}
		}
	}
	return names, nil
}

func match(kind string) (found []fault) {
	beginning, open := strings.CutSuffix(kind, "*")
	for _, f := range faults {
		if f.name == kind || slices.Contains(f.groups, kind) || open && strings.HasPrefix(f.name, beginning) {
			found = append(found, f)
		}
	}
	return found
}

// Run injects faults until ctx ends, and returns what it did. All is healed when it returns. An error means that the
// system did not recover, or that a fault could not be injected.
func Run(ctx context.Context, o Options) ([]Event, error) {
	names, err := Select(o.Kinds, o.Cluster.Embedded)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	if o.MinTraffic == 0 {
		o.MinTraffic = 30
	}
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	n := &Nemesis{Options: o, c: o.Cluster, rng: rand.New(rand.NewPCG(o.Seed, 11))}
	err = n.loop(ctx, names)
	return n.events, errors.Join(err, n.c.Heal())
}

// loop takes all kinds in a random order, and again.
func (n *Nemesis) loop(ctx context.Context, names []string) error {
	for {
		for _, i := range n.rng.Perm(len(names)) {
			if err := n.traffic(ctx); err != nil || ctx.Err() != nil {
				return err
			}
			at := slices.IndexFunc(faults, func(f fault) bool { return f.name == names[i] })
			if err := n.inject(ctx, faults[at]); err != nil {
				return err
			}
		}
	}
}

// traffic waits until callers have been answered since the last fault.
func (n *Nemesis) traffic(ctx context.Context) error {
	from, limit := n.Succeeded(), time.Now().Add(n.Patience)
	n.sleep(ctx, n.between(300*time.Millisecond, time.Second))
	for n.Succeeded() < from+n.MinTraffic {
		if ctx.Err() != nil {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%w: only %d calls succeeded within %v, not %d", ErrNoProgress, n.Succeeded()-from, n.Patience, n.MinTraffic)
		}
		n.sleep(ctx, 20*time.Millisecond)
	}
	return nil
}

// inject runs a fault to its end even if ctx ends: what was begun is healed.
func (n *Nemesis) inject(ctx context.Context, f fault) error {
	r := &run{Nemesis: n, ctx: ctx}
	e := Event{Kind: f.name, Start: time.Now()}
	err := f.run(r)
	err = errors.Join(err, n.c.Heal())
	e.Holds = r.holds
	e.Target, e.End = strings.Join(r.target, ","), time.Now()
	if err != nil {
		return fmt.Errorf("fault %s on %s: %w", e.Kind, e.Target, err)
	}
	err = n.recover()
	e.Served = time.Now()
	n.events = append(n.events, e)
	n.Log("%-20s %-24s %6.2fs, then %5.2fs until all serves", e.Kind, e.Target, e.End.Sub(e.Start).Seconds(), e.Served.Sub(e.End).Seconds())
	if n.Event != nil {
		n.Event(e)
	}
	if err != nil {
		return fmt.Errorf("%w: after %s on %s: %w", ErrNoProgress, e.Kind, e.Target, err)
	}
	return nil
}

// recover waits until everything serves again. Traps that nothing has sprung are taken away.
func (n *Nemesis) recover() error {
	ctx, cancel := context.WithTimeout(context.Background(), n.Patience)
	defer cancel()
	for _, m := range n.c.Etcds {
		if err := n.c.Healthy(ctx, m); err != nil {
			return err
		}
	}
	if err := n.c.Serving(ctx, n.Patience); err != nil {
		return err
	}
	for _, r := range n.c.Rotatords {
		if err := r.Disarm(); err != nil {
			return err
		}
	}
	return nil
}

func (n *Nemesis) between(least, most time.Duration) time.Duration {
	return least + time.Duration(n.rng.Int64N(int64(most-least)))
}

func (n *Nemesis) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// last keeps a fault up for a time.
func (r *run) last(least, most time.Duration) { r.sleep(r.ctx, r.between(least, most)) }

func (r *run) hit(name string) { r.target = append(r.target, name) }

func (r *run) replica() *cluster.Replica {
	return r.c.Rotatords[r.rng.IntN(len(r.c.Rotatords))]
}

func (r *run) member() *cluster.Member { return r.c.Etcds[r.rng.IntN(len(r.c.Etcds))] }

func (r *run) leader() (*cluster.Member, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return r.c.Leader(ctx)
}
