package check

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Deed is a call that was to make or to delete a key at the upstream of a pool, as the upstream saw it.
type Deed struct {
	At         time.Time
	Pool, Key  string
	Mint       bool   // to make it; otherwise to delete it
	Registered bool   // no call: the key was made before the run
	Intent     string // that came with a call to make a key
	Had, Has   bool   // the key was there, and is there afterwards
}

// upstream holds what the upstream saw against what is on record: each call was announced, none was made twice, nothing is
// left behind, and nothing that is in service is gone.
func (r *run) upstream() {
	byKey := make(map[string][]Deed)
	for _, d := range r.Upstream {
		if d.Mint || d.Registered {
			r.Stats.Mints++
		}
		byKey[d.Pool+"/"+d.Key] = append(byKey[d.Pool+"/"+d.Key], d)
	}
	for id, deeds := range byKey {
		k := &upstreamKey{run: r, id: id, deeds: deeds}
		k.mints()
		k.revocations()
		k.end()
	}
	r.stuck()
	for id, i := range r.world.intents { // what was found to be there was made
		if r.Upstream != nil && byKey[id] == nil && r.world.at["backup/"+id] != nil {
			r.add(Violation{Invariant: "upstream", Pool: poolOf(id), Key: keyOf(id), Revision: i[0].revision, Text: "the key is in stock, and the upstream was never asked for it"})
		}
	}
}

func poolOf(id string) string { pool, _, _ := strings.Cut(id, "/"); return pool }

// upstreamKey is one key as the upstream saw it.
type upstreamKey struct {
	*run
	id    string
	deeds []Deed
}

func (k *upstreamKey) wrong(at time.Time, format string, args ...any) {
	k.add(Violation{Invariant: "upstream", Pool: poolOf(k.id), Key: keyOf(k.id), Revision: k.world.committedBefore(k.since(at)), Text: fmt.Sprintf(format, args...)})
}

// intent finds an announced call.
func (k *upstreamKey) intent(id string) *intent {
	all := k.world.intents[k.id]
	i := slices.IndexFunc(all, func(i intent) bool { return i.id == id })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// recorded reports whether a deed is early enough for the recording to hold what was written before it.
func (k *upstreamKey) recorded(d Deed) bool { return k.Ended.IsZero() || d.At.Before(k.Ended) }

// mints: each call to make the key was announced before, and was made once. A key that was made in the time of its call is
// not asked for again: whoever comes after that time looks first.
func (k *upstreamKey) mints() {
	calls := make(map[string]int)
	var made *intent
	var by time.Time // when the call that made it came; the upstream may take long over one that came before
	for _, d := range k.deeds {
		if !d.Mint || !k.recorded(d) {
			continue
		}
		i := k.intent(d.Intent)
		if calls[d.Intent]++; calls[d.Intent] > 1 {
			k.wrong(d.At, "the upstream was asked for it a second time under intent %q", d.Intent)
		}
		switch {
		case i == nil:
			k.wrong(d.At, "the upstream was asked for it under intent %q, which is not on record", d.Intent)
		case i.seen > k.since(d.At)+int64(answerGrace):
			k.wrong(d.At, "the upstream was asked for it under intent %q, which was written down only %v later", d.Intent, time.Duration(i.seen-k.since(d.At)))
		case d.Had && made != nil && made.id != d.Intent && d.At.After(by):
			k.wrong(d.At, "the upstream was asked for it under intent %q without a look: it had made it under %q", d.Intent, made.id)
		}
		if !d.Had && d.Has && i != nil && k.since(d.At) < i.notBefore {
			made, by = i, d.At
		}
	}
}

// revocations: the key was to be revoked when the upstream was told to, and was told no more often than was announced.
func (k *upstreamKey) revocations() {
	announced, calls := 0, 0
	for _, i := range k.world.intents[k.id] {
		if i.phase == "revoking" {
			announced++
		}
	}
	for _, d := range k.deeds {
		if d.Mint || d.Registered {
			continue
		}
		calls++
		if since := k.world.revokes[k.id]; k.recorded(d) && (since == 0 || since > k.since(d.At)+int64(answerGrace)) {
			k.wrong(d.At, "the upstream was told to delete it, and it was not to be revoked")
		}
		if calls > announced && k.recorded(d) {
			k.wrong(d.At, "the upstream was told %d times to delete it, and %d calls were announced", calls, announced)
		}
	}
}

// end: what is in service or in stock works, and what is at the upstream is on record, as something that may be there.
func (k *upstreamKey) end() {
	last, before := k.deeds[len(k.deeds)-1], false
	for _, d := range k.deeds {
		if k.recorded(d) {
			before = d.Has
		}
	}
	prep, retired, dropped := k.world.at["stock/"+k.id], k.world.at["retired/"+k.id], k.world.dropped[k.id]
	inUse := k.world.at["active/"+k.id] != nil || k.world.at["backup/"+k.id] != nil
	switch {
	case inUse && !last.Has:
		k.wrong(last.At, "the key is in service or in stock, and the upstream does not have it")
	case inUse:
	case retired != nil:
		if phase := short(retired.Phase); (phase == "revoked" || phase == "purged") && last.Has {
			k.wrong(last.At, "the key is %s, and the upstream has it", phase)
		}
	case prep != nil:
		if before && prep.Work.Intent == "" && prep.Work.observed("minting") == 0 {
			k.wrong(last.At, "the upstream has the key, and it is %s as one that nobody has asked for", prep.Phase)
		}
	case !before:
	case dropped == nil:
		k.wrong(last.At, "the upstream has a key that is nowhere on record")
	case strings.HasPrefix(dropped.Phase, "STOCK_PHASE_"):
		k.wrong(last.At, "the upstream has a key that was deleted in phase %s as one that nobody had asked for", dropped.Phase)
	}
}
