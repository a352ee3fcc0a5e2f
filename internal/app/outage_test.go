package app_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rotatord/rotatord/internal/etcdembed"
	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// outage is a cluster whose etcd can be stopped and started again on its data.
func outage(t *testing.T) (c *cluster, stop, start func()) {
	t.Helper()
	cfg := etcdembed.Config{DataDir: t.TempDir(), ClientListen: "127.0.0.1:0"}
	server := etcdtest.StartServer(t, cfg)
	cfg.ClientListen = server.Endpoint()
	t.Cleanup(func() { // after the cluster's own clean-up, which reads what was recorded
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	c = newClusterOn(t, server.Endpoint(), 1, nil)
	return c, func() {
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
		}, func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			var err error
			if server, err = etcdembed.Start(ctx, cfg); err != nil {
				t.Fatal(err)
			}
		}
}

// Without etcd reads go on from memory, writes say within two seconds that nothing was done, and both say so in health;
// when etcd is back, so are the writes.
func TestWithoutQuorum(t *testing.T) {
	c, stop, start := outage(t)
	c.pool("p", 2, 2)
	r := c.replicas[0]
	req := c.request("p", "a0")
	req.RequestId = "before"
	before := c.rotate(r, req)
	next := c.request("p", "a1")
	c.want("rotation health", c.health("rotator.v1.RotationService"), healthv1.HealthCheckResponse_SERVING)
	stop()

	began := time.Now()
	_, err := r.rot.RotateKey(c.ctx(), next)
	c.want("reason", reason(err), "NOT_APPLIED")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the refusal took %v", took)
	}
	c.eventually("health follows", func() bool {
		return c.health("rotator.v1.RotationService") == healthv1.HealthCheckResponse_NOT_SERVING
	})
	began = time.Now()
	_, err = r.adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: "q"})
	c.want("reason of an admin write", reason(err), "NOT_APPLIED")
	if took := time.Since(began); took > time.Second {
		t.Errorf("once it is known that there is no quorum, a refusal took %v", took)
	}
	c.want("key health", c.health("rotator.v1.KeyService"), healthv1.HealthCheckResponse_SERVING)
	c.want("readyz", c.status("/readyz"), http.StatusOK)
	c.want("livez", c.status("/livez"), http.StatusOK)
	keys, err := r.keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p", IncludeSecret: true})
	if err != nil || len(keys.Keys) != 2 {
		t.Errorf("keys without quorum: %v, %v", keys, err)
	}
	again := c.rotate(r, req)
	c.want("what was rotated before", again.Rotation.Id, before.Rotation.Id)
	_, err = r.adm.GetPool(c.ctx(), &v1.GetPoolRequest{Name: "unknown"})
	c.want("no negative answer from memory", reason(err), "NOT_APPLIED")

	start()
	c.eventually("writes are back", func() bool { return r.Writable() == nil })
	c.want("outcome", c.rotate(r, next).Outcome, v1.Outcome_OUTCOME_ROTATED)
	c.want("rotation health", c.health("rotator.v1.RotationService"), healthv1.HealthCheckResponse_SERVING)
}

// The wait for etcd ends with the caller's patience, and says whether anything can have happened.
func TestCallersDeadline(t *testing.T) {
	steps := newGate(stepRead, true)
	c := newCluster(t, 1, steps.seams)
	t.Cleanup(steps.open)
	c.pool("p", 1, 1)
	ctx, cancel := context.WithTimeout(c.ctx(), 200*time.Millisecond)
	defer cancel()
	_, err := c.replicas[0].rot.RotateKey(ctx, c.request("p", "a0"))
	if err == nil {
		t.Error("the call of an impatient caller succeeded")
	}
	_, err = c.replicas[0].rot.RotateKey(c.ctx(), c.request("p", "a0"))
	c.want("reason for a patient one", reason(err), "OUTCOME_UNKNOWN")
	steps.open()
	resp, err := c.rotateUntilAnswered(c.request("p", "a0"), c.replicas[0])
	if err == nil {
		t.Logf("then: %v", resp.Outcome)
	}
}

func (c *cluster) health(service string) healthv1.HealthCheckResponse_ServingStatus {
	c.t.Helper()
	conn, err := grpc.NewClient(c.replicas[0].Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	resp, err := healthv1.NewHealthClient(conn).Check(c.ctx(), &healthv1.HealthCheckRequest{Service: service})
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.Status
}

func (c *cluster) status(path string) int {
	c.t.Helper()
	resp, err := http.Get("http://" + c.replicas[0].WebAddress() + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// etcd forgets history under the replicas' watch while it is down; what happened meanwhile is not missed.
func TestCompactionUnderTheWatch(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.pool("p", 5, 20)
	for i := range 5 {
		c.rotate(c.replicas[i%2], c.request("p", fmt.Sprint("a", i)))
		if _, err := c.client.Compact(c.ctx(), c.revision(), clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		for _, r := range c.replicas {
			keys, err := r.keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p", MinRevision: c.lastChange()})
			if err != nil || len(keys.Keys) != 5 {
				t.Fatalf("keys at %s: %v, %v", r.name, keys, err)
			}
		}
	}
	c.want("rotations", len(c.settled().Rotations()), 5)
}
