package pool

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// What an operator should know and do something about.

// lowStock is how many active keys one backup should stand for at most.
const lowStock = 5

// stock: a pool can replace its keys.
func (c *checker) stock(name string, p *PoolState) {
	subject, remedy := c.name(PoolRef(name)), fmt.Sprintf("rotatorctl key import %s FILE --backup", name)
	switch n := len(p.Active); {
	case n > 0 && p.Stock.Len() == 0:
		c.find(SeverityWarning, "stock-empty", subject, remedy, "pool %q has no backups: a key that fails is not replaced", name)
	case n > p.Stock.Len()*lowStock:
		c.find(SeverityNotice, "stock-low", subject, remedy, "pool %q has %d backups for %d active keys", name, p.Stock.Len(), n)
	}
	if policy := p.Pool.Spec.Stock; policy != nil && p.Stock.Len() < policy.Min {
		c.find(SeverityWarning, "stock-below-min", subject, fmt.Sprintf("rotatorctl key list %s --state preparing # says what holds it up", name),
			"pool %q has %d backups, at least %d are wanted; %d keys are in preparation", name, p.Stock.Len(), policy.Min, len(p.Preparing))
	}
	if p.Pool.Paused {
		c.find(SeverityNotice, "pool-paused", subject, "rotatorctl pool resume "+name, "pool %q is paused: nothing is rotated", name)
	}
}

// bound: whether rotations are refused now. The records say when tokens were used by the clocks of those who used them.
func (c *checker) bound(name string, p *PoolState) {
	if left := c.snap.Allowance(name, c.now); left.Bounded && left.Left == 0 {
		limit, window := p.Pool.Spec.Bound.Limit()
		c.find(SeverityNotice, "bound-reached", c.name(PoolRef(name)), fmt.Sprintf("rotatorctl rotate %s KEY --override-bound # if the keys are surely bad and not the upstream", name),
			"pool %q has had %d rotations within %v: its bound is reached until %s", name, limit, window, left.NextAt.UTC().Format(time.RFC3339))
	}
}

// statuses: which keys are out of service until somebody does something.
func (c *checker) statuses(name string, p *PoolState) {
	for key, a := range p.Active {
		switch a.StatusAt(c.now) {
		case StatusExhausted:
			if p.Pending[key] == nil {
				c.find(SeverityNotice, "key-exhausted", c.name(a.Ref()), fmt.Sprintf("rotatorctl rotate %s %s", name, key), "key %q is exhausted and no rotation waits for it", key)
			}
		case StatusDisabled:
			c.find(SeverityNotice, "key-disabled", c.name(a.Ref()), fmt.Sprintf("rotatorctl key enable %s %s", name, key), "key %q is disabled", key)
		}
	}
}

// givenUp: what nobody tries any more until somebody says so.
func (c *checker) givenUp(name string, p *PoolState) {
	for key, prep := range p.Preparing {
		if prep.Phase == PhaseFailed {
			c.find(SeverityWarning, "key-failed", c.name(prep.Ref()), fmt.Sprintf("rotatorctl key retry %s %s # or rotatorctl key remove %s %s", name, key, name, key),
				"key %q was not minted or did not work: %s", key, prep.Work.problem())
		}
	}
	for key, r := range p.Retired {
		if r.Phase == PhaseOrphaned {
			c.find(SeverityWarning, "key-orphaned", c.name(r.Ref()), fmt.Sprintf("rotatorctl key retry %s %s # or revoke it at the upstream and remove it here", name, key),
				"key %q may still be alive at the upstream: %s", key, r.Work.problem())
		}
	}
}

func (w *Work) problem() string {
	if w == nil || w.Problem == "" {
		return "it is not on record why"
	}
	return w.Problem
}

// deleting: what is left of a pool that is on its way out. It owes no invariant but those of its bindings and homes.
func (c *checker) deleting(name string, p *PoolState) {
	left := len(p.Active) + len(p.Backup) + len(p.Preparing) + len(p.Pending) + len(p.Bindings)
	for _, r := range p.Retired {
		if r.mayLive(p.Pool.Spec) {
			left++
		}
	}
	remedy := "rotatorctl pool delete " + name
	if left > 0 {
		remedy += " --force"
	}
	c.find(SeverityWarning, "pool-deleting", c.name(PoolRef(name)), remedy, "the deletion of pool %q has not ended: %d keys, waiting rotations and bindings are left", name, left)
}

// sharedSecrets: the same upstream key in two pools may be used up and revoked by either.
func (c *checker) sharedSecrets() {
	owners, pools := make(map[string][]string), make(map[string]map[string]bool)
	for _, name := range c.poolNames() {
		c.eachKey(c.snap.Pools[name], func(rec Record, s Sealed) {
			if s.IsZero() {
				return
			}
			if pools[s.Fingerprint] == nil {
				pools[s.Fingerprint] = make(map[string]bool)
			}
			pools[s.Fingerprint][name] = true
			owners[s.Fingerprint] = append(owners[s.Fingerprint], c.name(rec.Ref()))
		})
	}
	for fingerprint, in := range pools {
		if names := owners[fingerprint]; len(in) > 1 {
			slices.Sort(names)
			c.find(SeverityNotice, "secret-shared", names[0], "rotatorctl key list POOL # and remove it from all pools but one",
				"%d pools have the same secret: %s", len(in), strings.Join(names, ", "))
		}
	}
}

func (c *checker) replicas() {
	if len(c.snap.Replicas) == 0 && !c.unreadIn("", KindReplica) {
		c.find(SeverityWarning, "no-replica", c.prefix+string(KindReplica), "rotatorctl replica list", "no replica has a session: nothing is rotated")
	}
}

// RelayGone is how long ago a relay must have been heard of to count as switched off: one that works says so every hour.
const RelayGone = 24 * time.Hour

// relays: whoever is on record is at work. Old events are kept until all have passed them.
func (c *checker) relays() {
	for _, r := range c.snap.Relays {
		if age := c.now.Sub(r.UpdatedAt); age > RelayGone {
			c.find(SeverityWarning, "relay-gone", c.name(r.Ref()), c.etcdctl("del", r.Ref())+" # if it was switched off for good; else start a replica with its --audit-relay",
				"relay %q was last heard of at %s; events and rotations after revision %d are kept until it has passed them", r.Name, r.UpdatedAt.UTC().Format(time.RFC3339), r.Revision)
		}
	}
}

// self: the replica that answers can rotate too.
func (c *checker) self(replica string) {
	if replica != "" && len(c.snap.Replicas) > 0 && c.snap.Replicas[replica] == nil {
		c.find(SeverityWarning, "no-session", c.name(ReplicaRef(replica)), "rotatorctl replica list", "replica %q, which answers this, has no session", replica)
	}
}

// maxUnopened is how many keys whose secret does not open a finding names.
const maxUnopened = 5

// secrets: all of them open with this replica's keyset.
func (c *checker) secrets(sealer Sealer) {
	for _, name := range c.poolNames() {
		var closed []string
		total := 0
		try := func(id string, s Sealed) {
			if s.IsZero() {
				return
			}
			total++
			if _, err := sealer.Open(name, id, s); err != nil {
				closed = append(closed, id)
			}
		}
		c.eachKey(c.snap.Pools[name], func(rec Record, s Sealed) { try(rec.Ref().Name, s) })
		if p := c.snap.Pools[name].Pool; p != nil {
			try(CredentialID, p.Credential)
		}
		if len(closed) == 0 {
			continue
		}
		slices.Sort(closed)
		c.find(SeverityError, "secret-unreadable", c.name(PoolRef(name)), "rotatord --keyset-file FILE # with the keyset they were sealed with; or remove the keys and add them again",
			"%d of %d secrets of pool %q cannot be opened with this replica's keyset, such as that of %s",
			len(closed), total, name, strings.Join(closed[:min(len(closed), maxUnopened)], ", "))
	}
}
