package pool

import "time"

// Observer is told what happened, for the log and the metrics. Calls must not block. No argument ever holds a secret.
type Observer interface {
	// Rotated: this replica committed a rotation; took counts from the first caller's request.
	Rotated(r *Rotation, took time.Duration)
	// Parked: this replica recorded that a rotation waits for stock.
	Parked(p *Pending)
	// Blocked: a rotation that waits for stock cannot be made although there is some, until somebody has looked into err.
	Blocked(l Life, err error)
	// Answered: a RotateKey call was answered with outcome ("rotated", "already_rotated", "pending" or a refusal's reason
	// in lower case). shared: the call made no work of its own, because the answer was in memory or another call did it.
	Answered(l Life, t Trigger, source, outcome string, shared bool, took time.Duration)
	// Conflict: a commit lost a compare; cause is one of a few fixed words.
	Conflict(l Life, cause string)
	// TookOver: this replica took a lock over from a holder that did not finish in time.
	TookOver(l Life, holder string, after time.Duration)
	// BoundReached: this replica put on record that the pool's bound was found reached, when key was to be rotated. It is
	// told once in a window.
	BoundReached(p *Pool, key string)
	// OutcomeUnknown: the store did not say what became of a write that is about subject; it is looked into.
	OutcomeUnknown(pool, subject string, attempt int, err error)
	// Reported: a report was answered with a verdict, by the rule that matched or what overruled it.
	Reported(l Life, v Verdict, rule string)
	// CooledDown: this replica wrote a cool-down; a is the key with it.
	CooledDown(a *Active, t Trigger, source string)
	// IncidentBegan: this replica recognised that a pool's upstream itself is at fault.
	IncidentBegan(pool string, i *Incident)
	// IncidentEnded: this replica ended an incident before its time.
	IncidentEnded(pool string, t Trigger)
	// Probed: the upstream was asked about a key.
	Probed(l Life, result ProbeResult, reason string, took time.Duration)
}

// NopObserver ignores everything.
type NopObserver struct{}

// Rotated implements Observer.
func (NopObserver) Rotated(*Rotation, time.Duration) {}

// Parked implements Observer.
func (NopObserver) Parked(*Pending) {}

// Blocked implements Observer.
func (NopObserver) Blocked(Life, error) {}

// Answered implements Observer.
func (NopObserver) Answered(Life, Trigger, string, string, bool, time.Duration) {}

// Conflict implements Observer.
func (NopObserver) Conflict(Life, string) {}

// TookOver implements Observer.
func (NopObserver) TookOver(Life, string, time.Duration) {}

// BoundReached implements Observer.
func (NopObserver) BoundReached(*Pool, string) {}

// OutcomeUnknown implements Observer.
func (NopObserver) OutcomeUnknown(string, string, int, error) {}

// Reported implements Observer.
func (NopObserver) Reported(Life, Verdict, string) {}

// CooledDown implements Observer.
func (NopObserver) CooledDown(*Active, Trigger, string) {}

// IncidentBegan implements Observer.
func (NopObserver) IncidentBegan(string, *Incident) {}

// IncidentEnded implements Observer.
func (NopObserver) IncidentEnded(string, Trigger) {}

// Probed implements Observer.
func (NopObserver) Probed(Life, ProbeResult, string, time.Duration) {}
