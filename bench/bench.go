package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rotatord/rotatord/internal/seal"
)

// scenario is a group of rows that are measured together.
type scenario struct {
	name    string
	measure func(b *bench, ctx context.Context) error
}

func scenarios() []scenario {
	return []scenario{
		{"rotate", (*bench).rotate},
		{"already", (*bench).already},
		{"getkeys", (*bench).getKeys},
		{"storm", (*bench).storm},
		{"handover", (*bench).handover},
		{"growth", (*bench).growth},
		{"idle", (*bench).idle},
	}
}

func scenarioNames() (names []string) {
	for _, s := range scenarios() {
		names = append(names, s.name)
	}
	return names
}

// bench is one run.
type bench struct {
	options
	programs
	dir    string // of the run
	keyset string // file
	sealer *seal.Keyset
	report *report
	out    io.Writer
	began  time.Time
	stock  map[string]int // transactions a second that suffice for a measurement, by its name
}

// newBench builds what the chosen rows need.
func newBench(ctx context.Context, o options, out io.Writer) (_ *bench, err error) {
	b := &bench{options: o, out: out, began: time.Now(), stock: make(map[string]int)}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(o.dir, "bench-"); err != nil {
		return nil, err
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return nil, err
	}
	b.report = newReport(out, &b.options)
	b.keyset = filepath.Join(b.dir, "keyset.json")
	if b.sealer, err = seal.Create(b.keyset); err == nil {
		err = b.build(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// measureAll measures what was chosen and prints it. What cannot be measured is reported, and the rest goes on.
func (b *bench) measureAll(ctx context.Context) error {
	defer b.report.print()
	for _, s := range scenarios() {
		if !b.wants(s.name) {
			continue
		}
		err := s.measure(b, ctx)
		if ctx.Err() != nil {
			return errors.New("it was interrupted")
		}
		if err != nil {
			b.report.fail(s.name, err)
		}
	}
	return nil
}

// log tells how far the run is.
func (b *bench) log(format string, args ...any) {
	fmt.Fprintf(b.out, "%7.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) close() error {
	if b.keep {
		b.log("the logs are in %s", b.dir)
		return nil
	}
	return os.RemoveAll(b.dir)
}
