package grpcapi

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (w *world) createPool(t *testing.T, name string) {
	t.Helper()
	if _, err := v1.NewAdminServiceClient(w.conn).CreatePool(t.Context(), &v1.CreatePoolRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
}

// events reads a stream to its end.
func (w *world) events(t *testing.T, req *v1.WatchEventsRequest) []*v1.Event {
	t.Helper()
	stream, err := v1.NewRotationServiceClient(w.conn).WatchEvents(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var events []*v1.Event
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return events
		case err != nil:
			t.Fatal(err)
		}
		events = append(events, resp.GetEvents()...)
	}
}

func TestWatchEventsOnRecord(t *testing.T) {
	w := newWorld(t, nil)
	w.createPool(t, "p")
	w.createPool(t, "q")
	all := w.events(t, &v1.WatchEventsRequest{Once: true})
	if len(all) != 2 || all[0].GetPool() != "p" || all[0].GetType() != string(pool.EventPoolCreated) || all[0].GetSource() == "" {
		t.Fatalf("events: %v, want the creations of p and q", all)
	}
	rest := w.events(t, &v1.WatchEventsRequest{Once: true, FromRevision: all[0].GetRevision(), AfterId: all[0].GetId()})
	if len(rest) != 1 || rest[0].GetPool() != "q" {
		t.Errorf("events after the first: %v, want the creation of q", rest)
	}
	if only := w.events(t, &v1.WatchEventsRequest{Once: true, Pool: "q"}); len(only) != 1 || only[0].GetId() != all[1].GetId() {
		t.Errorf("events of q: %v", only)
	}
	if _, err := v1.NewAdminServiceClient(w.conn).DeletePool(t.Context(), &v1.DeletePoolRequest{Name: "q"}); err != nil {
		t.Fatal(err)
	}
	if only := w.events(t, &v1.WatchEventsRequest{Once: true, Pool: "q"}); len(only) != 3 {
		t.Errorf("events of a pool that was deleted: %v, want its creation, that it is being deleted, and its deletion", only)
	}
}

func TestWatchEventsSaysWhenAllOnRecordWasSent(t *testing.T) {
	w := newWorld(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := v1.NewRotationServiceClient(w.conn).WatchEvents(ctx, &v1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || len(resp.GetEvents()) != 0 || resp.GetRevision() == 0 {
		t.Errorf("the first message: %v, %v; want an empty one with a revision: there are no events", resp, err)
	}
	w.createPool(t, "p")
	if resp, err := stream.Recv(); err != nil || len(resp.GetEvents()) != 1 {
		t.Errorf("the second message: %v, %v; want an event", resp, err)
	}
}

func TestWatchEventsEndsWithTheServer(t *testing.T) {
	w := newWorld(t, nil)
	stream, err := v1.NewRotationServiceClient(w.conn).WatchEvents(t.Context(), &v1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	w.server.Shutdown(t.Context())
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || errorInfo(err).GetReason() != string(pool.ReasonNotApplied) {
		t.Errorf("the end of the stream: %v with %v, want UNAVAILABLE, NOT_APPLIED", err, errorInfo(err))
	}
}

func TestWatchEventsIsBoundedInNumber(t *testing.T) {
	w := newWorld(t, nil)
	client := v1.NewRotationServiceClient(w.conn)
	open := func() error {
		stream, err := client.WatchEvents(t.Context(), &v1.WatchEventsRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for i := range maxEventStreams {
		if err := open(); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	if err := open(); status.Code(err) != codes.Unavailable {
		t.Errorf("one stream too many: %v, want UNAVAILABLE", err)
	}
}

func TestASendIsBounded(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	err := sendWithin(t.Context(), time.Millisecond, func() error { <-hold; return nil })
	if !errors.Is(err, errHeldUp) {
		t.Errorf("a send that nobody takes: %v, want %v", err, errHeldUp)
	}
}
