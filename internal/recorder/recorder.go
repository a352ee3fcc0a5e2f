// Package recorder watches a rotatord's state in etcd from outside and holds every revision against the promises.
//
// It is for tests. It shares no code with the service: keys are split and values are read as plain JSON here, so that a
// mistake in the service's own reading cannot hide itself.
package recorder

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Recorder holds the state as of the last revision it saw, and what was wrong on the way.
type Recorder struct {
	prefix string
	stop   context.CancelFunc
	done   chan struct{}

	mu         sync.Mutex // protects the following fields
	records    map[string]record
	revision   int64
	moved      chan struct{}
	revisions  int
	events     map[string]int // by type
	rotations  []Rotation
	violations []string
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
	first, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		prefix: prefix, done: make(chan struct{}), records: make(map[string]record), revision: first.Header.Revision,
		moved: make(chan struct{}), events: make(map[string]int),
	}
	for _, kv := range first.Kvs {
		r.put(kv)
	}
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.stop = cancel
	watch := client.Watch(clientv3.WithRequireLeader(wctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(r.revision+1), clientv3.WithFragment())
	go r.follow(watch)
	return r, nil
}

func (r *Recorder) follow(watch clientv3.WatchChan) {
	defer close(r.done)
	for resp := range watch {
		r.mu.Lock()
		if err := resp.Err(); err != nil {
			r.violate(0, "the recording broke off: %v", err)
		}
		for rest := resp.Events; len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[n].Kv.ModRevision == rest[0].Kv.ModRevision {
				n++
			}
			r.apply(rest[:n])
			rest = rest[n:]
		}
		close(r.moved)
		r.moved = make(chan struct{})
		r.mu.Unlock()
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

// Wait waits until revision has been seen.
func (r *Recorder) Wait(ctx context.Context, revision int64) error {
	for {
		r.mu.Lock()
		at, moved := r.revision, r.moved
		r.mu.Unlock()
		if at >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-r.done:
			return fmt.Errorf("the recording ended at revision %d, before %d", at, revision)
		case <-ctx.Done():
			return fmt.Errorf("the recording is at revision %d, not at %d: %w", at, revision, ctx.Err())
		}
	}
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
	return r.count(kind, pool)
}

func (r *Recorder) count(kind, pool string) (n int) {
	for key := range r.records {
		if k, p, _ := split(key); k == kind && p == pool {
			n++
		}
	}
	return n
}

// Events is the number of events of a type seen.
func (r *Recorder) Events(eventType string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[eventType]
}

func (r *Recorder) violate(revision int64, format string, args ...any) {
	if len(r.violations) < 50 {
		r.violations = append(r.violations, fmt.Sprintf("revision %d: ", revision)+fmt.Sprintf(format, args...))
	}
}

// split takes a key, without the prefix, apart: kind, pool, and the rest.
func split(key string) (kind, pool, rest string) {
	parts := strings.SplitN(key, "/", 3)
	parts = append(parts, "", "", "")
	return parts[0], parts[1], parts[2]
}

// transient kinds belong to sessions; changing them is no transition.
func transient(kind string) bool { return kind == "locks" || kind == "replicas" || kind == "leaders" }

func (r *Recorder) put(kv *mvccpb.KeyValue) {
	key := strings.TrimPrefix(string(kv.Key), r.prefix)
	rec := record{raw: string(kv.Value), lease: kv.Lease}
	if err := json.Unmarshal(kv.Value, &rec.fields); err != nil {
		r.violate(kv.ModRevision, "%s is not JSON: %v", key, err)
	}
	if kind, _, _ := split(key); (kv.Lease != 0) != transient(kind) {
		r.violate(kv.ModRevision, "%s has lease %x", key, kv.Lease)
	}
	r.records[key] = rec
}

// apply makes one revision's changes and checks it.
func (r *Recorder) apply(events []*clientv3.Event) {
	revision := events[0].Kv.ModRevision
	active := r.activeCounts()
	var written, rotations []string // events and rotations of this revision
	durable := 0
	for _, e := range events {
		key := strings.TrimPrefix(string(e.Kv.Key), r.prefix)
		kind, _, _ := split(key)
		if e.Type == clientv3.EventTypeDelete {
			delete(r.records, key)
		} else {
			r.immutable(revision, kind, key)
			r.put(e.Kv)
		}
		switch {
		case kind == "events" && e.Type == clientv3.EventTypePut:
			written = append(written, r.field(key, "type"))
		case !transient(kind) && kind != "events":
			durable++
		}
		if kind == "rotations" && e.Type == clientv3.EventTypePut {
			rotations = append(rotations, key)
		}
	}
	for _, key := range rotations {
		r.rotated(revision, key)
	}
	r.revision = revision
	r.revisions++
	r.checkEvents(revision, written, durable)
	r.checkCounts(revision, active, written)
	if durable > 0 {
		r.checkHomes(revision)
		r.checkBindings(revision)
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

// checkChain: a slot's rotations name each other without a gap.
func (r *Recorder) checkChain(rot Rotation) {
	for i := len(r.rotations) - 1; i >= 0; i-- {
		before := r.rotations[i]
		switch {
		case before.Pool == rot.Pool && before.Old == rot.Old && before.Generation == rot.Generation:
			r.violate(rot.Revision, "life %s/%s/%d ended twice", rot.Pool, rot.Old, rot.Generation)
		case before.Pool == rot.Pool && before.Slot == rot.Slot && (before.New != rot.Old || before.Revision != rot.Generation):
			r.violate(rot.Revision, "slot %s: %s (generation %d) was rotated, but its last rotation brought %s (revision %d)", rot.Slot, rot.Old, rot.Generation, before.New, before.Revision)
		case before.Pool == rot.Pool && before.Slot == rot.Slot:
		default:
			continue
		}
		return
	}
}

// checkEvents: every transition has exactly one event, and no event comes without one.
func (r *Recorder) checkEvents(revision int64, written []string, durable int) {
	for _, t := range written {
		r.events[t]++
	}
	if (durable > 0) != (len(written) == 1) && !r.sweeping() {
		r.violate(revision, "%d durable records changed with the events %v", durable, written)
	}
}

// sweeping reports whether a pool is being deleted: its records go in batches under the one event that marked it.
func (r *Recorder) sweeping() bool {
	for key, rec := range r.records {
		if kind, _, _ := split(key); kind == "pools" && rec.fields["deleting"] == true {
			return true
		}
	}
	return false
}

func (r *Recorder) activeCounts() map[string]int {
	counts := make(map[string]int)
	for key := range r.records {
		if kind, pool, _ := split(key); kind == "active" {
			counts[pool]++
		}
	}
	return counts
}

// checkCounts: only adding and removing keys changes how many are active.
func (r *Recorder) checkCounts(revision int64, before map[string]int, written []string) {
	after := r.activeCounts()
	if maps.Equal(before, after) || r.sweeping() {
		return
	}
	if !slices.Contains(written, "dev.rotatord.key.added.v1") && !slices.Contains(written, "dev.rotatord.key.removed.v1") {
		r.violate(revision, "active keys went from %v to %v with the events %v", before, after, written)
	}
}

// checkHomes: a key id has one home.
func (r *Recorder) checkHomes(revision int64) {
	home := make(map[string]string)
	for key := range r.records {
		kind, pool, name := split(key)
		if kind != "active" && kind != "backup" && kind != "retired" {
			continue
		}
		if other := home[pool+"/"+name]; other != "" {
			r.violate(revision, "key %s/%s is in %s and in %s", pool, name, other, kind)
		}
		home[pool+"/"+name] = kind
	}
}

// checkBindings: a binding's slot holds an active key, and a slot holds one.
func (r *Recorder) checkBindings(revision int64) {
	held := make(map[string]string)
	for key := range r.records {
		kind, pool, name := split(key)
		if kind != "active" {
			continue
		}
		slot := pool + "/" + r.field(key, "slot")
		if other := held[slot]; other != "" {
			r.violate(revision, "slot %s is held by %s and by %s", slot, other, name)
		}
		held[slot] = name
	}
	for key, rec := range r.records {
		kind, pool, proxy := split(key)
		if kind != "bindings" || r.sweeping() {
			continue
		}
		slots, _ := rec.fields["slots"].([]any)
		for _, s := range slots {
			fields, _ := s.(map[string]any)
			if slot := fmt.Sprint(fields["slot"]); held[pool+"/"+slot] == "" {
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
