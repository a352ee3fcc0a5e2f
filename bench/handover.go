package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/rotatord/rotatord/bench/fleet"
	"github.com/rotatord/rotatord/bench/seed"
	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

const (
	handoversARound = 5  // of each kind
	waitingCallers  = 16 // at the replicas that live on
	// holdFor is how long a holder stands still unless it is ended before: longer than anybody waits.
	holdFor = 3 * time.Second
)

// handover ends or stops the replica that holds a key's lock in mid-rotation, while callers wait for that key at the other
// two, and measures the slowest of their answers.
func (b *bench) handover(ctx context.Context) (err error) {
	s, err := b.newStage(ctx, 3, diskNormal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	n := handoversARound * b.rounds
	if b.quick {
		n = 2
	}
	const warming = 60
	lives, err := s.fill(ctx, seed.Pools(1, 2*n+warming, 4*n+2*warming))
	if err != nil {
		return err
	}
	s.traps = true
	if err := s.addReplicas(ctx, 3, 1); err != nil {
		return err
	}
	if err := s.warm(ctx, lives[0][2*n:]); err != nil {
		return err
	}
	for i, kind := range []takeAway{{"SIGKILL", (*fleet.Process).Kill, restart}, {"SIGSTOP", (*fleet.Process).Stop, resume}} {
		var slowest []float64
		for _, l := range lives[0][i*n : (i+1)*n] {
			took, err := s.handOver(ctx, l, kind)
			if err != nil {
				return fmt.Errorf("%s: %w", kind.signal, err)
			}
			slowest = append(slowest, float64(took.Milliseconds()))
		}
		b.log("handover/%s: slowest answers %.0f ms", kind.signal, slowest)
		b.report.worstRow("handover/"+kind.signal+": slowest answer of the others", " ms", slowest, atMost(1000, 250))
	}
	return nil
}

// takeAway is a way to take a replica away and to give it back.
type takeAway struct {
	signal string
	take   func(*fleet.Process)
	give   func(*fleet.Replica) error
}

func restart(r *fleet.Replica) error { return r.Restart() }

func resume(r *fleet.Replica) error {
	r.Continue()
	return nil
}

// handOver takes the first replica away while it holds the lock of a life.
func (s *stage) handOver(ctx context.Context, l pool.Life, kind takeAway) (slowest time.Duration, err error) {
	holder := s.replicas[0]
	hctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := holder.Hold(ctx, string(pool.StepLocked), holdFor); err != nil {
		return 0, fmt.Errorf("setting the trap: %w", err)
	}
	locked := s.etcd.Client.Watch(hctx, seed.Layout.Key(pool.LockRef(l.Pool, l.Key)), clientv3.WithRev(l.Generation))
	ended := make(chan struct{})
	go func() { // it gets no answer, or a late one
		defer close(ended)
		_, _ = trigger(hctx, s.rotation(0), l)
	}()
	select {
	case <-locked:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	slowest, err = s.others(ctx, l, func() { kind.take(holder.Process) })
	cancel()
	<-ended
	return slowest, errors.Join(err, kind.give(holder), holder.Serves(ctx))
}

// others has callers wait at the other replicas and returns how long the slowest did. take is called when they have begun.
func (s *stage) others(ctx context.Context, l pool.Life, take func()) (time.Duration, error) {
	took := make([]time.Duration, waitingCallers)
	began := make(chan struct{}, waitingCallers)
	work, wctx := errgroup.WithContext(ctx)
	for i := range waitingCallers {
		client := s.rotation(1 + i%2)
		work.Go(func() error {
			at := time.Now()
			began <- struct{}{}
			_, err := trigger(wctx, client, l)
			took[i] = time.Since(at)
			return err
		})
	}
	for range waitingCallers {
		<-began
	}
	take()
	err := work.Wait()
	slowest := took[0]
	for _, d := range took {
		slowest = max(slowest, d)
	}
	return slowest, err
}

// trigger asks for a rotation that others ask for too.
func trigger(ctx context.Context, client v1.RotationServiceClient, l pool.Life) (*v1.RotateKeyResponse, error) {
	resp, err := client.RotateKey(ctx, &v1.RotateKeyRequest{
		Pool: l.Pool, KeyId: l.Key, Generation: l.Generation, Trigger: v1.Trigger_TRIGGER_PROXY, Source: seed.Source, Reason: seed.Reason,
	})
	if err == nil && resp.GetRotation() == nil {
		err = fmt.Errorf("the outcome is %v", resp.GetOutcome())
	}
	return resp, err
}
