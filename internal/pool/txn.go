package pool

import (
	"context"
	"slices"
	"time"
)

// Kind is a kind of record: the first element of its key in the store.
type Kind string

// The kinds of records.
const (
	KindPool        Kind = "pools"
	KindSlot        Kind = "slots"
	KindActive      Kind = "active"
	KindBackup      Kind = "backup"
	KindRetired     Kind = "retired"
	KindRotation    Kind = "rotations"
	KindPending     Kind = "pending"
	KindBinding     Kind = "bindings"
	KindFingerprint Kind = "fingerprints"
	KindEvent       Kind = "events"
	KindLock        Kind = "locks"
	KindReplica     Kind = "replicas"
	KindToken       Kind = "tokens"
	KindHealth      Kind = "health"
	KindPreparation Kind = "stock"
	KindRelay       Kind = "relays"
)

// Ref names a record. Which fields are set follows from the kind: pools have only Pool, replicas and relays only Name,
// rotations have a Generation.
type Ref struct {
	Kind       Kind
	Pool       string
	Name       string
	Generation int64
}

// PoolRef names a pool's record.
func PoolRef(pool string) Ref { return Ref{Kind: KindPool, Pool: pool} }

// SlotRef names a slot.
func SlotRef(pool, slot string) Ref { return Ref{Kind: KindSlot, Pool: pool, Name: slot} }

// ActiveRef names a key in service.
func ActiveRef(pool, key string) Ref { return Ref{Kind: KindActive, Pool: pool, Name: key} }

// BackupRef names a key in stock.
func BackupRef(pool, key string) Ref { return Ref{Kind: KindBackup, Pool: pool, Name: key} }

// RetiredRef names a retired key.
func RetiredRef(pool, key string) Ref { return Ref{Kind: KindRetired, Pool: pool, Name: key} }

// RotationRef names the record of how a life ended.
func RotationRef(l Life) Ref {
	return Ref{Kind: KindRotation, Pool: l.Pool, Name: l.Key, Generation: l.Generation}
}

// PendingRef names a rotation that waits for stock.
func PendingRef(pool, key string) Ref { return Ref{Kind: KindPending, Pool: pool, Name: key} }

// BindingRef names a proxy's binding.
func BindingRef(pool, proxy string) Ref { return Ref{Kind: KindBinding, Pool: pool, Name: proxy} }

// FingerprintRef names the claim on a secret.
func FingerprintRef(pool, hmac string) Ref {
	return Ref{Kind: KindFingerprint, Pool: pool, Name: hmac}
}

// LockRef names the lock of a key.
func LockRef(pool, key string) Ref { return Ref{Kind: KindLock, Pool: pool, Name: key} }

// EventRef names an event.
func EventRef(pool, id string) Ref { return Ref{Kind: KindEvent, Pool: pool, Name: id} }

// ReplicaRef names a replica.
func ReplicaRef(name string) Ref { return Ref{Kind: KindReplica, Name: name} }

// TokenRef names a token of a pool's bound.
func TokenRef(pool, name string) Ref { return Ref{Kind: KindToken, Pool: pool, Name: name} }

// HealthRef names the record of which keys were reported bad.
func HealthRef(pool string) Ref { return Ref{Kind: KindHealth, Pool: pool, Name: "reports"} }

// PreparationRef names a key in preparation.
func PreparationRef(pool, key string) Ref { return Ref{Kind: KindPreparation, Pool: pool, Name: key} }

// RelayRef names the record of how far a relay has come.
func RelayRef(name string) Ref { return Ref{Kind: KindRelay, Name: name} }

// Record is any of the record types, as a pointer. Records are immutable once they are in a State or the Mirror.
type Record interface {
	Ref() Ref
	// At is where the record stands; all zero for one that was not read from the store.
	At() Version
}

// Ref implements Record.
func (p *Pool) Ref() Ref { return PoolRef(p.Name) }

// Ref implements Record.
func (s *Slot) Ref() Ref { return SlotRef(s.Pool, s.Name) }

// Ref implements Record.
func (a *Active) Ref() Ref { return ActiveRef(a.Pool, a.Key) }

// Ref implements Record.
func (b *Backup) Ref() Ref { return BackupRef(b.Pool, b.Key) }

// Ref implements Record.
func (r *Retired) Ref() Ref { return RetiredRef(r.Pool, r.Key) }

// Ref implements Record.
func (r *Rotation) Ref() Ref { return RotationRef(r.Life) }

// Ref implements Record.
func (p *Pending) Ref() Ref { return PendingRef(p.Pool, p.Key) }

// Ref implements Record.
func (b *Binding) Ref() Ref { return BindingRef(b.Pool, b.Proxy) }

// Ref implements Record.
func (f *Fingerprint) Ref() Ref { return FingerprintRef(f.Pool, f.HMAC) }

// Ref implements Record.
func (l *Lock) Ref() Ref { return LockRef(l.Pool, l.Key) }

// Ref implements Record.
func (r *Replica) Ref() Ref { return ReplicaRef(r.Name) }

// Ref implements Record.
func (t *Token) Ref() Ref { return TokenRef(t.Pool, t.Name) }

// Ref implements Record.
func (h *Health) Ref() Ref { return HealthRef(h.Pool) }

// Ref implements Record.
func (p *Preparation) Ref() Ref { return PreparationRef(p.Pool, p.Key) }

// Ref implements Record.
func (r *Relay) Ref() Ref { return RelayRef(r.Name) }

// At implements Record for all record types.
func (v Version) At() Version { return v }

// Broken stands for a record that cannot be decoded. It exists, so it blocks what needs its absence, and it can be
// seen, but nothing is decided from it.
type Broken struct {
	Version
	Of  Ref
	Err error
}

// Ref implements Record.
func (b *Broken) Ref() Ref { return b.Of }

// State is what some refs held at one revision, read linearizably. A ref that was not asked for panics when looked up:
// reading it as absent would be a wrong decision.
type State struct {
	Revision int64
	Asked    map[Ref]bool
	Records  map[Ref]Record
}

// Find returns the record at ref, nil if there is none, and a refusal if it cannot be decoded.
func Find[R Record](s *State, ref Ref) (rec R, err error) {
	if !s.Asked[ref] {
		panic("pool: state looked up at a ref that was not read: " + string(ref.Kind))
	}
	switch r := s.Records[ref].(type) {
	case nil:
		return rec, nil
	case *Broken:
		return rec, Refuse(ReasonRecordUnreadable, "the record %s/%s/%s cannot be read; `rotatorctl doctor` says more", ref.Kind, ref.Pool, ref.Name).Because(r.Err)
	default:
		return r.(R), nil
	}
}

// Has reports whether something, readable or not, is at ref.
func (s *State) Has(ref Ref) bool {
	if !s.Asked[ref] {
		panic("pool: state looked up at a ref that was not read: " + string(ref.Kind))
	}
	return s.Records[ref] != nil
}

// Guard is one compare of a transaction. Exactly one of its rules applies: the record's create revision, or its
// modification revision. Zero means that the record must not exist.
type Guard struct {
	Ref      Ref
	Rule     Rule
	Revision int64
}

// Rule says which revision a Guard compares.
type Rule int

// The rules.
const (
	Created  Rule = iota // CreateRevision: the life
	Modified             // ModRevision: the version
)

// Absent guards that nothing is at ref.
func Absent(ref Ref) Guard { return Guard{ref, Created, 0} }

// LifeIs guards that the same life is still in service, whatever in-place writes happened to it.
func LifeIs(l Life) Guard { return Guard{ActiveRef(l.Pool, l.Key), Created, l.Generation} }

// Unchanged guards that a record is exactly as it was read; revision 0 guards that it is still absent.
func Unchanged(ref Ref, modRevision int64) Guard { return Guard{ref, Modified, modRevision} }

// Same guards that rec is exactly as it was read.
func Same(rec Record) Guard { return Unchanged(rec.Ref(), rec.At().ModRevision) }

// Holds reports whether the guard would hold in s.
func (g Guard) Holds(s *State) bool {
	var at Version
	if rec := s.Records[g.Ref]; rec != nil {
		at = rec.At()
	}
	if g.Rule == Created {
		return at.CreateRevision == g.Revision
	}
	return at.ModRevision == g.Revision
}

// Txn is one guarded transition: all guards hold and all changes happen, or nothing does. The event is part of it; it is nil
// for what is no transition, such as a note that a key was reported bad. Then a second copy of it is not known again: its
// guards must not hold any more once it was applied.
//
// Sending the same Txn again after an unknown outcome is safe: its event is written once. A definite "no" answers for all
// copies under way if one of the guards that did not hold is final; else see Result.Late.
type Txn struct {
	If     []Guard
	Put    []Record
	Delete []Ref
	Event  *Event
	// NotAfter is when the last send may begin: what the transaction is dated with would be too old. Zero: at any time.
	NotAfter time.Time
}

// about is what the transaction is about, for the log. One without an event, which makes no transition, is about the record
// that it puts.
func (t *Txn) about() (pool, subject string) {
	switch {
	case t.Event != nil:
		return t.Event.Pool, t.Event.Subject
	case len(t.Put) > 0:
		ref := t.Put[0].Ref()
		return ref.Pool, string(ref.Kind) + "/" + ref.Name
	}
	return "", ""
}

// Result is the store's definite answer to a Txn.
type Result struct {
	Applied  bool
	Revision int64  // of the commit, if applied
	State    *State // if not applied: what all guarded refs held
	// Late, if not applied: an earlier send may still arrive, and what stood in this one's way may be gone then.
	Late bool
}

// final reports whether the guard, once it does not hold, never will: revisions do not come back. What must be absent may
// be removed, but for the record of a rotation, which outlives every send, and a token, which goes only with its pool, whose
// record is compared too.
func (g Guard) final() bool {
	return g.Revision != 0 || g.Ref.Kind == KindRotation || g.Ref.Kind == KindToken
}

// Failed lists the guards that did not hold.
func (r *Result) Failed(t *Txn) []Guard {
	var failed []Guard
	for _, g := range t.If {
		if !g.Holds(r.State) {
			failed = append(failed, g)
		}
	}
	return failed
}

// Store is the replicated state. All calls block until ctx ends at the latest; all are safe for concurrent use.
type Store interface {
	// Apply sends t once. An error is ErrNotApplied (surely nothing happened), ErrOutcomeUnknown, or a refusal for what
	// can never work; everything else is a definite Result. If t was applied by an earlier send (its event is there), the
	// Result says Applied with the revision of that send.
	Apply(ctx context.Context, t *Txn) (*Result, error)
	// Read reads refs linearizably at one revision. It repeats by itself while that can help. Errors are ErrNotApplied.
	Read(ctx context.Context, refs ...Ref) (*State, error)
	// List reads all records of a kind in a pool, by name, linearizably and at one revision; at most limit of them if
	// limit is not zero. Undecodable records come as *Broken.
	List(ctx context.Context, kind Kind, pool string, limit int) (recs []Record, revision int64, err error)
	// Rotations reads the rotations on record for a key, linearizably, in the order they were made.
	Rotations(ctx context.Context, pool, key string) (rotations []*Rotation, revision int64, err error)
	// Sweep deletes the records of a kind in a pool in bounded batches, as long as the pool's record is unchanged.
	Sweep(ctx context.Context, kind Kind, pool *Pool) error
	// ReadAll reads everything but events, linearizably and at one revision.
	ReadAll(ctx context.Context) (recs []Record, revision int64, err error)
}

// Bounds on work that no caller's context bounds.
const (
	resendPause    = 20 * time.Millisecond // first pause before an unknown write is sent again; doubles
	maxResendPause = 250 * time.Millisecond
	// firstAnswer is how long the first send waits for its answer; it doubles. A member of etcd that hangs costs callers
	// this and not more, since the next send goes to another one; and sending again is safe.
	firstAnswer = 200 * time.Millisecond
)

// applier sends transactions until their outcome is known.
type applier struct {
	store Store
	now   func() time.Time
	// unknown is told of each send whose outcome was not known, for the log and the metrics.
	unknown func(t *Txn, attempt int, err error)
}

// apply sends t again and again until its outcome is known or ctx ends.
//
// A crash after any send leaves either all of t or nothing. Its error is ErrNotApplied only if no send can have
// arrived.
func (a *applier) apply(ctx context.Context, t *Txn) (*Result, error) {
	maybe := false
	for attempt, pause := 1, resendPause; ; attempt, pause = attempt+1, min(2*pause, maxResendPause) {
		if a.outdated(t) {
			if maybe {
				return nil, errNotKnown
			}
			return nil, errOutdated
		}
		res, err := a.send(ctx, t, firstAnswer<<min(attempt-1, 8))
		switch reason := ReasonOf(err); {
		case err == nil:
			res.Late = maybe && !res.Applied && !slices.ContainsFunc(res.Failed(t), Guard.final)
			return res, nil
		case reason == ReasonOutcomeUnknown:
			maybe = true
			a.unknown(t, attempt, err)
		case reason != ReasonNotApplied:
			if maybe { // of this send it is known, but not of an earlier one
				return nil, errNotKnown.Because(err)
			}
			return nil, err
		}
		if !wait(ctx, pause) {
			if maybe {
				return nil, errNotKnown.Because(err)
			}
			return nil, Refuse(ReasonNotApplied, "the store cannot be written now; try again").Because(err)
		}
	}
}

// send sends t once and waits for its answer for a time.
func (a *applier) send(ctx context.Context, t *Txn, patience time.Duration) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return a.store.Apply(ctx, t)
}

// outdated reports whether it is too late to send t: this process stood still.
func (a *applier) outdated(t *Txn) bool { return !t.NotAfter.IsZero() && a.now().After(t.NotAfter) }

var errOutdated = Refuse(ReasonNotApplied, "this replica was held up, and what it was about to write is out of date; try again")

var errNotKnown = Refuse(ReasonOutcomeUnknown, "the store did not say in time whether the write was applied; repeat the call")

// wait waits for d and reports false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
