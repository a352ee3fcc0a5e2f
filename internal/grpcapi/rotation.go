package grpcapi

import (
	"context"
	"log/slog"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

type rotationService struct {
	v1.UnimplementedRotationServiceServer
	rotator Rotator
	queries Queries
	log     *slog.Logger
	streams chan struct{} // holds something for each stream of events
}

func (s *rotationService) RotateKey(ctx context.Context, req *v1.RotateKeyRequest) (*v1.RotateKeyResponse, error) {
	res, err := s.rotator.Rotate(ctx, pool.RotateRequest{
		Pool:       req.GetPool(),
		Key:        req.GetKeyId(),
		Generation: req.GetGeneration(),
		Trigger:    pool.Trigger(req.GetTrigger()),
		Source:     req.GetSource(),
		Reason:     req.GetReason(),
		RequestID:  req.GetRequestId(),
		ProxyID:    req.GetProxyId(),

		OverrideBound: req.GetOverrideBound(),
	})
	if err != nil {
		return nil, err
	}
	resp := &v1.RotateKeyResponse{Outcome: v1.Outcome(res.Outcome), Rotation: rotationTo(res.Rotation), Revision: res.Revision}
	if res.Key == nil {
		return resp, nil
	}
	resp.Key = s.describe(ctx, res.Key, req.GetIncludeSecret())
	return resp, nil
}

func (s *rotationService) ReportFailure(ctx context.Context, req *v1.ReportFailureRequest) (*v1.ReportFailureResponse, error) {
	res, err := s.rotator.Report(ctx, pool.FailureReport{
		Pool:       req.GetPool(),
		Key:        req.GetKeyId(),
		Generation: req.GetGeneration(),
		Answer:     pool.Answer{Status: int(req.GetHttpStatus()), Headers: req.GetHeaders(), Body: req.GetBody()},
		ProxyID:    req.GetProxyId(),
		Source:     req.GetSource(),
		RequestID:  req.GetRequestId(),
	})
	if err != nil {
		return nil, err
	}
	resp := reportTo(res)
	if res.Key == nil {
		return resp, nil
	}
	resp.Key = s.describe(ctx, res.Key, req.GetIncludeSecret())
	return resp, nil
}

// describe completes the answer to a call that has done its work. What was done is told in any case, so a secret that this
// replica's keyset does not open is left out; GetKeys says why.
func (s *rotationService) describe(ctx context.Context, a *pool.Active, includeSecret bool) *v1.Key {
	key, err := s.queries.Describe(a, includeSecret)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "answered without the key's secret",
			slog.String("pool", a.Pool), slog.String("key", a.Key), slog.Any("error", err))
		key, _ = s.queries.Describe(a, false) // it fails for secrets only
	}
	return keyTo(&key)
}

func (s *rotationService) GetRotation(ctx context.Context, req *v1.GetRotationRequest) (*v1.GetRotationResponse, error) {
	rotation, revision, err := s.queries.GetRotation(ctx, pool.RotationQuery{
		Pool: req.GetPool(), Key: req.GetKeyId(), Generation: req.GetGeneration(), MinRevision: req.GetMinRevision(),
	})
	if err != nil {
		return nil, err
	}
	return &v1.GetRotationResponse{Rotation: rotationTo(rotation), Revision: revision}, nil
}

func (s *rotationService) ListRotations(ctx context.Context, req *v1.ListRotationsRequest) (*v1.ListRotationsResponse, error) {
	page, err := s.queries.ListRotations(ctx, req.GetPool(), req.GetKeyId(), pageFrom(req))
	if err != nil {
		return nil, err
	}
	return &v1.ListRotationsResponse{Rotations: all(page.Items, rotationTo), NextPageToken: page.Next, Revision: page.Revision}, nil
}
