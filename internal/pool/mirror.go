package pool

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

// Mirror is a copy of the records in memory, always as of one revision: a revision is applied whole or not at all.
//
// It answers "yes" and "here it is" fast. It may lag behind the store, so "no" and "not found" are never decided from
// it. Events and fingerprints are not kept.
type Mirror struct {
	mu      sync.RWMutex
	snap    Snapshot
	watches map[watchKey]map[chan struct{}]struct{}
	all     map[chan struct{}]struct{}
	moved   chan struct{} // closed and replaced when the revision rises and somebody waits
	waiting int

	confirmed   time.Time // the snapshot was still the newest state then
	toConfirm   time.Time // a check at toConfirm found checkRev, which the snapshot has not reached yet
	checkRev    int64
	loaded      chan struct{}
	loadedClose sync.Once
}

type watchKey struct{ pool, key string }

// Snapshot is the state at one revision. It is only valid inside the function it is passed to; the records are
// immutable and may be kept.
type Snapshot struct {
	Revision int64
	Pools    map[string]*PoolState
	Replicas map[string]*Replica
	Broken   map[Ref]*Broken
	Waiting  map[string]bool // pools with rotations that wait for stock
	Relays   map[string]*Relay
}

// PoolState is what belongs to one pool. Its Pool is nil while records exist without the pool's own.
type PoolState struct {
	Pool      *Pool
	Slots     map[string]*Slot
	Active    map[string]*Active
	BySlot    map[string]*Active
	Backup    map[string]*Backup
	Retired   map[string]*Retired
	Rotations map[string][]*Rotation // by old key, oldest first
	Pending   map[string]*Pending
	Bindings  map[string]*Binding
	Locks     map[string]*Lock
	Stock     Stock
	Preparing map[string]*Preparation
	Tokens    map[string]*Token
	Health    *Health // nil: no key was reported bad lately
	// Probed has, by key, the lock of a probe that was given back and left the key as it was: the upstream could not be asked.
	Probed map[string]*Lock
}

// at returns the records of a key wherever it is: more than one only where hands have been. What serves, or could, is first.
func (p *PoolState) at(key string) (at []Record) {
	if a := p.Active[key]; a != nil {
		at = append(at, a)
	}
	if b := p.Backup[key]; b != nil {
		at = append(at, b)
	}
	if r := p.Retired[key]; r != nil {
		at = append(at, r)
	}
	if prep := p.Preparing[key]; prep != nil {
		at = append(at, prep)
	}
	return at
}

// Stock is the set of backups in no particular order, with access by position, so that a choice costs the same however
// large the stock is.
type Stock struct {
	keys []string
	pos  map[string]int
}

// Len is the number of backups.
func (s *Stock) Len() int { return len(s.keys) }

// At is the backup at position i.
func (s *Stock) At(i int) string { return s.keys[i] }

func (s *Stock) add(key string) {
	if _, there := s.pos[key]; there {
		return
	}
	if s.pos == nil {
		s.pos = make(map[string]int)
	}
	s.pos[key] = len(s.keys)
	s.keys = append(s.keys, key)
}

func (s *Stock) remove(key string) {
	i, there := s.pos[key]
	if !there {
		return
	}
	last := len(s.keys) - 1
	s.keys[i] = s.keys[last]
	s.pos[s.keys[i]] = i
	s.keys = s.keys[:last]
	delete(s.pos, key)
}

// Change is a record that was put, or the ref of one that was deleted.
type Change struct {
	Put    Record
	Delete Ref
}

// NewMirror returns an empty mirror that is not loaded.
func NewMirror() *Mirror {
	return &Mirror{
		snap:    newSnapshot(0),
		watches: make(map[watchKey]map[chan struct{}]struct{}),
		all:     make(map[chan struct{}]struct{}),
		moved:   make(chan struct{}),
		loaded:  make(chan struct{}),
	}
}

func newSnapshot(revision int64) Snapshot {
	return Snapshot{
		Revision: revision,
		Pools:    make(map[string]*PoolState),
		Replicas: make(map[string]*Replica),
		Broken:   make(map[Ref]*Broken),
		Waiting:  make(map[string]bool),
		Relays:   make(map[string]*Relay),
	}
}

// Load replaces everything by what was listed at revision. at is when the listing was asked for.
func (m *Mirror) Load(records []Record, revision int64, at time.Time) {
	snap := newSnapshot(revision)
	for _, rec := range records {
		snap.put(rec)
	}
	m.mu.Lock()
	snap.dateTokens(&m.snap, time.Now())
	m.snap = snap
	m.confirmed, m.toConfirm = at, time.Time{}
	for _, chans := range m.watches {
		signal(chans)
	}
	m.advanced()
	m.mu.Unlock()
	m.loadedClose.Do(func() { close(m.loaded) })
}

// dateTokens says of all tokens when they were used last. before is what the mirror held until now: what it was shown of a
// token is worth more than the token's own date.
func (s *Snapshot) dateTokens(before *Snapshot, now time.Time) {
	for name, p := range s.Pools {
		for token, t := range p.Tokens {
			var seen *Token
			if q := before.Pools[name]; q != nil {
				seen = q.Tokens[token]
			}
			p.Tokens[token] = t.loaded(seen, now)
		}
	}
}

// Apply makes the changes of whole revisions up to and including revision. Without changes it only moves the revision.
func (m *Mirror) Apply(changes []Change, revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range changes {
		ref := c.Delete
		if c.Put != nil {
			ref = c.Put.Ref()
			if t, ok := c.Put.(*Token); ok {
				c.Put = t.shown(time.Now())
			}
			m.snap.put(c.Put)
		} else {
			m.snap.remove(ref)
		}
		if chans := m.watches[watchKey{ref.Pool, ref.Name}]; chans != nil {
			signal(chans)
		}
	}
	if revision > m.snap.Revision {
		m.snap.Revision = revision
	}
	m.advanced()
}

// advanced is called with mu held after the snapshot has changed.
func (m *Mirror) advanced() {
	signal(m.all)
	if !m.toConfirm.IsZero() && m.snap.Revision >= m.checkRev {
		m.confirmed, m.toConfirm = m.toConfirm, time.Time{}
	}
	if m.waiting > 0 {
		close(m.moved)
		m.moved = make(chan struct{})
	}
}

// Confirm says that a linearizable read begun at a time found the store at revision. It returns whether the mirror has
// reached that revision; if not, the time counts as soon as it does.
func (m *Mirror) Confirm(revision int64, at time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.snap.Revision >= revision {
		m.confirmed, m.toConfirm = at, time.Time{}
		return true
	}
	if m.toConfirm.IsZero() {
		m.toConfirm, m.checkRev = at, revision
	}
	return false
}

// AsOf is when the mirror was last known to hold the newest state.
func (m *Mirror) AsOf() time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.confirmed
}

// Loaded is closed once the mirror has been loaded for the first time.
func (m *Mirror) Loaded() <-chan struct{} { return m.loaded }

// Read calls fn with the state of one revision. fn must not block and must not keep the snapshot.
func (m *Mirror) Read(fn func(*Snapshot)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	fn(&m.snap)
}

// Revision is the revision the mirror is at.
func (m *Mirror) Revision() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.snap.Revision
}

// Wait waits until the mirror is at revision or later; it returns ctx's error if that ends first.
func (m *Mirror) Wait(ctx context.Context, revision int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.snap.Revision < revision {
		m.waiting++
		moved := m.moved
		m.mu.Unlock()
		var err error
		select {
		case <-moved:
		case <-ctx.Done():
			err = ctx.Err()
		}
		m.mu.Lock()
		m.waiting--
		if err != nil {
			return err
		}
	}
	return nil
}

// Watch returns a channel that gets a value after records named by (pool, key) may have changed, and a function that
// ends the watch. Values are not queued: look at the state after each.
func (m *Mirror) Watch(pool, key string) (<-chan struct{}, func()) {
	k := watchKey{pool, key}
	ch := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watches[k] == nil {
		m.watches[k] = make(map[chan struct{}]struct{})
	}
	m.watches[k][ch] = struct{}{}
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watches[k], ch)
		if len(m.watches[k]) == 0 {
			delete(m.watches, k)
		}
	}
}

// WatchAll is Watch for everything.
func (m *Mirror) WatchAll() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[ch] = struct{}{}
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.all, ch)
	}
}

func signal(chans map[chan struct{}]struct{}) {
	for ch := range chans {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Pool returns a pool's state, nil if there is none.
func (s *Snapshot) Pool(name string) *PoolState {
	if p := s.Pools[name]; p != nil && p.Pool != nil {
		return p
	}
	return nil
}

func (s *Snapshot) pool(name string) *PoolState {
	p := s.Pools[name]
	if p == nil {
		p = &PoolState{
			Slots:     make(map[string]*Slot),
			Active:    make(map[string]*Active),
			BySlot:    make(map[string]*Active),
			Backup:    make(map[string]*Backup),
			Retired:   make(map[string]*Retired),
			Rotations: make(map[string][]*Rotation),
			Pending:   make(map[string]*Pending),
			Bindings:  make(map[string]*Binding),
			Locks:     make(map[string]*Lock),
			Preparing: make(map[string]*Preparation),
			Tokens:    make(map[string]*Token),
		}
		s.Pools[name] = p
	}
	return p
}

func (s *Snapshot) put(rec Record) {
	ref := rec.Ref()
	if len(s.Broken) > 0 {
		delete(s.Broken, ref)
	}
	switch r := rec.(type) {
	case *Broken:
		s.remove(ref)
		s.Broken[ref] = r
	case *Pool:
		s.pool(ref.Pool).Pool = r
	case *Slot:
		s.pool(ref.Pool).Slots[r.Name] = r
	case *Active:
		s.pool(ref.Pool).putActive(r)
	case *Backup:
		p := s.pool(ref.Pool)
		p.Backup[r.Key] = r
		if r.TooNew() { // not for this build to use
			p.Stock.remove(r.Key)
		} else {
			p.Stock.add(r.Key)
		}
	case *Retired:
		s.pool(ref.Pool).Retired[r.Key] = r
	case *Rotation:
		s.pool(ref.Pool).putRotation(r)
	case *Pending:
		s.pool(ref.Pool).Pending[r.Key] = r
		s.Waiting[ref.Pool] = true
	case *Binding:
		s.pool(ref.Pool).Bindings[r.Proxy] = r
	case *Lock:
		s.pool(ref.Pool).Locks[r.Key] = r
	case *Replica:
		s.Replicas[r.Name] = r
	case *Preparation:
		s.pool(ref.Pool).Preparing[r.Key] = r
	case *Token:
		s.pool(ref.Pool).Tokens[r.Name] = r
	case *Health:
		s.pool(ref.Pool).Health = r
	case *Relay:
		s.Relays[r.Name] = r
	}
}

func (p *PoolState) putActive(a *Active) {
	if before := p.Active[a.Key]; before != nil && before.Slot != a.Slot && p.BySlot[before.Slot] == before {
		delete(p.BySlot, before.Slot)
	}
	p.Active[a.Key] = a
	p.BySlot[a.Slot] = a
	delete(p.Probed, a.Key)
}

// removeLock notes a probe that came to nothing: one that came to something ends the life, or puts the key's record anew in the
// same revision.
func (p *PoolState) removeLock(key string) {
	lock := p.Locks[key]
	delete(p.Locks, key)
	if lock == nil || lock.Stage != StageProbe {
		return
	}
	if a := p.Active[key]; a == nil || a.Life() != lock.Life {
		return
	}
	if before := p.Probed[key]; before != nil && before.Life == lock.Life && lock.BusyUntil.Before(before.BusyUntil.Add(probeMemory)) {
		return // its holder found that the upstream had been asked
	}
	if p.Probed == nil {
		p.Probed = make(map[string]*Lock)
	}
	p.Probed[key] = lock
}

func (p *PoolState) putRotation(r *Rotation) {
	list := p.Rotations[r.Key]
	i, there := slices.BinarySearchFunc(list, r.Generation, func(e *Rotation, g int64) int { return cmp.Compare(e.Generation, g) })
	if there {
		list[i] = r
		return
	}
	p.Rotations[r.Key] = slices.Insert(list, i, r)
}

func (s *Snapshot) remove(ref Ref) {
	delete(s.Broken, ref)
	switch ref.Kind {
	case KindReplica:
		delete(s.Replicas, ref.Name)
		return
	case KindRelay:
		delete(s.Relays, ref.Name)
		return
	}
	p := s.Pools[ref.Pool]
	if p == nil {
		return
	}
	switch ref.Kind {
	case KindPool:
		p.Pool = nil
	case KindSlot:
		delete(p.Slots, ref.Name)
	case KindActive:
		if a := p.Active[ref.Name]; a != nil && p.BySlot[a.Slot] == a {
			delete(p.BySlot, a.Slot)
		}
		delete(p.Active, ref.Name)
		delete(p.Probed, ref.Name)
	case KindBackup:
		delete(p.Backup, ref.Name)
		p.Stock.remove(ref.Name)
	case KindRetired:
		delete(p.Retired, ref.Name)
	case KindRotation:
		p.removeRotation(ref)
	case KindPending:
		delete(p.Pending, ref.Name)
		if len(p.Pending) == 0 {
			delete(s.Waiting, ref.Pool)
		}
	case KindBinding:
		delete(p.Bindings, ref.Name)
	case KindLock:
		p.removeLock(ref.Name)
	case KindPreparation:
		delete(p.Preparing, ref.Name)
	case KindToken:
		delete(p.Tokens, ref.Name)
	case KindHealth:
		p.Health = nil
	}
	if p.empty() {
		delete(s.Pools, ref.Pool)
	}
}

func (p *PoolState) removeRotation(ref Ref) {
	list := slices.DeleteFunc(slices.Clone(p.Rotations[ref.Name]), func(r *Rotation) bool { return r.Generation == ref.Generation })
	if len(list) == 0 {
		delete(p.Rotations, ref.Name)
		return
	}
	p.Rotations[ref.Name] = list
}

func (p *PoolState) empty() bool {
	return p.Pool == nil && p.Health == nil && len(p.Slots)+len(p.Active)+len(p.Backup)+len(p.Retired)+len(p.Rotations)+len(p.Pending)+
		len(p.Bindings)+len(p.Locks)+len(p.Preparing)+len(p.Tokens) == 0
}

// Rotation returns the record of how a life ended, nil if there is none here.
func (p *PoolState) Rotation(l Life) *Rotation {
	list := p.Rotations[l.Key]
	i, there := slices.BinarySearchFunc(list, l.Generation, func(e *Rotation, g int64) int { return cmp.Compare(e.Generation, g) })
	if !there {
		return nil
	}
	return list[i]
}

// LastRotation returns the latest rotation of a key, nil if there is none here.
func (p *PoolState) LastRotation(key string) *Rotation {
	list := p.Rotations[key]
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// ReplicaNames lists the live replicas by name.
func (s *Snapshot) ReplicaNames() []string { return slices.Sorted(maps.Keys(s.Replicas)) }

// KnownSchema is the newest record schema that all replicas on record know. It is 1, which all do, as long as one of them
// cannot be read or the replica that asks is not on record itself: then others may not be either.
func (s *Snapshot) KnownSchema(replica string) int {
	if s.Replicas[replica] == nil {
		return 1
	}
	for ref := range s.Broken {
		if ref.Kind == KindReplica {
			return 1
		}
	}
	known := math.MaxInt
	for _, r := range s.Replicas {
		known = min(known, r.KnowsSchema)
	}
	return max(1, known)
}
