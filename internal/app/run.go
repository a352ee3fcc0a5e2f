package app

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// startTimeout bounds the start: the embedded etcd may have a long log to read.
const startTimeout = 2 * time.Minute

// Run runs a replica until ctx ends and then stops it gracefully, or until it fails.
func Run(ctx context.Context, cfg *Config, log *slog.Logger) error {
	sctx, cancel := context.WithTimeout(ctx, startTimeout)
	replica, err := Start(sctx, cfg, log, Seams{})
	cancel()
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
