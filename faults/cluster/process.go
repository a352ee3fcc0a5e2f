package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is one program under test. All its lives write to one log.
type Process struct {
	Name    string
	command []string
	env     []string
	dir     string

	mu      sync.Mutex // protects the following fields
	cmd     *exec.Cmd
	ended   chan struct{} // of the current life
	stopped bool          // by SIGSTOP
	wanted  bool          // it should run: an end is a fault of the program
	died    []string      // ends nobody asked for
}

// Start begins a life of the process; it must not run.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, append(environ(), p.env...), log, log
	cmd.SysProcAttr = childAttributes()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	p.cmd, p.ended, p.stopped, p.wanted = cmd, make(chan struct{}), false, true
	go p.await(cmd, p.ended)
	return nil
}

// replace changes the program of the lives to come, with one more entry of the environment.
func (p *Process) replace(program, env string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.command[0] = program
	p.env = append(p.env, env) // the last one of a name counts
}

// Log is the file the process logs to.
func (p *Process) Log() string { return p.dir + "/" + p.Name + ".log" }

func (p *Process) await(cmd *exec.Cmd, ended chan struct{}) {
	err := cmd.Wait()
	p.mu.Lock()
	if p.wanted {
		p.died = append(p.died, fmt.Sprintf("%s ended by itself: %v", p.Name, err))
	}
	p.mu.Unlock()
	close(ended)
}

// Running reports whether the process lives, stopped or not.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

func (p *Process) running() bool {
	if p.ended == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Expect says that the process is about to end by itself, as at a trap.
func (p *Process) Expect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = false
}

// Ended is closed at the end of the current life.
func (p *Process) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// Died lists the ends nobody asked for.
func (p *Process) Died() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.died...)
}

// Signal sends a signal to a process that runs.
func (p *Process) signal(s syscall.Signal, wanted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		p.wanted = wanted
		p.stopped = s == syscall.SIGSTOP
		_ = p.cmd.Process.Signal(s)
	}
}

// Stop stops the process where it stands, until Continue.
func (p *Process) Stop() { p.signal(syscall.SIGSTOP, true) }

// Continue undoes Stop.
func (p *Process) Continue() { p.signal(syscall.SIGCONT, true) }

// Kill ends the process without warning and waits until it is gone.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL, false)
	if ended := p.Ended(); ended != nil {
		<-ended
	}
}

var errHangs = errors.New("it still runs after it was asked to stop")

// Terminate asks the process to end, and ends it after limit.
func (p *Process) Terminate(limit time.Duration) error {
	p.signal(syscall.SIGTERM, false)
	ended := p.Ended()
	if ended == nil {
		return nil
	}
	select {
	case <-ended:
		return nil
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s: %w", p.Name, errHangs)
	}
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
