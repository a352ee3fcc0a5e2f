package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rotatord/rotatord/bench/fleet"
	"github.com/rotatord/rotatord/bench/seed"
)

// idle measures what replicas that nobody calls cost etcd: three, and none for comparison, shown for each replica.
func (b *bench) idle(ctx context.Context) (err error) {
	s, err := b.newStage(ctx, 1, diskNormal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if _, err := s.fill(ctx, seed.Pools(10, 50, 50)); err != nil {
		return err
	}
	none, err := s.observe(ctx)
	if err != nil {
		return err
	}
	const replicas = 3
	if err := s.addReplicas(ctx, replicas, 1); err != nil {
		return err
	}
	some, err := s.observe(ctx)
	if err != nil {
		return err
	}
	for _, what := range slices.Sorted(maps.Keys(some)) {
		if each := (some[what] - none[what]) / replicas; each > 0.001 || !strings.HasPrefix(what, received) {
			b.report.row("idle/a replica's "+what, " a second", []float64{each}, nil)
		}
	}
	return nil
}

// received begins the names of what etcd's gRPC server is sent.
const received = "messages to "

// observe sees what happens while nobody calls, a second: processor times in milliseconds, raft proposals, and messages
// to etcd by method, those on streams included.
func (s *stage) observe(ctx context.Context) (map[string]float64, error) {
	m := s.meter(ctx)
	before, err := fleet.Metrics(ctx, s.etcd.Endpoints[0])
	if err != nil {
		return nil, err
	}
	end, began := m.begin(), time.Now()
	if err := pause(ctx, max(s.bench.time, 3*time.Second)); err != nil {
		return nil, err
	}
	end()
	seconds := time.Since(began).Seconds()
	after, err := fleet.Metrics(ctx, s.etcd.Endpoints[0])
	if err := errors.Join(err, m.err); err != nil {
		return nil, err
	}
	seen := map[string]float64{"writes (raft proposals)": m.used.writes / seconds}
	for _, program := range []string{progEtcd, progReplica} {
		seen[fmt.Sprintf("CPU time in %s, ms", program)] = float64(m.used.cpu[program].Microseconds()) / 1000 / seconds
	}
	for series, n := range after {
		if method, found := methodOf(series); found {
			seen[received+method] += (n - before[series]) / seconds
		}
	}
	return seen, nil
}

// methodOf takes the method out of a series of messages received.
func methodOf(series string) (string, bool) {
	labels, found := strings.CutPrefix(series, "grpc_server_msg_received_total{")
	if !found {
		return "", false
	}
	_, rest, _ := strings.Cut(labels, `grpc_method="`)
	method, _, found := strings.Cut(rest, `"`)
	return method, found
}
