package lifecycle

import (
	"fmt"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// Prepare is what a key in preparation needs now.
func Prepare(v View, p *pool.Preparation, now time.Time) Move {
	switch {
	case p.Phase == pool.PhaseFailed:
		return failed(v, p, now)
	case askedElsewhere(v, p):
		return discard(v, p, upstreamChanged, now)
	case p.Phase == pool.PhasePlanned:
		return planned(v, p, now)
	case p.Phase == pool.PhaseMinting:
		return minting(v, p, now)
	}
	return verifying(v, p, now)
}

// askedElsewhere reports whether the upstream that the pool had before was asked to mint the key: whatever is answered now,
// there may be one.
func askedElsewhere(v View, p *pool.Preparation) bool {
	since := v.Pool.UpstreamSince
	began := p.PlannedAt // of one that is planned again
	if p.Phase != pool.PhasePlanned && p.Work != nil {
		began = p.Work.PhaseSince
	}
	return p.MayExist() && began.Before(since)
}

// planned: its secret is chosen, where we choose it; nobody was asked. One that is tried again may have been asked for
// before, and is then looked for first.
func planned(v View, p *pool.Preparation, now time.Time) Move {
	if p.Work.Done(p.Phase) {
		return skipped()
	}
	was := p.Phase
	switch {
	case v.Pool.Paused:
		return resting("paused", time.Time{})
	case v.Pool.Spec.Provider == nil:
		return giveUpPreparing(v, p, "the pool has no provider any more", now)
	case !v.Provider:
		return resting("no_provider_here", now.Add(v.Limits.Recheck))
	}
	next := stepped(p, pool.PhaseMinting, p.Work.Next(now, was))
	if p.MayExist() {
		next.Work.Intent = firstOf(next.Work.Intent, pool.NewID())
		return changing(v, p, next, "retrying").telling(pool.EventKeyMinting, p, pool.HomePreparing, next.Phase, "", now)
	}
	id := intent(next.Work, v.Limits, now)
	return changing(v, p, next, "intended").telling(pool.EventKeyMinting, p, pool.HomePreparing, next.Phase, "", now).intending(pool.StageMint, id)
}

// minting: the provider is asked once an intent.
func minting(v View, p *pool.Preparation, now time.Time) Move {
	if p.Work.Done(p.Phase) {
		return skipped()
	}
	was, a := p.Phase, v.Answer
	switch {
	case a.answers(was, p.Work) && a.Result == Done:
		return minted(v, p, now)
	case a.answers(was, p.Work) && a.Call == CallFind && a.Result == Missing:
		return mintAgain(v, p, now)
	case a.answers(was, p.Work):
		return putOffPreparing(v, p, now)
	case v.Pool.Spec.Provider == nil:
		return giveUpPreparing(v, p, "the pool has no provider any more", now)
	case !v.Provider:
		return resting("no_provider_here", now.Add(v.Limits.Recheck))
	case p.Work.Intent != "" && p.Work.Intent == v.Fresh:
		return asking(CallMint, pool.StageMint)
	case now.Before(p.Work.NotBefore):
		return resting("waiting", p.Work.NotBefore)
	case p.Work.Intent == "":
		return mintAgain(v, p, now)
	}
	return asking(CallFind, pool.StageMint)
}

// mintAgain announces another call, after one that surely had no effect.
func mintAgain(v View, p *pool.Preparation, now time.Time) Move {
	switch {
	case p.Work.Attempts >= v.Limits.Attempts:
		return giveUpPreparing(v, p, firstOf(p.Work.Problem, "it was asked for again and again and was not there"), now)
	case v.Pool.Paused:
		return resting("paused", time.Time{})
	}
	next := stepped(p, p.Phase, clone(p.Work))
	id := intent(next.Work, v.Limits, now)
	return changing(v, p, next, "intended").intending(pool.StageMint, id)
}

// minted: the key is there. Without its secret it is of no use, and is undone.
func minted(v View, p *pool.Preparation, now time.Time) Move {
	next := stepped(p, pool.PhaseVerifying, p.Work.Next(now, pool.PhaseMinting).Settled())
	if !v.Answer.Sealed.IsZero() {
		next.Sealed = v.Answer.Sealed
	}
	switch {
	case next.Sealed.IsZero():
		return discard(v, p, "it was made, but the answer that held its secret was lost", now)
	case v.Taken != "" && v.Taken != p.Key:
		mine := stepped(p, p.Phase, clone(p.Work))
		mine.Work.Intent = "" // what is at the upstream is the other key: it must not be revoked with this one
		return giveUpPreparing(v, mine, fmt.Sprintf("the provider gave the secret that key %q has", v.Taken), now)
	}
	m := changing(v, p, next, "minted").telling(pool.EventKeyMinted, p, pool.HomePreparing, next.Phase, "", now)
	claim := &pool.Fingerprint{Version: pool.Version{Schema: pool.Schema}, Pool: p.Pool, HMAC: next.Sealed.Fingerprint, Key: p.Key}
	if v.Taken == "" && p.Sealed.Fingerprint != claim.HMAC {
		m.txn.If, m.txn.Put = append(m.txn.If, pool.Absent(claim.Ref())), append(m.txn.Put, claim)
		if !p.Sealed.IsZero() {
			m.txn.Delete = append(m.txn.Delete, pool.FingerprintRef(p.Pool, p.Sealed.Fingerprint))
		}
	}
	return m
}

// discard undoes a key that may be at the upstream and cannot be used.
func discard(v View, p *pool.Preparation, why string, now time.Time) Move {
	gone := p.Discard(now)
	gone.Work.NotBefore = time.Time{} // the call is over
	return changing(v, p, gone, "discarded").telling(pool.EventKeyMintFailed, p, pool.HomeRetired, gone.Phase, why, now)
}

// verifying: a test changes nothing at the upstream, so it needs no intent.
func verifying(v View, p *pool.Preparation, now time.Time) Move {
	if p.Work.Done(p.Phase) {
		return skipped()
	}
	was, a := p.Phase, v.Answer
	switch {
	case a.answers(was, p.Work) && a.Result == Done:
		return stocked(v, p, now)
	case a.answers(was, p.Work):
		return putOffPreparing(v, p, now)
	case v.Pool.Spec.Provider == nil:
		return giveUpPreparing(v, p, "the pool has no provider any more", now)
	case !v.Provider:
		return resting("no_provider_here", now.Add(v.Limits.Recheck))
	case now.Before(p.Work.NotBefore):
		return resting("waiting", p.Work.NotBefore)
	}
	return asking(CallVerify, pool.StageVerify)
}

// stocked moves the key to the stock. From here on it counts.
func stocked(v View, p *pool.Preparation, now time.Time) Move {
	b := &pool.Backup{
		Version: pool.Version{Schema: pool.Schema}, Pool: p.Pool, Key: p.Key, Sealed: p.Sealed, Labels: p.Labels, AddedAt: now,
	}
	return changing(v, p, b, "stocked").telling(pool.EventKeyStocked, p, pool.HomeBackup, pool.PhaseUnspecified, "", now)
}

// failed: given up until somebody raises the generation.
func failed(_ View, p *pool.Preparation, _ time.Time) Move {
	if p.Work.Done(p.Phase) {
		return skipped()
	}
	return resting("given_up", time.Time{})
}

// putOffPreparing waits before the next try, or gives up. It is no transition: the phase stays, and nothing is told.
func putOffPreparing(v View, p *pool.Preparation, now time.Time) Move {
	w := putOff(p.Work, v.Answer, v.Limits, now)
	if w.Attempts >= v.Limits.Attempts {
		w.NotBefore = p.Work.NotBefore // no other try waits
		tried := stepped(p, p.Phase, w)
		return giveUpPreparing(v, tried, w.Problem, now)
	}
	return changing(v, p, stepped(p, p.Phase, w), "put_off")
}

// giveUpPreparing lists the key as failed. What it may have at the upstream stays on record with its intent.
func giveUpPreparing(v View, p *pool.Preparation, why string, now time.Time) Move {
	next := stepped(p, pool.PhaseFailed, p.Work.Next(now, pool.PhaseFailed))
	next.Work.Attempts, next.Work.Problem = p.Work.Attempts, why
	return changing(v, p, next, "failed").telling(pool.EventKeyMintFailed, p, pool.HomePreparing, next.Phase, why, now)
}

// stepped is p in another phase, or with other work.
func stepped(p *pool.Preparation, to pool.Phase, w *pool.Work) *pool.Preparation {
	next := *p
	next.Schema, next.Phase, next.Work = pool.Schema, to, w
	return &next
}

func firstOf(given, otherwise string) string {
	if given == "" {
		return otherwise
	}
	return given
}
