// Command demo shows rotatord's main job with real processes: three replicas on one etcd, the key pools of the gateway
// that rotatord comes from, and two parties that report the same dead keys at the same moment to all replicas, one of
// which is killed meanwhile. It then counts, and fails if a promise was broken.
//
//	make demo
//
// Everything is on free ports of the loopback address and in a temporary directory, so that it disturbs nothing that
// runs. Nothing outlives it: not the processes, and not the directory unless it failed or --keep was given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as shells report it
)

// limit is far above what the demo takes; it only ends what hangs.
const limit = 3 * time.Minute

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

const title = "rotatord demo: two parties report the same dead keys to three replicas, and one replica is killed meanwhile."

// options are the flags.
type options struct {
	bin      string
	triggers int
	keys     int
	keep     bool
}

// maxKeys is how many active keys the example's two pools have.
const maxKeys = 20

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "%s\n\nFlags:\n", title)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.bin, "bin", "bin", "`directory` with rotatord and rotatorctl; etcdctl is used if it is there too")
	flags.IntVar(&o.triggers, "triggers", 200, "how many callers report each key")
	flags.IntVar(&o.keys, "keys", 6, fmt.Sprintf("how many keys are reported, 1 to %d, of both pools in turn", maxKeys))
	flags.BoolVar(&o.keep, "keep", false, "keep the directory with data and logs")
	err := flags.Parse(args)
	switch {
	case err != nil:
		return o, err
	case flags.NArg() > 0:
		return o, fmt.Errorf("there are no arguments, only flags: %q", flags.Args())
	case o.triggers < 2:
		return o, fmt.Errorf("--triggers is %d; it takes at least 2 to race", o.triggers)
	case o.keys < 1 || o.keys > maxKeys:
		return o, fmt.Errorf("--keys is %d; it can be 1 to %d", o.keys, maxKeys)
	}
	return o, nil
}

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "demo:", err)
		return exitUsage
	}
	// The kernel ends the children with the thread that started them, so that must not end before the demo.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(interrupted, limit)
	defer cancel()

	d := &demo{options: o, out: stdout}
	err = d.all(ctx)
	if errors.Is(err, errBroken) {
		d.keep = true
	}
	switch {
	case interrupted.Err() != nil:
		d.close()
		fmt.Fprintln(stderr, "demo: interrupted; its processes are stopped")
		return exitInterrupted
	case err != nil:
		d.keep = d.dir != ""
		d.close()
		fmt.Fprintf(stderr, "demo: %v\n", err)
		d.showLogs(stderr)
		return exitFailed
	}
	d.close()
	return exitOK
}

// errBroken is the end of a demo that came to its end and found a promise broken.
var errBroken = errors.New("a promise was broken, see FAILED above")

// demo is one run.
type demo struct {
	options
	out      io.Writer
	step     int
	began    time.Time
	dir      string
	replicas []*replica
	etcd     *outside
	pools    []*poolState
	targets  []*target
	broken   []string // promises that the second act found broken
}

// all runs the steps one after another. Whatever it started is ended by close.
func (d *demo) all(ctx context.Context) error {
	d.began = time.Now()
	fmt.Fprintln(d.out, title)
	for _, step := range []func(context.Context) error{
		d.prepare, d.startReplicas, d.importPools, d.showPools, d.chooseKeys, d.fire, d.spendBudgets, d.check, d.stopReplicas,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// say announces a step in one line.
func (d *demo) say(format string, args ...any) {
	d.step++
	fmt.Fprintf(d.out, "\n%d. %s\n", d.step, fmt.Sprintf(format, args...))
}

// close ends and removes whatever is left, in any state.
func (d *demo) close() {
	if d.etcd != nil {
		d.etcd.close()
	}
	for _, r := range d.replicas {
		r.close()
	}
	switch {
	case d.dir == "":
	case d.keep:
		fmt.Fprintf(d.out, "\ndata and logs are kept in %s\n", d.dir)
	default:
		_ = os.RemoveAll(d.dir)
	}
}
