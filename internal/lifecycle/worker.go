package lifecycle

import (
	"context"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// Locks is the lock of a key that is not in service.
type Locks interface {
	// Hold makes one attempt to take the lock for an errand. It returns a term if it won, and otherwise the lock that is
	// in the way, nil if there is none and the record has changed. It blocks for a few round trips at most; after an
	// error this replica does not hold the lock for long.
	Hold(ctx context.Context, e pool.Errand) (*pool.Term, *pool.Lock, error)
	// Resign gives a lock back. It does not block and may do nothing.
	Resign(t *pool.Term)
}

// Providers finds who mints and revokes the keys of a pool.
type Providers interface {
	// Provider returns an error if this replica cannot ask it; its text says what to do. It does not block.
	Provider(p *pool.Pool) (pool.Provider, error)
}

// Observer is told what happened, for the log and the metrics. Calls must not block.
type Observer interface {
	// Reconciled: a handler was asked about a record. result is one of a few fixed words.
	Reconciled(kind pool.Kind, phase pool.Phase, result string)
	// Skipped: the phase has done its work for the generation that is wanted.
	Skipped(kind pool.Kind)
	// Moved: a transition is committed. e is nil for what is no transition: another try of the same phase.
	Moved(rec pool.Record, e *pool.Event)
	// Asked: an upstream was called. problem is why that did not work, without secrets; "" if it did.
	Asked(rec pool.Record, call, problem string, took time.Duration)
	// Conflict: a commit lost a compare; nothing happened, and the record is read again.
	Conflict(l pool.Life, cause string)
	// TookOver: this replica took a lock over from a holder that did not finish in time.
	TookOver(l pool.Life, holder string, after time.Duration)
	// OutcomeUnknown: the store did not say what became of a write that is about subject.
	OutcomeUnknown(poolName, subject string, attempt int, err error)
}

// Step names a point of the work at which tests stop, kill or fail it.
type Step string

// The steps, in order.
const (
	StepRead     Step = "read"     // the record was read and a transition decided
	StepWritten  Step = "written"  // a transition was committed
	StepAsk      Step = "ask"      // before the upstream is called
	StepAnswered Step = "answered" // the upstream has answered
)

// Config is what a Worker works with.
type Config struct {
	Store     pool.Store
	Locks     Locks
	Mirror    *pool.Mirror
	Sealer    pool.Sealer
	Providers Providers
	Observer  Observer
	Replica   string
	Ready     func() error     // says why the store cannot be written now, nil if it can. Default: it can
	Now       func() time.Time // default: time.Now
	Limits    Limits           // default: DefaultLimits
	Resync    time.Duration    // default: 1 minute, give or take a quarter
	Parallel  int              // records worked on at once; default: 8
	// Steps is called at each step. A test may block or fail there; it is nil in the service. After an error nothing more
	// is done, as after a crash: not even the lock is given back.
	Steps func(ctx context.Context, s Step, rec pool.Record) error
}

// Worker does what keys need before they are in stock and after they were retired. It goes by what is there and not by
// events, so nothing is missed: it looks whenever the mirror changes, and at everything again once in a while.
type Worker struct {
	Config

	mu   sync.Mutex // protects the following fields
	busy map[pool.Ref]bool
	// settled is by the mirror's records, which it replaces and does not change: that is fast with many. What was replaced
	// stays until the next resync.
	settled map[pool.Record]settlement
	done    chan struct{} // gets a value when a record was worked on
	// alone has, by pool, until when its upstream is left alone, so that nothing is announced that would not be sent.
	alone map[string]time.Time
	// finishing says that nothing more is begun; idle is closed once nothing is under way either.
	finishing bool
	idle      chan struct{}
	idleClose sync.Once
}

// settlement says that nothing is to be done about a record before a time, as long as it and its pool are as they were.
type settlement struct {
	record, pool int64 // their ModRevisions
	until        time.Time
	first        time.Time // when this replica first saw that something was to be done
}

// New returns a Worker; Run makes it work.
func New(cfg Config) *Worker {
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits()
	}
	if cfg.Resync == 0 {
		cfg.Resync = time.Minute
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 8
	}
	if cfg.Steps == nil {
		cfg.Steps = func(context.Context, Step, pool.Record) error { return nil }
	}
	return &Worker{Config: cfg, busy: make(map[pool.Ref]bool), settled: make(map[pool.Record]settlement), alone: make(map[string]time.Time), done: make(chan struct{}, 1), idle: make(chan struct{})}
}

const (
	// shareGrace is how long a replica leaves work to the replica whose share it is.
	shareGrace = 500 * time.Millisecond
	// lookPause is the shortest time between two looks, however fast the store changes, and lookShare how many times as
	// long as a look the pause after it is: looking costs a hundredth of a processor, until that takes longPause.
	lookPause = 50 * time.Millisecond
	lookShare = 100
	// longPause bounds that pause: a process that stood still in a look must not stand still for longer by itself. It is
	// shorter than shareGrace, so that others do not take its share.
	longPause = 400 * time.Millisecond
	// longest is the longest time without a look, and unready that while the store cannot be written.
	longest = time.Minute
	unready = time.Second
)

// Run works until ctx ends, and waits for what it has begun. The end of ctx ends calls too, with answers that are not known:
// Finish comes before it.
func (w *Worker) Run(ctx context.Context) {
	select {
	case <-w.Mirror.Loaded():
	case <-ctx.Done():
		return
	}
	changed, stop := w.Mirror.WatchAll()
	defer stop()
	var work sync.WaitGroup
	defer work.Wait()
	resync := w.Now().Add(w.nextResync())
	for ctx.Err() == nil {
		began := time.Now()
		if now := w.Now(); !now.Before(resync) {
			w.forget()
			resync = now.Add(w.nextResync())
		}
		next := min(longest, max(0, resync.Sub(w.Now())))
		if w.Ready() != nil {
			next = min(next, unready)
		} else {
			next = min(next, w.look(ctx, &work))
		}
		if !sleep(ctx, min(max(lookPause, lookShare*time.Since(began)), longPause)) {
			return
		}
		select {
		case <-changed:
		case <-w.done:
		case <-time.After(next):
		case <-ctx.Done():
		}
	}
}

// Finish begins nothing more and waits until all that was begun is over, or until ctx ends. A call to an upstream that is
// under way is finished and its answer written down, and no other is made: an answer may be the only place where the secret
// of a new key is. That takes a call's time and two of the store at the most.
func (w *Worker) Finish(ctx context.Context) {
	w.mu.Lock()
	w.finishing = true
	w.noteIdle()
	w.mu.Unlock()
	select {
	case <-w.idle:
	case <-ctx.Done():
	}
}

// noteIdle is called with mu held.
func (w *Worker) noteIdle() {
	if w.finishing && len(w.busy) == 0 {
		w.idleClose.Do(func() { close(w.idle) })
	}
}

func (w *Worker) isFinishing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.finishing
}

// nextResync has jitter, so that replicas do not look at everything at the same moment.
func (w *Worker) nextResync() time.Duration {
	return w.Resync*3/4 + rand.N(w.Resync/2)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// forget makes the next look one at everything.
func (w *Worker) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.settled)
}

// due is a record that something is to be done about, or a pool whose stock is.
type due struct {
	rec pool.Record
	ref pool.Ref
	at  settlement
}

// seen is a record as the mirror has it, with what says whether anything is to be done about it. For a pool that is
// what is to be done about its stock.
type seen struct {
	rec      pool.Record
	revision int64 // of the record; of a pool's stock a number that changes with it
	pool     *pool.Pool
	lock     *pool.Lock
}

// look begins what is due and not done by others, and says when to look again.
func (w *Worker) look(ctx context.Context, work *sync.WaitGroup) (next time.Duration) {
	all, replicas := w.snapshot()
	now := w.Now()
	found, next := w.sift(all, now)
	for _, d := range found {
		since := d.at.first
		if d.at.until.After(since) {
			since = d.at.until
		}
		if pool.Share(d.ref.Name+d.ref.Pool, replicas) != w.Replica && now.Sub(since) < shareGrace {
			next = min(next, shareGrace)
			continue
		}
		if !w.begin(ctx, work, d) {
			return next // all hands are busy; the end of any is told
		}
	}
	return next
}

// snapshot takes what there is from the mirror. It only copies: writers wait for it.
func (w *Worker) snapshot() (all []seen, replicas []string) {
	w.Mirror.Read(func(s *pool.Snapshot) {
		replicas = s.ReplicaNames()
		for _, p := range s.Pools {
			if p.Pool == nil || p.Pool.Deleting || p.Pool.TooNew() {
				continue
			}
			for key, prep := range p.Preparing {
				all = append(all, seen{rec: prep, revision: prep.ModRevision, pool: p.Pool, lock: p.Locks[key]})
			}
			for key, r := range p.Retired {
				all = append(all, seen{rec: r, revision: r.ModRevision, pool: p.Pool, lock: p.Locks[key]})
			}
			if revision, wanted := stockWork(p); wanted {
				all = append(all, seen{rec: p.Pool, revision: revision, pool: p.Pool})
			}
		}
	})
	return all, replicas
}

// sift lists what is due, and says when the next of the others is.
func (w *Worker) sift(all []seen, now time.Time) (found []due, next time.Duration) {
	next = longest
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range all {
		if e.rec.At().TooNew() {
			continue
		}
		s, known := w.settled[e.rec]
		if !known || s.record != e.revision || s.pool != e.pool.ModRevision {
			s = settlement{record: e.revision, pool: e.pool.ModRevision, first: now, until: w.preview(e, now)}
			w.settled[e.rec] = s
		}
		if e.lock != nil && s.until.Before(e.lock.BusyUntil) {
			s.until = e.lock.BusyUntil
		}
		if s.until.After(now) {
			next = min(next, s.until.Sub(now))
		} else if ref := e.rec.Ref(); !w.busy[ref] {
			found = append(found, due{e.rec, ref, s})
		}
	}
	return found, next
}

// preview asks the handler from memory alone, so that keys of which nothing is wanted now cost no reads. It says when
// there is something to do; what that is is decided from the store.
func (w *Worker) preview(e seen, now time.Time) time.Time {
	var m Move
	v := View{Pool: e.pool, Provider: true, Limits: w.Limits}
	switch rec := e.rec.(type) {
	case *pool.Preparation:
		m = Prepare(v, rec, now)
	case *pool.Retired:
		m = Retire(v, rec, now)
	default:
		return time.Time{}
	}
	switch {
	case m.action == skip:
		w.Observer.Skipped(e.rec.Ref().Kind)
	case m.action != rest:
		return time.Time{}
	case !m.until.IsZero():
		return m.until
	}
	return now.Add(forever)
}

// begin works on one record in a goroutine of its own, and reports false if too many are worked on already or no more are to
// be.
func (w *Worker) begin(ctx context.Context, work *sync.WaitGroup, d due) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finishing || len(w.busy) >= w.Parallel {
		return false
	}
	w.busy[d.ref] = true
	work.Go(func() {
		until := w.work(ctx, d.ref)
		w.mu.Lock()
		delete(w.busy, d.ref)
		w.noteIdle()
		if s := w.settled[d.rec]; s.record == d.at.record && s.pool == d.at.pool {
			s.until = until
			w.settled[d.rec] = s
		}
		w.mu.Unlock()
		select {
		case w.done <- struct{}{}:
		default:
		}
	})
	return true
}

// forever is when nothing is to be done until something changes. The next resync looks all the same.
const forever = 365 * 24 * time.Hour

// work does what is to be done about a record now, and says when to look again.
func (w *Worker) work(ctx context.Context, ref pool.Ref) time.Time {
	ctx, cancel := context.WithTimeout(ctx, w.Limits.Call+2*writeBudget)
	defer cancel()
	if ref.Kind == pool.KindPool {
		return w.keepStock(ctx, ref.Pool)
	}
	return w.reconcile(ctx, ref)
}

// leaveAlone remembers that a pool's upstream is not asked until a time.
func (w *Worker) leaveAlone(name string, until time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.Now()
	maps.DeleteFunc(w.alone, func(_ string, over time.Time) bool { return !now.Before(over) })
	if now.Before(until) {
		w.alone[name] = until
	}
}

func (w *Worker) leftAloneUntil(name string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.alone[name]
}
