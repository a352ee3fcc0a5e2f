// Package rotatord_test keeps the README and the pages under docs true: it runs the README's commands and checks its Go
// code, its flags and all links.
package rotatord_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Markers, in a comment above a block, that say how the test treats it. Other comments are no markers.
const (
	markNotRun     = "<!-- not run by readme_test: "
	markBackground = "<!-- run by readme_test in the background -->"
)

// block is a fenced block of a Markdown page.
type block struct {
	line     int // of the first line inside
	language string
	marker   string // the comment right above, "" if there is none
	text     string
}

func (b block) String() string {
	return fmt.Sprintf("the block at README.md:%d:\n%s", b.line, b.text)
}

// TestREADMECommands runs the README's shell blocks in order, as they are written. The programs' environment moves
// them to free ports and to a data directory of the test.
func TestREADMECommands(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the real binaries")
	}
	env := environment(t)
	for _, b := range shellBlocks(t) {
		switch {
		case strings.HasPrefix(b.marker, markNotRun):
		case b.marker == markBackground:
			start(t, b, env)
		default:
			run(t, b, env)
		}
		if t.Failed() {
			return // what follows rests on it
		}
	}
}

// environment is that of the README's reader, but for the addresses.
func environment(t *testing.T) map[string]string {
	ports := freePorts(t, 3)
	return map[string]string{
		"ROTATORD_DATA_DIR":             filepath.Join(t.TempDir(), "data"),
		"ROTATORD_EMBEDDED_ETCD_LISTEN": ports[0],
		"ROTATORD_LISTEN":               ports[1],
		"ROTATORD_METRICS_LISTEN":       ports[2],
		"ROTATORD_NAME":                 "readme",
		"ROTATORCTL_SERVER":             ports[1],
		"ETCDCTL_ENDPOINTS":             ports[0],
	}
}

// freePorts are addresses that were free a moment ago. They are all held until the last is chosen, so they differ.
func freePorts(t *testing.T, n int) (addresses []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// shell prepares a block in a shell and a process group of its own, in the root of the repository.
func shell(ctx context.Context, script string, env map[string]string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-e", "-c", script)
	cmd.Env = environ(env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// environ leaves out what an outer make and the machine say about the same things.
func environ(with map[string]string) (env []string) {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		foreign := slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES", "MAKEOVERRIDES"}, name) ||
			strings.HasPrefix(name, "ROTATORD_") || strings.HasPrefix(name, "ROTATORCTL_") || strings.HasPrefix(name, "ETCDCTL_")
		if !foreign {
			env = append(env, entry)
		}
	}
	for name, value := range with {
		env = append(env, name+"="+value)
	}
	return env
}

// run runs a block to its end. make demo, whose replicas choose their own ports, gets none of the addresses.
func run(t *testing.T, b block, env map[string]string) {
	t.Helper()
	if strings.HasPrefix(b.text, "make ") {
		env = nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	began := time.Now()
	out, err := shell(ctx, b.text, env).CombinedOutput()
	if err != nil {
		t.Errorf("%v\nends with: %v\nand prints:\n%s", b, err, out)
		return
	}
	t.Logf("%v(%v) prints:\n%s", b, time.Since(began).Round(time.Millisecond), out)
}

// start starts the daemon and waits until it is ready. It is stopped at the end of the test, and must stop gracefully.
func start(t *testing.T, b block, env map[string]string) {
	t.Helper()
	var log bytes.Buffer // read only after the process has ended
	cmd := shell(context.Background(), "exec "+b.text, env)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: %v", b, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { stop(t, b, cmd, ended, &log) })
	await(t, "http://"+env["ROTATORD_METRICS_LISTEN"]+"/readyz")
}

func stop(t *testing.T, b block, cmd *exec.Cmd, ended <-chan error, log *bytes.Buffer) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		if err != nil || t.Failed() {
			t.Errorf("%vasked to stop it ends with: %v\nand prints:\n%s", b, err, log)
		}
	case <-time.After(time.Minute):
		_ = cmd.Cancel()
		<-ended
		t.Errorf("%vdoes not end within a minute of SIGTERM; it prints:\n%s", b, log)
	}
}

// await polls until url answers 200.
func await(t *testing.T, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Errorf("%s did not answer 200 within a minute", url)
			return
		}
	}
}

// TestREADMEFlags checks what TestREADMECommands does not run: the flags must be there.
func TestREADMEFlags(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a real binary")
	}
	help, err := exec.CommandContext(t.Context(), "go", "run", "./cmd/rotatord", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("rotatord --help: %v\n%s", err, help)
	}
	flags := regexp.MustCompile(`--[a-z][a-z-]*`)
	for _, b := range shellBlocks(t) {
		if !strings.HasPrefix(b.text, "bin/rotatord ") {
			continue
		}
		for _, flag := range flags.FindAllString(b.text, -1) {
			if !regexp.MustCompile(regexp.QuoteMeta(flag) + `\s`).Match(help) {
				t.Errorf("%v\nhas %s, which rotatord --help does not list", b, flag)
			}
		}
	}
}

// TestREADMEGo checks that the Go code shown is code that is compiled.
func TestREADMEGo(t *testing.T) {
	example := read(t, "examples/gateway/main.go")
	found := 0
	for _, b := range blocks(t, "README.md") {
		if b.language != "go" {
			continue
		}
		found++
		if !strings.Contains(example, b.text) {
			t.Errorf("%v\nis not in examples/gateway/main.go as it is written there", b)
		}
	}
	if found == 0 {
		t.Error("README.md has no Go block; this test expects the gateway's")
	}
}

// TestLinks checks that what a page links to in this repository exists.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}

func pages(t *testing.T) []string {
	t.Helper()
	pages := []string{"README.md"}
	err := filepath.WalkDir("docs", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

func shellBlocks(t *testing.T) []block {
	t.Helper()
	found := slices.DeleteFunc(blocks(t, "README.md"), func(b block) bool { return b.language != "sh" })
	if len(found) == 0 {
		t.Fatal("README.md has no sh block")
	}
	return found
}

// blocks takes a page apart.
func blocks(t *testing.T, page string) (found []block) {
	t.Helper()
	var current *block
	marker := ""
	for i, line := range strings.Split(read(t, page), "\n") {
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case current == nil && fence:
			current = &block{line: i + 2, language: language, marker: marker}
		case current == nil:
			marker = ""
			if strings.HasPrefix(line, "<!--") {
				marker = line
			}
		case fence:
			found = append(found, *current)
			current, marker = nil, ""
		default:
			current.text += line + "\n"
		}
	}
	if current != nil {
		t.Fatalf("%s: the block at line %d does not end", page, current.line)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
