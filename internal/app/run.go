package app

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"time"

	"github.com/google/uuid"
)

// startTimeout bounds the start: the embedded etcd may have a long log to read.
const startTimeout = 2 * time.Minute

// ballast is memory that is never touched, and so never there, but counts when the garbage collector decides how far the
// heap may grow. A replica with few keys has a heap of a few megabytes; under load it would be collected twenty times a
// second, which took a tenth of the processor time of a rotation.
const ballast = 32 << 20

// Run runs a replica until ctx ends and then stops it gracefully, or until it fails. A start that ctx ends is no failure.
func Run(ctx context.Context, cfg *Config, log *slog.Logger) error {
	held := make([]byte, ballast)
	defer runtime.KeepAlive(held)
	uuid.EnableRandPool() // a rotation has five ids, and none is a secret
	sctx, cancel := context.WithTimeout(ctx, startTimeout)
	replica, err := Start(sctx, cfg, log, Seams{})
	cancel()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		log.Info("stopped before it was up", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		log.Info("stopping: no new calls, those under way are finished")
	case err = <-replica.Failed():
		log.Error("stopping: a part of the replica failed", "error", err)
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
	defer cancel()
	return errors.Join(err, replica.Close(cctx))
}
