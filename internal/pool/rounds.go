package pool

import (
	"context"
	"sync"
)

// rounds lets callers who want something read or written gather while that is under way for others, and then does it once
// for all of them. So N callers cost few requests, and a record that many want to change is changed by one writer of this
// process. A caller never gets what began before it asked: that could miss what the caller already knows.
type rounds[K comparable, In, Out any] struct {
	mu    sync.Mutex // protects the following field and all rounds that have not begun
	under map[K]*round[In, Out]
}

// round is one piece of work. While it is under way, those who come gather in its next.
type round[In, Out any] struct {
	wanted []In
	next   *round[In, Out]
	done   chan struct{} // closed when out and err are set
	out    Out
	err    error
}

// do joins the next round of key that begins, and waits for its end, or returns the error of ctx. The work runs on a context
// of its own: a caller who goes away must not take the others' along.
func (s *rounds[K, In, Out]) do(ctx context.Context, r *Rotator, key K, in In, work func(context.Context, []In) (Out, error)) (out Out, err error) {
	round, err := s.join(r, key, in, work)
	if err != nil {
		return out, err
	}
	select {
	case <-round.done:
		return round.out, round.err
	case <-ctx.Done():
		return out, ctx.Err()
	}
}

func (s *rounds[K, In, Out]) join(r *Rotator, key K, in In, work func(context.Context, []In) (Out, error)) (*round[In, Out], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if under := s.under[key]; under != nil {
		if under.next == nil {
			under.next = &round[In, Out]{done: make(chan struct{})}
		}
		under.next.wanted = append(under.next.wanted, in)
		return under.next, nil
	}
	first := &round[In, Out]{wanted: []In{in}, done: make(chan struct{})}
	if !r.spawn(func() { s.run(r, key, first, work) }) {
		return nil, errStopping
	}
	if s.under == nil {
		s.under = make(map[K]*round[In, Out])
	}
	s.under[key] = first
	return first, nil
}

// run does a round's work, and then that of the rounds that gathered meanwhile.
func (s *rounds[K, In, Out]) run(r *Rotator, key K, round *round[In, Out], work func(context.Context, []In) (Out, error)) {
	for round != nil {
		ctx, cancel := context.WithTimeout(r.base, r.Budget)
		round.out, round.err = work(ctx, round.wanted)
		cancel()
		close(round.done)
		s.mu.Lock()
		next := round.next
		if next == nil {
			delete(s.under, key)
		} else {
			s.under[key] = next
		}
		s.mu.Unlock()
		round = next
	}
}
