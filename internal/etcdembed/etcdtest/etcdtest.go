// Package etcdtest runs a real etcd for a test, reached through a loopback socket as in production, so that gRPC and
// the client's retries are part of what is tested. It is durable like the real one, only its ticks are shorter: it
// starts in well under a second, and grants leases from 1 s (production: 2 s), and its passwords are cheap to hash. Only
// tests import it.
package etcdtest

import (
	"cmp"
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/etcdembed"
)

const (
	tick       = 10 * time.Millisecond
	cheapest   = 4           // of bcrypt's costs
	startLimit = time.Minute // generous: tests share a machine with compilers
)

// Start runs an etcd with an empty directory until the test ends and returns its endpoint, host:port.
func Start(t testing.TB) string {
	t.Helper()
	return StartServer(t, etcdembed.Config{}).Endpoint()
}

// StartServer is Start with a configuration, for tests that stop and restart it: what is left zero is a new directory,
// a free port, no logs and short ticks. Closing it early is allowed.
func StartServer(t testing.TB, cfg etcdembed.Config) *etcdembed.Server {
	t.Helper()
	if cfg.DataDir == "" {
		cfg.DataDir = t.TempDir()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.ClientListen = cmp.Or(cfg.ClientListen, "127.0.0.1:0")
	cfg.Tick = cmp.Or(cfg.Tick, tick)
	cfg.BcryptCost = cmp.Or(cfg.BcryptCost, cheapest)

	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	s, err := etcdembed.Start(ctx, cfg)
	if err != nil {
		t.Fatalf("starting etcd for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("stopping etcd after the test: %v", err)
		}
	})
	return s
}
