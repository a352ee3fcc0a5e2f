package etcdwire

import (
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// NotSentError is the error of a transaction that did not leave this process: it was surely not applied.
type NotSentError struct{ Err error }

// Error implements error.
func (e *NotSentError) Error() string { return "not sent: " + e.Err.Error() }

// Unwrap is the reason.
func (e *NotSentError) Unwrap() error { return e.Err }

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

// Refused reports whether an error says of a transaction that it was not made and never will be, and what an operator can do.
func Refused(err error) (advice string, refused bool) {
	err = rpctypes.Error(err)
	for _, n := range never {
		if errors.Is(err, n.err) {
			return n.advice, true
		}
	}
	return "", false
}

// NotNow reports whether an error says of a transaction that it was not made, although it may be if it is sent again.
func NotNow(err error) bool {
	if unsent := (*NotSentError)(nil); errors.As(err, &unsent) {
		return true
	}
	err = rpctypes.Error(err)
	for _, e := range notNow {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
