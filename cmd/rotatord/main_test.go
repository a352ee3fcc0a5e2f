package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/rotatord/rotatord/internal/app"
)

func TestRunWithoutService(t *testing.T) {
	for _, c := range []struct {
		args           []string
		environ        []string
		code           int
		stdout, stderr string // what each begins with; "" means empty
	}{
		{[]string{"--help"}, nil, 0, "rotatord makes one rotation", ""},
		{[]string{"--version"}, nil, 0, "rotatord ", ""},
		{[]string{"--session-ttl", "1s"}, nil, 2, "", "rotatord: --session-ttl: 1s is below 2s"},
		{nil, []string{"ROTATORD_LISTN=x"}, 2, "", "rotatord: environment variable ROTATORD_LISTN is not known (did you mean ROTATORD_LISTEN?)"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(c.args, c.environ, &stdout, &stderr)
		if code != c.code {
			t.Errorf("%v %v: exit code %d, want %d", c.args, c.environ, code, c.code)
		}
		for _, out := range []struct{ name, got, want string }{{"stdout", stdout.String(), c.stdout}, {"stderr", stderr.String(), c.stderr}} {
			if !strings.HasPrefix(out.got, out.want) || out.want == "" && out.got != "" {
				t.Errorf("%v %v: %s is %q, want it to begin with %q", c.args, c.environ, out.name, out.got, out.want)
			}
		}
	}
}

func TestServe(t *testing.T) {
	failure := errors.New("broken")
	untilStopped := func(ctx context.Context) error { <-ctx.Done(); return nil }
	hanging := func(context.Context) error { select {} }
	for _, c := range []struct {
		name    string
		service func(context.Context) error
		signals []os.Signal
		code    int
	}{
		{"ends by itself", func(context.Context) error { return nil }, nil, 0},
		{"fails", func(context.Context) error { return failure }, nil, 1},
		{"stops when asked", untilStopped, []os.Signal{syscall.SIGTERM}, 0},
		{"fails to stop cleanly", func(ctx context.Context) error { <-ctx.Done(); return failure }, []os.Signal{syscall.SIGINT}, 1},
		{"hangs, second signal", hanging, []os.Signal{syscall.SIGTERM, syscall.SIGINT}, 1},
	} {
		signals := make(chan os.Signal, len(c.signals))
		for _, s := range c.signals {
			signals <- s
		}
		if code := serve(slog.New(slog.DiscardHandler), signals, c.service); code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.name, code, c.code)
		}
	}
}

// An orchestrator may change its mind while etcd reads its log.
func TestStoppedBeforeItIsUp(t *testing.T) {
	cfg, err := app.Parse([]string{
		"--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--embedded-etcd-listen", "127.0.0.1:0",
	}, nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	code := serve(log, signals, func(ctx context.Context) error {
		<-ctx.Done() // the signal has come
		return app.Run(ctx, cfg, log)
	})
	if code != exitOK {
		t.Errorf("exit code %d, want %d: it was stopped as asked", code, exitOK)
	}
}
