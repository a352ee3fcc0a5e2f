package specpb

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotatord/rotatord/internal/pool"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// FromEvent is an event on record in the contract's terms.
func FromEvent(e *pool.RecordedEvent) *rotatorv1.Event {
	return &rotatorv1.Event{
		Id:            e.ID,
		Type:          string(e.Type),
		Source:        e.Replica,
		Subject:       e.Subject,
		Time:          stamp(e.Time),
		Pool:          e.Pool,
		Revision:      e.Revision,
		Trigger:       rotatorv1.Trigger(e.Trigger),
		TriggerSource: e.Event.Source,
		Reason:        e.Reason,
		RequestId:     e.RequestID,
		KeyId:         e.Key,
		NewKeyId:      e.NewKey,
		Generation:    e.Generation,
		Slot:          e.Slot,
		ProxyId:       e.Proxy,
		RotationId:    e.RotationID,
		Status:        rotatorv1.KeyStatus(e.Status),
		StatusUntil:   stamp(e.Until),
		Home:          rotatorv1.KeyHome(e.Home),
		Phase:         rotatorv1.KeyPhase(e.Phase),
		Rule:          e.Rule,
	}
}

// stamp leaves a time unset that is not known.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
