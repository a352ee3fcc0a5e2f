package etcdstore

import (
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// rotationTxn has the shape of pool's: ten guards, three deletes, three puts and the event.
func rotationTxn() *pool.Txn {
	life := pool.Life{Pool: "pool-017", Key: "key-a0000017", Generation: 4711}
	now := time.Date(2026, 11, 26, 12, 0, 0, 123456789, time.UTC)
	sealed := pool.Sealed{Ciphertext: make([]byte, 80), Fingerprint: "0123456789abcdef0123456789abcdef", Preview: "sk-f...abcd"}
	labels := map[string]string{"team": "core"}
	v := pool.Version{Schema: pool.Schema}
	successor := &pool.Active{Version: v, Pool: life.Pool, Key: "key-b0000017", Slot: "slot-1", Status: pool.StatusHealthy, Sealed: sealed, Labels: labels, Replaces: life.Key, AddedAt: now}
	return &pool.Txn{
		If: []pool.Guard{
			pool.LifeIs(life), pool.Absent(pool.RotationRef(life)), pool.Unchanged(pool.BackupRef(life.Pool, successor.Key), 12),
			pool.Absent(successor.Ref()), pool.Absent(pool.RetiredRef(life.Pool, successor.Key)), pool.Absent(pool.RetiredRef(life.Pool, life.Key)),
			pool.Absent(pool.BackupRef(life.Pool, life.Key)), pool.Unchanged(pool.PoolRef(life.Pool), 3), pool.Absent(pool.PendingRef(life.Pool, life.Key)),
			pool.Unchanged(pool.LockRef(life.Pool, life.Key), 99),
		},
		Delete: []pool.Ref{pool.ActiveRef(life.Pool, life.Key), pool.BackupRef(life.Pool, successor.Key), pool.LockRef(life.Pool, life.Key)},
		Put: []pool.Record{
			successor,
			&pool.Retired{Version: v, Pool: life.Pool, Key: life.Key, Phase: pool.PhaseRetired, Slot: "slot-1", Generation: life.Generation, ReplacedBy: successor.Key, Sealed: sealed, Labels: labels, AddedAt: now, RetiredAt: now},
			&pool.Rotation{Version: v, Life: life, ID: "01890a5d-ac96-774b-bcce-b302099a8057", Slot: "slot-1", NewKey: successor.Key, Trigger: pool.TriggerProvider, Source: "bench", Reason: "401 from the upstream",
				RequestID: "01890a5d-ac96-774b-bcce-b302099a8058", Holder: "rotatord-1", CommittedAt: now},
		},
		Event: &pool.Event{ID: "01890a5d-ac96-774b-bcce-b302099a8059", Type: pool.EventKeyRotated, Pool: life.Pool, Subject: "keys/" + life.Key, Time: now, Trigger: pool.TriggerProvider, Source: "bench",
			Reason: "401 from the upstream", RequestID: "01890a5d-ac96-774b-bcce-b302099a8058", Key: life.Key, NewKey: successor.Key, Generation: life.Generation, Slot: "slot-1", RotationID: "01890a5d-ac96-774b-bcce-b302099a8057", Home: pool.HomeRetired},
	}
}

func BenchmarkRequest(b *testing.B) {
	s := New(nil, Options{Replica: "rotatord-1"})
	t := rotationTxn()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Request(t); err != nil {
			b.Fatal(err)
		}
	}
}
