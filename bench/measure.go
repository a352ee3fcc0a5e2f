package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/rotatord/rotatord/bench/fleet"
	"github.com/rotatord/rotatord/bench/load"
)

// measure is one measurement, with what it cost.
type measure struct {
	load.Result
	// Cost is the processor time for each call, in microseconds, by program.
	Cost map[string]float64 `json:"cpuMicros"`
	// Writes are the raft proposals for each call.
	Writes float64 `json:"writes"`
	// Others is the share of all processors that went to what is not measured, 0 to 1. With much of it the measurement
	// is worth little.
	Others float64 `json:"others"`
}

const (
	progEtcd    = "etcd"
	progReplica = "rotatord"
	progBench   = "bench"
	progEmpty   = "empty"
)

// processes are what is watched during a measurement, by program.
type processes map[string][]int

func (s *stage) processes() processes {
	p := processes{progBench: {os.Getpid()}}
	for _, m := range s.etcd.Members {
		p[progEtcd] = append(p[progEtcd], m.PID())
	}
	for _, r := range s.replicas {
		p[progReplica] = append(p[progReplica], r.PID())
	}
	return p
}

// meter reads what a measurement costs: processor times, and the writes of etcd.
type meter struct {
	of     processes
	writes func() (float64, error) // nil: none are counted

	err  error // of all readings
	used reading
	took time.Duration
}

// reading is what counters say, or how far they went on.
type reading struct {
	cpu    map[string]time.Duration // by program
	busy   time.Duration            // all programs of the machine
	writes float64
}

// meter reads what a measurement on the stage costs.
func (s *stage) meter(ctx context.Context) *meter {
	return &meter{of: s.processes(), writes: func() (float64, error) { return fleet.Proposals(ctx, s.etcd.Endpoints[0]) }}
}

// begin is load.Options.Begin.
func (m *meter) begin() (end func()) {
	before, began := m.read(), time.Now()
	return func() {
		m.took, m.used = time.Since(began), m.read()
		for program := range m.used.cpu {
			m.used.cpu[program] -= before.cpu[program]
		}
		m.used.busy -= before.busy
		m.used.writes -= before.writes
	}
}

func (m *meter) read() reading {
	var err error
	r := reading{cpu: make(map[string]time.Duration)}
	for program, pids := range m.of {
		for _, pid := range pids {
			used, err := fleet.CPU(pid)
			r.cpu[program] += used
			m.err = errors.Join(m.err, err)
		}
	}
	r.busy, err = fleet.Busy()
	m.err = errors.Join(m.err, err)
	if m.writes != nil {
		r.writes, err = m.writes()
		m.err = errors.Join(m.err, err)
	}
	return r
}

// measure runs load on the stage and reads its cost. Profiles are named after the measurement.
func (s *stage) measure(ctx context.Context, name string, round, callers int, worker func(i int) load.Call) (*measure, error) {
	m := s.meter(ctx)
	begin, profiled := m.begin, new(profiling)
	if s.bench.pprof != "" {
		begin = func() func() {
			profiled.start(ctx, s, fmt.Sprintf("%s-%d", strings.ReplaceAll(name, "/", ","), round))
			return m.begin()
		}
	}
	result, err := load.Run(ctx, load.Options{Workers: callers, WarmUp: s.bench.warmUp(), Time: s.bench.time, Begin: begin}, worker)
	if err := errors.Join(err, profiled.wait(), m.err); err != nil {
		return nil, err
	}
	return m.measure(result), nil
}

func (m *meter) measure(r *load.Result) *measure {
	cost := make(map[string]float64)
	calls, others := float64(max(r.Calls, 1)), m.used.busy
	for program, used := range m.used.cpu {
		cost[program] = float64(used.Microseconds()) / calls
		others -= used
	}
	all := m.took * time.Duration(runtime.NumCPU())
	return &measure{Result: *r, Cost: cost, Writes: m.used.writes / calls, Others: max(0, others.Seconds()/all.Seconds())}
}

// profiling is profiles under way.
type profiling struct {
	work sync.WaitGroup
	mu   sync.Mutex // protects the following field
	err  error
}

// start profiles the first replica and the first member of etcd for as long as the measurement lasts.
func (p *profiling) start(ctx context.Context, s *stage, name string) {
	if err := os.MkdirAll(s.bench.pprof, 0o755); err != nil {
		p.fail(err)
		return
	}
	file := func(kind string) string { return filepath.Join(s.bench.pprof, name+"."+kind+".pprof") }
	p.work.Go(func() { p.fail(fleet.Profile(ctx, s.etcd.Endpoints[0], file("etcd.cpu"), s.bench.time)) })
	if len(s.replicas) > 0 {
		address := s.replicas[0].Pprof
		p.work.Go(func() {
			p.fail(fleet.Profile(ctx, address, file("rotatord.cpu"), s.bench.time))
			p.fail(fleet.Heap(ctx, address, file("rotatord.heap")))
		})
	}
}

func (p *profiling) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errors.Join(p.err, err)
}

func (p *profiling) wait() error {
	p.work.Wait()
	return p.err
}
