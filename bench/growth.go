package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/bench/fleet"
	"github.com/rotatord/rotatord/bench/load"
	"github.com/rotatord/rotatord/bench/seed"
	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// starts is how often a replica is started to see how long it takes.
const starts = 3

// grown is a replica with one pool of some size.
type grown struct {
	*stage
	keys     int
	lives    []pool.Life
	at       int
	startups []float64 // ms until ready
	fresh    int64     // resident bytes when it had just become ready
	loaded   int64     // records it held then
}

func (g *grown) name() string { return fmt.Sprintf("growth/keys=%d", g.keys) }

// growth measures what a replica costs as a pool grows. Half of the keys are in service, half in stock. All sizes run
// side by side, so that rotations take turns between them; a replica that nobody calls costs next to nothing.
func (b *bench) growth(ctx context.Context) (err error) {
	sizes := []int{10, 1000, 100_000}
	if b.quick {
		sizes = sizes[:2]
	}
	var all []*grown
	defer func() {
		for _, g := range all {
			err = errors.Join(err, g.close())
		}
	}()
	for _, keys := range sizes {
		g, err := b.grow(ctx, keys)
		if g != nil {
			all = append(all, g)
		}
		if err != nil {
			return fmt.Errorf("%d keys: %w", keys, err)
		}
		b.log("%s: ready after %.0f ms, %d MiB resident", g.name(), g.startups, g.fresh>>20)
	}
	turns := slices.Clone(all)
	for range b.rounds {
		for _, g := range turns {
			m, err := g.rotateAndRestore(ctx)
			if err := b.note(g.name(), m, err); err != nil {
				return err
			}
		}
		slices.Reverse(turns)
	}
	return b.growthRows(ctx, all)
}

// grow fills an etcd, and starts a replica on it several times; the last one stays.
func (b *bench) grow(ctx context.Context, keys int) (_ *grown, err error) {
	s, err := b.newStage(ctx, 1, diskNormal)
	if err != nil {
		return nil, err
	}
	g := &grown{stage: s, keys: keys}
	lives, err := s.fill(ctx, seed.Pools(1, keys/2, keys-keys/2))
	if err != nil {
		return g, err
	}
	g.lives = lives[0]
	for range starts {
		if err := g.start(ctx); err != nil {
			return g, err
		}
	}
	r := g.replicas[0]
	if g.fresh, err = fleet.Resident(r.PID()); err != nil {
		return g, err
	}
	if g.loaded, err = g.records(ctx); err != nil {
		return g, err
	}
	conns, err := dial(r.Address, 1)
	g.conns = append(g.conns, conns)
	return g, errors.Join(err, r.Serves(ctx))
}

// start starts the replica anew and notes how long it took until it was ready.
func (g *grown) start(ctx context.Context) error {
	began := time.Now()
	if len(g.replicas) == 0 {
		r, err := g.startReplica(0)
		if err != nil {
			return err
		}
		g.replicas = append(g.replicas, r)
	} else {
		g.replicas[0].Kill()
		began = time.Now()
		if err := g.replicas[0].Restart(); err != nil {
			return err
		}
	}
	if err := g.replicas[0].Ready(ctx); err != nil {
		return err
	}
	g.startups = append(g.startups, float64(time.Since(began).Milliseconds()))
	return nil
}

// rotateAndRestore measures rotations. Each key that was rotated is put back into stock, outside of what is measured, so
// that the pool keeps its size.
func (g *grown) rotateAndRestore(ctx context.Context) (*measure, error) {
	rotations, admin := g.rotation(0), v1.NewAdminServiceClient(g.conn(0))
	m := g.meter(ctx)
	result, err := load.RunTimed(ctx, load.Options{WarmUp: g.bench.warmUp(), Time: g.bench.time, Begin: m.begin}, func(ctx context.Context) (time.Duration, error) {
		g.at = (g.at + 1) % len(g.lives)
		old, began := g.lives[g.at], time.Now()
		next, err := rotateKey(ctx, rotations, old)
		took := time.Since(began)
		if err != nil {
			return 0, err
		}
		g.lives[g.at] = next
		_, err = admin.RestoreKey(ctx, &v1.RestoreKeyRequest{Pool: old.Pool, KeyId: old.Key})
		if err != nil {
			err = fmt.Errorf("restoring a key: %w", err)
		}
		return took, err
	})
	if err := errors.Join(err, m.err); err != nil {
		return nil, err
	}
	return m.measure(result), nil
}

// records is how many records a replica keeps in memory: all but events and fingerprints.
func (g *grown) records(ctx context.Context) (n int64, err error) {
	count := func(prefix string) int64 {
		resp, cerr := g.etcd.Client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if cerr != nil {
			err = errors.Join(err, fmt.Errorf("counting the records: %w", cerr))
			return 0
		}
		return resp.Count
	}
	n = count(seed.Layout.Prefix) - count(seed.Layout.KindPrefix(pool.KindEvent)) - count(seed.Layout.KindPrefix(pool.KindFingerprint))
	return n, err
}

// growthRows compares each size with the smallest.
func (b *bench) growthRows(ctx context.Context, all []*grown) error {
	r, small := b.report, all[0]
	for _, g := range all {
		r.row(g.name()+": start until ready", " ms", g.startups, nil)
	}
	for _, g := range all[1:] {
		t := atMost(1.2, 1.0)
		if g.keys < 100_000 {
			t = nil
		}
		r.compare(g.name()+": rotation p50 over that with 10 keys", duration, r.values(g.name(), p50), r.values(small.name(), p50), t)
	}
	last := all[len(all)-1]
	now, err := residentPerRecord(ctx, last, small)
	if err != nil {
		return err
	}
	fresh := float64(last.fresh-small.fresh) / float64(last.loaded-small.loaded) / 1024
	r.row(last.name()+": memory per record when just ready", " KiB", []float64{fresh}, nil)
	t := atMost(2, 1)
	if last.keys < 100_000 {
		t = nil // too few to tell
	}
	r.row(last.name()+": memory per record after the rotations", " KiB", []float64{now}, t)
	return nil
}

// residentPerRecord is what a record more costs, in KiB, of the difference between two replicas that did the same work.
func residentPerRecord(ctx context.Context, large, small *grown) (float64, error) {
	var bytes, records [2]int64
	for i, g := range []*grown{large, small} {
		var err error
		if bytes[i], err = fleet.Resident(g.replicas[0].PID()); err != nil {
			return 0, err
		}
		if records[i], err = g.records(ctx); err != nil {
			return 0, err
		}
	}
	return float64(bytes[0]-bytes[1]) / float64(records[0]-records[1]) / 1024, nil
}
