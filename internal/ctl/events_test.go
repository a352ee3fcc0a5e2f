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

// breaking serves two events a stream and then breaks it off, but for one stream that says nothing.
type breaking struct {
	pb.UnimplementedRotationServiceServer
	mu     sync.Mutex
	asked  []string
	silent int // which stream that is; the first one is 1
}

func (b *breaking) WatchEvents(req *pb.WatchEventsRequest, stream grpc.ServerStreamingServer[pb.WatchEventsResponse]) error {
	b.mu.Lock()
	b.asked = append(b.asked, fmt.Sprintf("%s %d %q %t", req.GetPool(), req.GetFromRevision(), req.GetAfterId(), req.GetOnce()))
	silent := len(b.asked) == b.silent
	b.mu.Unlock()
	if silent {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
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

// followed is what following events came to.
type followed struct {
	code     int
	lines    []string
	problems string
}

// follow follows the events of a server until it has shown some lines.
func follow(t *testing.T, s pb.RotationServiceServer, most int, args ...string) followed {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterRotationServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, problems := &lines{most: most, end: cancel}, &bytes.Buffer{}
	code := Run(ctx, append([]string{"events", "p", "--follow", "-o", "json", "--server", listener.Addr().String()}, args...),
		System{In: strings.NewReader(""), Out: out, Err: problems, Getenv: func(string) string { return "" }, Now: time.Now})
	return followed{code, strings.Split(strings.TrimSpace(out.buf.String()), "\n"), problems.String()}
}

// check wants events e1, e2, ... and that following ended well.
func (f followed) check(t *testing.T, events int) {
	t.Helper()
	if f.code != 0 {
		t.Errorf("exit code %d, want 0: following ends when it is interrupted\n%s", f.code, f.problems)
	}
	if len(f.lines) != events {
		t.Errorf("%d lines, want %d", len(f.lines), events)
	}
	for i, line := range f.lines {
		if want := fmt.Sprintf(`"id":"e%d"`, i+1); !strings.Contains(line, want) {
			t.Errorf("line %d is %s, want %s in it", i, line, want)
		}
	}
}

func TestFollowingEventsResumesByItself(t *testing.T) {
	b := &breaking{}
	follow(t, b, 6).check(t, 6)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.asked) < 3 || b.asked[0] != `p 0 "" false` || b.asked[1] != `p 2 "e2" false` || b.asked[2] != `p 4 "e4" false` {
		t.Errorf("asked %q, want it resumed at the last event", b.asked)
	}
}

// A resumed stream says nothing: its server is asked again, for somebody has answered before.
func TestFollowingEventsOutlivesASilentStream(t *testing.T) {
	b := &breaking{silent: 2}
	follow(t, b, 4, "--timeout", "300ms").check(t, 4)
}

func TestFollowingEventsGivesUpOnAServerThatIsSilentFromTheStart(t *testing.T) {
	f := follow(t, &breaking{silent: 1}, 2, "--timeout", "300ms")
	if f.code != int(exitUnavailable) || !strings.Contains(f.problems, "nothing came from") {
		t.Errorf("exit code %d, want %d after --timeout\n%s", f.code, exitUnavailable, f.problems)
	}
}
