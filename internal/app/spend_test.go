package app_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/upstream/upstreamtest"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// cord is a replica's way to etcd, which can be cut.
type cord struct {
	mu    sync.Mutex // protects the following fields
	conns []net.Conn
	gone  bool
}

func (c *cord) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(address, "http://"))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		_ = conn.Close()
		return nil, errors.New("cut off")
	}
	c.conns = append(c.conns, conn)
	return conn, nil
}

// cut leaves the replica as dead, for all that etcd and the others see of it.
func (c *cord) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

// watchedPool is a pool whose spend is watched at a fake LiteLLM, with the keys that add will give it.
func (c *cluster) watchedPool(name string, f *upstreamtest.LiteLLM) {
	c.t.Helper()
	none := int32(0)
	_, err := c.replicas[0].adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: name, Spec: &v1.PoolSpec{
		Upstream:      &v1.UpstreamSpec{Kind: "litellm", BaseUrl: f.URL},
		Spend:         &v1.SpendPolicy{},
		RotationBound: &v1.RotationBound{Rotations: &none},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
}

// checks is how many checks a replica counts.
func (c *cluster) checks(r *replica) (n float64) {
	c.t.Helper()
	resp, err := http.Get("http://" + r.WebAddress() + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var value float64
		if name, rest, ok := strings.Cut(lines.Text(), " "); ok && strings.HasPrefix(name, "rotator_spend_checks_total{") {
			if _, err := fmt.Sscan(rest, &value); err == nil {
				n += value
			}
		}
	}
	return n
}

// leader is the index of the replica that leads a role, -1 if none does.
func (c *cluster) leader(role string) int {
	c.t.Helper()
	resp, err := c.client.Get(c.ctx(), prefix+"leaders/"+role+"/", clientv3.WithFirstCreate()...)
	if err != nil {
		c.t.Fatal(err)
	}
	var value struct{ Replica string }
	if len(resp.Kvs) == 1 {
		_ = json.Unmarshal(resp.Kvs[0].Value, &value)
	}
	for i, r := range c.replicas {
		if r.name == value.Replica {
			return i
		}
	}
	return -1
}

// One replica checks. When it dies another one does within seconds, and one that leaves hands over at once.
func TestSpendCheckerIsSucceeded(t *testing.T) {
	cords := []*cord{{}, {}, {}}
	c := newCluster(t, 3, func(i int) app.Seams {
		return app.Seams{DialOptions: []grpc.DialOption{grpc.WithContextDialer(cords[i].dial)}}
	})
	f := upstreamtest.New(upstreamtest.Options{})
	t.Cleanup(f.Close)
	c.watchedPool("p", f)
	f.AddKey(upstreamtest.Key{Value: secretOf("p-a0"), MaxBudget: 10, Spend: 9.5})
	c.add("p", v1.KeyHome_KEY_HOME_ACTIVE, "a", 0, 1)
	c.eventually("the key is checked", func() bool { return c.key(c.replicas[0], "p", "a0").SpendUsd != nil })

	first := c.leader("spend")
	for i, r := range c.replicas {
		if n := c.checks(r); (n > 0) != (i == first) {
			t.Errorf("%s, leader: %v, made %v checks", r.name, i == first, n)
		}
	}

	cords[first].cut()
	f.SetSpend(secretOf("p-a0"), 9.7) // to be seen by the next one
	died, other := time.Now(), c.replicas[(first+1)%3]
	c.eventually("another one checks", func() bool { return c.key(other, "p", "a0").GetSpendUsd() == 9.7 })
	if took := time.Since(died); took > 12*time.Second { // the session's TTL is 5 s, the key's interval too
		t.Errorf("another replica took %v", took)
	}
	second := c.leader("spend")
	if second == first || second < 0 {
		t.Fatalf("replica %d leads after %d has died", second, first)
	}

	left := time.Now()
	if err := c.replicas[second].Close(c.ctx()); err != nil {
		t.Fatal(err)
	}
	third := 3 - first - second
	c.eventually("the last one leads", func() bool { return c.leader("spend") == third && c.checks(c.replicas[third]) > 0 })
	if took := time.Since(left); took > 8*time.Second { // of which the key's interval is 5 s
		t.Errorf("the last replica took %v", took)
	}
}

// Checker, provider and pool trigger the same keys at the same moment, at different replicas, again and again.
func TestSpendCheckerRacesWithTriggers(t *testing.T) {
	const active, rotations = 4, 200
	c := newCluster(t, 3, nil)
	f := upstreamtest.New(upstreamtest.Options{})
	t.Cleanup(f.Close)
	c.watchedPool("p", f)
	spent := func(letter string, n int) {
		for i := range n {
			f.AddKey(upstreamtest.Key{Value: secretOf(fmt.Sprintf("p-%s%d", letter, i)), MaxBudget: 10, Spend: 9.96})
		}
	}
	spent("a", active)
	spent("b", rotations)
	for i := 0; i < rotations; i += 50 {
		c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", i, 50)
	}
	c.add("p", v1.KeyHome_KEY_HOME_ACTIVE, "a", 0, active)

	for c.count("backup", "p") > 0 {
		resp, err := c.replicas[0].adm.ListKeys(c.ctx(), &v1.ListKeysRequest{Pool: "p", Home: v1.KeyHome_KEY_HOME_ACTIVE, MinRevision: c.lastChange()})
		if err != nil || len(resp.Keys) != active {
			t.Fatalf("want %d active keys, got %v, %v", active, resp.GetKeys(), err)
		}
		var callers sync.WaitGroup
		for _, key := range resp.Keys {
			// A key that has been asked about is about to be rotated by the checker.
			c.eventually("the key is asked about", func() bool { return f.Calls(upstreamtest.Activity, secretOf("p-"+key.Id)) > 0 })
			for i, trigger := range []v1.Trigger{v1.Trigger_TRIGGER_PROVIDER, v1.Trigger_TRIGGER_POOL, v1.Trigger_TRIGGER_PROXY} {
				callers.Go(func() {
					req := &v1.RotateKeyRequest{Pool: "p", KeyId: key.Id, Generation: key.Generation, Trigger: trigger, Source: "test", Reason: "budget", RequestId: fmt.Sprintf("%s-%d", key.Id, i)}
					if _, err := c.rotateUntilAnswered(req, c.replicas[i]); err != nil {
						t.Errorf("%s: %v", key.Id, err)
					}
				})
			}
		}
		callers.Wait()
	}
	c.want("active keys", c.count("active", "p"), active)
	c.want("retired keys", c.count("retired", "p"), rotations)
	c.want("rotations", len(c.settled().Rotations()), rotations)
	by := make(map[v1.Trigger]int)
	for _, e := range c.rec.Rotations() {
		resp, err := c.replicas[0].rot.GetRotation(c.ctx(), &v1.GetRotationRequest{Pool: "p", KeyId: e.Old, Generation: e.Generation})
		if err != nil {
			t.Fatal(err)
		}
		by[resp.Rotation.Trigger]++
	}
	if by[v1.Trigger_TRIGGER_SPEND_CHECKER] == 0 || by[v1.Trigger_TRIGGER_SPEND_CHECKER] == rotations {
		t.Errorf("want a race: rotations by trigger %v", by)
	}
}
