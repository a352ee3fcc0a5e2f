package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/cluster"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/faults/litellm"
	"github.com/rotatord/rotatord/faults/nemesis"
	"github.com/rotatord/rotatord/faults/workload"
	"github.com/rotatord/rotatord/internal/recorder"
)

const (
	modeCluster  = "cluster"
	modeEmbedded = "embedded"

	// settle is how long callers go on after the last fault.
	settle = 2 * time.Second
	// finish bounds the last operations.
	finish = 90 * time.Second
	// tidyEvery is how often etcd is compacted apart from faults, so that its quota is not filled by history.
	tidyEvery = 15 * time.Second
)

// part is a run of one kind of cluster, with what came of it.
type part struct {
	Mode       string          `json:"mode"`
	Faults     []nemesis.Event `json:"faults"`
	Spoilt     int64           `json:"spoilt"` // answers
	Figures    *figures        `json:"figures"`
	Stats      check.Stats     `json:"stats"`
	Violations []string        `json:"violations"`

	*options `json:"-"`
	duration time.Duration
	dir      string
	out      io.Writer

	cluster     *cluster.Cluster
	recorder    *recorder.Recorder
	recording   []string // violations of the recorder
	history     *history.Writer
	workload    *workload.Workload
	delivery    *delivery
	deliveredTo int64 // what is checked
	upstream    *litellm.Upstream
	healed      time.Time
	ended       time.Time // all that was written before is recorded
	files       []io.Closer
}

// run does a part from beginning to end. Its error says that it could not be done; what was violated is in the part.
func (p *part) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.closeFiles()) }()
	p.cluster, err = cluster.Start(ctx, cluster.Options{
		Dir: p.dir, Etcd: p.etcd, Rotatord: p.rotatord, Next: p.next, Embedded: p.Mode == modeEmbedded, Lock: p.lock, SessionTTL: p.ttl, Seed: p.seed,
	})
	if err != nil {
		return err
	}
	defer p.cluster.Close()
	fmt.Fprintf(p.out, "\n%s: replicas %v, etcd %v, in %s\n", p.Mode, p.cluster.Replicas(), p.cluster.EtcdDirect(), p.dir)
	for _, step := range []func(context.Context) error{p.record, p.begin, p.harass, p.end} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return p.verify()
}

func (p *part) create(name string) (io.Writer, error) {
	f, err := os.Create(filepath.Join(p.dir, name))
	if err == nil {
		p.files = append(p.files, f)
	}
	return f, err
}

func (p *part) closeFiles() error {
	var errs []error
	for _, f := range slices.Backward(p.files) {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// closer is what has to be done before files are closed.
type closer func() error

// Close implements io.Closer.
func (c closer) Close() error { return c() }

// record begins to record, before anybody writes.
func (p *part) record(ctx context.Context) error {
	dump, err := p.create("revisions.jsonl")
	if err != nil {
		return err
	}
	also, err := p.clients()
	if err != nil {
		return err
	}
	p.recorder, err = recorder.StartWith(ctx, p.cluster.Client(), cluster.Prefix, recorder.Options{
		Dump: dump, Keep: true, Also: also, Canaries: p.workload.Canaries(),
	})
	return err
}

// clients are one for each member.
func (p *part) clients() (clients []*clientv3.Client, err error) {
	for _, endpoint := range p.cluster.EtcdDirect() {
		c, err := p.cluster.Connect(endpoint)
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, c)
		clients = append(clients, c)
	}
	return clients, nil
}

// begin makes the callers and what they need.
func (p *part) begin(ctx context.Context) error {
	out, err := p.create("history.jsonl")
	if err != nil {
		return err
	}
	p.history = history.NewWriter(out)
	p.files = append(p.files, closer(p.history.Flush)) // also if the rest fails
	p.upstream = litellm.New(p.seed)
	p.files = append(p.files, closer(func() error { p.upstream.Close(); return nil }))
	p.workload, err = workload.New(ctx, workload.Options{Replicas: p.cluster.Replicas(), Seed: p.seed, History: p.history, Upstream: p.upstream})
	if err == nil {
		p.delivery, err = follow(p.cluster.Replicas())
	}
	return err
}

// harass runs callers and faults side by side.
func (p *part) harass(ctx context.Context) error {
	wctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{}, 2)
	go func() { p.workload.Run(wctx); ended <- struct{}{} }()
	go func() { p.tidy(wctx); ended <- struct{}{} }()
	fctx, cancel := context.WithTimeout(ctx, p.duration)
	defer cancel()
	events, err := nemesis.Run(fctx, nemesis.Options{
		Cluster: p.cluster, Seed: p.seed, Kinds: p.faults, Succeeded: p.workload.Succeeded, MinTraffic: p.traffic,
		Recorded: p.recorder.Wait, Schema: p.recorder.Schema, Log: func(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) },
	})
	p.Faults, p.Spoilt, p.healed = events, p.cluster.Net.Spoilt(), time.Now()
	if errors.Is(err, nemesis.ErrNoProgress) {
		p.violate("I9 progress: %v", err)
		err = nil
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
	}
	stop()
	<-ended
	<-ended
	return err
}

// tidy compacts from time to time. It may fail: etcd is under fire.
func (p *part) tidy(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-time.After(tidyEvery):
		case <-ctx.Done():
			return
		}
		cctx, cancel := context.WithTimeout(ctx, tidyEvery)
		_ = nemesis.Compact(cctx, p.cluster, p.recorder.Wait)
		cancel()
	}
}

// end lets the callers finish, stops the replicas as an operator would, and ends the recording.
func (p *part) end(ctx context.Context) error {
	fctx, cancel := context.WithTimeout(ctx, finish)
	defer cancel()
	if err := p.workload.Final(fctx); err != nil {
		p.violate("I9 the last operations: %v", err)
	}
	for _, r := range p.cluster.Rotatords {
		p.saveMetrics(r)
	}
	for _, died := range p.cluster.Died() {
		p.violate("a process died: %s", died)
	}
	select { // a ghost lock shows when its session is over
	case <-time.After(p.ttl + time.Second):
	case <-ctx.Done():
	}
	if err := p.delivered(fctx); err != nil {
		p.violate("I8 delivery: %v", err)
	}
	p.ended = time.Now()
	last, err := p.cluster.Client().Get(fctx, "last")
	if err != nil {
		return err
	}
	if p.recording, err = p.recorder.Stop(fctx, last.Header.Revision); err != nil {
		return err
	}
	if err := p.cluster.StopReplicas(); err != nil {
		p.violate("a graceful stop: %v", err)
	}
	return p.workload.Close()
}

// saveMetrics keeps what a replica's metrics say beside its log. That they cannot be had is no more than a pity.
func (p *part) saveMetrics(r *cluster.Replica) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + r.Web + "/metrics")
	if err != nil {
		return
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err == nil {
		_ = os.WriteFile(filepath.Join(p.dir, r.Name+".metrics"), text, 0o600)
	}
}

func (p *part) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintln(p.out, "VIOLATION", text)
	p.Violations = append(p.Violations, p.Mode+": "+text)
}
