// Command mutants proves that the checks of the fault test find bugs: it builds the service with one seeded bug after
// the other, and fails unless each is caught, and the service without one is not.
//
// A bug is an edit of the sources that `go build -overlay` applies.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/cluster"
	"github.com/rotatord/rotatord/faults/overlay"
)

func main() { os.Exit(run()) }

func run() int {
	only := flag.String("only", "", "`regexp` of the mutants to run; default: all")
	length := flag.Duration("duration", 8*time.Second, "how long callers work on each")
	tries := flag.Int("tries", 4, "seeds to try before a mutant counts as not caught; each works twice as long")
	processes := flag.Bool("processes", false, "run those that real processes show on them too, with faults: takes a minute each")
	flag.Parse()
	pattern, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		return 2
	}
	m := &mill{length: *length, tries: *tries, processes: *processes}
	if m.dir, err = os.MkdirTemp("", "mutants"); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		return 2
	}
	defer func() { _ = os.RemoveAll(m.dir) }()
	if err := m.all(pattern); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		return 1
	}
	return 0
}

// mill builds and runs.
type mill struct {
	dir       string
	length    time.Duration
	tries     int
	processes bool
}

// all checks the edits first: one that does not fit is known at once.
func (m *mill) all(pattern *regexp.Regexp) error {
	for _, mu := range mutants {
		if _, err := overlay.Apply(mu.overlay()); err != nil {
			return fmt.Errorf("mutant %q: %w", mu.name, err)
		}
	}
	var errs []error
	if pattern.String() == "" {
		errs = append(errs, m.sound())
	}
	fmt.Printf("%-48s %-29s %-8s %s\n", "mutant", "spoilt by", "after", "caught by")
	for _, mu := range mutants {
		if pattern.MatchString(mu.name) {
			if !mu.versions {
				errs = append(errs, m.catch(mu))
			}
			if (m.processes || mu.versions) && mu.faults != "" {
				errs = append(errs, m.catchInProcesses(mu))
			}
		}
	}
	return errors.Join(errs...)
}

// sound makes sure that what catches the mutants finds nothing in the service itself.
func (m *mill) sound() error {
	program, err := m.build(mutant{name: "none"}, "./faults/mutants/probe")
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, mu := range mutants {
		if seen[mu.spoil] {
			continue
		}
		seen[mu.spoil] = true
		out, caught, err := m.probe(program, mu.spoil, m.length, 1)
		if err != nil {
			return err
		}
		if caught {
			return fmt.Errorf("the service itself, without a seeded bug, is found to break promises when spoilt by %q:\n%s", mu.spoil, out)
		}
	}
	return nil
}

// catch runs one mutant until it is caught.
func (m *mill) catch(mu mutant) error {
	program, err := m.build(mu, "./faults/mutants/probe")
	if err != nil {
		return err
	}
	began := time.Now()
	for try := range m.tries {
		out, caught, err := m.probe(program, mu.spoil, m.length<<try, uint64(try+1))
		if err != nil {
			return fmt.Errorf("mutant %q: %w", mu.name, err)
		}
		if caught {
			row(mu, orNothing(mu.spoil), began, broken(out))
			return nil
		}
	}
	row(mu, orNothing(mu.spoil), began, "NOT CAUGHT")
	return fmt.Errorf("mutant %q was not caught", mu.name)
}

func row(mu mutant, spoilt string, began time.Time, caught string) {
	fmt.Printf("%-48s %-29s %-8v %s\n", mu.name, spoilt, time.Since(began).Round(100*time.Millisecond), caught)
}

// inProcesses is how long the fault test runs on a mutant.
const inProcesses = 40 * time.Second

// catchInProcesses runs the fault test itself on a mutant, with the faults that provoke it.
func (m *mill) catchInProcesses(mu mutant) error {
	harness, err := m.build(mutant{name: "none"}, "./faults")
	if err != nil {
		return err
	}
	program, err := m.build(mu, "./faults/rotatord")
	if err != nil {
		return err
	}
	next := program + "-next"
	if err := overlay.Build(context.Background(), next, "./faults/rotatord", append(mu.overlay(), cluster.NextBuild...)); err != nil {
		return fmt.Errorf("mutant %q: %w", mu.name, err)
	}
	began := time.Now()
	for seed := range m.tries {
		ctx, cancel := context.WithTimeout(context.Background(), inProcesses+4*time.Minute)
		out, caught, err := outcome(exec.CommandContext(ctx, harness, "-binary", program, "-next", next, "-mode", "cluster",
			"-duration", inProcesses.String(), "-seed", fmt.Sprint(seed+1), "-faults", mu.faults))
		cancel()
		switch {
		case err != nil:
			return fmt.Errorf("mutant %q: %w", mu.name, err)
		case caught:
			row(mu, "processes", began, strings.Join(found(out), " "))
			return nil
		}
	}
	row(mu, "processes", began, "NOT CAUGHT")
	return fmt.Errorf("mutant %q was not caught by the fault test under %s", mu.name, mu.faults)
}

var named = regexp.MustCompile(`(?m)^(I[0-9]+|P9|fence|release|phases|upstream|incident|pause|disabled|read|callers|linearizability|recorder|schema) `)

// found lists the invariants a run of the fault test names, each once.
func found(out string) (names []string) {
	for _, match := range named.FindAllStringSubmatch(out, -1) {
		if !slices.Contains(names, match[1]) {
			names = append(names, match[1])
		}
	}
	return names
}

func orNothing(spoil string) string {
	if spoil == "" {
		return "nothing"
	}
	return spoil
}

// broken is the probe's last word: the invariants.
func broken(out string) string {
	_, list, _ := strings.Cut(out, "BROKEN ")
	return strings.TrimSpace(list)
}

// probe runs a program. caught is true if it says that a promise was broken; if it could not tell that is an error.
func (m *mill) probe(program, spoil string, length time.Duration, seed uint64) (out string, caught bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*length+3*time.Minute)
	defer cancel()
	return outcome(exec.CommandContext(ctx, program, "-spoil", spoil, "-duration", length.String(), "-seed", fmt.Sprint(seed)))
}

// outcome runs a program that exits with 1 if it caught something.
func outcome(cmd *exec.Cmd) (out string, caught bool, err error) {
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return text.String(), false, nil
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return text.String(), true, nil
	}
	return "", false, fmt.Errorf("%s could not run: %w\n%s", cmd.Args[0], err, text.String())
}

// build builds a program with a mutant's edits over the sources.
func (m *mill) build(mu mutant, of string) (program string, err error) {
	program = filepath.Join(m.dir, filepath.Base(of))
	if err := overlay.Build(context.Background(), program, of, mu.overlay()); err != nil {
		return "", fmt.Errorf("mutant %q: %w", mu.name, err)
	}
	return program, nil
}

func (mu mutant) overlay() (edits []overlay.Edit) {
	for _, e := range mu.edits {
		edits = append(edits, overlay.Edit{File: e.file, Old: e.old, New: e.new})
	}
	return edits
}
