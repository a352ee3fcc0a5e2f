package ctl

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/rotatord/rotatord/proto/rotator/v1"
)

// breaking serves two events a stream and then breaks it off.
type breaking struct {
	pb.UnimplementedRotationServiceServer
	mu    sync.Mutex
	asked []string
}

func (b *breaking) WatchEvents(req *pb.WatchEventsRequest, stream grpc.ServerStreamingServer[pb.WatchEventsResponse]) error {
	b.mu.Lock()
	b.asked = append(b.asked, fmt.Sprintf("%s %d %q %t", req.GetPool(), req.GetFromRevision(), req.GetAfterId(), req.GetOnce()))
	b.mu.Unlock()
	var events []*pb.Event
	for i := range int64(2) {
		n := req.GetFromRevision() + 1 + i
		events = append(events, &pb.Event{Id: fmt.Sprint("e", n), Revision: n, Pool: "p", Type: "dev.rotatord.key.added.v1", Source: "rotatord/r"})
	}
	if err := stream.Send(&pb.WatchEventsResponse{Events: events}); err != nil {
		return err
	}
	return status.Error(codes.Unavailable, "this replica is stopping")
}

// lines ends a run after some lines were written.
type lines struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	most int
	end  func()
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.buf.Write(p)
	if bytes.Count(l.buf.Bytes(), []byte("\n")) >= l.most {
		l.end()
	}
	return n, err
}

func TestFollowingEventsResumesByItself(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, b := grpc.NewServer(), &breaking{}
	pb.RegisterRotationServiceServer(server, b)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, problems := &lines{most: 6, end: cancel}, &bytes.Buffer{}
	code := Run(ctx, []string{"events", "p", "--follow", "-o", "json", "--server", listener.Addr().String()},
		System{In: strings.NewReader(""), Out: out, Err: problems, Getenv: func(string) string { return "" }, Now: time.Now})
	if code != 0 {
		t.Errorf("exit code %d, want 0: following ends when it is interrupted\n%s", code, problems)
	}
	for i, line := range strings.Split(strings.TrimSpace(out.buf.String()), "\n") {
		if want := fmt.Sprintf(`"id":"e%d"`, i+1); !strings.Contains(line, want) {
			t.Errorf("line %d is %s, want %s in it", i, line, want)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.asked) < 3 || b.asked[0] != `p 0 "" false` || b.asked[1] != `p 2 "e2" false` || b.asked[2] != `p 4 "e4" false` {
		t.Errorf("asked %q, want it resumed at the last event", b.asked)
	}
}
