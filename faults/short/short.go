// Package short makes the phases of a replica under test hurry: a run lasts minutes, and the service's own patience with an
// upstream is three quarters of an hour.
package short

import (
	"time"

	"github.com/rotatord/rotatord/internal/lifecycle"
)

// Phases shortens times and numbers. What is promised does not depend on them.
func Phases(c *lifecycle.Config) {
	c.Limits = lifecycle.Limits{
		Call: 2 * time.Second, Margin: 500 * time.Millisecond, Attempts: 4, FirstWait: 200 * time.Millisecond, LongWait: time.Second,
		Recheck: time.Second,
	}
	c.Resync = 5 * time.Second
}
