package grpcapi

import (
	"context"

	"github.com/rotatord/rotatord/internal/pool"
)

// Rotator makes rotations. Calls block until ctx ends at the latest and can be repeated with the same request id.
type Rotator interface {
	Rotate(ctx context.Context, req pool.RotateRequest) (*pool.RotateResult, error)
	Report(ctx context.Context, rep pool.FailureReport) (*pool.ReportResult, error)
}

// Queries are the reads. All but Describe and WithCounts, which are from memory, may block until ctx ends.
type Queries interface {
	GetKeys(ctx context.Context, req pool.KeysQuery) (pool.KeySet, error)
	GetKey(ctx context.Context, req pool.KeyQuery) (pool.KeyInfo, int64, error)
	ListKeys(ctx context.Context, filter pool.KeysFilter, page pool.PageRequest) (*pool.Page[pool.KeyInfo], error)
	GetPool(ctx context.Context, name string, minRevision int64) (pool.PoolInfo, int64, error)
	ListPools(ctx context.Context, page pool.PageRequest) (*pool.Page[pool.PoolInfo], error)
	ListBindings(ctx context.Context, poolName, slot string, page pool.PageRequest) (*pool.Page[*pool.Binding], error)
	GetRotation(ctx context.Context, req pool.RotationQuery) (*pool.Rotation, int64, error)
	ListRotations(ctx context.Context, poolName, key string, page pool.PageRequest) (*pool.Page[*pool.Rotation], error)
	ListReplicas(ctx context.Context, minRevision int64) ([]*pool.Replica, int64, error)
	WatchEvents(ctx context.Context, req pool.EventsQuery, deliver func(pool.EventBatch) error) error
	Describe(a *pool.Active, includeSecret bool) (pool.KeyInfo, error)
	WithCounts(p *pool.Pool) pool.PoolInfo
}

// Admin makes the changes of operators. Calls block until ctx ends at the latest; repeating one whose outcome is not
// known is safe. The revisions are those of the change, or of the state that made it unnecessary.
type Admin interface {
	CreatePool(ctx context.Context, name string, spec pool.Spec) (*pool.Pool, int64, error)
	UpdatePool(ctx context.Context, name string, spec pool.Spec, ifRevision int64) (*pool.Pool, int64, error)
	PausePool(ctx context.Context, name string) (*pool.Pool, int64, error)
	ResumePool(ctx context.Context, name string) (*pool.Pool, int64, error)
	RetryKey(ctx context.Context, poolName, key string) (pool.KeyInfo, int64, error)
	EndIncident(ctx context.Context, name string) (*pool.Pool, int64, error)
	SetPoolCredential(ctx context.Context, name string, secret pool.Secret) (*pool.Pool, int64, error)
	DeletePool(ctx context.Context, name string, force bool) (int64, error)
	AddKeys(ctx context.Context, poolName string, home pool.Home, keys []pool.NewKey, dryRun bool) ([]pool.Added, int64, error)
	RemoveKey(ctx context.Context, poolName, key string, unbind bool) (unbound int, revision int64, err error)
	RestoreKey(ctx context.Context, poolName, key string) (*pool.Backup, int64, error)
	DisableKey(ctx context.Context, poolName, key, reason string) (*pool.Active, int64, error)
	EnableKey(ctx context.Context, poolName, key, reason string) (*pool.Active, int64, error)
	SetBinding(ctx context.Context, poolName, proxy string, slots []pool.SlotPriority) (*pool.Binding, int64, error)
	RemoveBinding(ctx context.Context, poolName, proxy string) (int64, error)
	Diagnose(ctx context.Context) (*pool.Report, error)
}
