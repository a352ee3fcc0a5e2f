package pool

import (
	"hash/fnv"
	"math/rand/v2"
	"sync"
)

// reservations are the backups that rotations of this process are about to use. They keep rotations of one pool from
// choosing the same backup; what another replica chooses is found out by the commit's compare.
type reservations struct {
	mu    sync.Mutex // protects the following field
	taken map[Ref]bool
}

// take reserves a backup, and reports false if another rotation has it.
func (r *reservations) take(ref Ref) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken[ref] {
		return false
	}
	if r.taken == nil {
		r.taken = make(map[Ref]bool)
	}
	r.taken[ref] = true
	return true
}

// drop ends a reservation.
func (r *reservations) drop(ref Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.taken, ref)
}

// probes is how many random backups are looked at for one in this replica's share before any free one is taken. With
// three replicas one in 600 choices finds none of its own in 16 and may then meet another replica's choice.
const probes = 16

// chooseBackup reserves a backup of the pool, other than those in not. Each replica prefers its own share of the stock, so
// that replicas rarely meet; within it the choice is random.
func (r *Rotator) chooseBackup(pool string, not map[string]bool) (chosen *Backup) {
	r.Mirror.Read(func(s *Snapshot) {
		p := s.Pool(pool)
		if p == nil || p.Stock.Len() == 0 {
			return
		}
		replicas := s.ReplicaNames()
		n, start := p.Stock.Len(), rand.IntN(p.Stock.Len())
		for i := range min(probes, n) {
			key := p.Stock.At((start + i) % n)
			if Share(key, replicas) == r.Replica && r.reserve(p.Backup[key], not) {
				chosen = p.Backup[key]
				return
			}
		}
		for i := range n {
			key := p.Stock.At((start + i) % n)
			if r.reserve(p.Backup[key], not) {
				chosen = p.Backup[key]
				return
			}
		}
	})
	return chosen
}

// reserve reports whether b can be used and is now reserved for the caller.
func (r *Rotator) reserve(b *Backup, not map[string]bool) bool {
	return b != nil && usable(b, not) && r.stock.take(b.Ref())
}

// usable reports whether a rotation may use b: it was not found taken, and this build knows all of its record.
func usable(b *Backup, not map[string]bool) bool { return !not[b.Key] && !b.TooNew() }

// Share names the replica a backup belongs to: the one with the highest hash of both names, so that a replica that comes
// or goes moves few backups.
func Share(key string, replicas []string) string {
	var owner string
	var best uint64
	for _, name := range replicas {
		h := fnv.New64a()
		_, _ = h.Write([]byte(name))
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(key))
		if sum := mix(h.Sum64()); owner == "" || sum > best {
			owner, best = name, sum
		}
	}
	return owner
}

// mix spreads FNV's low bits over the whole word (the finaliser of MurmurHash3), since the highest sum wins.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
