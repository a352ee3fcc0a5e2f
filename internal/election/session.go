// Package election gives a replica its session in etcd, and runs its campaigns for the locks of keys and for roles.
//
// It promises that a won campaign comes with a fence, the etcd revision at which the lock was written, and with a
// channel that closes when the session behind it ends; that a lock is written once per hold; that locks are released
// only by who still holds them; and that every call is bounded.
//
// It does not promise mutual exclusion. A holder may be paused past its lease and wake up still believing, and any
// waiter may take a lock over. What must happen once is guarded by comparing the fence, and everything else that
// decides, in the transaction that does it. To lead a role is less still: it saves the other replicas the work, comes
// with no fence, and guarantees nothing.
//
// The package knows etcd and nothing of what is locked.
package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/rotatord/rotatord/internal/etcdwire"
)

// DefaultTTL is the default time to live of a session's lease. A dead holder's locks are taken over long before; the
// lease only cleans up after it. It is well below the usual termination grace period of 30 s.
const DefaultTTL = 10 * time.Second

// minTTL is the shortest lease that survives an etcd election.
const minTTL = 2 * time.Second

// ErrNoSession is returned at once by campaigns while the replica has no session, and when etcd says that the lease is
// gone. Nothing was locked.
var ErrNoSession = errors.New("no session with etcd")

// ErrNotNow is returned when etcd kept saying that it cannot take the campaign now. Nothing was locked.
var ErrNotNow = errors.New("etcd takes no campaigns now")

// ErrUnknown is returned when etcd did not say in time what became of a campaign. A lock that it may have written is
// deleted in the background.
var ErrUnknown = errors.New("outcome of the campaign not known")

// Config is what an Elector works with.
type Config struct {
	Client *clientv3.Client
	// TTL of the session's lease, at least 2 s. Default: DefaultTTL.
	TTL time.Duration
	// Attempt bounds each request to etcd. Default: 600 ms.
	Attempt time.Duration
	Log     *slog.Logger
	// Name is shown in the candidacies for roles. Default: empty.
	Name string
	// Roles is the prefix of the candidacies for roles, such as "/rotator/leaders/". Needed for Lead.
	Roles string
	// Commit makes a campaign's transaction, once; its errors are those of rpctypes. Default: it is sent with Client.
	Commit func(ctx context.Context, t *etcdwire.Txn) (*etcdwire.Response, error)
	// Announce is called for each new session before it counts as begun; an error ends it. It must return soon after ctx
	// ends. Default: nothing is done.
	Announce func(ctx context.Context, lease clientv3.LeaseID) error
	// Changed is called after Alive has changed. It must not block. Default: nothing is done.
	Changed func()
}

// Elector holds one session at a time and campaigns with it. All methods are safe for concurrent use.
type Elector struct {
	cfg Config
	bg  context.Context // of clean-ups; ends shortly after Run does

	watcher boundedWatcher // of roles

	mu      sync.Mutex // protects the following fields
	session *concurrency.Session
	renew   context.CancelFunc       // ends the session early
	roles   map[string]chan struct{} // holds something while this process seeks or holds the role
	tasks   int                      // clean-ups under way
	idle    chan struct{}            // closed when there are none any more; nil until Run waits for that
}

// New returns an Elector that has no session until Run gets one.
func New(cfg Config) (*Elector, error) {
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.TTL < minTTL {
		return nil, fmt.Errorf("session TTL is %v, the least that survives an etcd election is %v", cfg.TTL, minTTL)
	}
	if cfg.Attempt == 0 {
		cfg.Attempt = 600 * time.Millisecond
	}
	if cfg.Commit == nil {
		cfg.Commit = func(ctx context.Context, t *etcdwire.Txn) (*etcdwire.Response, error) {
			resps, err := etcdwire.Send(ctx, cfg.Client.ActiveConnection(), t)
			if err != nil {
				return nil, rpctypes.Error(err)
			}
			return &resps[0], nil
		}
	}
	if cfg.Announce == nil {
		cfg.Announce = func(context.Context, clientv3.LeaseID) error { return nil }
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Elector{cfg: cfg, bg: context.Background(), watcher: boundedWatcher{Watcher: cfg.Client}}, nil
}

// Run keeps a session until ctx ends. Then it gives up the session and everything locked with it, within about two
// seconds: locks that could not be released end with the lease.
func (e *Elector) Run(ctx context.Context) {
	bg, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	e.mu.Lock()
	e.bg = bg
	e.mu.Unlock()
	for ctx.Err() == nil {
		if err := e.once(ctx); err != nil && ctx.Err() == nil {
			e.cfg.Log.Warn("no session with etcd, trying again", "error", err)
			pause(ctx, 200*time.Millisecond+rand.N(300*time.Millisecond))
		}
	}
	e.drain(cancel)
}

// drain waits for clean-ups, a bounded time. Those that would begin when there are none any more are left to the end of the
// session, which has been seen to.
func (e *Elector) drain(cancel context.CancelFunc) {
	idle := make(chan struct{})
	e.mu.Lock()
	if e.idle = idle; e.tasks == 0 {
		close(idle)
	}
	e.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(e.cfg.Attempt):
		cancel()
		<-idle
	}
}

// once gets a session and waits for its end.
func (e *Elector) once(ctx context.Context) error {
	session, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer e.end(session)
	if err := e.insist(ctx, func(ctx context.Context) error { return e.cfg.Announce(ctx, session.Lease()) }); err != nil {
		return fmt.Errorf("announcing the session: %w", err)
	}
	renew, stop := context.WithCancel(ctx)
	defer stop()
	e.set(session, stop)
	e.cfg.Log.Info("session with etcd", "lease", fmt.Sprintf("%x", session.Lease()), "ttl", e.cfg.TTL)
	select {
	case <-session.Done():
		e.cfg.Log.Warn("session with etcd lost: what was locked with it is not used any more")
	case <-renew.Done():
	}
	return nil
}

// begin makes a session whose creation is bounded. concurrency.NewSession alone would wait for etcd without end, and
// its Close for a whole TTL.
func (e *Elector) begin(ctx context.Context) (*concurrency.Session, error) {
	var lease *clientv3.LeaseGrantResponse
	var asked time.Time
	err := e.insist(ctx, func(ctx context.Context) (err error) { // a lease whose answer is lost expires unused
		asked = time.Now()
		lease, err = e.cfg.Client.Grant(ctx, int64((e.cfg.TTL+time.Second-1)/time.Second))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("granting a lease: %w", err)
	}
	// The session outlives ctx until end gives it up.
	ctx = context.WithoutCancel(ctx)
	client := clientv3.NewCtxClient(ctx)
	client.Lease = &renewals{Lease: e.cfg.Client.Lease, granted: asked, ttl: e.cfg.TTL, attempt: e.cfg.Attempt}
	client.KV = &boundedKV{KV: e.cfg.Client.KV, attempt: e.cfg.Attempt}
	client.Watcher = &e.watcher
	session, err := concurrency.NewSession(client, concurrency.WithLease(lease.ID), concurrency.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("keeping a lease alive: %w", err)
	}
	if session == nil { // NewSession can return nil, nil
		return nil, errors.New("keeping a lease alive: the client is closed")
	}
	return session, nil
}

// insist makes a call a few times, with more patience each time: a member that hangs costs little, and the next attempt
// goes to another one.
func (e *Elector) insist(ctx context.Context, call func(context.Context) error) (err error) {
	for bound := e.cfg.Attempt / 3; bound < 2*e.cfg.Attempt; bound *= 2 {
		cctx, cancel := context.WithTimeout(ctx, bound)
		err = call(cctx)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// end gives a session up, for ever: its lease is revoked, which deletes what was locked with it. If that fails the
// lease expires. It does not wait for etcd: a new session need not wait for the end of the old one.
func (e *Elector) end(session *concurrency.Session) {
	e.set(nil, nil)
	session.Orphan()
	e.background(func(ctx context.Context) {
		_ = e.insist(ctx, func(ctx context.Context) error {
			_, err := e.cfg.Client.Revoke(ctx, session.Lease())
			if errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return nil
			}
			return err
		})
	})
}

func (e *Elector) set(session *concurrency.Session, renew context.CancelFunc) {
	e.mu.Lock()
	e.session, e.renew = session, renew
	e.mu.Unlock()
	e.cfg.Changed()
}

// current returns the session, nil if there is none or it has ended.
func (e *Elector) current() *concurrency.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.session == nil {
		return nil
	}
	select {
	case <-e.session.Done():
		return nil
	default:
		return e.session
	}
}

// Alive reports whether there is a session now.
func (e *Elector) Alive() bool { return e.current() != nil }

// Announce makes the announcement of the current session again, in case it was lost to somebody else.
func (e *Elector) Announce(ctx context.Context) error {
	session := e.current()
	if session == nil {
		return ErrNoSession
	}
	return e.cfg.Announce(ctx, session.Lease())
}

// expired ends a session that etcd says is gone although the client still believes in it.
func (e *Elector) expired(session *concurrency.Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.session == session && e.renew != nil {
		e.renew()
	}
}

// background runs a clean-up that Run waits for.
func (e *Elector) background(fn func(ctx context.Context)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx := e.bg
	if ctx.Err() != nil || e.idle != nil && e.tasks == 0 {
		return
	}
	e.tasks++
	go func() {
		fn(ctx)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.tasks--; e.tasks == 0 && e.idle != nil {
			close(e.idle)
		}
	}()
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
