package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

var (
	binaries string // directory with rotatord, rotatorctl and the demo itself, as they are now
	top      string // of the repository
)

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "demo-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		binaries = dir
		top, err = filepath.Abs("../..")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	build := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./cmd/rotatord", "./cmd/rotatorctl", "./examples/demo")
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
		return 1
	}
	return m.Run()
}

// inTop runs the demo in the top directory, with its temporary files in a directory that must be empty in the end.
func inTop(t *testing.T) (temp string) {
	t.Helper()
	temp = t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Chdir(top)
	t.Cleanup(func() {
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Errorf("left in the temporary directory: %v %v", left, err)
		}
	})
	return temp
}

func TestDemo(t *testing.T) {
	for name, etcdctl := range map[string]bool{"with the client": false, "with etcdctl": true} {
		t.Run(name, func(t *testing.T) {
			inTop(t)
			bin := t.TempDir()
			for _, program := range []string{"rotatord", "rotatorctl"} {
				link(t, filepath.Join(binaries, program), bin)
			}
			reader := "an etcd client"
			if etcdctl {
				path := filepath.Join(top, "bin/etcdctl")
				if !isFile(path) {
					t.Skip("bin/etcdctl is not there; make etcd builds it")
				}
				link(t, path, bin)
				reader = "etcdctl"
			}
			var stdout, stderr bytes.Buffer
			code := run([]string{"--bin", bin, "--triggers", "24", "--keys", "3"}, &stdout, &stderr)
			if code != exitOK || stderr.Len() > 0 {
				t.Fatalf("exit code %d, and on stderr:\n%s\non stdout:\n%s", code, &stderr, &stdout)
			}
			for _, want := range []string{
				`killed replica-3 with SIGKILL in the middle of it, with [0-9]+ calls under way there`,
				`read from etcd with ` + reader,
				`triggers sent +48 +24 +72`, `rotations made +2 +1 +3`, `backups used +2 +1 +3`,
				`active keys before +10 +10 +20`, `active keys after +10 +10 +20`,
				`bindings that dangle +0 +0 +0`, `distinct outcomes per key +1 +1 +1`,
				`answers +69 already rotated, 3 rotated`, `p50 .*, p99 `, `: 0 broke a promise`, `OK: 72 triggers, 3 keys, 3 rotations`,
			} {
				if !regexp.MustCompile(want).Match(stdout.Bytes()) {
					t.Errorf("the output does not have %q", want)
				}
			}
			if bytes.ContainsRune(stdout.Bytes(), '\x1b') || t.Failed() {
				t.Errorf("the output:\n%s", &stdout)
			}
		})
	}
}

func link(t *testing.T, file, dir string) {
	t.Helper()
	if err := os.Symlink(file, filepath.Join(dir, filepath.Base(file))); err != nil {
		t.Fatal(err)
	}
}

func TestWrongUse(t *testing.T) {
	inTop(t)
	empty := t.TempDir()
	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"-h"}, exitOK, "-triggers"},
		{[]string{"--triggers", "1"}, exitUsage, "takes at least 2"},
		{[]string{"--keys", "21"}, exitUsage, "it can be 1 to 20"},
		{[]string{"all"}, exitUsage, "no arguments"},
		{[]string{"--bin", empty}, exitFailed, "make build"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(c.args, &stdout, &stderr); code != c.code || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("%v: exit code %d, want %d; stderr should have %q and is:\n%s", c.args, code, c.code, c.stderr, &stderr)
		}
	}
}

// A replica that does not start fails the demo, which shows its log and keeps it.
func TestFailureKeepsLogs(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the stand-in is a shell script")
	}
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Chdir(top)
	bin := t.TempDir()
	link(t, filepath.Join(binaries, "rotatorctl"), bin)
	if err := os.WriteFile(filepath.Join(bin, "rotatord"), []byte("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := run([]string{"--bin", bin}, &stdout, &stderr)
	if code != exitFailed || !strings.Contains(stderr.String(), "replica-1 ended instead of starting: exit status 3") || !strings.Contains(stderr.String(), "no such luck") {
		t.Errorf("exit code %d, and on stderr:\n%s", code, &stderr)
	}
	kept, err := filepath.Glob(filepath.Join(temp, "rotatord-demo-*", "replica-1.log"))
	if err != nil || len(kept) != 1 || !strings.Contains(stdout.String(), filepath.Dir(kept[0])) {
		t.Errorf("logs kept: %v %v; stdout:\n%s", kept, err, &stdout)
	}
}

// TestEnded ends the demo from outside: its children must go with it.
func TestEnded(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only the kernel of Linux ends children with their parent")
	}
	for name, sig := range map[string]os.Signal{"SIGINT": os.Interrupt, "SIGTERM": syscall.SIGTERM, "SIGKILL": os.Kill} {
		t.Run(name, func(t *testing.T) {
			if sig == os.Kill {
				t.Setenv("TMPDIR", t.TempDir()) // nobody is left to remove its files
				t.Chdir(top)
			} else {
				inTop(t)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(binaries, "demo"), "--bin", binaries)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			addresses := serving(t, stdout)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, stdout)
			err = cmd.Wait()
			var exit *exec.ExitError
			if sig != os.Kill && (!errors.As(err, &exit) || exit.ExitCode() != exitInterrupted) {
				t.Errorf("the demo ends with %v, want exit code %d", err, exitInterrupted)
			}
			for _, address := range addresses {
				awaitRefusal(ctx, t, address)
			}
		})
	}
}

// serving reads the demo's output until all three replicas serve.
func serving(t *testing.T, stdout io.Reader) (addresses []string) {
	t.Helper()
	lines := bufio.NewScanner(stdout)
	for len(addresses) < 3 && lines.Scan() {
		if _, address, ok := strings.Cut(lines.Text(), " serves on "); ok {
			addresses = append(addresses, address)
		}
	}
	if len(addresses) < 3 {
		t.Fatalf("only %v serve: %v", addresses, lines.Err())
	}
	return addresses
}

func awaitRefusal(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return
		}
		conn.Close()
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Errorf("a replica still listens on %s", address)
			return
		}
	}
}

// TestFailures: every promise that is counted can be seen broken.
func TestFailures(t *testing.T) {
	p := &poolState{name: "p", before: counts{Active: 10, Backups: 5}, after: counts{Active: 11, Backups: 3, Rotations: 2, Dangling: 1}}
	rotated := func(id string, o rotatorv1.Outcome) answer {
		return answer{response: &rotatorv1.RotateKeyResponse{Outcome: o, Rotation: &rotatorv1.Rotation{Id: id}, Key: &rotatorv1.Key{Id: "k-" + id}}}
	}
	d := &demo{pools: []*poolState{p}, targets: []*target{{pool: p, key: &rotatorv1.Key{Id: "k"}, answers: []answer{
		rotated("1", rotatorv1.Outcome_OUTCOME_ROTATED), rotated("2", rotatorv1.Outcome_OUTCOME_ROTATED),
		{err: errors.New("lost")}, {err: errors.New("lost")},
	}}}}
	want := []string{
		"pool p, rotations made: 2, and it should be 1",
		"pool p, backups used: 2, and it should be 1",
		"pool p, active keys after: 11, and it should be 10",
		"pool p, bindings that dangle: 1, and it should be 0",
		"key k has 2 distinct outcomes, and it should be 1: [1 k-1 2 k-2]",
		"of the callers for key k 2 were told that theirs made the rotation, and it should be 1",
		"a caller for key k got no answer: lost",
		"and 1 more callers for key k",
	}
	if diff := cmp.Diff(want, d.failures()); diff != "" {
		t.Errorf("failures: -want +got\n%s", diff)
	}
	d.out = io.Discard
	if err := d.conclude(want); !errors.Is(err, errBroken) {
		t.Errorf("conclude: want %v, got %v", errBroken, err)
	}
}

func TestCount(t *testing.T) {
	s := state{
		"active/p/a": []byte(`{"slot":"s1"}`), "active/q/z": []byte(`{"slot":"s2"}`), "backup/p/b": []byte(`{}`),
		"rotations/p/x/7": []byte(`{}`), "bindings/p/g": []byte(`{"slots":[{"slot":"s1"},{"slot":"s2"}]}`),
	}
	got, err := s.count("p")
	if want := (counts{Active: 1, Backups: 1, Rotations: 1, Dangling: 1}); got != want || err != nil {
		t.Errorf("count: want %+v, got %+v, %v", want, got, err)
	}
	s["bindings/p/h"] = []byte(`{`)
	if _, err := s.count("p"); err == nil || !strings.Contains(err.Error(), "/rotator/bindings/p/h") {
		t.Errorf("a broken record: want an error that names it, got %v", err)
	}
}

func TestPercentile(t *testing.T) {
	var times []time.Duration
	for i := range 200 {
		times = append(times, time.Duration(i+1)*time.Millisecond)
	}
	for p, want := range map[int]time.Duration{50: 100 * time.Millisecond, 99: 198 * time.Millisecond} {
		if got := percentile(times, p); got != want {
			t.Errorf("p%d: want %s, got %s", p, want, got)
		}
	}
	if got := percentile(nil, 99); got != 0 {
		t.Errorf("of nothing: want 0, got %s", got)
	}
}
