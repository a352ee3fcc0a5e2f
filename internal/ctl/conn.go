package ctl

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/version"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// A connection with a call on it is asked for a sign of life after pingAfter without one, and given up when none comes
// within deadAfter: nothing else ends a stream on a connection that is dead. rotatord permits a ping every five seconds,
// and gRPC makes none more often than every ten.
const (
	pingAfter = 15 * time.Second
	deadAfter = 5 * time.Second
)

// maxAnswer is the largest answer we take, in bytes: a page of 1,000 keys with all their labels is well below.
const maxAnswer = 64 << 20

// connect returns the connection, which dials when it is first used.
func (c *cli) connect() (*grpc.ClientConn, error) {
	if c.conn != nil {
		return c.conn, nil
	}
	conn, err := grpc.NewClient(c.server,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: deadAfter}), // none without a call
		grpc.WithUserAgent("rotatorctl/"+version.Get().Version))
	if err != nil {
		return nil, usagef("--server %q: %v", c.server, err)
	}
	c.conn = conn
	return conn, nil
}

func (c *cli) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

func (c *cli) admin() (rotatorv1.AdminServiceClient, error) {
	conn, err := c.connect()
	return rotatorv1.NewAdminServiceClient(conn), err
}

func (c *cli) rotations() (rotatorv1.RotationServiceClient, error) {
	conn, err := c.connect()
	return rotatorv1.NewRotationServiceClient(conn), err
}

// ask calls one method of a service with a deadline.
func ask[S, Q, A any](ctx context.Context, c *cli, service func() (S, error),
	method func(S, context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	s, err := service()
	if err != nil {
		var none A
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return method(s, ctx, request)
}

// First and longest pause between repeats of a call. A person who has waited until notePause is told what for.
const (
	firstPause = 100 * time.Millisecond
	notePause  = 4 * firstPause
	maxPause   = 2 * time.Second
)

// askAgain is ask for a request that may be repeated without harm: it repeats it, unchanged, while the answer is that
// the service could not or does not know, until --timeout has passed. The error is the service's last one.
func askAgain[S, Q, A any](ctx context.Context, c *cli, service func() (S, error),
	method func(S, context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	s, err := service()
	if err != nil {
		var none A
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var told error
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		answer, err := method(s, ctx, request)
		if err == nil || !worthRepeating(err) {
			return answer, firstError(ctx, told, err)
		}
		told = err
		if pause == notePause {
			fmt.Fprintf(c.sys.Err, "note: %s; asking again until --timeout (%s)\n", c.describe(err), c.timeout)
		}
		if !sleep(ctx, max(pause, retryDelay(err))) {
			return answer, told
		}
	}
}

// firstError prefers what the service said before to the plain "time is over" of a repeat that was cut off.
func firstError(ctx context.Context, told, err error) error {
	if err != nil && told != nil && ctx.Err() != nil {
		return told
	}
	return err
}

// worthRepeating says whether the same request may get another answer soon.
func worthRepeating(err error) bool {
	if reasonOf(err) == rotatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN {
		return true
	}
	return status.Code(err) == codes.Unavailable
}

// sleep reports false, at once, if the context would end first.
func sleep(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// pageSize is a compromise between the number of calls and the size of an answer.
const pageSize = 500

// page is one page of a list.
type page[T any] struct {
	items    []T
	next     string
	revision int64
}

// allPages reads a list to its end, from state at least as new as since. Later pages are read from state at least as new
// as the first one, whose revision is returned.
func allPages[T any](since int64, read func(token string, minRevision int64) (page[T], error)) ([]T, int64, error) {
	first, err := read("", since)
	if err != nil {
		return nil, 0, err
	}
	items, last := first.items, first
	for last.next != "" {
		p, err := read(last.next, first.revision)
		if err != nil {
			return nil, 0, err
		}
		if p.next == last.next {
			return nil, 0, fmt.Errorf("the server's list does not end: it gave the page token %q twice", p.next)
		}
		items, last = append(items, p.items...), p
	}
	return items, first.revision, nil
}

// guardSecret refuses a secret on the way over an unencrypted connection to another machine.
func (c *cli) guardSecret() error {
	if c.insecure || isLocal(c.server) {
		return nil
	}
	return usagef("the connection to %s is not encrypted and leaves this machine, so no secret may go over it\n"+
		"  next: run rotatorctl on the server's machine, or reach it through a tunnel (ssh -L, kubectl port-forward); "+
		"if the network between is trusted, say so with --insecure", c.server)
}

// isLocal says whether a gRPC target stays on this machine. What it does not understand does not.
func isLocal(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	for _, scheme := range []string{"dns:///", "passthrough:///", "dns:"} {
		if rest, ok := strings.CutPrefix(target, scheme); ok {
			target = rest
			break
		}
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = strings.Trim(target, "[]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
