package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/internal/recorder"
)

// inputFile has what a check needs beside the history and the revisions, which are in files of their own.
const inputFile = "input.json"

// keepInput makes it possible to check the run again.
func (p *part) keepInput(in check.Input) error {
	in.Ops, in.Recording, in.Files = nil, nil, nil
	text, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir, inputFile), text, 0o600)
}

// again checks what was kept of a run with the checks as they are now.
func (o *options) again(stdout, stderr io.Writer) int {
	code, checked := exitOK, 0
	for _, mode := range []string{modeCluster, modeEmbedded} {
		p := &part{Mode: mode, options: o, dir: filepath.Join(o.recheck, mode), out: stdout}
		if _, err := os.Stat(p.dir); errors.Is(err, os.ErrNotExist) {
			continue
		}
		in, err := p.keptInput()
		if err != nil {
			fmt.Fprintln(stderr, "faults:", err)
			return exitFailed
		}
		checked++
		report := check.Run(*in)
		fmt.Fprintf(stdout, "%s:\n", mode)
		if report.Write(stdout); !report.OK() {
			code = exitViolated
		}
	}
	if checked == 0 {
		fmt.Fprintf(stderr, "faults: %s holds nothing that a run has kept: name the directory that the run printed\n", o.recheck)
		return exitFailed
	}
	return code
}

func (p *part) keptInput() (*check.Input, error) {
	text, err := os.ReadFile(filepath.Join(p.dir, inputFile))
	if err != nil {
		return nil, err
	}
	in := &check.Input{QuorumLoss: p.quorumLoss}
	if err := json.Unmarshal(text, in); err != nil {
		return nil, fmt.Errorf("%s: %w", inputFile, err)
	}
	if in.Files, err = p.searched(); err != nil { // where they are now
		return nil, err
	}
	if in.Ops, err = lines[history.Op](filepath.Join(p.dir, "history.jsonl")); err != nil {
		return nil, err
	}
	in.Recording, err = lines[recorder.Revision](filepath.Join(p.dir, "revisions.jsonl"))
	return in, err
}

// lines reads a file with a value on each line.
func lines[T any](name string) (all []T, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for d := json.NewDecoder(bufio.NewReader(f)); ; {
		var v T
		switch err := d.Decode(&v); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("%s, value %d: %w", name, len(all)+1, err)
		}
		all = append(all, v)
	}
}
