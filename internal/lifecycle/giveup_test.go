package lifecycle_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// TestGivenUpWhileUnderWay: a call to mint a key that may be under way when the key is given up is waited for when it is
// tried again. Before its time is over nobody can say what became of it.
func TestGivenUpWhileUnderWay(t *testing.T) {
	sealed, err := pooltest.FakeSealer{}.Seal("p", "m", pool.NewSecret("sk-fake-m"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		rec     func(*pool.Work) pool.Record
		givenUp pool.Phase
	}{
		{"minting", func(w *pool.Work) pool.Record {
			return &pool.Preparation{Pool: "p", Key: "m", Phase: pool.PhaseMinting, Sealed: sealed, Work: w}
		}, pool.PhaseFailed},
		{"cancelled while minting", func(w *pool.Work) pool.Record {
			return &pool.Retired{Pool: "p", Key: "m", Phase: pool.PhaseRevoking, Sealed: sealed, Work: w, RetiredAt: time.Now()}
		}, pool.PhaseOrphaned},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pool.Spec{}) // the provider was taken out of the spec
				r.byHand = true
				over := time.Now().Add(6 * time.Second)
				rec := tt.rec(&pool.Work{Generation: 1, Intent: "i", Attempts: 1, NotBefore: over})
				r.store.Put(rec)
				var looked time.Time
				r.upstream.lose = func(call, _ string) bool {
					if call == "find" && looked.IsZero() {
						looked = time.Now()
					}
					return false
				}
				r.start("r0", nil)
				info := func() pool.KeyInfo {
					st, err := r.store.Read(t.Context(), rec.Ref())
					if err != nil || !st.Has(rec.Ref()) {
						t.Fatal(st, err)
					}
					return st.Records[rec.Ref()].(interface{ Info() pool.KeyInfo }).Info()
				}
				r.until("given up", time.Second, func() bool { return info().Phase == tt.givenUp })
				if next := info().NextTryAt; !next.IsZero() {
					t.Errorf("what was given up is said to be tried at %v", next)
				}
				if _, _, err := r.admin.UpdatePool(t.Context(), "p", spec, 0); err != nil {
					t.Fatal(err)
				}
				if _, _, err := r.admin.RetryKey(t.Context(), "p", "m"); err != nil {
					t.Fatal(err)
				}
				r.until("looked for", time.Minute, func() bool { return r.upstream.count("find", "m") > 0 })
				if looked.Before(over) {
					t.Errorf("it was looked for %v before the first call was over", over.Sub(looked))
				}
			})
		})
	}
}
