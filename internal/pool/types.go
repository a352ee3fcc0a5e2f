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
)

var homeNames = [...]string{"none", "active", "backup", "retired"}

// String is the home's name in messages and tables.
func (h Home) String() string {
	if h < 0 || int(h) >= len(homeNames) {
		return "unknown"
	}
	return homeNames[h]
}

// Version is what the store knows about where a record stands: Schema as written and the etcd revisions.
type Version struct {
	Schema         int
	CreateRevision int64
	ModRevision    int64
}

// TooNew reports whether a newer build wrote the record, so that rewriting it here would drop fields.
func (v Version) TooNew() bool { return v.Schema > Schema }

// Spec is the part of a pool that operators write.
type Spec struct {
	Description string
	Labels      map[string]string
}

// Pool is a set of interchangeable keys for one upstream.
type Pool struct {
	Version
	Name      string
	Spec      Spec
	Paused    bool
	Deleting  bool
	CreatedAt time.Time
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

// RetiredPhase says what has happened to a retired key since.
type RetiredPhase int

// The phases; the numbers are those of rotator.storage.v1.RetiredPhase.
const (
	PhaseUnspecified RetiredPhase = iota
	PhaseRetired
)

// Retired is a key a rotation took out of service.
type Retired struct {
	Version
	Pool, Key  string
	Phase      RetiredPhase
	Slot       string
	Generation int64 // its last life
	ReplacedBy string
	Sealed     Sealed // zero once purged
	Labels     map[string]string
	AddedAt    time.Time
	RetiredAt  time.Time
	SpendUSD   *float64
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
	Home       Home
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
