package grpcapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// TestEnumsHaveTheSameNumbers guards that enums can be converted without a map.
func TestEnumsHaveTheSameNumbers(t *testing.T) {
	for _, e := range []struct {
		prefix string
		names  map[int32]string
		name   func(int32) string
	}{
		{"TRIGGER_", v1.Trigger_name, func(n int32) string { return pool.Trigger(n).String() }},
		{"OUTCOME_", v1.Outcome_name, func(n int32) string { return pool.Outcome(n).String() }},
		{"KEY_HOME_", v1.KeyHome_name, func(n int32) string { return pool.Home(n).String() }},
		{"KEY_STATUS_", v1.KeyStatus_name, func(n int32) string { return pool.Status(n).String() }},
		{"KEY_PHASE_", v1.KeyPhase_name, func(n int32) string { return pool.Phase(n).String() }},
		{"SEVERITY_", v1.Severity_name, func(n int32) string { return pool.Severity(n).String() }},
	} {
		for number, name := range e.names {
			if number == 0 {
				continue
			}
			domain := strings.ToUpper(strings.ReplaceAll(e.name(number), "-", "_"))
			if e.prefix+domain != name {
				t.Errorf("%s is %d in the contract, which is %q in the domain", name, number, domain)
			}
		}
	}
	for domain, contract := range map[fmt.Stringer]int{
		v1.AddResult_ADD_RESULT_ADDED:          int(pool.AddResultAdded),
		v1.AddResult_ADD_RESULT_SAME:           int(pool.AddResultSame),
		v1.AddResult_ADD_RESULT_REFUSED:        int(pool.AddResultRefused),
		v1.AddResult_ADD_RESULT_UNKNOWN:        int(pool.AddResultUnknown),
		v1.KeyRefusal_KEY_REFUSAL_INVALID:      int(pool.KeyRefusalInvalid),
		v1.KeyRefusal_KEY_REFUSAL_ID_TAKEN:     int(pool.KeyRefusalIDTaken),
		v1.KeyRefusal_KEY_REFUSAL_SECRET_TAKEN: int(pool.KeyRefusalSecretTaken),
		v1.KeyRefusal_KEY_REFUSAL_SLOT_TAKEN:   int(pool.KeyRefusalSlotTaken),
		v1.KeyRefusal_KEY_REFUSAL_NOT_APPLIED:  int(pool.KeyRefusalNotApplied),
	} {
		if n := int(domain.(protoreflect.Enum).Number()); n != contract {
			t.Errorf("%s is %d in the contract and %d in the domain", domain, n, contract)
		}
	}
}

// full fails if a field of m is not set, so that a new field is not forgotten in the translation. Enums and messages
// count; except lists what is rightly unset.
func full(t *testing.T, m proto.Message, except ...string) {
	t.Helper()
	fields := m.ProtoReflect().Descriptor().Fields()
	unset := make(map[string]bool)
	for _, name := range except {
		unset[name] = true
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.ProtoReflect().Has(f) && !unset[string(f.Name())] {
			t.Errorf("%s.%s is not translated", f.Parent().Name(), f.Name())
		}
	}
}

func TestTranslationsAreComplete(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	spend := 1.5
	v := pool.Version{Schema: 1, CreateRevision: 7, ModRevision: 9}
	key := pool.KeyInfo{
		Pool: "p", ID: "k", Home: pool.HomeActive, Slot: "s", Generation: 7, Status: pool.StatusRateLimited, StatusUntil: now,
		Sealed: pool.Sealed{Preview: "sk-f...c0de", Fingerprint: "ab"}, Labels: map[string]string{"a": "b"}, Replaces: "j",
		ReplacedBy: "l", AddedAt: now, RetiredAt: now, Revision: 9, Secret: pool.NewSecret("x"), Pending: true, SpendUSD: &spend,
		BudgetUSD: &spend, SpendAt: now, StatusSince: now, StatusReason: "r", Phase: pool.PhaseOrphaned, Problem: "p", NextTryAt: now,
	}
	full(t, keyTo(&key))
	info := pool.PoolInfo{
		Pool: &pool.Pool{Version: v, Name: "p", Spec: pool.Spec{Description: "d"}, Paused: true, Deleting: true, CreatedAt: now,
			Incident: &pool.Incident{Since: now, Until: now, Keys: 3}, Credential: pool.Sealed{Preview: "sk-f...c0de"}},
		Counts:    pool.PoolCounts{Active: 1, Backup: 2, Retired: 3, Pending: 4, Bindings: 5},
		Rotations: pool.Allowance{Bounded: true, Left: 19, NextAt: now},
	}
	full(t, poolTo(info))
	full(t, poolTo(info).GetCounts())
	if unbounded := poolTo(pool.PoolInfo{Pool: info.Pool}); unbounded.RotationsLeft != nil {
		t.Errorf("a pool without a bound has %d rotations left, want that unset", unbounded.GetRotationsLeft())
	}
	full(t, rotationTo(&pool.Rotation{
		Version: v, Life: pool.Life{Pool: "p", Key: "k", Generation: 7}, ID: "id", Slot: "s", NewKey: "n", Trigger: pool.TriggerPool,
		Source: "src", Reason: "why", RequestID: "r", ProxyID: "x", Holder: "h", CommittedAt: now,
	}))
	full(t, bindingTo(&pool.Binding{Version: v, Pool: "p", Proxy: "x", Slots: []pool.SlotPriority{{Slot: "s", Priority: 1}}, UpdatedAt: now}))
	full(t, replicaTo(&pool.Replica{Name: "r", KnowsSchema: 1, Address: "a", Build: "v", StartedAt: now, Lease: 0x1f}))
	full(t, addedTo(pool.Added{
		ID: "k", Result: pool.AddResultRefused, Home: pool.HomeActive, Refusal: pool.KeyRefusalInvalid, Message: "m", OtherKey: "o", Revision: 3,
	}))
	full(t, findingTo(pool.Finding{Severity: pool.SeverityError, Check: "c", Subject: "s", Message: "m", Remedy: "r"}))
	if got := replicaTo(&pool.Replica{Lease: 0x1f}).GetLease(); got != "1f" {
		t.Errorf("lease is %q, want it in hexadecimal as etcdctl prints it, 1f", got)
	}
	if rotationTo(nil) != nil {
		t.Error("no rotation is translated to one")
	}
}

func TestRoundTrips(t *testing.T) {
	slot := &v1.SlotPriority{Slot: "s", Priority: 2}
	if diff := cmp.Diff(slot, slotTo(slotFrom(slot)), protocmp.Transform()); diff != "" {
		t.Errorf("slot there and back (-want +got):\n%s", diff)
	}
	until := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	key := newKeyFrom(&v1.NewKey{
		Id: "k", Secret: "x", Slot: "s", Labels: map[string]string{"a": "b"}, Status: v1.KeyStatus_KEY_STATUS_ERROR,
		StatusUntil: timestamppb.New(until), SpendUsd: proto.Float64(1.5),
	})
	spend := 1.5
	want := pool.NewKey{
		ID: "k", Secret: pool.NewSecret("x"), Slot: "s", Labels: map[string]string{"a": "b"}, Status: pool.StatusError,
		StatusUntil: until, SpendUSD: &spend,
	}
	if diff := cmp.Diff(want, key); diff != "" {
		t.Errorf("new key (-want +got):\n%s", diff)
	}
	if got := newKeyFrom(&v1.NewKey{Status: 99}).Status; got != 99 {
		t.Errorf("an unknown status becomes %d, want 99, for the domain to refuse", got)
	}
}

func TestTimesThatAreNone(t *testing.T) {
	bad := &timestamppb.Timestamp{Seconds: 1 << 60}
	for status, zero := range map[pool.Status]bool{
		pool.StatusUnspecified: false, pool.StatusHealthy: false, pool.StatusDisabled: false, pool.StatusExhausted: false,
		pool.StatusRateLimited: true, pool.StatusError: true,
	} {
		if got := untilFrom(status, bad); got.IsZero() != zero {
			t.Errorf("with status %s it becomes %s, which the domain would not refuse", status, got)
		}
	}
}
