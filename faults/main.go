// Command faults is the fault test: it runs real processes of rotatord and etcd, callers, and a nemesis, and holds what
// was recorded against the promises.
//
// It exits with 0 if nothing was violated; with 1 if something was, after it has printed the seed and the directory with
// the recorded history, etcd's revisions and the logs; with 2 if the test itself could not be run.
//
// A seed gives the same faults in the same order and callers with the same intentions. What they meet depends on timing,
// so a failure may take several runs of its seed to come again.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rotatord/rotatord/faults/cluster"
	"github.com/rotatord/rotatord/faults/nemesis"
	"github.com/rotatord/rotatord/faults/overlay"
)

const (
	exitOK       = 0
	exitViolated = 1
	exitFailed   = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are what the command line says.
type options struct {
	duration time.Duration
	seed     uint64
	faults   []string
	dir      string
	mode     string
	lock     string
	rotatord string
	next     string
	etcd     string
	json     string
	keep     bool
	traffic  int64
	ttl      time.Duration
	slack    time.Duration
	recheck  string
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("faults", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.DurationVar(&o.duration, "duration", 5*time.Minute, "how long faults are injected")
	f.Uint64Var(&o.seed, "seed", 0, "what decides faults and callers (default: a random one, which is printed)")
	names := f.String("faults", "", "comma-separated kinds, groups (basic, replica, etcd, net, answers, lease, steps, phases, crash, pause, quorum, space) or\nbeginnings such as crash-*; default: all of\n"+strings.Join(nemesis.Names(false), " "))
	f.StringVar(&o.dir, "dir", "", "directory to make the run's own in (default: that of temporary files)")
	f.StringVar(&o.mode, "mode", "both", "cluster (three replicas, three etcd members), embedded (one replica with etcd in it), or both, one after the other")
	f.StringVar(&o.lock, "lock", "normal", "lock of the replicas: normal, off or always-yes")
	f.StringVar(&o.rotatord, "binary", "", "rotatord built from ./faults/rotatord (default: it is built)")
	f.StringVar(&o.next, "next", "", "what replicas are upgraded to, built from the same by cluster.NextBuild (default: it is built if there are upgrades)")
	f.StringVar(&o.etcd, "etcd", "bin/etcd", "etcd, as make etcd builds it")
	f.StringVar(&o.json, "json", "", "file to write the result to")
	f.BoolVar(&o.keep, "keep", false, "keep the directory also if nothing was violated")
	f.Int64Var(&o.traffic, "traffic", 50, "calls that must succeed between two faults")
	f.DurationVar(&o.ttl, "session-ttl", 3*time.Second, "--session-ttl of the replicas")
	f.DurationVar(&o.slack, "slack", 1500*time.Millisecond, "what bounds on time are widened by: one machine runs the whole cluster, and maybe more")
	f.StringVar(&o.recheck, "recheck", "", "directory that a run has kept: check what was recorded again, and do nothing else")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q is no flag", f.Arg(0))
	}
	if *names != "" {
		o.faults = strings.Split(*names, ",")
	}
	if o.seed == 0 {
		o.seed = uint64(rand.Uint32())
	}
	return o, o.check()
}

func (o *options) check() error {
	_, err := nemesis.Select(o.faults, false)
	switch {
	case o.mode != "both" && o.mode != modeCluster && o.mode != modeEmbedded:
		return fmt.Errorf("-mode %q is none of cluster, embedded, both", o.mode)
	case o.lock != "normal" && o.lock != "off" && o.lock != "always-yes":
		return fmt.Errorf("-lock %q is none of normal, off, always-yes", o.lock)
	}
	return err
}

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "faults:", err)
		return exitFailed
	}
	if o.recheck != "" {
		return o.again(stdout, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Fprintf(stdout, "seed %d, %v of faults, lock %s\n", o.seed, o.duration, o.lock)
	result, err := o.test(ctx, stdout)
	if err != nil {
		fmt.Fprintf(stderr, "faults: the test could not be run: %v\nseed %d, kept in %s\n", err, o.seed, result.Dir)
		return exitFailed
	}
	return o.conclude(result, stdout, stderr)
}

// result is what -json writes.
type result struct {
	Seed       uint64   `json:"seed"`
	Lock       string   `json:"lock"`
	Dir        string   `json:"dir"`
	Parts      []*part  `json:"parts"`
	Violations []string `json:"violations"`
}

func (o *options) conclude(r *result, stdout, stderr io.Writer) int {
	for _, p := range r.Parts {
		r.Violations = append(r.Violations, p.Violations...)
	}
	if o.json != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(o.json, append(text, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintln(stderr, "faults:", err)
			return exitFailed
		}
	}
	if n := len(r.Violations); n > 0 {
		fmt.Fprintf(stdout, "\n%d violations. Seed %d, history, revisions and logs are kept in %s\n", n, o.seed, r.Dir)
		return exitViolated
	}
	fmt.Fprintf(stdout, "\nno violations (seed %d)\n", o.seed)
	if o.keep {
		fmt.Fprintln(stdout, "history, revisions and logs are kept in", r.Dir)
		return exitOK
	}
	if err := os.RemoveAll(r.Dir); err != nil {
		fmt.Fprintln(stderr, "faults:", err)
	}
	return exitOK
}

// test runs the parts. The embedded node needs less time: there is less of it that can fail.
func (o *options) test(ctx context.Context, out io.Writer) (*result, error) {
	r := &result{Seed: o.seed, Lock: o.lock}
	var err error
	if r.Dir, err = os.MkdirTemp(o.dir, "faults-"); err != nil {
		return r, err
	}
	if err := o.build(ctx, r.Dir); err != nil {
		return r, err
	}
	share := map[string]time.Duration{modeCluster: o.duration, modeEmbedded: o.duration}
	if o.mode == "both" {
		share = map[string]time.Duration{modeCluster: o.duration * 4 / 5, modeEmbedded: o.duration / 5}
	}
	for _, mode := range []string{modeCluster, modeEmbedded} {
		if o.mode != mode && o.mode != "both" {
			continue
		}
		p := &part{Mode: mode, options: o, duration: share[mode], dir: filepath.Join(r.Dir, mode), out: out}
		r.Parts = append(r.Parts, p)
		if err := p.run(ctx); err != nil {
			return r, fmt.Errorf("%s: %w", mode, err)
		}
		if ctx.Err() != nil {
			return r, errors.New("it was interrupted")
		}
	}
	return r, nil
}

// build builds the replicas' programs unless they are given.
func (o *options) build(ctx context.Context, dir string) error {
	if _, err := os.Stat(o.etcd); err != nil {
		return fmt.Errorf("%w; make etcd builds it", err)
	}
	if o.rotatord == "" {
		o.rotatord = filepath.Join(dir, "rotatord")
		if err := overlay.Build(ctx, o.rotatord, "./faults/rotatord", nil); err != nil {
			return err
		}
	}
	if kinds, err := nemesis.Select(o.faults, false); err != nil || !slices.Contains(kinds, nemesis.Upgrade) || o.next != "" {
		return err
	}
	o.next = filepath.Join(dir, "rotatord-next")
	return overlay.Build(ctx, o.next, "./faults/rotatord", cluster.NextBuild)
}
