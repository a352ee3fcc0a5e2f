package etcdstore

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

// never are etcd's answers to a write that was not made and never will be, however often it is sent, each with what
// an operator can do.
var never = []struct {
	err    error
	advice string
}{
	{rpctypes.ErrTooManyOps, "raise etcd's --max-txn-ops to its default of 128 or more"},
	{rpctypes.ErrDuplicateKey, "this is a bug in rotatord, please report it"},
	{rpctypes.ErrEmptyKey, "this is a bug in rotatord, please report it"},
	{rpctypes.ErrRequestTooLarge, "raise etcd's --max-request-bytes to its default of 1.5 MiB or more"},
	{rpctypes.ErrPermissionDenied, "grant the etcd user of rotatord a role with readwrite on the whole prefix (docs/etcd.md)"},
	{rpctypes.ErrAuthFailed, "check the etcd user and password rotatord was started with"},
}

// notNow are etcd's answers to a write that was not made but may be if it is sent again.
//
// ErrNoLeader is among them because it is said in front of the handler, to calls that ask for it (WithRequireLeader).
// ErrNoSpace is not: the check in front of raft says it before, the one behind it after the write was agreed on.
var notNow = []error{
	rpctypes.ErrInvalidAuthToken, // the client fetches a new token by itself
	rpctypes.ErrAuthOldRevision,
	rpctypes.ErrUserEmpty, // the token got lost; fetched again like an invalid one
	rpctypes.ErrTooManyRequests,
	rpctypes.ErrNoLeader,
}

// hopeless turns err into one that says what to do, if repeating the call cannot help; else it returns nil.
func hopeless(err error) error {
	err = rpctypes.Error(err)
	for _, n := range never {
		if errors.Is(err, n.err) {
			return fmt.Errorf("etcd refused the call: %w; %s", err, n.advice)
		}
	}
	return nil
}

// writeError says what the error of a write means. Whatever is not known to say "not applied" is an unknown outcome.
func writeError(err error) error {
	if final := hopeless(err); final != nil {
		return final
	}
	if notSent := (*etcdwire.NotSentError)(nil); errors.As(err, &notSent) || saysNotNow(err) {
		return notApplied(err)
	}
	return pool.Refuse(pool.ReasonOutcomeUnknown, "the store did not say whether the write was applied").Because(rpctypes.Error(err))
}

func saysNotNow(err error) bool {
	err = rpctypes.Error(err)
	for _, e := range notNow {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func notApplied(cause error) error {
	return pool.Refuse(pool.ReasonNotApplied, "the store cannot be written now").Because(rpctypes.Error(cause))
}

func notRead(cause error) error {
	return pool.Refuse(pool.ReasonNotApplied, "the store cannot be read now; try again").Because(rpctypes.Error(cause))
}

// IsNoSpace reports whether etcd said that its quota is used up. The write it answered may have been applied.
func IsNoSpace(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }
