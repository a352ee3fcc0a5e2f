package pool

import (
	"sync"
	"time"
)

const (
	// minPatience is long for a commit and short for a caller.
	minPatience = 100 * time.Millisecond
	// maxPatience keeps the take-over of a dead holder's lock well under a second.
	maxPatience = 600 * time.Millisecond
	// patienceFactor is how many ordinary commits a holder may take.
	patienceFactor = 8
)

// patience is how long a holder's lock is respected, or an answer waited for: it follows the measured time of a commit.
type patience struct {
	mu   sync.Mutex // protects the following field
	mean time.Duration
}

// observe adds a measured commit to a moving mean over about eight of them. One that took longer than is waited for says no
// more than that: it may be this process that stood still.
func (p *patience) observe(d time.Duration) {
	d = min(d, maxPatience/patienceFactor)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mean == 0 {
		p.mean = d
		return
	}
	p.mean += (d - p.mean) / 8
}

func (p *patience) get() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(minPatience, min(patienceFactor*p.mean, maxPatience))
}
