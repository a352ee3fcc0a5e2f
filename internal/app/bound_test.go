package app_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// outcomes are what a storm's calls came to.
type outcomes struct {
	rotated int
	refused []error
}

// triggerAll rotates keys a0.. of a pool, each once, at the replicas in turn and all at once.
func (c *cluster) triggerAll(pool string, lives map[string]int64) (out outcomes) {
	c.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	i := 0
	for key, generation := range lives {
		r := c.replicas[i%len(c.replicas)]
		i++
		wg.Go(func() {
			resp, err := c.rotateUntilAnswered(&v1.RotateKeyRequest{
				Pool: pool, KeyId: key, Generation: generation, Trigger: v1.Trigger_TRIGGER_POOL, Source: "storm", RequestId: "storm-" + key,
			}, r)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				out.refused = append(out.refused, err)
			case resp.GetOutcome() == v1.Outcome_OUTCOME_ROTATED:
				out.rotated++
			}
		})
	}
	wg.Wait()
	return out
}

// warm are those of the lives that are in service and do not cool down because of the bound.
func (c *cluster) warm(pool string, lives map[string]int64) map[string]int64 {
	c.t.Helper()
	warm := make(map[string]int64)
	for id, generation := range lives {
		k := c.key(c.replicas[1], pool, id)
		if k.GetHome() == v1.KeyHome_KEY_HOME_ACTIVE && (k.GetStatus() != v1.KeyStatus_KEY_STATUS_ERROR || k.GetStatusReason() != "bound") {
			warm[id] = generation
		}
	}
	return warm
}

// retryAfter is how long an error says to wait.
func retryAfter(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// A storm on 60 keys at three replicas: exactly as many are rotated in the window as the bound allows, the others are told
// to wait and cool down, and later they go.
func TestBoundIsExactOverReplicas(t *testing.T) {
	const keys, limit, window = 60, 20, 2 * time.Minute // no machine is so slow that the storm takes longer
	c := newCluster(t, 3, nil)
	c.boundPool("p", &v1.RotationBound{Rotations: proto.Int32(limit), Window: durationpb.New(window)}, keys, keys)
	lives := make(map[string]int64)
	for i := range keys {
		id := fmt.Sprint("a", i)
		lives[id] = c.key(c.replicas[0], "p", id).Generation
	}
	began := time.Now()
	first := c.triggerAll("p", lives)
	took := time.Since(began)
	if took >= window {
		t.Fatalf("the storm took %v, longer than the window: this machine is too slow for the test", took)
	}
	c.want("rotated", first.rotated, limit)
	c.want("refused", len(first.refused), keys-limit)
	for _, err := range first.refused {
		if status.Code(err) != codes.ResourceExhausted || reason(err) != "ROTATION_BOUND" || retryAfter(err) <= 0 || retryAfter(err) > window {
			t.Errorf("refused with %v, reason %s, to wait for %v; want RESOURCE_EXHAUSTED and a delay within %v", err, reason(err), retryAfter(err), window)
		}
	}
	settled := c.settled()
	c.want("rotations on record", len(settled.Rotations()), limit)
	c.want("stock", settled.Count("backup", "p"), keys-limit)
	c.want("active keys", settled.Count("active", "p"), keys)
	c.want("events that the bound is reached", c.rec.Events("dev.rotatord.pool.bound_reached.v1"), 1)
	c.want("lines in the log", strings.Count(c.log.String(), "rotation bound is reached"), 1)
	p, err := c.replicas[2].adm.GetPool(c.ctx(), &v1.GetPoolRequest{Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	c.want("rotations left", p.GetPool().GetRotationsLeft(), int32(0))
	if at := p.GetPool().GetNextRotationAt().AsTime(); at.Before(began) || at.After(time.Now().Add(window)) {
		t.Errorf("the next rotation is possible at %v, want it within the window", at)
	}
	// A cool-down is a transaction of its own, for which a busy machine may have had no time: then the next trigger makes it.
	for range 5 {
		c.triggerAll("p", c.warm("p", lives))
	}
	c.want("keys in service that do not cool down", len(c.warm("p", lives)), 0)
	c.want("events of it", c.rec.Events("dev.rotatord.key.cooled_down.v1"), keys-limit)
	// A shorter window holds at once: the others go as soon as it has passed, and again no more than the bound in each.
	spec := &v1.PoolSpec{RotationBound: &v1.RotationBound{Rotations: proto.Int32(limit), Window: durationpb.New(2 * time.Second)}}
	if _, err := c.replicas[0].adm.UpdatePool(c.ctx(), &v1.UpdatePoolRequest{Name: "p", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	c.eventually("all keys are rotated", func() bool { return len(c.triggerAll("p", lives).refused) == 0 })
	settled = c.settled()
	c.want("rotations on record in the end", len(settled.Rotations()), keys)
	c.want("stock in the end", settled.Count("backup", "p"), 0)
}

// An operator gets through at the bound, and a rotation that waits for stock waits for the bound too.
func TestOverrideAndPendingAtTheBound(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.boundPool("p", &v1.RotationBound{Rotations: proto.Int32(1), Window: durationpb.New(2 * time.Second)}, 3, 0)
	waits := c.request("p", "a0")
	waits.RequestId = "waits"
	c.wantPending(c.replicas[0], waits) // uses the token
	refused := c.request("p", "a1")
	_, err := c.replicas[1].rot.RotateKey(c.ctx(), refused)
	c.want("another key at the bound", reason(err), "ROTATION_BOUND")
	refused.OverrideBound = true
	_, err = c.replicas[1].rot.RotateKey(c.ctx(), refused)
	c.want("overridden by a proxy", status.Code(err), codes.InvalidArgument)
	c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", 0, 2)
	refused.Trigger = v1.Trigger_TRIGGER_OPERATOR
	c.want("overridden by an operator", c.rotate(c.replicas[1], refused).Outcome, v1.Outcome_OUTCOME_ROTATED)
	c.eventually("the rotation that waited is made", func() bool { return c.count("pending", "p") == 0 })
	c.want("its outcome", c.rotate(c.replicas[1], waits).Outcome, v1.Outcome_OUTCOME_ROTATED)
	c.want("rotations", len(c.settled().Rotations()), 2)
}
