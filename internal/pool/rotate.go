package pool

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Outcome says what a Rotate call came to.
type Outcome int

// The outcomes; the numbers are those of rotator.v1.Outcome.
const (
	OutcomeUnspecified Outcome = iota
	OutcomeRotated
	OutcomeAlreadyRotated
	OutcomePending
)

var outcomeNames = [...]string{"unspecified", "rotated", "already_rotated", "pending"}

// String is the outcome's name in logs and metrics.
func (o Outcome) String() string {
	if o < 0 || int(o) >= len(outcomeNames) {
		return "unknown"
	}
	return outcomeNames[o]
}

// RotateRequest names a key and says why it has to go.
type RotateRequest struct {
	Pool       string
	Key        string
	Generation int64 // 0: the life that is active now
	Trigger    Trigger
	Source     string
	Reason     string
	RequestID  string // "": one is made up
	ProxyID    string
	// OverrideBound rotates although the pool's bound is reached, and uses nothing of it. Only for TriggerOperator.
	OverrideBound bool

	reported bool // an upstream's answer asks, and nobody who knows: not to be made while the pool is in an incident
	confirm  bool // the upstream is to be asked about the key first
}

func (r *RotateRequest) check() error {
	var v violations
	v.name("pool", r.Pool)
	v.name("key_id", r.Key)
	v.notNegative("generation", r.Generation)
	if !r.Trigger.Known() {
		v.add("trigger", "must be one of provider, pool, spend checker, proxy, operator")
	}
	v.add("source", CheckText(r.Source, MaxSource))
	v.add("reason", CheckText(r.Reason, MaxReason))
	v.add("request_id", CheckRequestID(r.RequestID))
	v.optionalName("proxy_id", r.ProxyID)
	if r.OverrideBound && r.Trigger != TriggerOperator {
		v.add("override_bound", "is for operators: it needs the trigger operator")
	}
	return v.refusal()
}

// RotateResult is the answer to one caller; Rotation is the same for all callers of a life.
type RotateResult struct {
	Outcome  Outcome
	Rotation *Rotation // nil while pending
	Key      *Active   // the slot's current key; while pending another usable key; may be nil
	Revision int64

	probed *probed // what a probe found that kept the key from being rotated; then nothing else is set
}

// Locks is the per-key campaign. It saves work and orders side effects; what it grants is checked again by the commit.
type Locks interface {
	// Campaign makes one attempt to take the lock of a life that is still in service: if nobody holds it (over = 0), or
	// over the head of the holder who wrote it at revision over. If seen is not 0 the key's record must still be as it was
	// put at that revision. p says what the lock is wanted for, as others shall see it.
	//
	// It returns a term if it won, and the state that decided: LockRef, ActiveRef, RotationRef and PendingRef of the life,
	// and PoolRef, at the campaign's revision. A term that was won with seen may come without: the caller has it.
	//
	// It blocks for a few round trips at most. After an error this replica does not hold the lock for long: a lock
	// that was written although the answer was lost is deleted as soon as that can be done.
	Campaign(ctx context.Context, l Life, over, seen int64, p Purpose) (*Term, *State, error)
	// CampaignWith is Campaign for a free lock on the ordinary path, in one transaction with the commit t that the lock is
	// wanted for. If all guards of t hold, among them that the lock is free, t is made, and the lock is not written: t would
	// give it back. If they do not, the lock is taken if it is free, the life is still in service, and what waits for stock is
	// as t guards it; then there is a term.
	//
	// It is sent once. After ErrOutcomeUnknown either may have been done, or be done later; after any other error neither.
	CampaignWith(ctx context.Context, l Life, t *Txn) (*Result, *Term, error)
	// Resign gives a lock back that no transaction has released. It does not block and may do nothing.
	Resign(t *Term)
}

// Purpose is what a lock is wanted for.
type Purpose struct {
	Stage     string    // StageRotate or StageProbe
	BusyUntil time.Time // until when an upstream may be busy answering; zero: none is asked
}

// Step names a point of a rotation at which tests stop, kill or fail it.
type Step string

// The steps of a rotation, in order.
const (
	StepCampaign Step = "campaign" // before the lock is asked for
	StepLocked   Step = "locked"   // the lock is held
	StepRead     Step = "read"     // what the commit rests on has been read
	StepSend     Step = "send"     // the commit is made up and about to be sent
	StepCommit   Step = "commit"   // the commit has been answered
	StepAnswer   Step = "answer"   // before the callers are answered
)

// RotatorConfig is what a Rotator works with. Steps may be nil.
type RotatorConfig struct {
	Store    Store
	Locks    Locks
	Mirror   *Mirror
	Observer Observer
	Replica  string     // this replica's name
	Sealer   Sealer     // opens the keys that a report or a probe is about; nil: none is opened
	Classify Classifier // says what reports mean; nil: nothing
	Prober   Prober     // asks upstreams about keys; nil: none can be reached
	// Scrub takes what looks like a secret out of what callers say. Default: nothing is taken out.
	Scrub  func(text string) string
	Ready  func() error     // says why the store cannot be written now, nil if it can; it must not block. Default: it can
	Now    func() time.Time // default: time.Now
	Budget time.Duration    // for one rotation, whoever waits for it; default: 1.6 s
	// Steps is called at each step of each rotation. A test may block or fail there; it is nil in the service.
	Steps func(ctx context.Context, s Step, l Life) error
	// CampaignFirst says whether a campaign is to be made before its commit although they could go together. It is for tests,
	// and nil in the service.
	CampaignFirst func() bool
}

// Rotator turns any number of requests for one life of a key into one rotation.
type Rotator struct {
	RotatorConfig
	applier  applier
	stock    reservations
	purse    purse
	begun    begunLives
	patience patience // of those who wait for a holder
	answers  patience // of those who wait for the answer to a commit that goes with its campaign
	reads    rounds[Life, struct{}, *standing]
	strikes  rounds[string, Strike, *Incident]
	cooling  rounds[Life, coolDown, *Active]
	struck   healthNotes
	working  workingKeys
	inVain   inVain
	base     context.Context
	stop     context.CancelFunc
	work     sync.WaitGroup

	mu      sync.Mutex // protects the following fields
	flights map[flightKey]*flight
	closed  bool
}

// NewRotator returns a Rotator; Close it to end what it has under way.
func NewRotator(cfg RotatorConfig) *Rotator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	if cfg.Budget == 0 {
		cfg.Budget = 1600 * time.Millisecond
	}
	if cfg.Steps == nil {
		cfg.Steps = func(context.Context, Step, Life) error { return nil }
	}
	if cfg.CampaignFirst == nil {
		cfg.CampaignFirst = func() bool { return false }
	}
	if cfg.Scrub == nil {
		cfg.Scrub = func(text string) string { return text }
	}
	r := &Rotator{RotatorConfig: cfg, flights: make(map[flightKey]*flight)}
	r.applier = applier{store: cfg.Store, now: cfg.Now, unknown: func(t *Txn, attempt int, err error) {
		pool, subject := t.about()
		cfg.Observer.OutcomeUnknown(pool, subject, attempt, err)
	}}
	r.base, r.stop = context.WithCancel(context.Background())
	return r
}

// Close ends all rotations under way and waits for them. Their callers are told that the outcome is unknown.
func (r *Rotator) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop()
	r.work.Wait()
}

var errStopping = Refuse(ReasonNotApplied, "this replica is stopping; ask another one")

// spawn runs fn in a goroutine that Close waits for. It reports false if the Rotator is closed.
func (r *Rotator) spawn(fn func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.work.Go(fn)
	return true
}

// Rotate answers a trigger. All callers for one life of a key get the same rotation.
//
// The work does not end with ctx: a caller who goes away leaves it to the others. After an error with
// ReasonOutcomeUnknown the call can be repeated with the same request id.
func (r *Rotator) Rotate(ctx context.Context, req RotateRequest) (*RotateResult, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	req.Source, req.Reason = r.Scrub(req.Source), r.Scrub(req.Reason)
	return r.rotate(ctx, req)
}

// rotate is Rotate for a request that was checked.
func (r *Rotator) rotate(ctx context.Context, req RotateRequest) (*RotateResult, error) {
	began := r.Now()
	if req.RequestID == "" {
		req.RequestID = uuid.NewString()
	}
	res, shared, err := r.answer(ctx, &req)
	if err == nil && res.probed != nil {
		return res, nil
	}
	life := Life{req.Pool, req.Key, req.Generation}
	if res != nil && res.Rotation != nil {
		life = res.Rotation.Life
	}
	r.Observer.Answered(life, req.Trigger, req.Source, outcomeOf(res, err), shared, r.Now().Sub(began))
	return res, err
}

// outcomeOf is how an answer is counted.
func outcomeOf(res *RotateResult, err error) string {
	switch {
	case err == nil:
		return res.Outcome.String()
	case ReasonOf(err) != "":
		return strings.ToLower(string(ReasonOf(err)))
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline_exceeded"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, errIncident):
		return "incident"
	}
	return "internal"
}

// answer decides what a request needs. shared is true if it made no work of its own.
func (r *Rotator) answer(ctx context.Context, req *RotateRequest) (res *RotateResult, shared bool, err error) {
	for again := false; ; again = true {
		verdict, err := r.consider(ctx, req)
		if err != nil {
			return nil, true, err
		}
		switch verdict.action {
		case refuse:
			return nil, true, verdict.refusal
		case report:
			return r.report(ctx, req, verdict.rotation, nil), true, nil
		case parked:
			return r.pendingResult(ctx, req, verdict.revision), true, nil
		}
		f, joined := r.join(verdict.life, req, false)
		if f == nil {
			return nil, true, errStopping
		}
		if !f.await(ctx) {
			return nil, joined, abandoned(ctx.Err(), rotationGoesOn)
		}
		switch {
		case joined && (errors.Is(f.err, errCancelled) || !again && f.decidedBefore()):
			continue // that flight is over: look anew, once
		case joined && errors.Is(f.err, errIncident) && !req.reported:
			continue // that flight was a report's, and this call is none
		case f.err != nil:
			return nil, joined, f.err
		case f.probed != nil:
			return &RotateResult{probed: f.probed, Revision: f.revision}, joined, nil
		case f.rotation == nil:
			return r.pendingResult(ctx, req, f.revision), joined, nil
		}
		return r.report(ctx, req, f.rotation, f.key), joined, nil
	}
}

// consider decides from memory if it can, else from the store.
func (r *Rotator) consider(ctx context.Context, req *RotateRequest) (verdict, error) {
	v := r.fromMemory(req)
	if v.action == look && r.aboutToShow(ctx, req.Generation) {
		v = r.fromMemory(req)
	}
	if v.action == report {
		return v, nil
	}
	if err := r.Ready(); err != nil || v.action != look {
		return v, err
	}
	st, err := r.standing(ctx, req)
	if err != nil {
		return v, err
	}
	return decide(req, st), nil
}

// aboutToShow waits for a life that is newer than the mirror, as one that was just told to the caller is, and reports
// whether the mirror has come to where it began.
func (r *Rotator) aboutToShow(ctx context.Context, generation int64) bool {
	if generation <= r.Mirror.Revision() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lifeGrace)
	defer cancel()
	return r.Mirror.Wait(ctx, generation) == nil
}

// abandoned is the answer to a caller whose time was over before the work was done, and err any other.
func abandoned(err error, message string) error {
	if ReasonOf(err) != "" || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return Refuse(ReasonOutcomeUnknown, "%s", message).Because(err)
}

// What goes on without the caller.
const (
	rotationGoesOn = "the rotation goes on, but its outcome was not known in time; repeat the call with the same request_id"
	reportGoesOn   = "the report is being put on record, but that was not known in time; send it again"
)

// report answers from a rotation that was made. The record says whose request it was. successor is the new key if this
// replica made the rotation just now.
func (r *Rotator) report(ctx context.Context, req *RotateRequest, rot *Rotation, successor *Active) *RotateResult {
	res := &RotateResult{Outcome: OutcomeAlreadyRotated, Rotation: rot, Revision: rot.Revision()}
	if rot.RequestID == req.RequestID {
		res.Outcome = OutcomeRotated
	}
	switch {
	case r.currentKey(res):
	case successor != nil:
		res.Key = successor
	default:
		r.awaitKey(ctx, res)
	}
	return res
}

// currentKey completes an answer with the slot's key as the mirror has it. It reports false if the mirror has not seen
// the rotation yet.
func (r *Rotator) currentKey(res *RotateResult) (seen bool) {
	r.Mirror.Read(func(s *Snapshot) {
		if seen = s.Revision >= res.Rotation.Revision(); !seen {
			return
		}
		res.Revision = s.Revision
		if p := s.Pool(res.Rotation.Pool); p != nil {
			res.Key = p.BySlot[res.Rotation.Slot]
		}
	})
	return seen
}

// awaitKey completes an answer for a rotation that the mirror is about to show. If the mirror is held up the store is
// asked, and if that fails too the answer goes without the key: the rotation is known, and GetKeys gives the key.
func (r *Rotator) awaitKey(ctx context.Context, res *RotateResult) {
	wctx, cancel := context.WithTimeout(ctx, mirrorGrace)
	defer cancel()
	if r.Mirror.Wait(wctx, res.Rotation.Revision()) == nil && r.currentKey(res) {
		return
	}
	rctx, stop := context.WithTimeout(ctx, keyGrace)
	defer stop()
	st, err := r.Store.Read(rctx, ActiveRef(res.Rotation.Pool, res.Rotation.NewKey))
	if err != nil {
		return
	}
	a, err := Find[*Active](st, ActiveRef(res.Rotation.Pool, res.Rotation.NewKey))
	if err == nil && a != nil && a.Slot == res.Rotation.Slot {
		res.Key, res.Revision = a, st.Revision
	}
}

const (
	// readBudget bounds a read that several callers wait for.
	readBudget = 1500 * time.Millisecond
	// lifeGrace is how long a request waits for the mirror to show its life; then the store is asked.
	lifeGrace = 20 * time.Millisecond
	// mirrorGrace is how long an answer waits for the mirror to show what the store is known to hold.
	mirrorGrace = 100 * time.Millisecond
	// keyGrace is how long an answer then waits for the store itself: the rotation is known, so it is told anyway.
	keyGrace = 300 * time.Millisecond
)

// pendingResult answers that the rotation waits for stock, with another key that can be used meanwhile. A mirror that is
// held up gives none: the answer must not be older than it says.
func (r *Rotator) pendingResult(ctx context.Context, req *RotateRequest, revision int64) *RotateResult {
	res := &RotateResult{Outcome: OutcomePending, Revision: revision}
	wctx, cancel := context.WithTimeout(ctx, mirrorGrace)
	defer cancel()
	if r.Mirror.Wait(wctx, revision) != nil {
		return res
	}
	now := r.Now()
	r.Mirror.Read(func(s *Snapshot) {
		res.Revision = max(revision, s.Revision)
		if p := s.Pool(req.Pool); p != nil && s.Broken[BindingRef(req.Pool, req.ProxyID)] == nil {
			res.Key = p.anotherKey(req.ProxyID, req.Key, now)
		}
	})
	return res
}

// anotherKey is a usable key of a proxy other than the failing one; of the whole pool for a proxy without binding.
func (p *PoolState) anotherKey(proxy, failing string, now time.Time) *Active {
	usable := func(a *Active) bool {
		return a != nil && a.Key != failing && a.StatusAt(now) == StatusHealthy
	}
	if b := p.Bindings[proxy]; b != nil {
		for _, s := range b.Slots {
			if a := p.BySlot[s.Slot]; usable(a) {
				return a
			}
		}
		return nil
	}
	for _, a := range p.Active { // any: the map's order spreads callers
		if usable(a) {
			return a
		}
	}
	return nil
}
