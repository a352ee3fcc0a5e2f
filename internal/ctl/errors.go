package ctl

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// exit is an exit code. They are documented in rootHelp; scripts rely on them.
type exit int

const (
	exitOK          exit = 0
	exitFailed      exit = 1
	exitUsage       exit = 2
	exitNotFound    exit = 3
	exitRefused     exit = 4
	exitUnavailable exit = 5
)

// commandError is an error of our own: what happened, with its exit code.
type commandError struct {
	code    exit
	message string
}

func (e *commandError) Error() string { return e.message }

func failf(code exit, format string, args ...any) error {
	return &commandError{code, fmt.Sprintf(format, args...)}
}

func usagef(format string, args ...any) error { return failf(exitUsage, format, args...) }

// adviceError adds what to do next where the command knows it better than the table of reasons does.
type adviceError struct {
	err  error
	next string
}

func (e *adviceError) Error() string { return e.err.Error() }
func (e *adviceError) Unwrap() error { return e.err }

// flagError does not repeat a cluster of short flags: somebody may have typed a secret there.
func flagError(cmd *cobra.Command, err error) error {
	message := err.Error()
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		message = "unknown flag --" + unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			message = "unknown flag -" + unknown.GetSpecifiedName()
		}
		if strings.Contains(unknown.GetSpecifiedName(), "secret") {
			message += "; a secret comes from standard input or --secret-file, never from the command line"
		}
	}
	return usagef("%s; run %s --help", message, cmd.CommandPath())
}

// exitCode goes by the status code, as clients must, and by our own errors.
func exitCode(err error) exit {
	var own *commandError
	if errors.As(err, &own) {
		return own.code
	}
	st, ok := statusOf(err)
	switch {
	case err == nil:
		return exitOK
	case !ok && isCobraUsage(err):
		return exitUsage
	case !ok:
		return exitFailed
	case tooLarge(err):
		return exitUsage
	}
	switch st.Code() {
	case codes.InvalidArgument:
		return exitUsage
	case codes.NotFound:
		return exitNotFound
	case codes.FailedPrecondition, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated:
		return exitRefused
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted:
		return exitUnavailable
	default:
		return exitFailed
	}
}

// isCobraUsage recognises cobra's own checks, which have no type.
func isCobraUsage(err error) bool {
	for _, start := range []string{"unknown command", "required flag", "if any flags in the group"} {
		if strings.HasPrefix(err.Error(), start) {
			return true
		}
	}
	return false
}

// statusOf finds the status a call ended with, without the text errors were wrapped in.
func statusOf(err error) (*status.Status, bool) {
	var carrier interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &carrier) {
		return nil, false
	}
	return carrier.GRPCStatus(), true
}

// detail finds one of the messages that come with a status.
func detail[T any](err error) (T, bool) {
	var none T
	st, ok := statusOf(err)
	if !ok {
		return none, false
	}
	for _, d := range st.Details() {
		if found, ok := d.(T); ok {
			return found, true
		}
	}
	return none, false
}

// errorDomain is the domain of the service's own ErrorInfo.
const errorDomain = "rotatord.dev"

// errorInfo returns nil if the error is not the service's own: a proxy's, or the transport's.
func errorInfo(err error) *errdetails.ErrorInfo {
	info, ok := detail[*errdetails.ErrorInfo](err)
	if !ok || info.GetDomain() != errorDomain {
		return nil
	}
	return info
}

// tooLarge says whether gRPC has refused a message for its size. That has no reason of ours, and stays so when it is sent
// again.
func tooLarge(err error) bool {
	st, ok := statusOf(err)
	return ok && st.Code() == codes.ResourceExhausted && errorInfo(err) == nil &&
		strings.Contains(st.Message(), "larger than max") && !strings.Contains(st.Message(), strconv.Itoa(maxAnswer)) // that was ours
}

// sendLess is what to do about a message that is too large.
const sendLess = "split what you send, or make it smaller: the same again would be refused again"

// reasonOf returns UNSPECIFIED for reasons we do not know.
func reasonOf(err error) rotatorv1.ErrorReason {
	return rotatorv1.ErrorReason(rotatorv1.ErrorReason_value["ERROR_REASON_"+errorInfo(err).GetReason()])
}

// retryDelay is how long the service asks us to wait.
func retryDelay(err error) time.Duration {
	info, _ := detail[*errdetails.RetryInfo](err)
	return info.GetRetryDelay().AsDuration()
}

// explain is what goes to standard error: what happened, which fields, what to do next.
func (c *cli) explain(err error) string {
	var out strings.Builder
	fmt.Fprintf(&out, "rotatorctl: %s\n", c.describe(err))
	for _, v := range violations(err) {
		fmt.Fprintf(&out, "  %s: %s\n", oneLine(v.GetField()), oneLine(v.GetDescription()))
	}
	if next := c.advice(err); next != "" {
		fmt.Fprintf(&out, "  next: %s\n", next)
	}
	return out.String()
}

func violations(err error) []*errdetails.BadRequest_FieldViolation {
	bad, _ := detail[*errdetails.BadRequest](err)
	return bad.GetFieldViolations()
}

func (c *cli) describe(err error) string {
	st, ok := statusOf(err)
	info := errorInfo(err)
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case !ok:
		return err.Error()
	case info != nil && len(violations(err)) > 0:
		// The message repeats the fields, which follow in lines of their own.
		return fmt.Sprintf("the request is not valid (%s)", oneLine(info.GetReason()))
	case info != nil:
		return fmt.Sprintf("%s (%s)", oneLine(st.Message()), oneLine(info.GetReason()))
	case tooLarge(err):
		return "too large for one call: " + oneLine(st.Message())
	case st.Code() == codes.Unavailable:
		return fmt.Sprintf("cannot reach rotatord at %s: %s", c.server, oneLine(dialError(st.Message())))
	case st.Code() == codes.DeadlineExceeded:
		return fmt.Sprintf("no answer from %s within %s", c.server, c.timeout)
	case st.Code() == codes.Canceled:
		return "interrupted"
	default:
		return fmt.Sprintf("%s (%s)", oneLine(st.Message()), st.Code())
	}
}

// dialMessage is how gRPC wraps what went wrong with a connection.
var dialMessage = regexp.MustCompile(`^(?:last )?connection error: desc = "transport: (?:Error while dialing: )?(.*)"$`)

// dialError takes gRPC's wrapping off, and the address, which has been said.
func dialError(message string) string {
	if m := dialMessage.FindStringSubmatch(message); m != nil {
		message = m[1]
	}
	if strings.HasSuffix(message, "produced zero addresses") {
		return "this name has no address"
	}
	if _, after, found := strings.Cut(message, ": "); found && strings.HasPrefix(message, "dial tcp ") {
		return after
	}
	return message
}

// startServer is what to do when nobody answers.
const startServer = "start rotatord there, or name another replica with --server or ROTATORCTL_SERVER"

// unreachable says whether nobody answered, not even a replica that cannot do what was asked.
func unreachable(err error) bool {
	st, ok := statusOf(err)
	return ok && st.Code() == codes.Unavailable && errorInfo(err) == nil
}

// again advises to repeat something, once there is somebody to ask.
func again(err error, next string) error {
	if unreachable(err) {
		next = startServer + "; then " + next
	}
	return &adviceError{err, next}
}

func (c *cli) advice(err error) string {
	var own *adviceError
	if errors.As(err, &own) {
		return own.next
	}
	st, ok := statusOf(err)
	if !ok {
		return ""
	}
	next := adviceFor(st.Code())
	if tooLarge(err) {
		next = sendLess
	}
	if info := errorInfo(err); info != nil {
		if byReason, ok := adviceByReason[reasonOf(err)]; ok {
			next = c.fill(byReason)
		}
		if proxies := info.GetMetadata()["proxies"]; proxies != "" {
			next += " (bound: " + oneLine(proxies) + ")"
		}
	}
	if wait := retryDelay(err); wait > 0 {
		next = strings.TrimPrefix(next+fmt.Sprintf("; not before %s from now", wait), "; ")
	}
	return next
}

// adviceFor is for errors without a reason we know.
func adviceFor(code codes.Code) string {
	switch code {
	case codes.Unavailable:
		return startServer
	case codes.DeadlineExceeded:
		return "a write may have been applied: look before you repeat it, or allow more time with --timeout"
	case codes.Unimplemented:
		return "the server does not know this call: see whether it is rotatord; if it is, compare `rotatorctl version` with `rotatorctl replica list`"
	case codes.Unauthenticated, codes.PermissionDenied:
		return "ask for the right to do this; the server knows you as somebody without it"
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return "look at the replica's log, and run `rotatorctl doctor`"
	default:
		return ""
	}
}

// adviceByReason says what to do about each reason of the contract.
var adviceByReason = map[rotatorv1.ErrorReason]string{
	rotatorv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT:     "correct the fields named above; nothing was changed",
	rotatorv1.ErrorReason_ERROR_REASON_POOL_NOT_FOUND:       "see the pools there are with `rotatorctl pool list`, or make one with `rotatorctl pool create POOL`",
	rotatorv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND:        "see the pool's keys with `rotatorctl key list POOL`",
	rotatorv1.ErrorReason_ERROR_REASON_ROTATION_NOT_FOUND:   "see the pool's rotations with `rotatorctl rotation list POOL`",
	rotatorv1.ErrorReason_ERROR_REASON_BINDING_NOT_FOUND:    "see the pool's bindings with `rotatorctl binding list POOL`; a proxy without one may use the whole pool",
	rotatorv1.ErrorReason_ERROR_REASON_SLOT_NOT_FOUND:       "see the slots there are with `rotatorctl key list POOL --state active`",
	rotatorv1.ErrorReason_ERROR_REASON_POOL_EXISTS:          "compare with `rotatorctl pool get POOL`, and change it with `rotatorctl pool update POOL -f FILE`",
	rotatorv1.ErrorReason_ERROR_REASON_POOL_PAUSED:          "allow rotations again with `rotatorctl pool resume POOL`",
	rotatorv1.ErrorReason_ERROR_REASON_POOL_DELETING:        "finish the deletion by running `rotatorctl pool delete POOL --force` again, then create the pool anew",
	rotatorv1.ErrorReason_ERROR_REASON_POOL_NOT_EMPTY:       "remove its keys first and let those that were retired be revoked, or delete all of it with --force",
	rotatorv1.ErrorReason_ERROR_REASON_KEY_IN_STOCK:         "leave it in stock, where it is not in use; if it is bad take it out with `rotatorctl key remove POOL KEY`",
	rotatorv1.ErrorReason_ERROR_REASON_KEY_DISABLED:         "rotate it with --trigger operator, or put it back into service with `rotatorctl key enable POOL KEY`",
	rotatorv1.ErrorReason_ERROR_REASON_KEY_WRONG_HOME:       "see where the key is with `rotatorctl key get POOL KEY`",
	rotatorv1.ErrorReason_ERROR_REASON_KEY_BOUND:            "bind those proxies to other slots with `rotatorctl binding set POOL PROXY SLOT`, or repeat with --unbind",
	rotatorv1.ErrorReason_ERROR_REASON_GENERATION_IN_FUTURE: "see the key's generation with `rotatorctl key get POOL KEY`; it may come from another installation",
	rotatorv1.ErrorReason_ERROR_REASON_SLOT_CLOSING:         "wait until the removal has ended, or end it with `rotatorctl key remove POOL KEY`; then see the slots with `rotatorctl key list POOL --state active`",
	rotatorv1.ErrorReason_ERROR_REASON_KEY_NOT_RESTORABLE:   "add a new key with `rotatorctl key add POOL ID --backup`; this one's secret is gone or being revoked",
	rotatorv1.ErrorReason_ERROR_REASON_REVISION_IN_FUTURE:   "ask again without a revision; it may come from another installation",
	rotatorv1.ErrorReason_ERROR_REASON_SCHEMA_TOO_NEW:       "use a replica of the newer version (`rotatorctl replica list`), and finish the upgrade",
	rotatorv1.ErrorReason_ERROR_REASON_RECORD_UNREADABLE:    "run `rotatorctl doctor`, which names the record",
	rotatorv1.ErrorReason_ERROR_REASON_SECRET_UNREADABLE:    "give every replica the same keyset file; then run `rotatorctl doctor`",
	rotatorv1.ErrorReason_ERROR_REASON_CONFLICT:             "run the command again",
	rotatorv1.ErrorReason_ERROR_REASON_NOT_APPLIED:          "nothing was changed: run the command again; if it stays so, see whether etcd has a quorum",
	rotatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN:      "run the command again: what was applied is not applied twice",
	rotatorv1.ErrorReason_ERROR_REASON_CANCELLED:            "run the command again",
	rotatorv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED:    "run the command again, with more time (--timeout) if it stays so",
	rotatorv1.ErrorReason_ERROR_REASON_ROTATION_BOUND:       "wait; or, if the keys are surely bad and not the upstream, override with --override-bound or raise rotationBound in the pool's spec",
	rotatorv1.ErrorReason_ERROR_REASON_NOTHING_TO_RETRY:     "see the key's phase with `rotatorctl key get POOL KEY`",
	rotatorv1.ErrorReason_ERROR_REASON_STORAGE_FULL:         "make room in etcd: compact and defragment it, then `etcdctl alarm disarm`",
}
