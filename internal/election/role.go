package election

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/metadata"
)

const (
	// roleCheck is how often a leader looks whether its candidacy is still the first one.
	roleCheck = 2 * time.Second
	// roleWatch is how long a candidate believes in one watch of the candidate before it: it may hang with its member.
	// To look again costs a raft entry, so it is not done often; a watch that is well tells at once.
	roleWatch = 10 * time.Second
	// rolePause is how long a candidate waits before it tries again; with jitter, and up to eight times as long.
	rolePause = 100 * time.Millisecond
)

// Lead runs work whenever this replica leads the role, until ctx ends; it returns when work has returned.
//
// Leadership saves work and guarantees nothing: two replicas may both believe for a while that they lead, one of them
// having been paused, or cut off, or slow to end its work. What must happen once, or in order, is guarded by what work
// compares when it writes.
//
// The candidates are keys under Config.Roles, bound to the session; the oldest leads. work gets a context that ends when
// ctx ends, when the session ends, or when this replica's candidacy is found gone. It must return soon then. When it
// returns by itself the leadership is given up and sought again after a pause. Two calls for one role in one process
// take turns: a session has one candidacy, so both would win.
//
// A leader that stops hands over at once. One that dies is succeeded when its session ends, a TTL later.
func (e *Elector) Lead(ctx context.Context, role string, work func(ctx context.Context)) {
	if !e.enter(ctx, role) {
		return
	}
	defer e.leave(role)
	for ctx.Err() == nil {
		if session := e.current(); session != nil {
			e.candidate(session, role).lead(ctx, work)
		}
		pause(ctx, jitter(2*rolePause))
	}
}

// enter waits until no other call of this process seeks or holds the role.
func (e *Elector) enter(ctx context.Context, role string) bool {
	e.mu.Lock()
	if e.roles == nil {
		e.roles = make(map[string]chan struct{})
	}
	turn := e.roles[role]
	if turn == nil {
		turn = make(chan struct{}, 1)
		e.roles[role] = turn
	}
	e.mu.Unlock()
	select {
	case turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (e *Elector) leave(role string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	<-e.roles[role]
}

// candidate is one candidacy for a role, with one session.
type candidate struct {
	*Elector
	role     string
	session  *concurrency.Session
	election *concurrency.Election
	value    string // different for each candidacy
	maybe    bool   // a request to put it may not have been answered
}

func (e *Elector) candidate(session *concurrency.Session, role string) *candidate {
	value, _ := json.Marshal(map[string]string{"replica": e.cfg.Name, "candidacy": uuid.NewString()}) // cannot fail
	return &candidate{
		Elector: e, role: role, session: session, value: string(value),
		election: concurrency.NewElection(session, e.cfg.Roles+role),
	}
}

// lead campaigns, does the work if it won, and gives the candidacy up.
func (c *candidate) lead(ctx context.Context, work func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.session.Ctx(), cancel)()
	defer c.quit()
	if !c.campaign(ctx) || !c.leads(ctx) {
		return
	}
	c.cfg.Log.Info("leads", "role", c.role)
	defer c.cfg.Log.Info("leads no longer", "role", c.role)
	done := make(chan struct{})
	go func() {
		defer close(done)
		work(ctx)
	}()
	c.hold(ctx, done)
	cancel()
	<-done
}

// campaign waits until the candidates before this one are gone. It asks again and again: its requests and its watch are
// bounded, and asking again keeps the place in the queue, which is that of the key's creation.
func (c *candidate) campaign(ctx context.Context) bool {
	for delay := rolePause; ctx.Err() == nil; delay = min(2*delay, 8*rolePause) {
		began := time.Now()
		err := c.election.Campaign(ctx, c.value)
		if err == nil {
			return true
		}
		c.maybe = c.election.Key() == ""
		if time.Since(began) > roleWatch/2 { // it waited in the queue
			delay = rolePause
		}
		c.cfg.Log.Debug("not leading yet", "role", c.role, "error", err)
		pause(ctx, jitter(delay))
	}
	return false
}

// leads reports whether this candidacy is there, as it was written, and the first: a campaign can be won with a key that
// is gone. An error says neither yes nor no; then the session decides, and before the work begins it is asked again.
func (c *candidate) leads(ctx context.Context) bool {
	for ctx.Err() == nil {
		if first, err := c.first(ctx); err == nil {
			return first
		}
		pause(ctx, jitter(rolePause))
	}
	return false
}

func (c *candidate) first(ctx context.Context) (bool, error) {
	resp, err := c.session.Client().Get(ctx, c.cfg.Roles+c.role+"/", clientv3.WithFirstCreate()...)
	if err != nil || len(resp.Kvs) == 0 {
		return false, err
	}
	kv := resp.Kvs[0]
	return string(kv.Key) == c.election.Key() && kv.CreateRevision == c.election.Rev() && string(kv.Value) == c.value, nil
}

// hold returns when the work is done, the context has ended, or the candidacy is gone: somebody deleted it.
func (c *candidate) hold(ctx context.Context, done <-chan struct{}) {
	tick := time.NewTicker(roleCheck)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			if first, err := c.first(ctx); err == nil && !first {
				c.cfg.Log.Warn("the candidacy is gone: somebody deleted it", "role", c.role)
				return
			}
		}
	}
}

// quit deletes the candidacy, if it is still this one: by its value, which no other has. If etcd does not say that it
// is gone, or may put it yet, it is tried for longer in the background; else it would lead for as long as the session
// lives, and nobody would do the work.
func (c *candidate) quit() {
	if c.session.Ctx().Err() != nil {
		return // it ends with the lease
	}
	key := c.cfg.Roles + c.role + "/" + strconv.FormatInt(int64(c.session.Lease()), 16)
	ctx, cancel := context.WithTimeout(context.Background(), 2*c.cfg.Attempt)
	defer cancel()
	resp, err := c.session.Client().Txn(ctx).If(clientv3.Compare(clientv3.Value(key), "=", c.value)).Then(clientv3.OpDelete(key)).Commit()
	if err == nil && (resp.Succeeded || !c.maybe) {
		return
	}
	c.background(func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(c.session.Ctx(), cancel)()
		c.reap(ctx, Candidacy{Key: key, Value: c.value})
	})
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// boundedKV is a client's KV whose requests are bounded and fail at once at a member without a leader. An election's
// own are bounded by nothing.
type boundedKV struct {
	clientv3.KV
	attempt time.Duration
}

// Get implements clientv3.KV.
func (b *boundedKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), b.attempt)
	defer cancel()
	return b.KV.Get(ctx, key, opts...)
}

// Txn implements clientv3.KV.
func (b *boundedKV) Txn(ctx context.Context) clientv3.Txn {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), b.attempt)
	return &boundedTxn{b.KV.Txn(ctx), cancel}
}

// boundedTxn gives its context back when it was sent.
type boundedTxn struct {
	clientv3.Txn
	cancel context.CancelFunc
}

// If implements clientv3.Txn.
func (t *boundedTxn) If(cs ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cs...); return t }

// Then implements clientv3.Txn.
func (t *boundedTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }

// Else implements clientv3.Txn.
func (t *boundedTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

// Commit implements clientv3.Txn.
func (t *boundedTxn) Commit() (*clientv3.TxnResponse, error) {
	defer t.cancel()
	return t.Txn.Commit()
}

// boundedWatcher is a client's Watcher whose watches end at a member without a leader, and after roleWatch in any case.
type boundedWatcher struct {
	clientv3.Watcher
	made atomic.Int64
}

// roleStreams is how many gRPC streams these watches use in turn: one must not share the stream of the one it replaces,
// which may hang. The client tells streams by their metadata.
const roleStreams = 4

// Watch implements clientv3.Watcher.
func (b *boundedWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	ctx = metadata.AppendToOutgoingContext(ctx, "rotatord-role", strconv.FormatInt(b.made.Add(1)%roleStreams, 10))
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), roleWatch)
	context.AfterFunc(ctx, cancel)
	return b.Watcher.Watch(ctx, key, opts...)
}
