package app_test

import (
	"fmt"
	"testing"

	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cluster) wantPending(r *replica, req *v1.RotateKeyRequest) *v1.RotateKeyResponse {
	c.t.Helper()
	resp := c.rotate(r, req)
	c.want("outcome without stock", resp.Outcome, v1.Outcome_OUTCOME_PENDING)
	if resp.Rotation != nil {
		c.t.Errorf("a pending answer has rotation %v", resp.Rotation)
	}
	return resp
}

func TestNoStockThenStock(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.pool("p", 3, 0)
	req := c.request("p", "a0")
	req.RequestId = "waits"
	resp := c.wantPending(c.replicas[0], req)
	if resp.Key == nil || resp.Key.Id == "a0" {
		t.Errorf("want another usable key with PENDING, got %v", resp.Key)
	}
	other := c.request("p", "a0")
	other.RequestId = "another"
	c.wantPending(c.replicas[1], other)
	c.want("pending records", c.count("pending", "p"), 1)
	c.want("status of the key", c.key(c.replicas[2], "p", "a0").Status, v1.KeyStatus_KEY_STATUS_EXHAUSTED)
	c.want("it is marked", c.key(c.replicas[2], "p", "a0").Pending, true)
	keys, err := c.replicas[2].keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p", MinRevision: resp.Revision})
	if err != nil {
		t.Fatal(err)
	}
	c.want("usable keys", len(keys.Keys), 2)

	c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", 0, 1)
	c.eventually("the rotation that waited is made", func() bool { return c.count("pending", "p") == 0 })
	rotated := c.rotate(c.replicas[1], req)
	c.want("the request that waited", rotated.Outcome, v1.Outcome_OUTCOME_ROTATED)
	c.want("its key", rotated.Key.Id, "b0")
	c.want("the other request", c.rotate(c.replicas[0], other).Outcome, v1.Outcome_OUTCOME_ALREADY_ROTATED)
	c.want("rotations", len(c.settled().Rotations()), 1)
	c.want("active keys", c.count("active", "p"), 3)
}

// More rotations wait than the new stock has keys; the oldest are made first.
func TestScarceStockGoesToTheOldest(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.pool("p", 6, 0)
	for i := range 6 {
		c.wantPending(c.replicas[i%3], c.request("p", fmt.Sprint("a", i)))
	}
	c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", 0, 2)
	c.eventually("the stock is used", func() bool { return c.count("backup", "p") == 0 })
	c.want("still waiting", c.count("pending", "p"), 4)
	for _, rot := range c.settled().Rotations() {
		if rot.Old != "a0" && rot.Old != "a1" {
			t.Errorf("%s was rotated before older ones", rot.Old)
		}
	}
	c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "c", 0, 10)
	c.eventually("nothing waits", func() bool { return c.count("pending", "p") == 0 })
	c.want("stock left", c.count("backup", "p"), 6)
	c.want("rotations", len(c.settled().Rotations()), 6)
}

func TestPendingObeysPause(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.pool("p", 1, 0)
	c.wantPending(c.replicas[0], c.request("p", "a0"))
	if _, err := c.replicas[0].adm.PausePool(c.ctx(), &v1.PausePoolRequest{Name: "p"}); err != nil {
		t.Fatal(err)
	}
	c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", 0, 1)
	_, err := c.replicas[1].rot.RotateKey(c.ctx(), c.request("p", "a0"))
	c.want("trigger while paused", reason(err), "POOL_PAUSED")
	c.want("rotations while paused", len(c.settled().Rotations()), 0)
	if _, err := c.replicas[0].adm.ResumePool(c.ctx(), &v1.ResumePoolRequest{Name: "p"}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the rotation is made after the pause", func() bool { return len(c.settled().Rotations()) == 1 })
	c.want("still waiting", c.count("pending", "p"), 0)
}

// An operator who takes the key in hand ends the wait, in the same transaction.
func TestPendingIsCancelled(t *testing.T) {
	for name, act := range map[string]func(c *cluster) error{
		"enable": func(c *cluster) error {
			_, err := c.replicas[1].adm.EnableKey(c.ctx(), &v1.EnableKeyRequest{Pool: "p", KeyId: "a0"})
			return err
		},
		"disable": func(c *cluster) error {
			_, err := c.replicas[1].adm.DisableKey(c.ctx(), &v1.DisableKeyRequest{Pool: "p", KeyId: "a0"})
			return err
		},
		"remove": func(c *cluster) error {
			_, err := c.replicas[1].adm.RemoveKey(c.ctx(), &v1.RemoveKeyRequest{Pool: "p", KeyId: "a0"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2, nil)
			c.pool("p", 2, 0)
			c.wantPending(c.replicas[0], c.request("p", "a0"))
			if err := act(c); err != nil {
				t.Fatal(err)
			}
			c.want("pending records", c.count("pending", "p"), 0)
			c.add("p", v1.KeyHome_KEY_HOME_BACKUP, "b", 0, 2)
			// The other key is rotated after the refill, so whoever would still finish the cancelled wait has had its turn.
			c.rotate(c.replicas[0], c.request("p", "a1"))
			c.want("rotations", len(c.settled().Rotations()), 1)
		})
	}
}

// Refills, triggers and cancellations race; whoever wins, nothing is doubled and nothing is left over.
func TestPendingRaces(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.pool("p", 1, 0)
	next := 0
	for round := range 25 {
		active := c.activeKey("p")
		req := c.request("p", active)
		c.wantPending(c.replicas[round%3], req)
		done := make(chan error, 3)
		go func() {
			id := fmt.Sprint("b", next)
			_, err := c.replicas[0].adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "p", Home: v1.KeyHome_KEY_HOME_BACKUP, Keys: []*v1.NewKey{{Id: id, Secret: secretOf("p-" + id)}}})
			done <- err
		}()
		go func() {
			_, err := c.replicas[1].adm.EnableKey(c.ctx(), &v1.EnableKeyRequest{Pool: "p", KeyId: active})
			if reason(err) == "KEY_WRONG_HOME" { // the rotation came first
				err = nil
			}
			done <- err
		}()
		go func() {
			_, err := c.rotateUntilAnswered(req, c.replicas[2])
			done <- err
		}()
		for range 3 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		next++
		c.eventually("nothing waits while there is stock", func() bool { return c.count("pending", "p") == 0 || c.count("backup", "p") == 0 })
		for c.count("backup", "p") > 0 { // use up what a cancelled wait has left
			c.rotate(c.replicas[0], c.request("p", c.activeKey("p")))
		}
		c.want("active keys", c.count("active", "p"), 1)
		if pending := c.key(c.replicas[0], "p", c.activeKey("p")).Pending; pending {
			t.Fatalf("round %d: the new key waits for a rotation", round)
		}
	}
}

// activeKey is the only active key of a pool.
func (c *cluster) activeKey(pool string) string {
	c.t.Helper()
	resp, err := c.replicas[0].adm.ListKeys(c.ctx(), &v1.ListKeysRequest{Pool: pool, Home: v1.KeyHome_KEY_HOME_ACTIVE, MinRevision: c.lastChange()})
	if err != nil || len(resp.Keys) != 1 {
		c.t.Fatalf("active keys of %s: %v, %v", pool, resp, err)
	}
	return resp.Keys[0].Id
}
