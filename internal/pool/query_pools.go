package pool

import (
	"context"
	"slices"
	"time"
)

// PoolCounts counts the readable records of a pool.
type PoolCounts struct {
	Active, Backup, Retired, Pending, Bindings int
}

// PoolInfo is a pool with its counts, and what its bound leaves of rotations.
type PoolInfo struct {
	*Pool
	Counts    PoolCounts
	Rotations Allowance
}

// info is a pool that s has.
func (s *Snapshot) info(p *PoolState, now time.Time) PoolInfo {
	return PoolInfo{p.Pool, p.counts(), s.Allowance(p.Pool.Name, now)}
}

func (p *PoolState) counts() PoolCounts {
	return PoolCounts{
		Active: len(p.Active), Backup: len(p.Backup), Retired: len(p.Retired), Pending: len(p.Pending),
		Bindings: len(p.Bindings),
	}
}

// WithCounts completes a pool that another answer named with its counts, as far as the mirror knows.
func (q *Queries) WithCounts(p *Pool) PoolInfo {
	info, now := PoolInfo{Pool: p}, q.now()
	q.mirror.Read(func(s *Snapshot) {
		if state := s.Pools[p.Name]; state != nil {
			info.Counts = state.counts()
		}
		info.Rotations = s.allowance(p, now)
	})
	return info
}

// GetPool returns a pool.
func (q *Queries) GetPool(ctx context.Context, name string, minRevision int64) (info PoolInfo, revision int64, err error) {
	var f violations
	f.name("name", name)
	f.notNegative("min_revision", minRevision)
	if err := f.refusal(); err != nil {
		return PoolInfo{}, 0, err
	}
	err = q.answer(ctx, name, minRevision, func(s *Snapshot) error {
		p, err := s.pooled(name)
		if err != nil {
			return err
		}
		if err := s.broken(PoolRef(name)); err != nil {
			return err
		}
		info, revision = s.info(p, q.now()), s.Revision
		return nil
	})
	return info, revision, err
}

// ListPools lists pools by name. A pool whose own record cannot be decoded is not in the list.
func (q *Queries) ListPools(ctx context.Context, req PageRequest) (*Page[PoolInfo], error) {
	var f violations
	page := newPager[PoolInfo]("pools", req, &f)
	if err := f.refusal(); err != nil {
		return nil, err
	}
	var revision int64
	now := q.now()
	err := q.answer(ctx, "", req.MinRevision, func(s *Snapshot) error {
		revision = s.Revision
		for name, p := range s.Pools {
			if p.Pool != nil {
				page.offer(place{0, name}, s.info(p, now))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return pageOf(page, revision, itself), nil
}

// ListBindings lists bindings by proxy; only those that name slot if it is not empty.
func (q *Queries) ListBindings(ctx context.Context, pool, slot string, req PageRequest) (*Page[*Binding], error) {
	var f violations
	f.name("pool", pool)
	f.optionalName("slot", slot)
	page := newPager[*Binding]("bindings", req, &f)
	if err := f.refusal(); err != nil {
		return nil, err
	}
	var revision int64
	err := q.answer(ctx, pool, req.MinRevision, func(s *Snapshot) error {
		p, err := s.pooled(pool)
		if err != nil {
			return err
		}
		revision = s.Revision
		for proxy, b := range p.Bindings {
			if slot == "" || b.names(slot) {
				page.offer(place{0, proxy}, b)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return pageOf(page, revision, itself), nil
}

// names reports whether the binding names a slot.
func (b *Binding) names(slot string) bool {
	return slices.ContainsFunc(b.Slots, func(s SlotPriority) bool { return s.Slot == slot })
}

// RotationQuery asks how one life of a key ended.
type RotationQuery struct {
	Pool, Key   string
	Generation  int64 // 0: the latest life that was rotated
	MinRevision int64
}

func (r *RotationQuery) check() error {
	var f violations
	f.name("pool", r.Pool)
	f.name("key_id", r.Key)
	f.notNegative("generation", r.Generation)
	f.notNegative("min_revision", r.MinRevision)
	return f.refusal()
}

// GetRotation returns the rotation that ended one life of a key.
func (q *Queries) GetRotation(ctx context.Context, req RotationQuery) (rot *Rotation, revision int64, err error) {
	if err := req.check(); err != nil {
		return nil, 0, err
	}
	err = q.answer(ctx, req.Pool, req.MinRevision, func(s *Snapshot) (err error) {
		revision = s.Revision
		rot, err = s.rotation(req)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return rot, revision, nil
}

func (s *Snapshot) rotation(req RotationQuery) (*Rotation, error) {
	p, err := s.pooled(req.Pool)
	if err != nil {
		return nil, err
	}
	if req.Generation == 0 {
		if rot := p.LastRotation(req.Key); rot != nil {
			return rot, nil
		}
		return nil, &gap{pool: req.Pool, latestOf: req.Key, refusal: Refuse(ReasonRotationNotFound,
			"no rotation of key %q is on record in pool %q", req.Key, req.Pool)}
	}
	life := Life{req.Pool, req.Key, req.Generation}
	if rot := p.Rotation(life); rot != nil {
		return rot, nil
	}
	return nil, &gap{pool: req.Pool, refs: []Ref{RotationRef(life)}, generation: req.Generation, refusal: Refuse(ReasonRotationNotFound,
		"no rotation of key %q with generation %d is on record in pool %q", req.Key, req.Generation, req.Pool)}
}

// ListRotations lists a pool's rotations by revision and then old key; only those of key if it is not empty.
func (q *Queries) ListRotations(ctx context.Context, pool, key string, req PageRequest) (*Page[*Rotation], error) {
	var f violations
	f.name("pool", pool)
	f.optionalName("key_id", key)
	page := newPager[*Rotation]("rotations", req, &f)
	if err := f.refusal(); err != nil {
		return nil, err
	}
	var revision int64
	err := q.answer(ctx, pool, req.MinRevision, func(s *Snapshot) error {
		p, err := s.pooled(pool)
		if err != nil {
			return err
		}
		revision = s.Revision
		p.offerRotations(key, page)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return pageOf(page, revision, itself), nil
}

func (p *PoolState) offerRotations(key string, page *pager[*Rotation]) {
	offer := func(list []*Rotation) {
		for _, r := range list {
			page.offer(place{r.Revision(), r.Key}, r)
		}
	}
	if key != "" {
		offer(p.Rotations[key])
		return
	}
	for _, list := range p.Rotations {
		offer(list)
	}
}

// ListReplicas lists the replicas that have a session, by name.
func (q *Queries) ListReplicas(ctx context.Context, minRevision int64) (replicas []*Replica, revision int64, err error) {
	var f violations
	f.notNegative("min_revision", minRevision)
	if err := f.refusal(); err != nil {
		return nil, 0, err
	}
	err = q.answer(ctx, "", minRevision, func(s *Snapshot) error {
		revision = s.Revision
		for _, name := range s.ReplicaNames() {
			replicas = append(replicas, s.Replicas[name])
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return replicas, revision, nil
}
