package lifecycle_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// moveUpstream gives the pool another provider.
func (r *rig) moveUpstream() {
	r.t.Helper()
	time.Sleep(time.Minute)
	moved := spec
	moved.Provider = &pool.ProviderSpec{Exec: &pool.ExecProvider{Name: "other"}}
	if _, _, err := r.admin.UpdatePool(r.t.Context(), "p", moved, 0); err != nil {
		r.t.Fatal(err)
	}
}

// leftElsewhere: the key is listed as one that was made elsewhere, nobody was asked about it, and its secret is there.
func (r *rig) leftElsewhere(key string) bool {
	old := r.retired(key)
	return old.Phase == pool.PhaseOrphaned && strings.Contains(old.Work.Problem, "upstream was changed") && !old.Sealed.IsZero() &&
		r.upstream.count("find", key)+r.upstream.count("revoke", key) == 0
}

func (r *rig) retry(key string) {
	r.t.Helper()
	if _, _, err := r.admin.RetryKey(r.t.Context(), "p", key); err != nil {
		r.t.Fatal(err)
	}
}

// TestUpstreamChanged: a key that was added before the pool's upstream was changed is not asked about at the new one, which
// would say that it is not there, until an operator says that it may be.
func TestUpstreamChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, spec)
		r.retire("old", "new")
		r.moveUpstream()
		r.retire("late", "later")
		r.start("r0", nil)
		r.until("revoked", 2*pool.DefaultRevokeAfter, func() bool { return r.upstream.count("revoke", "late") == 1 })
		time.Sleep(2 * pool.DefaultSecretRetention)
		if !r.leftElsewhere("old") {
			t.Errorf("a key that was made elsewhere: %s", r.dump())
		}
		r.retry("old")
		r.until("revoked", time.Minute, func() bool { return r.upstream.count("revoke", "old") == 1 })
		if n := r.events("keys/old")[pool.EventKeyOrphaned]; n != 1 {
			t.Errorf("it was told %d times that the key is orphaned, want once", n)
		}
	})
}

// TestUpstreamChangedWhileRevoking: the same for a key whose revocation has begun.
func TestUpstreamChangedWhileRevoking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, spec)
		r.retire("old", "new")
		r.upstream.refuse = errLost
		r.start("r0", nil)
		r.until("revoking", 2*pool.DefaultRevokeAfter, func() bool { return r.retired("old").Phase == pool.PhaseRevoking })
		r.moveUpstream()
		r.upstream.set(func() { r.upstream.refuse = nil })
		r.until("given up", time.Minute, func() bool { return r.leftElsewhere("old") })
	})
}

// TestUpstreamChangedAfterOrphan: who retries a key that was given up for another reason has said nothing yet about the
// upstream that the pool has since then.
func TestUpstreamChangedAfterOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, spec)
		r.retire("old", "new")
		r.upstream.refuse = errLost
		r.start("r0", nil)
		r.until("orphaned", 4*time.Hour, func() bool { return r.retired("old").Phase == pool.PhaseOrphaned })
		r.upstream.set(func() { r.upstream.refuse = nil })
		r.moveUpstream()
		r.retry("old")
		r.until("given up again", time.Minute, func() bool { return r.leftElsewhere("old") })
		r.retry("old")
		r.until("revoked", time.Minute, func() bool { return r.upstream.count("revoke", "old") == 1 })
	})
}

// TestUpstreamChangedWhilePreparing: a key that the former upstream may have made is listed as one of that, whatever the
// answers of then and the upstream of now say.
func TestUpstreamChangedWhilePreparing(t *testing.T) {
	for name, tt := range map[string]struct {
		refuse error
		lose   string // the call whose answers are lost
		phase  pool.Phase
	}{
		"minting":   {refuse: errLost, phase: pool.PhaseMinting},
		"verifying": {lose: "verify", phase: pool.PhaseVerifying},
		"given up":  {refuse: errLost, phase: pool.PhaseFailed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withStock(1, 1))
				r.upstream.refuse, r.upstream.lose = tt.refuse, func(call, _ string) bool { return call == tt.lose }
				r.start("r0", nil)
				var key string
				r.until("there", 2*time.Hour, func() bool {
					preps := records[*pool.Preparation](r, pool.KindPreparation)
					if len(preps) != 1 || preps[0].Phase != tt.phase {
						return false
					}
					key = preps[0].Key
					return true
				})
				r.moveUpstream()
				r.upstream.set(func() { r.upstream.refuse, r.upstream.lose = nil, nil })
				if tt.phase == pool.PhaseFailed {
					r.retry(key)
				}
				r.until("listed", 20*time.Minute, func() bool { return r.retired(key) != nil && r.leftElsewhere(key) })
				if n := r.upstream.count("mint", key); tt.refuse != nil && n != 0 {
					t.Errorf("the new upstream was asked to mint it %d times", n)
				}
			})
		})
	}
}
