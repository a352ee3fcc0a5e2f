package app

import (
	"context"

	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
)

// doctor adds to the domain's check what only etcd knows.
type doctor struct {
	*pool.Admin
	store *etcdstore.Store
}

// Diagnose is the domain's check and etcd's alarms.
func (d *doctor) Diagnose(ctx context.Context) (*pool.Report, error) {
	report, err := d.Admin.Diagnose(ctx)
	if err != nil {
		return nil, err
	}
	alarms, err := d.store.Alarms(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range alarms {
		report.Findings = append([]pool.Finding{{
			Severity: pool.SeverityError, Check: "etcd-alarm", Subject: "etcd",
			Message: "etcd has raised the alarm " + a + ": it refuses writes",
			Remedy:  "compact and defragment etcd or raise its quota, then run `etcdctl alarm disarm`",
		}}, report.Findings...)
	}
	return report, nil
}
