// Package load makes calls as fast as they are answered, a fixed number of them at a time, and notes how long each took.
package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rotatord/rotatord/bench/stat"
)

// Call makes one call. An error ends the measurement.
type Call func(ctx context.Context) error

// Options say how much load to make.
type Options struct {
	Workers int           // callers, each with one call at a time
	WarmUp  time.Duration // before the measurement; what ends in it does not count
	Time    time.Duration // of the measurement
	// Begin is called when the measurement begins; what it returns is called at its end. They may be nil.
	Begin func() (end func())
}

// Result is what was measured.
type Result struct {
	Calls int     `json:"calls"`
	Rate  float64 `json:"rate"` // calls a second
	stat.Latencies
}

type phase = int32

const (
	warming phase = iota
	measuring
	over
)

// Run has each worker make calls one after the other; worker returns the calls of the i-th. A call counts if it ended
// during the measurement.
func Run(ctx context.Context, o Options, worker func(i int) Call) (*Result, error) {
	var now atomic.Int32
	var mu sync.Mutex
	var all []time.Duration
	work, wctx := errgroup.WithContext(ctx)
	for i := range o.Workers {
		call := worker(i)
		work.Go(func() error {
			took, err := repeat(wctx, &now, call)
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
			return err
		})
	}
	elapsed := o.phases(wctx, &now)
	if err := work.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &Result{Calls: len(all), Rate: float64(len(all)) / elapsed.Seconds(), Latencies: stat.LatenciesOf(all)}, nil
}

func repeat(ctx context.Context, now *atomic.Int32, call Call) (took []time.Duration, err error) {
	took = make([]time.Duration, 0, 1<<12)
	for now.Load() != over {
		began := time.Now()
		if err := call(ctx); err != nil {
			return nil, err
		}
		if now.Load() == measuring {
			took = append(took, time.Since(began))
		}
	}
	return took, nil
}

// phases goes through the phases, and returns how long the measurement took.
func (o *Options) phases(ctx context.Context, now *atomic.Int32) time.Duration {
	defer now.Store(over)
	pause(ctx, o.WarmUp)
	var end func()
	if o.Begin != nil {
		end = o.Begin()
	}
	began := time.Now()
	now.Store(measuring)
	pause(ctx, o.Time)
	now.Store(over)
	elapsed := time.Since(began)
	if end != nil {
		end()
	}
	return elapsed
}

// pause lets the load run for a time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
