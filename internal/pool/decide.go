package pool

import (
	"context"
	"slices"
)

// action is what a request needs next.
type action int

const (
	look   action = iota // the mirror cannot tell: read the store
	refuse               // tell the caller no
	report               // the life has been rotated: tell the caller
	parked               // the rotation waits for stock: tell the caller
	rotate               // make the rotation
)

// verdict is a decision with what it rests on.
type verdict struct {
	action   action
	life     Life
	rotation *Rotation
	refusal  error
	revision int64
}

func refused(err error) verdict { return verdict{action: refuse, refusal: err} }

// fromMemory decides what the mirror alone can decide: yes. Everything else has to be looked up.
func (r *Rotator) fromMemory(req *RotateRequest) (v verdict) {
	if req.Generation == 0 {
		return verdict{action: look}
	}
	life := Life{req.Pool, req.Key, req.Generation}
	shown := int64(0)
	r.Mirror.Read(func(s *Snapshot) {
		shown = s.Revision
		p := s.Pool(req.Pool)
		if p == nil {
			return
		}
		if rot := p.Rotation(life); rot != nil {
			v = verdict{action: report, rotation: rot}
			return
		}
		a := p.Active[req.Key]
		if a == nil || a.CreateRevision != req.Generation || p.Pending[req.Key] != nil {
			return
		}
		if mayRotate(p.Pool, a, req.Trigger) == nil {
			v = verdict{action: rotate, life: life}
		}
	})
	if own, found := r.begun.get(life, shown); found && mayRotate(own.pool, own.active, req.Trigger) == nil {
		v = verdict{action: rotate, life: life}
	}
	return v
}

// mayRotate says why a life in service must not be rotated now, nil if it may.
func mayRotate(p *Pool, a *Active, t Trigger) error {
	switch {
	case p.Deleting:
		return Refuse(ReasonPoolDeleting, "pool %q is being deleted", p.Name)
	case p.Paused:
		return Refuse(ReasonPoolPaused, "pool %q is paused: nothing is rotated until `rotatorctl pool resume %s`", p.Name, p.Name)
	case a.Status == StatusDisabled && t != TriggerOperator:
		return Refuse(ReasonKeyDisabled, "key %q is disabled: only an operator may rotate it", a.Key)
	case p.TooNew(), a.TooNew():
		return Refuse(ReasonSchemaTooNew, "a record of key %q was written by a newer rotatord: upgrade this replica, or ask a newer one", a.Key)
	}
	return nil
}

// standing is everything about one key and, where the request names one, one life, read at one revision.
type standing struct {
	state     *State
	stocked   bool        // the pool has a backup; only read where a rotation waits for one
	rotations []*Rotation // of the life asked for; of the key, oldest first, if none was named
}

// answered is the rotation that answers the request although nothing was decided yet: the one of the life it names, or
// without a life the one its request id made, whatever became of the key since.
func (st *standing) answered(req *RotateRequest) *Rotation {
	for _, rot := range st.rotations {
		if req.Generation != 0 || rot.RequestID == req.RequestID {
			return rot
		}
	}
	return nil
}

// last is the latest rotation that was read.
func (st *standing) last() *Rotation {
	if len(st.rotations) == 0 {
		return nil
	}
	return st.rotations[len(st.rotations)-1]
}

// decide decides from the store. Nothing here is guessed: every refusal rests on one linearizable revision.
func decide(req *RotateRequest, st *standing) verdict {
	s := st.state
	p, err := Find[*Pool](s, PoolRef(req.Pool))
	if err != nil {
		return refused(err)
	}
	if p == nil {
		return refused(Refuse(ReasonPoolNotFound, "pool %q does not exist; `rotatorctl pool list` shows those that do", req.Pool))
	}
	if rot := st.answered(req); rot != nil {
		return verdict{action: report, rotation: rot}
	}
	a, err := Find[*Active](s, ActiveRef(req.Pool, req.Key))
	if err != nil {
		return refused(err)
	}
	inService := a != nil && (req.Generation == 0 || req.Generation == a.CreateRevision)
	if !inService {
		return decideEnded(req, st, a)
	}
	if err := mayRotate(p, a, req.Trigger); err != nil {
		return refused(err)
	}
	pending, err := Find[*Pending](s, PendingRef(req.Pool, req.Key))
	if err != nil {
		return refused(err)
	}
	if pending != nil && pending.Generation == a.CreateRevision && !st.stocked {
		return verdict{action: parked, life: a.Life(), revision: s.Revision}
	}
	return verdict{action: rotate, life: a.Life()}
}

// decideEnded decides for a life that is not in service: it was rotated, or it never was, or it is off the record.
func decideEnded(req *RotateRequest, st *standing, a *Active) verdict {
	s := st.state
	switch {
	case req.Generation > s.Revision:
		return refused(Refuse(ReasonGenerationInFuture, "generation %d is newer than etcd's revision %d: it is not from this installation, or etcd was restored from an older snapshot", req.Generation, s.Revision))
	case req.Generation == 0 && s.Has(BackupRef(req.Pool, req.Key)):
		return refused(Refuse(ReasonKeyInStock, "key %q is in stock, not in service: there is nothing to rotate", req.Key))
	case req.Generation == 0 && st.last() != nil:
		return verdict{action: report, rotation: st.last()}
	case a != nil || s.Has(BackupRef(req.Pool, req.Key)) || s.Has(RetiredRef(req.Pool, req.Key)):
		return refused(Refuse(ReasonRotationNotFound, "no rotation of key %q with generation %d is on record; that life is over", req.Key, req.Generation))
	}
	return refused(Refuse(ReasonKeyNotFound, "pool %q has no key %q; it may have been removed", req.Pool, req.Key))
}

// readStanding reads what decide needs. Its reads are at rising revisions; rotations never change, so one that shows
// up only in the later read is as true as one in the first.
func readStanding(ctx context.Context, store Store, life Life) (*standing, error) {
	pool, key := life.Pool, life.Key
	refs := []Ref{PoolRef(pool), ActiveRef(pool, key), BackupRef(pool, key), RetiredRef(pool, key), PendingRef(pool, key), RotationRef(life)}
	state, err := store.Read(ctx, refs...)
	if err != nil {
		return nil, err
	}
	st := &standing{state: state}
	if life.Generation == 0 {
		st.rotations, _, err = store.Rotations(ctx, pool, key)
	} else if rot, ferr := Find[*Rotation](state, RotationRef(life)); rot != nil {
		st.rotations, err = []*Rotation{rot}, ferr
	} else {
		err = ferr
	}
	if err == nil && state.Has(PendingRef(pool, key)) {
		var stock []Record
		stock, _, err = store.List(ctx, KindBackup, pool, 0)
		st.stocked = slices.ContainsFunc(stock, func(rec Record) bool { b, ok := rec.(*Backup); return ok && usable(b, nil) })
	}
	return st, err
}

// standing reads what decide needs, together with all who ask about the same life at the moment.
func (r *Rotator) standing(ctx context.Context, req *RotateRequest) (*standing, error) {
	life := Life{req.Pool, req.Key, req.Generation}
	return r.reads.do(ctx, r, life, struct{}{}, func(ctx context.Context, _ []struct{}) (*standing, error) {
		ctx, cancel := context.WithTimeout(ctx, readBudget)
		defer cancel()
		return readStanding(ctx, r.Store, life)
	})
}
