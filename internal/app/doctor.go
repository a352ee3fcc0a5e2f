package app

import (
	"cmp"
	"context"
	"slices"

	"github.com/rotatord/rotatord/internal/pool"
)

// doctor adds to the domain's check what only etcd knows.
type doctor struct {
	*pool.Admin
	alarms   func(context.Context) ([]string, error) // etcd's
	makeRoom string                                  // what to do when it is full
}

// Diagnose is the domain's check and etcd's alarms. Alarms that cannot be read do not keep the rest from being told.
func (d *doctor) Diagnose(ctx context.Context) (*pool.Report, error) {
	report, err := d.Admin.Diagnose(ctx)
	if err != nil {
		return nil, err
	}
	report.Findings = append(d.alarmFindings(ctx), report.Findings...)
	slices.SortStableFunc(report.Findings, func(a, b pool.Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return report, nil
}

func (d *doctor) alarmFindings(ctx context.Context) (found []pool.Finding) {
	alarms, err := d.alarms(ctx)
	if err != nil {
		return []pool.Finding{{
			Severity: pool.SeverityWarning, Check: "etcd-alarm", Subject: "etcd",
			Message: "etcd did not say in time whether an alarm is raised",
			Remedy:  "run `rotatorctl doctor` again, or `etcdctl alarm list`",
		}}
	}
	for _, a := range alarms {
		remedy := d.makeRoom
		if !isFull(a) {
			remedy = "look for the alarm in etcd's documentation: it is about its data, and not about rotatord's"
		}
		found = append(found, pool.Finding{
			Severity: pool.SeverityError, Check: "etcd-alarm", Subject: "etcd",
			Message: "etcd has raised the alarm " + a + ": it refuses writes", Remedy: remedy,
		})
	}
	return found
}
