package check

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/rotatord/rotatord/internal/recorder"
)

// value is what any record may hold, as plain JSON.
type value struct {
	Slot, Status, State, Phase                string
	ID, KeyID, NewKeyID, Replaces, ReplacedBy string
	RequestID, Holder, Campaign               string
	Type, Source, Subject, StatusReason       string
	Generation                                int64 `json:",string"`
	Paused, Deleting                          bool
	Schema, KnowsSchema                       int
	StatusUntil, UsedAt, CommittedAt          time.Time
	RetiredAt, PlannedAt, Time                time.Time
	Incident                                  *incident
	Work                                      work
	Spec                                      struct {
		RotationBound struct {
			Rotations *int
			Window    string
		}
		Provider   *struct{}
		Retirement struct{ RevokeAfter, SecretRetention string }
	}
	Sealed struct{ Fingerprint string }
	Slots  []struct {
		Slot     string
		Priority int
	}
	Data struct {
		KeyID, NewKeyID, RequestID, RotationID, Slot, ProxyID, Status, Home, Phase string
		Generation                                                                 int64 `json:",string"`
		StatusUntil                                                                time.Time
	}
}

// incident is a time in which reports change nothing.
type incident struct{ Since, Until time.Time }

// record is a record as of a revision.
type record struct {
	value
	create, mod, lease int64
	raw                json.RawMessage
}

// world is everything under the prefix as of a revision, and what it was before.
type world struct {
	at      map[string]*record // events are not kept
	byPool  map[string]map[string]*record
	revs    []int64 // of the recording
	seen    []int64 // when each arrived, on the history's clock
	keys    map[string][]keyEntry
	pools   map[string][]poolEntry
	ended   map[string]*rotation // lives that were rotated
	last    map[string]*rotation // of a slot
	rotated map[string]*rotation // by id
	byOld   map[string][]*rotation
	parks   map[string][]park  // by pool and key
	spends  map[string][]spend // tokens of the bound that were used, by pool
	events  []event
	removed map[string]int64    // lives that ended by removal, with the revision
	intents map[string][]intent // calls that were announced, by pool and key, in order
	dropped map[string]*record  // what the last record of a key said that was removed by hand, by pool and key
	rests   map[string][]rest   // by pool and key
	revokes map[string]int64    // when a key was first to be revoked, by pool and key
	schema  int                 // the newest that all replicas on record have known at one moment
}

// keyEntry is where a key is from a revision on.
type keyEntry struct {
	revision   int64
	home       string // active, backup, retired or ""
	generation int64
	disabled   bool
	pending    int64 // the generation that waits, 0: none
	pendingReq string
}

// poolEntry is a pool from a revision on.
type poolEntry struct {
	revision       int64
	exists, paused bool
	incident       *incident
}

// rotation is a rotation record.
type rotation struct {
	value
	pool, old            string
	generation, revision int64
}

// park is a record that a rotation waits.
type park struct {
	pool, key, request   string
	generation, revision int64
}

// event is an event with the revision it came in.
type event struct {
	value
	pool     string
	revision int64
}

func lifeOf(pool, key string, generation int64) string {
	return fmt.Sprintf("%s/%s/%d", pool, key, generation)
}

func split(key string) (kind, pool, name string) {
	parts := append(strings.SplitN(key, "/", 3), "", "", "")
	return parts[0], parts[1], parts[2]
}

// leased kinds belong to sessions.
func leased(kind string) bool { return kind == "locks" || kind == "replicas" || kind == "leaders" }

// transient kinds belong to sessions, or are notes of what was reported; changing them is no transition.
func transient(kind string) bool { return leased(kind) || kind == "health" }

func newWorld() *world {
	return &world{
		at: make(map[string]*record), byPool: make(map[string]map[string]*record), keys: make(map[string][]keyEntry), pools: make(map[string][]poolEntry),
		ended: make(map[string]*rotation), last: make(map[string]*rotation), rotated: make(map[string]*rotation), byOld: make(map[string][]*rotation),
		parks: make(map[string][]park), spends: make(map[string][]spend), removed: make(map[string]int64), schema: 1,
		intents: make(map[string][]intent), dropped: make(map[string]*record), revokes: make(map[string]int64), rests: make(map[string][]rest),
	}
}

func (w *world) set(key string, rec *record) {
	kind, pool, name := split(key)
	group := kind + "/" + pool
	if w.byPool[group] == nil {
		w.byPool[group] = make(map[string]*record)
	}
	if rec == nil {
		delete(w.at, key)
		delete(w.byPool[group], name)
		return
	}
	w.at[key] = rec
	w.byPool[group][name] = rec
}

func parse(c recorder.Change, revision int64) (*record, error) {
	rec := &record{create: c.Create, mod: revision, lease: c.Lease, raw: c.Value}
	if err := json.Unmarshal(c.Value, &rec.value); err != nil {
		return rec, err
	}
	return rec, nil
}

// note remembers what became of keys and pools at a revision.
func (w *world) note(revision int64, changes []recorder.Change) {
	noted := make(map[string]bool)
	for _, c := range changes {
		kind, pool, name := split(c.Key)
		switch kind {
		case "pools":
			p := w.at[c.Key]
			w.pools[pool] = append(w.pools[pool], entryOf(revision, p))
		case "active", "backup", "retired", "stock", "pending":
			if id := pool + "/" + name; !noted[id] {
				noted[id] = true
				w.keys[id] = append(w.keys[id], w.where(revision, id))
			}
		}
	}
}

func entryOf(revision int64, p *record) poolEntry {
	if p == nil {
		return poolEntry{revision: revision}
	}
	return poolEntry{revision, true, p.Paused, p.Incident}
}

func (w *world) where(revision int64, id string) keyEntry {
	e := keyEntry{revision: revision}
	if a := w.at["active/"+id]; a != nil {
		e.home, e.generation, e.disabled = "active", a.create, a.Status == "KEY_STATUS_DISABLED"
	} else if w.at["backup/"+id] != nil {
		e.home = "backup"
	} else if r := w.at["retired/"+id]; r != nil {
		e.home, e.generation = "retired", r.Generation
	} else if w.at["stock/"+id] != nil {
		e.home = "preparing"
	}
	if p := w.at["pending/"+id]; p != nil {
		e.pending, e.pendingReq = p.Generation, p.RequestID
	}
	return e
}

// committedBefore is the newest revision that was surely committed before a moment.
func (w *world) committedBefore(at int64) int64 {
	if i := sort.Search(len(w.seen), func(i int) bool { return w.seen[i] > at }); i > 0 {
		return w.revs[i-1]
	}
	return 0
}

// seenAt is when a revision had arrived at the recorder.
func (w *world) seenAt(revision int64) int64 {
	if i, _ := slices.BinarySearch(w.revs, revision); i < len(w.seen) {
		return w.seen[i]
	}
	return 1 << 62
}

// between are the entries that were valid at some revision from..to.
func between[E any](entries []E, revision func(E) int64, from, to int64) []E {
	first := sort.Search(len(entries), func(i int) bool { return revision(entries[i]) > from })
	last := sort.Search(len(entries), func(i int) bool { return revision(entries[i]) > to })
	return entries[max(0, first-1):max(last, first)]
}

// lived reports whether there ever was such a life.
func (w *world) lived(id string, generation int64) bool {
	return slices.ContainsFunc(w.keys[id], func(e keyEntry) bool { return e.home == "active" && e.generation == generation })
}

func (w *world) keyBetween(id string, from, to int64) []keyEntry {
	entries := w.keys[id]
	out := between(entries, func(e keyEntry) int64 { return e.revision }, from, to)
	if len(entries) == 0 || entries[0].revision > from {
		out = append([]keyEntry{{}}, out...) // it was nowhere before
	}
	return out
}

func (w *world) poolBetween(pool string, from, to int64) []poolEntry {
	return between(w.pools[pool], func(e poolEntry) int64 { return e.revision }, from, to)
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
