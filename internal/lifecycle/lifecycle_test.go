package lifecycle_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
)

// TestStocking: a pool below its minimum is filled to its maximum, each key in order and once, and the crossing is told once.
func TestStocking(t *testing.T) {
	for _, tt := range []struct {
		name    string
		chooses bool
	}{{"secrets are chosen here", false}, {"the upstream chooses secrets", true}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withStock(2, 5))
				r.upstream.chooses = tt.chooses
				for i := range 3 {
					r.start(fmt.Sprint("r", i), nil)
				}
				backups := func() []*pool.Backup { return records[*pool.Backup](r, pool.KindBackup) }
				r.until("filled", time.Minute, func() bool { return len(backups()) == 5 })
				r.until("not low", time.Minute, func() bool { return len(records[*pool.Token](r, pool.KindToken)) == 0 })
				for _, b := range backups() {
					want := map[pool.EventType]int{pool.EventKeyPlanned: 1, pool.EventKeyMinting: 1, pool.EventKeyMinted: 1, pool.EventKeyStocked: 1}
					if diff := cmp.Diff(want, r.events("keys/"+b.Key)); diff != "" {
						t.Errorf("events of %s (-want +got):\n%s", b.Key, diff)
					}
					if n := r.upstream.count("mint", b.Key); n != 1 {
						t.Errorf("%s was minted %d times, want once", b.Key, n)
					}
				}
				if n := r.events("")[pool.EventStockLow]; n != 1 {
					t.Errorf("low stock was told %d times, want once", n)
				}
				if locks := records[*pool.Lock](r, pool.KindLock); len(locks) != 0 {
					t.Errorf("locks are left: %v", locks)
				}
				// Down to the minimum nothing happens; below it the pool is filled again.
				r.byHand = true
				take := func() {
					b := backups()[0]
					r.store.Drop(b.Ref(), pool.FingerprintRef("p", b.Sealed.Fingerprint))
				}
				for range 3 {
					take()
				}
				time.Sleep(5 * time.Minute)
				if n := len(backups()); n != 2 {
					t.Errorf("at the minimum: %d backups, want 2", n)
				}
				take()
				r.until("filled again", time.Minute, func() bool { return len(backups()) == 5 })
				if n := r.events("")[pool.EventStockLow]; n != 2 {
					t.Errorf("two crossings were told %d times", n)
				}
			})
		})
	}
}

// TestMintFails: back-off with a bound, then it is listed; a retry goes on.
func TestMintFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(1, 1))
		r.upstream.refuse = fmt.Errorf("%w: the credential has no right", pool.ErrNothingDone)
		r.start("r0", nil)
		preps := func() []*pool.Preparation { return records[*pool.Preparation](r, pool.KindPreparation) }
		r.until("given up", 2*time.Hour, func() bool { p := preps(); return len(p) == 1 && p[0].Phase == pool.PhaseFailed })
		p := preps()[0]
		if p.Work.Problem == "" || p.Work.Intent != "" || p.Work.Attempts != lifecycle.DefaultLimits().Attempts {
			t.Errorf("given up with %+v", p.Work)
		}
		time.Sleep(3 * time.Hour)
		if got := preps(); len(got) != 1 || got[0].ModRevision != p.ModRevision {
			t.Errorf("what was given up goes on: %+v", got)
		}
		if r.seen.skips() == 0 {
			t.Error("skipped work was not counted")
		}
		if _, _, err := r.admin.RetryKey(t.Context(), "p", p.Key); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.admin.RetryKey(t.Context(), "p", p.Key); pool.ReasonOf(err) != pool.ReasonNothingToRetry {
			t.Errorf("a second retry: %v", err)
		}
		r.upstream.set(func() { r.upstream.refuse = nil })
		r.until("stocked", time.Minute, func() bool { return len(records[*pool.Backup](r, pool.KindBackup)) == 1 })
		want := map[pool.EventType]int{
			pool.EventKeyPlanned: 1, pool.EventKeyMinting: 2, pool.EventKeyMintFailed: 1, pool.EventKeyRetried: 1, pool.EventKeyMinted: 1, pool.EventKeyStocked: 1,
		}
		if diff := cmp.Diff(want, r.events("keys/"+p.Key)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

// TestUpstreamLeftAlone: while an upstream is left alone nothing is given up, however long that is, nothing is lost, and
// nothing is written about calls that would not be made.
func TestUpstreamLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(1, 1))
		r.retire("old", "new")
		over := time.Now().Add(24 * time.Hour)
		r.upstream.refuse = &pool.HeldBackError{RetryAt: over, Cause: errors.New("the host is left alone")}
		r.start("r0", nil)
		time.Sleep(time.Minute)
		before := r.store.Revision()
		time.Sleep(time.Until(over) - time.Minute)
		if n := r.store.Revision() - before; n != 0 {
			t.Errorf("%d writes while nobody can be asked", n)
		}
		preps := records[*pool.Preparation](r, pool.KindPreparation)
		if len(preps) != 1 || preps[0].Phase != pool.PhaseMinting || preps[0].Work.Attempts != 0 || !preps[0].Work.NotBefore.Equal(over) {
			t.Errorf("the key to be minted: %+v", preps)
		}
		if old := r.retired("old"); old.Phase != pool.PhaseRetired {
			t.Errorf("the key to be revoked is %s with %+v", old.Phase, old.Work)
		}
		r.upstream.set(func() { r.upstream.refuse = nil })
		r.until("stocked", 2*time.Minute, func() bool { return len(records[*pool.Backup](r, pool.KindBackup)) == 1 })
		r.until("revoked", 2*time.Minute, func() bool { return r.upstream.count("revoke", "old") == 1 })
	})
}

// TestBadKeyIsNotStocked: what does not work at the upstream never counts, and is undone when it is removed.
func TestBadKeyIsNotStocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(1, 1))
		r.upstream.bad = true
		r.start("r0", nil)
		preps := func() []*pool.Preparation { return records[*pool.Preparation](r, pool.KindPreparation) }
		r.until("given up", 2*time.Hour, func() bool { p := preps(); return len(p) == 1 && p[0].Phase == pool.PhaseFailed })
		key := preps()[0].Key
		if n := len(records[*pool.Backup](r, pool.KindBackup)); n != 0 {
			t.Errorf("%d keys that do not work are in stock", n)
		}
		if _, _, err := r.admin.RemoveKey(t.Context(), "p", key, false); err != nil {
			t.Fatal(err)
		}
		r.until("revoked", time.Minute, func() bool { old := r.retired(key); return old != nil && old.Phase == pool.PhaseRevoked })
		if n := r.upstream.count("revoke", key); n != 1 {
			t.Errorf("revoked %d times, want once", n)
		}
		if _, _, err := r.admin.RestoreKey(t.Context(), "p", key); pool.ReasonOf(err) != pool.ReasonKeyNotRestorable {
			t.Errorf("restored: %v", err)
		}
	})
}

// TestKeptAtUpstream: where retired keys are kept at the upstream, one that never served is undone all the same.
func TestKeptAtUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeps := withStock(1, 1)
		keeps.Retirement.KeepAtUpstream = true
		r := newRig(t, keeps)
		r.upstream.bad = true
		r.retire("old", "new")
		r.start("r0", nil)
		preps := func() []*pool.Preparation { return records[*pool.Preparation](r, pool.KindPreparation) }
		r.until("given up", 2*time.Hour, func() bool { p := preps(); return len(p) == 1 && p[0].Phase == pool.PhaseFailed })
		key := preps()[0].Key
		if _, _, err := r.admin.RemoveKey(t.Context(), "p", key, false); err != nil {
			t.Fatal(err)
		}
		r.until("revoked", time.Minute, func() bool { old := r.retired(key); return old != nil && old.Phase == pool.PhaseRevoked })
		time.Sleep(2 * pool.DefaultRevokeAfter)
		if n := r.upstream.count("revoke", "old"); n != 0 {
			t.Errorf("the key that served was revoked %d times", n)
		}
	})
}

// TestCancelledMint: a mint whose answer was lost and that is cancelled is found out about and deleted.
func TestCancelledMint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(1, 1))
		r.upstream.lose = func(call, _ string) bool { return call == "mint" }
		stop := r.start("r0", nil)
		preps := func() []*pool.Preparation { return records[*pool.Preparation](r, pool.KindPreparation) }
		r.until("minted", time.Minute, func() bool { return r.upstream.count("mint", "") == 1 })
		stop()
		key := preps()[0].Key
		if _, _, err := r.admin.RemoveKey(t.Context(), "p", key, false); err != nil {
			t.Fatal(err)
		}
		r.upstream.set(func() { r.upstream.lose = nil })
		r.start("r1", nil)
		r.until("revoked", time.Minute, func() bool { old := r.retired(key); return old != nil && old.Phase == pool.PhaseRevoked })
		r.upstream.mu.Lock()
		defer r.upstream.mu.Unlock()
		if _, alive := r.upstream.keys[pool.AliasOf("p", key)]; alive {
			t.Error("the cancelled key is alive at the upstream")
		}
	})
}

// TestLostSecret: a key whose secret was in a lost answer is undone and another one planned.
func TestLostSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(1, 1))
		r.upstream.chooses = true
		lost := false
		r.upstream.lose = func(call, _ string) bool {
			first := call == "mint" && !lost
			lost = lost || first
			return first
		}
		r.start("r0", nil)
		r.until("stocked", 5*time.Minute, func() bool { return len(records[*pool.Backup](r, pool.KindBackup)) == 1 })
		r.until("undone", time.Minute, func() bool {
			old := records[*pool.Retired](r, pool.KindRetired)
			return len(old) == 1 && old[0].Phase == pool.PhaseRevoked
		})
		if n := r.upstream.count("mint", ""); n != 2 {
			t.Errorf("%d mints, want the lost one and another", n)
		}
		if n := r.upstream.alive(); n != 1 {
			t.Errorf("%d keys at the upstream, want 1", n)
		}
	})
}

// TestRevoking: after the grace the key is revoked, after the retention its secret is purged, after the record retention the
// record goes; each once.
func TestRevoking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, spec)
		r.retire("old", "new")
		for i := range 3 {
			r.start(fmt.Sprint("r", i), nil)
		}
		time.Sleep(pool.DefaultRevokeAfter - time.Minute)
		if old := r.retired("old"); old.Phase != pool.PhaseRetired || r.upstream.count("revoke", "old") != 0 {
			t.Errorf("within the grace: %s", old.Phase)
		}
		r.until("revoked", 2*time.Minute, func() bool { return r.retired("old").Phase == pool.PhaseRevoked })
		if _, _, err := r.admin.RestoreKey(t.Context(), "p", "old"); pool.ReasonOf(err) != pool.ReasonKeyNotRestorable {
			t.Errorf("restored: %v", err)
		}
		time.Sleep(pool.DefaultSecretRetention - pool.DefaultRevokeAfter - 2*time.Minute)
		if r.retired("old").Sealed.IsZero() {
			t.Error("purged too early")
		}
		r.until("purged", 3*time.Minute, func() bool { return r.retired("old").Phase == pool.PhasePurged })
		if got := len(records[*pool.Fingerprint](r, pool.KindFingerprint)); got != 1 || !r.retired("old").Sealed.IsZero() {
			t.Errorf("after the purge: %d claims, want that of the new key", got)
		}
		time.Sleep(pool.DefaultRecordRetention - pool.DefaultSecretRetention - 5*time.Minute)
		r.until("deleted", 10*time.Minute, func() bool { return r.retired("old") == nil })
		want := map[pool.EventType]int{pool.EventKeyRevoking: 1, pool.EventKeyRevoked: 1, pool.EventKeyPurged: 1, pool.EventKeyRemoved: 1}
		if diff := cmp.Diff(want, r.events("keys/old")); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if n := r.upstream.count("revoke", "old"); n != 1 {
			t.Errorf("revoked %d times, want once", n)
		}
	})
}

// TestPurgeWithoutProvider: nothing is revoked, the secret goes all the same.
func TestPurgeWithoutProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pool.Spec{})
		r.retire("old", "new")
		r.start("r0", nil)
		r.until("purged", 25*time.Hour, func() bool { return r.retired("old").Phase == pool.PhasePurged })
		if n := r.upstream.count("revoke", ""); n != 0 {
			t.Errorf("%d revocations without a provider", n)
		}
	})
}

// TestOrphan: a revocation that does not work is given up and listed, keeps its secret, and goes on when it is retried.
func TestOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, spec)
		r.retire("old", "new")
		r.upstream.refuse = errLost
		r.start("r0", nil)
		r.until("orphaned", 4*time.Hour, func() bool { return r.retired("old").Phase == pool.PhaseOrphaned })
		time.Sleep(48 * time.Hour)
		if old := r.retired("old"); old.Sealed.IsZero() || old.Phase != pool.PhaseOrphaned || old.Work.Problem == "" {
			t.Errorf("the orphan is %s with %+v", old.Phase, old.Work)
		}
		if _, _, err := r.admin.RetryKey(t.Context(), "p", "old"); err != nil {
			t.Fatal(err)
		}
		r.upstream.set(func() { r.upstream.refuse = nil })
		r.until("purged", time.Minute, func() bool { return r.retired("old").Phase == pool.PhasePurged })
		if n := r.upstream.count("revoke", "old"); n != 1 {
			t.Errorf("revoked %d times, want once", n)
		}
	})
}

// TestNotRevokedInDoubt: the last working key is never revoked.
func TestNotRevokedInDoubt(t *testing.T) {
	for name, doubt := range map[string]func(r *rig, a pool.Active) []pool.Record{
		"the successor is exhausted": func(_ *rig, a pool.Active) []pool.Record { a.Status = pool.StatusExhausted; return []pool.Record{&a} },
		"the successor is disabled":  func(_ *rig, a pool.Active) []pool.Record { a.Status = pool.StatusDisabled; return []pool.Record{&a} },
		"the same secret": func(r *rig, a pool.Active) []pool.Record {
			a.Sealed = r.retired("old").Sealed
			return []pool.Record{&a}
		},
		"another pool has it": func(r *rig, _ pool.Active) []pool.Record {
			return []pool.Record{&pool.Pool{Name: "q"}, &pool.Backup{Pool: "q", Key: "b", Sealed: r.retired("old").Sealed}}
		},
		"another key claims it": func(r *rig, _ pool.Active) []pool.Record {
			return []pool.Record{&pool.Fingerprint{Pool: "p", HMAC: r.retired("old").Sealed.Fingerprint, Key: "other"}}
		},
		"the pool is paused": func(_ *rig, _ pool.Active) []pool.Record {
			return []pool.Record{&pool.Pool{Name: "p", Spec: spec, Paused: true}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, spec)
				r.retire("old", "new")
				before := records[*pool.Active](r, pool.KindActive)[0]
				r.byHand = true
				r.store.Put(doubt(r, *before)...)
				r.start("r0", nil)
				time.Sleep(30 * time.Hour)
				if old := r.retired("old"); old.Phase != pool.PhaseRetired || old.Sealed.IsZero() || r.upstream.count("revoke", "") != 0 {
					t.Fatalf("it is %s with %d revocations", old.Phase, r.upstream.count("revoke", ""))
				}
			})
		})
	}
}
