// Command bench is the performance test: it runs real processes of rotatord and etcd, measures them through gRPC, and
// prints each figure beside its limit, measured in the same run on the same machine.
//
// The limit of a rotation is its own etcd transaction, sent by the benchmark without rotatord: the same compares,
// operations and sizes, at the same concurrency, on 1, 4 or 16 connections, whichever is best. The limit of an answer
// from memory is an empty unary call to a bare gRPC server. Every measurement has a fresh etcd, and in the rounds figures
// and limits take turns.
//
// It exits with 0 if all was measured, whether or not the figures are what is wanted; with 1 if a row could not be
// measured or -strict was given and a needed figure is missed; with 2 if it could not be run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const (
	exitOK     = 0
	exitMissed = 1
	exitFailed = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) == 2 && args[0] == serveEmpty {
		return failure(stderr, serveEmptyCalls(ctx, args[1]))
	}
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return failure(stderr, err)
	}
	b, err := newBench(ctx, o, stdout)
	if err != nil {
		return failure(stderr, err)
	}
	err = errors.Join(b.measureAll(ctx), b.report.write(o.json), b.close())
	switch {
	case err != nil:
		return failure(stderr, err)
	case len(b.report.Errors) > 0, o.strict && b.report.missed():
		return exitMissed
	}
	return exitOK
}

func failure(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "bench:", err)
	return exitFailed
}
