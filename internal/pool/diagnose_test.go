package pool_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// healthy makes a world in which there is nothing to find.
func (r *adminRig) healthy() *adminRig {
	r.t.Helper()
	r.must(errOf(r.rival.CreatePool(r.ctx, "p", pool.Spec{})))
	r.add("p", pool.HomeActive, newKeys("k1", "k2", "k3")...)
	r.add("p", pool.HomeBackup, newKeys("b1", "b2", "b3")...)
	r.bind("x", "k1", "k2")
	r.must(r.rotate("k3", "b3"))
	r.edit().Put(&pool.Replica{Name: "r0"})
	return r
}

func TestDiagnoseAllIsWell(t *testing.T) {
	r := newAdminRig(t).healthy()
	report, err := r.admin.Diagnose(r.ctx)
	r.must(err)
	if len(report.Findings) != 0 {
		t.Errorf("found %+v, want nothing", report.Findings)
	}
	recs, rev, err := r.store.ReadAll(r.ctx)
	r.must(err)
	if report.Records != len(recs) || report.Pools != 1 || report.Revision != rev || report.CheckedAt.IsZero() {
		t.Errorf("counts %+v, want %d records of 1 pool at %d", report, len(recs), rev)
	}
}

// get reads a record to be changed by hand; a copy.
func get[R any](r *adminRig, ref pool.Ref) *R {
	r.t.Helper()
	st, err := r.store.Read(r.ctx, ref)
	r.must(err)
	rec, ok := st.Records[ref].(any).(*R)
	if !ok {
		r.t.Fatalf("nothing at %+v", ref)
	}
	c := *rec
	return &c
}

// flaws are states that no call makes, or that somebody should know of, each with what is found.
var flaws = []struct {
	name     string
	make     func(*adminRig, handEditor)
	severity pool.Severity
	check    string
	subject  string
	remedy   string
}{
	{"active and in stock", func(r *adminRig, h handEditor) {
		h.Put(&pool.Backup{Pool: "p", Key: "k1", Sealed: get[pool.Active](r, pool.ActiveRef("p", "k1")).Sealed})
	}, pool.SeverityError, "one-home", "/rotator/active/p/k1", "etcdctl del /rotator/backup/p/k1"},
	{"active and retired", func(r *adminRig, h handEditor) {
		h.Put(&pool.Retired{Pool: "p", Key: "k1"})
	}, pool.SeverityError, "one-home", "/rotator/active/p/k1", "etcdctl del /rotator/retired/p/k1"},
	{"in stock and retired", func(r *adminRig, h handEditor) {
		h.Put(&pool.Retired{Pool: "p", Key: "b1"})
	}, pool.SeverityError, "one-home", "/rotator/backup/p/b1", "etcdctl del /rotator/retired/p/b1"},
	{"active without slot", func(_ *adminRig, h handEditor) {
		h.Drop(pool.SlotRef("p", "b3"), pool.SlotRef("p", "k3"))
	}, pool.SeverityError, "slot-active", "/rotator/active/p/b3", "rotatorctl key remove p b3"},
	{"slot without active", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Slot{Pool: "p", Name: "empty"})
	}, pool.SeverityError, "slot-active", "/rotator/slots/p/empty", "etcdctl del /rotator/slots/p/empty"},
	{"two keys in a slot", func(r *adminRig, h handEditor) {
		a := get[pool.Active](r, pool.ActiveRef("p", "b3"))
		a.Slot = "k1"
		h.Put(a)
	}, pool.SeverityError, "slot-active", "/rotator/active/p/k1", "etcdctl get /rotator/active/p/k1"},
	{"binding to nothing", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Binding{Pool: "p", Proxy: "y", Slots: priorities("gone")})
	}, pool.SeverityError, "binding-dangles", "/rotator/bindings/p/y", "rotatorctl binding remove p y"},
	{"binding partly to nothing", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Binding{Pool: "p", Proxy: "y", Slots: priorities("gone", "k1")})
	}, pool.SeverityError, "binding-dangles", "/rotator/bindings/p/y", "rotatorctl binding set p y k1=2"},
	{"binding to a slot without key", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Slot{Pool: "p", Name: "empty"}, &pool.Binding{Pool: "p", Proxy: "y", Slots: priorities("empty")})
	}, pool.SeverityError, "binding-dangles", "/rotator/bindings/p/y", "rotatorctl binding remove p y"},
	{"empty binding", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Binding{Pool: "p", Proxy: "y"})
	}, pool.SeverityError, "binding-empty", "/rotator/bindings/p/y", "rotatorctl binding remove p y"},
	{"claim without key", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Fingerprint{Pool: "p", HMAC: "feed", Key: "ghost"})
	}, pool.SeverityError, "fingerprint", "/rotator/fingerprints/p/feed", "etcdctl del /rotator/fingerprints/p/feed"},
	{"key without claim", func(r *adminRig, h handEditor) {
		h.Drop(pool.FingerprintRef("p", get[pool.Backup](r, pool.BackupRef("p", "b1")).Sealed.Fingerprint))
	}, pool.SeverityError, "fingerprint", "/rotator/backup/p/b1", "rotatorctl key remove p b1"},
	{"two keys with a secret", func(r *adminRig, h handEditor) {
		b := get[pool.Backup](r, pool.BackupRef("p", "b1"))
		b.Key = "twin"
		h.Put(b)
	}, pool.SeverityError, "fingerprint", "/rotator/backup/p/twin", "rotatorctl key remove p twin"},
	{"key without secret", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Backup{Pool: "p", Key: "bare"})
	}, pool.SeverityError, "secret-missing", "/rotator/backup/p/bare", "rotatorctl key remove p bare"},
	{"pending of a life that is over", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Pending{Life: pool.Life{Pool: "p", Key: "k1", Generation: 1}})
	}, pool.SeverityError, "pending-life", "/rotator/pending/p/k1", "etcdctl del /rotator/pending/p/k1"},
	{"pending of nobody", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Pending{Life: pool.Life{Pool: "p", Key: "k9", Generation: 1}})
	}, pool.SeverityError, "pending-life", "/rotator/pending/p/k9", "etcdctl del /rotator/pending/p/k9"},
	{"pending", func(r *adminRig, _ handEditor) {
		r.must(r.park("k1"))
	}, pool.SeverityWarning, "pending-waiting", "/rotator/pending/p/k1", "rotatorctl key import p FILE --backup"},
	{"pending in a paused pool", func(r *adminRig, _ handEditor) {
		r.must(r.park("k1"))
		r.must(errOf(r.rival.PausePool(r.ctx, "p")))
	}, pool.SeverityWarning, "pending-waiting", "/rotator/pending/p/k1", "rotatorctl pool resume p"},
	{"interrupted removal", func(r *adminRig, _ handEditor) {
		r.must(r.crashAfterClosing(r.ctx, "k1"))
	}, pool.SeverityWarning, "slot-closing", "/rotator/slots/p/k1", "rotatorctl key remove p k1"},
	{"interrupted deletion", func(r *adminRig, _ handEditor) {
		r.interruptDeletion("p")
	}, pool.SeverityWarning, "pool-deleting", "/rotator/pools/p", "rotatorctl pool delete p --force"},
	{"no stock", func(r *adminRig, _ handEditor) {
		r.must(errOf(r.rival.RemoveKey(r.ctx, "p", "b1", false)))
		r.must(errOf(r.rival.RemoveKey(r.ctx, "p", "b2", false)))
	}, pool.SeverityWarning, "stock-empty", "/rotator/pools/p", "rotatorctl key import p FILE --backup"},
	{"little stock", func(r *adminRig, _ handEditor) {
		r.add("p", pool.HomeActive, newKeys("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8")...)
	}, pool.SeverityNotice, "stock-low", "/rotator/pools/p", "rotatorctl key import p FILE --backup"},
	{"paused", func(r *adminRig, _ handEditor) {
		r.must(errOf(r.rival.PausePool(r.ctx, "p")))
	}, pool.SeverityNotice, "pool-paused", "/rotator/pools/p", "rotatorctl pool resume p"},
	{"disabled key", func(r *adminRig, _ handEditor) {
		r.must(errOf(r.rival.DisableKey(r.ctx, "p", "k1", "")))
	}, pool.SeverityNotice, "key-disabled", "/rotator/active/p/k1", "rotatorctl key enable p k1"},
	{"exhausted key", func(r *adminRig, _ handEditor) {
		r.add("p", pool.HomeActive, pool.NewKey{ID: "tired", Secret: pool.NewSecret("t"), Status: pool.StatusExhausted})
	}, pool.SeverityNotice, "key-exhausted", "/rotator/active/p/tired", "rotatorctl rotate p tired"},
	{"unreadable record", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Broken{Of: pool.BackupRef("p", "b1"), Err: errors.New("bad JSON")})
	}, pool.SeverityError, "record-unreadable", "/rotator/backup/p/b1", "etcdctl get /rotator/backup/p/b1"},
	{"foreign key", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Broken{Of: pool.Ref{Kind: "unknown", Name: "notes/to do"}, Err: errors.New("unknown kind")})
	}, pool.SeverityWarning, "foreign-key", `"/rotator/notes/to do"`, `etcdctl get "/rotator/notes/to do"`},
	{"newer records", func(r *adminRig, h handEditor) {
		b1, b2 := get[pool.Backup](r, pool.BackupRef("p", "b1")), get[pool.Backup](r, pool.BackupRef("p", "b2"))
		b1.Schema, b2.Schema = 2, 2
		h.Put(b1, b2)
	}, pool.SeverityWarning, "schema-newer", "/rotator/backup/p/b1", "rotatorctl replica list"},
	{"records without pool", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Slot{Pool: "lost", Name: "s"}, &pool.Fingerprint{Pool: "lost", HMAC: "feed", Key: "k"})
	}, pool.SeverityError, "pool-missing", "/rotator/pools/lost", "rotatorctl pool create lost"},
	{"claims without pool", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Fingerprint{Pool: "lost", HMAC: "feed", Key: "k"})
	}, pool.SeverityError, "pool-missing", "/rotator/pools/lost", "rotatorctl pool create lost"},
	{"secret in two pools", func(r *adminRig, _ handEditor) {
		r.must(errOf(r.rival.CreatePool(r.ctx, "q", pool.Spec{})))
		r.add("q", pool.HomeBackup, newKey("k1"))
	}, pool.SeverityNotice, "secret-shared", "/rotator/active/p/k1", "rotatorctl key list"},
	{"lock of a replica that is gone", func(r *adminRig, h handEditor) {
		h.Put(&pool.Lock{Life: get[pool.Active](r, pool.ActiveRef("p", "k1")).Life(), Holder: "dead"})
	}, pool.SeverityWarning, "ghost-lock", "/rotator/locks/p/k1", "etcdctl get /rotator/locks/p/k1"},
	{"lock of a life that is over", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Lock{Life: pool.Life{Pool: "p", Key: "k1", Generation: 1}, Holder: "r0"})
	}, pool.SeverityWarning, "ghost-lock", "/rotator/locks/p/k1", "etcdctl del /rotator/locks/p/k1"},
	{"no replica", func(_ *adminRig, h handEditor) {
		h.Drop(pool.ReplicaRef("r0"))
	}, pool.SeverityWarning, "no-replica", "/rotator/replicas", "rotatorctl replica list"},
	{"this replica without session", func(_ *adminRig, h handEditor) {
		h.Drop(pool.ReplicaRef("r0"))
		h.Put(&pool.Replica{Name: "other"})
	}, pool.SeverityWarning, "no-session", "/rotator/replicas/r0", "rotatorctl replica list"},
	{"rotated life in service", func(r *adminRig, h handEditor) {
		h.Put(&pool.Rotation{Life: get[pool.Active](r, pool.ActiveRef("p", "k1")).Life(), Slot: "k1", NewKey: "b9"})
	}, pool.SeverityError, "rotated-life", "/rotator/active/p/k1", "etcdctl snapshot save"},
	{"successor of another", func(r *adminRig, h handEditor) {
		a := get[pool.Active](r, pool.ActiveRef("p", "b3"))
		a.Replaces = "k2"
		h.Put(a)
	}, pool.SeverityError, "replaces", "/rotator/active/p/b3", "etcdctl snapshot save"},
	{"broken chain in a slot", func(_ *adminRig, h handEditor) {
		h.Put(&pool.Rotation{Life: pool.Life{Pool: "p", Key: "elsewhere", Generation: 2}, Slot: "k3", NewKey: "b9"})
	}, pool.SeverityError, "slot-history", "/rotator/rotations/p/elsewhere/2", "etcdctl snapshot save"},
	{"sealed with another keyset", func(r *adminRig, h handEditor) {
		b := get[pool.Backup](r, pool.BackupRef("p", "b1"))
		b.Sealed, _ = pooltest.FakeSealer{Keyset: "other"}.Seal("p", "b1", newKey("b1").Secret)
		h.Put(b)
	}, pool.SeverityError, "secret-unreadable", "/rotator/pools/p", "--keyset-file"},
}

func TestDiagnoseFinds(t *testing.T) {
	for _, flaw := range flaws {
		t.Run(flaw.name, func(t *testing.T) {
			r := newAdminRig(t).healthy()
			flaw.make(r, r.edit())
			before := r.digest()
			report, err := r.admin.Diagnose(r.ctx)
			r.must(err)
			found := slices.ContainsFunc(report.Findings, func(f pool.Finding) bool {
				return f.Severity == flaw.severity && f.Check == flaw.check && f.Subject == flaw.subject && f.Message != "" && strings.Contains(f.Remedy, flaw.remedy)
			})
			if !found {
				t.Errorf("want %s %s of %s with remedy %q; got %+v", flaw.severity, flaw.check, flaw.subject, flaw.remedy, report.Findings)
			}
			if flaw.severity != pool.SeverityError && len(report.Errors()) > 0 {
				t.Errorf("found errors besides: %+v", report.Errors())
			}
			if r.digest() != before {
				t.Error("the check has changed something")
			}
		})
	}
}

// TestDiagnoseUnreadableIsOneFinding: a record that cannot be read is not also reported as missing from all that refers
// to it.
func TestDiagnoseUnreadableIsOneFinding(t *testing.T) {
	for _, ref := range []pool.Ref{
		pool.PoolRef("p"), pool.ActiveRef("p", "k1"), pool.SlotRef("p", "k1"), pool.BackupRef("p", "b1"), pool.RetiredRef("p", "k3"),
		pool.BindingRef("p", "x"), pool.FingerprintRef("p", pooltest.FakeSealer{}.Fingerprint(newKey("k1").Secret)), pool.ReplicaRef("r0"),
	} {
		r := newAdminRig(t).healthy()
		r.edit().Put(&pool.Broken{Of: ref, Err: errors.New("bad JSON")})
		report, err := r.admin.Diagnose(r.ctx)
		r.must(err)
		if errs := report.Errors(); len(errs) != 1 || errs[0].Check != "record-unreadable" {
			t.Errorf("%+v: found %+v, want one record-unreadable", ref, errs)
		}
	}
}

// TestDiagnoseOrder: worst first, then by subject, the same each time.
func TestDiagnoseOrder(t *testing.T) {
	r := newAdminRig(t).fill()
	r.edit().Put(&pool.Slot{Pool: "p", Name: "empty-2"}, &pool.Slot{Pool: "p", Name: "empty-1"}, &pool.Binding{Pool: "p", Proxy: "n"})
	r.must(errOf(r.rival.DisableKey(r.ctx, "p", "k1", "")))
	first, err := r.admin.Diagnose(r.ctx)
	r.must(err)
	sorted := slices.IsSortedFunc(first.Findings, func(a, b pool.Finding) int {
		if a.Severity != b.Severity {
			return int(b.Severity - a.Severity)
		}
		return strings.Compare(a.Subject, b.Subject)
	})
	if !sorted || len(first.Findings) < 5 {
		t.Errorf("findings are not in order: %+v", first.Findings)
	}
	for range 5 {
		again, err := r.admin.Diagnose(r.ctx)
		r.must(err)
		if !slices.Equal(again.Findings, first.Findings) {
			t.Errorf("again: %+v, first: %+v", again.Findings, first.Findings)
		}
	}
}

func TestDiagnoseNamesThePrefix(t *testing.T) {
	r := newAdminRig(t).fill()
	admin := pool.NewAdmin(pool.AdminConfig{Store: r.store, Sealer: pooltest.FakeSealer{}, Prefix: "/other/"})
	report, err := admin.Diagnose(r.ctx)
	r.must(err)
	for _, f := range report.Findings {
		if !strings.HasPrefix(f.Subject, "/other/") {
			t.Errorf("subject %q, want it under the prefix", f.Subject)
		}
	}
}

// TestCheckLetsALifeComeBack: a key that was rotated out, restored, promoted and rotated again is a sound history.
func TestCheckLetsALifeComeBack(t *testing.T) {
	r := newAdminRig(t).fill()
	r.must(r.rotate("k1", "b1"))
	r.must(errOf(r.admin.RestoreKey(r.ctx, "p", "k1")))
	r.must(r.rotate("b1", "k1"))
	r.must(errOf(r.admin.RestoreKey(r.ctx, "p", "b1")))
	r.must(r.rotate("k1", "b1"))
	r.must(errOf(r.admin.RemoveKey(r.ctx, "p", "b1", true)))
	r.must(errOf(r.admin.RestoreKey(r.ctx, "p", "k1")))
	r.add("p", pool.HomeActive, pool.NewKey{ID: "anew", Secret: pool.NewSecret("a"), Slot: "s1"})
	r.must(r.rotate("anew", "k1"))
	r.sound("after it")
	if got := pool.Check(nil, time.Now()).Errors(); len(got) != 0 {
		t.Errorf("an empty store has errors: %+v", got)
	}
}
