// Package redial is how the harness connects to what it breaks.
package redial

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Quickly has what comes back used at once. gRPC's default leaves alone for seconds, and for up to two minutes, what was
// away for some: a recording would show revisions long after they were made.
func Quickly() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 300 * time.Millisecond},
		MinConnectTimeout: time.Second,
	})
}
