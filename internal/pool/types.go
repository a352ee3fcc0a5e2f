package pool

import (
	"cmp"
	"slices"
	"time"
)

// Schema is the newest record schema this build reads and writes. A record with a higher one is never rewritten.
const Schema = 1

// Life is one stay of a key in service. Generation is the etcd revision at which the key came into service, so each
// stay has a different one, also when a retired key is restored and promoted again.
type Life struct {
	Pool       string
	Key        string
	Generation int64
}

// Trigger says which party asked.
type Trigger int

// The triggers; the numbers are those of rotator.v1.Trigger.
const (
	TriggerUnspecified Trigger = iota
	TriggerProvider
	TriggerPool
	TriggerSpendChecker
	TriggerProxy
	TriggerOperator
)

var triggerNames = [...]string{"unspecified", "provider", "pool", "spend-checker", "proxy", "operator"}

// String is the trigger's name in logs, metrics and on the command line.
func (t Trigger) String() string {
	if t < 0 || int(t) >= len(triggerNames) {
		return "unknown"
	}
	return triggerNames[t]
}

// Known reports whether the trigger is one a caller may give.
func (t Trigger) Known() bool { return t > TriggerUnspecified && int(t) < len(triggerNames) }

// Status is the condition of an active key.
type Status int

// The statuses; the numbers are those of rotator.v1.KeyStatus.
const (
	StatusUnspecified Status = iota
	StatusHealthy
	StatusRateLimited
	StatusExhausted
	StatusError
	StatusDisabled
)

var statusNames = [...]string{"unspecified", "healthy", "rate_limited", "exhausted", "error", "disabled"}

// String is the status's name in logs, metrics and tables.
func (s Status) String() string {
	if s < 0 || int(s) >= len(statusNames) {
		return "unknown"
	}
	return statusNames[s]
}

// Home is the one place a key is in.
type Home int

// The homes; the numbers are those of rotator.v1.KeyHome.
const (
	HomeNone Home = iota
	HomeActive
	HomeBackup
	HomeRetired
	HomePreparing
)

var homeNames = [...]string{"none", "active", "backup", "retired", "preparing"}

// String is the home's name in messages and tables.
func (h Home) String() string {
	if h < 0 || int(h) >= len(homeNames) {
		return "unknown"
	}
	return homeNames[h]
}

// Version is what the store knows about where a record stands: the etcd revisions, and the schema it was written with. A
// record that was not read has this build's; the store may write it with an older one, which all replicas know.
type Version struct {
	Schema         int
	CreateRevision int64
	ModRevision    int64
}

// TooNew reports whether a newer build wrote the record, so that rewriting it here would drop fields.
func (v Version) TooNew() bool { return v.Schema > Schema }

// Pool is a set of interchangeable keys for one upstream.
type Pool struct {
	Version
	Name      string
	Spec      Spec
	Paused    bool
	Deleting  bool
	CreatedAt time.Time
	Incident  *Incident // nil: none was recognised, or it was ended
	// Credential is the pool's own, for its upstream's admin API; sealed for the key id CredentialID. Zero: it has none.
	Credential Sealed
	// UpstreamSince is when the upstream or the provider was last changed for another: whoever is asked about a key since then
	// may never have had one that was added before. Zero: it never was.
	UpstreamSince time.Time
}

// CredentialID is what a pool's credential is sealed for in place of a key's id. No key can have it.
const CredentialID = "@credential"

// Incident is a time in which so many keys of a pool were reported bad that the upstream itself must be at fault.
type Incident struct {
	Since time.Time
	Until time.Time // when it ends by itself
	Keys  int       // reported bad when it was recognised
}

// IncidentAt is the incident that is going on, nil if there is none: one whose time has passed is over without a write.
func (p *Pool) IncidentAt(now time.Time) *Incident {
	if p.Incident == nil || !now.Before(p.Incident.Until) {
		return nil
	}
	return p.Incident
}

// Slot is a stable place that holds one active key; rotation changes which.
type Slot struct {
	Version
	Pool      string
	Name      string
	Closing   bool
	CreatedAt time.Time
}

// Active is a key in service. Its CreateRevision is its generation.
type Active struct {
	Version
	Pool, Key   string
	Slot        string
	Status      Status
	StatusUntil time.Time // zero: the status does not end by itself
	Sealed      Sealed
	Labels      map[string]string
	Replaces    string
	AddedAt     time.Time
	SpendUSD    *float64
	BudgetUSD   *float64
	SpendAt     time.Time // when spend and budget were read; zero: never

	StatusSince  time.Time // zero: since its life began
	StatusReason string    // the rule that matched a report, "bound", "pending" or "probe-alive"; empty: nobody said
}

// Life names the stay that is going on.
func (a *Active) Life() Life { return Life{a.Pool, a.Key, a.CreateRevision} }

// StatusAt is the condition at a moment: a cool-down that has passed is over without a write.
func (a *Active) StatusAt(now time.Time) Status {
	if !a.StatusUntil.IsZero() && !now.Before(a.StatusUntil) {
		return StatusHealthy
	}
	return a.Status
}

// Backup is a key in stock.
type Backup struct {
	Version
	Pool, Key string
	Sealed    Sealed
	Labels    map[string]string
	AddedAt   time.Time
}

// Phase says how far what a key still needs has come: before it is in stock, and after it was retired.
type Phase int

// The phases; the numbers are those of rotator.v1.KeyPhase. Preparations have those up to PhaseFailed, retired keys the others.
const (
	PhaseUnspecified Phase = iota
	PhasePlanned
	PhaseMinting
	PhaseVerifying
	PhaseFailed
	PhaseRetired
	PhaseRevoking
	PhaseRevoked
	PhaseOrphaned
	PhasePurged
)

var phaseNames = [...]string{"unspecified", "planned", "minting", "verifying", "failed", "retired", "revoking", "revoked", "orphaned", "purged"}

// String is the phase's name in records, logs, metrics and tables.
func (p Phase) String() string {
	if p < 0 || int(p) >= len(phaseNames) {
		return "unknown"
	}
	return phaseNames[p]
}

// Work says what is wanted of a record and how far it has come. It is immutable: Observe and the like return a copy.
type Work struct {
	Generation int64            // what is wanted: raised when an operator retries, cancels or changes it
	Observed   map[string]int64 // for each phase by name, the generation that the phase has completed
	Attempts   int              // of the phase's upstream call, for this generation
	NotBefore  time.Time        // not to be tried before
	Problem    string           // why it did not work the last time, without secrets
	Intent     string           // id of the upstream call that was decided and may have been made
	PhaseSince time.Time
}

// Retired is a key a rotation took out of service.
type Retired struct {
	Version
	Pool, Key  string
	Phase      Phase // PhaseRetired or later
	Slot       string
	Generation int64 // its last life
	ReplacedBy string
	Sealed     Sealed // zero once purged
	Labels     map[string]string
	AddedAt    time.Time
	RetiredAt  time.Time
	SpendUSD   *float64
	Work       *Work // nil: nothing was done yet
}

// Preparation is a key that is being minted and verified for the stock. When it is ready it becomes a Backup.
type Preparation struct {
	Version
	Pool, Key string
	Phase     Phase // PhasePlanned to PhaseFailed
	Work      *Work
	Sealed    Sealed // zero while a provider that chooses secrets itself was not asked
	Labels    map[string]string
	PlannedAt time.Time
	Alias     string // the name the key has at the upstream
}

// Token is one of the rotations that a pool's bound allows in a window.
type Token struct {
	Version
	Pool, Name string // the name is its number, or TokenReached
	UsedAt     time.Time
	Key        string // the key it was used for
	// LastUse is the latest time at which it can have been used last, on this replica's clock. Only the mirror knows; it is
	// not stored.
	LastUse time.Time
}

// TokenReached is the name of the token that says when a pool's bound was last found reached.
const TokenReached = "reached"

// Health says which keys of a pool were reported bad lately.
type Health struct {
	Version
	Pool    string
	Strikes []Strike // by time
}

// Strike is one life that was reported bad.
type Strike struct {
	Key        string
	Generation int64
	Slot       string
	At         time.Time
}

// Relay says how far a relay of events has come.
type Relay struct {
	Version
	Name      string
	Revision  int64 // all events up to it, and in it up to EventID, have been delivered
	EventID   string
	UpdatedAt time.Time
}

// Rotation is the record of how one life ended. It never changes.
type Rotation struct {
	Version
	Life
	ID          string
	Slot        string
	NewKey      string
	Trigger     Trigger
	Source      string
	Reason      string
	RequestID   string
	ProxyID     string
	Holder      string
	CommittedAt time.Time
}

// Revision is the commit's etcd revision, which is also the generation of the new key.
func (r *Rotation) Revision() int64 { return r.CreateRevision }

// Pending is a rotation that waits for stock.
type Pending struct {
	Version
	Life
	Trigger     Trigger
	Source      string
	Reason      string
	RequestID   string
	ProxyID     string
	RequestedAt time.Time
}

// SlotPriority is one slot of a binding; 1 is primary.
type SlotPriority struct {
	Slot     string
	Priority int
}

// Binding ties a proxy to slots.
type Binding struct {
	Version
	Pool      string
	Proxy     string
	Slots     []SlotPriority // by priority, then name
	UpdatedAt time.Time
}

// SortSlots puts slots into the order a binding keeps them in.
func SortSlots(slots []SlotPriority) {
	slices.SortFunc(slots, func(a, b SlotPriority) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Slot, b.Slot))
	})
}

// Fingerprint claims a secret for one key id of a pool.
type Fingerprint struct {
	Version
	Pool string
	HMAC string
	Key  string
}

// Lock is what a holder wrote when it won the campaign for a key.
type Lock struct {
	Version
	Life
	Holder    string
	Campaign  string // unique for each campaign
	Stage     string
	BusyUntil time.Time
	Lease     int64
}

// Replica is one running rotatord.
type Replica struct {
	Version
	Name        string
	KnowsSchema int
	Address     string
	Build       string
	StartedAt   time.Time
	Instance    string
	Lease       int64
}

// Event is one durable transition; it is written in the transaction that makes it. It never holds a secret.
type Event struct {
	ID      string
	Type    EventType
	Pool    string
	Subject string // such as "keys/k1"
	Time    time.Time

	Trigger    Trigger
	Source     string
	Reason     string
	RequestID  string
	Key        string
	NewKey     string
	Generation int64
	Slot       string
	Proxy      string
	RotationID string
	Status     Status
	Until      time.Time // when that status ends by itself
	Home       Home
	Phase      Phase
	Rule       string // that matched a report
}

// EventType names a kind of transition, as the CloudEvents attribute "type".
type EventType string

// The event types.
const (
	EventPoolCreated    EventType = "dev.rotatord.pool.created.v1"
	EventPoolUpdated    EventType = "dev.rotatord.pool.updated.v1"
	EventPoolPaused     EventType = "dev.rotatord.pool.paused.v1"
	EventPoolResumed    EventType = "dev.rotatord.pool.resumed.v1"
	EventPoolDeleting   EventType = "dev.rotatord.pool.deleting.v1"
	EventPoolDeleted    EventType = "dev.rotatord.pool.deleted.v1"
	EventPoolCredential EventType = "dev.rotatord.pool.credential.v1"

	EventBoundReached  EventType = "dev.rotatord.pool.bound_reached.v1"
	EventIncidentBegan EventType = "dev.rotatord.pool.incident_began.v1"
	EventIncidentEnded EventType = "dev.rotatord.pool.incident_ended.v1"
	EventStockLow      EventType = "dev.rotatord.pool.stock_low.v1"
	EventKeyCooledDown EventType = "dev.rotatord.key.cooled_down.v1"
	EventKeyPlanned    EventType = "dev.rotatord.key.planned.v1"
	EventKeyMinting    EventType = "dev.rotatord.key.minting.v1"
	EventKeyMinted     EventType = "dev.rotatord.key.minted.v1"
	EventKeyStocked    EventType = "dev.rotatord.key.stocked.v1"
	EventKeyMintFailed EventType = "dev.rotatord.key.mint_failed.v1"
	EventKeyRetried    EventType = "dev.rotatord.key.retried.v1"
	EventKeyRevoking   EventType = "dev.rotatord.key.revoking.v1"
	EventKeyRevoked    EventType = "dev.rotatord.key.revoked.v1"
	EventKeyOrphaned   EventType = "dev.rotatord.key.orphaned.v1"
	EventKeyPurged     EventType = "dev.rotatord.key.purged.v1"

	EventKeyAdded       EventType = "dev.rotatord.key.added.v1"
	EventKeyRemoved     EventType = "dev.rotatord.key.removed.v1"
	EventKeyRotated     EventType = "dev.rotatord.key.rotated.v1"
	EventKeyPending     EventType = "dev.rotatord.key.pending.v1"
	EventKeyRestored    EventType = "dev.rotatord.key.restored.v1"
	EventKeyEnabled     EventType = "dev.rotatord.key.enabled.v1"
	EventKeyDisabled    EventType = "dev.rotatord.key.disabled.v1"
	EventSlotClosing    EventType = "dev.rotatord.slot.closing.v1"
	EventSlotReopened   EventType = "dev.rotatord.slot.reopened.v1"
	EventBindingSet     EventType = "dev.rotatord.binding.set.v1"
	EventBindingRemoved EventType = "dev.rotatord.binding.removed.v1"
)
