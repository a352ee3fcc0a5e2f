package pool

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// DefaultPrefix is what the keys of all records in etcd begin with, unless a daemon is told otherwise.
const DefaultPrefix = "/rotator/"

// Severity says how bad a finding is.
type Severity int

// The severities; the numbers are those of rotator.v1.Severity.
const (
	SeverityUnspecified Severity = iota
	SeverityNotice
	SeverityWarning
	SeverityError
)

// String is the severity's name in tables.
func (s Severity) String() string {
	switch s {
	case SeverityNotice:
		return "notice"
	case SeverityWarning:
		return "warning"
	case SeverityError:
		return "error"
	}
	return "unspecified"
}

// Finding is one thing that is not as it should be.
type Finding struct {
	Severity Severity
	Check    string // short stable name, such as "one-home"
	Subject  string // the etcd key or pool it is about
	Message  string // what is wrong
	Remedy   string // a command that helps
}

// Report is what a check of everything found.
type Report struct {
	Findings  []Finding // worst first, then by subject; empty: all is well
	Records   int
	Pools     int
	Revision  int64
	CheckedAt time.Time
}

// Errors are the findings that say that an invariant does not hold.
func (r *Report) Errors() []Finding {
	var errs []Finding
	for _, f := range r.Findings {
		if f.Severity == SeverityError {
			errs = append(errs, f)
		}
	}
	return errs
}

// Diagnose reads everything at one revision and checks the invariants, and that the secrets open with this replica's
// keyset. It changes nothing.
func (a *Admin) Diagnose(ctx context.Context) (*Report, error) {
	recs, revision, err := a.Store.ReadAll(ctx)
	if err != nil {
		return nil, err
	}
	now := a.Now().UTC()
	c := newChecker(recs, now, a.Prefix)
	c.all()
	c.secrets(a.Sealer)
	c.self(a.Replica)
	return c.report(revision), nil
}

// Check checks the invariants of all records of one revision. Everything it finds of severity error is against what
// this package promises for every revision.
func Check(recs []Record, now time.Time) *Report {
	c := newChecker(recs, now, DefaultPrefix)
	c.all()
	return c.report(0)
}

// checker goes through the records of one revision. It decides nothing from what it cannot read: a record that is there
// but unreadable is reported once, and counts as there.
type checker struct {
	snap     Snapshot
	claims   map[string]map[string]*Fingerprint // by pool and HMAC
	records  int
	now      time.Time
	prefix   string
	findings []Finding
}

func newChecker(recs []Record, now time.Time, prefix string) *checker {
	c := &checker{snap: newSnapshot(0), claims: make(map[string]map[string]*Fingerprint), records: len(recs), now: now, prefix: prefix}
	for _, rec := range recs {
		c.snap.put(rec)
		if fp, ok := rec.(*Fingerprint); ok {
			if c.claims[fp.Pool] == nil {
				c.claims[fp.Pool] = make(map[string]*Fingerprint)
			}
			c.claims[fp.Pool][fp.HMAC] = fp
		}
	}
	c.snap.dateTokens(&Snapshot{}, now)
	c.newer(recs)
	return c
}

// all runs every check that needs nothing but the records.
func (c *checker) all() {
	c.unreadable()
	c.orphans()
	for _, name := range c.poolNames() {
		p := c.snap.Pools[name]
		if p.Pool == nil {
			continue
		}
		c.homes(p)
		c.bindings(name, p)
		c.history(name, p)
		if p.Pool.Deleting {
			c.deleting(name, p)
			continue
		}
		c.slots(name, p)
		c.fingerprints(name, p)
		c.pending(name, p)
		c.locks(name, p)
		c.stock(name, p)
		c.statuses(name, p)
		c.givenUp(name, p)
		c.bound(name, p)
	}
	c.sharedSecrets()
	c.replicas()
	c.relays()
}

func (c *checker) report(revision int64) *Report {
	slices.SortStableFunc(c.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Check, b.Check))
	})
	r := &Report{Findings: c.findings, Records: c.records, Revision: revision, CheckedAt: c.now}
	for _, p := range c.snap.Pools {
		if p.Pool != nil {
			r.Pools++
		}
	}
	return r
}

func (c *checker) poolNames() []string { return slices.Sorted(maps.Keys(c.snap.Pools)) }

// find adds a finding; message is a format.
func (c *checker) find(s Severity, check, subject, remedy, message string, args ...any) {
	c.findings = append(c.findings, Finding{s, check, subject, fmt.Sprintf(message, args...), remedy})
}

// recordName is a record's key in etcd without the prefix.
func recordName(ref Ref) string {
	var parts []string
	for _, part := range []string{string(ref.Kind), ref.Pool, ref.Name} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if ref.Kind == KindRotation {
		parts = append(parts, fmt.Sprint(ref.Generation))
	}
	return strings.Join(parts, "/")
}

func (c *checker) name(ref Ref) string { return c.prefix + recordName(ref) }

// etcdctl is a remedy for what no call of the service can mend.
func (c *checker) etcdctl(verb string, ref Ref) string { return "etcdctl " + verb + " " + c.name(ref) }

// thereUnread reports whether a record is there but cannot be read.
func (c *checker) thereUnread(ref Ref) bool { return c.snap.Broken[ref] != nil }

var knownKinds = map[Kind]bool{
	KindPool: true, KindSlot: true, KindActive: true, KindBackup: true, KindRetired: true, KindRotation: true, KindPending: true,
	KindBinding: true, KindFingerprint: true, KindEvent: true, KindLock: true, KindReplica: true,
	KindToken: true, KindHealth: true, KindPreparation: true, KindRelay: true,
}

// unreadable reports what cannot be decoded, and what nobody here has written.
func (c *checker) unreadable() {
	for ref, b := range c.snap.Broken {
		if !knownKinds[ref.Kind] {
			name := fmt.Sprintf("%q", c.prefix+ref.Name) // anything may be in it
			c.find(SeverityWarning, "foreign-key", name, "etcdctl get "+name, "rotatord does not write this key")
			continue
		}
		c.find(SeverityError, "record-unreadable", c.name(ref), c.etcdctl("get", ref),
			"the record cannot be read, so nothing is decided from it: %v", b.Err)
	}
}

// newer reports records of a later build, once for each schema.
func (c *checker) newer(recs []Record) {
	count := make(map[int]int)
	first := make(map[int]string)
	for _, rec := range recs {
		if v := rec.At(); v.TooNew() {
			name := c.name(rec.Ref())
			if count[v.Schema]++; count[v.Schema] == 1 || name < first[v.Schema] {
				first[v.Schema] = name
			}
		}
	}
	for schema, n := range count {
		c.find(SeverityWarning, "schema-newer", first[schema], "rotatorctl replica list # and update the replicas that know less than this schema",
			"%d records have schema %d; this replica knows %d and does not rewrite them", n, schema, Schema)
	}
}

// orphans reports records of a pool that does not exist. Locks end with their leases and are not counted.
func (c *checker) orphans() {
	count := make(map[string]int)
	for name, p := range c.snap.Pools {
		if p.Pool == nil {
			count[name] += len(p.Slots) + len(p.Active) + len(p.Backup) + len(p.Retired) + len(p.Rotations) + len(p.Pending) + len(p.Bindings) + len(p.Preparing)
		}
	}
	for name, claims := range c.claims {
		if p := c.snap.Pools[name]; p == nil || p.Pool == nil {
			count[name] += len(claims)
		}
	}
	for name, n := range count {
		if n > 0 && !c.thereUnread(PoolRef(name)) {
			c.find(SeverityError, "pool-missing", c.name(PoolRef(name)),
				fmt.Sprintf("rotatorctl pool create %s # to use them; then rotatorctl pool delete --force %s to lose them", name, name),
				"%d records belong to pool %q, which does not exist", n, name)
		}
	}
}

// homes: a key id is in one home.
func (c *checker) homes(p *PoolState) {
	for key, a := range p.Active {
		if b := p.Backup[key]; b != nil {
			c.twoHomes(a, b)
		}
		if r := p.Retired[key]; r != nil {
			c.twoHomes(a, r)
		}
	}
	for key, b := range p.Backup {
		if r := p.Retired[key]; r != nil && p.Active[key] == nil {
			c.twoHomes(b, r)
		}
	}
	for key, prep := range p.Preparing {
		if a, b, r := p.Active[key], p.Backup[key], p.Retired[key]; a != nil {
			c.twoHomes(a, prep)
		} else if b != nil {
			c.twoHomes(b, prep)
		} else if r != nil {
			c.twoHomes(r, prep)
		}
	}
}

// twoHomes: what serves, or could, stays; the other is the one to delete.
func (c *checker) twoHomes(keep, spare Record) {
	ref := keep.Ref()
	c.find(SeverityError, "one-home", c.name(ref), c.etcdctl("del", spare.Ref()), "key %q of pool %q is under %s/ and under %s/", ref.Name, ref.Pool, ref.Kind, spare.Ref().Kind)
}

// slots: every slot holds one active key, and every active key one slot.
func (c *checker) slots(name string, p *PoolState) {
	holder := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(p.Active)) {
		a := p.Active[key]
		if other, taken := holder[a.Slot]; taken {
			c.find(SeverityError, "slot-active", c.name(a.Ref()), c.etcdctl("get", a.Ref())+" # compare with "+c.name(ActiveRef(name, other))+" and delete the wrong one",
				"keys %q and %q both hold slot %q of pool %q", other, key, a.Slot, name)
		}
		holder[a.Slot] = key
		if slot := SlotRef(name, a.Slot); p.Slots[a.Slot] == nil && !c.thereUnread(slot) {
			c.find(SeverityError, "slot-active", c.name(a.Ref()), fmt.Sprintf("rotatorctl key remove %s %s # and add it again", name, key),
				"key %q holds slot %q, which does not exist", key, a.Slot)
		}
	}
	for slot, s := range p.Slots {
		key, held := holder[slot]
		switch {
		case !held && !c.unreadIn(name, KindActive):
			c.find(SeverityError, "slot-active", c.name(s.Ref()), c.etcdctl("del", s.Ref()), "slot %q of pool %q holds no active key", slot, name)
		case held && s.Closing:
			c.find(SeverityWarning, "slot-closing", c.name(s.Ref()), fmt.Sprintf("rotatorctl key remove %s %s", name, key),
				"the removal of key %q was interrupted: its slot is closed to new bindings", key)
		}
	}
}

// unreadIn reports whether a pool has a record of a kind that cannot be read: then what is missing may be that.
func (c *checker) unreadIn(pool string, kind Kind) bool {
	for ref := range c.snap.Broken {
		if ref.Pool == pool && ref.Kind == kind {
			return true
		}
	}
	return false
}

// bindings: none dangles.
func (c *checker) bindings(name string, p *PoolState) {
	for proxy, b := range p.Bindings {
		var good, bad []string
		for _, s := range b.Slots {
			if c.holds(name, p, s.Slot) {
				good = append(good, fmt.Sprintf("%s=%d", s.Slot, s.Priority))
			} else {
				bad = append(bad, s.Slot)
			}
		}
		remedy := fmt.Sprintf("rotatorctl binding remove %s %s", name, proxy)
		if len(good) > 0 {
			remedy = fmt.Sprintf("rotatorctl binding set %s %s %s", name, proxy, strings.Join(good, " "))
		}
		switch {
		case len(bad) > 0:
			c.find(SeverityError, "binding-dangles", c.name(b.Ref()), remedy, "proxy %q is bound to slots without an active key: %s", proxy, strings.Join(bad, ", "))
		case len(good) == 0:
			c.find(SeverityError, "binding-empty", c.name(b.Ref()), remedy, "proxy %q is bound to nothing, so it gets no keys at all", proxy)
		}
	}
}

// holds reports whether a slot is there and holds an active key, as far as can be read.
func (c *checker) holds(pool string, p *PoolState, slot string) bool {
	slotThere := p.Slots[slot] != nil || c.thereUnread(SlotRef(pool, slot))
	return slotThere && (p.BySlot[slot] != nil || c.unreadIn(pool, KindActive))
}

// fingerprints: every secret is claimed by the key that has it, and every claim has its key.
func (c *checker) fingerprints(name string, p *PoolState) {
	c.eachKey(p, func(rec Record, sealed Sealed) { c.claimed(name, rec, sealed) })
	for hmac, fp := range c.claims[name] {
		if !c.backed(p, fp) {
			c.find(SeverityError, "fingerprint", c.name(fp.Ref()), c.etcdctl("del", fp.Ref()),
				"the secret with fingerprint %s is claimed for key %q, which does not have it: it cannot be added", hmac, fp.Key)
		}
	}
}

// claimed checks the claim of one key.
func (c *checker) claimed(name string, rec Record, sealed Sealed) {
	ref := rec.Ref()
	if sealed.IsZero() {
		if ref.Kind != KindRetired && ref.Kind != KindPreparation {
			c.find(SeverityError, "secret-missing", c.name(ref), fmt.Sprintf("rotatorctl key remove %s %s", name, ref.Name), "key %q has no secret", ref.Name)
		}
		return
	}
	fp := c.claims[name][sealed.Fingerprint]
	switch {
	case fp == nil && !c.thereUnread(FingerprintRef(name, sealed.Fingerprint)):
		c.find(SeverityError, "fingerprint", c.name(ref), fmt.Sprintf("rotatorctl key remove %s %s # and add it again", name, ref.Name),
			"the secret of key %q is not claimed: it could be added under a second id", ref.Name)
	case fp != nil && fp.Key != ref.Name:
		c.find(SeverityError, "fingerprint", c.name(ref), fmt.Sprintf("rotatorctl key remove %s %s", name, ref.Name),
			"keys %q and %q have the same secret", fp.Key, ref.Name)
	}
}

// backed reports whether a claim's key has the secret, or cannot be read.
func (c *checker) backed(p *PoolState, fp *Fingerprint) (backed bool) {
	for _, ref := range homeRefs(fp.Pool, fp.Key) {
		backed = backed || c.thereUnread(ref)
	}
	match := func(s Sealed) bool { return !s.IsZero() && s.Fingerprint == fp.HMAC }
	if a := p.Active[fp.Key]; a != nil {
		backed = backed || match(a.Sealed)
	}
	if b := p.Backup[fp.Key]; b != nil {
		backed = backed || match(b.Sealed)
	}
	if r := p.Retired[fp.Key]; r != nil {
		backed = backed || match(r.Sealed)
	}
	if prep := p.Preparing[fp.Key]; prep != nil {
		backed = backed || match(prep.Sealed)
	}
	return backed
}

// eachKey calls fn for every key of a pool, whatever its home.
func (c *checker) eachKey(p *PoolState, fn func(Record, Sealed)) {
	for _, a := range p.Active {
		fn(a, a.Sealed)
	}
	for _, b := range p.Backup {
		fn(b, b.Sealed)
	}
	for _, r := range p.Retired {
		fn(r, r.Sealed)
	}
	for _, prep := range p.Preparing {
		fn(prep, prep.Sealed)
	}
}

// history: a rotated life is over, its successor names it, and the lives in a slot follow each other.
func (c *checker) history(name string, p *PoolState) {
	bySlot := make(map[string][]*Rotation)
	for _, rots := range p.Rotations {
		for _, rot := range rots {
			bySlot[rot.Slot] = append(bySlot[rot.Slot], rot)
			c.rotation(name, p, rot)
		}
	}
	for _, rots := range bySlot {
		slices.SortFunc(rots, func(a, b *Rotation) int { return cmp.Compare(a.Revision(), b.Revision()) })
		for i := 1; i < len(rots); i++ {
			c.succession(name, rots[i-1], rots[i])
		}
	}
}

func (c *checker) rotation(name string, p *PoolState, rot *Rotation) {
	if a := p.Active[rot.Key]; a != nil && a.CreateRevision == rot.Generation {
		c.find(SeverityError, "rotated-life", c.name(a.Ref()), c.keepEvidence(), "life %d of key %q is in service although it was rotated", rot.Generation, rot.Key)
	}
	if a := p.Active[rot.NewKey]; a != nil && a.CreateRevision == rot.Revision() && (a.Replaces != rot.Key || a.Slot != rot.Slot) {
		c.find(SeverityError, "replaces", c.name(a.Ref()), c.keepEvidence(),
			"key %q says that it replaced %q in slot %q; on record is that it replaced %q in slot %q", a.Key, a.Replaces, a.Slot, rot.Key, rot.Slot)
	}
}

// succession checks two rotations of a slot that follow each other. In between the slot may have been removed and
// added again, with a key that came into service later.
func (c *checker) succession(name string, before, after *Rotation) {
	if after.Generation > before.Revision() || after.Generation == before.Revision() && after.Key == before.NewKey {
		return
	}
	c.find(SeverityError, "slot-history", c.name(after.Ref()), c.keepEvidence(),
		"slot %q of pool %q: after key %q came in at revision %d, the life %d of key %q was rotated out", after.Slot, name, before.NewKey, before.Revision(), after.Generation, after.Key)
}

// keepEvidence is the remedy for what cannot have happened.
func (c *checker) keepEvidence() string {
	return "etcdctl snapshot save rotatord-evidence.db # and report it: no call of the service and no hand edit should do this"
}

// pending: only a life in service waits for stock.
func (c *checker) pending(name string, p *PoolState) {
	for key, pend := range p.Pending {
		a := p.Active[key]
		if c.thereUnread(ActiveRef(name, key)) {
			continue
		}
		if a == nil || a.CreateRevision != pend.Generation {
			c.find(SeverityError, "pending-life", c.name(pend.Ref()), c.etcdctl("del", pend.Ref()),
				"a rotation of key %q waits for a life (%d) that is not in service", key, pend.Generation)
			continue
		}
		remedy := fmt.Sprintf("rotatorctl key import %s FILE --backup", name)
		if p.Pool.Paused {
			remedy = fmt.Sprintf("rotatorctl pool resume %s", name)
		}
		c.find(SeverityWarning, "pending-waiting", c.name(pend.Ref()), remedy, "key %q has waited for a replacement since %s", key, pend.RequestedAt.UTC().Format(time.RFC3339))
	}
}

// locks: each is about a life in service, or a key that is prepared or retired, and belongs to a replica that is there.
func (c *checker) locks(name string, p *PoolState) {
	for key, l := range p.Locks {
		a := p.Active[key]
		switch {
		case c.snap.Replicas[l.Holder] == nil && !c.thereUnread(ReplicaRef(l.Holder)):
			c.find(SeverityWarning, "ghost-lock", c.name(l.Ref()), c.etcdctl("get", l.Ref())+" # it goes with its lease; others take it over meanwhile",
				"the lock of key %q is held by %q, which has no session", key, l.Holder)
		case l.errand() && (p.Retired[key] != nil || p.Preparing[key] != nil):
		case (a == nil || a.CreateRevision != l.Generation) && !c.thereUnread(ActiveRef(name, key)):
			c.find(SeverityWarning, "ghost-lock", c.name(l.Ref()), c.etcdctl("del", l.Ref()), "the lock of key %q is about a life that is over", key)
		}
	}
}

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
