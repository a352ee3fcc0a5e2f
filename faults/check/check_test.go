package check_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/internal/recorder"
)

// story is a run made by hand. One revision and one operation take a millisecond each.
type story struct {
	in   check.Input
	at   int64 // revision
	time time.Duration
}

func newStory() *story {
	s := &story{in: check.Input{Epoch: time.Now(), SessionTTL: 2 * time.Second}}
	s.in.Recording = []recorder.Revision{{Revision: 1, Seen: s.in.Epoch}}
	s.at = 1
	return s
}

// put and del are changes. Locks and replicas are leased, as they must be.
func put(key, value string) recorder.Change {
	c := recorder.Change{Key: key, Value: json.RawMessage(value)}
	if strings.HasPrefix(key, "locks/") || strings.HasPrefix(key, "replicas/") {
		c.Lease = 7
	}
	return c
}

func del(key string) recorder.Change { return recorder.Change{Key: key, Deleted: true} }

// rev adds a revision with one transition, its event last as the service has it. Its puts create, except where life says
// when the record was created.
func (s *story) rev(changes ...recorder.Change) int64 {
	isEvent := func(c recorder.Change) int { return strings.Count(c.Key, "events/") }
	slices.SortStableFunc(changes, func(a, b recorder.Change) int { return isEvent(a) - isEvent(b) })
	s.at++
	s.time += time.Millisecond
	for i := range changes {
		if changes[i].Create == 0 {
			changes[i].Create = s.at
		}
	}
	s.in.Recording = append(s.in.Recording, recorder.Revision{Revision: s.at, Seen: s.in.Epoch.Add(s.time), Changes: changes})
	return s.at
}

// op adds an operation that takes a millisecond.
func (s *story) op(op history.Op) *history.Op {
	op.Start = int64(s.time)
	s.time += time.Millisecond
	op.End = int64(s.time)
	op.ID, op.Call, op.Last, op.Pool = int64(len(s.in.Ops)+1), int64(len(s.in.Ops)+1), true, "p"
	if op.Code == "" {
		op.Code = history.OK
	}
	s.in.Ops = append(s.in.Ops, op)
	return &s.in.Ops[len(s.in.Ops)-1]
}

func event(id, kind, subject, data string) recorder.Change {
	return put("events/p/"+id, fmt.Sprintf(`{"type":"dev.rotatord.%s.v1","source":"rotatord/r0","subject":%q,"data":{%s}}`, kind, subject, data))
}

func sealed(key string) string { return fmt.Sprintf(`"sealed":{"fingerprint":"f-%s"}`, key) }

func healthy(key, slot string) string {
	return fmt.Sprintf(`{"slot":%q,"status":"KEY_STATUS_HEALTHY",%s}`, slot, sealed(key))
}

// pool makes a pool with key a0 in service and keys b0 and b1 in stock, and returns a0's generation.
func (s *story) pool() int64 {
	s.rev(put("pools/p", `{}`), event("pool", "pool.created", "pools/p", ""))
	s.op(history.Op{Kind: history.CreatePool, Revision: s.at})
	generation := s.rev(put("active/p/a0", healthy("a0", "a0")), put("slots/p/a0", `{"state":"SLOT_STATE_OPEN"}`), put("fingerprints/p/f-a0", `{"keyId":"a0"}`), event("a0", "key.added", "keys/a0", `"keyId":"a0"`))
	s.op(history.Op{Kind: history.AddKeys, Added: []history.Added{{ID: "a0", Result: "ADDED", Revision: s.at}}})
	for _, b := range []string{"b0", "b1"} {
		s.rev(put("backup/p/"+b, "{"+sealed(b)+"}"), put("fingerprints/p/f-"+b, fmt.Sprintf(`{"keyId":%q}`, b)), event(b, "key.added", "keys/"+b, fmt.Sprintf(`"keyId":%q`, b)))
		s.op(history.Op{Kind: history.AddKeys, Added: []history.Added{{ID: b, Result: "ADDED", Revision: s.at}}})
	}
	return generation
}

// boundRotations gives the pool a bound and makes rotations in it, some time apart, of keys that are added for them.
func (s *story) boundRotations(limit int, window string, n int, apart time.Duration) {
	s.rev(put("pools/p", fmt.Sprintf(`{"spec":{"rotationBound":{"rotations":%d,"window":%q}}}`, limit, window)), event("bound", "pool.updated", "pools/p", ""))
	for i := range n {
		key, backup, request := fmt.Sprint("c", i), fmt.Sprint("d", i), fmt.Sprint("bound-", i)
		g := s.rev(put("active/p/"+key, healthy(key, key)), put("slots/p/"+key, `{"state":"SLOT_STATE_OPEN"}`), put("fingerprints/p/f-"+key, fmt.Sprintf(`{"keyId":%q}`, key)), event(key, "key.added", "keys/"+key, fmt.Sprintf(`"keyId":%q`, key)))
		s.op(history.Op{Kind: history.AddKeys, Added: []history.Added{{ID: key, Result: "ADDED", Revision: s.at}}})
		s.rev(put("backup/p/"+backup, "{"+sealed(backup)+"}"), put("fingerprints/p/f-"+backup, fmt.Sprintf(`{"keyId":%q}`, backup)), event(backup, "key.added", "keys/"+backup, fmt.Sprintf(`"keyId":%q`, backup)))
		s.op(history.Op{Kind: history.AddKeys, Added: []history.Added{{ID: backup, Result: "ADDED", Revision: s.at}}})
		s.op(history.Op{Kind: history.Rotate, Client: request, Key: key, Generation: g, RequestID: request, Code: "DEADLINE_EXCEEDED"})
		s.last(0).Last = false
		s.lock(key, "r0")
		s.time += apart
		token := put("tokens/p/"+fmt.Sprint(i%limit), fmt.Sprintf(`{"usedAt":%q}`, s.in.Epoch.Add(s.time).UTC().Format(time.RFC3339Nano)))
		s.rev(append(rotation("B"+fmt.Sprint(i), key, backup, key, request, g), token)...)
	}
}

// rests is a key that begins to rest until a time, and its event.
func rests(key, slot, status string, generation int64, until time.Time, reason, request string) (active, tells recorder.Change) {
	end := until.UTC().Format(time.RFC3339Nano)
	active = put("active/p/"+key, fmt.Sprintf(`{"slot":%q,"status":"KEY_STATUS_%s","statusUntil":%q,"statusReason":%q,%s}`, slot, status, end, reason, sealed(key)))
	active.Create = generation
	tells = event(fmt.Sprint("rests-", key, end), "key.cooled_down", "keys/"+key,
		fmt.Sprintf(`"keyId":%q,"slot":%q,"status":"KEY_STATUS_%s","statusUntil":%q,"generation":"%d","requestId":%q`, key, slot, status, end, generation, request))
	return active, tells
}

func (s *story) lock(key, holder string) {
	s.rev(put("locks/p/"+key, fmt.Sprintf(`{"holder":%q}`, holder)))
}

// rotation is the changes of one.
func rotation(id, old, successor, slot, request string, generation int64) []recorder.Change {
	data := fmt.Sprintf(`"keyId":%q,"newKeyId":%q,"generation":"%d","slot":%q,"requestId":%q,"rotationId":%q`, old, successor, generation, slot, request, id)
	return []recorder.Change{
		del("active/p/" + old), del("backup/p/" + successor), del("locks/p/" + old),
		put("active/p/"+successor, fmt.Sprintf(`{"slot":%q,"status":"KEY_STATUS_HEALTHY","replaces":%q,%s}`, slot, old, sealed(successor))),
		put("retired/p/"+old, fmt.Sprintf(`{"slot":%q,"generation":"%d","replacedBy":%q,%s}`, slot, generation, successor, sealed(old))),
		put(fmt.Sprintf("rotations/p/%s/%d", old, generation), fmt.Sprintf(`{"id":%q,"slot":%q,"newKeyId":%q,"requestId":%q,"holder":"r0"}`, id, slot, successor, request)),
		event("e-"+id, "key.rotated", "keys/"+old, data),
	}
}

func answer(kind, outcome, id, request, by string, generation, revision int64) history.Op {
	return history.Op{
		Kind: kind, Client: request, Key: "a0", Generation: generation, RequestID: request, Outcome: outcome, Revision: revision,
		Rotation: &history.Rotation{ID: id, Pool: "p", Slot: "a0", Generation: generation, Old: "a0", New: "b0", RequestID: by, Holder: "r0", Revision: revision},
	}
}

// rotated is a good run: two callers, one rotation under the lock.
func rotated() (s *story, generation int64) { return rotatedWith(true) }

// rotatedWith is a good run, in which the lock was written before the commit or was found free by it.
func rotatedWith(lock bool) (s *story, generation int64) {
	s = newStory()
	generation = s.pool()
	if lock {
		s.lock("a0", "r0")
	}
	s.rev(rotation("R", "a0", "b0", "a0", "q1", generation)...)
	if !lock {
		s.drop("locks/p/a0")
	}
	s.op(answer(history.Rotate, history.Rotated, "R", "q1", "q1", generation, s.at))
	s.op(answer(history.Rotate, history.AlreadyRotated, "R", "q2", "q1", generation, s.at))
	s.op(history.Op{Kind: history.GetKeys, Revision: s.at, Keys: []history.Key{{ID: "b0", Slot: "a0", Generation: s.at, Priority: 1, SecretRight: true}}})
	// The first caller's request was under way when the rotation was made.
	s.in.Ops[4].Start = s.in.Ops[3].End
	return s, generation
}

// last is the last operation but n.
func (s *story) last(n int) *history.Op { return &s.in.Ops[len(s.in.Ops)-1-n] }

// change edits the value of a key in the last revision that has it.
func (s *story) change(key, old, new string) {
	for i := len(s.in.Recording) - 1; i >= 0; i-- {
		for j := range s.in.Recording[i].Changes {
			if c := &s.in.Recording[i].Changes[j]; c.Key == key && strings.Contains(string(c.Value), old) {
				c.Value = json.RawMessage(strings.Replace(string(c.Value), old, new, 1))
				return
			}
		}
	}
	panic(key + " does not hold " + old)
}

// drop removes a key's change from the last revision that has it.
func (s *story) drop(key string) {
	for i := len(s.in.Recording) - 1; i >= 0; i-- {
		rev := &s.in.Recording[i]
		if at := slices.IndexFunc(rev.Changes, func(c recorder.Change) bool { return c.Key == key }); at >= 0 {
			rev.Changes = slices.Delete(rev.Changes, at, at+1)
			return
		}
	}
	panic(key + " is not there")
}

func TestGoodRun(t *testing.T) {
	for name, lock := range map[string]bool{"the lock before the commit": true, "the lock with the commit": false} {
		t.Run(name, func(t *testing.T) { goodRun(t, lock) })
	}
}

func goodRun(t *testing.T, lock bool) {
	s, _ := rotatedWith(lock)
	s.rev(put("locks/p/b0", `{"holder":"r1"}`))
	s.rev(del("locks/p/b0"))
	s.op(history.Op{Kind: history.GetKey, Key: "a0", Revision: s.at, Current: &history.Key{ID: "a0", Home: "RETIRED", Slot: "a0", Generation: s.in.Ops[4].Generation, Status: "UNSPECIFIED", Revision: s.in.Ops[4].Revision}})
	s.op(history.Op{Kind: history.Rotate, Key: "a0", Generation: 99, RequestID: "q9", Code: "NOT_FOUND", Reason: "ROTATION_NOT_FOUND"})
	if r := check.Run(s.in); !r.OK() || r.Stats.Rotations != 1 || r.Stats.Lives != 1 {
		r.Write(os.Stderr)
		t.Errorf("a good run has violations or was not looked at: %+v", r.Stats)
	}
}

// A bound that holds, one that is found reached, and a key that cools down for it.
func TestGoodRunWithABound(t *testing.T) {
	s, _ := rotated()
	s.boundRotations(1, "2s", 2, 3*time.Second)
	s.op(history.Op{Kind: history.Rotate, Key: "b0", Code: "RESOURCE_EXHAUSTED", Reason: "ROTATION_BOUND"})
	s.rev(put("tokens/p/reached", `{}`), event("reached", "pool.bound_reached", "pools/p", ""))
	cools, tells := rests("d1", "c1", "ERROR", s.at-1, s.in.Epoch.Add(s.time+time.Second), "bound", "")
	s.rev(cools, tells)
	keys := []history.Key{
		{ID: "b0", Slot: "a0", Generation: s.in.Ops[4].Revision, Priority: 1, SecretRight: true},
	}
	for _, c := range s.in.Recording {
		for _, change := range c.Changes {
			if change.Key == "active/p/d0" && !change.Deleted {
				keys = append(keys, history.Key{ID: "d0", Slot: "c0", Generation: c.Revision, Priority: 1, SecretRight: true})
			}
		}
	}
	s.op(history.Op{Kind: history.GetKeys, Revision: s.at, Keys: keys})
	s.time += 2 * time.Second
	s.op(history.Op{Kind: history.GetKeys, Revision: s.at, Keys: append(keys, history.Key{ID: "d1", Slot: "c1", Generation: cools.Create, Priority: 1, SecretRight: true})})
	if r := check.Run(s.in); !r.OK() || r.Stats.Rotations != 3 {
		r.Write(os.Stderr)
		t.Errorf("a good run has violations or was not looked at: %+v", r.Stats)
	}
}

// Each violation is seeded into a good run and must be found under its name.
func TestViolations(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		spoil      func(s *story, generation int64)
	}{
		{"the same life twice", "I1", func(s *story, g int64) { s.rev(rotation("S", "a0", "b1", "a0", "q3", g)...) }},
		{"a gap in the slot's chain", "I1", func(s *story, g int64) {
			s.change("active/p/b0", `"slot":"a0"`, `"slot":"b9"`)
		}},
		{"a record written twice", "I1", func(s *story, g int64) {
			s.rev(put(fmt.Sprintf("rotations/p/a0/%d", g), `{"id":"T","newKeyId":"b0"}`))
		}},
		{"two homes", "I2", func(s *story, g int64) { s.rev(put("backup/p/a0", "{}"), event("x", "key.added", "keys/a0", "")) }},
		{"a backup that was lost", "I2", func(s *story, g int64) { s.rev(del("backup/p/b1"), event("x", "key.restored", "keys/b1", "")) }},
		{"a backup that is still there", "I2", func(s *story, g int64) { s.drop("backup/p/b0") }},
		{"eleven active keys", "I2", func(s *story, g int64) {
			s.rev(put("active/p/a0", healthy("a0", "a0")), event("x", "key.enabled", "keys/a0", ""))
		}},
		{"a dangling binding", "I3", func(s *story, g int64) {
			s.rev(put("bindings/p/x", `{"slots":[{"slot":"z","priority":1}]}`), event("x", "binding.set", "bindings/x", ""))
		}},
		{"two winners", "I4", func(s *story, g int64) { s.last(1).Outcome = history.Rotated }},
		{"another rotation", "I4", func(s *story, g int64) { s.last(1).Rotation.New = "b1" }},
		{"another life", "I5", func(s *story, g int64) { s.last(1).Generation = g - 1 }},
		{"a rotation nobody asked for", "I5", func(s *story, g int64) { s.last(2).RequestID = "q0" }},
		{"a success without record", "I6", func(s *story, g int64) { s.last(1).Rotation.ID = "nowhere" }},
		{"applied, told that it was not", "I6", func(s *story, g int64) {
			op := s.last(2)
			op.Code, op.Reason, op.Outcome, op.Rotation, op.Revision = "UNAVAILABLE", "NOT_APPLIED", "", nil, 0
		}},
		{"an unknown outcome that stays so", "I6", func(s *story, g int64) {
			s.in.Healed = time.Now()
			s.op(history.Op{Kind: history.Rotate, Key: "a0", RequestID: "q5", Code: "UNAVAILABLE", Reason: "OUTCOME_UNKNOWN"})
		}},
		{"pending, but nothing waited", "I6", func(s *story, g int64) {
			s.op(history.Op{Kind: history.Rotate, Key: "b0", RequestID: "q5", Outcome: history.Pending, Revision: s.at})
		}},
		{"an addition that is not there", "I6", func(s *story, g int64) { s.in.Ops[1].Added[0].Revision++ }},
		{"a restore whose caller was told no", "I6", func(s *story, g int64) {
			s.op(history.Op{Kind: history.RestoreKey, Key: "a0", Code: "FAILED_PRECONDITION", Reason: "KEY_WRONG_HOME"})
			s.rev(del("retired/p/a0"), put("backup/p/a0", "{"+sealed("a0")+"}"), event("x", "key.restored", "keys/a0", `"keyId":"a0"`))
		}},
		{"paused, it said", "I6", func(s *story, g int64) {
			s.op(history.Op{Kind: history.Rotate, Key: "b0", Code: "FAILED_PRECONDITION", Reason: "POOL_PAUSED"})
		}},
		{"a durable record with a lease", "I7", func(s *story, g int64) {
			c := put("pending/p/b0", `{}`)
			c.Lease = 3
			s.rev(c)
		}},
		{"no event", "I8", func(s *story, g int64) { s.drop("events/p/e-R") }},
		{"an event alone", "I8", func(s *story, g int64) { s.rev(event("x", "key.rotated", "keys/a0", "")) }},
		{"an event of another type", "I8", func(s *story, g int64) { s.change("events/p/e-R", "key.rotated", "key.removed") }},
		{"an event that says something else", "I8", func(s *story, g int64) { s.change("events/p/e-R", `"newKeyId":"b0"`, `"newKeyId":"b1"`) }},
		{"a ghost lock", "I9", func(s *story, g int64) {
			s.lock("b0", "r1")
			s.time += time.Minute
			s.rev(put("pools/p", `{"paused":true}`), event("x", "pool.paused", "pools/p", ""))
		}},
		{"no last rotation", "I9", func(s *story, g int64) { s.in.Healed = time.Now() }},
		{"a rotation that waits for ever", "I9", func(s *story, g int64) {
			s.rev(put("pending/p/b0", `{"generation":"1"}`))
			s.time += time.Minute
			s.rev(put("locks/p/x", `{}`))
		}},
		{"a secret in etcd", "I10", func(s *story, g int64) {
			s.in.Canaries = []string{"CANARY"}
			s.change("backup/p/b1", `"f-b1"`, `"CANARY"`)
		}},
		{"a secret in a log", "I10", func(s *story, g int64) { s.in.Canaries = []string{"f-log"} }},
		{"rotated while paused", "pause", func(s *story, g int64) { s.change("pools/p", `{}`, `{"paused":true}`) }},
		{"rotated while disabled", "disabled", func(s *story, g int64) { s.change("active/p/a0", "HEALTHY", "DISABLED") }},
		{"committed by who does not hold the lock", "fence", func(s *story, g int64) { s.change("locks/p/a0", "r0", "r1") }},
		{"the lock left behind by its holder", "fence", func(s *story, g int64) { s.drop("locks/p/a0") }},
		{"a lock released for a frozen holder", "release", func(s *story, g int64) {
			s.in.Faults = []check.Fault{{Kind: "replica-stop", Target: "r1", Start: s.in.Epoch.Add(s.time), End: s.in.Epoch.Add(time.Minute)}}
			s.lock("b0", "r1")
			s.time += 2 * time.Second
			s.rev(del("locks/p/b0"))
		}},
		{"an old key among those that can be used", "read", func(s *story, g int64) { s.last(0).Keys[0].ID = "a0" }},
		{"older than min_revision", "read", func(s *story, g int64) { s.last(0).MinRevision = s.at + 1 }},
		{"older than as_of", "read", func(s *story, g int64) {
			s.rev(put("locks/p/x", `{}`))
			s.last(0).AsOf = s.in.Epoch.Add(s.time + time.Millisecond)
		}},
		{"the wrong secret", "read", func(s *story, g int64) { s.last(0).Keys[0].SecretRight = false }},
		{"an internal error", "callers", func(s *story, g int64) {
			s.op(history.Op{Kind: history.GetKeys, Code: "INTERNAL", Reason: "UNSPECIFIED"})
		}},
		{"unavailable without a cause", "callers", func(s *story, g int64) {
			s.op(history.Op{Kind: history.GetKeys, Code: "UNAVAILABLE", Reason: "NOT_APPLIED"})
		}},
		{"too slow with one replica lost", "callers", func(s *story, g int64) {
			s.in.Faults = []check.Fault{{Kind: "replica-kill", Start: s.in.Epoch, End: s.in.Epoch.Add(time.Minute)}}
			s.last(0).End += int64(3 * time.Second)
		}},
		{"too slow beside a leader that hears nothing", "callers", func(s *story, g int64) {
			s.in.Faults = []check.Fault{{Kind: "member-cut-in", Start: s.in.Epoch, End: s.in.Epoch.Add(time.Minute)}}
			s.last(0).End += int64(5 * time.Second)
		}},
		{"a read refused without quorum", "callers", func(s *story, g int64) {
			s.in.Faults = []check.Fault{{Kind: "quorum-kill", Start: s.in.Epoch, End: s.in.Epoch.Add(time.Minute)}}
			s.time += 10 * time.Second
			s.op(history.Op{Kind: history.GetKeys, Code: "UNAVAILABLE", Reason: "NOT_APPLIED"})
		}},
		{"one rotation more than the bound allows", "P9", func(s *story, g int64) { s.boundRotations(1, "2s", 2, time.Second) }},
		{"a bounded rotation without a token", "P9", func(s *story, g int64) {
			s.boundRotations(1, "2s", 1, 0)
			s.drop("tokens/p/0")
		}},
		{"a token beyond the bound", "P9", func(s *story, g int64) {
			s.boundRotations(2, "2s", 2, 0)
			s.change("pools/p", `"rotations":2`, `"rotations":1`)
		}},
		{"at the bound, it said", "I6", func(s *story, g int64) {
			s.boundRotations(2, "2s", 1, 0)
			s.op(history.Op{Kind: history.Rotate, Key: "b0", Code: "RESOURCE_EXHAUSTED", Reason: "ROTATION_BOUND"})
		}},
		{"pending after it was rotated", "linearizability", func(s *story, g int64) {
			s.op(history.Op{Kind: history.Rotate, Key: "a0", Generation: g, RequestID: "q7", Outcome: history.Pending, Revision: s.at})
		}},
		{"told the result before anybody asked for it", "linearizability", func(s *story, g int64) {
			early := s.last(1)
			early.Start, early.End = 0, 1
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, generation := rotated()
			if tc.name == "a secret in a log" {
				s.in.Files = []string{filepath.Join(t.TempDir(), "log")}
				if err := os.WriteFile(s.in.Files[0], []byte("starting f-log"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			tc.spoil(s, generation)
			r := check.Run(s.in)
			if !slices.Contains(r.Broken(), tc.want) {
				var text strings.Builder
				r.Write(&text)
				t.Errorf("broken: %v, want %s\n%s", r.Broken(), tc.want, text.String())
			}
		})
	}
}

// A request that was told "not applied" may be repeated, and the repeat be applied.
func TestARepeatMayBeApplied(t *testing.T) {
	s := newStory()
	g := s.pool()
	s.op(history.Op{Kind: history.Rotate, Client: "q1", Key: "a0", Generation: g, RequestID: "q1", Code: "UNAVAILABLE", Reason: "NOT_APPLIED"})
	s.last(0).Last = false
	s.lock("a0", "r0")
	s.op(answer(history.Rotate, history.Rotated, "R", "q1", "q1", g, s.at+1))
	s.last(0).Call = s.last(1).Call
	s.rev(rotation("R", "a0", "b0", "a0", "q1", g)...)
	if r := check.Run(s.in); !r.OK() {
		r.Write(os.Stderr)
		t.Error("a repeat that was applied is held to be a violation")
	}
}

// A leader that hears nothing holds the others back for two election time-outs before they elect another one.
func TestALeaderThatHearsNothingCostsMore(t *testing.T) {
	s, _ := rotated()
	s.in.Faults = []check.Fault{{Kind: "member-cut-in", Start: s.in.Epoch, End: s.in.Epoch.Add(time.Minute)}}
	s.last(0).End += int64(3500 * time.Millisecond)
	if r := check.Run(s.in); !r.OK() {
		r.Write(os.Stderr)
		t.Error("an election that takes as long as etcd's does is held to be a violation")
	}
}

// etcd takes a snapshot away between the listing of its files and the search for secrets. One that cannot be read is told.
func TestFilesThatHaveGone(t *testing.T) {
	s, _ := rotated()
	s.in.Canaries = []string{"f-log"}
	s.in.Files = []string{filepath.Join(t.TempDir(), "0013-b057.snap")}
	if r := check.Run(s.in); slices.Contains(r.Broken(), "I10") {
		t.Errorf("broken by a file that has gone: %v", r.Broken())
	}
	s.in.Files = []string{t.TempDir()}
	if r := check.Run(s.in); !slices.Contains(r.Broken(), "I10") {
		t.Errorf("what cannot be read was passed over: %v", r.Broken())
	}
}

// A replica that was shown a use of the bound late, because etcd had no quorum, counts it from then.
func TestAUseThatWasShownLateCountsFromThen(t *testing.T) {
	for name, fault := range map[string]bool{"quorum lost meanwhile": true, "no fault": false} {
		s := newStory()
		s.pool()
		s.boundRotations(2, "2s", 2, 0)
		lost := s.time
		s.time += 7 * time.Second
		if fault {
			s.in.Faults = []check.Fault{{Kind: "quorum-cut", Start: s.in.Epoch.Add(lost), End: s.in.Epoch.Add(s.time - time.Second)}}
		}
		s.op(history.Op{Kind: history.Rotate, Key: "b0", Code: "RESOURCE_EXHAUSTED", Reason: "ROTATION_BOUND"})
		if r := check.Run(s.in); slices.Contains(r.Broken(), "I6") == fault {
			t.Errorf("%s: broken: %v", name, r.Broken())
		}
	}
}

// An outcome that was not told may show up later, and an enabled key cancels what waits.
func TestUnknownOutcomesAndWaiting(t *testing.T) {
	s := newStory()
	g := s.pool()
	s.op(history.Op{Kind: history.Rotate, Client: "q1", Key: "a0", Generation: g, RequestID: "q1", Code: "DEADLINE_EXCEEDED"})
	s.last(0).Last = false
	s.lock("a0", "r0")
	s.rev(recorder.Change{Key: "active/p/a0", Create: g, Value: json.RawMessage(strings.Replace(healthy("a0", "a0"), "HEALTHY", "EXHAUSTED", 1))},
		put("pending/p/a0", fmt.Sprintf(`{"generation":"%d","requestId":"q1"}`, g)), del("locks/p/a0"), event("x", "key.pending", "keys/a0", `"keyId":"a0"`))
	s.op(history.Op{Kind: history.Rotate, Client: "q2", Key: "a0", Generation: g, RequestID: "q2", Outcome: history.Pending, Revision: s.at})
	s.lock("a0", "r0")
	s.rev(append(rotation("R", "a0", "b0", "a0", "q1", g), del("pending/p/a0"))...)
	s.op(answer(history.Rotate, history.AlreadyRotated, "R", "q2", "q1", g, s.at))
	s.op(answer(history.Rotate, history.Rotated, "R", "q1", "q1", g, s.at))
	if r := check.Run(s.in); !r.OK() || r.Stats.Pendings != 1 {
		r.Write(os.Stderr)
		t.Errorf("violations, or the wait was not seen: %+v", r.Stats)
	}
}

// Who stands still with one lock may take another one for the same key meanwhile, and give it back.
func TestWhoStandsStillMayTakeAnotherLock(t *testing.T) {
	for name, first := range map[string]bool{"the lock it stands with": true, "another one": false} {
		s, _ := rotated()
		hold := func() {
			start := s.in.Epoch.Add(s.time)
			s.in.Held = []check.Hold{{Replica: "r1", Pool: "p", Key: "b0", Start: start, End: start.Add(time.Minute)}}
			s.time += time.Second
		}
		if !first {
			hold()
		}
		s.lock("b0", "r1")
		if first {
			hold()
		}
		s.time += time.Second
		s.rev(del("locks/p/b0"))
		r := check.Run(s.in)
		if released := slices.ContainsFunc(r.Violations, func(v check.Violation) bool { return v.Invariant == "release" }); released != first {
			r.Write(os.Stderr)
			t.Errorf("%s is released: held to be somebody else's doing: %v", name, released)
		}
	}
}

// History: faults -seed 20261205, pool outages, key k19. A replica died with a lock and came back at once. While it stood
// still in its new life the lock went with the lease of the old one.
func TestLockOfAFormerLife(t *testing.T) {
	s, _ := rotated()
	s.rev(put("replicas/r1", `{}`))
	s.lock("b0", "r1")
	again := put("replicas/r1", `{}`)
	again.Lease = 8
	s.rev(again)
	s.in.Faults = []check.Fault{{Kind: "replica-stop", Target: "r1", Start: s.in.Epoch.Add(s.time), End: s.in.Epoch.Add(time.Minute)}}
	s.time += 2 * time.Second
	s.rev(del("locks/p/b0"))
	if r := check.Run(s.in); !r.OK() {
		r.Write(os.Stderr)
		t.Error("a lock that went with its lease is held to be released by somebody else")
	}
}

// History: faults -seed 20261206, pool admin-scarce, key k19. The answer to a call's park was lost; the call found stock and
// made the rotation. Others had been told meanwhile that it waits.
func TestOneCallParksAndRotates(t *testing.T) {
	s := newStory()
	g := s.pool()
	began := int64(s.time)
	s.rev(recorder.Change{Key: "active/p/a0", Create: g, Value: json.RawMessage(strings.Replace(healthy("a0", "a0"), "HEALTHY", "EXHAUSTED", 1))},
		put("pending/p/a0", fmt.Sprintf(`{"generation":"%d","requestId":"q1"}`, g)), event("park", "key.pending", "keys/a0", `"keyId":"a0"`))
	s.op(history.Op{Kind: history.Rotate, Client: "q2", Key: "a0", Generation: g, RequestID: "q2", Outcome: history.Pending, Revision: s.at})
	s.lock("a0", "r0")
	s.rev(append(rotation("R", "a0", "b0", "a0", "q1", g), del("pending/p/a0"))...)
	s.op(answer(history.Rotate, history.Rotated, "R", "q1", "q1", g, s.at))
	s.last(0).Start = began
	if r := check.Run(s.in); slices.ContainsFunc(r.Violations, func(v check.Violation) bool { return v.Invariant == "linearizability" }) {
		r.Write(os.Stderr)
		t.Error("the answers are held to have no order")
	}
}

// A request that waited in one life, and was cancelled, is a new one when it comes again without generation in a later life.
func TestRequestWaitsAgainInALaterLife(t *testing.T) {
	s := newStory()
	g := s.pool()
	parked := func(key, id string, g int64) {
		s.lock(key, "r0")
		s.rev(recorder.Change{Key: "active/p/" + key, Create: g, Value: json.RawMessage(strings.Replace(healthy("a0", key), "HEALTHY", "EXHAUSTED", 1))},
			put("pending/p/"+key, fmt.Sprintf(`{"generation":"%d","requestId":%q}`, g, id)), del("locks/p/"+key), event("x"+id, "key.pending", "keys/"+key, fmt.Sprintf(`"keyId":%q`, key)))
		s.op(history.Op{Kind: history.Rotate, Client: id, Key: key, RequestID: id, Outcome: history.Pending, Revision: s.at})
	}
	parked("a0", "q1", g)
	s.rev(del("pending/p/a0"), recorder.Change{Key: "active/p/a0", Create: g, Value: json.RawMessage(healthy("a0", "a0"))}, event("on", "key.enabled", "keys/a0", `"keyId":"a0"`))
	s.op(history.Op{Kind: history.EnableKey, Client: "admin", Key: "a0", Revision: s.at, Current: &history.Key{ID: "a0", Generation: g}})
	s.lock("a0", "r0")
	s.rev(rotation("R", "a0", "b0", "a0", "q2", g)...)
	s.op(answer(history.Rotate, history.Rotated, "R", "q2", "q2", g, s.at))
	second := s.at
	s.rev(del("retired/p/a0"), put("backup/p/a0", "{"+sealed("a0")+"}"), event("back", "key.restored", "keys/a0", `"keyId":"a0"`))
	s.op(history.Op{Kind: history.RestoreKey, Client: "admin", Key: "a0", Revision: s.at})
	s.lock("b0", "r0")
	s.rev(rotation("S", "b0", "a0", "a0", "q3", second)...)
	s.op(answer(history.Rotate, history.Rotated, "S", "q3", "q3", second, s.at))
	s.last(0).Key, s.last(0).Rotation.Old, s.last(0).Rotation.New = "b0", "b0", "a0"
	parked("a0", "q4", s.at)
	s.op(history.Op{Kind: history.Rotate, Client: "q1", Key: "a0", RequestID: "q1", Outcome: history.Pending, Revision: s.at})
	if r := check.Run(s.in); !r.OK() {
		r.Write(os.Stderr)
		t.Error("an answer about the life that waits now is held to be one about the life that is over")
	}
}

// Transitions that are made at once share a revision, and each has its own event.
func TestTransitionsShareARevision(t *testing.T) {
	for name, spoil := range map[string]func([]recorder.Change) []recorder.Change{
		"":                    func(c []recorder.Change) []recorder.Change { return c },
		"an event is missing": func(c []recorder.Change) []recorder.Change { return slices.Delete(c, 6, 7) },
	} {
		s := newStory()
		g := s.pool()
		g1 := s.rev(put("active/p/a1", healthy("a1", "a1")), put("slots/p/a1", `{"state":"SLOT_STATE_OPEN"}`), put("fingerprints/p/f-a1", `{"keyId":"a1"}`), event("a1", "key.added", "keys/a1", `"keyId":"a1"`))
		s.op(history.Op{Kind: history.AddKeys, Added: []history.Added{{ID: "a1", Result: "ADDED", Revision: s.at}}})
		s.op(history.Op{Kind: history.Rotate, Client: "q1", Key: "a0", Generation: g, RequestID: "q1", Code: "DEADLINE_EXCEEDED"})
		s.op(history.Op{Kind: history.Rotate, Client: "q2", Key: "a1", Generation: g1, RequestID: "q2", Code: "DEADLINE_EXCEEDED"})
		for i := range s.in.Ops { // they were not repeated
			s.in.Ops[i].Last = s.in.Ops[i].Code == history.OK
		}
		s.lock("a0", "r0")
		s.lock("a1", "r0")
		both := append(rotation("R", "a0", "b0", "a0", "q1", g), rotation("S", "a1", "b1", "a1", "q2", g1)...)
		s.at++
		s.time += time.Millisecond
		for i := range both {
			both[i].Create = s.at
		}
		s.in.Recording = append(s.in.Recording, recorder.Revision{Revision: s.at, Seen: s.in.Epoch.Add(s.time), Changes: spoil(both)})
		if r := check.Run(s.in); r.OK() != (name == "") {
			r.Write(os.Stderr)
			t.Errorf("%q: ok is %v", name, r.OK())
		}
	}
}

// A rotation whose own caller was not told, since its replica crashed, may be told to another one first.
func TestOthersMayBeToldFirst(t *testing.T) {
	s := newStory()
	g := s.pool()
	s.op(history.Op{Kind: history.Rotate, Client: "q1", Key: "a0", Generation: g, RequestID: "q1", Code: "UNAVAILABLE"})
	s.last(0).Last = false
	s.lock("a0", "r0")
	s.rev(rotation("R", "a0", "b0", "a0", "q1", g)...)
	s.op(answer(history.Rotate, history.AlreadyRotated, "R", "q2", "q1", g, s.at))
	s.op(answer(history.Rotate, history.Rotated, "R", "q1", "q1", g, s.at))
	s.last(0).Call = s.last(2).Call
	if r := check.Run(s.in); !r.OK() {
		r.Write(os.Stderr)
		t.Error("a rotation that was told to another caller first is held to be a violation")
	}
}

// A schema is written only after all replicas on record have known it, and is not taken back.
func TestSchemas(t *testing.T) {
	for _, tc := range []struct {
		name string
		runs func(s *upgrade)
		want []string
	}{
		{"when all know it", func(u *upgrade) { u.replica("r0", 1); u.replica("r1", 2); u.replica("r0", 2); u.write(2) }, nil},
		{"when the last that does not has gone", func(u *upgrade) { u.replica("r0", 1); u.replica("r1", 2); u.rev(del("replicas/r0")); u.write(2) }, nil},
		{"when one that does not has come back", func(u *upgrade) { u.replica("r1", 2); u.replica("r0", 1); u.write(2) }, nil},
		{"while one does not", func(u *upgrade) { u.replica("r1", 1); u.replica("r0", 2); u.write(2) }, []string{"schema"}},
		{"before any replica is on record", func(u *upgrade) { u.write(2) }, []string{"schema"}},
		{"and an older one over it", func(u *upgrade) { u.replica("r0", 2); u.write(2); u.write(1) }, []string{"schema"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := rotated()
			tc.runs(&upgrade{s, s.at})
			if r := check.Run(s.in); !slices.Equal(r.Broken(), tc.want) {
				var text strings.Builder
				r.Write(&text)
				t.Errorf("broken: %v, want %v\n%s", r.Broken(), tc.want, text.String())
			}
		})
	}
}

// upgrade is a story in which key b0, of a generation, is written again and again.
type upgrade struct {
	*story
	generation int64
}

func (u *upgrade) replica(name string, knows int) {
	u.rev(put("replicas/"+name, fmt.Sprintf(`{"schema":1,"knowsSchema":%d}`, knows)))
}

func (u *upgrade) write(schema int) {
	active := put("active/p/b0", fmt.Sprintf(`{"schema":%d,"slot":"a0","status":"KEY_STATUS_HEALTHY","replaces":"a0",%s}`, schema, sealed("b0")))
	active.Create = u.generation
	u.op(history.Op{Kind: history.EnableKey, Key: "b0", Revision: u.at + 1, Current: &history.Key{ID: "b0", Generation: u.generation}})
	u.rev(active, event(fmt.Sprint("e", u.at), "key.enabled", "keys/b0", `"keyId":"b0"`))
}
