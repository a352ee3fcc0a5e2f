package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Verdict says what a report means for its key.
type Verdict int

// The verdicts; the numbers are those of rotator.v1.Verdict.
const (
	VerdictUnspecified Verdict = iota
	VerdictRotate
	VerdictCoolDown
	VerdictIgnore
)

var verdictNames = [...]string{"unspecified", "rotate", "cool_down", "ignore"}

// String is the verdict's name in metrics.
func (v Verdict) String() string {
	if v < 0 || int(v) >= len(verdictNames) {
		return "unknown"
	}
	return verdictNames[v]
}

// What overrules the rule that matched an answer. They stand in the answer to a report, and as the reason of a status.
const (
	ruleIncident         = "incident"
	ruleProbeAlive       = "probe-alive"
	ruleProbeUnreachable = "probe-unreachable"
	ruleLate             = "late"
	ruleDisabled         = "disabled"
	ruleExhausted        = "exhausted"
	reasonPending        = "pending"
)

// FailureReport is what an upstream answered to a request with a key. Its texts may hold secrets.
type FailureReport struct {
	Pool       string
	Key        string
	Generation int64 // 0: the life that is active now
	Answer     Answer
	ProxyID    string
	Source     string
	RequestID  string // "": one is made up
}

// Answer is an upstream's answer.
type Answer struct {
	Status  int
	Headers map[string]string
	Body    []byte
}

// Limits of a report.
const (
	MaxReportHeaders     = 32
	MaxReportHeaderName  = 128      // bytes
	MaxReportHeaderValue = 1024     // bytes
	MaxReportBody        = 64 << 10 // bytes
)

func (r *FailureReport) check() error {
	var v violations
	v.name("pool", r.Pool)
	v.name("key_id", r.Key)
	v.notNegative("generation", r.Generation)
	if r.Answer.Status < 100 || r.Answer.Status > 599 {
		v.add("http_status", "must be from 100 to 599")
	}
	v.add("headers", checkHeaders(r.Answer.Headers))
	if n := len(r.Answer.Body); n > MaxReportBody {
		v.add("body", fmt.Sprintf("has %d bytes, at most %d are allowed: cut it off", n, MaxReportBody))
	}
	v.optionalName("proxy_id", r.ProxyID)
	v.add("source", CheckText(r.Source, MaxSource))
	v.add("request_id", CheckRequestID(r.RequestID))
	return v.refusal()
}

// checkHeaders does not repeat what it refuses: a header may hold the key.
func checkHeaders(headers map[string]string) string {
	if len(headers) > MaxReportHeaders {
		return fmt.Sprintf("has %d headers, at most %d are allowed: send those that matter", len(headers), MaxReportHeaders)
	}
	for name, value := range headers {
		switch {
		case name == "" || len(name) > MaxReportHeaderName || len(value) > MaxReportHeaderValue:
			return fmt.Sprintf("has a name that is empty or longer than %d bytes, or a value longer than %d", MaxReportHeaderName, MaxReportHeaderValue)
		case strings.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' }) || CheckText(value, MaxReportHeaderValue) != "":
			return "has a name or a value that HTTP does not allow"
		}
	}
	return ""
}

// Judgement is what an answer means by itself, whatever became of the key.
type Judgement struct {
	Verdict Verdict
	Status  Status    // of the key, with VerdictCoolDown
	Until   time.Time // with VerdictCoolDown
	Rule    string    // that matched
	Reason  string    // what the upstream said, one bounded line without secrets
	Own     bool      // with VerdictRotate: the key has used up what is its own, which says nothing of the upstream
	Askable bool      // with VerdictRotate: the upstream, asked about the key, could show that it is good
	Works   bool      // the answer shows that the key works
}

// Classifier knows the rules. Calls do not block and are safe for concurrent use. The secret, which may be zero, is the key's:
// it is kept out of the judgement.
type Classifier interface {
	Classify(kind UpstreamKind, a Answer, now time.Time, secret Secret) Judgement
}

// ReportResult says what was made of a report.
type ReportResult struct {
	Verdict     Verdict
	Rule        string // that matched, or what overruled it
	MatchedRule string // "" if it was not overruled
	Reason      string
	Until       time.Time // with VerdictCoolDown
	Outcome     Outcome   // with VerdictRotate
	Rotation    *Rotation // with VerdictRotate, and of a life that is over
	Key         *Active   // to go on with; may be nil
	Incident    bool      // the pool is in one: reports change nothing
	Revision    int64
}

// reportTries bounds how often a report is decided anew because its life changed meanwhile.
const reportTries = 8

// errLifeChanged says that a report's life is not as it was: decide again, from the store.
var errLifeChanged = errors.New("the life has changed")

// Report decides what an upstream's answer means for a key, and does it: the key is rotated on Rotate's own path, it cools
// down, or nothing happens.
//
// Reports are cheap to repeat: N reports of one failure make one write at the most, a report about a life that is over
// makes none, and none touches a later life. A crash at any point leaves what one of its transactions left; each is whole.
// Errors are as those of Rotate.
func (r *Rotator) Report(ctx context.Context, rep FailureReport) (*ReportResult, error) {
	if err := rep.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.reportBudget(rep.Pool))
	defer cancel()
	rep.Source = r.Scrub(rep.Source)
	if rep.RequestID == "" {
		rep.RequestID = uuid.NewString()
	}
	res, err := r.decideReport(ctx, &rep)
	if err != nil {
		return nil, err
	}
	r.Observer.Reported(Life{rep.Pool, rep.Key, rep.Generation}, res.Verdict, res.Rule)
	return res, nil
}

// quickBudget bounds a report for which no upstream is asked, so that callers learn within two seconds that it cannot work.
const quickBudget = 1800 * time.Millisecond

func (r *Rotator) reportBudget(pool string) time.Duration {
	budget := max(quickBudget, r.Budget)
	r.Mirror.Read(func(s *Snapshot) {
		if p := s.Pool(pool); p != nil && p.Pool.Spec.ConfirmReports {
			budget = max(budget, confirmBudget)
		}
	})
	return budget
}

// decideReport looks in memory first, and in the store where memory cannot tell.
func (r *Rotator) decideReport(ctx context.Context, rep *FailureReport) (*ReportResult, error) {
	sight, known := r.inMemory(ctx, rep)
	for range reportTries {
		if !known {
			var err error
			if sight, err = r.inStore(ctx, rep); err != nil {
				return nil, err
			}
		}
		res, err := r.act(ctx, rep, sight, !known)
		if !errors.Is(err, errLifeChanged) {
			return res, err
		}
		known = false
	}
	return nil, Refuse(ReasonConflict, "somebody else kept changing key %q; nothing was done, repeat the call", rep.Key)
}

// sighting is a report's life as it was seen at one revision.
type sighting struct {
	pool     *Pool
	active   *Active   // nil: the life is over
	rotation *Rotation // that ended it, if it is over and on record
	waits    bool      // a rotation of it waits for stock
	revision int64
}

// inMemory looks in the mirror and reports false if that cannot tell.
func (r *Rotator) inMemory(ctx context.Context, rep *FailureReport) (s *sighting, known bool) {
	if s = r.glance(rep); s == nil && r.aboutToShow(ctx, rep.Generation) {
		s = r.glance(rep)
	}
	return s, s != nil
}

func (r *Rotator) glance(rep *FailureReport) (s *sighting) {
	r.Mirror.Read(func(snap *Snapshot) {
		p := snap.Pool(rep.Pool)
		if p == nil {
			return
		}
		if rot := p.Rotation(Life{rep.Pool, rep.Key, rep.Generation}); rot != nil {
			s = &sighting{pool: p.Pool, rotation: rot, revision: snap.Revision}
			return
		}
		a := p.Active[rep.Key]
		if a != nil && (rep.Generation == 0 || rep.Generation == a.CreateRevision) {
			s = &sighting{pool: p.Pool, active: a, waits: p.waits(a), revision: snap.Revision}
		}
	})
	return s
}

// inStore looks as RotateKey does: linearizably, shared by all who ask at the moment.
func (r *Rotator) inStore(ctx context.Context, rep *FailureReport) (*sighting, error) {
	if err := r.Ready(); err != nil {
		return nil, err
	}
	req := r.requestFor(rep, "")
	st, err := r.standing(ctx, req)
	if err != nil {
		return nil, err
	}
	p, err := Find[*Pool](st.state, PoolRef(rep.Pool))
	if err == nil && p == nil {
		err = noSuchPool(rep.Pool)
	}
	if err != nil {
		return nil, err
	}
	s := &sighting{pool: p, revision: st.state.Revision}
	if s.rotation = st.answered(req); s.rotation != nil {
		return s, nil
	}
	a, err := Find[*Active](st.state, ActiveRef(rep.Pool, rep.Key))
	if err != nil {
		return nil, err
	}
	if a != nil && (rep.Generation == 0 || rep.Generation == a.CreateRevision) {
		pending, err := Find[*Pending](st.state, PendingRef(rep.Pool, rep.Key))
		s.active, s.waits = a, pending != nil && pending.Generation == a.CreateRevision
		return s, err
	}
	v := decideEnded(req, st, a)
	if s.rotation = v.rotation; v.action == refuse && ReasonOf(v.refusal) != ReasonRotationNotFound {
		return nil, v.refusal
	}
	return s, nil
}

// requestFor is the request that a report makes.
func (r *Rotator) requestFor(rep *FailureReport, reason string) *RotateRequest {
	req := &RotateRequest{
		Pool: rep.Pool, Key: rep.Key, Generation: rep.Generation, Trigger: TriggerPool, Source: rep.Source, Reason: reason,
		RequestID: rep.RequestID, ProxyID: rep.ProxyID, reported: true,
	}
	if rep.ProxyID != "" {
		req.Trigger = TriggerProxy
	}
	return req
}

// act judges a report and does what that means for the life that was seen. sure: it was seen in the store. It returns
// errLifeChanged if that is not how the life is, or if only the store can tell.
func (r *Rotator) act(ctx context.Context, rep *FailureReport, s *sighting, sure bool) (*ReportResult, error) {
	now := r.Now()
	j := r.judge(rep, s, now)
	switch {
	case s.active == nil:
		return r.late(ctx, rep, s, j)
	case s.pool.IncidentAt(now) != nil:
		return r.duringIncident(ctx, rep, s, j), nil
	case j.Verdict == VerdictIgnore:
		return r.ignored(ctx, rep, s.revision, j, ""), nil
	case rep.Generation == 0 && !sure:
		return nil, errLifeChanged // the caller means the life that is active now, which the store knows
	case s.active.Status == StatusDisabled:
		return r.ignored(ctx, rep, s.revision, j, ruleDisabled), nil
	}
	if err := mayRotate(s.pool, s.active, TriggerPool); err != nil && (j.Verdict == VerdictRotate || ReasonOf(err) != ReasonPoolPaused) {
		if !sure {
			return nil, errLifeChanged
		}
		return nil, err
	}
	if err := r.Ready(); err != nil {
		return nil, err
	}
	if j.Verdict == VerdictCoolDown {
		return r.coolReported(ctx, rep, s, j)
	}
	return r.rotateReported(ctx, rep, s, j)
}

// judge has an answer classified, with the key it is about kept out of what is said.
func (r *Rotator) judge(rep *FailureReport, s *sighting, now time.Time) Judgement {
	if r.Classify == nil {
		return Judgement{Verdict: VerdictIgnore, Rule: "unknown"}
	}
	return r.Classify.Classify(s.pool.Spec.Upstream.Is(), rep.Answer, now, r.secretOf(rep, s))
}

// secretOf opens the key that a report is about. One that is gone, or does not open, is left to the looks of it.
func (r *Rotator) secretOf(rep *FailureReport, s *sighting) Secret {
	if r.Sealer == nil {
		return Secret{}
	}
	sealed := r.sealedOf(rep, s)
	if sealed.IsZero() {
		return Secret{}
	}
	secret, err := r.Sealer.Open(rep.Pool, rep.Key, sealed)
	if err != nil {
		return Secret{}
	}
	return secret
}

func (r *Rotator) sealedOf(rep *FailureReport, s *sighting) (sealed Sealed) {
	if s.active != nil {
		return s.active.Sealed
	}
	r.Mirror.Read(func(snap *Snapshot) {
		p := snap.Pool(rep.Pool)
		if p == nil {
			return
		}
		if old := p.Retired[rep.Key]; old != nil {
			sealed = old.Sealed
		} else if a := p.Active[rep.Key]; a != nil {
			sealed = a.Sealed
		} else if b := p.Backup[rep.Key]; b != nil {
			sealed = b.Sealed
		}
	})
	return sealed
}

// late answers for a life that is over. What would rotate it is answered as RotateKey is: with the rotation that did.
func (r *Rotator) late(ctx context.Context, rep *FailureReport, s *sighting, j Judgement) (*ReportResult, error) {
	if s.rotation == nil {
		return r.ignored(ctx, rep, s.revision, j, ruleLate), nil
	}
	req := r.requestFor(rep, "")
	if j.Verdict == VerdictRotate {
		began := r.Now()
		rotated := r.report(ctx, req, s.rotation, nil)
		r.Observer.Answered(s.rotation.Life, req.Trigger, req.Source, rotated.Outcome.String(), true, r.Now().Sub(began))
		return rotatedResult(j, rotated), nil
	}
	rotated := r.report(ctx, req, s.rotation, nil)
	return &ReportResult{
		Verdict: VerdictIgnore, Rule: ruleLate, MatchedRule: j.Rule, Reason: j.Reason,
		Rotation: s.rotation, Key: rotated.Key, Revision: rotated.Revision,
	}, nil
}

func rotatedResult(j Judgement, res *RotateResult) *ReportResult {
	return &ReportResult{
		Verdict: VerdictRotate, Rule: j.Rule, Reason: j.Reason,
		Outcome: res.Outcome, Rotation: res.Rotation, Key: res.Key, Revision: res.Revision,
	}
}

// ignored answers that nothing was changed, because of the rule that matched or because another overruled it.
func (r *Rotator) ignored(ctx context.Context, rep *FailureReport, revision int64, j Judgement, by string) *ReportResult {
	res := &ReportResult{Verdict: VerdictIgnore, Rule: j.Rule, Reason: j.Reason, Revision: revision}
	if by != "" {
		res.Rule, res.MatchedRule = by, j.Rule
	}
	r.goOn(ctx, rep, res, true)
	return res
}

// goOn completes an answer with a key to go on with: the same one if it is usable and may be named, or another of the
// proxy. A mirror that is held up names none: the answer must not be older than it says.
func (r *Rotator) goOn(ctx context.Context, rep *FailureReport, res *ReportResult, same bool) {
	ctx, cancel := context.WithTimeout(ctx, mirrorGrace)
	defer cancel()
	if r.Mirror.Wait(ctx, res.Revision) != nil {
		return
	}
	now := r.Now()
	r.Mirror.Read(func(s *Snapshot) {
		res.Revision = s.Revision
		p := s.Pool(rep.Pool)
		if p == nil || s.Broken[BindingRef(rep.Pool, rep.ProxyID)] != nil {
			return
		}
		a := p.Active[rep.Key]
		if same && a != nil && a.StatusAt(now) == StatusHealthy && (rep.Generation == 0 || rep.Generation == a.CreateRevision) {
			res.Key = a
			return
		}
		res.Key = p.anotherKey(rep.ProxyID, rep.Key, now)
	})
}

// rotateReported replaces the key, unless so many were reported bad that the upstream itself must be at fault, or the
// upstream says when asked that the key is good.
func (r *Rotator) rotateReported(ctx context.Context, rep *FailureReport, s *sighting, j Judgement) (*ReportResult, error) {
	if !s.waits && !j.Own { // else it was decided before and waits for stock, or keys of equal budgets would be an outage
		incident, err := r.strike(ctx, s)
		if err != nil {
			return nil, err
		}
		if incident != nil {
			return r.incidentResult(ctx, rep, s.revision, j), nil
		}
	}
	req := r.requestFor(rep, reasonOf(j))
	req.Generation = s.active.CreateRevision
	req.confirm = s.pool.Spec.ConfirmReports && j.Askable && !s.waits
	res, err := r.rotate(ctx, *req)
	switch {
	case errors.Is(err, errIncident):
		return r.incidentResult(ctx, rep, s.revision, j), nil
	case ReasonOf(err) == ReasonKeyDisabled:
		return r.ignored(ctx, rep, s.revision, j, ruleDisabled), nil
	case err != nil:
		return nil, err
	case res.probed != nil:
		return r.probedResult(ctx, rep, res, j), nil
	}
	return rotatedResult(j, res), nil
}

// reasonOf is what a report puts on record.
func reasonOf(j Judgement) string {
	text := j.Rule
	if j.Reason != "" {
		text += ": " + j.Reason
	}
	return Clip(text, MaxReason)
}

// probedResult answers for a key that was not rotated because of what its upstream said when asked.
func (r *Rotator) probedResult(ctx context.Context, rep *FailureReport, rotated *RotateResult, j Judgement) *ReportResult {
	if rotated.probed.result != ProbeAlive {
		return r.ignored(ctx, rep, rotated.Revision, j, ruleProbeUnreachable)
	}
	if rotated.probed.until.IsZero() { // it is out of service for other reasons, with no end: a rest changes nothing
		return r.ignored(ctx, rep, rotated.Revision, j, ruleProbeAlive)
	}
	res := &ReportResult{
		Verdict: VerdictCoolDown, Rule: ruleProbeAlive, MatchedRule: j.Rule, Reason: j.Reason, Until: rotated.probed.until,
		Revision: rotated.Revision,
	}
	r.goOn(ctx, rep, res, false)
	return res
}
