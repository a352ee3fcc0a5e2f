package etcdstore

import (
	"testing"

	"github.com/rotatord/rotatord/internal/pool"
)

func TestLayoutKeys(t *testing.T) {
	l := Layout{"/rotator/"}
	life := pool.Life{Pool: "openhands", Key: "k-1", Generation: 120}
	for key, ref := range map[string]pool.Ref{
		"/rotator/pools/openhands":             pool.PoolRef("openhands"),
		"/rotator/slots/openhands/s1":          pool.SlotRef("openhands", "s1"),
		"/rotator/active/openhands/k-1":        pool.ActiveRef("openhands", "k-1"),
		"/rotator/backup/openhands/k-1":        pool.BackupRef("openhands", "k-1"),
		"/rotator/retired/openhands/k-1":       pool.RetiredRef("openhands", "k-1"),
		"/rotator/rotations/openhands/k-1/120": pool.RotationRef(life),
		"/rotator/pending/openhands/k-1":       pool.PendingRef("openhands", "k-1"),
		"/rotator/bindings/openhands/gw:1@a":   pool.BindingRef("openhands", "gw:1@a"),
		"/rotator/fingerprints/openhands/0f3a": pool.FingerprintRef("openhands", "0f3a"),
		"/rotator/events/openhands/01J":        pool.EventRef("openhands", "01J"),
		"/rotator/locks/openhands/k-1":         pool.LockRef("openhands", "k-1"),
		"/rotator/replicas/rotatord-0":         pool.ReplicaRef("rotatord-0"),
	} {
		if got := l.Key(ref); got != key {
			t.Errorf("Key(%+v) = %q, want %q", ref, got, key)
		}
		if got, ok := l.Parse(key); !ok || got != ref {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", key, got, ok, ref)
		}
	}
}

func TestLayoutRefusesForeignKeys(t *testing.T) {
	l := Layout{"/rotator/"}
	for _, key := range []string{
		"/rotator", "/rotator/", "/other/pools/p", "/rotator/pools", "/rotator/pools/", "/rotator/pools/a/b", "/rotator/active/p",
		"/rotator/active/p/", "/rotator/active//k", "/rotator/active/p/k/1", "/rotator/active/p/a key", "/rotator/active/p/-k",
		"/rotator/rotations/p/k", "/rotator/rotations/p/k/x", "/rotator/rotations/p/k/007", "/rotator/rotations/p/k/0",
		"/rotator/rotations/p/k/-1", "/rotator/rotations/p/k/99999999999999999999", "/rotator/leaders/spend/1", "/rotator/Active/p/k",
	} {
		if ref, ok := l.Parse(key); ok {
			t.Errorf("Parse(%q) = %+v, want it refused", key, ref)
		}
	}
}

func TestNewLayoutChecksThePrefix(t *testing.T) {
	for prefix, want := range map[string]string{"": "/rotator/", "/a/": "/a/", "/a/b/": "/a/b/", "a/": "", "/a": "", "/": ""} {
		l, err := NewLayout(prefix)
		if l.Prefix != want || (err == nil) != (want != "") {
			t.Errorf("NewLayout(%q) = %q, %v, want %q", prefix, l.Prefix, err, want)
		}
	}
}
