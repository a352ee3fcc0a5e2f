package etcdstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/etcdwire"
)

const (
	// maxFlights is how many transactions are under way at once. Whatever comes meanwhile waits, and goes together. More
	// keep a slow disk busy, fewer make larger groups, which cost etcd less.
	maxFlights = 4
	// maxGroup bounds the transactions of a group, and with it how long each waits for the others' part of the work.
	maxGroup = 64
)

// Committer sends transactions on single keys, and those that come while others are under way in groups: one transaction
// of etcd with one nested in it for each. Each is decided by its own compares and gets its own answer, as if it had been
// sent alone.
//
// That holds because nothing in a group changes what another one in it compares, reads or changes: etcd evaluates all
// compares of a group before it changes anything. An error of the group that may be the fault of one is nobody else's:
// all are sent again, each alone. With an unknown outcome it is unknown for each.
//
// It never waits for a group to fill.
type Committer struct {
	client *clientv3.Client
	giveUp time.Duration

	mu      sync.Mutex // protects the following fields
	waiting []*entry
	flights int
	changed map[uint64]bool // of the group that is being put together
}

// NewCommitter returns a Committer whose transactions are given up after a time.
func NewCommitter(client *clientv3.Client, giveUp time.Duration) *Committer {
	return &Committer{client: client, giveUp: giveUp, changed: make(map[uint64]bool)}
}

// entry is a transaction with the caller who waits for it.
type entry struct {
	txn  *etcdwire.Txn
	ctx  context.Context
	done chan answer // holds one
}

type answer struct {
	resp *etcdwire.Response
	err  error
}

// Commit sends a transaction once and waits for its answer, or until ctx ends. A member without a leader answers at
// once instead of holding the call. Its errors are etcd's, those of ctx, or a *etcdwire.NotSentError.
func (c *Committer) Commit(ctx context.Context, t *etcdwire.Txn) (*etcdwire.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, &etcdwire.NotSentError{Err: err}
	}
	if until, bounded := ctx.Deadline(); !bounded || time.Until(until) > c.giveUp {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.giveUp)
		defer cancel()
	}
	if c.depart() {
		a := c.alone(ctx, t)
		c.land()
		return a.resp, a.err
	}
	e := &entry{txn: t, ctx: ctx, done: make(chan answer, 1)}
	c.wait(e)
	select {
	case a := <-e.done:
		return a.resp, a.err
	case <-ctx.Done():
	}
	if c.withdraw(e) {
		return nil, &etcdwire.NotSentError{Err: ctx.Err()}
	}
	select {
	case a := <-e.done: // both: the answer is worth more
		return a.resp, a.err
	default:
		return nil, ctx.Err()
	}
}

// depart reports whether a transaction can be sent at once, by itself.
func (c *Committer) depart() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flights >= maxFlights || len(c.waiting) > 0 {
		return false
	}
	c.flights++
	return true
}

// wait has e wait for the next flight, and begins one if none is under way that would.
func (c *Committer) wait(e *entry) {
	c.mu.Lock()
	c.waiting = append(c.waiting, e)
	begin := c.flights < maxFlights
	if begin {
		c.flights++
	}
	c.mu.Unlock()
	if begin {
		c.land()
	}
}

// land ends a flight, and begins the next one for those who wait.
func (c *Committer) land() {
	if group := c.next(); len(group) > 0 {
		go func() {
			for ; len(group) > 0; group = c.next() {
				c.sendGroup(group)
			}
		}()
	}
}

// next takes a group from those who wait. If nobody does the flight is over.
func (c *Committer) next() []*entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.changed)
	g := group{changed: c.changed}
	left := c.waiting[:0]
	for i, e := range c.waiting {
		if len(g.entries) == maxGroup {
			left = append(left, c.waiting[i:]...)
			break
		}
		if !g.add(e) {
			left = append(left, e)
		}
	}
	clear(c.waiting[len(left):])
	c.waiting = left
	if len(g.entries) == 0 {
		c.flights--
	}
	return g.entries
}

// withdraw reports whether e was still waiting, and is not any more.
func (c *Committer) withdraw(e *entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.waiting, e)
	if i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
	return i >= 0
}

// group is what goes together.
type group struct {
	entries []*entry
	largest int // operations of one entry
	bytes   int
	changed map[uint64]bool // by key, of all that is touched: whether it is changed
}

// add takes e into the group and reports whether it could: there is room, and e has nothing to do with the others.
func (g *group) add(e *entry) bool {
	largest, bytes := max(g.largest, e.txn.Ops()), g.bytes+e.txn.Size()+nestedOverhead
	if len(g.entries) > 0 && (len(g.entries)+1+largest > maxOps || bytes > maxBytes || g.meets(e)) { // alone it always may
		return false
	}
	for _, t := range e.txn.Touched() {
		g.changed[t.Key] = g.changed[t.Key] || t.Changes
	}
	g.entries, g.largest, g.bytes = append(g.entries, e), largest, bytes
	return true
}

// meets reports whether e changes what another one touches, or touches what another one changes.
func (g *group) meets(e *entry) bool {
	for _, t := range e.txn.Touched() {
		if changed, there := g.changed[t.Key]; there && (changed || t.Changes) {
			return true
		}
	}
	return false
}

// nestedOverhead is more than it takes to have a transaction nested in another one.
const nestedOverhead = 16

// sendGroup sends a group and answers everyone in it.
func (c *Committer) sendGroup(entries []*entry) {
	if len(entries) == 1 {
		entries[0].done <- c.alone(entries[0].ctx, entries[0].txn)
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), latest(entries))
	defer cancel()
	txns := make([]*etcdwire.Txn, len(entries))
	for i, e := range entries {
		txns[i] = e.txn
	}
	resps, err := c.send(ctx, txns...)
	switch {
	case err == nil:
		for i, e := range entries {
			e.done <- answer{resp: &resps[i]}
		}
	case faultOfOne(err):
		for _, e := range entries {
			go func() { e.done <- c.alone(e.ctx, e.txn) }()
		}
	default:
		for _, e := range entries {
			e.done <- answer{err: err}
		}
	}
}

func (c *Committer) alone(ctx context.Context, t *etcdwire.Txn) answer {
	resps, err := c.send(ctx, t)
	if err != nil {
		return answer{err: err}
	}
	return answer{resp: &resps[0]}
}

// latest is until when somebody waits.
func latest(entries []*entry) (until time.Time) {
	for _, e := range entries {
		if d, _ := e.ctx.Deadline(); d.After(until) {
			until = d
		}
	}
	return until
}

// faultOfOne reports whether etcd refused a group for what may be in one of its transactions only. Nothing was applied.
func faultOfOne(err error) bool {
	return hopeless(err) != nil || errors.Is(err, rpctypes.ErrLeaseNotFound)
}

// send sends transactions in one call, once.
func (c *Committer) send(ctx context.Context, txns ...*etcdwire.Txn) ([]etcdwire.Response, error) {
	ctx, sending := followSending(clientv3.WithRequireLeader(ctx))
	resps, err := etcdwire.Send(ctx, c.client.ActiveConnection(), txns...)
	if err == nil {
		return resps, nil
	}
	if err = rpctypes.Error(err); sending.surelyNotSent() {
		return nil, &etcdwire.NotSentError{Err: err}
	}
	return nil, err
}
