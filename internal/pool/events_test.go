package pool_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// gaps lists what an event does not say although its kind of transition has it.
func gaps(e *pool.Event) (missing []string) {
	need := func(what string, ok bool) {
		if !ok {
			missing = append(missing, what)
		}
	}
	id, err := uuid.Parse(e.ID)
	need("an id that sorts by time", err == nil && id.Version() == 7)
	need("time", !e.Time.IsZero())
	need("pool", e.Pool != "")
	need("trigger", e.Trigger.Known())
	kind, _, _ := strings.Cut(strings.TrimPrefix(string(e.Type), "dev.rotatord."), ".")
	about := map[string]string{"pool": e.Pool, "key": e.Key, "slot": e.Slot, "binding": e.Proxy}[kind]
	need("subject "+kind+"s/...", about != "" && e.Subject == kind+"s/"+about)
	served := kind == "slot"
	switch e.Type {
	case pool.EventKeyRotated:
		need("new key", e.NewKey != "")
		need("rotation id", e.RotationID != "")
		need("request id", e.RequestID != "")
		need("home retired", e.Home == pool.HomeRetired)
		served = true
	case pool.EventKeyPending:
		need("request id", e.RequestID != "")
		need("status", e.Status == pool.StatusExhausted)
		served = true
	case pool.EventKeyEnabled, pool.EventKeyDisabled:
		need("status", e.Status != pool.StatusUnspecified)
		served = true
	case pool.EventKeyRestored:
		need("generation", e.Generation > 0)
	case pool.EventKeyRemoved:
		served = e.Home == pool.HomeActive
		need("generation", e.Generation > 0 || e.Home == pool.HomeBackup)
	}
	if kind == "key" {
		need("home", e.Home != pool.HomeNone)
	}
	if served {
		need("slot", e.Slot != "")
		need("generation", e.Generation > 0)
	}
	return missing
}

func TestEventsOfOperatorsSayWhatHappened(t *testing.T) {
	for _, op := range adminOps {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			inTime(t, func(t *testing.T) {
				r := newAdminRig(t).fill()
				store, ok := r.store.(*pooltest.MemStore)
				if !ok {
					return // on etcd the same is written
				}
				before := len(store.Events())
				r.must(op.do(r, r.ctx, r.admin))
				for _, e := range store.Events()[before:] {
					if missing := gaps(&e.Event); len(missing) > 0 {
						t.Errorf("the event %+v lacks %s", e.Event, strings.Join(missing, ", "))
					}
					if e.Trigger != pool.TriggerOperator {
						t.Errorf("the event %s says it was asked for by %s", e.Type, e.Trigger)
					}
					if text := fmt.Sprintf("%+v", e.Event); strings.Contains(text, "secret-of") || strings.Contains(text, "iphertext") {
						t.Errorf("a secret is in the event %s", text)
					}
				}
			})
		})
	}
}

func TestEventsOfRotationsSayWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 1, nil)
		life := r.active("a")
		req := pool.RotateRequest{Pool: "p", Key: "a", Generation: life.Generation, Trigger: pool.TriggerProxy, Source: "gateway", Reason: "401", RequestID: "req", ProxyID: "x"}
		if res, err := r.rotators[0].Rotate(t.Context(), req); err != nil || res.Outcome != pool.OutcomePending {
			t.Fatalf("without stock: %+v, %v", res, err)
		}
		r.backups("b")
		if res, err := r.rotators[0].Rotate(t.Context(), req); err != nil || res.Outcome != pool.OutcomeRotated {
			t.Fatalf("with stock: %+v, %v", res, err)
		}
		events := r.store.Events()
		if len(events) != 2 || events[0].Type != pool.EventKeyPending || events[1].Type != pool.EventKeyRotated {
			t.Fatalf("events: %+v, want one that it waits and one of the rotation", events)
		}
		for _, e := range events {
			if missing := gaps(&e.Event); len(missing) > 0 {
				t.Errorf("the event %+v lacks %s", e.Event, strings.Join(missing, ", "))
			}
			if e.Trigger != req.Trigger || e.Source != req.Source || e.Reason != req.Reason || e.RequestID != req.RequestID ||
				e.Proxy != req.ProxyID || e.Key != "a" || e.Generation != life.Generation {
				t.Errorf("the event %+v does not say who asked for what: %+v", e.Event, req)
			}
		}
		if rot := events[1]; rot.NewKey != "b" {
			t.Errorf("the new key is %q, want b", rot.NewKey)
		}
	})
}

// The record of a rotation is deleted when its time has passed. A trigger that comes later still, for the life that it
// ended, is told that no such rotation is known, and does not touch the key's later life.
func TestALateTriggerAfterItsRecordIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotateRig(t, 2, nil)
		first := r.active("a")
		r.backups("b", "c")
		if _, err := r.rotators[0].Rotate(t.Context(), request(first, "mine")); err != nil {
			t.Fatal(err)
		}
		r.store.Drop(pool.RotationRef(first))
		check := func(when string, reason pool.Reason) {
			t.Helper()
			before := r.store.Revision()
			for i, rot := range r.rotators[1:] { // one that does not remember it
				for _, id := range []string{"mine", "other"} {
					_, err := rot.Rotate(t.Context(), request(first, id))
					if pool.ReasonOf(err) != reason {
						t.Errorf("%s, replica %d, request %s: %v, want %s", when, i+1, id, err, reason)
					}
				}
			}
			if after := r.store.Revision(); after != before {
				t.Errorf("%s: the late trigger has written something", when)
			}
		}
		check("while the key is retired", pool.ReasonRotationNotFound)
		r.store.Drop(pool.RetiredRef("p", "a"))
		check("when the key is gone", pool.ReasonKeyNotFound)
		second := r.active("a")
		check("in a later life of the key", pool.ReasonRotationNotFound)
		res, err := r.rotators[1].Rotate(t.Context(), request(second, "later"))
		if err != nil || res.Outcome != pool.OutcomeRotated || res.Rotation.Generation != second.Generation {
			t.Errorf("a trigger for the later life: %+v, %v; want it rotated", res, err)
		}
	})
}

func TestARelayThatIsGoneIsFound(t *testing.T) {
	now := time.Date(2026, 1, 25, 10, 0, 0, 0, time.UTC)
	for age, want := range map[time.Duration]int{time.Hour: 0, pool.RelayGone + time.Minute: 1} {
		found := 0
		for _, f := range pool.Check([]pool.Record{&pool.Relay{Name: "file", Revision: 7, UpdatedAt: now.Add(-age)}}, now).Findings {
			if f.Check == "relay-gone" && f.Severity == pool.SeverityWarning && strings.Contains(f.Remedy, "etcdctl del /rotator/relays/file") {
				found++
			}
		}
		if found != want {
			t.Errorf("a relay heard of %v ago: %d findings, want %d", age, found, want)
		}
	}
}
