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
