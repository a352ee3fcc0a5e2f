package election_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/election"
	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	"github.com/rotatord/rotatord/internal/etcdwire"
)

const lockKey, lifeKey, overKey = "/test/locks/k", "/test/active/k", "/test/over/k"

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, endpoint string, opts ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, MaxUnaryRetries: 1, DialOptions: opts, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// elector runs an elector until the test ends and waits for its session.
func elector(t *testing.T, client *clientv3.Client) (*election.Elector, func() clientv3.LeaseID) {
	t.Helper()
	var lease atomic.Int64
	changed := make(chan struct{}, 16)
	e, err := election.New(election.Config{
		Client: client, TTL: 5 * time.Second, Log: slog.New(slog.DiscardHandler),
		Announce: func(_ context.Context, id clientv3.LeaseID) error { lease.Store(int64(id)); return nil },
		Changed:  func() { changed <- struct{}{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	await(t, changed)
	if !e.Alive() {
		t.Fatal("no session after it was announced")
	}
	return e, func() clientv3.LeaseID { return clientv3.LeaseID(lease.Load()) }
}

// started runs an elector until it is cancelled; done is closed when it has ended.
func started(t *testing.T, client *clientv3.Client) (e *election.Elector, cancel context.CancelFunc, done chan struct{}) {
	t.Helper()
	e, err := election.New(election.Config{Client: client, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	return e, cancel, done
}

func await(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-within(t).Done():
		t.Fatal("nothing happened in time")
	}
}

func candidacy(value string, over int64) election.Candidacy {
	return election.Candidacy{
		Key: lockKey, Value: value, Over: over,
		If:   []etcdwire.Compare{{Key: []byte(overKey), Created: true}},
		Read: [][]byte{[]byte(lockKey), []byte(lifeKey)},
	}
}

func campaign(t *testing.T, e *election.Elector, value string, over int64) *election.Term {
	t.Helper()
	term, resp, err := e.Campaign(within(t), candidacy(value, over))
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Reads) != 2 || len(resp.Reads[1].Kvs) != 1 {
		t.Fatalf("the reads of the campaign: %v", resp.Reads)
	}
	return term
}

// lock is what is in the lock now, "" if nothing is.
func lock(t *testing.T, client *clientv3.Client) (value string, modRevision int64) {
	t.Helper()
	resp, err := client.Get(within(t), lockKey)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return "", 0
	}
	return string(resp.Kvs[0].Value), resp.Kvs[0].ModRevision
}

func put(t *testing.T, client *clientv3.Client, key, value string) {
	t.Helper()
	if _, err := client.Put(within(t), key, value); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := within(t)
	for !ok() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestOneWinsAndTheFenceIsTheLocksRevision(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	put(t, client, lifeKey, "alive")
	a, _ := elector(t, client)
	b, _ := elector(t, client)
	won := campaign(t, a, "of-a", 0)
	if won == nil {
		t.Fatal("nobody holds the lock, and the campaign is lost")
	}
	if value, rev := lock(t, client); value != "of-a" || rev != won.Fence {
		t.Errorf("the lock holds %q at revision %d, want of-a at the fence %d", value, rev, won.Fence)
	}
	if term := campaign(t, b, "of-b", 0); term != nil {
		t.Errorf("a lock that is held was won: %+v", term)
	}
	if term := campaign(t, a, "of-a-again", 0); term != nil {
		t.Errorf("two campaigns of one session both won: %+v", term)
	}
}

func TestWhatIsLockedMustExist(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	put(t, client, overKey, "since yesterday")
	e, _ := elector(t, client)
	term, resp, err := e.Campaign(within(t), candidacy("v", 0))
	if err != nil || term != nil || len(resp.Reads) != 2 {
		t.Errorf("campaign for a life that is over: %v, %v, %v", term, resp, err)
	}
	if value, _ := lock(t, client); value != "" {
		t.Errorf("it left the lock %q", value)
	}
}

func TestTakeOverAndReleaseAreFenced(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	put(t, client, lifeKey, "alive")
	a, _ := elector(t, client)
	b, _ := elector(t, client)
	old := campaign(t, a, "of-a", 0)
	if term := campaign(t, b, "too-late", old.Fence-1); term != nil {
		t.Error("a lock was taken over that is not the one that was seen")
	}
	taken := campaign(t, b, "of-b", old.Fence)
	if taken == nil || taken.Fence <= old.Fence {
		t.Fatalf("take-over: %+v, after the fence %d", taken, old.Fence)
	}
	a.Resign(old) // a stale release must not free the newer lock
	b.Resign(&election.Term{Key: lockKey, Fence: taken.Fence - 1})
	marker := campaign(t, b, "marker", taken.Fence) // ordered behind neither, but the lock must be there for it
	if marker == nil {
		t.Error("a stale release freed the lock")
	}
	b.Resign(marker)
	eventually(t, "the lock is released", func() bool { value, _ := lock(t, client); return value == "" })
}

func TestSessionEnd(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	put(t, client, lifeKey, "alive")
	e, lease := elector(t, client)
	term := campaign(t, e, "v", 0)
	before := lease()
	if _, err := client.Revoke(within(t), before); err != nil {
		t.Fatal(err)
	}
	if value, _ := lock(t, client); value != "" {
		t.Errorf("the lock %q outlives its session", value)
	}
	// The client has not noticed yet; etcd tells the next campaign, which must not find another session's lock free.
	_, _, err := e.Campaign(within(t), candidacy("w", 0))
	if err != nil && !errors.Is(err, election.ErrNoSession) {
		t.Errorf("campaign with a lease that is gone: %v", err)
	}
	await(t, term.Done)
	eventually(t, "a new session", func() bool { return e.Alive() && lease() != before })
	if campaign(t, e, "x", 0) == nil {
		t.Error("the new session cannot win")
	}
}

func TestWithoutASessionCampaignsFailAtOnce(t *testing.T) {
	client := connect(t, "127.0.0.1:1") // nobody listens there
	e, cancel, done := started(t, client)
	if _, _, err := e.Campaign(within(t), candidacy("v", 0)); !errors.Is(err, election.ErrNoSession) {
		t.Errorf("campaign without etcd: %v, want ErrNoSession", err)
	}
	cancel()
	await(t, done) // Run must not wait for an etcd that is not there
}

func TestTTLIsChecked(t *testing.T) {
	if _, err := election.New(election.Config{TTL: time.Second}); err == nil {
		t.Error("a TTL that does not survive an etcd election was accepted")
	}
}

// commit writes a key if nobody holds the lock and something has the revision it is known to have.
func commit(known int64) *etcdwire.Txn {
	txn := new(etcdwire.Txn)
	txn.If(etcdwire.Compare{Key: []byte(lockKey), Created: true})
	txn.If(etcdwire.Compare{Key: []byte(lifeKey), Revision: known})
	txn.Put([]byte("/test/done"), []byte("once"), 0)
	txn.ElseGet([]byte(lifeKey))
	return txn
}

func TestCampaignWithACommit(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	put(t, client, lifeKey, "alive")
	now, err := client.Get(within(t), lifeKey)
	if err != nil {
		t.Fatal(err)
	}
	known := now.Kvs[0].ModRevision
	e, _ := elector(t, client)
	bid := candidacy("mine", 0)
	bid.Read = nil
	for _, test := range []struct {
		name       string
		known      int64
		made, lock bool
	}{
		{"all is as it is known", known, true, false},
		{"something is not", known - 1, false, true},
		{"somebody has the lock", known, false, false}, // of the case before
		{"both", known - 1, false, false},
	} {
		term, resp, err := e.CampaignWith(within(t), bid, commit(test.known))
		if err != nil {
			t.Fatal(err)
		}
		if resp.Succeeded != test.made || (term != nil) != test.lock {
			t.Errorf("%s: made is %v, the term %+v", test.name, resp.Succeeded, term)
		}
		if !test.made && (len(resp.Reads) != 1 || len(resp.Reads[0].Kvs) != 1) {
			t.Errorf("%s: read %v", test.name, resp.Reads)
		}
		if value, rev := lock(t, client); test.lock && (value != "mine" || rev != term.Fence) {
			t.Errorf("%s: the lock holds %q at %d, the fence is %d", test.name, value, rev, term.Fence)
		} else if test.made && value != "" {
			t.Errorf("%s: the lock %q was written", test.name, value)
		}
	}
	put(t, client, overKey, "since now")
	other := bid
	other.Key = lockKey + "2"
	if term, _, err := e.CampaignWith(within(t), other, commit(known-1)); term != nil || err != nil {
		t.Errorf("the lock of what is over: %+v, %v", term, err)
	}
	if resp, err := client.Get(within(t), other.Key); err != nil || len(resp.Kvs) != 0 {
		t.Errorf("it was written: %v, %v", resp, err)
	}
}

// The answer is lost, and with it whether the lock was taken: it is not left behind.
func TestGhostOfACampaignWithACommit(t *testing.T) {
	endpoint := etcdtest.Start(t)
	var sent atomic.Int64
	back := make(chan struct{})
	client := connect(t, endpoint, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if method != "/etcdserverpb.KV/Txn" {
				return invoker(ctx, method, req, reply, cc, opts...)
			}
			if sent.Add(1) > 1 { // what clears up waits
				<-back
				return invoker(ctx, method, req, reply, cc, opts...)
			}
			if err := invoker(ctx, method, req, reply, cc, opts...); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "the connection broke")
		}))
	other := connect(t, endpoint)
	put(t, other, lifeKey, "alive")
	e, _ := elector(t, client)
	_, _, err := e.CampaignWith(within(t), candidacy("ghost", 0), commit(1))
	if !errors.Is(err, election.ErrUnknown) {
		t.Errorf("campaign without an answer: %v, want ErrUnknown", err)
	}
	if value, _ := lock(t, other); value != "ghost" {
		t.Errorf("the lock holds %q: this tests nothing", value)
	}
	close(back)
	eventually(t, "the ghost lock is gone", func() bool { value, _ := lock(t, other); return value == "" })
}

// A commit that was made although its answer was lost has left no lock: to look for one costs etcd no writes.
func TestLookingForAGhostWritesNothing(t *testing.T) {
	endpoint := etcdtest.Start(t)
	var txns, looks atomic.Int64
	client := connect(t, endpoint, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoker(ctx, method, req, reply, cc, opts...)
			switch method {
			case "/etcdserverpb.KV/Range":
				looks.Add(1)
			case "/etcdserverpb.KV/Txn":
				txns.Add(1)
				return status.Error(codes.Unavailable, "the connection broke")
			}
			return err
		}))
	other := connect(t, endpoint)
	put(t, other, lifeKey, "alive")
	now, err := other.Get(within(t), lifeKey)
	if err != nil {
		t.Fatal(err)
	}
	e, _ := elector(t, client)
	if _, _, err := e.CampaignWith(within(t), candidacy("ghost", 0), commit(now.Kvs[0].ModRevision)); !errors.Is(err, election.ErrUnknown) {
		t.Errorf("campaign without an answer: %v, want ErrUnknown", err)
	}
	eventually(t, "it is looked for several times", func() bool { return looks.Load() >= 3 })
	if n := txns.Load(); n != 1 {
		t.Errorf("%d transactions, want only the campaign", n)
	}
}

// spoiler loses the answers of transactions while it is on.
type spoiler struct {
	on   atomic.Bool
	send bool // whether the transaction reaches etcd
}

func (s *spoiler) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method != "/etcdserverpb.KV/Txn" || !s.on.Load() {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	if s.send {
		if err := invoker(ctx, method, req, reply, cc, opts...); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "the connection broke")
}

// A campaign that was won although the answer was lost is recognised by its value.
func TestLostAnswerOfAWonCampaign(t *testing.T) {
	endpoint := etcdtest.Start(t)
	s := &spoiler{send: true}
	client := connect(t, endpoint, grpc.WithChainUnaryInterceptor(s.intercept))
	other := connect(t, endpoint)
	put(t, other, lifeKey, "alive")
	e, _ := elector(t, client)
	s.on.Store(true)
	go func() { // the next attempt gets through once the lock is there
		for value := ""; value == ""; {
			resp, err := other.Get(context.Background(), lockKey)
			if err != nil {
				return
			}
			if len(resp.Kvs) > 0 {
				value = string(resp.Kvs[0].Value)
			}
		}
		s.on.Store(false)
	}()
	term := campaign(t, e, "mine", 0)
	if term == nil {
		t.Fatal("the campaign is lost, to itself")
	}
	if value, rev := lock(t, other); value != "mine" || rev != term.Fence {
		t.Errorf("the lock holds %q at %d, the fence is %d", value, rev, term.Fence)
	}
}

// A campaign that ends without an answer leaves no ghost behind.
func TestGhostIsReaped(t *testing.T) {
	endpoint := etcdtest.Start(t)
	s := &spoiler{send: true}
	client := connect(t, endpoint, grpc.WithChainUnaryInterceptor(s.intercept))
	other := connect(t, endpoint)
	put(t, other, lifeKey, "alive")
	e, _ := elector(t, client)
	s.on.Store(true)
	ctx, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
	defer cancel()
	_, _, err := e.Campaign(ctx, candidacy("ghost", 0))
	if !errors.Is(err, election.ErrUnknown) {
		t.Errorf("campaign without an answer: %v, want ErrUnknown", err)
	}
	s.on.Store(false)
	eventually(t, "the ghost lock is gone", func() bool { value, _ := lock(t, other); return value == "" })
}

func TestStopReleasesEverything(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	put(t, client, lifeKey, "alive")
	e, cancel, done := started(t, client)
	eventually(t, "a session", e.Alive)
	if campaign(t, e, "v", 0) == nil {
		t.Fatal("not won")
	}
	cancel()
	await(t, done)
	if value, _ := lock(t, client); value != "" {
		t.Errorf("the lock %q is left after the stop", value)
	}
	if e.Alive() {
		t.Error("a session is left after the stop")
	}
}

// What clears up begins while the elector stops and waits for what clears up. History: a run of all tests on a busy machine.
func TestStopWhileLocksAreGivenBack(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	for range 6 {
		e, cancel, done := started(t, client)
		eventually(t, "a session", e.Alive)
		var givers sync.WaitGroup
		for range 4 {
			givers.Go(func() {
				for {
					e.Resign(&election.Term{Key: lockKey, Fence: 1})
					select {
					case <-done:
						return
					case <-time.After(time.Millisecond):
					}
				}
			})
		}
		cancel()
		await(t, done)
		givers.Wait()
	}
}
