package grpcapi

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// badSpec is what is wrong with a spec with everything wrong.
var badSpec = []string{
	"spec.description", "spec.labels", "spec.upstream.kind", "spec.upstream.base_url", "spec.rotation_bound.rotations",
	"spec.rotation_bound.window", "spec.incident.share", "spec.incident.min_keys", "spec.incident.window", "spec.incident.duration",
	"spec.spend", "spec.spend.budget_usd", "spec.spend.threshold", "spec.provider.exec.name", "spec.stock.min", "spec.stock.max",
	"spec.retirement.revoke_after", "spec.retirement.secret_retention", "spec.record_retention",
}

// badInput says for each rpc which fields an empty request violates, and which one with everything wrong does.
var badInput = map[string]struct{ empty, all []string }{
	v1.RotationService_RotateKey_FullMethodName: {
		[]string{"pool", "key_id", "trigger"},
		[]string{"pool", "key_id", "generation", "trigger", "source", "reason", "request_id", "proxy_id", "override_bound"},
	},
	v1.RotationService_ReportFailure_FullMethodName: {
		[]string{"pool", "key_id", "http_status"},
		[]string{"pool", "key_id", "generation", "http_status", "headers", "body", "proxy_id", "source", "request_id"},
	},
	v1.RotationService_GetRotation_FullMethodName: {
		[]string{"pool", "key_id"}, []string{"pool", "key_id", "generation", "min_revision"},
	},
	v1.RotationService_ListRotations_FullMethodName: {
		[]string{"pool"}, []string{"pool", "key_id", "page_size", "page_token", "min_revision"},
	},
	v1.RotationService_WatchEvents_FullMethodName:    {nil, []string{"pool", "from_revision", "after_id"}},
	v1.KeyService_GetKeys_FullMethodName:             {[]string{"pool"}, []string{"pool", "proxy_id", "min_revision"}},
	v1.AdminService_CreatePool_FullMethodName:        {[]string{"name"}, append([]string{"name"}, badSpec...)},
	v1.AdminService_GetPool_FullMethodName:           {[]string{"name"}, []string{"name", "min_revision"}},
	v1.AdminService_ListPools_FullMethodName:         {nil, []string{"page_size", "page_token", "min_revision"}},
	v1.AdminService_UpdatePool_FullMethodName:        {[]string{"spec", "name"}, append([]string{"name", "if_revision"}, badSpec...)},
	v1.AdminService_DeletePool_FullMethodName:        {[]string{"name"}, []string{"name"}},
	v1.AdminService_PausePool_FullMethodName:         {[]string{"name"}, []string{"name"}},
	v1.AdminService_ResumePool_FullMethodName:        {[]string{"name"}, []string{"name"}},
	v1.AdminService_EndIncident_FullMethodName:       {[]string{"name"}, []string{"name"}},
	v1.AdminService_SetPoolCredential_FullMethodName: {[]string{"name"}, []string{"name", "credential"}},
	v1.AdminService_AddKeys_FullMethodName:           {[]string{"pool", "home", "keys"}, []string{"pool", "home"}}, // keys are answered one by one
	v1.AdminService_ListKeys_FullMethodName:          {[]string{"pool"}, []string{"pool", "home", "page_size", "page_token", "min_revision"}},
	v1.AdminService_GetKey_FullMethodName:            {[]string{"pool", "key_id"}, []string{"pool", "key_id", "min_revision"}},
	v1.AdminService_RemoveKey_FullMethodName:         {[]string{"pool", "key_id"}, []string{"pool", "key_id"}},
	v1.AdminService_RestoreKey_FullMethodName:        {[]string{"pool", "key_id"}, []string{"pool", "key_id"}},
	v1.AdminService_DisableKey_FullMethodName:        {[]string{"pool", "key_id"}, []string{"pool", "key_id", "reason"}},
	v1.AdminService_EnableKey_FullMethodName:         {[]string{"pool", "key_id"}, []string{"pool", "key_id", "reason"}},
	v1.AdminService_SetBinding_FullMethodName:        {[]string{"pool", "proxy_id", "slots"}, []string{"pool", "proxy_id", "slots[0].slot", "slots[0].priority"}},
	v1.AdminService_RetryKey_FullMethodName:          {[]string{"pool", "key_id"}, []string{"pool", "key_id"}},
	v1.AdminService_RemoveBinding_FullMethodName: {
		[]string{"pool", "proxy_id"}, []string{"pool", "proxy_id"},
	},
	v1.AdminService_ListBindings_FullMethodName: {
		[]string{"pool"}, []string{"pool", "slot", "page_size", "page_token", "min_revision"},
	},
	v1.AdminService_ListReplicas_FullMethodName: {nil, []string{"min_revision"}},
	v1.AdminService_Diagnose_FullMethodName:     {nil, nil},
}

// badText are texts that neither a name, nor a free text, nor a token may be.
var badText = map[string]string{
	"control characters": "a\x01/b",
	"oversize":           strings.Repeat("a", 5000),
}

// spoil sets every field to something that no rule allows. New fields are spoiled too, so that they are not forgotten.
func spoil(m protoreflect.Message, text string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(text).MapKey(), protoreflect.ValueOfString(text))
		case f.IsList() && f.Message() == nil:
			m.Mutable(f).List().Append(spoiled(f.Kind(), text))
		case f.IsList():
			spoil(m.Mutable(f).List().AppendMutable().Message(), text)
		case f.Kind() == protoreflect.MessageKind:
			spoil(m.Mutable(f).Message(), text)
		case f.Name() == "override_bound": // with a trigger that may not
			m.Set(f, protoreflect.ValueOfBool(true))
		case f.Kind() != protoreflect.BoolKind:
			m.Set(f, spoiled(f.Kind(), text))
		}
	}
}

func spoiled(kind protoreflect.Kind, text string) protoreflect.Value {
	switch kind {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(99)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(math.MinInt64)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(math.NaN())
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(make([]byte, 1<<20))
	}
	panic("no bad value for fields of kind " + kind.String())
}

func TestBadInputToEveryMethod(t *testing.T) {
	w := newWorld(t, nil)
	check := func(t *testing.T, name string, req proto.Message, want []string) {
		t.Helper()
		_, err := w.call(t.Context(), name, req)
		if len(want) == 0 {
			if err != nil {
				t.Errorf("error is %v, want none: the request has no required field", err)
			}
			return
		}
		if status.Code(err) != codes.InvalidArgument || errorInfo(err).GetReason() != string(pool.ReasonInvalidArgument) {
			t.Fatalf("error is %v with ErrorInfo %v, want INVALID_ARGUMENT", err, errorInfo(err))
		}
		sorted := cmpopts.SortSlices(strings.Compare)
		if diff := cmp.Diff(want, slices.Compact(violated(err)), sorted); diff != "" {
			t.Errorf("violated fields (-want +got):\n%s", diff)
		}
	}
	for _, m := range contract() {
		name := fullMethod(m)
		want, there := badInput[name]
		if !there {
			t.Errorf("no bad input for %s", name)
			continue
		}
		t.Run(string(m.Name())+"/empty", func(t *testing.T) {
			check(t, name, newMessage(m.Input()), want.empty)
		})
		for kind, text := range badText {
			t.Run(string(m.Name())+"/"+kind, func(t *testing.T) {
				req := newMessage(m.Input())
				spoil(req.ProtoReflect(), text)
				check(t, name, req, want.all)
			})
		}
	}
	if n := w.store.Revision(); n != 1 {
		t.Errorf("bad input has written something: the store is at revision %d", n)
	}
}

// valid fills a request so that only what it is about does not exist.
func valid(m protoreflect.MethodDescriptor) proto.Message {
	req := newMessage(m.Input())
	set := func(name protoreflect.Name, v any) {
		if f := m.Input().Fields().ByName(name); f != nil {
			req.ProtoReflect().Set(f, protoreflect.ValueOf(v))
		}
	}
	set("pool", "nowhere")
	set("name", "nowhere")
	set("key_id", "k")
	set("proxy_id", "x")
	set("http_status", int32(401))
	set("trigger", protoreflect.EnumNumber(v1.Trigger_TRIGGER_OPERATOR))
	switch req := req.(type) {
	case *v1.UpdatePoolRequest:
		req.Spec = &v1.PoolSpec{}
	case *v1.AddKeysRequest:
		req.Home, req.Keys = v1.KeyHome_KEY_HOME_BACKUP, []*v1.NewKey{{Id: "k", Secret: "s"}}
	case *v1.SetBindingRequest:
		req.Slots = []*v1.SlotPriority{{Slot: "s", Priority: 1}}
	}
	return req
}

func TestUnknownPoolAtEveryMethod(t *testing.T) {
	w := newWorld(t, nil)
	without := map[string]bool{
		v1.AdminService_CreatePool_FullMethodName: true, v1.AdminService_ListPools_FullMethodName: true,
		v1.AdminService_ListReplicas_FullMethodName: true, v1.AdminService_Diagnose_FullMethodName: true,
	}
	for _, m := range contract() {
		name := fullMethod(m)
		if without[name] {
			continue
		}
		_, err := w.call(t.Context(), name, valid(m))
		if status.Code(err) != codes.NotFound || errorInfo(err).GetReason() != string(pool.ReasonPoolNotFound) {
			t.Errorf("%s: error is %v with ErrorInfo %v, want NOT_FOUND, POOL_NOT_FOUND", name, err, errorInfo(err))
		}
	}
}

func TestGateAtEveryMethod(t *testing.T) {
	w := newWorld(t, nil)
	for _, tc := range []struct {
		refusal *pool.Refusal
		code    codes.Code
		refused func(method) bool
	}{
		{pool.Refuse(pool.ReasonNotApplied, "no quorum"), codes.Unavailable, method.gated},
		{pool.Refuse(pool.ReasonStorageFull, "no space"), codes.ResourceExhausted, func(m method) bool { return m.writes && !m.asks }},
	} {
		w.ready.Store(tc.refusal)
		for _, m := range contract() {
			name := fullMethod(m)
			began := time.Now()
			_, err := w.call(t.Context(), name, newMessage(m.Input()))
			refused := errorInfo(err).GetReason() == string(tc.refusal.Reason) && status.Code(err) == tc.code
			if want := tc.refused(methods[name]); refused != want {
				t.Errorf("%s while %s: error is %v; refused for that reason: %t, want %t", name, tc.refusal.Message, err, refused, want)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s while %s took %s, want at once", name, tc.refusal.Message, took)
			}
		}
	}
}

func TestTooLargeRequest(t *testing.T) {
	w := newWorld(t, nil)
	req := &v1.AddKeysRequest{Keys: []*v1.NewKey{{Secret: strings.Repeat("x", MaxMessage)}}}
	_, err := w.call(t.Context(), v1.AdminService_AddKeys_FullMethodName, req)
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error is %v, want RESOURCE_EXHAUSTED", err)
	}
}

func TestTooMany(t *testing.T) {
	w := newWorld(t, nil)
	keys := make([]*v1.NewKey, pool.MaxKeysPerAdd+1)
	slots := make([]*v1.SlotPriority, pool.MaxBindingSlots+1)
	for name, req := range map[string]proto.Message{
		v1.AdminService_AddKeys_FullMethodName:    &v1.AddKeysRequest{Pool: "p", Home: v1.KeyHome_KEY_HOME_BACKUP, Keys: keys},
		v1.AdminService_SetBinding_FullMethodName: &v1.SetBindingRequest{Pool: "p", ProxyId: "x", Slots: slots},
	} {
		_, err := w.call(t.Context(), name, req)
		if got := violated(err); len(got) != 1 || (got[0] != "keys" && got[0] != "slots") {
			t.Errorf("%s: error is %v with violations %v, want one", name, err, got)
		}
	}
}

func TestAKeyThatIsRefusedNamesEveryViolation(t *testing.T) {
	w := newWorld(t, nil)
	if _, err := w.call(t.Context(), v1.AdminService_CreatePool_FullMethodName, &v1.CreatePoolRequest{Name: "p"}); err != nil {
		t.Fatal(err)
	}
	const canary = " canary-secret-0123456789 "
	bad := &v1.NewKey{}
	spoil(bad.ProtoReflect(), "a\x01/b")
	bad.Secret = canary
	for _, tc := range []struct {
		home   v1.KeyHome
		status v1.KeyStatus
		fields []string
	}{
		{v1.KeyHome_KEY_HOME_ACTIVE, 99, []string{"id", "secret", "slot", "labels", "status", "spend_usd"}},
		{v1.KeyHome_KEY_HOME_ACTIVE, v1.KeyStatus_KEY_STATUS_ERROR, []string{"id", "secret", "slot", "labels", "status_until", "spend_usd"}},
		{v1.KeyHome_KEY_HOME_ACTIVE, v1.KeyStatus_KEY_STATUS_HEALTHY, []string{"status_until"}},
		{v1.KeyHome_KEY_HOME_BACKUP, 99, []string{"id", "secret", "slot", "labels", "status", "status_until", "spend_usd"}},
	} {
		bad.Status = tc.status
		good := &v1.NewKey{Id: "good-" + tc.home.String() + tc.status.String(), Secret: "sk-" + tc.home.String() + tc.status.String()}
		resp, err := w.call(t.Context(), v1.AdminService_AddKeys_FullMethodName, &v1.AddKeysRequest{
			Pool: "p", Home: tc.home, Keys: []*v1.NewKey{bad, good},
		})
		if err != nil {
			t.Fatal(err)
		}
		results := resp.(*v1.AddKeysResponse).GetResults()
		if results[0].GetResult() != v1.AddResult_ADD_RESULT_REFUSED || results[0].GetRefusal() != v1.KeyRefusal_KEY_REFUSAL_INVALID {
			t.Fatalf("%s, status %d: result %v, want it refused as invalid", tc.home, tc.status, results[0])
		}
		for _, field := range tc.fields {
			if !strings.Contains(results[0].GetMessage(), "keys[0]."+field+" ") {
				t.Errorf("%s, status %d: the message %q does not name keys[0].%s", tc.home, tc.status, results[0].GetMessage(), field)
			}
		}
		if strings.Contains(results[0].GetMessage(), strings.TrimSpace(canary)) {
			t.Errorf("the message shows the secret: %q", results[0].GetMessage())
		}
		if results[1].GetResult() != v1.AddResult_ADD_RESULT_ADDED {
			t.Errorf("%s: the good key beside it: %v, want it added", tc.home, results[1])
		}
	}
}
