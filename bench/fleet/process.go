// Package fleet runs the processes that are measured, on loopback: etcd members, replicas of rotatord, and a bare gRPC
// server, each with its log in a directory of the run.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is one program that is measured.
type Process struct {
	Name    string
	dir     string
	command []string
	env     []string
	cmd     *exec.Cmd
	ended   chan struct{} // closed when the process is gone
}

// start begins a life of the process. Lives of one process follow each other.
func (p *Process) start() error {
	log, err := os.OpenFile(p.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(p.command[0], p.command[1:]...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr, p.cmd.SysProcAttr = append(environ(), p.env...), log, log, childAttributes()
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	ended := make(chan struct{})
	p.ended = ended
	go func(cmd *exec.Cmd) { _ = cmd.Wait(); close(ended) }(p.cmd)
	return nil
}

// Log is the file the process logs to.
func (p *Process) Log() string { return filepath.Join(p.dir, p.Name+".log") }

// PID is the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop stops the process where it stands, until Continue.
func (p *Process) Stop() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// Continue undoes Stop.
func (p *Process) Continue() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// Kill ends the process without warning and waits until it is gone.
func (p *Process) Kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// until asks again and again until ask succeeds. It fails when ctx ends or the process does.
func (p *Process) until(ctx context.Context, ask func(context.Context) error) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		actx, cancel := context.WithTimeout(ctx, time.Second)
		err := ask(actx)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended by itself:\n%s", p.Name, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve: %w\n%s", p.Name, err, p.tail())
		case <-tick.C:
		}
	}
}

// tail is the end of the log.
func (p *Process) tail() string {
	const lines = 10
	text, err := os.ReadFile(p.Log())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// environ leaves out what would configure the programs.
func environ() (env []string) {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "ROTATORD_") && !strings.HasPrefix(name, "ETCD") && !strings.HasPrefix(name, "FAULTS_") {
			env = append(env, entry)
		}
	}
	return env
}

// lastPort is where the search for free ports goes on. They are below the range that the kernel takes for outgoing
// connections, and no two processes of a run share one.
var lastPort atomic.Int32

func init() { lastPort.Store(int32(11000 + 50*rand.IntN(300))) }

var errNoPort = errors.New("no port is free below 32000")

// Address finds a free address on loopback.
func Address() (string, error) {
	for {
		port := lastPort.Add(1)
		if port > 32000 {
			return "", errNoPort
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
}

// addresses finds as many free addresses as it is given variables.
func addresses(to ...*string) (err error) {
	for _, a := range to {
		if *a, err = Address(); err != nil {
			return err
		}
	}
	return nil
}
