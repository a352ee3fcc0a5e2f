package lifecycle

import (
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

var at = time.Date(2026, 1, 25, 10, 0, 0, 0, time.UTC)

func view(a *Answer) View {
	return View{
		Pool:     &pool.Pool{Name: "p", Spec: pool.Spec{Provider: &pool.ProviderSpec{Exec: &pool.ExecProvider{Name: "fake"}}}},
		Provider: true, Answer: a, Limits: DefaultLimits(),
	}
}

func move(phase pool.Phase, w *pool.Work, a *Answer) Move {
	if phase <= pool.PhaseFailed {
		return Prepare(view(a), &pool.Preparation{Pool: "p", Key: "k", Phase: phase, Work: w}, at)
	}
	return Retire(view(a), &pool.Retired{Pool: "p", Key: "k", Phase: phase, Work: w}, at)
}

// TestGenerationCheck: a phase that has done its work for the generation that is wanted does nothing, whatever it is told.
func TestGenerationCheck(t *testing.T) {
	for phase := pool.PhasePlanned; phase <= pool.PhasePurged; phase++ {
		w := &pool.Work{Generation: 3, Observed: map[string]int64{phase.String(): 3}, Intent: "i"}
		if m := move(phase, w, &Answer{Call: CallFind, Result: Done, phase: phase, generation: 3, intent: "i"}); m.action != skip {
			t.Errorf("%s: a phase that is done wants %s (%d)", phase, m.result, m.action)
		}
		w.Generation = 4
		if m := move(phase, w, nil); m.action == skip {
			t.Errorf("%s: skipped although the generation was raised", phase)
		}
	}
}

// TestForeignAnswers: what the upstream said to another phase, generation or intent is no answer.
func TestForeignAnswers(t *testing.T) {
	right := Answer{Call: CallMint, Result: Done, Sealed: pool.Sealed{Ciphertext: []byte("x"), Fingerprint: "f"}, phase: pool.PhaseMinting, generation: 2, intent: "i"}
	w := &pool.Work{Generation: 2, Intent: "i"}
	if m := move(pool.PhaseMinting, w, &right); m.result != "minted" {
		t.Fatalf("the right answer: %s", m.result)
	}
	for name, spoil := range map[string]func(*Answer){
		"another phase":      func(a *Answer) { a.phase = pool.PhaseVerifying },
		"another generation": func(a *Answer) { a.generation = 1 },
		"another intent":     func(a *Answer) { a.intent = "j" },
	} {
		a := right
		spoil(&a)
		if m := move(pool.PhaseMinting, w, &a); m.action != ask || m.call != CallFind {
			t.Errorf("%s: %s, want it looked for", name, m.result)
		}
	}
}

// TestOneTransition: a handler leaves its record alone, and a transition has one event, the guards of all, and marks the
// phase it leaves as done only if it is.
func TestOneTransition(t *testing.T) {
	answer := func(c Call, r Result, p pool.Phase) *Answer {
		return &Answer{Call: c, Result: r, phase: p, generation: 1, intent: "i", Problem: "why"}
	}
	for name, tt := range map[string]struct {
		answer *Answer
		phase  pool.Phase
		want   pool.Phase // of the next record
		event  pool.EventType
		done   bool // the phase is complete with it
		asks   bool // a call is announced
	}{
		"planned again":         {nil, pool.PhasePlanned, pool.PhaseMinting, pool.EventKeyMinting, true, false},
		"minted":                {answer(CallMint, Done, pool.PhaseMinting), pool.PhaseMinting, pool.PhaseVerifying, pool.EventKeyMinted, true, false},
		"found":                 {answer(CallFind, Done, pool.PhaseMinting), pool.PhaseMinting, pool.PhaseVerifying, pool.EventKeyMinted, true, false},
		"not found":             {answer(CallFind, Missing, pool.PhaseMinting), pool.PhaseMinting, pool.PhaseMinting, "", false, true},
		"not known":             {answer(CallMint, Unknown, pool.PhaseMinting), pool.PhaseMinting, pool.PhaseMinting, "", false, false},
		"surely nothing":        {answer(CallMint, Nothing, pool.PhaseMinting), pool.PhaseMinting, pool.PhaseMinting, "", false, false},
		"verification put off":  {answer(CallVerify, Bad, pool.PhaseVerifying), pool.PhaseVerifying, pool.PhaseVerifying, "", false, false},
		"verification, no idea": {answer(CallVerify, Unknown, pool.PhaseVerifying), pool.PhaseVerifying, pool.PhaseVerifying, "", false, false},
	} {
		rec := &pool.Preparation{
			Pool: "p", Key: "k", Phase: tt.phase, Sealed: pool.Sealed{Ciphertext: []byte("x"), Fingerprint: "f"}, Work: &pool.Work{Generation: 1, Intent: "i"},
		}
		v := view(tt.answer)
		v.Claim, v.Taken = "k", "k"
		m := Prepare(v, rec, at)
		next, ok := m.next.(*pool.Preparation)
		if m.action != change || !ok {
			t.Errorf("%s: wants %s, no change of the record", name, m.result)
			continue
		}
		if rec.Phase != tt.phase || rec.Work.Attempts != 0 || rec.Work.Observed != nil {
			t.Errorf("%s: the handler has changed its record: %+v", name, rec.Work)
		}
		var event pool.EventType
		if m.txn.Event != nil {
			event = m.txn.Event.Type
		}
		if next.Phase != tt.want || event != tt.event || next.Work.Done(tt.phase) != tt.done || (m.fresh != "") != tt.asks {
			t.Errorf("%s: to %s with event %q, done %v, announces %v; want %s, %q, %v, %v", name, next.Phase, event, next.Work.Done(tt.phase), m.fresh != "",
				tt.want, tt.event, tt.done, tt.asks)
		}
		if len(m.txn.If) != 5 { // the record, its three other homes, the pool
			t.Errorf("%s: %d guards, want 5", name, len(m.txn.If))
		}
	}
}

// TestGivenUp: after the last attempt a key is listed, with what is known of the upstream.
func TestGivenUp(t *testing.T) {
	last, over := DefaultLimits().Attempts, at.Add(time.Second)
	for result, maybe := range map[Result]bool{Unknown: true, Nothing: false} {
		a := &Answer{Call: CallMint, Result: result, phase: pool.PhaseMinting, generation: 1, intent: "i", Problem: "why"}
		next := move(pool.PhaseMinting, &pool.Work{Generation: 1, Intent: "i", Attempts: last, NotBefore: over}, a).next.(*pool.Preparation)
		if next.Phase != pool.PhaseFailed || next.Work.Problem != "why" || next.MayExist() != maybe {
			t.Errorf("%d: %s, %+v, may exist %v", result, next.Phase, next.Work, next.MayExist())
		}
		if waits := next.Work.NotBefore; maybe && !waits.Equal(over) || !maybe && !waits.IsZero() {
			t.Errorf("%d: the next try waits until %v, the call may be under way until %v", result, waits, over)
		}
	}
}

// TestUnsentCallsAreNoAttempts: a call that was not sent is not counted, and waits for as long as the upstream is left alone.
func TestUnsentCallsAreNoAttempts(t *testing.T) {
	const before = 11 // of 12: one that counted would be the last
	retryAt := at.Add(90 * time.Second)
	for _, tt := range []struct {
		call  Call
		phase pool.Phase
	}{
		{CallMint, pool.PhaseMinting}, {CallFind, pool.PhaseMinting}, {CallVerify, pool.PhaseVerifying},
		{CallRevoke, pool.PhaseRevoking}, {CallFind, pool.PhaseRevoking},
	} {
		w := &pool.Work{Generation: 1, Intent: "i", Attempts: before, NotBefore: at}
		announced := tt.call == CallMint || tt.call == CallRevoke
		if announced {
			w.Attempts++
		}
		for _, until := range []time.Time{retryAt, {}} {
			a := &Answer{Call: tt.call, Result: Unsent, RetryAt: until, Problem: "why", phase: tt.phase, generation: 1, intent: "i"}
			m := move(tt.phase, w, a)
			phase, next := progress(m.next)
			if phase != tt.phase || next.Attempts != before || next.Problem != "why" || (next.Intent == "") != announced {
				t.Errorf("%s while %s: now %s with %+v, want it put off with %d attempts", tt.call, tt.phase, phase, next, before)
			}
			want := until
			if until.IsZero() {
				want = at.Add(DefaultLimits().backoff(before))
			}
			if !next.NotBefore.Equal(want) {
				t.Errorf("%s while %s: the next try is at %v, want %v", tt.call, tt.phase, next.NotBefore, want)
			}
		}
	}
}

// TestSecretOfAnother: a key that turns out to be another one is given up, and never revoked.
func TestSecretOfAnother(t *testing.T) {
	v := view(&Answer{Call: CallMint, Result: Done, Sealed: pool.Sealed{Ciphertext: []byte("x"), Fingerprint: "f"}, phase: pool.PhaseMinting, generation: 1, intent: "i"})
	v.Taken = "other"
	prep := &pool.Preparation{Pool: "p", Key: "k", Phase: pool.PhaseMinting, Work: &pool.Work{Generation: 1, Intent: "i"}}
	next := Prepare(v, prep, at).next.(*pool.Preparation)
	if next.Phase != pool.PhaseFailed || next.MayExist() || !next.Sealed.IsZero() {
		t.Errorf("%s, may exist %v, sealed %v", next.Phase, next.MayExist(), !next.Sealed.IsZero())
	}
}

func TestBackoff(t *testing.T) {
	l := DefaultLimits()
	before := time.Duration(0)
	for attempt := 1; attempt < 100; attempt++ {
		wait := l.backoff(attempt)
		if wait < before || wait > l.LongWait || wait < l.FirstWait {
			t.Fatalf("after attempt %d: %v, after %v before it", attempt, wait, before)
		}
		before = wait
	}
}
