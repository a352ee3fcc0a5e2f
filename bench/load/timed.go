package load

import (
	"context"
	"time"

	"github.com/rotatord/rotatord/bench/stat"
)

// TimedCall makes one call, and whatever has to be done around it, and says how long the call alone took.
type TimedCall func(ctx context.Context) (took time.Duration, err error)

// RunTimed has one caller make calls one after the other. The rate includes what is done around them.
func RunTimed(ctx context.Context, o Options, call TimedCall) (*Result, error) {
	for until := time.Now().Add(o.WarmUp); time.Now().Before(until); {
		if _, err := call(ctx); err != nil {
			return nil, err
		}
	}
	var all []time.Duration
	end := func() {}
	if o.Begin != nil {
		end = o.Begin()
	}
	began := time.Now()
	for time.Since(began) < o.Time {
		took, err := call(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, took)
	}
	elapsed := time.Since(began)
	end()
	return &Result{Calls: len(all), Rate: float64(len(all)) / elapsed.Seconds(), Latencies: stat.LatenciesOf(all)}, nil
}
