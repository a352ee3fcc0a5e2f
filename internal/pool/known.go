package pool

// known is what this replica knows of a life that it wants to end: from memory, or from a lost campaign if that is newer.
// It is nil if what is known does not say that the life can be ended; a campaign then reads how it is.
//
// It may be old. A campaign on it compares the key's record, so that no operator's hand on the key is passed over, and
// the commit compares everything else.
func (r *Rotator) known(f *flight, last *State) *State {
	st := r.remembered(f.life)
	if own, found := r.begun.get(f.life, st.Revision); found {
		st = own.state()
	}
	if last != nil && last.Revision > st.Revision {
		st = last
	}
	rot, err := Find[*Rotation](st, RotationRef(f.life))
	if err != nil || rot != nil {
		return nil
	}
	now, err := situationOf(f.life, st)
	switch {
	case err != nil, now.active == nil, now.active.CreateRevision != f.life.Generation:
		return nil
	case f.fulfils && (now.pending == nil || now.pending.Generation != f.life.Generation):
		return nil
	case mayRotate(now.pool, now.active, f.req.Trigger) != nil:
		return nil
	}
	return st
}

// lifeRefs are the refs from which a life is decided.
func lifeRefs(l Life) [5]Ref {
	return [...]Ref{PoolRef(l.Pool), ActiveRef(l.Pool, l.Key), RotationRef(l), PendingRef(l.Pool, l.Key), LockRef(l.Pool, l.Key)}
}

// remembered is the state of a life in memory.
func (r *Rotator) remembered(l Life) (st *State) {
	r.Mirror.Read(func(s *Snapshot) {
		st = newStateOf(l, s.Revision)
		for ref := range st.Asked {
			if rec := s.at(ref); rec != nil {
				st.Records[ref] = rec
			}
		}
	})
	return st
}

// newStateOf is an empty state of what a life is decided from.
func newStateOf(l Life, revision int64) *State {
	refs := lifeRefs(l)
	st := &State{Revision: revision, Asked: make(map[Ref]bool, len(refs)), Records: make(map[Ref]Record, len(refs))}
	for _, ref := range refs {
		st.Asked[ref] = true
	}
	return st
}

// at returns the record at one of the refs of a life, nil if there is none.
func (s *Snapshot) at(ref Ref) Record {
	if b := s.Broken[ref]; b != nil {
		return b
	}
	p := s.Pool(ref.Pool)
	if p == nil {
		return nil
	}
	switch ref.Kind {
	case KindPool:
		return orNil(p.Pool)
	case KindActive:
		return orNil(p.Active[ref.Name])
	case KindRotation:
		return orNil(p.Rotation(Life{ref.Pool, ref.Name, ref.Generation}))
	case KindPending:
		return orNil(p.Pending[ref.Name])
	case KindLock:
		return orNil(p.Locks[ref.Name])
	}
	panic("pool: not a ref of a life: " + string(ref.Kind))
}

// orNil keeps a nil pointer from becoming a Record that is not nil.
func orNil[T any, R interface {
	*T
	Record
}](rec R) Record {
	if rec == nil {
		return nil
	}
	return rec
}

// version is the revision at which the key's record was put as s has it, 0 without a state.
func (s *State) version(l Life) int64 {
	if s == nil {
		return 0
	}
	return s.Records[ActiveRef(l.Pool, l.Key)].At().ModRevision
}
