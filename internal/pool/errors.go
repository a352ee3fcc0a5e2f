package pool

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Reason is a stable code of a refusal. The values are those of rotator.v1.ErrorReason without the prefix.
type Reason string

// The reasons. What each means to a caller is documented at rotator.v1.ErrorReason.
const (
	ReasonInvalidArgument    Reason = "INVALID_ARGUMENT"
	ReasonPoolNotFound       Reason = "POOL_NOT_FOUND"
	ReasonKeyNotFound        Reason = "KEY_NOT_FOUND"
	ReasonRotationNotFound   Reason = "ROTATION_NOT_FOUND"
	ReasonBindingNotFound    Reason = "BINDING_NOT_FOUND"
	ReasonSlotNotFound       Reason = "SLOT_NOT_FOUND"
	ReasonPoolExists         Reason = "POOL_EXISTS"
	ReasonPoolPaused         Reason = "POOL_PAUSED"
	ReasonPoolDeleting       Reason = "POOL_DELETING"
	ReasonPoolNotEmpty       Reason = "POOL_NOT_EMPTY"
	ReasonKeyInStock         Reason = "KEY_IN_STOCK"
	ReasonKeyDisabled        Reason = "KEY_DISABLED"
	ReasonKeyWrongHome       Reason = "KEY_WRONG_HOME"
	ReasonKeyBound           Reason = "KEY_BOUND"
	ReasonGenerationInFuture Reason = "GENERATION_IN_FUTURE"
	ReasonSlotClosing        Reason = "SLOT_CLOSING"
	ReasonKeyNotRestorable   Reason = "KEY_NOT_RESTORABLE"
	ReasonRevisionInFuture   Reason = "REVISION_IN_FUTURE"
	ReasonSchemaTooNew       Reason = "SCHEMA_TOO_NEW"
	ReasonRecordUnreadable   Reason = "RECORD_UNREADABLE"
	ReasonSecretUnreadable   Reason = "SECRET_UNREADABLE"
	ReasonConflict           Reason = "CONFLICT"
	ReasonNotApplied         Reason = "NOT_APPLIED"
	ReasonOutcomeUnknown     Reason = "OUTCOME_UNKNOWN"
	ReasonStorageFull        Reason = "STORAGE_FULL"
	ReasonRotationBound      Reason = "ROTATION_BOUND"
	ReasonNothingToRetry     Reason = "NOTHING_TO_RETRY"
)

// Refusal is an error a caller is told: what was refused, why, and what to do. Its text never holds a secret.
type Refusal struct {
	Reason   Reason
	Message  string
	Metadata map[string]string
	Fields   []Violation   // for ReasonInvalidArgument
	Retry    time.Duration // when to try again, if that depends on more than the reason; 0: it does not
	Cause    error         // for the log; not told to callers
}

// Violation is one field that breaks a rule.
type Violation struct{ Field, Problem string }

// Error implements error.
func (r *Refusal) Error() string {
	text := r.Message
	if len(r.Fields) > 0 {
		parts := make([]string, len(r.Fields))
		for i, v := range r.Fields {
			parts[i] = v.Field + " " + v.Problem
		}
		text = strings.Join(parts, "; ")
	}
	if r.Cause != nil {
		text += ": " + r.Cause.Error()
	}
	return text
}

// Unwrap gives the cause.
func (r *Refusal) Unwrap() error { return r.Cause }

// Is reports whether target is a refusal for the same reason, so that the sentinels below work with errors.Is.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Reason == r.Reason
}

// Refuse makes a refusal.
func Refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Because returns the same refusal with a cause for the log.
func (r *Refusal) Because(err error) *Refusal {
	because := *r
	because.Cause = err
	return &because
}

// ReasonOf returns the reason of a refusal in err's chain, "" if there is none.
func ReasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

// Sentinels for errors.Is.
var (
	// ErrNotApplied: the write surely did not happen. Returned for no quorum before anything was sent, no session, and
	// the few answers of etcd that say so; never for a time-out after a write was sent.
	ErrNotApplied = Refuse(ReasonNotApplied, "not applied")
	// ErrOutcomeUnknown: the write may have happened, or may still happen.
	ErrOutcomeUnknown = Refuse(ReasonOutcomeUnknown, "outcome unknown")
	// ErrSecretUnreadable: a sealed secret does not open with this keyset, pool and key id.
	ErrSecretUnreadable = Refuse(ReasonSecretUnreadable, "the sealed secret cannot be opened with this keyset")
	// ErrConflict: somebody else kept changing the record.
	ErrConflict = Refuse(ReasonConflict, "changed by somebody else at the same time")
)
