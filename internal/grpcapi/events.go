package grpcapi

import (
	"context"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/specpb"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

const (
	// maxEventStreams bounds the streams of events that one replica serves at a time: each has a watch of etcd.
	maxEventStreams = 64
	// sendPatience is how long a caller may take for one message before its stream ends.
	sendPatience = 10 * time.Second
)

var (
	errTooManyStreams = &pool.Refusal{Reason: pool.ReasonNotApplied, Retry: time.Second,
		Message: "this replica serves as many streams of events as it can; ask another one, or end streams that nobody reads"}
	errHeldUp = pool.Refuse(pool.ReasonNotApplied, "the events were not taken in time, so the stream is ended; resume it from the last event")
)

// WatchEvents streams events. A slow caller slows its own stream down: what is held for it is bounded, and one that takes
// nothing for sendPatience is let go.
func (s *rotationService) WatchEvents(req *v1.WatchEventsRequest, stream v1.RotationService_WatchEventsServer) error {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return errTooManyStreams
	}
	query := pool.EventsQuery{
		Pool: req.GetPool(), Once: req.GetOnce(), After: pool.EventCursor{Revision: req.GetFromRevision(), ID: req.GetAfterId()},
	}
	live := false
	return s.queries.WatchEvents(stream.Context(), query, func(b pool.EventBatch) error {
		if len(b.Events) == 0 && (live || !b.Live) {
			return nil // it only says how far it is
		}
		live = live || b.Live
		return sendWithin(stream.Context(), sendPatience, func() error {
			return stream.Send(&v1.WatchEventsResponse{Events: all(b.Events, specpb.FromEvent), Revision: b.Revision})
		})
	})
}

// sendWithin bounds a send, which alone waits for its caller for ever. A send that is given up ends when the handler has
// returned.
func sendWithin(ctx context.Context, patience time.Duration, send func() error) error {
	sent := make(chan error, 1)
	go func() { sent <- send() }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errHeldUp
	}
}
