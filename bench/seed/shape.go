package seed

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Shape is how much a transaction changed, as etcd has it.
type Shape struct {
	Puts    int `json:"puts"`
	Deletes int `json:"deletes"`
	Bytes   int `json:"bytes"` // of keys and values
}

// String shows it in the report.
func (s Shape) String() string {
	return fmt.Sprintf("%d puts and %d deletes with %d bytes", s.Puts, s.Deletes, s.Bytes)
}

// Like reports whether two transactions do the same work: the numbers are equal, and the sizes within a twentieth.
func (s Shape) Like(other Shape) bool {
	d := s.Bytes - other.Bytes
	return s.Puts == other.Puts && s.Deletes == other.Deletes && 20*max(d, -d) <= s.Bytes
}

// Shape is that of the raw transactions.
func (r *Raw) Shape() (s Shape) {
	for _, op := range r.txn(0).ops {
		if s.Bytes += len(op.KeyBytes()) + len(op.ValueBytes()); op.IsPut() {
			s.Puts++
		} else {
			s.Deletes++
		}
	}
	return s
}

// ShapeAt is that of whatever made a revision.
func ShapeAt(ctx context.Context, client *clientv3.Client, revision int64) (s Shape, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range client.Watch(ctx, Layout.Prefix, clientv3.WithPrefix(), clientv3.WithRev(revision)) {
		if err := resp.Err(); err != nil {
			return s, err
		}
		for _, e := range resp.Events {
			if e.Kv.ModRevision != revision {
				continue
			}
			if s.Bytes += len(e.Kv.Key) + len(e.Kv.Value); e.IsCreate() || e.IsModify() {
				s.Puts++
			} else {
				s.Deletes++
			}
		}
		if resp.Header.Revision >= revision {
			return s, nil
		}
	}
	return s, ctx.Err()
}
