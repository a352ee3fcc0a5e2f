package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// CreatePool creates a pool. If it is there with an equal spec nothing is changed.
func (a *Admin) CreatePool(ctx context.Context, name string, spec Spec) (*Pool, int64, error) {
	var f violations
	f.name("name", name)
	f.spec(spec)
	if err := f.refusal(); err != nil {
		return nil, 0, err
	}
	var out *Pool
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(name))
		if err != nil {
			return nil, err
		}
		if st.Has(PoolRef(name)) {
			out, err = existingPool(st, name, spec)
			return nil, err
		}
		out = &Pool{Version: Version{Schema: Schema}, Name: name, Spec: spec, CreatedAt: a.Now().UTC()}
		return &Txn{If: []Guard{Absent(out.Ref())}, Put: []Record{out}, Event: a.event(EventPoolCreated, name, "pools/"+name)}, nil
	})
	return poolPut(out, rev, err)
}

func existingPool(st *State, name string, spec Spec) (*Pool, error) {
	p, err := openPool(st, name)
	if err != nil {
		return nil, err
	}
	if !p.Spec.Equal(spec) {
		return nil, Refuse(ReasonPoolExists, "pool %q exists already with another spec; `rotatorctl pool update %s` changes it", name, name)
	}
	return p, nil
}

// poolPut is the answer to a call that put a pool at revision, or found it as wanted if that is 0.
func poolPut(p *Pool, revision int64, err error) (*Pool, int64, error) {
	if err != nil {
		return nil, 0, err
	}
	done := *p
	done.Version = putAt(p.Version, revision)
	return &done, done.ModRevision, nil
}

// UpdatePool replaces a pool's spec; only if the pool's revision is still ifRevision, unless that is 0. When it changes the
// upstream or the provider for another, that is noted: the keys that are there were made elsewhere.
func (a *Admin) UpdatePool(ctx context.Context, name string, spec Spec, ifRevision int64) (*Pool, int64, error) {
	var f violations
	f.name("name", name)
	f.spec(spec)
	if ifRevision < 0 {
		f.add("if_revision", "must not be negative")
	}
	if err := f.refusal(); err != nil {
		return nil, 0, err
	}
	return a.changePool(ctx, name, EventPoolUpdated, func(p *Pool) (bool, error) {
		if ifRevision != 0 && p.ModRevision != ifRevision {
			return false, Refuse(ReasonConflict, "pool %q is at revision %d, not at %d: somebody else has changed it; read it again", name, p.ModRevision, ifRevision)
		}
		changed := !p.Spec.Equal(spec)
		if p.Spec.movesTo(spec) {
			p.UpstreamSince = a.Now().UTC()
		}
		p.Spec = spec
		return changed, nil
	})
}

// PausePool stops all rotations of a pool: each compares the pool's record, so from this commit on none decided before
// can be made.
func (a *Admin) PausePool(ctx context.Context, name string) (*Pool, int64, error) {
	return a.setPaused(ctx, name, true, EventPoolPaused)
}

// ResumePool allows rotations again.
func (a *Admin) ResumePool(ctx context.Context, name string) (*Pool, int64, error) {
	return a.setPaused(ctx, name, false, EventPoolResumed)
}

func (a *Admin) setPaused(ctx context.Context, name string, paused bool, kind EventType) (*Pool, int64, error) {
	var f violations
	f.name("name", name)
	if err := f.refusal(); err != nil {
		return nil, 0, err
	}
	return a.changePool(ctx, name, kind, func(p *Pool) (bool, error) {
		changed := p.Paused != paused
		p.Paused = paused
		return changed, nil
	})
}

// SetPoolCredential sets the pool's own credential for its upstream's admin API, or removes it if secret is zero. An equal
// one changes nothing.
func (a *Admin) SetPoolCredential(ctx context.Context, name string, secret Secret) (*Pool, int64, error) {
	var f violations
	f.name("name", name)
	if !secret.IsZero() {
		f.add("credential", CheckSecret(secret))
	}
	if err := f.refusal(); err != nil {
		return nil, 0, err
	}
	var sealed Sealed
	if !secret.IsZero() {
		var err error
		if sealed, err = a.Sealer.Seal(name, CredentialID, secret); err != nil {
			return nil, 0, Refuse(ReasonNotApplied, "the credential cannot be sealed").Because(err)
		}
	}
	return a.changePool(ctx, name, EventPoolCredential, func(p *Pool) (bool, error) {
		if p.Credential.Fingerprint == sealed.Fingerprint {
			return false, nil
		}
		p.Credential = sealed
		return true, nil
	})
}

// changePool changes a copy of a pool's record and puts it if that made a difference.
func (a *Admin) changePool(ctx context.Context, name string, kind EventType, change func(*Pool) (bool, error)) (*Pool, int64, error) {
	var out *Pool
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(name))
		if err != nil {
			return nil, err
		}
		seen, err := openPool(st, name)
		if err != nil {
			return nil, err
		}
		next := *seen
		out = &next
		if changed, err := change(out); err != nil || !changed {
			return nil, err
		}
		return a.poolTxn(seen, out, kind)
	})
	return poolPut(out, rev, err)
}

// poolTxn puts a pool's record over the one that was read.
func (a *Admin) poolTxn(seen, next *Pool, kind EventType) (*Txn, error) {
	if err := rewritable(seen); err != nil {
		return nil, err
	}
	next.Version = renewed(seen.Version)
	return &Txn{If: []Guard{Same(seen)}, Put: []Record{next}, Event: a.event(kind, seen.Name, "pools/"+seen.Name)}, nil
}

// sweepOrder is the order in which a pool's records are deleted. Bindings go first, so that none is ever without its
// key; pending rotations go before the lives they wait for.
var sweepOrder = []Kind{
	KindBinding, KindPending, KindActive, KindSlot, KindPreparation, KindBackup, KindRetired, KindFingerprint, KindRotation, KindToken,
	KindHealth, KindLock,
}

// DeletePool deletes a pool and everything in it but its events. It can be called again after an interruption at any
// point.
//
// A crash after the mark leaves a pool in which nothing can be added or rotated; calling again goes on. Only force goes
// on where another call has begun and something is left, because whether that call had force is not on record.
func (a *Admin) DeletePool(ctx context.Context, name string, force bool) (int64, error) {
	var f violations
	f.name("name", name)
	if err := f.refusal(); err != nil {
		return 0, err
	}
	marked, mine, err := a.markDeleting(ctx, name, force)
	if err != nil {
		return 0, err
	}
	if !force {
		if err := a.refuseIfFilled(ctx, marked, mine); err != nil {
			return 0, err
		}
	}
	for _, kind := range sweepOrder {
		if err := a.Store.Sweep(ctx, kind, marked); err != nil {
			return 0, unfinished("the deletion of pool "+name, err)
		}
	}
	revision, err := a.dropPool(ctx, marked)
	return revision, unfinished("the deletion of pool "+name, err)
}

// markDeleting marks the pool. From this commit on nothing decided before can be committed: no rotation, no binding, no
// addition. mine is false if the mark was there already.
//
// With force the mark is put anew over another's, so that the other cannot take it back while this call deletes.
func (a *Admin) markDeleting(ctx context.Context, name string, force bool) (marked *Pool, mine bool, err error) {
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, PoolRef(name))
		if err != nil {
			return nil, err
		}
		seen, err := Find[*Pool](st, PoolRef(name))
		if err == nil && seen == nil {
			err = noSuchPool(name)
		}
		if err != nil {
			return nil, err
		}
		if seen.Deleting && !force {
			marked = seen
			return nil, nil
		}
		if !force {
			if err := a.checkEmpty(ctx, seen, emptyIt); err != nil {
				return nil, err
			}
		}
		next := *seen
		next.Deleting = true
		marked = &next
		return a.poolTxn(seen, marked, EventPoolDeleting)
	})
	marked, _, err = poolPut(marked, rev, err)
	return marked, rev != 0, err
}

// refuseIfFilled looks again once nothing can be added any more: something may have been between the look and the mark.
// A mark of this call is then taken back.
func (a *Admin) refuseIfFilled(ctx context.Context, marked *Pool, mine bool) error {
	if !mine {
		return a.checkEmpty(ctx, marked, "its deletion was begun by another call; delete it with force to finish")
	}
	err := a.checkEmpty(ctx, marked, emptyIt)
	if err == nil {
		return nil
	}
	// A crash before the mark is taken back leaves the pool marked, with everything in it.
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
	defer cancel()
	if uerr := a.unmark(undo, marked); uerr != nil {
		return Refuse(ReasonOf(unfinished("", err)), "pool %q is not deleted, but stays marked until it is deleted again: it could not be opened in time", marked.Name).
			Because(errors.Join(err, uerr))
	}
	return err
}

// emptyIt says what to do about a pool that is not empty.
const emptyIt = "empty it first (retired keys are revoked in time, or given up with `rotatorctl key remove`), or delete it with force to lose them"

// checkEmpty refuses if the pool holds anything that deleting would lose. That includes the retired keys that may be alive
// at the upstream: with their secrets goes what is needed to revoke them.
func (a *Admin) checkEmpty(ctx context.Context, p *Pool, remedy string) error {
	var parts []string
	meta := make(map[string]string)
	for _, c := range [...]struct {
		kind Kind
		what string
	}{{KindActive, "active keys"}, {KindBackup, "backups"}, {KindPreparation, "keys in preparation"}, {KindPending, "waiting rotations"}, {KindBinding, "bindings"},
		{KindRetired, "retired keys that are not revoked"}} {
		recs, _, err := a.Store.List(ctx, c.kind, p.Name, 0)
		if err != nil {
			return err
		}
		recs = slices.DeleteFunc(recs, func(rec Record) bool { r, ok := rec.(*Retired); return ok && !r.mayLive(p.Spec) })
		if len(recs) > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", len(recs), c.what))
			meta[string(c.kind)] = strconv.Itoa(len(recs))
		}
	}
	if len(parts) == 0 {
		return nil
	}
	r := Refuse(ReasonPoolNotEmpty, "pool %q has %s: %s", p.Name, strings.Join(parts, ", "), remedy)
	r.Metadata = meta
	return r
}

// unmark opens a pool again that this call has marked, unless somebody else has marked it too.
func (a *Admin) unmark(ctx context.Context, marked *Pool) error {
	_, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, marked.Ref())
		if err != nil || !Same(marked).Holds(st) {
			return nil, err
		}
		next := *marked
		next.Deleting = false
		t, err := a.poolTxn(marked, &next, EventPoolUpdated)
		if err == nil {
			t.Event.Reason = "deletion given up: the pool is not empty"
		}
		return t, err
	})
	return err
}

// dropPool deletes the record of a pool that is swept. A crash before it leaves an empty pool that is marked.
func (a *Admin) dropPool(ctx context.Context, marked *Pool) (int64, error) {
	var gone int64
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, marked.Ref())
		if err != nil {
			return nil, err
		}
		if rec := st.Records[marked.Ref()]; rec == nil || rec.At().CreateRevision != marked.CreateRevision {
			gone = st.Revision // another call has finished it
			return nil, nil
		}
		if !Same(marked).Holds(st) {
			return nil, Refuse(ReasonConflict, "somebody else changed pool %q while it was being deleted; delete it again", marked.Name)
		}
		return &Txn{If: []Guard{Same(marked)}, Delete: []Ref{marked.Ref()}, Event: a.event(EventPoolDeleted, marked.Name, "pools/"+marked.Name)}, nil
	})
	return max(rev, gone), err
}
