package pool

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

const (
	// fulfilGrace is how long a replica leaves a rotation that waits to the replica whose share it is.
	fulfilGrace = 300 * time.Millisecond
	// fulfilPause is the shortest time between two looks at what waits, however fast the store changes.
	fulfilPause = 10 * time.Millisecond
	// fulfilRetry is the longest time between two looks while something could be finished.
	fulfilRetry = time.Second
	// fulfilBlocked is how long one is left alone that cannot be made until somebody has looked into it.
	fulfilBlocked = 30 * time.Second
	// fulfilAtOnce bounds the rotations begun in one look.
	fulfilAtOnce = 64
)

// Fulfil finishes rotations that wait for stock until ctx ends. It goes by what is there and not by events, so nothing
// is missed: each replica looks whenever its mirror changes.
func (r *Rotator) Fulfil(ctx context.Context) {
	changed, stop := r.Mirror.WatchAll()
	defer stop()
	since := make(map[Life]time.Time) // when this replica first saw that it could be finished
	begun := make(map[Life]*flight)
	again := make(map[Life]time.Time) // not to be tried before then: it did not work
	for ctx.Err() == nil {
		now := r.Now()
		r.settle(begun, again, now)
		var ready []*Pending
		if r.Ready() == nil {
			ready = r.fulfillable(again)
		}
		for _, p := range due(ready, since, now, r.Replica, r.replicas()) {
			if f, joined := r.join(p.Life, requestOf(p), true); f != nil && !joined {
				begun[p.Life] = f
			}
		}
		var retry <-chan time.Time
		if len(ready) > 0 {
			retry = time.After(fulfilGrace)
		}
		if !wait(ctx, fulfilPause) {
			return
		}
		select {
		case <-changed:
		case <-retry:
		case <-time.After(fulfilRetry):
		case <-ctx.Done():
		}
	}
}

func (r *Rotator) replicas() (names []string) {
	r.Mirror.Read(func(s *Snapshot) { names = s.ReplicaNames() })
	return names
}

// fulfillable lists what could be finished now, oldest first in each pool, as far as the stock and the bound go.
func (r *Rotator) fulfillable(again map[Life]time.Time) (ready []*Pending) {
	now := r.Now()
	r.Mirror.Read(func(s *Snapshot) {
		for name := range s.Waiting {
			p := s.Pool(name)
			if p == nil || p.Pool.Paused || p.Pool.Deleting || p.Stock.Len() == 0 {
				continue
			}
			most := min(p.Stock.Len(), fulfilAtOnce)
			if left := s.Allowance(name, now); left.Bounded {
				most = min(most, left.Left)
			}
			var waiting []*Pending
			for _, w := range p.Pending {
				if again[w.Life].IsZero() {
					waiting = append(waiting, w)
				}
			}
			slices.SortFunc(waiting, func(a, b *Pending) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
			ready = append(ready, waiting[:min(len(waiting), most)]...)
		}
	})
	return ready
}

// due picks what this replica begins now: its own share at once, others' when they have not done it in time. It keeps
// since to what is ready.
func due(ready []*Pending, since map[Life]time.Time, now time.Time, self string, replicas []string) (begin []*Pending) {
	still := make(map[Life]bool, len(ready))
	for _, p := range ready {
		still[p.Life] = true
		first, known := since[p.Life]
		if !known {
			first = now
			since[p.Life] = now
		}
		if Share(p.Key, replicas) == self || now.Sub(first) >= fulfilGrace {
			begin = append(begin, p)
		}
	}
	for life := range since {
		if !still[life] {
			delete(since, life)
		}
	}
	return begin
}

// requestOf is the request that waits, made again. Its trigger may rotate what an operator has not disabled since:
// disabling cancels the wait.
func requestOf(p *Pending) *RotateRequest {
	return &RotateRequest{
		Pool: p.Pool, Key: p.Key, Generation: p.Generation, Trigger: p.Trigger, Source: p.Source, Reason: p.Reason,
		RequestID: p.RequestID, ProxyID: p.ProxyID,
	}
}

// settle puts off what was begun and did not come to a rotation, so that it neither spins nor keeps stock from others.
func (r *Rotator) settle(begun map[Life]*flight, again map[Life]time.Time, now time.Time) {
	for life, f := range begun {
		select {
		case <-f.done:
			delete(begun, life)
			switch {
			case f.rotation != nil:
			case blocked(f.err):
				r.Observer.Blocked(life, f.err)
				again[life] = now.Add(fulfilBlocked)
			default:
				again[life] = now.Add(fulfilRetry)
			}
		default:
		}
	}
	for life, at := range again {
		if !now.Before(at) {
			delete(again, life)
		}
	}
}

// blocked reports whether an error will come again until somebody has looked into it.
func blocked(err error) bool {
	switch ReasonOf(err) {
	case ReasonConflict, ReasonSchemaTooNew, ReasonRecordUnreadable:
		return true
	case "":
		return err != nil && !errors.Is(err, errCancelled) && !errors.Is(err, errIncident) && !errors.Is(err, context.Canceled)
	}
	return false
}
