package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/rotatord/rotatord/internal/audit"
	"github.com/rotatord/rotatord/internal/election"
	"github.com/rotatord/rotatord/internal/etcdembed"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/grpcapi"
	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/seal"
	"github.com/rotatord/rotatord/internal/spend"
	"github.com/rotatord/rotatord/internal/telemetry"
	"github.com/rotatord/rotatord/internal/upstream"
	"github.com/rotatord/rotatord/internal/version"
)

var (
	errStarting  = pool.Refuse(pool.ReasonNotApplied, "this replica is still loading its records; try again or ask another replica")
	errStopping  = pool.Refuse(pool.ReasonNotApplied, "this replica is stopping; ask another one")
	errNoSession = pool.Refuse(pool.ReasonNotApplied, "this replica has no session with etcd; try again or ask another replica")
	errKeyset    = pool.Refuse(pool.ReasonNotApplied, "this replica has another keyset than the stored keys were sealed with; ask another replica, and give this one the right keyset file")
	errFull      = pool.Refuse(pool.ReasonStorageFull, "etcd has no space left and refuses writes; keys can still be read. Its operator makes room and then disarms the alarm: `rotatorctl doctor` says how")
	errNoQuorum  = pool.Refuse(pool.ReasonNotApplied, "etcd has no quorum, so nothing can be written; keys can still be read")
)

// Seams are where tests get between the parts. They are all nil in the service.
type Seams struct {
	Steps       func(ctx context.Context, s pool.Step, l pool.Life) error
	Locks       func(pool.Locks) pool.Locks
	Store       func(pool.Store) pool.Store
	DialOptions []grpc.DialOption // of the etcd client
	Budget      time.Duration     // of one rotation
	Phases      func(*lifecycle.Config)

	CampaignFirst func() bool // see pool.RotatorConfig
}

// etcdAttempt bounds one call to etcd.
const etcdAttempt = 600 * time.Millisecond

// Replica is one running rotatord.
type Replica struct {
	cfg      *Config
	log      *slog.Logger
	instance string
	started  time.Time

	embedded  *etcdembed.Server // nil with an external cluster
	keys      *seal.Keyset
	client    *clientv3.Client
	store     *etcdstore.Store
	mirror    *pool.Mirror
	follower  *etcdstore.Follower
	elector   *election.Elector
	rotator   *pool.Rotator
	admin     *pool.Admin
	phases    *lifecycle.Worker
	spend     *spend.Checker
	server    *grpcapi.Server
	metrics   *prometheus.Registry
	telemetry *telemetry.Telemetry
	relay     *audit.Relay // nil without --audit-relay
	retention *audit.Retention
	web       *http.Server

	grpcListener, webListener net.Listener

	quorum   atomic.Bool
	full     atomic.Bool // etcd has no space left
	strange  atomic.Bool // the keyset is not the one the stored secrets were sealed with
	stopping atomic.Bool
	healthMu sync.Mutex // orders the changes of health

	suspected chan struct{} // etcd has answered to a write that it is full
	looked    chan struct{} // closed when the records have been looked at after loading
	judged    chan struct{} // closed when strange has been found out, which needs a stored secret

	stopWork context.CancelFunc
	work     sync.WaitGroup
	failed   chan error // what ended a part that should go on
	closing  sync.Once
	closeErr error
	cleanups []func() error // in the order of what they undo
}

// Start starts a replica. It returns when everything listens; /readyz and health say when it serves. ctx bounds the
// start only. On error everything that was started is stopped again.
func Start(ctx context.Context, cfg *Config, log *slog.Logger, seams Seams) (*Replica, error) {
	r := &Replica{cfg: cfg, log: log, instance: uuid.NewString(), started: time.Now(), failed: make(chan error, 8), suspected: make(chan struct{}, 1), looked: make(chan struct{}), judged: make(chan struct{}), stopWork: func() {}}
	for _, step := range []func(context.Context, Seams) error{r.listen, r.openKeyset, r.openEtcd, r.assemble, r.serve} {
		if err := step(ctx, seams); err != nil {
			return nil, errors.Join(err, r.undo())
		}
	}
	return r, nil
}

// later registers what Close has to undo; the last one is undone first.
func (r *Replica) later(undo func() error) { r.cleanups = append(r.cleanups, undo) }

func (r *Replica) undo() error {
	r.stopWork()
	r.work.Wait()
	var errs []error
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		errs = append(errs, r.cleanups[i]())
	}
	r.cleanups = nil
	return errors.Join(errs...)
}

// listen takes the addresses first: a second process by mistake shall fail before it touches anything.
func (r *Replica) listen(ctx context.Context, _ Seams) (err error) {
	if r.grpcListener, err = r.listenOn(ctx, "--listen", r.cfg.Listen); err != nil {
		return err
	}
	r.webListener, err = r.listenOn(ctx, "--metrics-listen", r.cfg.MetricsListen)
	return err
}

func (r *Replica) listenOn(ctx context.Context, flag, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w; stop the other process there or choose another address", flag, address, err)
	}
	r.later(func() error { return ignoreClosed(l.Close()) })
	return l, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// openKeyset opens the keyset. One is only created beside embedded data that is new: what others sealed, or what was
// sealed before, a new one could not open. It comes before etcd's first start: a crash in between leaves a keyset
// without data, not data without a keyset.
func (r *Replica) openKeyset(context.Context, Seams) (err error) {
	if r.cfg.Embedded() {
		had, err := etcdembed.HasData(r.etcdDir())
		if err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
		if !had {
			return r.createKeyset()
		}
	}
	r.keys, err = seal.Load(r.cfg.KeysetFile)
	if r.cfg.Embedded() && errors.Is(err, seal.ErrMissing) {
		return fmt.Errorf("the data in %s were sealed with a keyset that is not at %s: restore that file from your backup, the keys cannot be read without it", r.cfg.DataDir, r.cfg.KeysetFile)
	}
	return err
}

func (r *Replica) createKeyset() (err error) {
	if err := os.MkdirAll(r.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	var created bool
	if r.keys, created, err = seal.LoadOrCreate(r.cfg.KeysetFile); created {
		r.log.Info("created a keyset: back it up, the sealed keys cannot be read without it", "file", r.cfg.KeysetFile)
	}
	return err
}

func (r *Replica) etcdDir() string { return filepath.Join(r.cfg.DataDir, "etcd") }

// openEtcd starts the embedded etcd, or takes the external one, and connects to it.
func (r *Replica) openEtcd(ctx context.Context, seams Seams) (err error) {
	endpoints := r.cfg.EtcdEndpoints
	if r.cfg.Embedded() {
		if err := r.embedEtcd(ctx); err != nil {
			return err
		}
		endpoints = []string{r.embedded.Endpoint()}
	}
	password, err := r.password()
	if err != nil {
		return err
	}
	r.client, err = etcdstore.Connect(etcdstore.Config{
		Endpoints: endpoints, CAFile: r.cfg.EtcdCACert, CertFile: r.cfg.EtcdCert, KeyFile: r.cfg.EtcdKey,
		User: r.cfg.EtcdUser, Password: password, DialOptions: seams.DialOptions, Log: r.log,
	})
	if err != nil {
		return err
	}
	r.later(r.client.Close)
	return nil
}

func (r *Replica) embedEtcd(ctx context.Context) (err error) {
	r.embedded, err = etcdembed.Start(ctx, etcdembed.Config{DataDir: r.etcdDir(), ClientListen: r.cfg.EmbeddedEtcdListen, Log: r.log})
	if err != nil {
		return err
	}
	r.later(r.embedded.Close)
	return nil
}

func (r *Replica) password() (string, error) {
	if r.cfg.EtcdPasswordFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(r.cfg.EtcdPasswordFile)
	if err != nil {
		return "", fmt.Errorf("--etcd-password-file: %w", err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// assemble makes the parts and joins them. It is long and straight: the order is that of who needs whom.
func (r *Replica) assemble(_ context.Context, seams Seams) error {
	layout, err := etcdstore.NewLayout(r.cfg.EtcdPrefix)
	if err != nil {
		return err
	}
	committer := etcdstore.NewCommitter(r.client, etcdAttempt) // campaigns and commits share groups
	r.mirror = pool.NewMirror()
	r.store = etcdstore.New(r.client, etcdstore.Options{Layout: layout, Replica: r.cfg.Name, AttemptTimeout: etcdAttempt, Mirror: r.mirror, Committer: committer})
	r.follower = etcdstore.NewFollower(r.store, r.mirror, r.log)
	r.elector, err = election.New(election.Config{
		Client: r.client, TTL: r.cfg.SessionTTL, Attempt: etcdAttempt, Log: r.log, Announce: r.announce, Changed: r.updateHealth,
		Commit: committer.Commit, Name: r.cfg.Name, Roles: layout.RolesPrefix(),
	})
	if err != nil {
		return err
	}
	r.metrics = prometheus.NewRegistry()
	r.telemetry = telemetry.New(telemetry.Config{
		Log: r.log, Registerer: r.metrics, Mirror: r.mirror, SessionAlive: r.elector.Alive, Quorum: r.quorum.Load,
	})

	var store pool.Store = r.store
	if seams.Store != nil {
		store = seams.Store(store)
	}
	watched := observer{r.telemetry, r.suspectFull}
	held := &locks{elector: r.elector, store: r.store, replica: r.cfg.Name, suspect: r.suspectFull}
	var keyLocks pool.Locks = held
	known := &upstreams{client: upstream.NewClient(upstream.ClientConfig{})}
	r.later(func() error { known.client.Close(); return nil })
	if seams.Locks != nil {
		keyLocks = seams.Locks(keyLocks)
	}
	r.rotator = pool.NewRotator(pool.RotatorConfig{
		Store: store, Locks: keyLocks, Mirror: r.mirror, Observer: watched, Replica: r.cfg.Name,
		Sealer: r.keys, Classify: known, Prober: known, Scrub: scrub,
		Ready: r.Writable, Steps: seams.Steps, Budget: seams.Budget, CampaignFirst: seams.CampaignFirst,
	})
	r.later(func() error { r.rotator.Close(); return nil })
	r.admin = pool.NewAdmin(pool.AdminConfig{
		Store: store, Sealer: r.keys, Replica: r.cfg.Name, Prefix: r.cfg.EtcdPrefix, Observer: watched, Scrub: scrub,
	})
	r.phases = r.newPhases(store, held, known, seams)
	r.spend = spend.New(spend.Config{
		Mirror: r.mirror, Sealer: r.keys, Reader: spend.Upstreams{Client: known.client}, Rotate: r.rotator.Rotate, Record: r.admin.RecordSpend,
		Observer: r.telemetry, Log: r.log,
	})
	queries := pool.NewQueries(pool.QueriesConfig{
		Mirror: r.mirror, Store: store, Events: r.store, Sealer: r.keys, Now: time.Now, Progress: r.requestProgress,
	})
	r.server, err = grpcapi.NewServer(grpcapi.Config{
		Rotator: r.rotator, Queries: queries, Admin: &doctor{r.admin, r.store.Alarms, makeRoom(r.cfg)}, Ready: r.Writable, Log: r.log, Registerer: r.metrics,
	})
	if err != nil {
		return err
	}
	if err := r.assembleAudit(store); err != nil {
		return err
	}
	r.web = newWeb(webConfig{Ready: r.readyz, Gatherer: r.metrics, Log: r.log})
	return nil
}

// serve starts everything that runs. What is started here ends with stopWork, which Close calls after the last caller
// has been answered.
func (r *Replica) serve(context.Context, Seams) error {
	ctx, cancel := context.WithCancel(context.Background())
	r.stopWork = cancel
	r.work.Go(func() { r.fail("watching etcd", r.follower.Run(ctx)) })
	r.work.Go(func() { r.elector.Run(ctx) })
	r.work.Go(func() { r.monitor(ctx) })
	r.work.Go(func() { r.keepUp(ctx) })
	r.work.Go(func() { r.watchLoading(ctx) })
	r.work.Go(func() { r.watchEmbedded(ctx) })
	r.work.Go(func() { r.rotator.Fulfil(ctx) })
	r.work.Go(func() { r.phases.Run(ctx) })
	r.work.Go(func() { r.telemetry.Run(ctx) })
	r.work.Go(func() { r.retention.Run(ctx) })
	if r.relay != nil {
		r.work.Go(func() { r.relay.Run(ctx) })
	}
	r.work.Go(func() { r.lead(ctx, roleSpend, r.spend.Run) })
	r.work.Go(func() { r.fail("serving gRPC", r.server.Serve(r.grpcListener)) })
	r.work.Go(func() { r.fail("serving HTTP", r.web.Serve(r.webListener)) })
	r.log.Info("rotatord is up", "name", r.cfg.Name, "version", version.String(), "grpc", r.Address(), "http", r.WebAddress(), "etcd", r.client.Endpoints())
	return nil
}

// roleSpend is the role of who checks what keys have spent.
const roleSpend = "spend"

// lead does work whenever this replica leads a role. One that cannot open the stored keys leaves that to the others.
func (r *Replica) lead(ctx context.Context, role string, work func(context.Context)) {
	select {
	case <-r.judged:
	case <-ctx.Done():
		return
	}
	if !r.strange.Load() {
		r.elector.Lead(ctx, role, work)
	}
}

// watchEmbedded reports what ends the embedded etcd.
func (r *Replica) watchEmbedded(ctx context.Context) {
	if r.embedded == nil {
		return
	}
	select {
	case err := <-r.embedded.Err():
		r.fail("embedded etcd", err)
	case <-ctx.Done():
	}
}

// fail reports the end of a part that should have gone on.
func (r *Replica) fail(part string, err error) {
	if err == nil || r.stopping.Load() || errors.Is(err, http.ErrServerClosed) || errors.Is(err, context.Canceled) {
		return
	}
	select {
	case r.failed <- fmt.Errorf("%s: %w", part, err):
	default:
	}
}

// Address is where gRPC is served.
func (r *Replica) Address() string { return r.grpcListener.Addr().String() }

// WebAddress is where health and metrics are served.
func (r *Replica) WebAddress() string { return r.webListener.Addr().String() }

// EtcdEndpoints are the members this replica uses.
func (r *Replica) EtcdEndpoints() []string { return r.client.Endpoints() }

// Failed yields what makes the replica useless, such as the end of its embedded etcd.
func (r *Replica) Failed() <-chan error { return r.failed }

// Close stops gracefully: health goes down, calls and phases are drained, locks and the session are given up, etcd is
// closed. Each step is bounded, the drains by ctx. It is idempotent.
func (r *Replica) Close(ctx context.Context) error {
	r.closing.Do(func() {
		r.stopping.Store(true)
		var phases sync.WaitGroup
		phases.Go(func() { r.phases.Finish(ctx) }) // an answer of a provider may be lost for good
		r.server.Shutdown(ctx)                     // health first, then the calls under way
		phases.Wait()
		r.rotator.Close()
		r.stopWork()
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = r.web.Shutdown(wctx)
		r.closeErr = r.undo()
	})
	return r.closeErr
}

// Writable says why writes cannot work now, nil if they can. It is asked by every write.
func (r *Replica) Writable() error {
	switch {
	case r.stopping.Load():
		return errStopping
	case !closed(r.looked):
		return errStarting
	case !r.quorum.Load():
		return errNoQuorum
	case r.full.Load():
		return errFull
	case r.strange.Load():
		return errKeyset
	case !r.elector.Alive():
		return errNoSession
	}
	return nil
}

// readyz is green while cached reads work, with or without quorum.
func (r *Replica) readyz() error {
	switch {
	case r.stopping.Load():
		return errStopping
	case !r.loaded():
		return errStarting
	}
	return nil
}

func (r *Replica) loaded() bool { return closed(r.mirror.Loaded()) }

// closed reports whether a channel, on which nothing is sent, was closed.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// announce puts this replica on record under the session's lease: all replicas share the stock among those on record.
func (r *Replica) announce(ctx context.Context, lease clientv3.LeaseID) error {
	return r.store.PutReplica(ctx, &pool.Replica{
		Version: pool.Version{Schema: pool.Schema}, Name: r.cfg.Name, KnowsSchema: pool.Schema, Address: r.Address(),
		Build: version.String(), StartedAt: r.started, Instance: r.instance,
	}, lease)
}
