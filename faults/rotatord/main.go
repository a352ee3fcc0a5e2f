// Command rotatord is the daemon as the fault test runs it: the same wiring as cmd/rotatord, with hooks that are driven
// from outside.
//
// FAULTS_CONTROL names a unix socket on which it can be told to crash or to pause at a step of a rotation or of a phase.
// FAULTS_LOCK says how the lock is used: with "normal" every other rotation has it written before its commit, with "apart"
// each; "off" takes and fences nothing, "always-yes" grants every campaign. FAULTS_PHASES=short
// makes phases hurry. The shipped binary has none of this; without the variables this one behaves like it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rotatord/rotatord/faults/short"
	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/lifecycle"
)

const (
	envControl = "FAULTS_CONTROL"
	envLock    = "FAULTS_LOCK"
	envPhases  = "FAULTS_PHASES"
)

func main() { os.Exit(run()) }

func run() int {
	cfg, err := app.Parse(os.Args[1:], os.Environ(), os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rotatord:", err)
		return 2
	}
	log, flush := cfg.NewLogger(os.Stderr)
	defer flush()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, cfg, log); err != nil {
		log.Error("rotatord failed", "error", err)
		return 1
	}
	return 0
}

// serve is what matters of app.Run, with seams.
func serve(ctx context.Context, cfg *app.Config, log *slog.Logger) error {
	seams, err := seams(log)
	if err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	replica, err := app.Start(sctx, cfg, log, seams)
	cancel()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		log.Info("stopping: no new calls, those under way are finished")
	case err = <-replica.Failed():
		log.Error("stopping: a part of the replica failed", "error", err)
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
	defer cancel()
	return errors.Join(err, replica.Close(cctx))
}

func seams(log *slog.Logger) (s app.Seams, err error) {
	hurry := os.Getenv(envPhases) == "short"
	var t *traps
	if path := os.Getenv(envControl); path != "" {
		t = newTraps(log)
		if err := t.listen(path); err != nil {
			return s, err
		}
		s.Steps = t.pass
	}
	s.Phases = func(c *lifecycle.Config) {
		if hurry {
			short.Phases(c)
		}
		if t != nil {
			c.Steps = t.passPhase
		}
	}
	err = lock(&s, os.Getenv(envLock))
	return s, err
}
