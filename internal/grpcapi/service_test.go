package grpcapi

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// clients are the three services of a world, with a pool "p" of two active keys and one backup.
type clients struct {
	v1.RotationServiceClient
	v1.KeyServiceClient
	v1.AdminServiceClient
}

func secretOf(key string) string { return canary + "-" + key }

func newClients(t *testing.T) (*world, clients) {
	t.Helper()
	return newClientsOf(t, nil)
}

// newClientsOf is newClients of a world that change has changed.
func newClientsOf(t *testing.T, change func(*Config)) (*world, clients) {
	t.Helper()
	w := newWorld(t, change)
	c := clients{v1.NewRotationServiceClient(w.conn), v1.NewKeyServiceClient(w.conn), v1.NewAdminServiceClient(w.conn)}
	if _, err := c.CreatePool(t.Context(), &v1.CreatePoolRequest{Name: "p", Spec: &v1.PoolSpec{Description: "d"}}); err != nil {
		t.Fatal(err)
	}
	c.add(t, v1.KeyHome_KEY_HOME_ACTIVE, "k1", "k2")
	c.add(t, v1.KeyHome_KEY_HOME_BACKUP, "b1")
	return w, c
}

func (c clients) add(t *testing.T, home v1.KeyHome, ids ...string) {
	t.Helper()
	req := &v1.AddKeysRequest{Pool: "p", Home: home}
	for _, id := range ids {
		req.Keys = append(req.Keys, &v1.NewKey{Id: id, Secret: secretOf(id)})
	}
	resp, err := c.AddKeys(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resp.GetResults() {
		if r.GetResult() != v1.AddResult_ADD_RESULT_ADDED {
			t.Fatalf("adding %s: %v", r.GetId(), r)
		}
	}
}

func TestRotateKeyOverTheWire(t *testing.T) {
	_, c := newClients(t)
	first, err := c.RotateKey(t.Context(), &v1.RotateKeyRequest{
		Pool: "p", KeyId: "k1", Trigger: v1.Trigger_TRIGGER_PROVIDER, Source: "openhands", Reason: "401", RequestId: "r1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if first.GetOutcome() != v1.Outcome_OUTCOME_ROTATED || first.GetKey().GetId() != "b1" || first.GetKey().GetSecret() != "" {
		t.Errorf("the first call: %v, want k1 rotated to b1, without its secret", first)
	}
	second, err := c.RotateKey(t.Context(), &v1.RotateKeyRequest{
		Pool: "p", KeyId: "k1", Generation: first.GetRotation().GetGeneration(), Trigger: v1.Trigger_TRIGGER_POOL, IncludeSecret: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if second.GetOutcome() != v1.Outcome_OUTCOME_ALREADY_ROTATED || second.GetKey().GetSecret() != secretOf("b1") {
		t.Errorf("the second call: %v, want it told of the same rotation, with the secret", second)
	}
	got, err := c.GetRotation(t.Context(), &v1.GetRotationRequest{Pool: "p", KeyId: "k1", MinRevision: first.GetRevision()})
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListRotations(t.Context(), &v1.ListRotationsRequest{Pool: "p"})
	if err != nil {
		t.Fatal(err)
	}
	for what, r := range map[string]*v1.Rotation{"the second call": second.GetRotation(), "GetRotation": got.GetRotation(), "ListRotations": list.GetRotations()[0]} {
		if diff := cmp.Diff(first.GetRotation(), r, protocmp.Transform()); diff != "" {
			t.Errorf("%s has another rotation (-first +other):\n%s", what, diff)
		}
	}
}

// anotherKeyset are queries that open no secret.
type anotherKeyset struct{ Queries }

func (q anotherKeyset) Describe(a *pool.Active, includeSecret bool) (pool.KeyInfo, error) {
	if includeSecret {
		return pool.KeyInfo{}, pool.ErrSecretUnreadable
	}
	return q.Queries.Describe(a, false)
}

// What was done is told, also when the secret that was asked for cannot be opened.
func TestNoAnswerIsLostForASecret(t *testing.T) {
	w, c := newClientsOf(t, func(cfg *Config) { cfg.Queries = anotherKeyset{cfg.Queries} })
	rotated, err := c.RotateKey(t.Context(), &v1.RotateKeyRequest{Pool: "p", KeyId: "k1", Trigger: v1.Trigger_TRIGGER_PROXY, IncludeSecret: true})
	if err != nil {
		t.Fatal(err)
	}
	if rotated.GetOutcome() != v1.Outcome_OUTCOME_ROTATED || rotated.GetRotation().GetNewKeyId() != "b1" || rotated.GetKey().GetId() != "b1" || rotated.GetKey().GetSecret() != "" {
		t.Errorf("the rotation: %v, want k1 rotated to b1, without its secret", rotated)
	}
	reported, err := c.ReportFailure(t.Context(), &v1.ReportFailureRequest{Pool: "p", KeyId: "k2", HttpStatus: 500, IncludeSecret: true})
	if err != nil {
		t.Fatal(err)
	}
	if reported.GetVerdict() != v1.Verdict_VERDICT_IGNORE || reported.GetKey().GetId() == "" || reported.GetKey().GetSecret() != "" {
		t.Errorf("the report: %v, want it answered with a key, without its secret", reported)
	}
	if n := strings.Count(w.log.String(), "answered without the key's secret"); n != 2 {
		t.Errorf("the log says %d times that a secret is missing, want 2", n)
	}
}

func TestPendingOverTheWire(t *testing.T) {
	_, c := newClients(t)
	if _, err := c.RemoveKey(t.Context(), &v1.RemoveKeyRequest{Pool: "p", KeyId: "b1"}); err != nil {
		t.Fatal(err)
	}
	resp, err := c.RotateKey(t.Context(), &v1.RotateKeyRequest{Pool: "p", KeyId: "k1", Trigger: v1.Trigger_TRIGGER_OPERATOR, IncludeSecret: true})
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetOutcome() != v1.Outcome_OUTCOME_PENDING || resp.GetRotation() != nil || resp.GetKey().GetSecret() != secretOf("k2") {
		t.Errorf("without stock: %v, want it pending with k2 as the key to use", resp)
	}
	list, err := c.ListKeys(t.Context(), &v1.ListKeysRequest{Pool: "p", PendingOnly: true, MinRevision: resp.GetRevision()})
	if err != nil || len(list.GetKeys()) != 1 || !list.GetKeys()[0].GetPending() {
		t.Errorf("pending keys are %v, error %v; want k1", list.GetKeys(), err)
	}
	enabled, err := c.EnableKey(t.Context(), &v1.EnableKeyRequest{Pool: "p", KeyId: "k1"})
	if err != nil || enabled.GetKey().GetPending() || enabled.GetKey().GetStatus() != v1.KeyStatus_KEY_STATUS_HEALTHY {
		t.Errorf("the enabled key is %v, error %v; want it healthy and not pending", enabled.GetKey(), err)
	}
}

func TestGetKeysOverTheWire(t *testing.T) {
	_, c := newClients(t)
	bound, err := c.SetBinding(t.Context(), &v1.SetBindingRequest{
		Pool: "p", ProxyId: "x", Slots: []*v1.SlotPriority{{Slot: "k1", Priority: 2}, {Slot: "k2"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.GetKeys(t.Context(), &v1.GetKeysRequest{Pool: "p", ProxyId: "x", IncludeSecret: true, MinRevision: bound.GetRevision()})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range resp.GetKeys() {
		got = append(got, e.GetKey().GetSecret())
	}
	if diff := cmp.Diff([]string{secretOf("k2"), secretOf("k1")}, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if !resp.GetBound() || resp.GetRevision() < bound.GetRevision() || resp.GetAsOf() == nil || resp.GetNextUsableAt() != nil {
		t.Errorf("the rest of the answer: bound %t, revision %d, as of %v, next %v", resp.GetBound(), resp.GetRevision(), resp.GetAsOf(), resp.GetNextUsableAt())
	}
}

func TestAdminOverTheWire(t *testing.T) {
	_, c := newClients(t)
	ctx := t.Context()
	created, err := c.GetPool(ctx, &v1.GetPoolRequest{Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	want := &v1.PoolCounts{Active: 2, Backup: 1}
	if diff := cmp.Diff(want, created.GetPool().GetCounts(), protocmp.Transform()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	paused, err := c.PausePool(ctx, &v1.PausePoolRequest{Name: "p"})
	if err != nil || !paused.GetPool().GetPaused() || paused.GetPool().GetRevision() != paused.GetRevision() {
		t.Errorf("PausePool: %v, error %v", paused, err)
	}
	_, err = c.RotateKey(ctx, &v1.RotateKeyRequest{Pool: "p", KeyId: "k1", Trigger: v1.Trigger_TRIGGER_PROXY})
	if status.Code(err) != codes.FailedPrecondition || errorInfo(err).GetReason() != string(pool.ReasonPoolPaused) {
		t.Errorf("rotating in a paused pool: %v with ErrorInfo %v", err, errorInfo(err))
	}
	_, err = c.UpdatePool(ctx, &v1.UpdatePoolRequest{Name: "p", Spec: &v1.PoolSpec{Description: "new"}, IfRevision: created.GetPool().GetRevision()})
	if status.Code(err) != codes.Aborted {
		t.Errorf("updating a pool that was changed since: %v, want ABORTED", err)
	}
	updated, err := c.UpdatePool(ctx, &v1.UpdatePoolRequest{Name: "p", Spec: &v1.PoolSpec{Description: "new"}})
	if err != nil || updated.GetPool().GetSpec().GetDescription() != "new" {
		t.Errorf("UpdatePool: %v, error %v", updated, err)
	}
	if resumed, err := c.ResumePool(ctx, &v1.ResumePoolRequest{Name: "p"}); err != nil || resumed.GetPool().GetPaused() {
		t.Errorf("ResumePool: %v, error %v", resumed, err)
	}
	pools, err := c.ListPools(ctx, &v1.ListPoolsRequest{})
	if err != nil || len(pools.GetPools()) != 1 || pools.GetPools()[0].GetSpec().GetDescription() != "new" {
		t.Errorf("ListPools: %v, error %v", pools, err)
	}
	report, err := c.Diagnose(ctx, &v1.DiagnoseRequest{})
	if err != nil || report.GetPools() != 1 || report.GetRecords() == 0 {
		t.Errorf("Diagnose: %v, error %v", report, err)
	}
	_, err = c.DeletePool(ctx, &v1.DeletePoolRequest{Name: "p"})
	if errorInfo(err).GetReason() != string(pool.ReasonPoolNotEmpty) {
		t.Errorf("deleting a pool with keys: %v, want POOL_NOT_EMPTY", err)
	}
	deleted, err := c.DeletePool(ctx, &v1.DeletePoolRequest{Name: "p", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.GetPool(ctx, &v1.GetPoolRequest{Name: "p", MinRevision: deleted.GetRevision()})
	if status.Code(err) != codes.NotFound {
		t.Errorf("the deleted pool: %v, want NOT_FOUND", err)
	}
}

func TestKeyLifeOverTheWire(t *testing.T) {
	_, c := newClients(t)
	ctx := t.Context()
	disabled, err := c.DisableKey(ctx, &v1.DisableKeyRequest{Pool: "p", KeyId: "k1", Reason: "leaked"})
	if err != nil || disabled.GetKey().GetStatus() != v1.KeyStatus_KEY_STATUS_DISABLED || disabled.GetKey().GetRevision() != disabled.GetRevision() {
		t.Errorf("DisableKey: %v, error %v", disabled, err)
	}
	if _, err := c.RotateKey(ctx, &v1.RotateKeyRequest{Pool: "p", KeyId: "k1", Trigger: v1.Trigger_TRIGGER_OPERATOR}); err != nil {
		t.Fatal(err)
	}
	restored, err := c.RestoreKey(ctx, &v1.RestoreKeyRequest{Pool: "p", KeyId: "k1"})
	if err != nil || restored.GetKey().GetHome() != v1.KeyHome_KEY_HOME_BACKUP {
		t.Errorf("RestoreKey: %v, error %v", restored, err)
	}
	key, err := c.GetKey(ctx, &v1.GetKeyRequest{Pool: "p", KeyId: "k1", IncludeSecret: true, MinRevision: restored.GetRevision()})
	if err != nil || key.GetKey().GetSecret() != secretOf("k1") {
		t.Errorf("GetKey of the restored key: %v, error %v", key, err)
	}
	set, err := c.SetBinding(ctx, &v1.SetBindingRequest{Pool: "p", ProxyId: "x", Slots: []*v1.SlotPriority{{Slot: "k2", Priority: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListBindings(ctx, &v1.ListBindingsRequest{Pool: "p", Slot: "k2", MinRevision: set.GetRevision()})
	if err != nil || len(list.GetBindings()) != 1 {
		t.Fatalf("ListBindings: %v, error %v", list, err)
	}
	if diff := cmp.Diff(set.GetBinding(), list.GetBindings()[0], protocmp.Transform()); diff != "" {
		t.Errorf("the binding in the list (-set +listed):\n%s", diff)
	}
	_, err = c.RemoveKey(ctx, &v1.RemoveKeyRequest{Pool: "p", KeyId: "k2"})
	if errorInfo(err).GetReason() != string(pool.ReasonKeyBound) || errorInfo(err).GetMetadata()["proxies"] != "x" {
		t.Errorf("removing a bound key: %v with ErrorInfo %v, want KEY_BOUND naming the proxy", err, errorInfo(err))
	}
	removed, err := c.RemoveKey(ctx, &v1.RemoveKeyRequest{Pool: "p", KeyId: "k2", Unbind: true})
	if err != nil || removed.GetUnbound() != 1 {
		t.Errorf("RemoveKey: %v, error %v; want one binding changed", removed, err)
	}
	_, err = c.RemoveBinding(ctx, &v1.RemoveBindingRequest{Pool: "p", ProxyId: "nobody"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("removing a binding that is not there: %v, want NOT_FOUND", err)
	}
	if replicas, err := c.ListReplicas(ctx, &v1.ListReplicasRequest{}); err != nil || len(replicas.GetReplicas()) != 0 {
		t.Errorf("ListReplicas: %v, error %v; want none", replicas, err)
	}
}

// TestSecretsAreShownOnlyWhenAskedFor sends everything there is, and looks for the secrets in what comes back and in the
// log.
func TestSecretsAreShownOnlyWhenAskedFor(t *testing.T) {
	w, c := newClients(t)
	c.add(t, v1.KeyHome_KEY_HOME_BACKUP, "b2")
	shown := func(m proto.Message, err error) bool {
		text, _ := protojson.Marshal(m)
		if err != nil {
			text = append(text, status.Convert(err).Proto().String()...)
		}
		return strings.Contains(string(text), canary)
	}
	for _, m := range contract() {
		req := valid(m)
		fields := req.ProtoReflect()
		for _, name := range []string{"pool", "name"} {
			if f := m.Input().Fields().ByTextName(name); f != nil {
				fields.Set(f, protoreflect.ValueOfString("p"))
			}
		}
		if f := m.Input().Fields().ByName("key_id"); f != nil {
			fields.Set(f, protoreflect.ValueOfString("k1"))
		}
		if add, ok := req.(*v1.AddKeysRequest); ok {
			add.Keys = []*v1.NewKey{{Id: "k1", Secret: canary}, {Id: "new", Secret: secretOf("k1")}, {Id: "/", Secret: " " + canary}}
		}
		if m.Name() == "DeletePool" {
			continue // the others need the pool
		}
		resp, err := w.call(t.Context(), fullMethod(m), req)
		if shown(resp, err) {
			t.Errorf("%s shows a secret that nobody asked for: %v, error %v", m.Name(), resp, err)
		}
	}
	asked, err := c.GetKeys(t.Context(), &v1.GetKeysRequest{Pool: "p", IncludeSecret: true})
	if !shown(asked, err) {
		t.Errorf("GetKeys does not show the secrets that were asked for: %v, error %v", asked, err)
	}
	if strings.Contains(w.log.String(), canary) {
		t.Error("the log shows a secret")
	}
}
