package lifecycle

import (
	"fmt"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// Retire is what a retired key needs now.
func Retire(v View, r *pool.Retired, now time.Time) Move {
	switch r.Phase {
	case pool.PhaseRetired:
		return retired(v, r, now)
	case pool.PhaseRevoking:
		return revoking(v, r, now)
	case pool.PhaseRevoked:
		return revoked(v, r, now)
	case pool.PhaseOrphaned:
		return orphaned(v, r, now)
	}
	return purged(v, r, now)
}

// retired: it can be restored until its revocation begins, or its secret is purged where nothing is revoked.
func retired(v View, r *pool.Retired, now time.Time) Move {
	if r.Work.Done(r.Phase) {
		return skipped()
	}
	was := r.Phase
	if !v.Pool.Spec.Revokes() || r.Sealed.IsZero() {
		return purge(v, r, now)
	}
	switch due := r.RetiredAt.Add(v.Pool.Spec.Retirement.Grace()); {
	case now.Before(due):
		return resting("grace", due)
	case v.Pool.Paused:
		return resting("paused", time.Time{})
	case !v.Provider:
		return resting("no_provider_here", now.Add(v.Limits.Recheck))
	case v.Behind:
		return resting("behind", now.Add(pauseAfter))
	case unsafe(v, r, now) != "":
		return resting("held", now.Add(v.Limits.Recheck))
	case madeElsewhere(v, r):
		return orphan(v, r, upstreamChanged, now)
	}
	next := moved(r, pool.PhaseRevoking, r.Work.Next(now, was))
	id := intent(next.Work, v.Limits, now)
	return guarded(v, changing(v, r, next, "intended")).
		telling(pool.EventKeyRevoking, r, pool.HomeRetired, next.Phase, "", now).intending(pool.StageRevoke, id)
}

// unsafe says why a key must not be revoked now: what takes its place has to be there, healthy, and another secret.
// A slot that is gone was removed by an operator, with the key that held it.
func unsafe(v View, r *pool.Retired, now time.Time) string {
	switch s := v.Slot; {
	case v.Claim != "" && v.Claim != r.Key:
		return fmt.Sprintf("key %q has the same secret", v.Claim)
	case v.Elsewhere != "":
		return fmt.Sprintf("pool %q has a key with the same secret", v.Elsewhere)
	case !r.Served() || !v.SlotKnown:
		return ""
	case s == nil:
		return fmt.Sprintf("slot %q has no key in service", r.Slot)
	case s.Sealed.Fingerprint == r.Sealed.Fingerprint:
		return fmt.Sprintf("key %q, which took its place, has the same secret", s.Key)
	case s.StatusAt(now) != pool.StatusHealthy && s.StatusAt(now) != pool.StatusRateLimited:
		return fmt.Sprintf("key %q, which took its place, is %s", s.Key, s.StatusAt(now))
	}
	return ""
}

const upstreamChanged = "the pool's upstream was changed after this key was added: revoke it where it was made, then `rotatorctl key retry` or `key remove`"

// madeElsewhere reports whether a key was added before its pool's upstream was changed. The upstream that the pool has now
// may never have had it, so that it is not there would prove nothing. The retry of a key that was given up since then is an
// operator's word that it may be asked about there.
func madeElsewhere(v View, r *pool.Retired) bool {
	since := v.Pool.UpstreamSince
	retried := r.Phase == pool.PhaseRevoking && r.Work.Was(pool.PhaseOrphaned) && !r.Work.PhaseSince.Before(since)
	return r.AddedAt.Before(since) && !retried
}

// guarded compares what made the revocation safe: the key that took the place is still in service.
func guarded(v View, m Move) Move {
	if v.Slot != nil {
		m.txn.If = append(m.txn.If, pool.LifeIs(v.Slot.Life()))
	}
	return m
}

// revoking: the provider is asked once an intent.
func revoking(v View, r *pool.Retired, now time.Time) Move {
	if r.Work.Done(r.Phase) {
		return skipped()
	}
	was, a := r.Phase, v.Answer
	switch {
	case a.answers(was, r.Work) && (a.Call == CallRevoke && a.Result == Done || a.Call == CallFind && a.Result == Missing):
		next := moved(r, pool.PhaseRevoked, r.Work.Next(now, was).Settled())
		return changing(v, r, next, "revoked").telling(pool.EventKeyRevoked, r, pool.HomeRetired, next.Phase, "", now)
	case a.answers(was, r.Work) && a.Call == CallFind && a.Result == Done:
		return revokeAgain(v, r, now)
	case a.answers(was, r.Work):
		return putOffRevoking(v, r, now)
	case v.Pool.Spec.Provider == nil || r.Served() && !v.Pool.Spec.Revokes(): // what never served was never to be kept there
		return orphan(v, r, "the pool revokes no keys any more", now)
	case madeElsewhere(v, r):
		return orphan(v, r, upstreamChanged, now)
	case !v.Provider:
		return resting("no_provider_here", now.Add(v.Limits.Recheck))
	case r.Work != nil && r.Work.Intent != "" && r.Work.Intent == v.Fresh:
		return asking(CallRevoke, pool.StageRevoke)
	case r.Work != nil && now.Before(r.Work.NotBefore):
		return resting("waiting", r.Work.NotBefore)
	case r.Work == nil || r.Work.Intent == "":
		return revokeAgain(v, r, now)
	}
	return asking(CallFind, pool.StageRevoke)
}

// revokeAgain announces another call, after one that surely had no effect.
func revokeAgain(v View, r *pool.Retired, now time.Time) Move {
	next := moved(r, r.Phase, &pool.Work{Generation: 1})
	if r.Work != nil {
		next.Work = clone(r.Work)
	}
	switch {
	case next.Work.Attempts >= v.Limits.Attempts:
		return orphan(v, r, firstOf(next.Work.Problem, "it was revoked again and again and was still there"), now)
	case v.Pool.Paused:
		return resting("paused", time.Time{})
	case v.Behind:
		return resting("behind", now.Add(pauseAfter))
	case unsafe(v, r, now) != "":
		return resting("held", now.Add(v.Limits.Recheck))
	}
	id := intent(next.Work, v.Limits, now)
	return guarded(v, changing(v, r, next, "intended")).intending(pool.StageRevoke, id)
}

func putOffRevoking(v View, r *pool.Retired, now time.Time) Move {
	w := putOff(r.Work, v.Answer, v.Limits, now)
	if w.Attempts >= v.Limits.Attempts {
		w.NotBefore = r.Work.NotBefore // no other try waits
		return orphan(v, moved(r, r.Phase, w), w.Problem, now)
	}
	return changing(v, r, moved(r, r.Phase, w), "put_off")
}

// orphan lists the key as one that may be alive upstream. Its secret is kept: without it nobody could revoke the key.
func orphan(v View, r *pool.Retired, why string, now time.Time) Move {
	next := moved(r, pool.PhaseOrphaned, r.Work.Next(now, pool.PhaseOrphaned))
	next.Work.Problem = why
	return changing(v, r, next, "orphaned").telling(pool.EventKeyOrphaned, r, pool.HomeRetired, next.Phase, why, now)
}

// orphaned: given up until somebody raises the generation.
func orphaned(_ View, r *pool.Retired, _ time.Time) Move {
	if r.Work.Done(r.Phase) {
		return skipped()
	}
	return resting("given_up", time.Time{})
}

// revoked: the key is dead; its secret stays for as long as the pool says.
func revoked(v View, r *pool.Retired, now time.Time) Move {
	if r.Work.Done(r.Phase) {
		return skipped()
	}
	return purge(v, r, now)
}

// purge deletes the secret, and with it the claim on it, when its time is over.
func purge(v View, r *pool.Retired, now time.Time) Move {
	if due := r.RetiredAt.Add(v.Pool.Spec.Retirement.SecretsFor()); now.Before(due) {
		return resting("retention", due)
	}
	next := moved(r, pool.PhasePurged, r.Work.Next(now, r.Phase).Settled())
	next.Sealed = pool.Sealed{}
	m := changing(v, r, next, "purged").telling(pool.EventKeyPurged, r, pool.HomeRetired, next.Phase, "", now)
	return m.unclaiming(v, r)
}

// unclaiming deletes the claim on a secret that goes. It may be another key's: that one keeps it.
func (m Move) unclaiming(v View, r *pool.Retired) Move {
	if !r.Sealed.IsZero() && v.Claim == r.Key {
		m.txn.Delete = append(m.txn.Delete, pool.FingerprintRef(r.Pool, r.Sealed.Fingerprint))
	}
	return m
}

// purged: only the record is left, and goes with the other records of its time.
func purged(v View, r *pool.Retired, now time.Time) Move {
	if r.Work.Done(r.Phase) {
		return skipped()
	}
	if due := r.RetiredAt.Add(v.Pool.Spec.RecordsFor()); now.Before(due) {
		return resting("retention", due)
	}
	m := changing(v, r, nil, "deleted").telling(pool.EventKeyRemoved, r, pool.HomeRetired, r.Phase, "its time on record is over", now)
	return m.unclaiming(v, r)
}

// moved is r in another phase, or with other work.
func moved(r *pool.Retired, to pool.Phase, w *pool.Work) *pool.Retired {
	next := *r
	next.Schema, next.Phase, next.Work = pool.Schema, to, w
	return &next
}
