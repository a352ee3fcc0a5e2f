package pool_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

func ptr[T any](v T) *T { return &v }

// TestAddKeysStoresWhatWasGiven adds one active key and one backup with everything they can have.
func TestAddKeysStoresWhatWasGiven(t *testing.T) {
	r := newAdminRig(t).fill()
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	full := pool.NewKey{ID: "n1", Secret: pool.NewSecret("s-1"), Slot: "main", Labels: map[string]string{"a": "b"},
		Status: pool.StatusRateLimited, StatusUntil: until, SpendUSD: ptr(1.5)}
	added, rev, err := r.admin.AddKeys(r.ctx, "p", pool.HomeActive, []pool.NewKey{full, newKey("n2")}, false)
	r.must(err)
	n1 := read[*pool.Active](r, pool.ActiveRef("p", "n1"))
	if n1.Slot != "main" || n1.Status != pool.StatusRateLimited || !n1.StatusUntil.Equal(until) || *n1.SpendUSD != 1.5 || n1.Labels["a"] != "b" || n1.AddedAt.IsZero() {
		t.Errorf("n1 is stored as %+v", n1)
	}
	if secret, err := (pooltest.FakeSealer{}).Open("p", "n1", n1.Sealed); err != nil || secret.Reveal() != "s-1" {
		t.Errorf("the secret of n1 does not open: %v", err)
	}
	n2 := read[*pool.Active](r, pool.ActiveRef("p", "n2"))
	if n2.Slot != "n2" || n2.Status != pool.StatusHealthy {
		t.Errorf("n2 is in slot %q with status %v, want slot n2, healthy", n2.Slot, n2.Status)
	}
	if added[0].Revision != n1.CreateRevision || added[1].Revision != n2.CreateRevision || rev != max(n1.CreateRevision, n2.CreateRevision) {
		t.Errorf("revisions %d, %d and %d; want %d, %d and the higher", added[0].Revision, added[1].Revision, rev, n1.CreateRevision, n2.CreateRevision)
	}
	r.add("p", pool.HomeBackup, pool.NewKey{ID: "n3", Secret: pool.NewSecret("s-3"), Labels: map[string]string{"c": "d"}})
	if n3 := read[*pool.Backup](r, pool.BackupRef("p", "n3")); n3.Labels["c"] != "d" || n3.AddedAt.IsZero() {
		t.Errorf("n3 is stored as %+v", n3)
	}
	r.sound("after it")
}

// TestAddKeysAnswers adds one key of each kind in one call, and again without changing anything.
func TestAddKeysAnswers(t *testing.T) {
	secret := func(id string) pool.Secret { return newKey(id).Secret }
	keys := []pool.NewKey{
		newKey("n1"),
		newKey("k1"),
		newKey("b1"),
		newKey("r1"),
		{ID: "k2", Secret: pool.NewSecret("other")},
		{ID: "b2", Secret: pool.NewSecret("other")},
		{ID: "n2", Secret: secret("k3")},
		{ID: "n3", Secret: secret("b2")},
		{ID: "n4", Secret: pool.NewSecret("n4"), Slot: "s1"},
		{ID: "n5"},
		{ID: "", Secret: pool.NewSecret("n6")},
		{ID: "n1", Secret: pool.NewSecret("n7")},
	}
	want := []pool.Added{
		{ID: "n1", Result: pool.AddResultAdded, Home: pool.HomeActive},
		{ID: "k1", Result: pool.AddResultSame, Home: pool.HomeActive, Message: "in service"},
		{ID: "b1", Result: pool.AddResultSame, Home: pool.HomeBackup, Message: "in stock"},
		{ID: "r1", Result: pool.AddResultSame, Home: pool.HomeRetired, Message: "retired"},
		{ID: "k2", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalIDTaken, Message: "another secret"},
		{ID: "b2", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalIDTaken, Message: "another secret"},
		{ID: "n2", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalSecretTaken, OtherKey: "k3", Message: `"k3", in service`},
		{ID: "n3", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalSecretTaken, OtherKey: "b2", Message: `"b2", in stock`},
		{ID: "n4", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalSlotTaken, Message: `slot "s1"`},
		{ID: "n5", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalInvalid, Message: "keys[9].secret is required"},
		{ID: "", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalInvalid, Message: "keys[10].id is required"},
		{ID: "n1", Result: pool.AddResultRefused, Refusal: pool.KeyRefusalInvalid, Message: "keys[11].id is the same as keys[0].id"},
	}
	for _, dryRun := range []bool{true, false} {
		r := newAdminRig(t).fill()
		before := r.digest()
		got, rev, err := r.admin.AddKeys(r.ctx, "p", pool.HomeActive, keys, dryRun)
		r.must(err)
		compareAdded(t, fmt.Sprintf("dry run %t", dryRun), got, want)
		if changed := r.digest() != before; changed == dryRun || (rev == 0) != dryRun {
			t.Errorf("dry run %t: changed %t, revision %d", dryRun, changed, rev)
		}
		r.sound("after it")
	}
}

// compareAdded compares answers; messages only have to contain what is wanted, and never a secret.
func compareAdded(t *testing.T, when string, got, want []pool.Added) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if !strings.Contains(g.Message, w.Message) || strings.Contains(g.Message, "secret-of") {
			t.Errorf("%s: %s: message %q, want %q in it", when, w.ID, g.Message, w.Message)
		}
		if (g.Revision != 0) != (w.Result == pool.AddResultAdded) && !strings.HasPrefix(when, "dry run true") {
			t.Errorf("%s: %s: revision %d with result %d", when, w.ID, g.Revision, g.Result)
		}
		g.Message, w.Message, g.Revision = "", "", 0
		if diff := cmp.Diff(w, g); diff != "" {
			t.Errorf("%s: key %d (-want +got):\n%s", when, i, diff)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d answers, want %d", when, len(got), len(want))
	}
}

// TestAddKeysInvalid: each broken rule is named with its field.
func TestAddKeysInvalid(t *testing.T) {
	r := newAdminRig(t).fill()
	soon := time.Now().Add(time.Hour)
	for field, k := range map[string]struct {
		home pool.Home
		key  pool.NewKey
	}{
		"id":           {pool.HomeActive, pool.NewKey{ID: "a b"}},
		"secret":       {pool.HomeActive, pool.NewKey{Secret: pool.NewSecret(" x ")}},
		"slot":         {pool.HomeActive, pool.NewKey{Slot: "a/b"}},
		"labels":       {pool.HomeActive, pool.NewKey{Labels: map[string]string{"": "x"}}},
		"status":       {pool.HomeActive, pool.NewKey{Status: 99}},
		"status_until": {pool.HomeActive, pool.NewKey{Status: pool.StatusRateLimited}},
		"spend_usd":    {pool.HomeActive, pool.NewKey{SpendUSD: ptr(math.NaN())}},
	} {
		wantInvalid(t, r, k.home, k.key, field)
	}
	wantInvalid(t, r, pool.HomeActive, pool.NewKey{Status: pool.StatusDisabled, StatusUntil: soon}, "status_until")
	wantInvalid(t, r, pool.HomeActive, pool.NewKey{StatusUntil: soon}, "status_until")
	wantInvalid(t, r, pool.HomeActive, pool.NewKey{SpendUSD: ptr(-1.0)}, "spend_usd")
	wantInvalid(t, r, pool.HomeBackup, pool.NewKey{Slot: "s9"}, "slot")
	wantInvalid(t, r, pool.HomeBackup, pool.NewKey{Status: pool.StatusHealthy}, "status")
	wantInvalid(t, r, pool.HomeBackup, pool.NewKey{StatusUntil: soon}, "status_until")
	wantInvalid(t, r, pool.HomeBackup, pool.NewKey{SpendUSD: ptr(0.0)}, "spend_usd")
}

func wantInvalid(t *testing.T, r *adminRig, home pool.Home, k pool.NewKey, field string) {
	t.Helper()
	if k.ID == "" {
		k.ID = "n9"
	}
	if k.Secret.IsZero() {
		k.Secret = pool.NewSecret("some-secret")
	}
	added, _, err := r.admin.AddKeys(r.ctx, "p", home, []pool.NewKey{k}, false)
	r.must(err)
	a := added[0]
	if a.Result != pool.AddResultRefused || a.Refusal != pool.KeyRefusalInvalid || !strings.HasPrefix(a.Message, "keys[0]."+field+" ") || strings.Contains(a.Message, ";") {
		t.Errorf("%+v for %v: got %+v, want one violation of keys[0].%s", k, home, a, field)
	}
}

// TestAddKeysMeetEachOther: of two entries of one call with one secret, or one slot, one is added and the other refused.
func TestAddKeysMeetEachOther(t *testing.T) {
	secret := pool.NewSecret("the-same")
	for name, tt := range map[string]struct {
		keys []pool.NewKey
		want pool.KeyRefusal
	}{
		"secret": {[]pool.NewKey{{ID: "n1", Secret: secret}, {ID: "n2", Secret: secret}, {ID: "n3", Secret: secret}}, pool.KeyRefusalSecretTaken},
		"slot": {[]pool.NewKey{{ID: "n1", Secret: pool.NewSecret("1"), Slot: "n"}, {ID: "n2", Secret: pool.NewSecret("2"), Slot: "n"},
			{ID: "n3", Secret: pool.NewSecret("3"), Slot: "n"}}, pool.KeyRefusalSlotTaken},
	} {
		for _, dryRun := range []bool{true, false} {
			r := newAdminRig(t).fill()
			added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeActive, tt.keys, dryRun)
			r.must(err)
			counts := make(map[pool.KeyRefusal]int)
			for _, a := range added {
				counts[a.Refusal]++
			}
			if counts[pool.KeyRefusalUnspecified] != 1 || counts[tt.want] != 2 {
				t.Errorf("%s, dry run %t: got %+v, want one added and two refused for %d", name, dryRun, added, tt.want)
			}
			r.sound("after it")
		}
	}
}

// TestAddKeysInBulk adds as many as one call may.
func TestAddKeysInBulk(t *testing.T) {
	r := newAdminRig(t)
	r.must(errOf(r.admin.CreatePool(r.ctx, "p", pool.Spec{})))
	r.byHand = true // do not check each of 1,000 revisions
	keys := make([]pool.NewKey, pool.MaxKeysPerAdd)
	for i := range keys {
		keys[i] = newKey(fmt.Sprintf("key-%04d", i))
	}
	added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, keys, false)
	r.must(err)
	for i, a := range added {
		if a.ID != keys[i].ID || a.Result != pool.AddResultAdded {
			t.Fatalf("answer %d is %+v, want %s added", i, a, keys[i].ID)
		}
	}
	r.sound("after it")
	added, rev, err := r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, keys, false)
	r.must(err)
	if i := slices.IndexFunc(added, func(a pool.Added) bool { return a.Result != pool.AddResultSame }); i >= 0 || rev != 0 {
		t.Errorf("again: revision %d, answer %d is not the same", rev, i)
	}
}

// TestAddKeysOneFails: a key whose write fails is answered for itself.
func TestAddKeysOneFails(t *testing.T) {
	for _, tt := range []struct {
		fault  pooltest.Fault
		result pool.AddResult
		why    pool.KeyRefusal
		then   pool.AddResult
	}{
		{pooltest.Fault{Err: pool.ErrNotApplied}, pool.AddResultRefused, pool.KeyRefusalNotApplied, pool.AddResultAdded},
		{pooltest.Fault{Err: pool.ErrOutcomeUnknown}, pool.AddResultUnknown, 0, pool.AddResultAdded},
		{pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: true}, pool.AddResultUnknown, 0, pool.AddResultSame},
		{pooltest.Fault{Err: errors.New("disk on fire"), Made: false}, pool.AddResultRefused, pool.KeyRefusalNotApplied, pool.AddResultAdded},
	} {
		inTime(t, func(t *testing.T) {
			r := newAdminRig(t).fill()
			r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
				if c.Txn != nil && c.Txn.Event.Key == "n2" {
					return tt.fault
				}
				return f
			}
			ctx, cancel := context.WithTimeout(r.ctx, time.Second)
			defer cancel()
			added, _, err := r.admin.AddKeys(ctx, "p", pool.HomeBackup, newKeys("n1", "n2", "n3"), false)
			r.must(err)
			if a := added[1]; a.Result != tt.result || a.Refusal != tt.why || a.Message == "" {
				t.Errorf("%v: got %+v, want result %d for %d", tt.fault.Err, a, tt.result, tt.why)
			}
			if added[0].Result != pool.AddResultAdded || added[2].Result != pool.AddResultAdded {
				t.Errorf("%v: the others are %+v and %+v, want them added", tt.fault.Err, added[0], added[2])
			}
			again, _, err := r.rival.AddKeys(r.ctx, "p", pool.HomeBackup, newKeys("n2"), false)
			r.must(err)
			if again[0].Result != tt.then {
				t.Errorf("%v: added again: %+v, want %d", tt.fault.Err, again[0], tt.then)
			}
		})
	}
}

// TestAddKeysPoolGoesAway: what was not added because the pool went says so.
func TestAddKeysPoolGoesAway(t *testing.T) {
	r := newAdminRig(t).fill()
	r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
		if c.N == 2 {
			f.Before = func() { r.must(second(r.rival.DeletePool(r.ctx, "p", true))) }
		}
		return f
	}
	added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, newKeys("n1"), false)
	r.must(err)
	if a := added[0]; a.Refusal != pool.KeyRefusalNotApplied || !strings.Contains(a.Message, "does not exist") {
		t.Errorf("got %+v, want it not applied because the pool does not exist", a)
	}
	r.sound("after it")
}

// TestAddKeysClaims: a claim without its key, which only a hand edit makes, still counts; one whose key goes just then
// does not.
func TestAddKeysClaims(t *testing.T) {
	t.Run("orphan", func(t *testing.T) {
		r := newAdminRig(t).fill()
		hmac := pooltest.FakeSealer{}.Fingerprint(newKey("n1").Secret)
		r.edit().Put(&pool.Fingerprint{Pool: "p", HMAC: hmac, Key: "ghost"})
		added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, newKeys("n1"), false)
		r.must(err)
		if a := added[0]; a.Refusal != pool.KeyRefusalSecretTaken || a.OtherKey != "ghost" || !strings.Contains(a.Message, "rotatorctl doctor") {
			t.Errorf("got %+v, want the secret taken by ghost, and doctor named", a)
		}
	})
	t.Run("going", func(t *testing.T) {
		r := newAdminRig(t).fill()
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.N == 3 { // pool, what decides, then the other key
				f.Before = func() { r.must(errOf(r.rival.RemoveKey(r.ctx, "p", "b1", false))) }
			}
			return f
		}
		key := pool.NewKey{ID: "n1", Secret: newKey("b1").Secret}
		added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, []pool.NewKey{key}, false)
		r.must(err)
		if added[0].Result != pool.AddResultAdded {
			t.Errorf("got %+v, want it added, since b1 is gone", added[0])
		}
		r.sound("after it")
	})
}

// TestOneHomeUnderRace adds one id to both homes with two secrets, and one secret under two ids, from many callers at
// once: one of them wins.
func TestOneHomeUnderRace(t *testing.T) {
	r := newAdminRig(t).fill()
	for round := range 20 {
		id := fmt.Sprint("race", round)
		variants := []pool.NewKey{
			{ID: id, Secret: pool.NewSecret(id + "-1")}, {ID: id, Secret: pool.NewSecret(id + "-2")},
			{ID: id + "-b", Secret: pool.NewSecret(id + "-1")}, {ID: id + "-c", Secret: pool.NewSecret(id + "-2")},
		}
		var wg sync.WaitGroup
		for i, k := range variants {
			for _, home := range []pool.Home{pool.HomeActive, pool.HomeBackup} {
				wg.Go(func() {
					if _, _, err := r.rival.AddKeys(r.ctx, "p", home, []pool.NewKey{k}, false); err != nil {
						t.Errorf("variant %d: %v", i, err)
					}
				})
			}
		}
		wg.Wait()
	}
	r.sound("after it")
}

func TestRestoreKey(t *testing.T) {
	r := newAdminRig(t).fill()
	r.add("p", pool.HomeBackup, pool.NewKey{ID: "old", Secret: pool.NewSecret("old"), Labels: map[string]string{"team": "a"}})
	added := read[*pool.Backup](r, pool.BackupRef("p", "old")).AddedAt
	r.must(r.rotate("k1", "old"))
	r.must(r.rotate("old", "b1"))
	b, rev, err := r.admin.RestoreKey(r.ctx, "p", "old")
	r.must(err)
	if b.Labels["team"] != "a" || !b.AddedAt.Equal(added) || b.CreateRevision != rev || b.ModRevision != rev {
		t.Errorf("restored as %+v at %d, want its labels, time %v and that revision", b, rev, added)
	}
	if r.has(pool.RetiredRef("p", "old")) || !r.has(pool.BackupRef("p", "old")) {
		t.Error("the key is not in stock alone")
	}
	r.must(r.rotate("b1", "old")) // and it serves again
	r.sound("after it")
}

func TestRestoreKeyRefusals(t *testing.T) {
	r := newAdminRig(t).fill()
	purged := *read[*pool.Retired](r, pool.RetiredRef("p", "r1"))
	purged.Key, purged.Sealed.Ciphertext = "purged", nil
	revoking := *read[*pool.Retired](r, pool.RetiredRef("p", "r1"))
	revoking.Key, revoking.Phase = "revoking", pool.PhaseRetired+1
	newer := *read[*pool.Retired](r, pool.RetiredRef("p", "r1"))
	newer.Key, newer.Schema = "newer", pool.Schema+1
	broken := &pool.Broken{Of: pool.RetiredRef("p", "broken"), Err: errors.New("bad JSON")}
	r.edit().Put(&purged, &revoking, &newer, broken)
	for key, want := range map[string]pool.Reason{
		"nobody": pool.ReasonKeyNotFound, "k1": pool.ReasonKeyWrongHome, "b1": pool.ReasonKeyWrongHome, "purged": pool.ReasonKeyNotRestorable,
		"revoking": pool.ReasonKeyNotRestorable, "newer": pool.ReasonSchemaTooNew, "broken": pool.ReasonRecordUnreadable,
	} {
		if _, _, err := r.admin.RestoreKey(r.ctx, "p", key); pool.ReasonOf(err) != want {
			t.Errorf("%s: got %v, want %s", key, err, want)
		}
	}
}

// TestEnableAndDisable walks a key through its statuses.
func TestEnableAndDisable(t *testing.T) {
	r := newAdminRig(t).fill()
	r.add("p", pool.HomeActive, pool.NewKey{ID: "cool", Secret: pool.NewSecret("c"), Status: pool.StatusError, StatusUntil: time.Now().Add(time.Hour)})
	life := read[*pool.Active](r, pool.ActiveRef("p", "cool")).Life()
	for _, step := range []struct {
		name string
		do   func(context.Context, string, string, string) (*pool.Active, int64, error)
		want pool.Status
	}{
		{"enable cooling", r.admin.EnableKey, pool.StatusHealthy}, {"disable", r.admin.DisableKey, pool.StatusDisabled}, {"enable", r.admin.EnableKey, pool.StatusHealthy},
	} {
		a, rev, err := step.do(r.ctx, "p", "cool", "because")
		r.must(err)
		stored := read[*pool.Active](r, pool.ActiveRef("p", "cool"))
		if diff := cmp.Diff(stored, a); diff != "" {
			t.Errorf("%s: the answer is not what is stored (-stored +answer):\n%s", step.name, diff)
		}
		if a.Status != step.want || !a.StatusUntil.IsZero() || a.ModRevision != rev || a.Life() != life {
			t.Errorf("%s: got %+v at %d, want %v in the same life", step.name, a, rev, step.want)
		}
		if _, same, err := step.do(r.ctx, "p", "cool", "because"); err != nil || same != rev {
			t.Errorf("%s again: revision %d, %v; want %d without a write", step.name, same, err, rev)
		}
	}
	for key, want := range map[string]pool.Reason{"nobody": pool.ReasonKeyNotFound, "b1": pool.ReasonKeyWrongHome, "r1": pool.ReasonKeyWrongHome} {
		if _, _, err := r.admin.DisableKey(r.ctx, "p", key, ""); pool.ReasonOf(err) != want {
			t.Errorf("%s: got %v, want %s", key, err, want)
		}
	}
}

// TestReasonsOfStatusesAreScrubbed: an operator may paste what an upstream said, with the key in it.
func TestReasonsOfStatusesAreScrubbed(t *testing.T) {
	r := newAdminRig(t).fill()
	l, ok := r.store.(eventLister)
	if !ok {
		t.Skip("this store does not list its events")
	}
	r.admin.Scrub = func(text string) string { return strings.ReplaceAll(text, "the secret", "[redacted]") }
	for _, set := range []func(context.Context, string, string, string) (*pool.Active, int64, error){r.admin.DisableKey, r.admin.EnableKey} {
		r.must(errOf(set(r.ctx, "p", "k1", "no: the secret")))
		events := l.Events()
		if last := events[len(events)-1]; last.Reason != "no: [redacted]" {
			t.Errorf("%s has the reason %q, want it without the secret", last.Type, last.Reason)
		}
	}
}

// TestStatusCancelsWhatWaits: enabling, disabling and removing end a rotation that waits for stock.
func TestStatusCancelsWhatWaits(t *testing.T) {
	for name, do := range map[string]func(*adminRig) error{
		"enable":  func(r *adminRig) error { return errOf(r.admin.EnableKey(r.ctx, "p", "k3", "")) },
		"disable": func(r *adminRig) error { return errOf(r.admin.DisableKey(r.ctx, "p", "k3", "")) },
		"remove":  func(r *adminRig) error { return errOf(r.admin.RemoveKey(r.ctx, "p", "k3", false)) },
	} {
		r := newAdminRig(t).fill()
		r.must(do(r))
		if r.has(pool.PendingRef("p", "k3")) {
			t.Errorf("%s: the rotation still waits", name)
		}
		r.sound(name)
	}
}

// TestDisableVoidsTheHolder: a rotation that was decided before a disable, enable or removal was acknowledged cannot be
// committed after it, although its life goes on.
func TestDisableVoidsTheHolder(t *testing.T) {
	for name, do := range map[string]func(*adminRig) error{
		"disable": func(r *adminRig) error { return errOf(r.admin.DisableKey(r.ctx, "p", "k1", "")) },
		"enable": func(r *adminRig) error {
			r.must(errOf(r.rival.DisableKey(r.ctx, "p", "k1", "")))
			r.lock("k1")
			return errOf(r.admin.EnableKey(r.ctx, "p", "k1", ""))
		},
		"remove": func(r *adminRig) error { return errOf(r.admin.RemoveKey(r.ctx, "p", "k1", true)) },
		"pause":  func(r *adminRig) error { return errOf(r.admin.PausePool(r.ctx, "p")) },
		"delete": func(r *adminRig) error { return second(r.admin.DeletePool(r.ctx, "p", true)) },
	} {
		r := newAdminRig(t).fill()
		r.lock("k1")
		stalled, err := r.rotation("k1", "b1")
		r.must(err)
		r.must(do(r))
		if err := r.applied(stalled); !errors.Is(err, pool.ErrConflict) {
			t.Errorf("%s: the stalled holder's commit: got %v, want it void", name, err)
		}
		if name != "pause" && r.has(pool.LockRef("p", "k1")) {
			t.Errorf("%s: the lock is still there", name)
		}
		r.sound(name)
	}
}

// TestStatusAgainstTheRotation: a status that was decided before a rotation does not bring the old key back.
func TestStatusAgainstTheRotation(t *testing.T) {
	r := newAdminRig(t).fill()
	r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
		if c.Op == "Apply" {
			f.Before = sync.OnceFunc(func() { r.must(r.rotate("k1", "b1")) })
		}
		return f
	}
	if _, _, err := r.admin.DisableKey(r.ctx, "p", "k1", ""); pool.ReasonOf(err) != pool.ReasonKeyWrongHome {
		t.Errorf("got %v, want the key not to be in service any more", err)
	}
	if r.has(pool.ActiveRef("p", "k1")) {
		t.Error("the old key is back in service")
	}
	if a := read[*pool.Active](r, pool.ActiveRef("p", "b1")); a.Status != pool.StatusHealthy {
		t.Errorf("its successor is %v, want it untouched", a.Status)
	}
	r.sound("after it")
}

// TestNewerRecordsAreNotRewritten: an old replica leaves what a newer one wrote, and says why.
func TestNewerRecordsAreNotRewritten(t *testing.T) {
	r := newAdminRig(t).fill()
	active, p := *read[*pool.Active](r, pool.ActiveRef("p", "k1")), *read[*pool.Pool](r, pool.PoolRef("q"))
	slot, binding := *read[*pool.Slot](r, pool.SlotRef("p", "s2")), *read[*pool.Binding](r, pool.BindingRef("p", "x"))
	active.Schema, p.Schema, slot.Schema, binding.Schema = 2, 2, 2, 2
	r.edit().Put(&active, &p, &slot, &binding)
	before := r.digest()
	for name, err := range map[string]error{
		"disable":     errOf(r.admin.DisableKey(r.ctx, "p", "k1", "")),
		"update pool": errOf(r.admin.UpdatePool(r.ctx, "q", pool.Spec{}, 0)),
		"pause pool":  errOf(r.admin.PausePool(r.ctx, "q")),
		"delete pool": second(r.admin.DeletePool(r.ctx, "q", false)),
		"remove key":  errOf(r.admin.RemoveKey(r.ctx, "p", "k2", true)),
		"bind anew":   errOf(r.admin.SetBinding(r.ctx, "p", "x", priorities("s3"))),
	} {
		if pool.ReasonOf(err) != pool.ReasonSchemaTooNew {
			t.Errorf("%s: got %v, want %s", name, err, pool.ReasonSchemaTooNew)
		}
	}
	if after := r.digest(); after != before {
		t.Errorf("the state was\n%s\nand is\n%s", before, after)
	}
}

// TestUnreadableRecordsAreNotDecidedFrom: what cannot be read blocks, and is not taken for absent.
func TestUnreadableRecordsAreNotDecidedFrom(t *testing.T) {
	r := newAdminRig(t).fill()
	bad := func(ref pool.Ref) *pool.Broken { return &pool.Broken{Of: ref, Err: errors.New("bad JSON")} }
	r.edit().Put(bad(pool.ActiveRef("p", "bad")), bad(pool.SlotRef("p", "badslot")), bad(pool.BindingRef("p", "badproxy")))
	for name, err := range map[string]error{
		"disable":       errOf(r.admin.DisableKey(r.ctx, "p", "bad", "")),
		"remove":        errOf(r.admin.RemoveKey(r.ctx, "p", "bad", true)),
		"bind slot":     errOf(r.admin.SetBinding(r.ctx, "p", "z", priorities("badslot"))),
		"bind proxy":    errOf(r.admin.SetBinding(r.ctx, "p", "badproxy", priorities("s1"))),
		"remove beside": errOf(r.admin.RemoveKey(r.ctx, "p", "k3", false)),
	} {
		if pool.ReasonOf(err) != pool.ReasonRecordUnreadable {
			t.Errorf("%s: got %v, want %s", name, err, pool.ReasonRecordUnreadable)
		}
	}
	keys := []pool.NewKey{newKey("bad"), {ID: "n1", Secret: pool.NewSecret("n1"), Slot: "badslot"}}
	added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeActive, keys, false)
	r.must(err)
	if got := byID(added); got["bad"].Refusal != pool.KeyRefusalIDTaken || got["n1"].Refusal != pool.KeyRefusalSlotTaken {
		t.Errorf("added: %+v, want the id and the slot taken", added)
	}
	if err := second(r.admin.RemoveBinding(r.ctx, "p", "badproxy")); err != nil {
		t.Errorf("removing the binding that cannot be read: %v", err)
	}
	if err := errOf(r.admin.RemoveKey(r.ctx, "p", "k3", false)); err != nil {
		t.Errorf("removing the key after that: %v", err)
	}
}

// TestPurgedKeyGivesNoClaimUp: removing a retired key whose secret is gone leaves the claim of whoever has that secret
// by now.
func TestPurgedKeyGivesNoClaimUp(t *testing.T) {
	r := newAdminRig(t).fill()
	purged := *read[*pool.Retired](r, pool.RetiredRef("p", "r1"))
	purged.Sealed.Ciphertext = nil
	r.edit().Put(&purged)
	r.edit().Drop(pool.FingerprintRef("p", purged.Sealed.Fingerprint))
	r.add("p", pool.HomeBackup, pool.NewKey{ID: "heir", Secret: newKey("r1").Secret})
	if err := errOf(r.admin.RemoveKey(r.ctx, "p", "r1", false)); err != nil {
		t.Fatal(err)
	}
	if fp := read[*pool.Fingerprint](r, pool.FingerprintRef("p", purged.Sealed.Fingerprint)); fp == nil || fp.Key != "heir" {
		t.Errorf("the claim is %+v, want heir's", fp)
	}
	r.sound("after it")
}

func TestNoSecretInErrorsOrEvents(t *testing.T) {
	r := newAdminRig(t).fill()
	l, ok := r.store.(eventLister)
	if !ok {
		t.Skip("this store does not list events")
	}
	const canary = "canary-0123456789"
	added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, []pool.NewKey{
		{ID: "n1", Secret: pool.NewSecret(canary)}, {ID: "n2", Secret: pool.NewSecret(canary)}, {ID: "k1", Secret: pool.NewSecret(canary + "x")},
		{ID: "n4", Secret: pool.NewSecret(canary + " ")}, {ID: uuid.NewString(), Secret: pool.NewSecret(canary + "y"), Slot: "s"},
	}, false)
	r.must(err)
	if text := fmt.Sprintf("%+v %+v", added, l.Events()); strings.Contains(text, canary) {
		t.Errorf("the secret is in %s", text)
	}
}
