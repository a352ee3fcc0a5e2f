package election

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// renewals is a client's Lease whose KeepAlive asks for each renewal by itself. The client's own keeps one stream to
// one member for all leases: if that member hangs, or passes renewals on to a leader that hangs, nothing is renewed for
// up to twelve seconds, and sessions are lost although a quorum is well.
type renewals struct {
	clientv3.Lease
	granted time.Time // no later than the lease's beginning
	ttl     time.Duration
	attempt time.Duration // bounds each request
}

// KeepAlive implements clientv3.Lease for one lease. The channel closes when the lease is over: the server says so, it
// could not be renewed for as long as it lives, or ctx ended.
func (r *renewals) KeepAlive(ctx context.Context, id clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	renewed := make(chan *clientv3.LeaseKeepAliveResponse)
	go func() {
		defer close(renewed)
		for expires := r.granted.Add(r.ttl); ; {
			pause(ctx, r.ttl/3)
			sent, resp := r.renew(ctx, id, expires)
			if resp == nil {
				return
			}
			expires = sent.Add(r.ttl)
			select {
			case renewed <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	return renewed, nil
}

// renew renews the lease once, and says when it asked for that. It asks again and again until the lease has expired;
// each request may go to another member. nil: the lease is over.
func (r *renewals) renew(ctx context.Context, id clientv3.LeaseID, expires time.Time) (sent time.Time, resp *clientv3.LeaseKeepAliveResponse) {
	ctx, cancel := context.WithDeadline(ctx, expires)
	defer cancel()
	for bound := r.attempt / 3; ctx.Err() == nil; bound = min(2*bound, r.attempt) {
		sent = time.Now()
		attempt, stop := context.WithTimeout(ctx, bound)
		resp, err := r.KeepAliveOnce(attempt, id)
		stop()
		switch {
		case err == nil:
			return sent, resp
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return sent, nil
		}
		pause(ctx, 50*time.Millisecond)
	}
	return sent, nil
}
