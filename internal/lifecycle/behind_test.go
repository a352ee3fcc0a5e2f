package lifecycle_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
)

// TestNotRevokedFromAnOldMirror: that no other pool has a key's secret is not told from a mirror that is behind the store.
func TestNotRevokedFromAnOldMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, spec)
		r.retire("old", "new")
		old := pool.NewMirror()
		catchUp := func() {
			recs, revision, err := r.store.ReadAll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			old.Load(recs, revision, time.Now())
		}
		catchUp()
		r.byHand = true
		twin := &pool.Backup{Pool: "q", Key: "b", Sealed: r.retired("old").Sealed}
		r.store.Put(&pool.Pool{Name: "q"}, twin)
		r.start("r0", func(cfg *lifecycle.Config) { cfg.Mirror = old })
		for _, when := range []string{"the mirror is behind", "it has caught up and another pool has the secret"} {
			time.Sleep(2 * pool.DefaultRevokeAfter)
			if phase := r.retired("old").Phase; phase != pool.PhaseRetired || r.upstream.count("revoke", "") != 0 {
				t.Fatalf("%s: the key is %s", when, phase)
			}
			catchUp()
		}
		r.store.Drop(twin.Ref())
		catchUp()
		r.until("revoked", time.Minute, func() bool { return r.upstream.count("revoke", "old") == 1 })
	})
}
