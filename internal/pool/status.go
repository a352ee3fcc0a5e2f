package pool

import "time"

// The state machine of an active key's status. Healthy, rate-limited and error become each other by reports and by time;
// exhausted and disabled end only by a rotation or an operator's hand. States that end by time do so without a write: see
// Active.StatusAt.

// minLengthening is the least by which a cool-down is worth a write, and lengtheningShare the same as a share of it.
const (
	minLengthening   = time.Second
	lengtheningShare = 10
)

// cooled is a with a cool-down, nil if that changes nothing that is worth a write: the key is out of service for longer, or
// it cools down already and the new end is not much later.
func cooled(a *Active, to Status, until time.Time, reason string, now time.Time) *Active {
	switch a.StatusAt(now) {
	case StatusExhausted, StatusDisabled:
		return nil
	case StatusRateLimited, StatusError:
		if until.Sub(a.StatusUntil) <= max(minLengthening, until.Sub(now)/lengtheningShare) {
			return nil
		}
	}
	if !until.After(now) {
		return nil
	}
	next := *a
	next.Version = renewed(a.Version)
	next.Status, next.StatusUntil, next.StatusSince, next.StatusReason = to, until, now, reason
	return &next
}
