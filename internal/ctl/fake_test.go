package ctl

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/rotatord/rotatord/proto/rotator/v1"
)

// fake is a small rotatord in memory: enough to see what the command line sends, and how it takes answers and errors.
// It is no model of the service; what it allows and refuses is tested against the real one.
type fake struct {
	pb.UnimplementedAdminServiceServer
	pb.UnimplementedRotationServiceServer

	mu       sync.Mutex // protects the following fields
	revision int64
	pools    map[string]*pb.Pool
	keys     map[string]*pb.Key // by pool/id, with their secrets
	bindings map[string]*pb.Binding
	findings []*pb.Finding
	failures []failure
	calls    []string        // method names, in order
	requests []proto.Message // in the same order
	maxPage  int             // largest page served, to make lists have several
}

// failure is what the next call of a method gets instead of its answer.
type failure struct {
	method  string
	applied bool // the call is made all the same, and its answer lost
	err     error
}

var longAgo = timestamppb.New(time.Date(2026, 1, 25, 10, 0, 0, 0, time.UTC))

func newFake() *fake {
	return &fake{revision: 100, maxPage: 3, pools: map[string]*pb.Pool{}, keys: map[string]*pb.Key{}, bindings: map[string]*pb.Binding{}}
}

// serve returns the address.
func (f *fake) serve(tb interface{ Fatal(...any) }) (string, func()) { return f.serveAs(tb, f) }

// serveAs serves with another AdminService, which may hold the fake.
func (f *fake) serveAs(tb interface{ Fatal(...any) }, admin pb.AdminServiceServer) (string, func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(f.intercept))
	pb.RegisterAdminServiceServer(server, admin)
	pb.RegisterRotationServiceServer(server, f)
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), server.Stop
}

func (f *fake) start(t *testing.T) string {
	addr, stop := f.serve(t)
	t.Cleanup(stop)
	return addr
}

func (f *fake) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, status.Error(codes.Internal, "the call has no deadline")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	method := path.Base(info.FullMethod)
	f.calls = append(f.calls, method)
	f.requests = append(f.requests, proto.Clone(request.(proto.Message)))
	i := slices.IndexFunc(f.failures, func(x failure) bool { return x.method == method })
	if i < 0 {
		return handler(ctx, request)
	}
	failed := f.failures[i]
	f.failures = slices.Delete(f.failures, i, i+1)
	if failed.applied {
		if _, err := handler(ctx, request); err != nil {
			return nil, err
		}
	}
	return nil, failed.err
}

func (f *fake) fail(method string, times int, applied bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range times {
		f.failures = append(f.failures, failure{method, applied, err})
	}
}

func (f *fake) called(method string) []proto.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []proto.Message
	for i, name := range f.calls {
		if name == method {
			out = append(out, f.requests[i])
		}
	}
	return out
}

// refuse makes an error as the service does.
func refuse(code codes.Code, reason, message string, details ...protoadapt.MessageV1) error {
	details = append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain}}, details...)
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func retryIn(d time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(d)}
}

func (f *fake) next() int64 { f.revision++; return f.revision }

func (f *fake) pool(name string) (*pb.Pool, error) {
	p := f.pools[name]
	if p == nil {
		return nil, refuse(codes.NotFound, "POOL_NOT_FOUND", "pool "+name+" does not exist")
	}
	p.Counts = &pb.PoolCounts{}
	for _, k := range f.keys {
		if k.GetPool() == name {
			switch k.GetHome() {
			case pb.KeyHome_KEY_HOME_ACTIVE:
				p.Counts.Active++
			case pb.KeyHome_KEY_HOME_BACKUP:
				p.Counts.Backup++
			case pb.KeyHome_KEY_HOME_RETIRED:
				p.Counts.Retired++
			}
		}
	}
	for _, b := range f.bindings {
		if b.GetPool() == name {
			p.Counts.Bindings++
		}
	}
	return p, nil
}

func (f *fake) key(pool, id string) (*pb.Key, error) {
	if _, err := f.pool(pool); err != nil {
		return nil, err
	}
	if k := f.keys[pool+"/"+id]; k != nil {
		return k, nil
	}
	return nil, refuse(codes.NotFound, "KEY_NOT_FOUND", "key "+id+" does not exist in pool "+pool)
}

func (f *fake) CreatePool(_ context.Context, q *pb.CreatePoolRequest) (*pb.CreatePoolResponse, error) {
	if !nameRule.MatchString(q.GetName()) {
		return nil, refuse(codes.InvalidArgument, "INVALID_ARGUMENT", "the request is not valid", &errdetails.BadRequest{
			FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "name", Description: nameRuleText}}})
	}
	if p := f.pools[q.GetName()]; p == nil {
		f.pools[q.GetName()] = &pb.Pool{Name: q.GetName(), Spec: q.GetSpec(), CreatedAt: longAgo, Revision: f.next()}
	} else if !proto.Equal(p.GetSpec(), q.GetSpec()) {
		return nil, refuse(codes.AlreadyExists, "POOL_EXISTS", "pool "+q.GetName()+" exists with another spec")
	}
	p, err := f.pool(q.GetName())
	return &pb.CreatePoolResponse{Pool: p, Revision: p.GetRevision()}, err
}

func (f *fake) GetPool(_ context.Context, q *pb.GetPoolRequest) (*pb.GetPoolResponse, error) {
	p, err := f.pool(q.GetName())
	return &pb.GetPoolResponse{Pool: p, Revision: f.revision}, err
}

func (f *fake) UpdatePool(_ context.Context, q *pb.UpdatePoolRequest) (*pb.UpdatePoolResponse, error) {
	p, err := f.pool(q.GetName())
	if err != nil {
		return nil, err
	}
	p.Spec, p.Revision = q.GetSpec(), f.next()
	return &pb.UpdatePoolResponse{Pool: p, Revision: p.GetRevision()}, nil
}

func (f *fake) PausePool(_ context.Context, q *pb.PausePoolRequest) (*pb.PausePoolResponse, error) {
	p, err := f.pool(q.GetName())
	if err != nil {
		return nil, err
	}
	p.Paused, p.Revision = true, f.next()
	return &pb.PausePoolResponse{Pool: p, Revision: p.GetRevision()}, nil
}

func (f *fake) ResumePool(_ context.Context, q *pb.ResumePoolRequest) (*pb.ResumePoolResponse, error) {
	p, err := f.pool(q.GetName())
	if err != nil {
		return nil, err
	}
	p.Paused, p.Revision = false, f.next()
	return &pb.ResumePoolResponse{Pool: p, Revision: p.GetRevision()}, nil
}

func (f *fake) SetPoolCredential(_ context.Context, q *pb.SetPoolCredentialRequest) (*pb.SetPoolCredentialResponse, error) {
	p, err := f.pool(q.GetName())
	if err != nil {
		return nil, err
	}
	if p.CredentialPreview = ""; q.GetCredential() != "" {
		p.CredentialPreview = "sk-f...0000"
	}
	p.Revision = f.next()
	return &pb.SetPoolCredentialResponse{Pool: p, Revision: p.GetRevision()}, nil
}

func (f *fake) DeletePool(_ context.Context, q *pb.DeletePoolRequest) (*pb.DeletePoolResponse, error) {
	p, err := f.pool(q.GetName())
	if err != nil {
		return nil, err
	}
	if p.GetCounts().GetActive() > 0 && !q.GetForce() {
		return nil, refuse(codes.FailedPrecondition, "POOL_NOT_EMPTY", "pool "+q.GetName()+" still has keys")
	}
	delete(f.pools, q.GetName())
	return &pb.DeletePoolResponse{Revision: f.next()}, nil
}

// onePage cuts a sorted list; the token is the index.
func onePage[T any](f *fake, list []T, size int32, token string) ([]T, string) {
	start, _ := strconv.Atoi(token)
	end := min(len(list), start+min(f.maxPage, cmp.Or(int(size), 100)))
	if end == len(list) {
		return list[start:], ""
	}
	return list[start:end], strconv.Itoa(end)
}

func (f *fake) ListPools(_ context.Context, q *pb.ListPoolsRequest) (*pb.ListPoolsResponse, error) {
	var list []*pb.Pool
	for _, name := range slices.Sorted(maps.Keys(f.pools)) {
		p, _ := f.pool(name)
		list = append(list, p)
	}
	list, token := onePage(f, list, q.GetPageSize(), q.GetPageToken())
	return &pb.ListPoolsResponse{Pools: list, NextPageToken: token, Revision: f.revision}, nil
}

func (f *fake) AddKeys(_ context.Context, q *pb.AddKeysRequest) (*pb.AddKeysResponse, error) {
	if _, err := f.pool(q.GetPool()); err != nil {
		return nil, err
	}
	answer := &pb.AddKeysResponse{}
	for _, k := range q.GetKeys() {
		result := f.addOne(q, k)
		answer.Results = append(answer.Results, result)
		answer.Revision = max(answer.Revision, result.GetRevision())
	}
	return answer, nil
}

func (f *fake) addOne(q *pb.AddKeysRequest, k *pb.NewKey) *pb.AddedKey {
	refused := func(r pb.KeyRefusal, message, other string) *pb.AddedKey {
		return &pb.AddedKey{Id: k.GetId(), Result: pb.AddResult_ADD_RESULT_REFUSED, Refusal: r, Message: message, OtherKeyId: other}
	}
	if there := f.keys[q.GetPool()+"/"+k.GetId()]; there != nil {
		if there.GetSecret() == k.GetSecret() {
			return &pb.AddedKey{Id: k.GetId(), Result: pb.AddResult_ADD_RESULT_SAME, Home: there.GetHome()}
		}
		return refused(pb.KeyRefusal_KEY_REFUSAL_ID_TAKEN, "the id is taken", "")
	}
	for _, other := range f.keys {
		if other.GetPool() == q.GetPool() && other.GetSecret() == k.GetSecret() {
			return refused(pb.KeyRefusal_KEY_REFUSAL_SECRET_TAKEN, "", other.GetId())
		}
	}
	if !nameRule.MatchString(k.GetId()) {
		return refused(pb.KeyRefusal_KEY_REFUSAL_INVALID, "id is not valid", "")
	}
	if q.GetDryRun() {
		return &pb.AddedKey{Id: k.GetId(), Result: pb.AddResult_ADD_RESULT_ADDED, Home: q.GetHome()}
	}
	revision := f.next()
	key := &pb.Key{Pool: q.GetPool(), Id: k.GetId(), Home: q.GetHome(), Labels: k.GetLabels(), AddedAt: longAgo, Revision: revision,
		Preview: "sk-f...-key", Secret: k.GetSecret(), SpendUsd: k.SpendUsd}
	if q.GetHome() == pb.KeyHome_KEY_HOME_ACTIVE {
		key.Slot, key.Generation = cmp.Or(k.GetSlot(), k.GetId()), revision
		key.Status = cmp.Or(k.GetStatus(), pb.KeyStatus_KEY_STATUS_HEALTHY)
		key.StatusUntil = k.GetStatusUntil()
	}
	f.keys[q.GetPool()+"/"+k.GetId()] = key
	return &pb.AddedKey{Id: k.GetId(), Result: pb.AddResult_ADD_RESULT_ADDED, Home: q.GetHome(), Revision: revision}
}

func shown(k *pb.Key, secret bool) *pb.Key {
	k = proto.Clone(k).(*pb.Key)
	if !secret {
		k.Secret = ""
	}
	return k
}

func (f *fake) ListKeys(_ context.Context, q *pb.ListKeysRequest) (*pb.ListKeysResponse, error) {
	if _, err := f.pool(q.GetPool()); err != nil {
		return nil, err
	}
	var list []*pb.Key
	for _, name := range slices.Sorted(maps.Keys(f.keys)) {
		k := f.keys[name]
		if k.GetPool() != q.GetPool() || q.GetHome() != 0 && k.GetHome() != q.GetHome() || q.GetPendingOnly() && !k.GetPending() {
			continue
		}
		list = append(list, shown(k, false))
	}
	slices.SortStableFunc(list, func(a, b *pb.Key) int { return cmp.Compare(a.GetHome(), b.GetHome()) })
	list, token := onePage(f, list, q.GetPageSize(), q.GetPageToken())
	return &pb.ListKeysResponse{Keys: list, NextPageToken: token, Revision: f.revision}, nil
}

func (f *fake) GetKey(_ context.Context, q *pb.GetKeyRequest) (*pb.GetKeyResponse, error) {
	k, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &pb.GetKeyResponse{Key: shown(k, q.GetIncludeSecret()), Revision: f.revision}, nil
}

func (f *fake) RemoveKey(_ context.Context, q *pb.RemoveKeyRequest) (*pb.RemoveKeyResponse, error) {
	k, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	var bound []string
	for _, b := range f.bindings {
		if slices.ContainsFunc(b.GetSlots(), func(s *pb.SlotPriority) bool { return s.GetSlot() == k.GetSlot() }) {
			bound = append(bound, b.GetProxyId())
		}
	}
	if len(bound) > 0 && !q.GetUnbind() {
		st, _ := status.New(codes.FailedPrecondition, "the key is bound").WithDetails(&errdetails.ErrorInfo{
			Reason: "KEY_BOUND", Domain: errorDomain, Metadata: map[string]string{"proxies": strings.Join(bound, ",")}})
		return nil, st.Err()
	}
	delete(f.keys, q.GetPool()+"/"+q.GetKeyId())
	return &pb.RemoveKeyResponse{Revision: f.next(), Unbound: int32(len(bound))}, nil
}

func (f *fake) RestoreKey(_ context.Context, q *pb.RestoreKeyRequest) (*pb.RestoreKeyResponse, error) {
	k, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	k.Home, k.Slot, k.Revision = pb.KeyHome_KEY_HOME_BACKUP, "", f.next()
	return &pb.RestoreKeyResponse{Key: shown(k, false), Revision: k.GetRevision()}, nil
}

func (f *fake) RetryKey(_ context.Context, q *pb.RetryKeyRequest) (*pb.RetryKeyResponse, error) {
	k, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	k.Phase, k.Problem, k.Revision = pb.KeyPhase_KEY_PHASE_PLANNED, "", f.next()
	return &pb.RetryKeyResponse{Key: shown(k, false), Revision: k.GetRevision()}, nil
}

func (f *fake) DisableKey(_ context.Context, q *pb.DisableKeyRequest) (*pb.DisableKeyResponse, error) {
	k, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	k.Status, k.StatusUntil, k.Pending, k.Revision = pb.KeyStatus_KEY_STATUS_DISABLED, nil, false, f.next()
	return &pb.DisableKeyResponse{Key: shown(k, false), Revision: k.GetRevision()}, nil
}

func (f *fake) EnableKey(_ context.Context, q *pb.EnableKeyRequest) (*pb.EnableKeyResponse, error) {
	k, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	k.Status, k.StatusUntil, k.Pending, k.Revision = pb.KeyStatus_KEY_STATUS_HEALTHY, nil, false, f.next()
	return &pb.EnableKeyResponse{Key: shown(k, false), Revision: k.GetRevision()}, nil
}

func (f *fake) SetBinding(_ context.Context, q *pb.SetBindingRequest) (*pb.SetBindingResponse, error) {
	for _, s := range q.GetSlots() {
		if !slices.ContainsFunc(slices.Collect(maps.Values(f.keys)), func(k *pb.Key) bool {
			return k.GetPool() == q.GetPool() && k.GetHome() == pb.KeyHome_KEY_HOME_ACTIVE && k.GetSlot() == s.GetSlot()
		}) {
			return nil, refuse(codes.FailedPrecondition, "SLOT_NOT_FOUND", "slot "+s.GetSlot()+" does not exist")
		}
	}
	b := &pb.Binding{Pool: q.GetPool(), ProxyId: q.GetProxyId(), Slots: q.GetSlots(), UpdatedAt: longAgo, Revision: f.next()}
	f.bindings[q.GetPool()+"/"+q.GetProxyId()] = b
	return &pb.SetBindingResponse{Binding: b, Revision: b.GetRevision()}, nil
}

func (f *fake) RemoveBinding(_ context.Context, q *pb.RemoveBindingRequest) (*pb.RemoveBindingResponse, error) {
	name := q.GetPool() + "/" + q.GetProxyId()
	if f.bindings[name] == nil {
		return nil, refuse(codes.NotFound, "BINDING_NOT_FOUND", "proxy "+q.GetProxyId()+" has no binding")
	}
	delete(f.bindings, name)
	return &pb.RemoveBindingResponse{Revision: f.next()}, nil
}

func (f *fake) ListBindings(_ context.Context, q *pb.ListBindingsRequest) (*pb.ListBindingsResponse, error) {
	var list []*pb.Binding
	for _, name := range slices.Sorted(maps.Keys(f.bindings)) {
		if b := f.bindings[name]; b.GetPool() == q.GetPool() {
			list = append(list, b)
		}
	}
	list, token := onePage(f, list, q.GetPageSize(), q.GetPageToken())
	return &pb.ListBindingsResponse{Bindings: list, NextPageToken: token, Revision: f.revision}, nil
}

func (f *fake) ListReplicas(context.Context, *pb.ListReplicasRequest) (*pb.ListReplicasResponse, error) {
	return &pb.ListReplicasResponse{Revision: f.revision, Replicas: []*pb.Replica{
		{Name: "a", Address: "127.0.0.1:7070", Version: "v1.0.0", Schema: 1, StartedAt: longAgo, Lease: "694d"}}}, nil
}

func (f *fake) Diagnose(context.Context, *pb.DiagnoseRequest) (*pb.DiagnoseResponse, error) {
	return &pb.DiagnoseResponse{Findings: f.findings, Records: int32(len(f.keys)), Pools: int32(len(f.pools)), Revision: f.revision}, nil
}

// RotateKey knows one life of a key: the first call rotates, a repeat is recognised by its request id.
func (f *fake) RotateKey(_ context.Context, q *pb.RotateKeyRequest) (*pb.RotateKeyResponse, error) {
	old, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	if old.GetHome() == pb.KeyHome_KEY_HOME_RETIRED {
		r := f.rotationOf(old)
		outcome := pb.Outcome_OUTCOME_ALREADY_ROTATED
		if r.GetRequestId() == q.GetRequestId() {
			outcome = pb.Outcome_OUTCOME_ROTATED
		}
		return &pb.RotateKeyResponse{Outcome: outcome, Rotation: r, Key: shown(f.keys[q.GetPool()+"/"+r.GetNewKeyId()], q.GetIncludeSecret()), Revision: f.revision}, nil
	}
	for _, name := range slices.Sorted(maps.Keys(f.keys)) {
		if k := f.keys[name]; k.GetPool() == q.GetPool() && k.GetHome() == pb.KeyHome_KEY_HOME_BACKUP {
			k.Home, k.Slot, k.Status, k.Replaces, k.Generation = old.GetHome(), old.GetSlot(), pb.KeyStatus_KEY_STATUS_HEALTHY, old.GetId(), f.next()
			old.Home, old.ReplacedBy, old.RetiredAt = pb.KeyHome_KEY_HOME_RETIRED, k.GetId(), longAgo
			// The fake keeps what it needs to answer again in the labels of the retired key.
			old.Labels = map[string]string{"request": q.GetRequestId(), "source": q.GetSource(), "reason": q.GetReason(), "trigger": fmt.Sprint(int32(q.GetTrigger()))}
			return &pb.RotateKeyResponse{Outcome: pb.Outcome_OUTCOME_ROTATED, Rotation: f.rotationOf(old), Key: shown(k, q.GetIncludeSecret()), Revision: f.revision}, nil
		}
	}
	old.Status, old.Pending = pb.KeyStatus_KEY_STATUS_EXHAUSTED, true
	return &pb.RotateKeyResponse{Outcome: pb.Outcome_OUTCOME_PENDING, Revision: f.next()}, nil
}

// ReportFailure has one rule for each status that scripts use.
func (f *fake) ReportFailure(ctx context.Context, q *pb.ReportFailureRequest) (*pb.ReportFailureResponse, error) {
	p, err := f.pool(q.GetPool())
	if err != nil {
		return nil, err
	}
	k, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	a := &pb.ReportFailureResponse{Verdict: pb.Verdict_VERDICT_IGNORE, Rule: "generic/unknown", Reason: "HTTP " + fmt.Sprint(q.GetHttpStatus()),
		Key: shown(k, q.GetIncludeSecret()), Revision: f.revision}
	switch {
	case p.GetIncident() != nil:
		a.Rule, a.MatchedRule, a.Incident = "incident", a.Rule, true
	case q.GetHttpStatus() == 401:
		r, err := f.RotateKey(ctx, &pb.RotateKeyRequest{Pool: q.GetPool(), KeyId: q.GetKeyId(), Source: q.GetSource(), RequestId: q.GetRequestId()})
		if err != nil {
			return nil, err
		}
		a.Verdict, a.Rule, a.Outcome, a.Rotation, a.Key = pb.Verdict_VERDICT_ROTATE, "generic/refused", r.GetOutcome(), r.GetRotation(), r.GetKey()
	case q.GetHttpStatus() == 429:
		a.Verdict, a.Rule, a.Until, a.Key = pb.Verdict_VERDICT_COOL_DOWN, "generic/rate-limit", longAgo, nil
	}
	return a, nil
}

func (f *fake) EndIncident(_ context.Context, q *pb.EndIncidentRequest) (*pb.EndIncidentResponse, error) {
	p, err := f.pool(q.GetName())
	if err != nil {
		return nil, err
	}
	p.Incident, p.Revision = nil, f.next()
	return &pb.EndIncidentResponse{Pool: p, Revision: p.GetRevision()}, nil
}

func (f *fake) rotationOf(old *pb.Key) *pb.Rotation {
	trigger, _ := strconv.Atoi(old.GetLabels()["trigger"])
	next := f.keys[old.GetPool()+"/"+old.GetReplacedBy()]
	return &pb.Rotation{Id: "r-" + old.GetId(), Pool: old.GetPool(), Slot: old.GetSlot(), Generation: old.GetGeneration(), OldKeyId: old.GetId(),
		NewKeyId: old.GetReplacedBy(), Trigger: pb.Trigger(trigger), Source: old.GetLabels()["source"], Reason: old.GetLabels()["reason"],
		RequestId: old.GetLabels()["request"], CommittedAt: longAgo, Revision: next.GetGeneration(), Holder: "a"}
}

func (f *fake) GetRotation(_ context.Context, q *pb.GetRotationRequest) (*pb.GetRotationResponse, error) {
	old, err := f.key(q.GetPool(), q.GetKeyId())
	if err != nil {
		return nil, err
	}
	if old.GetHome() != pb.KeyHome_KEY_HOME_RETIRED {
		return nil, refuse(codes.NotFound, "ROTATION_NOT_FOUND", "key "+q.GetKeyId()+" has not been rotated")
	}
	return &pb.GetRotationResponse{Rotation: f.rotationOf(old), Revision: f.revision}, nil
}

func (f *fake) ListRotations(_ context.Context, q *pb.ListRotationsRequest) (*pb.ListRotationsResponse, error) {
	var list []*pb.Rotation
	for _, name := range slices.Sorted(maps.Keys(f.keys)) {
		if k := f.keys[name]; k.GetPool() == q.GetPool() && k.GetHome() == pb.KeyHome_KEY_HOME_RETIRED {
			list = append(list, f.rotationOf(k))
		}
	}
	list, token := onePage(f, list, q.GetPageSize(), q.GetPageToken())
	return &pb.ListRotationsResponse{Rotations: list, NextPageToken: token, Revision: f.revision}, nil
}
