// Package recorder watches a rotatord's state in etcd from outside and holds every revision against the promises.
//
// It is for tests. It shares no code with the service: keys are split and values are read as plain JSON here, so that a
// mistake in the service's own reading cannot hide itself.
//
// It promises that no revision is missed: it goes on after a loss of quorum or of its connection where it was, and says
// so if etcd has compacted what it had not seen. Its work for a revision does not grow with what is in etcd.
package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Options of a Recorder.
type Options struct {
	// Dump gets each revision as a line of JSON, without sealed secrets. Default: none.
	Dump io.Writer
	// Keep keeps all revisions for History.
	Keep bool
	// Also are clients of single members to watch through as well. A member that is stopped sends nothing and says nothing:
	// with another one to listen to, a revision is still seen when it is made. Default: none.
	Also []*clientv3.Client
	// Canaries are texts that no key and no value may hold.
	Canaries []string
}

// Revision is everything that one revision changed under the prefix.
type Revision struct {
	Revision int64     `json:"revision"`
	Seen     time.Time `json:"seen"` // when it arrived: it was committed before
	Changes  []Change  `json:"changes"`
}

// Change is one key that was put or deleted. Ciphertexts are left out of values.
type Change struct {
	Key     string          `json:"key"` // without the prefix
	Deleted bool            `json:"deleted,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"`
	Create  int64           `json:"create,omitempty"`
	Lease   int64           `json:"lease,omitempty"`
}

// Recorder holds the state as of the last revision it saw, and what was wrong on the way.
type Recorder struct {
	clients []*clientv3.Client
	prefix  string
	opts    Options
	stop    context.CancelFunc
	done    chan struct{}

	mu         sync.Mutex // protects the following fields
	records    map[string]record
	names      map[string]map[string]bool // of records, by kind and pool
	deleting   map[string]bool
	revision   int64
	moved      chan struct{}
	history    []Revision
	events     map[string]int // by type
	rotations  []Rotation
	lastOf     map[string]Rotation // by pool and slot
	ended      map[string]bool     // lives
	violations []string
	schema     int // the newest
}

type record struct {
	fields map[string]any
	raw    string
	lease  int64
}

// Rotation is one rotation as the recorder saw it.
type Rotation struct {
	Pool, Old, New, Slot, ID string
	Generation, Revision     int64
}

// Start records everything under prefix from now on.
func Start(ctx context.Context, client *clientv3.Client, prefix string) (*Recorder, error) {
	return StartWith(ctx, client, prefix, Options{})
}

// StartWith is Start with options. What is there already is the first revision of the history.
func StartWith(ctx context.Context, client *clientv3.Client, prefix string, opts Options) (*Recorder, error) {
	first, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		clients: append([]*clientv3.Client{client}, opts.Also...), prefix: prefix, opts: opts, done: make(chan struct{}), records: make(map[string]record),
		names: make(map[string]map[string]bool), deleting: make(map[string]bool), revision: first.Header.Revision, moved: make(chan struct{}),
		events: make(map[string]int), lastOf: make(map[string]Rotation), ended: make(map[string]bool),
	}
	start := make([]*clientv3.Event, len(first.Kvs))
	for i, kv := range first.Kvs {
		start[i] = &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv}
		r.put(kv)
	}
	r.keep(first.Header.Revision, start)
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.stop = cancel
	var watches sync.WaitGroup
	for _, c := range r.clients {
		watches.Go(func() { r.follow(wctx, c) })
	}
	go func() { watches.Wait(); close(r.done) }()
	return r, nil
}

// rewatchPause is short: a revision that is compacted before it was seen is lost.
const rewatchPause = 50 * time.Millisecond

// follow watches until ctx ends, again and again from where the recording was. A watch that has fallen behind others may
// find its revision compacted; the recording has it.
func (r *Recorder) follow(ctx context.Context, client *clientv3.Client) {
	for ctx.Err() == nil {
		compacted, err := r.watch(ctx, client)
		if at := r.Revision(); errors.Is(err, rpctypes.ErrCompacted) && at+1 < compacted {
			r.mu.Lock()
			r.violate(0, "the recording broke off after revision %d: %v", at, err)
			r.mu.Unlock()
			return
		}
		select {
		case <-time.After(rewatchPause):
		case <-ctx.Done():
		}
	}
}

// watch follows one watch to its end. It asks for a leader, so that it does not wait for ever on a member that is cut
// off.
func (r *Recorder) watch(ctx context.Context, client *clientv3.Client) (compacted int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := client.Watch(clientv3.WithRequireLeader(ctx), r.prefix, clientv3.WithPrefix(), clientv3.WithRev(r.Revision()+1), clientv3.WithFragment())
	for resp := range watch {
		if err := resp.Err(); err != nil {
			return resp.CompactRevision, err
		}
		r.take(resp.Events, resp.IsProgressNotify(), resp.Header.Revision)
	}
	return 0, nil
}

// take applies the events of one response, revision by revision. A response that reports progress says that there were
// no others up to revision.
func (r *Recorder) take(events []*clientv3.Event, progress bool, revision int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for rest := events; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Kv.ModRevision == rest[0].Kv.ModRevision {
			n++
		}
		if rest[0].Kv.ModRevision > r.revision { // a resumed watch may repeat itself
			r.keep(rest[0].Kv.ModRevision, rest[:n])
			for _, transition := range cutAfter(rest[:n], func(e *clientv3.Event) bool {
				return strings.HasPrefix(string(e.Kv.Key), r.prefix+"events/")
			}) {
				r.apply(transition)
			}
		}
		rest = rest[n:]
	}
	if progress {
		r.revision = max(r.revision, revision)
	}
	close(r.moved)
	r.moved = make(chan struct{})
}

// Transitions are the transitions of a revision, in their order. Those that are made at once share one revision, and each
// ends with its event. What has no event, such as locks, is with the next one or by itself at the end.
func (r *Revision) Transitions() [][]Change {
	return cutAfter(r.Changes, func(c Change) bool { return strings.HasPrefix(c.Key, "events/") })
}

// cutAfter cuts a list behind each element that is the last of a part.
func cutAfter[T any](list []T, last func(T) bool) (parts [][]T) {
	for begin, i := 0, 0; i < len(list); i++ {
		if last(list[i]) || i == len(list)-1 {
			parts = append(parts, list[begin:i+1])
			begin = i + 1
		}
	}
	return parts
}

// keep puts a revision into the history, and looks for canaries in it.
func (r *Recorder) keep(revision int64, events []*clientv3.Event) {
	r.searchCanaries(revision, events)
	if r.opts.Dump == nil && !r.opts.Keep {
		return
	}
	rev := Revision{Revision: revision, Seen: time.Now(), Changes: make([]Change, len(events))}
	for i, e := range events {
		rev.Changes[i] = Change{Key: strings.TrimPrefix(string(e.Kv.Key), r.prefix), Deleted: e.Type == clientv3.EventTypeDelete, Create: e.Kv.CreateRevision, Lease: e.Kv.Lease}
		if !rev.Changes[i].Deleted {
			rev.Changes[i].Value = bare(e.Kv.Value)
		}
	}
	if r.opts.Keep {
		r.history = append(r.history, rev)
	}
	if r.opts.Dump != nil {
		if err := json.NewEncoder(r.opts.Dump).Encode(&rev); err != nil {
			r.violate(revision, "the recording cannot be written: %v", err)
		}
	}
}

// bare is a value without its ciphertext, which is most of it and says nothing. What is not JSON is kept as a string.
func bare(value []byte) json.RawMessage {
	const field = `"ciphertext":"`
	text := string(value)
	if at := strings.Index(text, field); at >= 0 {
		from := at + len(field)
		if n := strings.IndexByte(text[from:], '"'); n >= 0 {
			text = text[:from] + text[from+n:]
		}
	}
	if !json.Valid([]byte(text)) {
		quoted, _ := json.Marshal(text)
		return quoted
	}
	return json.RawMessage(text)
}

func (r *Recorder) searchCanaries(revision int64, events []*clientv3.Event) {
	for _, e := range events {
		for _, canary := range r.opts.Canaries {
			if strings.Contains(string(e.Kv.Key), canary) || strings.Contains(string(e.Kv.Value), canary) {
				r.violate(revision, "%s holds a secret", e.Kv.Key)
			}
		}
	}
}

// Stop ends the recording after revision has been seen and returns all that was wrong.
func (r *Recorder) Stop(ctx context.Context, revision int64) ([]string, error) {
	err := r.Wait(ctx, revision)
	r.stop()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.violations), err
}

// askEvery is how often Wait asks whether there is anything to wait for: revisions outside the prefix are not seen.
const askEvery = 200 * time.Millisecond

// Wait waits until revision has been seen, or is known to be none of the prefix.
func (r *Recorder) Wait(ctx context.Context, revision int64) error {
	ask := time.NewTicker(askEvery)
	defer ask.Stop()
	for {
		r.mu.Lock()
		at, moved := r.revision, r.moved
		r.mu.Unlock()
		if at >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-ask.C:
			for _, c := range r.clients {
				_ = c.RequestProgress(clientv3.WithRequireLeader(ctx)) // asked again if it fails
			}
		case <-r.done:
			return fmt.Errorf("the recording ended at revision %d, before %d", at, revision)
		case <-ctx.Done():
			return fmt.Errorf("the recording is at revision %d, not at %d: %w", at, revision, ctx.Err())
		}
	}
}

// Revision is the last revision that was seen.
func (r *Recorder) Revision() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revision
}

// History is every revision seen, in order, if Options.Keep was set. The first one is the state at the start.
func (r *Recorder) History() []Revision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.history)
}

// Rotations lists the rotations seen, in order.
func (r *Recorder) Rotations() []Rotation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.rotations)
}

// Count is the number of records of a kind in a pool now.
func (r *Recorder) Count(kind, pool string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.names[kind+"/"+pool])
}

// Schema is the newest schema that any record seen so far carried.
func (r *Recorder) Schema() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.schema
}

// Events is the number of events of a type seen.
func (r *Recorder) Events(eventType string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[eventType]
}

// maxViolations bounds what is kept: what is wrong once is wrong often.
const maxViolations = 50

func (r *Recorder) violate(revision int64, format string, args ...any) {
	if len(r.violations) < maxViolations {
		r.violations = append(r.violations, fmt.Sprintf("revision %d: ", revision)+fmt.Sprintf(format, args...))
	}
}

// split takes a key, without the prefix, apart: kind, pool, and the rest.
func split(key string) (kind, pool, rest string) {
	parts := strings.SplitN(key, "/", 3)
	parts = append(parts, "", "", "")
	return parts[0], parts[1], parts[2]
}

// leased kinds belong to sessions.
func leased(kind string) bool { return kind == "locks" || kind == "replicas" || kind == "leaders" }

// transient kinds belong to sessions, or are notes of what was reported; changing them is no transition.
func transient(kind string) bool { return leased(kind) || kind == "health" }

func (r *Recorder) put(kv *mvccpb.KeyValue) {
	key := strings.TrimPrefix(string(kv.Key), r.prefix)
	rec := record{raw: string(kv.Value), lease: kv.Lease}
	if err := json.Unmarshal(kv.Value, &rec.fields); err != nil {
		r.violate(kv.ModRevision, "%s is not JSON: %v", key, err)
	}
	if schema, ok := rec.fields["schema"].(float64); ok {
		r.schema = max(r.schema, int(schema))
	}
	kind, pool, name := split(key)
	if (kv.Lease != 0) != leased(kind) {
		r.violate(kv.ModRevision, "%s has lease %x", key, kv.Lease)
	}
	if kind == "pools" {
		r.deleting[pool] = rec.fields["deleting"] == true
	}
	if kind == "events" { // they are many, and only that they are there matters
		rec = record{raw: "event"}
	}
	set := kind + "/" + pool
	if r.names[set] == nil {
		r.names[set] = make(map[string]bool)
	}
	r.names[set][name] = true
	r.records[key] = rec
}

func (r *Recorder) remove(key string) {
	kind, pool, name := split(key)
	delete(r.names[kind+"/"+pool], name)
	delete(r.records, key)
	if kind == "pools" {
		delete(r.deleting, pool)
	}
}

// apply makes one revision's changes and checks it.
func (r *Recorder) apply(events []*clientv3.Event) {
	c := r.change(events)
	for _, key := range c.rotations {
		r.rotated(c.revision, key)
	}
	r.revision = c.revision
	r.checkEvents(c)
	r.checkCounts(c)
	r.checkHomes(c)
	r.checkBindings(c)
}

// changes is what a revision did.
type changes struct {
	revision  int64
	before    map[string]int      // active keys of the pools that changed
	kinds     map[string][]string // pools that changed, by kind, with the names
	written   []string            // types of the events
	rotations []string
	durable   int
	sweeping  bool // a pool is being deleted
}

func (r *Recorder) change(events []*clientv3.Event) *changes {
	c := &changes{revision: events[0].Kv.ModRevision, before: make(map[string]int), kinds: make(map[string][]string)}
	for _, e := range events {
		key := strings.TrimPrefix(string(e.Kv.Key), r.prefix)
		kind, pool, name := split(key)
		c.sweeping = c.sweeping || r.deleting[pool]
		if _, noted := c.before[pool]; !noted {
			c.before[pool] = len(r.names["active/"+pool])
		}
		was := r.records[key]
		if e.Type == clientv3.EventTypeDelete {
			r.remove(key)
		} else {
			r.immutable(c.revision, kind, key)
			r.put(e.Kv)
			c.note(kind, key, e.Kv)
		}
		c.kinds[kind] = append(c.kinds[kind], pool+"/"+name)
		if !transient(kind) && kind != "events" && kind != "relays" && !noTransition(kind, name, was, r.records[key]) {
			c.durable++
		}
	}
	return c
}

// NoTransition reports whether a change of a key's value from was to is, each empty if there is none, is no transition: it
// leaves what the record says of its key as it was, or is another try. Such a change has no event.
func NoTransition(key string, was, is json.RawMessage) bool {
	kind, _, name := split(key)
	if kind != "active" && kind != "stock" && kind != "retired" && kind != "tokens" {
		return false
	}
	return noTransition(kind, name, recordOf(was), recordOf(is))
}

func recordOf(value json.RawMessage) (r record) {
	if len(value) > 0 {
		_ = json.Unmarshal(value, &r.fields) // what cannot be read is no transition's
	}
	return r
}

// noTransition reports whether a change leaves what the record says of its key as it was.
func noTransition(kind, name string, was, is record) bool {
	return kind == "active" && onlySpend(was, is) || anotherTry(kind, name, was, is)
}

// anotherTry reports whether a change is no transition: a phase that is tried again for the same generation, or the end of
// the mark on a pool whose stock was low.
func anotherTry(kind, name string, was, is record) bool {
	if kind == "tokens" {
		return name == "stock-low" && is.fields == nil
	}
	return (kind == "stock" || kind == "retired") && was.fields != nil && is.fields != nil &&
		was.fields["phase"] == is.fields["phase"] && generationOf(was) == generationOf(is)
}

func generationOf(r record) any {
	work, _ := r.fields["work"].(map[string]any)
	return work["generation"]
}

// onlySpend reports whether a record was written for what is known of a key's spend. That is no transition: nothing about
// the key has changed.
func onlySpend(was, is record) bool {
	if was.fields == nil || is.fields == nil {
		return false
	}
	was.fields, is.fields = maps.Clone(was.fields), maps.Clone(is.fields)
	for _, name := range []string{"spendUsd", "budgetUsd", "spendAt"} {
		delete(was.fields, name)
		delete(is.fields, name)
	}
	return reflect.DeepEqual(was.fields, is.fields)
}

// note remembers what has to be looked at once the whole revision is applied.
func (c *changes) note(kind, key string, kv *mvccpb.KeyValue) {
	switch kind {
	case "events":
		var event struct{ Type string }
		_ = json.Unmarshal(kv.Value, &event) // put has complained
		c.written = append(c.written, event.Type)
	case "rotations":
		c.rotations = append(c.rotations, key)
	}
}

func (r *Recorder) immutable(revision int64, kind, key string) {
	if _, there := r.records[key]; there && (kind == "rotations" || kind == "events") {
		r.violate(revision, "%s was written twice", key)
	}
}

func (r *Recorder) field(key, name string) string {
	s, _ := r.records[key].fields[name].(string)
	return s
}

func (r *Recorder) rotated(revision int64, key string) {
	_, pool, rest := split(key)
	old, generation, _ := strings.Cut(rest, "/")
	rot := Rotation{Pool: pool, Old: old, New: r.field(key, "newKeyId"), Slot: r.field(key, "slot"), ID: r.field(key, "id"), Revision: revision}
	_, _ = fmt.Sscan(generation, &rot.Generation)
	r.checkChain(rot)
	r.rotations = append(r.rotations, rot)
	homes := map[string]bool{"active/" + pool + "/" + rot.New: true, "active/" + pool + "/" + old: false, "retired/" + pool + "/" + old: true, "backup/" + pool + "/" + rot.New: false}
	for home, want := range homes {
		if _, there := r.records[home]; there != want {
			r.violate(revision, "after rotation %s, %s exists: %v", key, home, there)
		}
	}
}

// checkChain: a slot's rotations name each other without a gap. A slot that was removed begins anew.
func (r *Recorder) checkChain(rot Rotation) {
	life := fmt.Sprintf("%s/%s/%d", rot.Pool, rot.Old, rot.Generation)
	if r.ended[life] {
		r.violate(rot.Revision, "life %s ended twice", life)
	}
	r.ended[life] = true
	slot := rot.Pool + "/" + rot.Slot
	if before, has := r.lastOf[slot]; has && (before.New != rot.Old || before.Revision != rot.Generation) {
		r.violate(rot.Revision, "slot %s: %s (generation %d) was rotated, but its last rotation brought %s (revision %d)", rot.Slot, rot.Old, rot.Generation, before.New, before.Revision)
	}
	r.lastOf[slot] = rot
}

// checkEvents: every transition has exactly one event, and no event comes without one. A pool that is being deleted
// loses its records in batches under the one event that marked it.
func (r *Recorder) checkEvents(c *changes) {
	for _, t := range c.written {
		r.events[t]++
	}
	if (c.durable > 0) != (len(c.written) == 1) && !c.sweeping {
		r.violate(c.revision, "%d durable records changed with the events %v", c.durable, c.written)
	}
}

// checkCounts: only adding and removing keys changes how many are active.
func (r *Recorder) checkCounts(c *changes) {
	if c.sweeping || slices.Contains(c.written, "dev.rotatord.key.added.v1") || slices.Contains(c.written, "dev.rotatord.key.removed.v1") {
		return
	}
	for pool, before := range c.before {
		if after := len(r.names["active/"+pool]); after != before {
			r.violate(c.revision, "active keys of %s went from %d to %d with the events %v", pool, before, after, c.written)
		}
	}
}

// checkHomes: a key id has one home.
func (r *Recorder) checkHomes(c *changes) {
	looked := make(map[string]bool)
	for _, key := range slices.Concat(c.kinds["active"], c.kinds["backup"], c.kinds["retired"], c.kinds["stock"]) {
		var homes []string
		for _, kind := range []string{"active", "backup", "retired", "stock"} {
			if _, there := r.records[kind+"/"+key]; there {
				homes = append(homes, kind)
			}
		}
		if len(homes) > 1 && !looked[key] {
			r.violate(c.revision, "key %s is in %s", key, strings.Join(homes, " and in "))
		}
		looked[key] = true
	}
}

// checkBindings: a binding's slot holds an active key, and a slot holds one. Only pools whose keys, slots or bindings
// changed are looked at.
func (r *Recorder) checkBindings(c *changes) {
	pools := make(map[string]bool)
	for _, key := range slices.Concat(c.kinds["active"], c.kinds["slots"], c.kinds["bindings"]) {
		pool, _, _ := strings.Cut(key, "/")
		pools[pool] = true
	}
	for _, slot := range c.kinds["slots"] {
		if _, there := r.records["slots/"+slot]; !there {
			delete(r.lastOf, slot)
		}
	}
	for pool := range pools {
		if !r.deleting[pool] {
			r.checkPoolBindings(c.revision, pool)
		}
	}
}

func (r *Recorder) checkPoolBindings(revision int64, pool string) {
	held := make(map[string]string)
	for name := range r.names["active/"+pool] {
		slot := r.field("active/"+pool+"/"+name, "slot")
		if other := held[slot]; other != "" {
			r.violate(revision, "slot %s/%s is held by %s and by %s", pool, slot, other, name)
		}
		held[slot] = name
	}
	for proxy := range r.names["bindings/"+pool] {
		slots, _ := r.records["bindings/"+pool+"/"+proxy].fields["slots"].([]any)
		for _, s := range slots {
			fields, _ := s.(map[string]any)
			if slot := fmt.Sprint(fields["slot"]); held[slot] == "" {
				r.violate(revision, "proxy %s is bound to slot %s/%s, which holds no active key", proxy, pool, slot)
			}
		}
	}
}

// Raw is the stored value of a key, "" if there is none.
func (r *Recorder) Raw(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records[key].raw
}

// Keys lists the keys of a kind that are there now, without the prefix, in order.
func (r *Recorder) Keys(kind string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(r.records)) {
		if strings.HasPrefix(key, kind+"/") {
			keys = append(keys, key)
		}
	}
	return keys
}
