// Command probe runs three replicas in one process on an etcd of its own, spoils what lies between them in a way that a
// flag chooses, lets the callers of the fault test loose on them, and checks everything as the fault test does.
//
// It is where seeded bugs are caught that real processes would not show in bounded time: what a rotation or a write
// rests on is made to change at the very moment between its look and its commit. It exits with 0 if every promise was
// kept, with 1 if one was broken, and with 2 if it could not tell.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/faults/litellm"
	"github.com/rotatord/rotatord/faults/workload"
	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/etcdembed"
	"github.com/rotatord/rotatord/internal/recorder"
	"github.com/rotatord/rotatord/internal/seal"
)

const (
	prefix = "/rotator/"
	ttl    = 2 * time.Second
)

func main() { os.Exit(run()) }

func run() int {
	log := flag.String("log", "", "`file` for what the replicas log")
	spoil := flag.String("spoil", "", "nothing, or one of lock-off, lock-yes, lost, no-space, stalls, or late and the kinds of transitions that are")
	length := flag.Duration("duration", 8*time.Second, "how long the callers work")
	seed := flag.Uint64("seed", 1, "of callers and spoiling")
	flag.Parse()
	if !known(*spoil) {
		fmt.Fprintf(os.Stderr, "probe: -spoil %q is nothing of the list, see -h\n", *spoil)
		return 2
	}
	report, err := probe(*spoil, *length, *seed, *log)
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		return 2
	}
	report.Write(os.Stdout)
	fmt.Println("BROKEN", report.Broken())
	if !report.OK() {
		return 1
	}
	return 0
}

// probe is long and straight: what is started is stopped in the opposite order.
func probe(spoil string, length time.Duration, seed uint64, logFile string) (report *check.Report, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*length+90*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	log := logger(logFile)
	etcd, err := etcdembed.Start(ctx, etcdembed.Config{DataDir: filepath.Join(dir, "etcd"), ClientListen: "127.0.0.1:0", Log: log, Tick: 10 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, etcd.Close()) }()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint()}, DialTimeout: 5 * time.Second})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	rec, err := recorder.StartWith(ctx, client, prefix, recorder.Options{Keep: true, Canaries: (*workload.Workload)(nil).Canaries()})
	if err != nil {
		return nil, err
	}
	s := newSpoiler(spoil, seed)
	addresses, stop, err := replicas(ctx, dir, etcd.Endpoint(), s, log)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return nil, err
	}
	h := history.NewWriter(nil)
	in := check.Input{Epoch: h.Epoch(), SessionTTL: ttl, Slack: time.Minute, Locks: s.locks()}
	upstream := litellm.New(seed)
	defer upstream.Close()
	if in.Ops, err = work(ctx, addresses, seed, length, h, s, upstream); err != nil {
		return nil, err
	}
	in.Faults, in.QuorumLoss = s.faults(), func(kind string) bool { return kind == "no-space" }
	in.Healed = time.Now()
	in.Ended = in.Healed
	last, err := client.Get(ctx, prefix, append(clientv3.WithLastRev(), clientv3.WithPrefix())...)
	if err != nil {
		return nil, err
	}
	if in.Recorder, err = rec.Stop(ctx, last.Kvs[0].ModRevision); err != nil {
		return nil, err
	}
	in.Upstream, in.Minted = upstream.Deeds()
	in.Recording, in.Held, in.Canaries = rec.History(), s.holds(), (*workload.Workload)(nil).Canaries()
	return check.Run(in), nil
}

func logger(file string) *slog.Logger {
	out := io.Discard
	if file != "" {
		if f, err := os.Create(file); err == nil {
			out = f
		}
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// work lets the callers loose. What Final finds is in the history too, where the check judges it.
func work(ctx context.Context, addresses []string, seed uint64, length time.Duration, h *history.Writer, s *spoiler, upstream *litellm.Upstream) ([]history.Op, error) {
	load, err := workload.New(ctx, workload.Options{Replicas: addresses, Seed: seed, History: h, Think: 20 * time.Millisecond, Upstream: upstream})
	if err != nil {
		return nil, err
	}
	defer func() { _ = load.Close() }()
	wctx, cancel := context.WithTimeout(ctx, 4*length)
	defer cancel()
	s.begin()
	go func() {
		defer cancel()
		enough(wctx, load, length)
	}()
	load.Run(wctx)
	s.heal()
	if err := load.Final(ctx); err != nil {
		fmt.Println("at the end:", err)
	}
	return h.Ops(), nil
}

// usual is how many calls succeed in a second on an ordinary machine.
const usual = 250

// enough waits for a time, and on a busy machine for what an ordinary one does in that time.
func enough(ctx context.Context, load *workload.Workload, length time.Duration) {
	wanted := int64(length.Seconds() * usual)
	for began := time.Now(); ctx.Err() == nil && (time.Since(began) < length || load.Succeeded() < wanted); {
		time.Sleep(20 * time.Millisecond)
	}
}

// replicas starts three. stop is never nil.
func replicas(ctx context.Context, dir, etcd string, s *spoiler, log *slog.Logger) (addresses []string, stop func() error, err error) {
	var running []*app.Replica
	stop = func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, r := range running {
			err = errors.Join(err, r.Close(ctx))
		}
		return err
	}
	keyset := filepath.Join(dir, "keyset.json")
	if _, err := seal.Create(keyset); err != nil {
		return nil, stop, err
	}
	for i := range 3 {
		name := fmt.Sprintf("r%d", i)
		cfg := &app.Config{
			Name: name, Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", EtcdEndpoints: []string{etcd}, EtcdPrefix: prefix,
			KeysetFile: keyset, SessionTTL: ttl, ShutdownTimeout: 5 * time.Second,
		}
		r, err := app.Start(ctx, cfg, log.With("replica", name), s.seams(name))
		if err != nil {
			return nil, stop, err
		}
		running = append(running, r)
		for r.Writable() != nil && ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
		addresses = append(addresses, r.Address())
	}
	return addresses, stop, ctx.Err()
}
