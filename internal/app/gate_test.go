package app_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/pool"
)

const (
	stepCampaign = pool.StepCampaign
	stepLocked   = pool.StepLocked
	stepRead     = pool.StepRead
	stepSend     = pool.StepSend
	stepCommit   = pool.StepCommit
	stepAnswer   = pool.StepAnswer
)

// gate stops the first rotation that comes to a step, as a paused or dead process would be, until it is opened.
type gate struct {
	step    pool.Step
	apart   bool // the first replica's campaigns are made before their commits
	reached chan struct{}
	way     chan struct{}
	once    sync.Once
	opened  sync.Once
}

func newGate(step pool.Step, apart bool) *gate {
	return &gate{step: step, apart: apart, reached: make(chan struct{}), way: make(chan struct{})}
}

// pass is the hook at each step. It does not look at ctx: a paused process does not either.
func (g *gate) pass(_ context.Context, s pool.Step, _ pool.Life) error {
	if s == g.step {
		stopped := false
		g.once.Do(func() { stopped = true })
		if stopped {
			close(g.reached)
			<-g.way
		}
	}
	return nil
}

// seams puts the gate into the first replica, whose rotations may take long: what is tested is not the bound on them.
func (g *gate) seams(i int) app.Seams {
	if i != 0 {
		return app.Seams{}
	}
	return app.Seams{Steps: g.pass, Budget: time.Minute, CampaignFirst: func() bool { return g.apart }}
}

// ways are how a campaign is made, by what a test calls them.
var ways = map[string]bool{"before the commit": true, "with the commit": false}

func (g *gate) await(t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(20 * time.Second):
		t.Fatalf("no rotation came to step %q", g.step)
	}
}

func (g *gate) open() { g.opened.Do(func() { close(g.way) }) }
