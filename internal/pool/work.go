package pool

import (
	"context"
	"maps"
	"slices"
	"time"
)

// Wanted is the generation of what is wanted of a record: 1 until somebody raises it.
func (w *Work) Wanted() int64 {
	if w == nil {
		return 1
	}
	return max(w.Generation, 1)
}

// Done reports whether a phase has done its work for what is wanted now. Every handler of a phase asks this first.
func (w *Work) Done(p Phase) bool { return w != nil && w.Observed[p.String()] >= w.Wanted() }

// Was reports whether a phase has ever done its work, for whatever generation.
func (w *Work) Was(p Phase) bool { return w != nil && w.Observed[p.String()] > 0 }

// Next is w on its way into another phase: the phases that are complete with that are marked, and what was only about the
// phase that ends is cleared. An intent stays, with the time until which its call may be under way: before that nobody can
// find out what became of it.
func (w *Work) Next(now time.Time, complete ...Phase) *Work {
	next := &Work{Generation: w.Wanted(), PhaseSince: now}
	if w != nil {
		next.Observed, next.Intent = maps.Clone(w.Observed), w.Intent
		if w.Intent != "" {
			next.NotBefore = w.NotBefore
		}
	}
	for _, p := range complete {
		if next.Observed == nil {
			next.Observed = make(map[string]int64)
		}
		next.Observed[p.String()] = next.Generation
	}
	return next
}

// Settled is w when it is known what became of the call that was announced.
func (w *Work) Settled() *Work {
	next := *w
	next.Intent, next.NotBefore = "", time.Time{}
	return &next
}

// Raised is w with a new generation: everything is to be done again.
func (w *Work) Raised(now time.Time) *Work {
	next := w.Next(now)
	next.Generation++
	return next
}

// MayExist reports whether the key may be at the upstream: it was minted, or asked for with an outcome that is not known.
func (p *Preparation) MayExist() bool {
	return p.Work != nil && (p.Work.Intent != "" || p.Work.Was(PhaseMinting))
}

// Discard is the retired key that a preparation becomes when it is given up although it may be at the upstream: one that
// was never in service and is to be revoked.
//
// A call to mint it may be under way until its time is over; until then nothing is revoked, for the key might come after.
func (p *Preparation) Discard(now time.Time) *Retired {
	w := p.Work.Raised(now)
	w.NotBefore = p.Work.NotBefore
	return &Retired{
		Version: Version{Schema: Schema}, Pool: p.Pool, Key: p.Key, Phase: PhaseRevoking, Sealed: p.Sealed, Labels: p.Labels,
		AddedAt: p.PlannedAt, RetiredAt: now, Work: w,
	}
}

// Served reports whether the key was ever in service. One that was not was given up in preparation.
func (r *Retired) Served() bool { return r.Generation != 0 }

// mayLive reports whether a key of a pool with this spec is still to be revoked, or may be alive at the upstream although
// that was tried.
func (r *Retired) mayLive(s Spec) bool {
	return r.Phase == PhaseRevoking || r.Phase == PhaseOrphaned || r.Phase == PhaseRetired && s.Revokes() && !r.Sealed.IsZero()
}

// TokenStockLow is the name of the token that is there from when a pool's stock falls below its minimum until it is filled.
// Planning a key rewrites it, so that replicas that plan for one pool meet.
const TokenStockLow = "stock-low"

// Stages of a lock that is held for a call to an upstream.
const (
	StageMint   = "mint"
	StageVerify = "verify"
	StageRevoke = "revoke"
)

// errand reports whether a lock is held for such a call.
func (l *Lock) errand() bool {
	return l.Stage == StageMint || l.Stage == StageVerify || l.Stage == StageRevoke
}

// Errand is what a replica wants the lock of a key for that is not in service: a call to its upstream.
type Errand struct {
	Record    Record // must be as it was read
	Stage     string
	BusyUntil time.Time // the call is over by then
	Over      int64     // a lock to be taken over, by its revision; 0: only a free one
}

// Life names the key for its lock. What was never in service has generation 0.
func (e Errand) Life() Life {
	l := Life{Pool: e.Record.Ref().Pool, Key: e.Record.Ref().Name}
	if r, ok := e.Record.(*Retired); ok {
		l.Generation = r.Generation
	}
	return l
}

// AtHome guards that a key is in the home its record says and nowhere else.
func AtHome(rec Record) []Guard {
	guards := []Guard{Same(rec)}
	for _, ref := range HomeRefs(rec.Ref().Pool, rec.Ref().Name) {
		if ref != rec.Ref() {
			guards = append(guards, Absent(ref))
		}
	}
	return guards
}

// Apply sends t again and again until its outcome is known or ctx ends. Its errors are those of Store.Apply; a definite
// no that may not be for good (see Result.Late) is ErrOutcomeUnknown.
func Apply(ctx context.Context, store Store, t *Txn, unknown func(attempt int, err error)) (*Result, error) {
	a := applier{store: store, now: time.Now, unknown: func(_ *Txn, attempt int, err error) { unknown(attempt, err) }}
	res, err := a.apply(ctx, t)
	if err == nil && res.Late {
		return nil, errNotKnown
	}
	return res, err
}

// Refs lists the guarded refs of t, each once.
func (t *Txn) Refs() (refs []Ref) {
	for _, g := range t.If {
		if !slices.Contains(refs, g.Ref) {
			refs = append(refs, g.Ref)
		}
	}
	return refs
}
