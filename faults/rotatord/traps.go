package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
)

var steps = []pool.Step{pool.StepCampaign, pool.StepLocked, pool.StepRead, pool.StepSend, pool.StepCommit, pool.StepAnswer,
	phase(lifecycle.StepRead), phase(lifecycle.StepWritten), phase(lifecycle.StepAsk), phase(lifecycle.StepAnswered)}

// phase is a step of a key's phases, by a name that no step of a rotation has.
func phase(s lifecycle.Step) pool.Step { return pool.Step("phase-" + s) }

// trap waits for the n-th rotation, or key in a phase, to come to a step.
type trap struct {
	step  pool.Step
	left  int           // arrivals until it springs
	pause time.Duration // 0: the process dies
}

// pause is a rotation that stood still.
type pause struct {
	Step       pool.Step `json:"step"`
	Pool       string    `json:"pool"`
	Key        string    `json:"key"`
	Generation int64     `json:"generation"`
	Start      time.Time `json:"start"`
	End        time.Time `json:"end"` // zero: it still does
}

// status is what the control socket says.
type status struct {
	Arrivals map[pool.Step]int `json:"arrivals"`
	Sprung   int               `json:"sprung"` // traps, ever
	Armed    int               `json:"armed"`
	Pauses   []*pause          `json:"pauses"`
}

// traps stop or end the process at named steps.
type traps struct {
	log *slog.Logger

	mu       sync.Mutex // protects the following fields
	set      []*trap
	arrivals map[pool.Step]int
	sprung   int
	pauses   []*pause
}

func newTraps(log *slog.Logger) *traps {
	return &traps{log: log, arrivals: make(map[pool.Step]int)}
}

// passPhase is called at each step of a key's phases, as pass is.
func (t *traps) passPhase(ctx context.Context, s lifecycle.Step, rec pool.Record) error {
	l := pool.Life{}
	if rec != nil {
		l.Pool, l.Key = rec.Ref().Pool, rec.Ref().Name
	}
	return t.pass(ctx, phase(s), l)
}

// pass is called at each step of each rotation. A pause does not look at ctx: a paused process does not either.
func (t *traps) pass(_ context.Context, s pool.Step, l pool.Life) error {
	sprung := t.arrive(s)
	switch {
	case sprung == nil:
	case sprung.pause == 0:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	default:
		t.log.Warn("pausing at a step", "step", s, "pool", l.Pool, "key", l.Key, "for", sprung.pause)
		t.hold(&pause{Step: s, Pool: l.Pool, Key: l.Key, Generation: l.Generation, Start: time.Now()}, sprung.pause)
	}
	return nil
}

func (t *traps) hold(p *pause, d time.Duration) {
	t.mu.Lock()
	t.pauses = append(t.pauses, p)
	t.mu.Unlock()
	time.Sleep(d)
	t.mu.Lock()
	p.End = time.Now()
	t.mu.Unlock()
}

func (t *traps) arrive(s pool.Step) (sprung *trap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.arrivals[s]++
	for _, armed := range t.set {
		if armed.step == s {
			armed.left--
		}
	}
	i := slices.IndexFunc(t.set, func(a *trap) bool { return a.step == s && a.left <= 0 })
	if i < 0 {
		return nil
	}
	sprung = t.set[i]
	t.set = slices.Delete(t.set, i, i+1)
	t.sprung++
	return sprung
}

// listen serves the control socket for the life of the process.
func (t *traps) listen(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /arm", t.arm)
	mux.HandleFunc("POST /disarm", t.disarm)
	mux.HandleFunc("GET /status", t.status)
	go func() { _ = http.Serve(l, mux) }()
	return nil
}

// arm sets a trap: step=STEP, n=1.., pause=DURATION (none: crash).
func (t *traps) arm(w http.ResponseWriter, r *http.Request) {
	armed, err := parseTrap(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	t.mu.Lock()
	t.set = append(t.set, armed)
	t.mu.Unlock()
}

func parseTrap(r *http.Request) (*trap, error) {
	t := &trap{step: pool.Step(r.FormValue("step")), left: 1}
	if !slices.Contains(steps, t.step) {
		return nil, fmt.Errorf("step %q is none of %v", t.step, steps)
	}
	var err error
	if n := r.FormValue("n"); n != "" {
		if t.left, err = strconv.Atoi(n); err != nil {
			return nil, err
		}
	}
	if p := r.FormValue("pause"); p != "" {
		t.pause, err = time.ParseDuration(p)
	}
	return t, err
}

func (t *traps) disarm(http.ResponseWriter, *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set = nil
}

func (t *traps) status(w http.ResponseWriter, _ *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = json.NewEncoder(w).Encode(status{Arrivals: t.arrivals, Sprung: t.sprung, Armed: len(t.set), Pauses: t.pauses})
}
