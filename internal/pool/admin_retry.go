package pool

import "context"

// RetryKey tries again what was given up: minting and verifying a key for the stock (from the start, finding out first
// what became of the last try), or revoking a retired key.
//
// It raises the generation of what is wanted in the transaction that changes the phase, so whatever was decided before
// for the old generation loses its compare.
//
// A key that was given up because its pool's upstream was changed is then asked about at the upstream that the pool has now:
// this call is the operator's word that it may be.
func (a *Admin) RetryKey(ctx context.Context, pool, key string) (KeyInfo, int64, error) {
	if err := checkPoolAnd("key_id", pool, key); err != nil {
		return KeyInfo{}, 0, err
	}
	var info KeyInfo
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, p, err := a.readKey(ctx, pool, key)
		if err != nil {
			return nil, err
		}
		seen, next, err := a.retried(st, p, key)
		if err != nil {
			return nil, err
		}
		t := &Txn{If: append(AtHome(seen), Same(p)), Put: []Record{next}, Event: a.event(EventKeyRetried, pool, "keys/"+key)}
		info = next.(interface{ Info() KeyInfo }).Info()
		t.Event.Key, t.Event.Home, t.Event.Phase, t.Event.Generation = key, info.Home, info.Phase, info.Generation
		return t, nil
	})
	if err != nil {
		return KeyInfo{}, 0, err
	}
	info.Revision = rev
	return info, rev, nil
}

// retried is the record of a key as it was given up, and as it goes on.
func (a *Admin) retried(st *State, in *Pool, key string) (seen, next Record, err error) {
	pool := in.Name
	home, _ := whereIs(st, HomeRefs(pool, key)...)
	switch home {
	case HomeNone:
		return nil, nil, noSuchKey(pool, key)
	case HomePreparing:
		p, err := Find[*Preparation](st, PreparationRef(pool, key))
		if err != nil {
			return nil, nil, err
		}
		again := *p
		again.Version, again.Phase, again.Work = renewed(p.Version), PhasePlanned, p.Work.Raised(a.Now().UTC())
		return p, &again, givenUp(p, p.Phase, PhaseFailed)
	case HomeRetired:
		r, err := Find[*Retired](st, RetiredRef(pool, key))
		if err != nil {
			return nil, nil, err
		}
		again := *r
		again.Version, again.Phase, again.Work = renewed(r.Version), PhaseRevoking, r.Work.Raised(a.Now().UTC())
		if r.Work != nil && r.Work.PhaseSince.Before(in.UpstreamSince) {
			again.Work.PhaseSince = r.Work.PhaseSince // given up before the upstream was changed: no word on the one that is now
		}
		return r, &again, givenUp(r, r.Phase, PhaseOrphaned)
	}
	return nil, nil, Refuse(ReasonNothingToRetry, "key %q is %s: nothing about it was given up", key, homeText[home])
}

// givenUp says why a record cannot go on, nil if it can: it is in the phase in which it was given up.
func givenUp(rec Record, is, want Phase) error {
	if is != want {
		return Refuse(ReasonNothingToRetry, "key %q is %s and was not given up: only one that is %s can be retried", rec.Ref().Name, is, want)
	}
	return rewritable(rec)
}

// removePreparing cancels a key in preparation. One that may be at the upstream becomes a retired key that is revoked:
// a mint whose outcome is not known is found out about, and undone. Any other is deleted with the claim on its secret.
func (a *Admin) removePreparing(ctx context.Context, pool, key string) (int64, error) {
	return a.transition(ctx, func() (*Txn, error) {
		st, p, err := a.readKey(ctx, pool, key)
		if err != nil {
			return nil, err
		}
		prep, err := Find[*Preparation](st, PreparationRef(pool, key))
		if err != nil {
			return nil, err
		}
		if prep == nil {
			return nil, errMoved
		}
		if err := rewritable(prep); err != nil {
			return nil, err
		}
		t := &Txn{If: append(AtHome(prep), Same(p)), Delete: []Ref{prep.Ref()}, Event: a.event(EventKeyRemoved, pool, "keys/"+key)}
		t.Event.Key, t.Event.Home, t.Event.Phase = key, HomePreparing, prep.Phase
		if prep.MayExist() {
			gone := prep.Discard(a.Now().UTC())
			t.Put = []Record{gone}
			t.Event.Home, t.Event.Phase = HomeRetired, gone.Phase
			t.Event.Reason = "cancelled in preparation; it may be at the upstream and is revoked there"
		} else if !prep.Sealed.IsZero() {
			t.Delete = append(t.Delete, FingerprintRef(pool, prep.Sealed.Fingerprint)) // put with it, so its own
		}
		return t, nil
	})
}
