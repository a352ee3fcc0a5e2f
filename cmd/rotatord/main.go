// Command rotatord is the daemon: one replica of the service, with an etcd of its own or against an external one.
//
// It exits with 0 when it was asked to stop (SIGINT, SIGTERM) and did, and after --help and --version; with 1 when it
// failed, could not stop cleanly, or was stopped by a second signal; with 2 when its flags, environment or
// configuration file are wrong, before anything was started.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/rotatord/rotatord/internal/app"
)

const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

func run(args, environ []string, stdout, stderr io.Writer) int {
	cfg, err := app.Parse(args, environ, stdout)
	switch {
	case errors.Is(err, app.ErrAnswered):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "rotatord: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nrotatord: "))
		return exitUsage
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	// Go ends a process that writes to a standard error whose reader has gone. The log is not worth the service.
	signal.Ignore(syscall.SIGPIPE)

	log, flush := cfg.NewLogger(stderr)
	defer flush()
	return serve(log, signals, func(ctx context.Context) error { return app.Run(ctx, cfg, log) })
}

// serve runs the service until it ends. The first signal asks it to stop, the second one does not wait for that: what
// the process held is released by its lease, and its writes are safe at any point.
func serve(log *slog.Logger, signals <-chan os.Signal, service func(context.Context) error) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- service(ctx) }()
	for {
		select {
		case err := <-ended:
			return exitCode(log, err)
		case sig := <-signals:
			if ctx.Err() != nil {
				log.Warn("stopping at once after a second signal", "signal", sig.String())
				return exitFailed
			}
			log.Info("signal received; a second one stops at once", "signal", sig.String())
			cancel()
		}
	}
}

func exitCode(log *slog.Logger, err error) int {
	if err != nil {
		log.Error("rotatord failed", "error", err)
		return exitFailed
	}
	return exitOK
}
