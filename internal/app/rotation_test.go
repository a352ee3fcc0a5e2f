package app_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// The matrix of the incident the service replaces: the first rotation creates one key, any other none; but here every
// caller gets the rotation and the key.
func TestBehaviourMatrix(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.pool("p", 10, 5)
	req := c.request("p", "a0")

	req.RequestId, req.Trigger, req.Source = "first", v1.Trigger_TRIGGER_PROVIDER, "openhands"
	first := c.rotate(c.replicas[0], req)
	c.want("first outcome", first.Outcome, v1.Outcome_OUTCOME_ROTATED)
	c.want("slot", first.Rotation.Slot, "a0")
	c.want("key in the slot", first.Key.Id, first.Rotation.NewKeyId)
	c.want("generation of the new key", first.Key.Generation, first.Rotation.Revision)
	c.want("secret without include_secret", first.Key.Secret, "")

	req.RequestId, req.Trigger, req.Source, req.IncludeSecret = "second", v1.Trigger_TRIGGER_POOL, "openhandspool", true
	second := c.rotate(c.replicas[1], req)
	c.want("second outcome", second.Outcome, v1.Outcome_OUTCOME_ALREADY_ROTATED)
	c.want("second rotation", second.Rotation.Id, first.Rotation.Id)
	c.want("second trigger on record", second.Rotation.Trigger, v1.Trigger_TRIGGER_PROVIDER)
	c.want("second source on record", second.Rotation.Source, "openhands")
	c.want("second key", second.Key.Id, first.Key.Id)
	c.want("second secret", second.Key.Secret, secretOf("p-"+first.Key.Id))

	req.RequestId = "first"
	again := c.rotate(c.replicas[1], req)
	c.want("the first request id at another replica", again.Outcome, v1.Outcome_OUTCOME_ROTATED)
	c.want("its rotation", again.Rotation.Id, first.Rotation.Id)

	c.want("active keys", c.count("active", "p"), 10)
	c.want("backups", c.count("backup", "p"), 4)
	c.want("retired keys", c.count("retired", "p"), 1)
	c.want("rotated events", c.rec.Events("dev.rotatord.key.rotated.v1"), 1)
}

func TestWithoutGenerationTheActiveLifeIsMeant(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.pool("p", 1, 3)
	req := &v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Trigger: v1.Trigger_TRIGGER_OPERATOR, RequestId: "one"}
	first := c.rotate(c.replicas[0], req)
	c.want("outcome", first.Outcome, v1.Outcome_OUTCOME_ROTATED)
	again := c.rotate(c.replicas[1], req)
	c.want("the same request", again.Outcome, v1.Outcome_OUTCOME_ROTATED)
	req.RequestId = "two"
	other := c.rotate(c.replicas[1], req)
	c.want("another request", other.Outcome, v1.Outcome_OUTCOME_ALREADY_ROTATED)
	c.want("its rotation", other.Rotation.Id, first.Rotation.Id)
	c.want("rotations", len(c.settled().Rotations()), 1)
}

// A thousand triggers for one key at three replicas, provider and pool, with and without a generation.
func TestAThousandTriggersMakeOneRotation(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.pool("p", 10, 25)
	base := c.request("p", "a3")
	answers := c.storm(1000, func(i int) (*replica, *v1.RotateKeyRequest) {
		req := &v1.RotateKeyRequest{Pool: "p", KeyId: "a3", Generation: base.Generation, Trigger: v1.Trigger_TRIGGER_PROVIDER, Source: "openhands", RequestId: fmt.Sprint("r", i)}
		if i%2 == 1 {
			req.Trigger, req.Source = v1.Trigger_TRIGGER_POOL, "openhandspool"
		}
		if i%5 == 0 {
			req.Generation = 0
		}
		return c.replicas[i%3], req
	})
	ids, rotated := make(map[string]int), 0
	for _, a := range answers {
		ids[a.Rotation.Id]++
		if a.Outcome == v1.Outcome_OUTCOME_ROTATED {
			rotated++
		}
	}
	c.want("distinct rotations in the answers", len(ids), 1)
	c.want("callers told ROTATED", rotated, 1)
	c.want("rotations on record", len(c.settled().Rotations()), 1)
	c.want("backups", c.count("backup", "p"), 24)
	c.want("active keys", c.count("active", "p"), 10)
	c.want("events", c.rec.Events("dev.rotatord.key.rotated.v1"), 1)
}

// storm makes n calls at once and returns their answers; a call that fails fails the test.
func (c *cluster) storm(n int, call func(i int) (*replica, *v1.RotateKeyRequest)) []*v1.RotateKeyResponse {
	c.t.Helper()
	answers, errs := make([]*v1.RotateKeyResponse, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, req := call(i)
			answers[i], errs[i] = c.rotateUntilAnswered(req, r)
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			c.t.Fatalf("call %d: %v", i, err)
		}
	}
	return answers
}

// All keys of a pool fail together: each gets a backup of its own.
func TestManyKeysOfOnePoolAtOnce(t *testing.T) {
	const keys = 64
	c := newCluster(t, 3, nil)
	c.pool("p", keys, keys)
	generations := make([]int64, keys)
	for i := range keys {
		generations[i] = c.key(c.replicas[0], "p", fmt.Sprint("a", i)).Generation
	}
	answers := c.storm(3*keys, func(i int) (*replica, *v1.RotateKeyRequest) {
		return c.replicas[i%3], &v1.RotateKeyRequest{Pool: "p", KeyId: fmt.Sprint("a", i/3), Generation: generations[i/3], Trigger: v1.Trigger_TRIGGER_POOL}
	})
	used := make(map[string]string)
	for _, a := range answers {
		if old := used[a.Rotation.NewKeyId]; old != "" && old != a.Rotation.OldKeyId {
			t.Errorf("backup %s replaced %s and %s", a.Rotation.NewKeyId, old, a.Rotation.OldKeyId)
		}
		used[a.Rotation.NewKeyId] = a.Rotation.OldKeyId
	}
	c.want("distinct backups", len(used), keys)
	c.want("active keys", c.count("active", "p"), keys)
	c.want("stock left", c.count("backup", "p"), 0)
	c.want("rotations", len(c.settled().Rotations()), keys)
}

func TestFirstCallersCancellationDoesNotHurtTheOthers(t *testing.T) {
	steps := newGate(stepLocked, true)
	c := newCluster(t, 1, steps.seams)
	c.pool("p", 2, 2)
	req := c.request("p", "a0")
	req.RequestId = "first"
	ctx, cancel := context.WithCancel(c.ctx())
	firstDone := make(chan error, 1)
	go func() {
		_, err := c.replicas[0].rot.RotateKey(ctx, req)
		firstDone <- err
	}()
	steps.await(t)
	other := c.request("p", "a0")
	other.RequestId = "second"
	var a *v1.RotateKeyResponse
	second := make(chan error, 1)
	go func() {
		var err error
		a, err = c.replicas[0].rot.RotateKey(c.ctx(), other)
		second <- err
	}()
	cancel()
	if err := <-firstDone; err == nil {
		t.Error("the cancelled caller got an answer")
	}
	steps.open()
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	c.want("the rotation goes on under the first request", a.Rotation.RequestId, "first")
	c.want("second outcome", a.Outcome, v1.Outcome_OUTCOME_ALREADY_ROTATED)
	req.RequestId = "first"
	c.want("the first request again", c.rotate(c.replicas[0], req).Outcome, v1.Outcome_OUTCOME_ROTATED)
}

// A late trigger for an older generation never touches the successor, nor a later life of the same key.
func TestDelayedTriggersOfTwoLives(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.pool("p", 1, 1)
	firstLife := c.request("p", "a0")
	first := c.rotate(c.replicas[0], firstLife)
	c.want("first successor", first.Rotation.NewKeyId, "b0")

	late := c.rotate(c.replicas[1], firstLife)
	c.want("late trigger", late.Rotation.Id, first.Rotation.Id)
	c.want("late outcome", late.Outcome, v1.Outcome_OUTCOME_ALREADY_ROTATED)

	// a0 goes back into stock, and replaces b0: its second life.
	restored, err := c.replicas[1].adm.RestoreKey(c.ctx(), &v1.RestoreKeyRequest{Pool: "p", KeyId: "a0"})
	if err != nil {
		t.Fatal(err)
	}
	c.want("restored home", restored.Key.Home, v1.KeyHome_KEY_HOME_BACKUP)
	late = c.rotate(c.replicas[0], firstLife)
	c.want("late trigger while in stock", late.Rotation.Id, first.Rotation.Id)
	_, err = c.replicas[0].rot.RotateKey(c.ctx(), &v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Trigger: v1.Trigger_TRIGGER_POOL})
	c.want("trigger without generation while in stock", reason(err), "KEY_IN_STOCK")

	second := c.rotate(c.replicas[0], c.request("p", "b0"))
	c.want("second successor", second.Rotation.NewKeyId, "a0")
	c.caughtUp(c.replicas[1])
	late = c.rotate(c.replicas[1], firstLife)
	c.want("late trigger of the first life", late.Rotation.Id, first.Rotation.Id)
	c.want("the slot's current key", late.Key.Id, "a0")

	// The second life of a0 ends too.
	c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", 1, 1)
	secondLife := c.request("p", "a0")
	if secondLife.Generation == firstLife.Generation {
		t.Fatalf("both lives have generation %d", firstLife.Generation)
	}
	third := c.rotate(c.replicas[1], secondLife)
	c.want("third outcome", third.Outcome, v1.Outcome_OUTCOME_ROTATED)
	c.caughtUp(c.replicas[0])
	c.want("late trigger of the first life", c.rotate(c.replicas[0], firstLife).Rotation.Id, first.Rotation.Id)
	c.want("late trigger of the second life", c.rotate(c.replicas[0], secondLife).Rotation.Id, third.Rotation.Id)
	c.want("rotations", len(c.settled().Rotations()), 3)
	c.want("current key everywhere", c.rotate(c.replicas[0], firstLife).Key.Id, third.Rotation.NewKeyId)
}

func TestGenerationFromTheFuture(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.pool("p", 1, 1)
	req := c.request("p", "a0")
	req.Generation += 1_000_000
	_, err := c.replicas[0].rot.RotateKey(c.ctx(), req)
	c.want("reason", reason(err), "GENERATION_IN_FUTURE")
	req.Generation = 1
	_, err = c.replicas[0].rot.RotateKey(c.ctx(), req)
	c.want("reason for a generation that never was", reason(err), "ROTATION_NOT_FOUND")
	c.want("rotations", len(c.settled().Rotations()), 0)
}

// More proxies are bound to a key than a transaction has operations; they follow by construction.
func TestBindingsFollow(t *testing.T) {
	const proxies = 150
	c := newCluster(t, 2, nil)
	c.pool("p", 2, 1)
	var revision int64
	for i := range proxies {
		resp, err := c.replicas[i%2].adm.SetBinding(c.ctx(), &v1.SetBindingRequest{Pool: "p", ProxyId: fmt.Sprint("proxy", i), Slots: []*v1.SlotPriority{{Slot: "a1", Priority: 2}, {Slot: "a0"}}})
		if err != nil {
			t.Fatal(err)
		}
		revision = resp.Revision
	}
	rot := c.rotate(c.replicas[0], c.request("p", "a0"))
	for i := range proxies {
		keys, err := c.replicas[i%2].keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p", ProxyId: fmt.Sprint("proxy", i), MinRevision: max(revision, rot.Revision), IncludeSecret: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(keys.Keys) != 2 || keys.Keys[0].Key.Id != "b0" || keys.Keys[1].Key.Id != "a1" || !keys.Bound {
			t.Fatalf("proxy %d has keys %v, want b0 and a1", i, keys.Keys)
		}
		c.want("secret", keys.Keys[0].Key.Secret, secretOf("p-b0"))
	}
	_, err := c.replicas[0].adm.RemoveKey(c.ctx(), &v1.RemoveKeyRequest{Pool: "p", KeyId: "b0"})
	c.want("removing a bound key", reason(err), "KEY_BOUND")
	resp, err := c.replicas[1].adm.RemoveKey(c.ctx(), &v1.RemoveKeyRequest{Pool: "p", KeyId: "b0", Unbind: true})
	if err != nil {
		t.Fatal(err)
	}
	c.want("unbound", resp.Unbound, int32(proxies))
	c.want("active keys", c.count("active", "p"), 1)
}

// A trigger that comes to one replica right after a write at another must see it.
func TestTriggerRightAfterAWriteElsewhere(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.pool("p", 1, 30)
	a, b := c.replicas[0], c.replicas[1]
	for i := range 20 {
		id := fmt.Sprint("n", i)
		if _, err := a.adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "p", Home: v1.KeyHome_KEY_HOME_ACTIVE, Keys: []*v1.NewKey{{Id: id, Secret: secretOf(id)}}}); err != nil {
			t.Fatal(err)
		}
		c.want("rotation of a key just added", c.rotate(b, &v1.RotateKeyRequest{Pool: "p", KeyId: id, Trigger: v1.Trigger_TRIGGER_POOL}).Outcome, v1.Outcome_OUTCOME_ROTATED)

		if _, err := a.adm.PausePool(c.ctx(), &v1.PausePoolRequest{Name: "p"}); err != nil {
			t.Fatal(err)
		}
		_, err := b.rot.RotateKey(c.ctx(), &v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Trigger: v1.Trigger_TRIGGER_POOL})
		c.want("trigger right after a pause", reason(err), "POOL_PAUSED")
		if _, err := a.adm.ResumePool(c.ctx(), &v1.ResumePoolRequest{Name: "p"}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.adm.DisableKey(c.ctx(), &v1.DisableKeyRequest{Pool: "p", KeyId: "a0"}); err != nil {
			t.Fatal(err)
		}
		_, err = b.rot.RotateKey(c.ctx(), &v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Trigger: v1.Trigger_TRIGGER_POOL})
		c.want("trigger right after disabling", reason(err), "KEY_DISABLED")
		if _, err := a.adm.EnableKey(c.ctx(), &v1.EnableKeyRequest{Pool: "p", KeyId: "a0"}); err != nil {
			t.Fatal(err)
		}
	}
	c.want("rotations", len(c.settled().Rotations()), 20)
}

func TestOperatorMayRotateADisabledKey(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.pool("p", 1, 1)
	r := c.replicas[0]
	if _, err := r.adm.DisableKey(c.ctx(), &v1.DisableKeyRequest{Pool: "p", KeyId: "a0"}); err != nil {
		t.Fatal(err)
	}
	req := c.request("p", "a0")
	_, err := r.rot.RotateKey(c.ctx(), req)
	c.want("a proxy's trigger", reason(err), "KEY_DISABLED")
	req.Trigger = v1.Trigger_TRIGGER_OPERATOR
	c.want("an operator's", c.rotate(r, req).Outcome, v1.Outcome_OUTCOME_ROTATED)
}

// A rotation is one log line; collapsed calls are none.
func TestOneLogLineARotation(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.pool("p", 1, 1)
	base := c.request("p", "a0")
	c.storm(50, func(int) (*replica, *v1.RotateKeyRequest) {
		return c.replicas[0], &v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Generation: base.Generation, Trigger: v1.Trigger_TRIGGER_PROVIDER, Source: "openhands", Reason: "budget_exceeded_10.02"}
	})
	var lines []string
	for _, line := range strings.Split(c.log.String(), "\n") {
		if strings.Contains(line, "level=INFO") && strings.Contains(line, "key=a0") && strings.Contains(line, "openhands") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], "budget_exceeded_10.02") {
		t.Errorf("want one line about the rotation, got %d:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}
