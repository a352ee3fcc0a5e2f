package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// AdminConfig is what an Admin works with.
type AdminConfig struct {
	Store    Store
	Sealer   Sealer
	Replica  string // this replica's name, as it is registered
	Observer Observer
	Now      func() time.Time // default: time.Now
	Prefix   string           // of the records in etcd, as Diagnose names them; default: DefaultPrefix
	// Scrub takes what looks like a secret out of the reasons that operators give. Default: nothing is taken out.
	Scrub func(text string) string
}

// Admin makes the changes operators ask for.
//
// Each transition is a linearizable look, a decision, and one transaction that compares what the decision rests on and
// carries the event. A call that needs several of them (removing an active key, deleting a pool) can be repeated after
// a crash at any point; what it leaves meanwhile is marked as such and keeps all invariants.
//
// A call whose state is wanted already succeeds without a write. Every method returns a Refusal or nil, and blocks until
// ctx ends at the latest; removing an active key and deleting a pool may use undoBudget beyond that to take their mark
// back.
type Admin struct {
	AdminConfig
	applier applier
}

// NewAdmin returns an Admin.
func NewAdmin(cfg AdminConfig) *Admin {
	if cfg.Observer == nil {
		cfg.Observer = NopObserver{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.Scrub == nil {
		cfg.Scrub = func(text string) string { return text }
	}
	return &Admin{AdminConfig: cfg, applier: applier{store: cfg.Store, now: cfg.Now, unknown: func(t *Txn, attempt int, err error) {
		pool, subject := t.about()
		cfg.Observer.OutcomeUnknown(pool, subject, attempt, err)
	}}}
}

const (
	// adminTries bounds how often one transition is decided anew because somebody else changed what it rests on.
	adminTries = 8
	// adminPause is the longest pause before the second try; it doubles with each.
	adminPause = 4 * time.Millisecond
	// adminParallel bounds the transactions one call has under way.
	adminParallel = 16
	// undoBudget bounds how long a call that cannot go on works at taking its mark back, whether its caller waits or not.
	undoBudget = time.Second
)

// errLookAgain is returned by a decision that found the state in between two transitions of somebody else.
var errLookAgain = errors.New("look again")

// conflictAdmin is the cause under which lost compares of operators' changes are counted.
const conflictAdmin = "admin"

// transition makes one transition. decide looks at the store and returns the transaction, or nil if there is nothing to
// write. It is called again when a compare was lost. The revision is that of the commit, 0 if nothing was written.
//
// All tries carry one event id. If a copy of an earlier try is still under way, at most one of them can ever be applied.
// While one may still be, the call does not say that nothing was done.
func (a *Admin) transition(ctx context.Context, decide func() (*Txn, error)) (int64, error) {
	id, late := NewID(), false
	for try := range adminTries {
		if try > 0 && !wait(ctx, adminBackoff(try)) {
			if late {
				return 0, errNotKnown.Because(ctx.Err())
			}
			return 0, Refuse(ReasonNotApplied, "not applied in time, because others changed the same records").Because(ctx.Err())
		}
		t, err := decide()
		if errors.Is(err, errLookAgain) {
			continue
		}
		if late && (err != nil || t == nil) {
			return 0, errNotKnown.Because(err)
		}
		if err != nil || t == nil {
			return 0, err
		}
		t.Event.ID = id
		res, err := a.applier.apply(ctx, t)
		switch {
		case err != nil && late:
			return 0, errNotKnown.Because(err)
		case err != nil:
			return 0, err
		case res.Applied:
			return res.Revision, nil
		}
		late = late || res.Late
		a.Observer.Conflict(Life{Pool: t.Event.Pool, Key: t.Event.Key, Generation: t.Event.Generation}, conflictAdmin)
	}
	if late {
		return 0, errNotKnown
	}
	return 0, Refuse(ReasonConflict, "somebody else kept changing the same records; nothing was done, repeat the call")
}

// adminBackoff spreads those who lost to each other.
func adminBackoff(try int) time.Duration {
	return 1 + rand.N(adminPause<<(try-1))
}

// event starts the event of a transition; transition gives it its id.
func (a *Admin) event(kind EventType, pool, subject string) *Event {
	return &Event{Type: kind, Pool: pool, Subject: subject, Time: a.Now().UTC(), Trigger: TriggerOperator}
}

// readKey reads wherever a key may be, and more, with the pool it belongs to.
func (a *Admin) readKey(ctx context.Context, pool, key string, more ...Ref) (*State, *Pool, error) {
	st, err := a.Store.Read(ctx, append(append(HomeRefs(pool, key), PoolRef(pool)), more...)...)
	if err != nil {
		return nil, nil, err
	}
	p, err := openPool(st, pool)
	return st, p, err
}

// openPool finds the pool a transition belongs to and refuses if it is gone or going. A paused pool can be worked on.
func openPool(st *State, name string) (*Pool, error) {
	p, err := Find[*Pool](st, PoolRef(name))
	switch {
	case err != nil:
		return nil, err
	case p == nil:
		return nil, noSuchPool(name)
	case p.Deleting:
		return nil, Refuse(ReasonPoolDeleting, "pool %q is being deleted", name)
	}
	return p, nil
}

// rewritable refuses to write a record anew that may hold what this build does not know.
func rewritable(rec Record) error {
	if !rec.At().TooNew() {
		return nil
	}
	ref := rec.Ref()
	return Refuse(ReasonSchemaTooNew, "the record %s was written by a newer rotatord (schema %d; this replica knows %d): ask an updated replica",
		recordName(ref), rec.At().Schema, Schema)
}

// unseen guards that whatever is or is not at ref, readable or not, is as it was read.
func unseen(st *State, ref Ref) Guard {
	var rev int64
	if rec := st.Records[ref]; rec != nil {
		rev = rec.At().ModRevision
	}
	return Unchanged(ref, rev)
}

// renewed is the version of a record that is written anew over one that was read.
func renewed(v Version) Version {
	v.Schema = Schema
	return v
}

// putAt is the version of a record after it was put at revision; 0: it was not put, and v is what was read.
func putAt(v Version, revision int64) Version {
	if revision == 0 {
		return v
	}
	if v.CreateRevision == 0 {
		v.CreateRevision = revision
	}
	v.Schema, v.ModRevision = Schema, revision
	return v
}

// unfinished is the error of a call that has changed something and could not go on: "not applied" would not be true of it.
func unfinished(what string, err error) error {
	if !errors.Is(err, ErrNotApplied) {
		return err
	}
	return Refuse(ReasonOutcomeUnknown, "%s has begun and is not finished; repeat the call", what).Because(err)
}

// checkPoolAnd checks the two names most requests have.
func checkPoolAnd(field, pool, name string) error {
	var f violations
	f.name("pool", pool)
	f.name(field, name)
	return f.refusal()
}
