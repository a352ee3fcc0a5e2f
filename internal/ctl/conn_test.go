package ctl

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	pb "github.com/rotatord/rotatord/proto/rotator/v1"
)

// dying passes on what goes between a client and a server. When it is cut, the first connection stays open and nothing
// comes through any more, as when a machine in between goes.
type dying struct {
	server string
	gone   chan struct{}
	once   sync.Once
}

func (d *dying) cut() { d.once.Do(func() { close(d.gone) }) }

// serve returns the address.
func (d *dying) serve(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for first := true; ; first = false {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", d.server)
			if err != nil {
				_ = client.Close()
				continue
			}
			go d.pass(client, server, first)
			go d.pass(server, client, first)
		}
	}()
	return listener.Addr().String()
}

func (d *dying) pass(from, to net.Conn, mortal bool) {
	defer from.Close()
	defer to.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if mortal && d.dead() {
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (d *dying) dead() bool {
	select {
	case <-d.gone:
		return true
	default:
		return false
	}
}

// holding is breaking, but its streams go on.
type holding struct{ breaking }

func (h *holding) WatchEvents(req *pb.WatchEventsRequest, stream grpc.ServerStreamingServer[pb.WatchEventsResponse]) error {
	_ = h.breaking.WatchEvents(req, stream)
	<-stream.Context().Done()
	return stream.Context().Err()
}

// A followed stream has nothing to say for hours, so that only a ping shows that its connection is dead.
func TestFollowingEventsOutlivesADeadConnection(t *testing.T) {
	t.Parallel() // it takes as long as finding out does
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}))
	pb.RegisterRotationServiceServer(server, &holding{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	way := &dying{server: listener.Addr().String(), gone: make(chan struct{})}

	ctx, cancel := context.WithTimeout(t.Context(), 4*(pingAfter+deadAfter))
	defer cancel()
	out, problems := &lines{most: 4, end: cancel}, &bytes.Buffer{}
	code := Run(ctx, []string{"events", "p", "--follow", "-o", "json", "--server", way.serve(t)}, System{
		In: strings.NewReader(""), Out: io.MultiWriter(out, &lines{most: 2, end: way.cut}), Err: problems,
		Getenv: func(string) string { return "" }, Now: time.Now,
	})
	followed{code, strings.Split(strings.TrimSpace(out.buf.String()), "\n"), problems.String()}.check(t, 4)
}
