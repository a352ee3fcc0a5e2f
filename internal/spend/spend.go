// Package spend watches what keys have spent and has those rotated that come to the end of their budget.
//
// It promises:
//   - The nearer a key is to its budget the more often it is looked at, and one that was never looked at is looked at at
//     once. How many are looked at together is bounded, in all and for each upstream.
//   - A rotation that it asks for is for the life whose spend it read. Whoever else asks for the same, there is one.
//   - A reading that fails means nothing: it is made again, later each time.
//   - What was read is written only when it matters, and a change of leader alone brings no storm of readings.
//
// It does not promise that a key never overspends: upstreams write spend with a delay, and what happens between two looks
// is seen at the second. Nor that a key is looked at by one replica only: two may believe for a while that they lead.
package spend

import (
	"context"
	"log/slog"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// Source is the source of the rotations that are asked for here.
const Source = "spend"

// Target is a key to be asked about, and where.
type Target struct {
	Kind       pool.UpstreamKind
	BaseURL    string
	Credential pool.Secret // the pool's own; zero: it has none, and the key is asked about with itself
	Key        pool.Secret
}

// Reading is what an upstream says of a key.
type Reading struct {
	SpendUSD  *float64 // nil: it does not say, which it may with Exceeded only
	BudgetUSD *float64 // nil: it does not say
	Exceeded  bool     // it refuses the key because its budget is spent
}

// Reader asks upstreams. Calls are bounded, block until ctx ends at the latest and may be repeated.
type Reader interface {
	Read(ctx context.Context, t Target) (Reading, error)
}

// Opener opens sealed secrets.
type Opener interface {
	Open(pool, keyID string, sealed pool.Sealed) (pool.Secret, error)
}

// Results of a check, as they are counted.
const (
	ResultOK             = "ok"              // read, and enough is left
	ResultFailed         = "failed"          // not read
	ResultRotated        = "rotated"         // this check's rotation
	ResultAlreadyRotated = "already_rotated" // somebody else's was first
	ResultHeld           = "held"            // it has to be rotated and cannot be: paused, at its bound, waiting for stock
)

// Observer is told what the checker does. Calls must not block.
type Observer interface {
	// SpendChecked: a key of a pool was looked at.
	SpendChecked(pool, result string)
	// SpendDue: so many keys should be looked at now, the first of them for so long. Both are 0 where nobody checks.
	SpendDue(keys int, lag time.Duration)
}

// Config is what a Checker works with.
type Config struct {
	Mirror *pool.Mirror
	Sealer Opener
	Reader Reader
	// Rotate is (*pool.Rotator).Rotate, and Record is (*pool.Admin).RecordSpend.
	Rotate   func(context.Context, pool.RotateRequest) (*pool.RotateResult, error)
	Record   func(ctx context.Context, l pool.Life, spend, budget float64, at time.Time) error
	Observer Observer
	Log      *slog.Logger
	AtOnce   int // checks under way; default: 16
	PerHost  int // of them at one upstream; default: 4
}

// Checker is the spend checker of a replica.
type Checker struct{ Config }

// New returns a Checker, which does nothing until Run.
func New(cfg Config) *Checker {
	if cfg.AtOnce == 0 {
		cfg.AtOnce = 16
	}
	if cfg.PerHost == 0 {
		cfg.PerHost = 4
	}
	return &Checker{cfg}
}

// lookPause is the shortest time between two looks at what is due, however fast the records change.
const lookPause = 200 * time.Millisecond

// Run checks until ctx ends, for as long as this replica leads. It returns when no check is under way any more.
func (c *Checker) Run(ctx context.Context) {
	changed, stop := c.Mirror.WatchAll()
	defer stop()
	defer c.Observer.SpendDue(0, 0)
	t := &term{Checker: c, keys: make(map[pool.Life]*watched), failing: make(map[string]map[pool.Life]bool), ended: make(chan struct{}, 1)}
	defer t.checks.Wait()
	for ctx.Err() == nil {
		next := time.NewTimer(time.Until(t.look(ctx)))
		select {
		case <-changed:
		case <-t.ended:
		case <-next.C:
		case <-ctx.Done():
		}
		next.Stop()
		pause(ctx, lookPause)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
