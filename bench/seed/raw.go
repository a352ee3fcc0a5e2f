package seed

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
)

// What the callers of the figures say, and so what the raw transactions have on record.
const (
	Source = "bench"
	Reason = "401 from the upstream"
	Holder = "rotatord-1"
)

// ErrUsedUp says that a measurement needed more than was prepared for it.
var ErrUsedUp = errors.New("the prepared keys are used up")

// Raw is the limit of a rotation: its commit alone, as one etcd transaction with the same compares, operations and sizes
// of keys and values, each on a key of its own that was written before.
//
// The values are made once and are the same in all transactions: encoding is rotatord's work, not etcd's.
type Raw struct {
	pools []*pool.Pool
	// created is the revision of the records that belong to each transaction: the life of the key, the version of the
	// backup.
	created []int64
	values  rawValues
	lease   clientv3.LeaseID // of the locks, which are never written
	next    atomic.Int64
}

// rawValues are what a transaction puts; the lock is what it would put if a compare failed.
type rawValues struct{ successor, retired, rotation, event, lock string }

// PrepareRaw writes what n transactions need, spread over some pools.
func PrepareRaw(ctx context.Context, client *clientv3.Client, sealer pool.Sealer, pools, n int) (*Raw, error) {
	r := &Raw{pools: make([]*pool.Pool, pools), created: make([]int64, n)}
	w := writer{client: client, sealer: sealer, now: time.Now()}
	err := w.each(ctx, pools, 1, func(i int) ([]pool.Record, error) {
		r.pools[i] = w.pool(PoolName(i))
		return []pool.Record{r.pools[i]}, nil
	}, func(i int, revision int64) { r.pools[i].ModRevision = revision })
	if err != nil {
		return nil, err
	}
	lease, err := client.Grant(ctx, int64(time.Hour/time.Second))
	if err != nil {
		return nil, fmt.Errorf("making a lease for the locks: %w", err)
	}
	r.lease = lease.ID
	err = w.each(ctx, n, 2, func(i int) ([]pool.Record, error) { return w.raw(PoolName(i%pools), i) },
		func(i int, revision int64) { r.created[i] = revision })
	if err != nil {
		return nil, err
	}
	r.values, err = w.rawValues(r.life(0))
	return r, err
}

// raw are the records one transaction needs: the key in service and the backup.
func (w *writer) raw(poolName string, i int) ([]pool.Record, error) {
	active, err := w.active(poolName, i)
	if err != nil {
		return nil, err
	}
	backup, err := w.backup(poolName, backupKey(i))
	return []pool.Record{active[1], backup[0]}, err
}

// rawValues encodes what a rotation of a life would put.
func (w *writer) rawValues(l pool.Life) (v rawValues, err error) {
	sealed, err := w.seal(l.Pool, activeKey(0))
	if err != nil {
		return v, err
	}
	slot, now := SlotName(0), time.Now()
	rotation := &pool.Rotation{
		Life: l, ID: newID(), Slot: slot, NewKey: backupKey(0), Trigger: pool.TriggerProvider, Source: Source, Reason: Reason,
		RequestID: uuid.NewString(), Holder: Holder, CommittedAt: now,
	}
	for to, rec := range map[*string]pool.Record{
		&v.successor: &pool.Active{Pool: l.Pool, Key: backupKey(0), Slot: slot, Status: pool.StatusHealthy, Sealed: sealed, Labels: labels, Replaces: l.Key, AddedAt: w.now},
		&v.retired: &pool.Retired{Pool: l.Pool, Key: l.Key, Phase: pool.PhaseRetired, Slot: slot, Generation: l.Generation, ReplacedBy: backupKey(0),
			Sealed: sealed, Labels: labels, AddedAt: w.now, RetiredAt: now},
		&v.rotation: rotation,
		&v.lock:     &pool.Lock{Life: l, Holder: Holder, Campaign: uuid.NewString(), Stage: pool.StageRotate},
	} {
		if *to, err = etcdstore.EncodeRecord(rec, pool.Schema); err != nil {
			return v, err
		}
	}
	v.event, err = etcdstore.EncodeEvent(&pool.Event{
		ID: newID(), Type: pool.EventKeyRotated, Pool: l.Pool, Subject: "keys/" + l.Key, Time: now, Trigger: pool.TriggerProvider,
		Source: Source, Reason: Reason, RequestID: rotation.RequestID, Key: l.Key, NewKey: rotation.NewKey, Generation: l.Generation,
		Slot: slot, RotationID: rotation.ID, Home: pool.HomeRetired,
	}, "rotatord/"+Holder, pool.Schema)
	return v, err
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

func (r *Raw) life(i int) pool.Life {
	return pool.Life{Pool: r.pools[i%len(r.pools)].Name, Key: activeKey(i), Generation: r.created[i]}
}

// Commit makes the next transaction.
func (r *Raw) Commit(ctx context.Context, client *clientv3.Client) error {
	i := int(r.next.Add(1) - 1)
	if i >= len(r.created) {
		return ErrUsedUp
	}
	t := r.txn(i)
	resp, err := client.Txn(ctx).If(t.cmps...).Then(t.ops...).Else(t.gets...).Commit()
	if err != nil {
		return fmt.Errorf("raw transaction: %w", err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("raw transaction %d was refused: its compares do not hold", i)
	}
	return nil
}

// rawTxn is one transaction in etcd's terms.
type rawTxn struct {
	cmps      []clientv3.Cmp
	ops, gets []clientv3.Op
}

// txn follows pool.rotationTxn, etcdstore.Store.Request and election.Elector.CampaignWith line by line.
func (r *Raw) txn(i int) rawTxn {
	l, old, backup, p := r.life(i), activeKey(i), backupKey(i), r.pools[i%len(r.pools)]
	event := Layout.Key(pool.EventRef(l.Pool, newID()))
	guards := []pool.Guard{
		pool.Unchanged(pool.ActiveRef(l.Pool, old), r.created[i]),
		pool.Absent(pool.RotationRef(l)),
		pool.Unchanged(pool.BackupRef(l.Pool, backup), r.created[i]),
		pool.Absent(pool.ActiveRef(l.Pool, backup)),
		pool.Absent(pool.RetiredRef(l.Pool, backup)),
		pool.Absent(pool.RetiredRef(l.Pool, old)),
		pool.Absent(pool.BackupRef(l.Pool, old)),
		pool.Same(p),
		pool.Absent(pool.PendingRef(l.Pool, old)),
		pool.Absent(pool.LockRef(l.Pool, old)),
	}
	cmps := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(event), "=", 0)}
	gets := []clientv3.Op{clientv3.OpGet(event)}
	for _, g := range guards {
		cmps = append(cmps, compare(g))
		gets = append(gets, clientv3.OpGet(Layout.Key(g.Ref)))
	}
	lock := clientv3.OpPut(Layout.Key(pool.LockRef(l.Pool, old)), r.values.lock, clientv3.WithLease(r.lease))
	campaign := []clientv3.Cmp{compare(pool.Absent(pool.LockRef(l.Pool, old))), compare(pool.LifeIs(l)), compare(pool.Absent(pool.PendingRef(l.Pool, old)))}
	gets = append(gets, clientv3.OpTxn(campaign, []clientv3.Op{lock}, nil))
	return rawTxn{
		cmps: cmps,
		ops: []clientv3.Op{
			clientv3.OpDelete(Layout.Key(pool.ActiveRef(l.Pool, old))),
			clientv3.OpDelete(Layout.Key(pool.BackupRef(l.Pool, backup))),
			clientv3.OpPut(Layout.Key(pool.ActiveRef(l.Pool, backup)), r.values.successor),
			clientv3.OpPut(Layout.Key(pool.RetiredRef(l.Pool, old)), r.values.retired),
			clientv3.OpPut(Layout.Key(pool.RotationRef(l)), r.values.rotation),
			clientv3.OpPut(event, r.values.event),
		},
		gets: gets,
	}
}

func compare(g pool.Guard) clientv3.Cmp {
	key := Layout.Key(g.Ref)
	if g.Rule == pool.Created {
		return clientv3.Compare(clientv3.CreateRevision(key), "=", g.Revision)
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", g.Revision)
}
