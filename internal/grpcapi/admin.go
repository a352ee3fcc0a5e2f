package grpcapi

import (
	"context"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/specpb"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

type adminService struct {
	v1.UnimplementedAdminServiceServer
	admin   Admin
	queries Queries
}

func (s *adminService) CreatePool(ctx context.Context, req *v1.CreatePoolRequest) (*v1.CreatePoolResponse, error) {
	p, revision, err := s.admin.CreatePool(ctx, req.GetName(), specpb.ToSpec(req.GetSpec()))
	if err != nil {
		return nil, err
	}
	return &v1.CreatePoolResponse{Pool: poolTo(s.queries.WithCounts(p)), Revision: revision}, nil
}

func (s *adminService) GetPool(ctx context.Context, req *v1.GetPoolRequest) (*v1.GetPoolResponse, error) {
	p, revision, err := s.queries.GetPool(ctx, req.GetName(), req.GetMinRevision())
	if err != nil {
		return nil, err
	}
	return &v1.GetPoolResponse{Pool: poolTo(p), Revision: revision}, nil
}

func (s *adminService) ListPools(ctx context.Context, req *v1.ListPoolsRequest) (*v1.ListPoolsResponse, error) {
	page, err := s.queries.ListPools(ctx, pageFrom(req))
	if err != nil {
		return nil, err
	}
	return &v1.ListPoolsResponse{Pools: all(page.Items, poolTo), NextPageToken: page.Next, Revision: page.Revision}, nil
}

func (s *adminService) UpdatePool(ctx context.Context, req *v1.UpdatePoolRequest) (*v1.UpdatePoolResponse, error) {
	if err := checkSpecGiven(req); err != nil {
		return nil, err
	}
	p, revision, err := s.admin.UpdatePool(ctx, req.GetName(), specpb.ToSpec(req.GetSpec()), req.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return &v1.UpdatePoolResponse{Pool: poolTo(s.queries.WithCounts(p)), Revision: revision}, nil
}

// checkSpecGiven refuses an update without a spec, which the domain could not tell from an empty one. As the domain is
// then not asked, it names what is wrong with the other fields too.
func checkSpecGiven(req *v1.UpdatePoolRequest) error {
	if req.GetSpec() != nil {
		return nil
	}
	bad := []pool.Violation{{Field: "spec", Problem: "is required"}}
	if problem := pool.CheckName(req.GetName()); problem != "" {
		bad = append(bad, pool.Violation{Field: "name", Problem: problem})
	}
	if req.GetIfRevision() < 0 {
		bad = append(bad, pool.Violation{Field: "if_revision", Problem: "must not be negative"})
	}
	return invalid(bad...)
}

func (s *adminService) DeletePool(ctx context.Context, req *v1.DeletePoolRequest) (*v1.DeletePoolResponse, error) {
	revision, err := s.admin.DeletePool(ctx, req.GetName(), req.GetForce())
	if err != nil {
		return nil, err
	}
	return &v1.DeletePoolResponse{Revision: revision}, nil
}

func (s *adminService) PausePool(ctx context.Context, req *v1.PausePoolRequest) (*v1.PausePoolResponse, error) {
	p, revision, err := s.admin.PausePool(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.PausePoolResponse{Pool: poolTo(s.queries.WithCounts(p)), Revision: revision}, nil
}

func (s *adminService) ResumePool(ctx context.Context, req *v1.ResumePoolRequest) (*v1.ResumePoolResponse, error) {
	p, revision, err := s.admin.ResumePool(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.ResumePoolResponse{Pool: poolTo(s.queries.WithCounts(p)), Revision: revision}, nil
}

func (s *adminService) EndIncident(ctx context.Context, req *v1.EndIncidentRequest) (*v1.EndIncidentResponse, error) {
	p, revision, err := s.admin.EndIncident(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.EndIncidentResponse{Pool: poolTo(s.queries.WithCounts(p)), Revision: revision}, nil
}

func (s *adminService) SetPoolCredential(ctx context.Context, req *v1.SetPoolCredentialRequest) (*v1.SetPoolCredentialResponse, error) {
	p, revision, err := s.admin.SetPoolCredential(ctx, req.GetName(), pool.NewSecret(req.GetCredential()))
	if err != nil {
		return nil, err
	}
	return &v1.SetPoolCredentialResponse{Pool: poolTo(s.queries.WithCounts(p)), Revision: revision}, nil
}

func (s *adminService) AddKeys(ctx context.Context, req *v1.AddKeysRequest) (*v1.AddKeysResponse, error) {
	added, revision, err := s.admin.AddKeys(ctx, req.GetPool(), pool.Home(req.GetHome()), all(req.GetKeys(), newKeyFrom), req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &v1.AddKeysResponse{Results: all(added, addedTo), Revision: revision}, nil
}

func (s *adminService) ListKeys(ctx context.Context, req *v1.ListKeysRequest) (*v1.ListKeysResponse, error) {
	page, err := s.queries.ListKeys(ctx, pool.KeysFilter{
		Pool: req.GetPool(), Home: pool.Home(req.GetHome()), PendingOnly: req.GetPendingOnly(),
	}, pageFrom(req))
	if err != nil {
		return nil, err
	}
	return &v1.ListKeysResponse{Keys: keysTo(page.Items), NextPageToken: page.Next, Revision: page.Revision}, nil
}

func (s *adminService) GetKey(ctx context.Context, req *v1.GetKeyRequest) (*v1.GetKeyResponse, error) {
	key, revision, err := s.queries.GetKey(ctx, pool.KeyQuery{
		Pool: req.GetPool(), Key: req.GetKeyId(), IncludeSecret: req.GetIncludeSecret(), MinRevision: req.GetMinRevision(),
	})
	if err != nil {
		return nil, err
	}
	return &v1.GetKeyResponse{Key: keyTo(&key), Revision: revision}, nil
}

func (s *adminService) RemoveKey(ctx context.Context, req *v1.RemoveKeyRequest) (*v1.RemoveKeyResponse, error) {
	unbound, revision, err := s.admin.RemoveKey(ctx, req.GetPool(), req.GetKeyId(), req.GetUnbind())
	if err != nil {
		return nil, err
	}
	return &v1.RemoveKeyResponse{Revision: revision, Unbound: int32(unbound)}, nil
}

func (s *adminService) RestoreKey(ctx context.Context, req *v1.RestoreKeyRequest) (*v1.RestoreKeyResponse, error) {
	backup, revision, err := s.admin.RestoreKey(ctx, req.GetPool(), req.GetKeyId())
	if err != nil {
		return nil, err
	}
	key := backup.Info()
	return &v1.RestoreKeyResponse{Key: keyTo(&key), Revision: revision}, nil
}

func (s *adminService) RetryKey(ctx context.Context, req *v1.RetryKeyRequest) (*v1.RetryKeyResponse, error) {
	key, revision, err := s.admin.RetryKey(ctx, req.GetPool(), req.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &v1.RetryKeyResponse{Key: keyTo(&key), Revision: revision}, nil
}

// DisableKey and EnableKey cancel a rotation that waits, so their keys have none.

func (s *adminService) DisableKey(ctx context.Context, req *v1.DisableKeyRequest) (*v1.DisableKeyResponse, error) {
	active, revision, err := s.admin.DisableKey(ctx, req.GetPool(), req.GetKeyId(), req.GetReason())
	if err != nil {
		return nil, err
	}
	key := active.Info()
	return &v1.DisableKeyResponse{Key: keyTo(&key), Revision: revision}, nil
}

func (s *adminService) EnableKey(ctx context.Context, req *v1.EnableKeyRequest) (*v1.EnableKeyResponse, error) {
	active, revision, err := s.admin.EnableKey(ctx, req.GetPool(), req.GetKeyId(), req.GetReason())
	if err != nil {
		return nil, err
	}
	key := active.Info()
	return &v1.EnableKeyResponse{Key: keyTo(&key), Revision: revision}, nil
}

func (s *adminService) SetBinding(ctx context.Context, req *v1.SetBindingRequest) (*v1.SetBindingResponse, error) {
	b, revision, err := s.admin.SetBinding(ctx, req.GetPool(), req.GetProxyId(), all(req.GetSlots(), slotFrom))
	if err != nil {
		return nil, err
	}
	return &v1.SetBindingResponse{Binding: bindingTo(b), Revision: revision}, nil
}

func (s *adminService) RemoveBinding(ctx context.Context, req *v1.RemoveBindingRequest) (*v1.RemoveBindingResponse, error) {
	revision, err := s.admin.RemoveBinding(ctx, req.GetPool(), req.GetProxyId())
	if err != nil {
		return nil, err
	}
	return &v1.RemoveBindingResponse{Revision: revision}, nil
}

func (s *adminService) ListBindings(ctx context.Context, req *v1.ListBindingsRequest) (*v1.ListBindingsResponse, error) {
	page, err := s.queries.ListBindings(ctx, req.GetPool(), req.GetSlot(), pageFrom(req))
	if err != nil {
		return nil, err
	}
	return &v1.ListBindingsResponse{Bindings: all(page.Items, bindingTo), NextPageToken: page.Next, Revision: page.Revision}, nil
}

func (s *adminService) ListReplicas(ctx context.Context, req *v1.ListReplicasRequest) (*v1.ListReplicasResponse, error) {
	replicas, revision, err := s.queries.ListReplicas(ctx, req.GetMinRevision())
	if err != nil {
		return nil, err
	}
	return &v1.ListReplicasResponse{Replicas: all(replicas, replicaTo), Revision: revision}, nil
}

func (s *adminService) Diagnose(ctx context.Context, _ *v1.DiagnoseRequest) (*v1.DiagnoseResponse, error) {
	report, err := s.admin.Diagnose(ctx)
	if err != nil {
		return nil, err
	}
	return &v1.DiagnoseResponse{
		Findings:  all(report.Findings, findingTo),
		Records:   int32(report.Records),
		Revision:  report.Revision,
		CheckedAt: stamp(report.CheckedAt),
		Pools:     int32(report.Pools),
	}, nil
}
