package election_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
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
)

const roles = "/test/leaders/"

// office counts who does the work, and remembers the order.
type office struct {
	mu   sync.Mutex
	in   map[string]bool
	log  []string
	most int // at one time
}

func (o *office) work(name string) func(context.Context) {
	return func(ctx context.Context) {
		o.mu.Lock()
		o.in[name] = true
		o.log = append(o.log, name)
		o.most = max(o.most, len(o.in))
		o.mu.Unlock()
		<-ctx.Done()
		o.mu.Lock()
		delete(o.in, name)
		o.mu.Unlock()
	}
}

func (o *office) holds(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.in[name]
}

func (o *office) holders() (now, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.in), o.most
}

func newOffice() *office { return &office{in: make(map[string]bool)} }

// member is an elector that can be stopped, and its lease.
type member struct {
	*election.Elector
	lease atomic.Int64
	stop  func()
}

func newMember(t *testing.T, client *clientv3.Client, name string) *member {
	t.Helper()
	m := &member{}
	e, err := election.New(election.Config{
		Client: client, TTL: 3 * time.Second, Log: slog.New(slog.DiscardHandler), Name: name, Roles: roles,
		Announce: func(_ context.Context, id clientv3.LeaseID) error { m.lease.Store(int64(id)); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Elector = e
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	m.stop = func() { cancel(); <-done }
	t.Cleanup(m.stop)
	eventually(t, "a session of "+name, e.Alive)
	return m
}

// lead seeks the role until the test ends or stop is called; stop waits for its end.
func (m *member) lead(t *testing.T, work func(context.Context)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { m.Lead(ctx, "r", work); close(done) }()
	stop = func() { cancel(); await(t, done) }
	t.Cleanup(stop)
	return stop
}

func candidates(t *testing.T, client *clientv3.Client) []string {
	t.Helper()
	resp, err := client.Get(within(t), roles+"r/", append(clientv3.WithFirstCreate(), clientv3.WithLimit(0))...)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, kv := range resp.Kvs {
		values = append(values, string(kv.Value))
	}
	return values
}

func TestOneLeadsAndHandsOverWhenItStops(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	a, b := newMember(t, client, "a"), newMember(t, client, "b")
	o := newOffice()
	stop := a.lead(t, o.work("a"))
	eventually(t, "a leads", func() bool { return o.holds("a") })
	if c := candidates(t, client); len(c) != 1 || !strings.Contains(c[0], `"replica":"a"`) {
		t.Errorf("the candidates are %q, want a's alone, with its name", c)
	}
	b.lead(t, o.work("b"))
	eventually(t, "two candidates", func() bool { return len(candidates(t, client)) == 2 })
	if o.holds("b") {
		t.Error("b leads beside a")
	}
	began := time.Now()
	stop()
	eventually(t, "b leads", func() bool { return o.holds("b") })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the hand-over after a stop took %v, want no TTL of 3 s", took)
	}
	if _, most := o.holders(); most != 1 {
		t.Errorf("%d led at one time", most)
	}
}

func TestTheNextOneLeadsWhenTheLeadersSessionEnds(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	a, b := newMember(t, client, "a"), newMember(t, client, "b")
	o := newOffice()
	a.lead(t, o.work("a"))
	eventually(t, "a leads", func() bool { return o.holds("a") })
	b.lead(t, o.work("b"))
	eventually(t, "two candidates", func() bool { return len(candidates(t, client)) == 2 })
	if _, err := client.Revoke(within(t), clientv3.LeaseID(a.lease.Load())); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b leads", func() bool { return o.holds("b") })
	eventually(t, "a, whose session has ended, works no more", func() bool { return !o.holds("a") })
	eventually(t, "a waits with its new session", func() bool { return len(candidates(t, client)) == 2 })
	if !o.holds("b") {
		t.Error("b does not lead any more")
	}
}

func TestALeaderNoticesThatItsCandidacyIsGone(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	a := newMember(t, client, "a")
	o := newOffice()
	ended := make(chan struct{}, 8)
	a.lead(t, func(ctx context.Context) { o.work("a")(ctx); ended <- struct{}{} })
	eventually(t, "a leads", func() bool { return o.holds("a") })
	if _, err := client.Delete(within(t), roles, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	await(t, ended)
	eventually(t, "a leads again", func() bool { return o.holds("a") })
}

// Two parts of one process that ask for one role share the session, and so the candidacy.
func TestOneProcessDoesNotLeadTwice(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	a := newMember(t, client, "a")
	o := newOffice()
	stop := a.lead(t, o.work("first"))
	eventually(t, "the first leads", func() bool { return o.holds("first") })
	a.lead(t, o.work("second"))
	stop()
	eventually(t, "the second leads", func() bool { return o.holds("second") })
	if _, most := o.holders(); most != 1 {
		t.Errorf("%d parts of one process led at one time", most)
	}
}

// Work that ends by itself gives the others a chance, and is begun again.
func TestWorkThatReturnsIsBegunAgain(t *testing.T) {
	client := connect(t, etcdtest.Start(t))
	a := newMember(t, client, "a")
	var runs atomic.Int64
	a.lead(t, func(context.Context) { runs.Add(1) })
	eventually(t, "three runs", func() bool { return runs.Load() >= 3 })
}

// lossy lets some transactions reach etcd and loses their answers.
type lossy struct {
	lose func() bool
	lost atomic.Int64
}

func (l *lossy) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoker(ctx, method, req, reply, cc, opts...)
	if err == nil && method == "/etcdserverpb.KV/Txn" && l.lose() {
		l.lost.Add(1)
		return status.Error(codes.Unavailable, "the connection broke")
	}
	return err
}

// Every second answer to a transaction is lost, the first one included: a leader is found, it leads alone, and nothing is
// left when it stops although its session lives.
func TestLostAnswersOfCandidacies(t *testing.T) {
	endpoint := etcdtest.Start(t)
	plain := connect(t, endpoint)
	o := newOffice()
	for i := range 3 {
		name := fmt.Sprint("r", i)
		var n atomic.Int64
		l := &lossy{lose: func() bool { return n.Add(1)%2 == 1 }}
		m := newMember(t, connect(t, endpoint, grpc.WithChainUnaryInterceptor(l.intercept)), name)
		stop := m.lead(t, o.work(name))
		eventually(t, name+" leads", func() bool { return o.holds(name) })
		stop()
		eventually(t, "the candidacy is gone", func() bool { return len(candidates(t, plain)) == 0 })
		if l.lost.Load() == 0 || !m.Alive() {
			t.Errorf("%d answers were lost and the session lives: %v; the test shows nothing", l.lost.Load(), m.Alive())
		}
	}
	if _, most := o.holders(); most != 1 {
		t.Errorf("%d led at one time", most)
	}
}

// A candidacy whose put is never answered must not lead from the grave when nobody wants it any more.
func TestGhostCandidacyIsReaped(t *testing.T) {
	endpoint := etcdtest.Start(t)
	plain := connect(t, endpoint)
	var on atomic.Bool
	l := &lossy{lose: on.Load}
	a := newMember(t, connect(t, endpoint, grpc.WithChainUnaryInterceptor(l.intercept)), "a")
	on.Store(true)
	stop := a.lead(t, func(context.Context) { t.Error("it led without having been told so") })
	eventually(t, "the ghost is there", func() bool { return len(candidates(t, plain)) == 1 })
	stop()
	on.Store(false)
	eventually(t, "the ghost is gone", func() bool { return len(candidates(t, plain)) == 0 })
	if !a.Alive() {
		t.Error("the ghost went with its session; the test shows nothing")
	}
}

// A campaign that says "won" with a key that is gone makes no leader: here the key is deleted after it was put and before
// it is looked at, and the campaign hears nothing of it.
func TestPhantomDoesNotLead(t *testing.T) {
	endpoint := etcdtest.Start(t)
	plain := connect(t, endpoint)
	var once sync.Once
	steal := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoker(ctx, method, req, reply, cc, opts...)
		if err == nil && method == "/etcdserverpb.KV/Txn" {
			once.Do(func() {
				if _, err := plain.Delete(ctx, roles, clientv3.WithPrefix()); err != nil {
					t.Error(err)
				}
			})
		}
		return err
	}
	a := newMember(t, connect(t, endpoint, grpc.WithChainUnaryInterceptor(steal)), "a")
	found := make(chan int, 1)
	a.lead(t, func(ctx context.Context) {
		select {
		case found <- len(candidates(t, plain)):
		case <-ctx.Done():
		}
		<-ctx.Done()
	})
	select {
	case n := <-found:
		if n != 1 {
			t.Errorf("it leads with %d candidacies, want 1", n)
		}
	case <-within(t).Done():
		t.Fatal("it does not lead with another candidacy")
	}
}
