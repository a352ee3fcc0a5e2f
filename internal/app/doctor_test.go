package app

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// etcd is busy, and does not answer for its alarms in time: what else was found is told, the worst first.
func TestDoctorWithoutAlarms(t *testing.T) {
	store := pooltest.NewMemStore()
	store.Put(&pool.Broken{Of: pool.PoolRef("broken"), Err: errors.New("bad JSON")})
	d := &doctor{
		Admin:  pool.NewAdmin(pool.AdminConfig{Store: store, Sealer: pooltest.FakeSealer{}, Replica: "r"}),
		alarms: func(context.Context) ([]string, error) { return nil, context.DeadlineExceeded },
	}
	report, err := d.Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	warned := 0
	for i, f := range report.Findings {
		if f.Check == "etcd-alarm" && f.Severity == pool.SeverityWarning && f.Remedy != "" {
			warned++
		}
		if i > 0 && f.Severity > report.Findings[i-1].Severity {
			t.Errorf("%s comes after what is less severe", f.Check)
		}
	}
	if warned != 1 || len(report.Errors()) == 0 {
		t.Errorf("found %+v, want one warning about the alarms, and the record that cannot be read", report.Findings)
	}
}

func TestDoctorTellsOfAlarms(t *testing.T) {
	for alarm, remedy := range map[string]string{"NOSPACE at member 1": "a larger disk", "CORRUPT at member 1": "etcd's documentation"} {
		d := &doctor{
			Admin:    pool.NewAdmin(pool.AdminConfig{Store: pooltest.NewMemStore(), Sealer: pooltest.FakeSealer{}, Replica: "r"}),
			alarms:   func(context.Context) ([]string, error) { return []string{alarm}, nil },
			makeRoom: "a larger disk",
		}
		report, err := d.Diagnose(t.Context())
		if err != nil || len(report.Errors()) != 1 || report.Errors()[0].Check != "etcd-alarm" || !strings.Contains(report.Errors()[0].Remedy, remedy) {
			t.Errorf("found %+v, %v; want the alarm %s as an error with a remedy that says %s", report, err, alarm, remedy)
		}
	}
}
