package app

import (
	"os"
	"time"

	"github.com/rotatord/rotatord/internal/audit"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
)

// assembleAudit makes the relay, if there is to be one, and the retention.
func (r *Replica) assembleAudit(store pool.Store) (err error) {
	r.retention, err = audit.NewRetention(audit.RetentionConfig{
		Store: r.store, Mirror: r.mirror, Lead: r.elector.Lead, Now: time.Now, Log: r.log, Registerer: r.metrics,
	})
	if err != nil || r.cfg.AuditRelay == "" {
		return err
	}
	name, sink, err := audit.OpenSink(r.cfg.AuditRelay, os.Stdout)
	if err != nil {
		return err
	}
	r.relay, err = audit.NewRelay(audit.RelayConfig{
		Name: name, Sink: sink, Events: r.store, Store: store, Lead: r.elector.Lead, Revision: r.store.Revision,
		Now: time.Now, Log: r.log, Registerer: r.metrics,
	})
	return err
}

var _ audit.RecordStore = (*etcdstore.Store)(nil)
