package pool

import (
	"context"
	"errors"
	"time"
)

// coolDown is a cool-down that is wanted, with the life as whoever wants it saw it.
type coolDown struct {
	pool   *Pool
	active *Active
	to     Status
	until  time.Time
	rule   string
	req    *RotateRequest // who asks and why
}

// coolReported lets the key of a report rest until a time.
func (r *Rotator) coolReported(ctx context.Context, rep *FailureReport, s *sighting, j Judgement) (*ReportResult, error) {
	if j.Status == StatusError && !s.waits { // it says that the key is bad, and not only that it is busy
		incident, err := r.strike(ctx, s)
		if err != nil {
			return nil, err
		}
		if incident != nil {
			return r.incidentResult(ctx, rep, s.revision, j), nil
		}
	}
	req := r.requestFor(rep, Clip(j.Reason, MaxReason))
	want := coolDown{pool: s.pool, active: s.active, to: j.Status, until: j.Until, rule: j.Rule, req: req}
	a, err := r.cooling.do(ctx, r, s.active.Life(), want, r.coolAll)
	switch {
	case errors.Is(err, errIncident):
		return r.incidentResult(ctx, rep, s.revision, j), nil
	case err != nil:
		return nil, abandoned(err, reportGoesOn)
	}
	revision := max(s.revision, a.ModRevision)
	switch a.StatusAt(r.Now()) {
	case StatusDisabled:
		return r.ignored(ctx, rep, revision, j, ruleDisabled), nil
	case StatusExhausted:
		return r.ignored(ctx, rep, revision, j, firstOf(a.StatusReason, ruleExhausted)), nil
	}
	res := &ReportResult{Verdict: VerdictCoolDown, Rule: j.Rule, Reason: j.Reason, Until: a.StatusUntil, Revision: revision}
	if res.Until.IsZero() { // the rest was over before its turn to be written came
		res.Until = j.Until
	}
	r.goOn(ctx, rep, res, false)
	return res, nil
}

// coolAll writes the longest of the cool-downs that are wanted for one life, and returns the key as it is then. Each try
// compares the very record it decided from: a write that arrives late changes nothing, neither a replacement nor a later
// life of the key.
//
// A crash before the commit leaves the key in use, and the next report has it rest.
func (r *Rotator) coolAll(ctx context.Context, wanted []coolDown) (*Active, error) {
	want := wanted[0]
	for _, w := range wanted[1:] {
		if w.until.After(want.until) {
			want.to, want.until, want.rule, want.req = w.to, w.until, w.rule, w.req
		}
		want.pool, want.active = newer(want.pool, w.pool), newer(want.active, w.active)
	}
	r.refresh(&want)
	for ctx.Err() == nil {
		if want.pool.IncidentAt(r.Now()) != nil {
			return nil, errIncident
		}
		if want.pool.Deleting {
			return nil, Refuse(ReasonPoolDeleting, "pool %q is being deleted", want.pool.Name)
		}
		txn, next := want.txn(r.Now())
		if txn == nil {
			return want.active, nil
		}
		if err := rewritable(want.active); err != nil {
			return nil, err
		}
		res, err := r.applier.apply(ctx, txn)
		if err != nil {
			return nil, err
		}
		if res.Applied {
			next.Version = putAt(next.Version, res.Revision)
			r.Observer.CooledDown(next, want.req.Trigger, want.req.Source)
			return next, nil
		}
		failed := res.Failed(txn)
		if len(failed) == 0 {
			return nil, errCannotBe
		}
		r.Observer.Conflict(want.active.Life(), cause(want.active.Life(), failed[0], res.State))
		if err := want.rebase(res.State); err != nil {
			return nil, err
		}
	}
	return nil, Refuse(ReasonNotApplied, "not applied in time, because others changed the same records").Because(ctx.Err())
}

// newer is the later of two versions of one record.
func newer[R Record](a, b R) R {
	if b.At().ModRevision > a.At().ModRevision {
		return b
	}
	return a
}

// refresh takes what the mirror has if that is newer than what was seen.
func (r *Rotator) refresh(c *coolDown) {
	r.Mirror.Read(func(s *Snapshot) {
		p := s.Pool(c.pool.Name)
		if p == nil {
			return
		}
		c.pool = newer(c.pool, p.Pool)
		if a := p.Active[c.active.Key]; a != nil && a.Life() == c.active.Life() {
			c.active = newer(c.active, a)
		}
	})
}

// rebase takes what a lost transaction found. It returns errLifeChanged if the life is over.
func (c *coolDown) rebase(s *State) error {
	p, perr := Find[*Pool](s, c.pool.Ref())
	a, aerr := Find[*Active](s, c.active.Ref())
	if err := errors.Join(perr, aerr); err != nil {
		return err
	}
	if p == nil || a == nil || a.Life() != c.active.Life() {
		return errLifeChanged
	}
	c.pool, c.active = p, a
	return nil
}

// txn puts the cool-down; nil if the state machine sees nothing worth a write.
func (c *coolDown) txn(at time.Time) (*Txn, *Active) {
	next := cooled(c.active, c.to, c.until, c.rule, at)
	if next == nil {
		return nil, nil
	}
	return &Txn{
		If:  []Guard{Same(c.active), Same(c.pool)},
		Put: []Record{next},
		Event: &Event{
			ID: NewID(), Type: EventKeyCooledDown, Pool: next.Pool, Subject: "keys/" + next.Key, Time: at,
			Trigger: c.req.Trigger, Source: c.req.Source, Reason: c.req.Reason, RequestID: c.req.RequestID,
			Key: next.Key, Generation: next.CreateRevision, Slot: next.Slot, Proxy: c.req.ProxyID,
			Status: next.Status, Until: next.StatusUntil, Rule: c.rule, Home: HomeActive,
		},
	}, next
}
