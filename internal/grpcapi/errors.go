package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// Domain is the domain of every google.rpc.ErrorInfo.
const Domain = "rotatord.dev"

const reasonPrefix = "ERROR_REASON_"

// The reasons that only the transport has. The domain has the others.
const (
	reasonInternal         pool.Reason = "UNSPECIFIED"
	reasonCancelled        pool.Reason = "CANCELLED"
	reasonDeadlineExceeded pool.Reason = "DEADLINE_EXCEEDED"
)

// rule is how a reason is told.
type rule struct {
	code  codes.Code
	retry time.Duration // when to try again; 0: waiting alone does not help
}

// rules is the error table: every reason there is, with its code. What each means is documented at v1.ErrorReason.
var rules = map[v1.ErrorReason]rule{
	v1.ErrorReason_ERROR_REASON_UNSPECIFIED:          {code: codes.Internal},
	v1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT:     {code: codes.InvalidArgument},
	v1.ErrorReason_ERROR_REASON_POOL_NOT_FOUND:       {code: codes.NotFound},
	v1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND:        {code: codes.NotFound},
	v1.ErrorReason_ERROR_REASON_ROTATION_NOT_FOUND:   {code: codes.NotFound},
	v1.ErrorReason_ERROR_REASON_BINDING_NOT_FOUND:    {code: codes.NotFound},
	v1.ErrorReason_ERROR_REASON_SLOT_NOT_FOUND:       {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_POOL_EXISTS:          {code: codes.AlreadyExists},
	v1.ErrorReason_ERROR_REASON_POOL_PAUSED:          {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_POOL_DELETING:        {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_POOL_NOT_EMPTY:       {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_KEY_IN_STOCK:         {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_KEY_DISABLED:         {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_KEY_WRONG_HOME:       {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_KEY_BOUND:            {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_GENERATION_IN_FUTURE: {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_SLOT_CLOSING:         {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_KEY_NOT_RESTORABLE:   {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_REVISION_IN_FUTURE:   {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_SCHEMA_TOO_NEW:       {code: codes.FailedPrecondition},
	v1.ErrorReason_ERROR_REASON_RECORD_UNREADABLE:    {code: codes.DataLoss},
	v1.ErrorReason_ERROR_REASON_SECRET_UNREADABLE:    {code: codes.DataLoss},
	v1.ErrorReason_ERROR_REASON_CONFLICT:             {code: codes.Aborted},
	v1.ErrorReason_ERROR_REASON_NOT_APPLIED:          {code: codes.Unavailable, retry: 250 * time.Millisecond},
	v1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN:      {code: codes.Unavailable, retry: 250 * time.Millisecond},
	v1.ErrorReason_ERROR_REASON_CANCELLED:            {code: codes.Canceled},
	v1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED:    {code: codes.DeadlineExceeded},
	v1.ErrorReason_ERROR_REASON_STORAGE_FULL:         {code: codes.ResourceExhausted},
	v1.ErrorReason_ERROR_REASON_ROTATION_BOUND:       {code: codes.ResourceExhausted, retry: time.Second},
	v1.ErrorReason_ERROR_REASON_NOTHING_TO_RETRY:     {code: codes.FailedPrecondition},
}

// failure is an error as a caller is told it, and beside it what only the log is told.
type failure struct {
	status *status.Status
	reason pool.Reason
	cause  error
}

// Error implements error. It is the caller's text; the log takes cause.
func (f *failure) Error() string { return f.status.Message() }

// GRPCStatus is what the caller gets.
func (f *failure) GRPCStatus() *status.Status { return f.status }

// translate makes of a handler's error what the caller is told. caller is the call's context before the server's own
// bound was put on it: only that tells whose time is up.
func translate(caller context.Context, m method, err error) *failure {
	r := refusal(caller, m, err)
	number, known := v1.ErrorReason_value[reasonPrefix+string(r.Reason)]
	if !known {
		r = internal()
	}
	rule := rules[v1.ErrorReason(number)]
	if r.Reason == pool.ReasonOutcomeUnknown && errors.Is(caller.Err(), context.DeadlineExceeded) {
		rule.code = codes.DeadlineExceeded
	}
	return &failure{status: describe(r, rule), reason: r.Reason, cause: err}
}

// refusal finds the refusal in err, or the one that says what else happened.
func refusal(caller context.Context, m method, err error) *pool.Refusal {
	var r *pool.Refusal
	canceled, late := errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded)
	switch {
	case errors.As(err, &r):
		return r
	case canceled && caller.Err() != nil:
		return pool.Refuse(reasonCancelled, "the call was cancelled by its caller")
	case (canceled || late) && m.writes:
		return pool.Refuse(pool.ReasonOutcomeUnknown, "it is not known in time whether this was applied; repeat the call")
	case canceled:
		return pool.Refuse(pool.ReasonNotApplied, "the call was interrupted by this replica; try again or ask another replica")
	case late:
		return pool.Refuse(reasonDeadlineExceeded, "there was no answer in time; try again or ask another replica")
	}
	return internal()
}

func internal() *pool.Refusal {
	return pool.Refuse(reasonInternal, "internal error; the log of the replica that was asked says more")
}

// describe builds the status. Its details travel in a header, which other clients than Go's bound at 8 KiB: they are
// kept small.
func describe(r *pool.Refusal, rule rule) *status.Status {
	details := []protoadapt.MessageV1{
		protoadapt.MessageV1Of(&errdetails.ErrorInfo{Reason: string(r.Reason), Domain: Domain, Metadata: r.Metadata}),
	}
	if retry := max(rule.retry, r.Retry); retry > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)}))
	}
	if len(r.Fields) > 0 {
		details = append(details, protoadapt.MessageV1Of(violations(r.Fields)))
	}
	st := status.New(rule.code, text(r))
	if full, err := st.WithDetails(details...); err == nil {
		return full
	}
	return st
}

const (
	maxViolations = 48
	maxText       = 1024 // bytes
)

func violations(fields []pool.Violation) *errdetails.BadRequest {
	bad := &errdetails.BadRequest{}
	for i, v := range fields {
		if i == maxViolations {
			v = pool.Violation{Field: "...", Problem: fmt.Sprintf("and %d more", len(fields)-i)}
		}
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Problem})
		if i == maxViolations {
			break
		}
	}
	return bad
}

// text is what a person reads: never the cause.
func text(r *pool.Refusal) string {
	if len(r.Fields) == 0 {
		return r.Message
	}
	var b strings.Builder
	for i, v := range r.Fields {
		part := v.Field + " " + v.Problem
		if i > 0 && b.Len()+len(part) > maxText {
			b.WriteString("; ...")
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(part)
	}
	return b.String()
}
