package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rotatord/rotatord/bench/fleet"
	"github.com/rotatord/rotatord/bench/seed"
	"github.com/rotatord/rotatord/internal/pool"
)

const (
	stormTriggers = 10_000
	stormsARound  = 5 // of each kind
)

// storm has 10,000 callers trigger one key at the same moment, over three replicas, and counts what etcd writes.
func (b *bench) storm(ctx context.Context) (err error) {
	s, err := b.newStage(ctx, 3, diskNormal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	n := 2 * stormsARound * b.rounds
	if b.quick {
		n = 2
	}
	lives, err := s.fill(ctx, seed.Pools(1, n+3, 2*n+3))
	if err != nil {
		return err
	}
	if err := s.addReplicas(ctx, 3, connections); err != nil {
		return err
	}
	own := lives[0]
	if err := s.warm(ctx, own[n:]); err != nil {
		return err
	}
	w, err := s.watchWrites(ctx)
	if err != nil {
		return err
	}
	given, none := new(storms), new(storms)
	for i, l := range own[:n] {
		kind := given
		if i%2 == 1 {
			kind, l.Generation = none, 0
		}
		writes, took, err := w.during(ctx, func() error { return s.triggerAll(ctx, l) })
		if err != nil {
			return err
		}
		kind.writes, kind.took = append(kind.writes, writes), append(kind.took, float64(took.Milliseconds()))
	}
	b.log("storm: etcd writes with a generation %.1f, without %.1f", given.writes, none.writes)
	given.rows(b.report, "storm/generation=given")
	none.rows(b.report, "storm/generation=none")
	return nil
}

// storms are what came of those of one kind.
type storms struct{ writes, took []float64 }

func (s *storms) rows(r *report, name string) {
	r.row(name+": etcd writes", "", s.writes, atMost(8, 3))
	r.row(name+": until all 10,000 are answered", " ms", s.took, nil)
}

// warm makes a rotation at each replica, so that none is made for the first time in a measurement.
func (s *stage) warm(ctx context.Context, lives []pool.Life) error {
	for i, l := range lives {
		if _, err := rotateKey(ctx, s.rotation(i), l); err != nil {
			return err
		}
	}
	return nil
}

// triggerAll has all callers trigger a life at once, and checks that they get one answer.
func (s *stage) triggerAll(ctx context.Context, l pool.Life) error {
	gate, answers := make(chan struct{}), make([]string, stormTriggers)
	work, ctx := errgroup.WithContext(ctx)
	for i := range stormTriggers {
		client := s.rotation(i)
		work.Go(func() error {
			<-gate
			resp, err := trigger(ctx, client, l)
			answers[i] = resp.GetRotation().GetId()
			return err
		})
	}
	close(gate)
	if err := work.Wait(); err != nil {
		return fmt.Errorf("a trigger of a storm: %w", err)
	}
	for _, id := range answers {
		if id == "" || id != answers[0] {
			return fmt.Errorf("the callers of one storm were told of rotations %q and %q", answers[0], id)
		}
	}
	return nil
}

// writeCounter counts what etcd writes beyond what it writes anyway.
type writeCounter struct {
	leader string
	idle   float64 // a second
}

// quiet is for how long nothing may be written before a count is taken: what was begun in the background is part of it.
const quiet = 300 * time.Millisecond

func (s *stage) watchWrites(ctx context.Context) (*writeCounter, error) {
	leader, err := s.etcd.Leader(ctx)
	if err != nil {
		return nil, err
	}
	w := &writeCounter{leader: leader}
	w.idle, err = w.over(ctx, max(3*time.Second, s.bench.time/2))
	return w, err
}

// over is how many writes a second there are during a time in which nobody calls.
func (w *writeCounter) over(ctx context.Context, d time.Duration) (float64, error) {
	before, err := fleet.Proposals(ctx, w.leader)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	after, err := fleet.Proposals(ctx, w.leader)
	return (after - before) / time.Since(began).Seconds(), err
}

// during counts the writes that come of fn, and says how long fn took.
func (w *writeCounter) during(ctx context.Context, fn func() error) (writes float64, took time.Duration, err error) {
	before, err := fleet.Proposals(ctx, w.leader)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := fn(); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	after, err := w.settled(ctx)
	return max(0, after-before-w.idle*time.Since(began).Seconds()), took, err
}

// settled waits until nothing is written for a while.
func (w *writeCounter) settled(ctx context.Context) (float64, error) {
	last, err := fleet.Proposals(ctx, w.leader)
	for range 10 {
		if err := errors.Join(err, pause(ctx, quiet)); err != nil {
			return 0, err
		}
		now, err := fleet.Proposals(ctx, w.leader)
		if err != nil || now == last {
			return now, err
		}
		last = now
	}
	return last, nil
}

// pause lets time pass, as part of a measurement.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
