package app_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// heldStore stops the first transaction with an event of a type, after all that it rests on has been read, until it is
// let go: a write that arrives late.
type heldStore struct {
	pool.Store
	event   pool.EventType
	reached chan struct{}
	way     chan struct{}
	used    bool
}

func (s *heldStore) Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error) {
	if !s.used && t.Event != nil && t.Event.Type == s.event {
		s.used = true
		close(s.reached)
		<-s.way
	}
	return s.Store.Apply(context.WithoutCancel(ctx), t)
}

// held is a cluster whose first replica's next write of a type is late.
func held(t *testing.T, event pool.EventType) (*cluster, *heldStore) {
	t.Helper()
	h := &heldStore{event: event, reached: make(chan struct{}), way: make(chan struct{})}
	c := newCluster(t, 2, func(i int) app.Seams {
		if i != 0 {
			return app.Seams{}
		}
		return app.Seams{Store: func(inner pool.Store) pool.Store { h.Store = inner; return h }}
	})
	return c, h
}

// late runs a call that is held, does meanwhile what comes before it, and returns the call's error.
func (h *heldStore) late(call func() error, meanwhile func()) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	<-h.reached
	meanwhile()
	close(h.way)
	return <-done
}

// A status write that lands after the rotation must not bring the old key back: the 10 -> 11 bug.
func TestLateStatusWrite(t *testing.T) {
	c, h := held(t, pool.EventKeyDisabled)
	c.pool("p", 10, 5)
	err := h.late(func() error {
		_, err := c.replicas[0].adm.DisableKey(c.ctx(), &v1.DisableKeyRequest{Pool: "p", KeyId: "a0"})
		return err
	}, func() { c.rotate(c.replicas[1], c.request2("p", "a0")) })
	c.want("the late write", reason(err), "KEY_WRONG_HOME")
	c.want("active keys", c.count("active", "p"), 10)
	c.want("retired keys", c.count("retired", "p"), 1)
}

// A binding to a slot that is removed meanwhile, and the other way round.
func TestBindAgainstRemoval(t *testing.T) {
	bind := func(c *cluster, r *replica) error {
		_, err := r.adm.SetBinding(c.ctx(), &v1.SetBindingRequest{Pool: "p", ProxyId: "x", Slots: []*v1.SlotPriority{{Slot: "a0"}}})
		return err
	}
	remove := func(c *cluster, r *replica) error {
		_, err := r.adm.RemoveKey(c.ctx(), &v1.RemoveKeyRequest{Pool: "p", KeyId: "a0"})
		return err
	}
	t.Run("late binding", func(t *testing.T) {
		c, h := held(t, pool.EventBindingSet)
		c.pool("p", 2, 1)
		err := h.late(func() error { return bind(c, c.replicas[0]) }, func() {
			if err := remove(c, c.replicas[1]); err != nil {
				t.Error(err)
			}
		})
		c.want("the late binding", reason(err), "SLOT_NOT_FOUND")
		c.want("bindings", c.count("bindings", "p"), 0)
	})
	t.Run("late removal", func(t *testing.T) {
		c, h := held(t, pool.EventKeyRemoved)
		c.pool("p", 2, 1)
		err := h.late(func() error { return remove(c, c.replicas[0]) }, func() {
			c.want("binding to a closing slot", reason(bind(c, c.replicas[1])), "SLOT_CLOSING")
		})
		c.want("the removal", reason(err), "")
		c.want("active keys", c.count("active", "p"), 1)
	})
	t.Run("late closing", func(t *testing.T) {
		c, h := held(t, pool.EventSlotClosing)
		c.pool("p", 2, 1)
		err := h.late(func() error { return remove(c, c.replicas[0]) }, func() {
			if err := bind(c, c.replicas[1]); err != nil {
				t.Error(err)
			}
		})
		c.want("the removal", reason(err), "KEY_BOUND")
		c.want("a binding to the slot", reason(bind(c, c.replicas[1])), "")
		c.want("active keys", c.count("active", "p"), 2)
	})
	t.Run("removal of a key that is rotated meanwhile", func(t *testing.T) {
		c, h := held(t, pool.EventKeyRemoved)
		c.pool("p", 2, 1)
		err := h.late(func() error { return remove(c, c.replicas[0]) }, func() {
			c.rotate(c.replicas[1], c.request2("p", "a0"))
		})
		if err == nil {
			t.Error("the removal of a key that was rotated meanwhile succeeded")
		}
		c.want("active keys", c.count("active", "p"), 2)
		c.want("a binding to the slot", reason(bind(c, c.replicas[1])), "")
	})
}

// The same id is added while it has another home: it stays in one.
func TestSameIDInAnotherHome(t *testing.T) {
	add := func(c *cluster, r *replica, home v1.KeyHome, secret string) *v1.AddedKey {
		t.Helper()
		resp, err := r.adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "p", Home: home, Keys: []*v1.NewKey{{Id: "n", Secret: secret}}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Results[0]
	}
	c, h := held(t, pool.EventKeyAdded)
	if _, err := c.replicas[1].adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: "p"}); err != nil {
		t.Fatal(err)
	}
	var late *v1.AddedKey
	_ = h.late(func() error {
		late = add(c, c.replicas[0], v1.KeyHome_KEY_HOME_BACKUP, secretOf("n"))
		return nil
	}, func() {
		c.want("first", add(c, c.replicas[1], v1.KeyHome_KEY_HOME_ACTIVE, secretOf("n")).Result, v1.AddResult_ADD_RESULT_ADDED)
	})
	c.want("the late addition", late.Result, v1.AddResult_ADD_RESULT_SAME)
	c.want("its home", late.Home, v1.KeyHome_KEY_HOME_ACTIVE)
	c.want("another secret", add(c, c.replicas[0], v1.KeyHome_KEY_HOME_BACKUP, secretOf("other")).Refusal, v1.KeyRefusal_KEY_REFUSAL_ID_TAKEN)
	c.want("active keys", c.count("active", "p"), 1)
	c.want("stock", c.count("backup", "p"), 0)
}

func TestSameSecretUnderASecondID(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.pool("p", 1, 0)
	resp, err := c.replicas[1].adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "p", Home: v1.KeyHome_KEY_HOME_BACKUP, Keys: []*v1.NewKey{{Id: "twin", Secret: secretOf("p-a0")}}})
	if err != nil {
		t.Fatal(err)
	}
	c.want("refusal", resp.Results[0].Refusal, v1.KeyRefusal_KEY_REFUSAL_SECRET_TAKEN)
	c.want("it names", resp.Results[0].OtherKeyId, "a0")
}

// An old replica meets records of a newer one: it serves what it understands and rewrites nothing.
func TestNewerRecordsAreNotRewritten(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.pool("p", 2, 2)
	key := prefix + "active/p/a0"
	newer := c.rewrite(key, `"schema":1`, `"schema":2,"aFieldOfTheFuture":"kept"`)
	_, err := c.replicas[0].rot.RotateKey(c.ctx(), c.request("p", "a0"))
	c.want("rotating it", reason(err), "SCHEMA_TOO_NEW")
	_, err = c.replicas[0].adm.DisableKey(c.ctx(), &v1.DisableKeyRequest{Pool: "p", KeyId: "a0"})
	c.want("disabling it", reason(err), "SCHEMA_TOO_NEW")
	keys, err := c.replicas[0].keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p"})
	if err != nil || len(keys.Keys) != 2 {
		t.Errorf("keys: %v, %v, want both", keys, err)
	}
	c.want("the record", c.get(key), newer)

	backup := prefix + "backup/p/b0"
	newer = c.rewrite(backup, `"schema":1`, `"schema":2`)
	c.want("successor", c.rotate(c.replicas[0], c.request("p", "a1")).Key.Id, "b1")
	c.want("the newer backup", c.get(backup), newer)
}

// rewrite changes a record by hand and waits until the replicas have seen it.
func (c *cluster) rewrite(key, old, new string) string {
	c.t.Helper()
	value := c.get(key)
	if !strings.Contains(value, old) {
		c.t.Fatalf("%s holds %s, not %q", key, value, old)
	}
	value = strings.Replace(value, old, new, 1)
	// With an event, as the recorder wants one for every change.
	event := fmt.Sprintf("%sevents/p/by-hand-%s", prefix, uuid.NewString())
	resp, err := c.client.Txn(c.ctx()).Then(clientv3.OpPut(key, value), clientv3.OpPut(event, `{"schema":1,"type":"test"}`)).Commit()
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.replicas[0].adm.GetPool(c.ctx(), &v1.GetPoolRequest{Name: "p", MinRevision: resp.Header.Revision}); err != nil {
		c.t.Fatal(err)
	}
	return value
}

func (c *cluster) get(key string) string {
	c.t.Helper()
	resp, err := c.client.Get(c.ctx(), key)
	if err != nil || len(resp.Kvs) != 1 {
		c.t.Fatalf("%s: %v, %v", key, resp, err)
	}
	return string(resp.Kvs[0].Value)
}

// An unreadable record hinders nothing but what needs it.
func TestUnreadableRecord(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.pool("p", 2, 2)
	c.rewrite(prefix+"active/p/a0", `"schema":1`, `"schema":"one"`)
	_, err := c.replicas[0].rot.RotateKey(c.ctx(), &v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Trigger: v1.Trigger_TRIGGER_POOL})
	c.want("rotating it", reason(err), "RECORD_UNREADABLE")
	c.want("rotating another", c.rotate(c.replicas[0], c.request("p", "a1")).Outcome, v1.Outcome_OUTCOME_ROTATED)
	report, err := c.replicas[0].adm.Diagnose(c.ctx(), &v1.DiagnoseRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) == 0 || report.Findings[0].Severity != v1.Severity_SEVERITY_ERROR || !strings.Contains(fmt.Sprint(report.Findings), "active/p/a0") {
		t.Errorf("the doctor does not name the unreadable record: %v", report.Findings)
	}
	c.rewrite(prefix+"active/p/a0", `"schema":"one"`, `"schema":1`)
}
