package grpcapi

import (
	"context"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

type keyService struct {
	v1.UnimplementedKeyServiceServer
	queries Queries
}

func (s *keyService) GetKeys(ctx context.Context, req *v1.GetKeysRequest) (*v1.GetKeysResponse, error) {
	set, err := s.queries.GetKeys(ctx, pool.KeysQuery{
		Pool: req.GetPool(), Proxy: req.GetProxyId(), IncludeSecret: req.GetIncludeSecret(), MinRevision: req.GetMinRevision(),
	})
	if err != nil {
		return nil, err
	}
	return &v1.GetKeysResponse{
		Keys:         choicesTo(set.Keys),
		NextUsableAt: stamp(set.NextUsableAt),
		Revision:     set.Revision,
		AsOf:         stamp(set.AsOf),
		Bound:        set.Bound,
	}, nil
}
