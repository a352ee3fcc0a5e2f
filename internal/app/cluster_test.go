package app_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	"github.com/rotatord/rotatord/internal/recorder"
	"github.com/rotatord/rotatord/internal/seal"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

const prefix = "/rotator/"

// cluster is a real etcd behind a socket, replicas of the real service on it, and a recorder beside them.
type cluster struct {
	t        *testing.T
	etcd     string
	keyset   string
	exec     []string // of the replicas that are started from now on
	client   *clientv3.Client
	rec      *recorder.Recorder
	replicas []*replica
	log      *logBuffer
}

// replica is one replica with a client for each of its services.
type replica struct {
	*app.Replica
	name string
	rot  v1.RotationServiceClient
	keys v1.KeyServiceClient
	adm  v1.AdminServiceClient
}

// logBuffer keeps what the replicas log, for the canary and for failures.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newCluster starts etcd and n replicas. seams may be nil; it is asked for each replica. When the test ends, every
// revision since must have kept the promises.
func newCluster(t *testing.T, n int, seams func(i int) app.Seams) *cluster {
	t.Helper()
	return newClusterOn(t, etcdtest.Start(t), n, seams)
}

func newClusterOn(t *testing.T, etcd string, n int, seams func(i int) app.Seams) *cluster {
	t.Helper()
	c := &cluster{t: t, etcd: etcd, keyset: filepath.Join(t.TempDir(), "keyset.json"), log: &logBuffer{}}
	if _, err := seal.Create(c.keyset); err != nil {
		t.Fatal(err)
	}
	var err error
	c.client, err = clientv3.New(clientv3.Config{Endpoints: []string{c.etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.client.Close() })
	c.rec, err = recorder.Start(c.ctx(), c.client, prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.checkRecording)
	for i := range n {
		var s app.Seams
		if seams != nil {
			s = seams(i)
		}
		c.start(fmt.Sprintf("r%d", i), s)
	}
	return c
}

// ctx bounds one step of a test: generously, since it only ends what hangs.
func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *cluster) start(name string, seams app.Seams) *replica {
	c.t.Helper()
	rep := c.launch(name, c.keyset, seams)
	c.replicas = append(c.replicas, rep)
	c.eventually("replica "+name+" serves", func() bool {
		_, err := rep.adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{})
		return err == nil && rep.Writable() == nil
	})
	return rep
}

// launch starts a replica and does not wait for it.
func (c *cluster) launch(name, keyset string, seams app.Seams) *replica {
	c.t.Helper()
	cfg := &app.Config{
		Name: name, Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", EtcdEndpoints: []string{c.etcd}, EtcdPrefix: prefix,
		KeysetFile: keyset, SessionTTL: 5 * time.Second, ShutdownTimeout: 5 * time.Second, ExecProviders: c.exec,
	}
	log := slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("replica", name)
	r, err := app.Start(c.ctx(), cfg, log, seams)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := r.Close(c.ctx()); err != nil {
			c.t.Errorf("closing %s: %v", name, err)
		}
	})
	conn, err := grpc.NewClient(r.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return &replica{Replica: r, name: name, rot: v1.NewRotationServiceClient(conn), keys: v1.NewKeyServiceClient(conn), adm: v1.NewAdminServiceClient(conn)}
}

// eventually waits for a condition that nothing announces, such as a replica that notices a fault.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			c.t.Fatalf("not in time: %s\n%s", what, tail(c.log.String()))
		}
		<-time.After(5 * time.Millisecond)
	}
}

func tail(log string) string {
	lines := strings.Split(log, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

func (c *cluster) revision() int64 {
	c.t.Helper()
	resp, err := c.client.Get(c.ctx(), prefix)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.Header.Revision
}

// settled waits until the recorder has seen all that is in etcd now.
func (c *cluster) settled() *recorder.Recorder {
	c.t.Helper()
	if err := c.rec.Wait(c.ctx(), c.lastChange()); err != nil {
		c.t.Fatal(err)
	}
	return c.rec
}

// lastChange is the revision of the latest change under the prefix.
func (c *cluster) lastChange() int64 {
	c.t.Helper()
	resp, err := c.client.Get(c.ctx(), prefix, append(clientv3.WithLastRev(), clientv3.WithPrefix())...)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return 0
	}
	return resp.Kvs[0].ModRevision
}

// lastOfPools is lastChange without what replicas write of themselves and of who leads, when they like.
func (c *cluster) lastOfPools() (revision int64) {
	c.t.Helper()
	resp, err := c.client.Get(c.ctx(), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		if kind, _, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), prefix), "/"); kind != "replicas" && kind != "leaders" {
			revision = max(revision, kv.ModRevision)
		}
	}
	return revision
}

func (c *cluster) checkRecording() {
	violations, err := c.rec.Stop(c.ctx(), c.lastChange())
	if err != nil {
		c.t.Errorf("recording: %v", err)
	}
	for _, v := range violations {
		c.t.Errorf("broken promise: %s", v)
	}
	if c.t.Failed() {
		c.t.Logf("log:\n%s", tail(c.log.String()))
	}
}

// secretOf is an obviously fake secret for a key.
func secretOf(key string) string { return "sk-fake-" + key + "-not-a-real-key-0000" }

// pool makes a pool without a bound, with active keys a0.. and backups b0...
func (c *cluster) pool(name string, active, backups int) {
	c.t.Helper()
	c.boundPool(name, &v1.RotationBound{Rotations: proto.Int32(0)}, active, backups)
}

// boundPool makes a pool with a bound on its rotations.
func (c *cluster) boundPool(name string, bound *v1.RotationBound, active, backups int) {
	c.t.Helper()
	r := c.replicas[0]
	if _, err := r.adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: name, Spec: &v1.PoolSpec{RotationBound: bound}}); err != nil {
		c.t.Fatal(err)
	}
	c.add(name, v1.KeyHome_KEY_HOME_ACTIVE, "a", 0, active)
	c.add(name, v1.KeyHome_KEY_HOME_BACKUP, "b", 0, backups)
}

// add adds keys letter{from}..letter{from+n-1} and waits until all replicas know them.
func (c *cluster) add(pool string, home v1.KeyHome, letter string, from, n int) {
	c.t.Helper()
	if n == 0 {
		return
	}
	req := &v1.AddKeysRequest{Pool: pool, Home: home}
	for i := range n {
		id := fmt.Sprintf("%s%d", letter, from+i)
		req.Keys = append(req.Keys, &v1.NewKey{Id: id, Secret: secretOf(pool + "-" + id)})
	}
	resp, err := c.replicas[0].adm.AddKeys(c.ctx(), req)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, k := range resp.Results {
		if k.Result != v1.AddResult_ADD_RESULT_ADDED {
			c.t.Fatalf("adding %s: %v: %s", k.Id, k.Result, k.Message)
		}
	}
	for _, r := range c.replicas {
		if _, err := r.adm.GetPool(c.ctx(), &v1.GetPoolRequest{Name: pool, MinRevision: resp.Revision}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// key reads a key as it is now.
func (c *cluster) key(r *replica, pool, id string) *v1.Key {
	c.t.Helper()
	resp, err := r.adm.GetKey(c.ctx(), &v1.GetKeyRequest{Pool: pool, KeyId: id, MinRevision: c.lastChange()})
	if err != nil {
		c.t.Fatalf("reading %s/%s: %v", pool, id, err)
	}
	return resp.Key
}

// caughtUp waits until a replica has seen all that is in etcd now: what it answers from memory is that or newer.
func (c *cluster) caughtUp(r *replica) {
	c.t.Helper()
	if _, err := r.adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{MinRevision: c.lastChange()}); err != nil {
		c.t.Fatal(err)
	}
}

// request is a trigger for the key as it is now.
func (c *cluster) request(pool, id string) *v1.RotateKeyRequest {
	c.t.Helper()
	return &v1.RotateKeyRequest{
		Pool: pool, KeyId: id, Generation: c.key(c.replicas[0], pool, id).Generation, Trigger: v1.Trigger_TRIGGER_PROXY,
		Source: "test", Reason: "401 invalid_api_key",
	}
}

// rotate asks r and fails the test if there is no answer.
func (c *cluster) rotate(r *replica, req *v1.RotateKeyRequest) *v1.RotateKeyResponse {
	c.t.Helper()
	resp, err := r.rot.RotateKey(c.ctx(), req)
	if err != nil {
		c.t.Fatalf("rotating %s/%s at %s: %v", req.Pool, req.KeyId, r.name, err)
	}
	return resp
}

// repeatable are the reasons that go away.
var repeatable = map[string]bool{"NOT_APPLIED": true, "OUTCOME_UNKNOWN": true}

// rotateUntilAnswered repeats a request, with its request id, as the README tells callers to, at the replicas in turn.
func (c *cluster) rotateUntilAnswered(req *v1.RotateKeyRequest, replicas ...*replica) (*v1.RotateKeyResponse, error) {
	deadline := time.Now().Add(time.Minute) // for machines that have much else to do
	pause := 10 * time.Millisecond
	for i := 0; ; i++ {
		resp, err := replicas[i%len(replicas)].rot.RotateKey(c.ctx(), req)
		if err == nil || !repeatable[reason(err)] || time.Now().After(deadline) {
			return resp, err
		}
		<-time.After(pause)
		pause = min(2*pause, time.Second)
	}
}

// reason is the ErrorInfo reason an error carries.
func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

// count is the number of records of a kind in a pool, as of now.
func (c *cluster) count(kind, pool string) int { return c.settled().Count(kind, pool) }

func (c *cluster) want(what string, got, want any) {
	c.t.Helper()
	if got != want {
		c.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
