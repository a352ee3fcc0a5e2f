package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// errIncident says that a report was to change something while its pool is in an incident.
var errIncident = errors.New("the pool is in an incident: reports change nothing")

// maxStrikes is the most lives that may be reported bad in a window, however large the pool is, so that the record of
// them stays small.
const maxStrikes = 2000

// strike notes that a report says a life is bad, and returns the incident if that is one too many. Only when it returns
// nil may the report change the life.
//
// It is exact over all replicas: the note is written by comparing the record of all notes and the pool's own, and every
// rotation and cool-down compares the pool's, which the beginning of an incident changes. So from that commit on nothing
// that a report has begun can be made. The process notes what all its reports want noted in one write.
func (r *Rotator) strike(ctx context.Context, s *sighting) (*Incident, error) {
	policy := s.pool.Spec.Incident.WithDefaults()
	if policy.Disabled || r.onRecord(s.active.Life(), policy.Window) {
		return nil, nil
	}
	life := s.active.Life()
	mark := Strike{Key: life.Key, Generation: life.Generation, Slot: s.active.Slot}
	incident, err := r.strikes.do(ctx, r, life.Pool, mark, func(ctx context.Context, fresh []Strike) (*Incident, error) {
		return r.recordStrikes(ctx, life.Pool, fresh)
	})
	return incident, abandoned(err, reportGoesOn)
}

// onRecord reports whether the mirror has the life's note: then its report was counted.
func (r *Rotator) onRecord(l Life, window time.Duration) (noted bool) {
	since := r.Now().Add(-window)
	r.Mirror.Read(func(s *Snapshot) {
		if p := s.Pool(l.Pool); p != nil && p.Health != nil {
			noted = slices.ContainsFunc(p.Health.Strikes, func(s Strike) bool {
				return s.Key == l.Key && s.Generation == l.Generation && s.At.After(since)
			})
		}
	})
	return noted
}

// health is what an incident is decided from.
type health struct {
	pool   *Pool
	health *Health // nil: none
	active int     // keys in service
}

// healthNotes remember what this process wrote last for each pool, which its mirror may not show yet.
type healthNotes struct {
	mu   sync.Mutex // protects the following field
	last map[string]*Health
}

// keep remembers h, and forgets what the mirror shows by now, also of pools that nobody asks about any more.
func (n *healthNotes) keep(h *Health, mirror int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last == nil {
		n.last = make(map[string]*Health)
	}
	maps.DeleteFunc(n.last, func(_ string, h *Health) bool { return h.ModRevision <= mirror })
	n.last[h.Pool] = h
}

// take gives what is newer than the mirror's revision, and forgets what is not.
func (n *healthNotes) take(pool string, mirror int64) *Health {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.last[pool]
	if h != nil && h.ModRevision <= mirror {
		delete(n.last, pool)
		return nil
	}
	return h
}

// healthOf is how a pool's health is remembered, or read if the mirror does not know the pool yet.
func (r *Rotator) healthOf(ctx context.Context, pool string) (h health, err error) {
	r.Mirror.Read(func(s *Snapshot) {
		p := s.Pool(pool)
		if err = s.broken(HealthRef(pool)); err != nil || p == nil {
			return
		}
		h = health{pool: p.Pool, health: p.Health, active: len(p.Active)}
		if own := r.struck.take(pool, s.Revision); own != nil {
			h.health = own
		}
	})
	if err != nil || h.pool != nil {
		return h, err
	}
	keys, _, err := r.Store.List(ctx, KindActive, pool, 0)
	if err != nil {
		return h, err
	}
	st, err := r.Store.Read(ctx, PoolRef(pool), HealthRef(pool))
	if err != nil {
		return h, err
	}
	h.active = len(keys)
	return h, h.rebase(pool, st)
}

// recordStrikes writes notes until they are on record, or it has become an incident.
//
// The write of notes has no event, for it is no transition. If its answer is lost and it is sent again, it is refused by its
// own first copy, and the notes are found to be on record.
func (r *Rotator) recordStrikes(ctx context.Context, pool string, fresh []Strike) (*Incident, error) {
	h, err := r.healthOf(ctx, pool)
	if err != nil {
		return nil, err
	}
	id := NewID()
	for ctx.Err() == nil {
		now := r.Now()
		if h.pool.Deleting {
			return nil, Refuse(ReasonPoolDeleting, "pool %q is being deleted", pool)
		}
		if incident := h.pool.IncidentAt(now); incident != nil {
			return incident, nil
		}
		notes, news := h.with(fresh, now)
		incident := h.incident(notes, now)
		if !news && incident == nil {
			return nil, nil
		}
		txn, err := h.txn(notes, incident, id, now)
		if err != nil {
			return nil, err
		}
		res, err := r.applier.apply(ctx, txn)
		if err != nil {
			return nil, err
		}
		if res.Applied {
			r.noted(pool, notes, incident, res.Revision)
			return incident, nil
		}
		r.Observer.Conflict(Life{Pool: pool}, "reports")
		if err := h.rebase(pool, res.State); err != nil {
			return nil, err
		}
	}
	return nil, Refuse(ReasonNotApplied, "the report was not counted in time; try again").Because(ctx.Err())
}

func (r *Rotator) noted(pool string, notes *Health, incident *Incident, revision int64) {
	if incident != nil {
		r.Observer.IncidentBegan(pool, incident)
		return
	}
	kept := *notes
	kept.Version = putAt(notes.Version, revision)
	r.struck.keep(&kept, r.Mirror.Revision())
}

// rebase takes what the store held, as a lost transaction found it.
func (h *health) rebase(pool string, s *State) error {
	p, perr := Find[*Pool](s, PoolRef(pool))
	notes, herr := Find[*Health](s, HealthRef(pool))
	if err := errors.Join(perr, herr); err != nil {
		return err
	}
	if p == nil {
		return noSuchPool(pool)
	}
	h.pool, h.health = p, notes
	return nil
}

// with is the record with new notes and without those that are older than the window. A life is noted once. news: there
// is a new note.
func (h *health) with(fresh []Strike, now time.Time) (next *Health, news bool) {
	next = &Health{Version: Version{Schema: Schema}, Pool: h.pool.Name}
	since := now.Add(-h.pool.Spec.Incident.WithDefaults().Window)
	noted := make(map[Life]bool)
	keep := func(s Strike) bool {
		life := Life{h.pool.Name, s.Key, s.Generation}
		if noted[life] || !s.At.After(since) {
			return false
		}
		noted[life] = true
		next.Strikes = append(next.Strikes, s)
		return true
	}
	if h.health != nil {
		next.Version = renewed(h.health.Version)
		for _, s := range h.health.Strikes {
			keep(s)
		}
	}
	for _, s := range fresh {
		s.At = now // each may have waited for its turn
		news = keep(s) || news
	}
	return next, news
}

// incident is the one that the notes make, nil if they make none.
//
// It counts lives and not slots: in an outage the upstream refuses the replacements too, and a pool of few keys would else
// burn its stock in one slot.
func (h *health) incident(notes *Health, now time.Time) *Incident {
	policy := h.pool.Spec.Incident.WithDefaults()
	n := len(notes.Strikes)
	if n < policy.needs(h.active) {
		return nil
	}
	return &Incident{Since: now, Until: now.Add(policy.Duration), Keys: n}
}

// txn puts the notes, or begins the incident. The notes go when it begins, so that after it reports count from none.
func (h *health) txn(notes *Health, incident *Incident, id string, now time.Time) (*Txn, error) {
	ref := HealthRef(h.pool.Name)
	guard := Absent(ref)
	if h.health != nil {
		if err := rewritable(h.health); err != nil {
			return nil, err
		}
		guard = Same(h.health)
	}
	txn := &Txn{If: []Guard{Same(h.pool), guard}}
	if incident == nil {
		txn.Put = []Record{notes}
		return txn, nil
	}
	if err := rewritable(h.pool); err != nil {
		return nil, err
	}
	next := *h.pool
	next.Version, next.Incident = renewed(h.pool.Version), incident
	txn.Put, txn.Delete = []Record{&next}, []Ref{ref}
	txn.Event = &Event{
		ID: id, Type: EventIncidentBegan, Pool: next.Name, Subject: "pools/" + next.Name, Time: now, Trigger: TriggerPool,
		Reason: fmt.Sprintf("%d keys were reported bad within %v, of %d in service: the upstream itself must be at fault",
			incident.Keys, h.pool.Spec.Incident.WithDefaults().Window, h.active),
		Until: incident.Until,
	}
	return txn, nil
}

// incidentResult answers a report that changes nothing because of an incident.
func (r *Rotator) incidentResult(ctx context.Context, rep *FailureReport, revision int64, j Judgement) *ReportResult {
	res := r.ignored(ctx, rep, revision, j, ruleIncident)
	res.Incident = true
	return res
}

// duringIncident answers a report that came in an incident. One that shows that its key works may end it.
func (r *Rotator) duringIncident(ctx context.Context, rep *FailureReport, s *sighting, j Judgement) *ReportResult {
	if j.Verdict == VerdictRotate {
		r.working.not(s)
	}
	if j.Works && r.Ready() == nil && r.working.enough(s, r.needed(s.pool), r.Now()) && r.endByReports(ctx, s.pool) {
		return r.ignored(ctx, rep, s.revision, j, "")
	}
	return r.incidentResult(ctx, rep, s.revision, j)
}

// needed is how many keys must be seen to work before an incident is over: as many as make one, or all if there are fewer.
func (r *Rotator) needed(p *Pool) int {
	policy, active := p.Spec.Incident.WithDefaults(), 0
	r.Mirror.Read(func(s *Snapshot) {
		if state := s.Pool(p.Name); state != nil {
			active = len(state.Active)
		}
	})
	return max(min(policy.needs(active), active), 1)
}

// needs is how many of a pool's keys make an incident.
func (p IncidentPolicy) needs(active int) int {
	return max(p.MinKeys, int(min(p.Share*float64(active), maxStrikes))+1)
}

// workingKeys are the keys that were seen to work during incidents, by this process.
type workingKeys struct {
	mu    sync.Mutex // protects the following field
	pools map[string]*recovery
}

// recovery is what is known of the end of one incident.
type recovery struct {
	since time.Time // when the incident began: that tells it from others
	until time.Time // when it is over at the latest
	keys  map[string]time.Time
}

// enough counts a key that works, and reports whether there are enough within the window; then it begins anew.
func (w *workingKeys) enough(s *sighting, needed int, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pools == nil {
		w.pools = make(map[string]*recovery)
	}
	of := w.pools[s.pool.Name]
	if of == nil || !of.since.Equal(s.pool.Incident.Since) {
		maps.DeleteFunc(w.pools, func(_ string, of *recovery) bool { return !of.until.After(now) })
		of = &recovery{since: s.pool.Incident.Since, until: s.pool.Incident.Until, keys: make(map[string]time.Time)}
		w.pools[s.pool.Name] = of
	}
	of.keys[s.active.Key] = now
	oldest := now.Add(-s.pool.Spec.Incident.WithDefaults().Window)
	for key, at := range of.keys {
		if !at.After(oldest) {
			delete(of.keys, key)
		}
	}
	if len(of.keys) < needed {
		return false
	}
	delete(w.pools, s.pool.Name)
	return true
}

// not takes a key that was reported bad off those that work.
func (w *workingKeys) not(s *sighting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if of := w.pools[s.pool.Name]; of != nil {
		delete(of.keys, s.active.Key)
	}
}

// endByReports ends an incident because keys are seen to work. It reports false if it cannot now: the incident then ends by
// its time, or by later reports.
func (r *Rotator) endByReports(ctx context.Context, p *Pool) bool {
	txn, err := endIncidentTxn(p, &Event{
		ID: NewID(), Time: r.Now(), Trigger: TriggerPool, Reason: "enough keys were reported to work",
	})
	if err != nil {
		return false
	}
	res, err := r.applier.apply(ctx, txn)
	if err != nil || !res.Applied {
		return false
	}
	r.Observer.IncidentEnded(p.Name, TriggerPool)
	return true
}

// endIncidentTxn takes a pool's incident off its record. e says who ends it and why. A crash before it leaves the incident to
// its time.
func endIncidentTxn(p *Pool, e *Event) (*Txn, error) {
	if err := rewritable(p); err != nil {
		return nil, err
	}
	next := *p
	next.Version, next.Incident = renewed(p.Version), nil
	e.Type, e.Pool, e.Subject = EventIncidentEnded, p.Name, "pools/"+p.Name
	return &Txn{If: []Guard{Same(p)}, Put: []Record{&next}, Delete: []Ref{HealthRef(p.Name)}, Event: e}, nil
}

// EndIncident ends a pool's incident: reports count again, from none. Without an incident nothing is changed.
func (a *Admin) EndIncident(ctx context.Context, name string) (*Pool, int64, error) {
	var f violations
	f.name("name", name)
	if err := f.refusal(); err != nil {
		return nil, 0, err
	}
	var out *Pool
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(name))
		if err != nil {
			return nil, err
		}
		if out, err = openPool(st, name); err != nil {
			return nil, err
		}
		if out.IncidentAt(a.Now()) == nil {
			return nil, nil
		}
		txn, err := endIncidentTxn(out, &Event{Time: a.Now().UTC(), Trigger: TriggerOperator})
		if err == nil {
			out = txn.Put[0].(*Pool)
		}
		return txn, err
	})
	if err == nil && rev != 0 {
		a.Observer.IncidentEnded(name, TriggerOperator)
	}
	return poolPut(out, rev, err)
}
