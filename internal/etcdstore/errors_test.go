package etcdstore

import (
	"context"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

func TestWhatTheErrorOfAWriteMeans(t *testing.T) {
	const notApplied, unknown, final = "not applied", "unknown", "final"
	for _, c := range []struct {
		err  error
		want string
	}{
		{rpctypes.ErrGRPCTooManyOps, final},
		{rpctypes.ErrGRPCDuplicateKey, final},
		{rpctypes.ErrGRPCEmptyKey, final},
		{rpctypes.ErrGRPCRequestTooLarge, final},
		{rpctypes.ErrGRPCPermissionDenied, final},
		{rpctypes.ErrGRPCAuthFailed, final},
		{rpctypes.ErrGRPCInvalidAuthToken, notApplied},
		{rpctypes.ErrGRPCAuthOldRevision, notApplied},
		{rpctypes.ErrGRPCUserEmpty, notApplied},
		{rpctypes.ErrGRPCRequestTooManyRequests, notApplied},
		{status.Error(codes.Unknown, "etcdserver: too many requests"), notApplied}, // as the server does send it
		{rpctypes.ErrGRPCNoLeader, notApplied},
		{rpctypes.ErrNoLeader, notApplied},
		{rpctypes.ErrGRPCNoSpace, unknown},
		{rpctypes.ErrGRPCLeaderChanged, unknown},
		{rpctypes.ErrGRPCNotLeader, unknown},
		{rpctypes.ErrGRPCStopped, unknown},
		{rpctypes.ErrGRPCTimeout, unknown},
		{rpctypes.ErrGRPCTimeoutDueToLeaderFail, unknown},
		{rpctypes.ErrGRPCTimeoutDueToConnectionLost, unknown},
		{rpctypes.ErrGRPCTimeoutWaitAppliedIndex, unknown},
		{rpctypes.ErrGRPCUnhealthy, unknown},
		{rpctypes.ErrGRPCCorrupt, unknown},
		{rpctypes.ErrGRPCCanceled, unknown},
		{rpctypes.ErrGRPCDeadlineExceeded, unknown},
		{rpctypes.ErrGRPCLeaseNotFound, unknown},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), unknown},
		{status.Error(codes.Canceled, "context canceled"), unknown},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max"), unknown},
		{status.Error(codes.Internal, "stream terminated by RST_STREAM"), unknown},
		{status.Error(codes.Unavailable, "no leader"), unknown}, // not etcd's words
		{context.DeadlineExceeded, unknown},
		{context.Canceled, unknown},
		{errors.New("something new"), unknown},
	} {
		for _, surelyNotSent := range []bool{false, true} {
			want := c.want
			if surelyNotSent && want == unknown {
				want = notApplied
			}
			err := c.err
			if surelyNotSent {
				err = &etcdwire.NotSentError{Err: rpctypes.Error(err)}
			}
			if got := meaning(writeError(err)); got != want {
				t.Errorf("writeError(%v, surelyNotSent=%v) means %s, want %s", c.err, surelyNotSent, got, want)
			}
		}
	}
}

func meaning(err error) string {
	switch {
	case errors.Is(err, pool.ErrOutcomeUnknown):
		return "unknown"
	case errors.Is(err, pool.ErrNotApplied):
		return "not applied"
	case pool.ReasonOf(err) == "":
		return "final"
	}
	return err.Error()
}

func TestErrorsKeepTheirCause(t *testing.T) {
	if err := writeError(rpctypes.ErrGRPCNoSpace); !IsNoSpace(err) {
		t.Errorf("IsNoSpace(%v) = false, want true", err)
	}
	if err := writeError(rpctypes.ErrGRPCTimeout); IsNoSpace(err) {
		t.Errorf("IsNoSpace(%v) = true, want false", err)
	}
	if err := writeError(rpctypes.ErrGRPCPermissionDenied); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("%v does not lead to rpctypes.ErrPermissionDenied", err)
	}
}
