package check_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/internal/recorder"
)

// minted is a good run in which a key is minted, and one that was rotated away is revoked and purged. The deeds are those
// of the upstream: m0 and a0 by numbers 0 and 1, then the mint, then the deletion.
type minted struct {
	*story
	generation int64 // of a0
}

func (m *minted) stock(key, phase, work string) recorder.Change {
	c := put("stock/p/"+key, fmt.Sprintf(`{"phase":"STOCK_PHASE_%s","plannedAt":%q,"work":{"generation":"1",%s},%s}`, phase, m.now(), work, sealed(key)))
	c.Create = m.at + 1
	return c
}

func (m *minted) now() string { return m.in.Epoch.Add(m.time).UTC().Format(time.RFC3339Nano) }

// retired is key a0 after it was rotated away, at the time the story began.
func (m *minted) retired(phase, work, seal string) recorder.Change {
	return put("retired/p/a0", fmt.Sprintf(`{"phase":"RETIRED_PHASE_%s","slot":"a0","generation":"%d","replacedBy":"b0","retiredAt":%q,"work":{"generation":"1",%s}%s}`,
		phase, m.generation, m.in.Epoch.UTC().Format(time.RFC3339Nano), work, seal))
}

// tells is an event as a phase has it, dated now.
func (m *minted) tells(kind, key, home, phase string, generation int64) recorder.Change {
	c := event(fmt.Sprintf("%s-%s-%d", kind, key, m.at), kind, "keys/"+key, fmt.Sprintf(`"keyId":%q,"home":"KEY_HOME_%s","phase":%q,"generation":"%d"`, key, home, phase, generation))
	c.Value = []byte(strings.Replace(string(c.Value), `{"type"`, fmt.Sprintf(`{"time":%q,"type"`, m.now()), 1))
	return c
}

// mint announces a call to make m0, and has the upstream make it.
func (m *minted) mint() {
	m.rev(m.stock("m0", "PLANNED", `"attempts":0`), put("fingerprints/p/f-m0", `{"keyId":"m0"}`), put("tokens/p/stock-low", `{"keyId":"m0"}`), m.tells("key.planned", "m0", "PREPARING", "KEY_PHASE_PLANNED", 0))
	m.rev(m.stock("m0", "MINTING", `"observedGeneration":{"planned":"1"},"intent":"i1","notBefore":"2126-01-01T00:00:00Z"`), m.tells("key.minting", "m0", "PREPARING", "KEY_PHASE_MINTING", 0))
	m.calls(check.Deed{Key: "m0", Mint: true, Intent: "i1", Has: true})
}

func (m *minted) calls(d check.Deed) {
	m.time += time.Millisecond
	d.At, d.Pool = m.in.Epoch.Add(m.time), "p"
	m.in.Upstream = append(m.in.Upstream, d)
}

func (m *minted) verify() {
	m.rev(m.stock("m0", "VERIFYING", `"observedGeneration":{"planned":"1","minting":"1"}`), m.tells("key.minted", "m0", "PREPARING", "KEY_PHASE_VERIFYING", 0))
	m.rev(del("stock/p/m0"), put("backup/p/m0", "{"+sealed("m0")+"}"), m.tells("key.stocked", "m0", "BACKUP", "", 0))
	m.rev(del("tokens/p/stock-low"))
}

// revoke goes the way of a retired key, from the end of its grace to that of its secret.
func (m *minted) revoke() {
	m.time += time.Second
	m.rev(m.retired("REVOKING", `"observedGeneration":{"retired":"1"},"intent":"i2"`, ","+sealed("a0")), m.tells("key.revoking", "a0", "RETIRED", "KEY_PHASE_REVOKING", m.generation))
	m.calls(check.Deed{Key: "a0", Had: true})
	m.rev(m.retired("REVOKED", `"observedGeneration":{"retired":"1","revoking":"1"}`, ","+sealed("a0")), m.tells("key.revoked", "a0", "RETIRED", "KEY_PHASE_REVOKED", m.generation))
	m.time += time.Minute
	m.rev(m.retired("PURGED", `"observedGeneration":{"retired":"1","revoking":"1","revoked":"1"}`, ""), del("fingerprints/p/f-a0"), m.tells("key.purged", "a0", "RETIRED", "KEY_PHASE_PURGED", m.generation))
}

func newMinted() *minted {
	s, generation := rotated()
	m := &minted{s, generation}
	s.change("retired/p/a0", `{"slot"`, fmt.Sprintf(`{"phase":"RETIRED_PHASE_RETIRED","retiredAt":%q,"slot"`, s.in.Epoch.UTC().Format(time.RFC3339Nano)))
	s.rev(put("pools/p", `{"spec":{"provider":{"litellm":{}},"stock":{"min":1},"retirement":{"revokeAfter":"1s","secretRetention":"60s"}}}`), event("spec", "pool.updated", "pools/p", ""))
	for _, key := range []string{"a0", "b0"} {
		m.calls(check.Deed{Key: key, Registered: true, Has: true})
	}
	s.rev(put("tokens/p/stock-low", `{}`), event("low", "pool.stock_low", "pools/p", ""))
	return m
}

func TestGoodRunWithPhases(t *testing.T) {
	m := newMinted()
	m.mint()
	again := m.stock("m0", "MINTING", `"observedGeneration":{"planned":"1"},"attempts":2,"intent":"i3"`) // another try is no transition
	m.rev(again)
	m.verify()
	m.revoke()
	if r := check.Run(m.in); !r.OK() || r.Stats.Phases != 7 || r.Stats.Revoked != 1 || r.Stats.Purged != 1 {
		r.Write(os.Stderr)
		t.Errorf("a good run has violations or was not looked at: %+v", r.Stats)
	}
}

// An upstream that takes long over a call may make the key for a later one before.
func TestSlowUpstreamIsNotAskedWithoutALook(t *testing.T) {
	m := newMinted()
	m.mint()
	slow := len(m.in.Upstream) - 1
	first := m.in.Upstream[slow]
	m.in.Upstream = m.in.Upstream[:slow]
	m.rev(m.stock("m0", "MINTING", `"observedGeneration":{"planned":"1"},"attempts":2,"intent":"i3","notBefore":"2126-01-01T00:00:00Z"`))
	m.calls(check.Deed{Key: "m0", Mint: true, Intent: "i3", Has: true})
	first.Had = true
	m.in.Upstream = append(m.in.Upstream, first)
	m.verify()
	m.revoke()
	if r := check.Run(m.in); !r.OK() {
		r.Write(os.Stderr)
		t.Error("a call that came before the key was made is held to be one without a look")
	}
}

// Each violation is seeded into a run with phases and must be found under its name.
func TestViolationsOfPhases(t *testing.T) {
	all := func(m *minted) { m.mint(); m.verify(); m.revoke() }
	for _, tc := range []struct {
		name, want, says string
		run              func(m *minted)
	}{
		{"a phase without its event", "I8", "0 events", func(m *minted) {
			m.mint()
			m.verify()
			m.drop(fmt.Sprintf("events/p/key.stocked-m0-%d", m.at-2))
		}},
		{"its event a revision later", "I8", "0 events", func(m *minted) {
			m.mint()
			m.rev(m.stock("m0", "VERIFYING", `"observedGeneration":{"planned":"1","minting":"1"}`))
			m.rev(m.tells("key.minted", "m0", "PREPARING", "KEY_PHASE_VERIFYING", 0))
		}},
		{"another try with an event", "I8", "", func(m *minted) {
			m.mint()
			m.rev(m.stock("m0", "MINTING", `"observedGeneration":{"planned":"1"},"intent":"i3"`), m.tells("key.minting", "m0", "PREPARING", "KEY_PHASE_MINTING", 0))
		}},
		{"a phase that is skipped", "I8", "no transition", func(m *minted) {
			m.rev(m.stock("m0", "PLANNED", `"attempts":0`), m.tells("key.planned", "m0", "PREPARING", "KEY_PHASE_PLANNED", 0))
			m.rev(m.stock("m0", "VERIFYING", `"observedGeneration":{"planned":"1"}`), m.tells("key.minted", "m0", "PREPARING", "KEY_PHASE_VERIFYING", 0))
		}},
		{"a phase that is gone through twice", "I8", "had completed generation 2", func(m *minted) {
			m.mint()
			m.rev(m.stock("m0", "FAILED", `"observedGeneration":{"planned":"1","failed":"1"},"intent":"i1"`), m.tells("key.mint_failed", "m0", "PREPARING", "KEY_PHASE_FAILED", 0))
			m.rev(put("stock/p/m0", `{"phase":"STOCK_PHASE_PLANNED","work":{"generation":"2","observedGeneration":{"planned":"2","failed":"1"},"intent":"i1"}}`), m.tells("key.retried", "m0", "PREPARING", "KEY_PHASE_PLANNED", 0))
			m.rev(put("stock/p/m0", `{"phase":"STOCK_PHASE_MINTING","work":{"generation":"2","observedGeneration":{"planned":"2","failed":"1"},"intent":"i1"}}`), m.tells("key.minting", "m0", "PREPARING", "KEY_PHASE_MINTING", 0))
		}},
		{"a retry that raises nothing", "I8", "a retry", func(m *minted) {
			m.mint()
			m.rev(m.stock("m0", "FAILED", `"observedGeneration":{"planned":"1","failed":"1"},"intent":"i1"`), m.tells("key.mint_failed", "m0", "PREPARING", "KEY_PHASE_FAILED", 0))
			m.rev(m.stock("m0", "PLANNED", `"observedGeneration":{"planned":"1","failed":"1"},"intent":"i1"`), m.tells("key.retried", "m0", "PREPARING", "KEY_PHASE_PLANNED", 0))
		}},
		{"what was complete is not any more", "I8", "had completed", func(m *minted) {
			m.mint()
			m.rev(m.stock("m0", "MINTING", `"intent":"i3"`))
		}},
		{"an event of another phase", "I8", "the event key.minted says", func(m *minted) {
			all(m)
			m.change(m.eventOf("key.minted", "m0"), "KEY_PHASE_VERIFYING", "KEY_PHASE_MINTING")
		}},
		{"an event of another generation", "I8", "says generation", func(m *minted) {
			all(m)
			m.change(m.eventOf("key.revoked", "a0"), fmt.Sprintf(`"generation":"%d"`, m.generation), `"generation":"1"`)
		}},
		{"revoked before its grace is over", "phases", "after it was retired", func(m *minted) {
			all(m)
			m.change("pools/p", `"revokeAfter":"1s"`, `"revokeAfter":"2s"`)
		}},
		{"purged too soon", "phases", "its secret is purged", func(m *minted) {
			all(m)
			m.change("pools/p", `"60s"`, `"600s"`)
		}},
		{"purged with its secret", "I8", "has its secret still", func(m *minted) {
			all(m)
			m.change("retired/p/a0", `}}}`, `}},`+sealed("a0")+`}`)
		}},
		{"revoked while its slot is empty", "phases", "no key in service", func(m *minted) {
			m.rev(del("active/p/b0"), event("x", "key.removed", "keys/b0", `"keyId":"b0"`))
			m.revoke()
		}},
		{"revoked while a key with its secret is in its slot", "phases", "the same secret", func(m *minted) {
			m.change("active/p/b0", "f-b0", "f-a0")
			m.revoke()
		}},
		{"restored while it is revoked", "phases", "a key is restored that is", func(m *minted) {
			m.revoke()
			m.rev(del("retired/p/a0"), put("backup/p/a0", `{"sealed":{"fingerprint":""}}`), event("x", "key.restored", "keys/a0", `"keyId":"a0"`))
		}},
		{"deleted although it may be at the upstream", "I8", "nobody can revoke it", func(m *minted) {
			m.mint()
			m.rev(del("stock/p/m0"), m.tells("key.removed", "m0", "PREPARING", "KEY_PHASE_MINTING", 0))
		}},
		{"prepared and in stock at once", "I2", "the key is in backup and in stock", func(m *minted) {
			m.mint()
			m.verify()
			m.drop("stock/p/m0")
		}},
		{"left half done", "I9", "the key is minting still", func(m *minted) {
			m.mint()
			m.in.Healed = m.in.Epoch.Add(m.time)
			m.time += time.Minute
			m.lock("x", "r0")
		}},
		{"never revoked", "I9", "the key is retired still", func(m *minted) {
			m.in.Healed = m.in.Epoch.Add(m.time)
			m.time += time.Minute
			m.lock("x", "r0")
		}},
		{"asked for without an intent", "upstream", "not on record", func(m *minted) {
			all(m)
			m.in.Upstream[2].Intent = ""
		}},
		{"asked for before the intent was written", "upstream", "only", func(m *minted) {
			all(m)
			m.in.Upstream[2].At = m.in.Epoch.Add(-time.Minute)
		}},
		{"asked for twice under one intent", "upstream", "a second time", func(m *minted) {
			m.mint()
			m.calls(check.Deed{Key: "m0", Mint: true, Intent: "i1", Had: true, Has: true})
			m.verify()
		}},
		{"asked for again without a look", "upstream", "without a look", func(m *minted) {
			m.mint()
			m.rev(m.stock("m0", "MINTING", `"observedGeneration":{"planned":"1"},"intent":"i3"`))
			m.calls(check.Deed{Key: "m0", Mint: true, Intent: "i3", Had: true, Has: true})
			m.verify()
		}},
		{"deleted while it is in stock", "upstream", "was not to be revoked", func(m *minted) {
			m.mint()
			m.verify()
			m.calls(check.Deed{Key: "m0", Had: true})
		}},
		{"deleted more often than was announced", "upstream", "calls were announced", func(m *minted) {
			all(m)
			m.calls(check.Deed{Key: "a0"})
		}},
		{"in service, and not at the upstream", "upstream", "does not have it", func(m *minted) {
			all(m)
			m.calls(check.Deed{Key: "b0", Had: true})
		}},
		{"revoked, and at the upstream", "upstream", "the upstream has it", func(m *minted) {
			all(m)
			m.in.Upstream[3].Has = true
		}},
		{"at the upstream, and nowhere on record", "upstream", "nowhere on record", func(m *minted) {
			all(m)
			m.calls(check.Deed{Key: "m9", Mint: true, Intent: "i1", Has: true})
		}},
		{"in stock, and never made", "upstream", "was never asked for", func(m *minted) {
			all(m)
			m.in.Upstream = slices.Delete(m.in.Upstream, 2, 3)
		}},
		{"a secret that was minted is in a record", "I10", "minted", func(m *minted) {
			secret := "sk-" + strings.Repeat("0aB_", 8)
			m.in.Minted = []string{secret}
			m.change("backup/p/b1", "f-b1", secret)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMinted()
			tc.run(m)
			wantViolation(t, m.in, tc.want, tc.says)
		})
	}
}

func (m *minted) eventOf(kind, key string) string {
	for _, rev := range m.in.Recording {
		for _, c := range rev.Changes {
			if strings.HasPrefix(c.Key, "events/p/"+kind+"-"+key) {
				return c.Key
			}
		}
	}
	panic("there is no " + kind)
}

func wantViolation(t *testing.T, in check.Input, invariant, says string) {
	t.Helper()
	r := check.Run(in)
	if !slices.ContainsFunc(r.Violations, func(v check.Violation) bool { return v.Invariant == invariant && strings.Contains(v.Text, says) }) {
		var text strings.Builder
		r.Write(&text)
		t.Errorf("want a violation of %s that says %q, got\n%s", invariant, says, text.String())
	}
}

// reported is a good run in which key b0 rests because of a report, and which has had an incident.
func reported() *minted {
	s, _ := rotated()
	m := &minted{s, s.at}
	active, tells := rests("b0", "a0", "RATE_LIMITED", m.generation, s.in.Epoch.Add(s.time+2*time.Second), "generic/rate-limit", "q4")
	active.Value = []byte(strings.Replace(string(active.Value), `{"slot"`, `{"replaces":"a0","slot"`, 1))
	s.rev(active, tells)
	s.op(history.Op{
		Kind: history.Report, Client: "q4", Key: "b0", Generation: m.generation, RequestID: "q4", Status: 429, Verdict: history.VerdictCoolDown,
		Rule: "generic/rate-limit", Until: s.in.Epoch.Add(s.time - 2*time.Millisecond + 2*time.Second).UTC(), Revision: s.at,
	})
	s.last(0).Start = 0
	s.last(0).Until = untilOf(tells)
	return m
}

func untilOf(c recorder.Change) time.Time {
	_, rest, _ := strings.Cut(string(c.Value), `"statusUntil":"`)
	text, _, _ := strings.Cut(rest, `"`)
	t, _ := time.Parse(time.RFC3339Nano, text)
	return t
}

// outage begins an incident that lasts a second.
func (m *minted) outage() {
	m.rev(put("pools/p", fmt.Sprintf(`{"incident":{"since":%q,"until":%q,"keys":3}}`, m.now(), m.in.Epoch.Add(m.time+time.Second).UTC().Format(time.RFC3339Nano))), del("health/p/"),
		event(fmt.Sprint("began", m.at), "pool.incident_began", "pools/p", ""))
}

func TestGoodRunWithReports(t *testing.T) {
	m := reported()
	m.op(history.Op{Kind: history.Report, Client: "q6", Key: "a0", Generation: m.in.Ops[4].Generation, RequestID: "q6", Status: 429, Verdict: history.VerdictIgnore, Rule: "late"})
	late := answer(history.Report, history.AlreadyRotated, "R", "q7", "q1", m.in.Ops[4].Generation, m.generation)
	late.Verdict = history.VerdictRotate
	m.op(late)
	m.outage()
	m.op(history.Op{Kind: history.Report, Client: "q5", Key: "b0", Generation: m.generation, RequestID: "q5", Status: 401, Verdict: history.VerdictIgnore, Rule: "incident", Incident: true})
	m.time += time.Minute
	m.outage()
	if r := check.Run(m.in); !r.OK() || r.Stats.CoolDowns != 1 || r.Stats.Incidents != 2 {
		r.Write(os.Stderr)
		t.Errorf("a good run has violations or was not looked at: %+v", r.Stats)
	}
}

// Each violation is seeded into a run with reports and must be found under its name.
func TestViolationsOfReports(t *testing.T) {
	for _, tc := range []struct {
		name, want, says string
		spoil            func(m *minted)
	}{
		{"a rest without an event", "I8", "0 events", func(m *minted) { m.drop(m.restsEvent()) }},
		{"an event of another rest", "I8", "the event says", func(m *minted) { m.change(m.restsEvent(), "RATE_LIMITED", "ERROR") }},
		{"a rest of another life", "I5", "nobody had made for that life", func(m *minted) { m.last(0).Generation-- }},
		{"a rest that was refused", "I6", "told that it was not applied", func(m *minted) {
			m.last(0).Verdict, m.last(0).Rule = history.VerdictIgnore, "generic/unknown"
		}},
		{"told of a rest that is not on record", "I6", "not on record", func(m *minted) { m.last(0).Until = m.last(0).Until.Add(time.Second) }},
		{"a rest that becomes shorter", "I8", "no transition", func(m *minted) {
			active, tells := rests("b0", "a0", "RATE_LIMITED", m.generation, m.in.Epoch.Add(m.time), "generic/rate-limit", "q4")
			m.rev(active, tells)
		}},
		{"late, it said", "I5", "in service all the time", func(m *minted) {
			m.op(history.Op{Kind: history.Report, Client: "q6", Key: "b0", Generation: m.generation, RequestID: "q6", Status: 429, Verdict: history.VerdictIgnore, Rule: "late", Revision: m.at})
		}},
		{"a report that rotated, it said", "I6", "not on record", func(m *minted) {
			op := answer(history.Report, history.Rotated, "nowhere", "q7", "q7", m.generation, m.at)
			op.Verdict = history.VerdictRotate
			m.op(op)
		}},
		{"a report that was told of another life's rotation", "I5", "was answered with the rotation of generation", func(m *minted) {
			op := answer(history.Report, history.AlreadyRotated, "R", "q7", "q1", m.in.Ops[4].Generation, m.generation)
			op.Verdict, op.Generation = history.VerdictRotate, m.generation
			m.op(op)
		}},
		{"an incident, it said", "incident", "there was none", func(m *minted) {
			m.op(history.Op{Kind: history.Report, Client: "q5", Key: "b0", RequestID: "q5", Status: 401, Verdict: history.VerdictIgnore, Rule: "incident", Incident: true})
		}},
		{"an incident in an incident", "incident", "in another one", func(m *minted) {
			m.outage()
			m.outage()
		}},
		{"a rest in an incident", "incident", "changed the key", func(m *minted) {
			m.outage()
			active, tells := rests("b0", "a0", "RATE_LIMITED", m.generation, m.in.Epoch.Add(m.time+time.Minute), "generic/rate-limit", "q4")
			tells.Value = []byte(strings.Replace(string(tells.Value), `{"type"`, fmt.Sprintf(`{"time":%q,"type"`, m.now()), 1))
			m.rev(active, tells)
		}},
		{"a rotation by a report in an incident", "incident", "changed the key", func(m *minted) {
			m.outage()
			m.op(history.Op{Kind: history.Report, Client: "q8", Key: "b0", Generation: m.generation, RequestID: "q8", Status: 401, Code: "DEADLINE_EXCEEDED"})
			m.lock("b0", "r0")
			now := m.now()
			m.rev(rotation("S", "b0", "b1", "a0", "q8", m.generation)...)
			m.change(fmt.Sprintf("rotations/p/b0/%d", m.generation), `{"id"`, fmt.Sprintf(`{"committedAt":%q,"id"`, now))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := reported()
			tc.spoil(m)
			wantViolation(t, m.in, tc.want, tc.says)
		})
	}
}

func (m *minted) restsEvent() string { return m.eventOf("rests", "b0") }
