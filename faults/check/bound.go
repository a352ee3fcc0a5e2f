package check

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/history"
)

// The bound on rotations: in a pool whose spec states one, never more than N rotations and parkings in any window.
//
// When a revision was committed is not known, only that it was between the date in its token and its arrival at the
// recorder. So what is judged is from the date of the first to the arrival of the last: as they run on one machine, with
// one clock, less than the window between those is surely too little, whatever was paused in between, and needs no slack.

// spend is a token that a rotation, or one that begins to wait, has used.
type spend struct {
	key      string
	revision int64
	used     int64 // the date in it, on the history's clock
	seen     int64 // when it arrived
}

// bound is the one a pool's spec states. The default is not judged: the workload states all of its bounds.
func (p *record) bound() (limit int, window time.Duration, stated bool) {
	if p == nil || p.Spec.RotationBound.Rotations == nil {
		return 0, 0, false
	}
	window, err := time.ParseDuration(p.Spec.RotationBound.Window)
	if err != nil {
		window = time.Minute
	}
	return *p.Spec.RotationBound.Rotations, window, true
}

// spent: a rotation, or one that begins to wait, uses one token of its pool's bound, and none without a bound. No caller of
// the workload overrides it.
func (s *step) spent(id string) {
	pool, key, _ := strings.Cut(id, "/")
	limit, _, stated := s.is("pools/" + pool).bound()
	used := s.changed["tokens"]
	switch {
	case !stated:
		return
	case limit == 0 && len(used) > 0:
		s.violate("P9", id, "a rotation in a pool without a bound uses tokens %v", used)
		return
	case limit == 0:
		return
	case len(used) != 1:
		s.violate("P9", id, "a rotation in a pool with a bound uses tokens %v, not one", used)
		return
	}
	_, name, _ := strings.Cut(used[0], "/")
	if n, err := strconv.Atoi(name); err != nil || n < 0 || n >= limit {
		s.violate("P9", id, "token %s is used, and the bound is %d", name, limit)
	}
	token := s.is("tokens/" + used[0])
	s.world.spends[pool] = append(s.world.spends[pool], spend{key, s.revision, s.since(token.UsedAt), s.arrived})
}

// bounds: no window holds more than the bound.
func (r *run) bounds() {
	for pool, spends := range r.world.spends {
		limit, window, stated := r.world.at["pools/"+pool].bound()
		if !stated || limit == 0 {
			continue
		}
		for i := limit; i < len(spends); i++ {
			first, last := spends[i-limit], spends[i]
			if apart := time.Duration(last.seen - first.used); apart < window {
				r.add(Violation{Invariant: "P9", Pool: pool, Key: last.key, Revision: last.revision,
					Text: fmt.Sprintf("%d rotations or parkings, from revision %d on, within %v; the bound is %d in %v", limit+1, first.revision, apart, limit, window)})
			}
		}
	}
}

// atBound reports whether a refusal at the bound may have been right: as many tokens had been used in a window that ends
// within the call, as far as a replica can have known late. It counts a use from when it was shown it, and in a fault that may
// be when the fault is over.
func (r *run) atBound(op history.Op) bool {
	limit, window, stated := r.world.at["pools/"+op.Pool].bound()
	if !stated || limit == 0 {
		return false
	}
	from := op.Start - int64(window+answerGrace)
	since := from
	for _, f := range r.Faults {
		if r.since(f.Start) <= op.End && from <= r.since(f.served()) {
			since = min(since, r.since(f.Start)-int64(answerGrace))
		}
	}
	n := 0
	for _, s := range r.world.spends[op.Pool] {
		if s.used <= op.End && s.seen >= since {
			n++
		}
	}
	return n >= limit
}
