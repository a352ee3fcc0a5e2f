// Package seed writes what a measurement needs into etcd, past rotatord but with its encoders: pools with their keys,
// and the records that raw transactions of a rotation's shape work on.
//
// Fingerprints are left out, so that rotatord doctor would complain: replicas do not keep them in memory, and no rotation
// looks at them.
package seed

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
)

// Layout is where everything is written.
var Layout = etcdstore.Layout{Prefix: etcdstore.DefaultPrefix}

// Pool says how many keys a pool shall have.
type Pool struct {
	Name           string
	Active, Backup int
}

// Pools are n pools with equal numbers of keys.
func Pools(n, active, backup int) []Pool {
	pools := make([]Pool, n)
	for i := range pools {
		pools[i] = Pool{PoolName(i), active, backup}
	}
	return pools
}

// PoolName is the name of the i-th pool. All names of a kind have one length, so that all transactions have one size.
func PoolName(i int) string { return fmt.Sprintf("pool-%03d", i) }

// SlotName is the name of the i-th slot of a pool, which holds its i-th active key at first.
func SlotName(i int) string { return fmt.Sprintf("slot-%07d", i) }

func activeKey(i int) string   { return fmt.Sprintf("key-a%07d", i) }
func backupKey(i int) string   { return fmt.Sprintf("key-b%07d", i) }
func secretOf(k string) string { return "sk-bench-0123456789abcdefghijklmnopqrstuv-" + k }

var labels = map[string]string{"account": "a-17", "team": "research"}

// Lives are the lives of the active keys of one pool, by number.
type Lives []pool.Life

// Fill writes pools with their keys, and returns the lives in the order of the pools.
func Fill(ctx context.Context, client *clientv3.Client, sealer pool.Sealer, pools []Pool) ([]Lives, error) {
	all := make([]Lives, len(pools))
	for i, p := range pools {
		all[i] = make(Lives, p.Active)
	}
	w := writer{client: client, sealer: sealer, now: time.Now()}
	err := w.each(ctx, len(pools), 1, func(i int) ([]pool.Record, error) { return []pool.Record{w.pool(pools[i].Name)}, nil }, ignore)
	if err != nil {
		return nil, err
	}
	for at, p := range pools {
		err := w.each(ctx, p.Active, 2, func(i int) ([]pool.Record, error) { return w.active(p.Name, i) }, func(i int, revision int64) {
			all[at][i] = pool.Life{Pool: p.Name, Key: activeKey(i), Generation: revision}
		})
		if err != nil {
			return nil, err
		}
		err = w.each(ctx, p.Backup, 1, func(i int) ([]pool.Record, error) { return w.backup(p.Name, backupKey(i)) }, ignore)
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

func ignore(int, int64) {}

// writer makes and writes records.
type writer struct {
	client *clientv3.Client
	sealer pool.Sealer
	now    time.Time
}

// pool has no bound: what is measured is how fast rotations are.
func (w *writer) pool(name string) *pool.Pool {
	return &pool.Pool{Name: name, Spec: pool.Spec{Description: "of a benchmark", Bound: pool.BoundSpec{Rotations: new(int)}}, CreatedAt: w.now}
}

func (w *writer) active(poolName string, i int) ([]pool.Record, error) {
	sealed, err := w.seal(poolName, activeKey(i))
	return []pool.Record{
		&pool.Slot{Pool: poolName, Name: SlotName(i), CreatedAt: w.now},
		&pool.Active{Pool: poolName, Key: activeKey(i), Slot: SlotName(i), Status: pool.StatusHealthy, Sealed: sealed, Labels: labels, AddedAt: w.now},
	}, err
}

func (w *writer) backup(poolName, key string) ([]pool.Record, error) {
	sealed, err := w.seal(poolName, key)
	return []pool.Record{&pool.Backup{Pool: poolName, Key: key, Sealed: sealed, Labels: labels, AddedAt: w.now}}, err
}

func (w *writer) seal(poolName, key string) (pool.Sealed, error) {
	return w.sealer.Seal(poolName, key, pool.NewSecret(secretOf(key)))
}

const (
	maxOps   = 126 // of one transaction; etcd takes 128
	parallel = 8
)

// each writes n items of several records each, many in one transaction. records makes those of the i-th; done is told the
// revision it has, from several goroutines.
func (w *writer) each(ctx context.Context, n, size int, records func(i int) ([]pool.Record, error), done func(i int, revision int64)) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(parallel)
	step := maxOps / size
	for from := 0; from < n && ctx.Err() == nil; from += step {
		to := min(from+step, n)
		work.Go(func() error {
			var puts []clientv3.Op
			for i := from; i < to; i++ {
				recs, err := records(i)
				if err != nil {
					return err
				}
				if puts, err = appendPuts(puts, recs); err != nil {
					return err
				}
			}
			resp, err := w.client.Txn(ctx).Then(puts...).Commit()
			if err != nil {
				return fmt.Errorf("writing records: %w", err)
			}
			for i := from; i < to; i++ {
				done(i, resp.Header.Revision)
			}
			return nil
		})
	}
	return work.Wait()
}

func appendPuts(puts []clientv3.Op, recs []pool.Record) ([]clientv3.Op, error) {
	for _, rec := range recs {
		value, err := etcdstore.EncodeRecord(rec, pool.Schema)
		if err != nil {
			return nil, err
		}
		var opts []clientv3.OpOption
		if lock, ok := rec.(*pool.Lock); ok {
			opts = append(opts, clientv3.WithLease(clientv3.LeaseID(lock.Lease)))
		}
		puts = append(puts, clientv3.OpPut(Layout.Key(rec.Ref()), value, opts...))
	}
	return puts, nil
}
