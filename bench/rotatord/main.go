// Command rotatord is the daemon as it is profiled: the same as cmd/rotatord, and it serves Go's profiles at the address
// in BENCH_PPROF. The shipped binary does not.
package main

import (
	"context"
	"fmt"
	"net/http"
	_ "net/http/pprof" // registers with the default mux
	"os"
	"os/signal"
	"syscall"

	"github.com/rotatord/rotatord/internal/app"
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
	go func() { log.Error("no profiles", "error", http.ListenAndServe(os.Getenv("BENCH_PPROF"), nil)) }()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := app.Run(ctx, cfg, log); err != nil {
		log.Error("rotatord failed", "error", err)
		return 1
	}
	return 0
}
