package workload

import (
	"maps"
	"slices"
	"sync"
)

// board is what all callers know of a pool, as far as they were told.
type board struct {
	Pool

	mu      sync.Mutex       // protects the following fields
	alive   map[string]int64 // keys in service with their generation
	retired map[string]bool
	made    int // keys made up so far
	past    []trigger
}

// trigger is a request that was made, for a late repeat.
type trigger struct {
	key        string
	generation int64
	request    string
}

// maxPast bounds how far back late repeats go.
const maxPast = 400

// serves notes all keys in service.
func (b *board) serves(keys map[string]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alive = keys
}

// swapped notes a rotation.
func (b *board) swapped(old, successor string, generation int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, there := b.alive[old]; there {
		delete(b.alive, old)
		b.alive[successor] = generation
	}
	b.retired[old] = true
	delete(b.retired, successor)
}

func (b *board) asked(t trigger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.past = append(b.past, t)
	if len(b.past) > maxPast {
		b.past = b.past[1:]
	}
}

// newKeys makes up ids.
func (b *board) newKeys(n int) (ids []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range n {
		ids = append(ids, keyName(b.made))
		b.made++
	}
	return ids
}

// pickAlive chooses a key in service.
func (b *board) pickAlive(c *caller) (key string, generation int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.alive) == 0 {
		return "", 0, false
	}
	key = pick(c, b.alive)
	return key, b.alive[key], true
}

// allAlive are triggers for all keys in service, without requests.
func (b *board) allAlive() (all []trigger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(b.alive)) {
		all = append(all, trigger{key: key, generation: b.alive[key]})
	}
	return all
}

func (b *board) pickRetired(c *caller) (key string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.retired) == 0 {
		return "", false
	}
	return pick(c, b.retired), true
}

func (b *board) pickPast(c *caller) (t trigger, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.past) == 0 {
		return t, false
	}
	return b.past[c.rng.IntN(len(b.past))], true
}

func (b *board) notRetired(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.retired, key)
}

// pick chooses in an order that does not depend on the map's.
func pick[V any](c *caller, from map[string]V) string {
	names := make([]string, 0, len(from))
	for name := range from {
		names = append(names, name)
	}
	slices.Sort(names)
	return names[c.rng.IntN(len(names))]
}
