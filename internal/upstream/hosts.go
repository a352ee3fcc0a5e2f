package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// A host that fails is left alone: for about firstPause, then for twice as long each time, up to maxPause.
const (
	firstPause = time.Second
	maxPause   = 2 * time.Minute
)

// host is what is remembered of one. Hosts are those of the pools' base URLs, so there are few.
type host struct {
	room chan struct{}

	mu       sync.Mutex // protects the following fields
	failures int        // in a row
	failedAt time.Time
	until    time.Time // not to be asked before
}

func (c *Client) host(name string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[name]
	if h == nil {
		h = &host{room: make(chan struct{}, c.cfg.PerHost)}
		c.hosts[name] = h
	}
	return h
}

// enter waits for room, first at the host, so that one that hangs does not take the room of the others. The wait is
// bounded as a call is; whoever waited in vain has asked nothing.
func (c *Client) enter(ctx context.Context, h *host) (leave func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, errNoRoom)
	defer cancel()
	for _, room := range []chan struct{}{h.room, c.room} {
		select {
		case room <- struct{}{}:
			continue
		case <-ctx.Done():
		}
		if room == c.room {
			<-h.room
		}
		return nil, context.Cause(ctx)
	}
	return func() { <-c.room; <-h.room }, nil
}

// leftAloneUntil is zero for a host that may be asked.
func (h *host) leftAloneUntil(now time.Time) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Before(h.until) {
		return h.until
	}
	return time.Time{}
}

// outcome is what a call says of its host.
type outcome int

const (
	nothing outcome = iota // the caller went away
	works
	fails
	throttles
)

// outcomeOf tells the host's own trouble from that of a key: a refusal of a key is an answer like any other.
func outcomeOf(ctx context.Context, kind Kind, r Response, err error) outcome {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return nothing
	case err != nil, r.Status >= 500:
		return fails
	case r.Status == 429 && !aboutMoney(kind, r):
		return throttles
	}
	return works
}

// aboutMoney reports whether a 429 is about a budget, and so says nothing of how often the host may be asked.
func aboutMoney(kind Kind, r Response) bool {
	a := newAnswer(r)
	if rule := rulesOf(kind).match(a); rule != nil && rule.Verdict == Rotate.String() {
		return true
	}
	return strings.EqualFold(a.kind, budgetExceeded)
}

// note remembers what a call said. Calls that were under way together fail once.
func (h *host) note(began, now time.Time, o outcome, r Response) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case o == nothing:
	case o == works:
		if began.After(h.failedAt) { // else it says nothing of how the host is since
			h.failures, h.until = 0, time.Time{}
		}
	case !began.After(h.failedAt) && h.failures > 0:
	default:
		h.failedAt, h.until = now, now.Add(pause(h.failures))
		h.failures++
	}
	if o != throttles {
		return
	}
	if asked := retryAfter(newAnswer(r), now); asked.After(h.until) {
		h.until = clamp(asked, now, maxPause)
	}
}

// pause is how long a host rests after it has failed a number of times before: between half of it and all, so that
// replicas and pools do not come back together.
func pause(failures int) time.Duration {
	d := maxPause
	if failures < 8 { // beyond, 1 s doubled is more
		d = min(firstPause<<failures, maxPause)
	}
	return d/2 + rand.N(d/2)
}
