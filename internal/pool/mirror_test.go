package pool_test

import (
	"errors"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// What all replicas know is what the oldest one knows, and the oldest there can be as long as that is not certain.
func TestKnownSchema(t *testing.T) {
	knows := func(name string, schema int) pool.Record { return &pool.Replica{Name: name, KnowsSchema: schema} }
	for _, test := range []struct {
		name     string
		replicas []pool.Record
		want     int
	}{
		{"nobody is on record", nil, 1},
		{"only others are", []pool.Record{knows("r1", 3)}, 1},
		{"this one alone", []pool.Record{knows("r0", 3)}, 3},
		{"all the same", []pool.Record{knows("r0", 3), knows("r1", 3)}, 3},
		{"an older one", []pool.Record{knows("r0", 3), knows("r1", 2), knows("r2", 4)}, 2},
		{"one that does not say", []pool.Record{knows("r0", 3), knows("r1", 0)}, 1},
		{"one that cannot be read", []pool.Record{knows("r0", 3), &pool.Broken{Of: pool.ReplicaRef("r1"), Err: errors.New("no JSON")}}, 1},
		{"something else that cannot be read", []pool.Record{knows("r0", 3), &pool.Broken{Of: pool.PoolRef("p"), Err: errors.New("no JSON")}}, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := pool.NewMirror()
			m.Load(test.replicas, 1, time.Time{})
			m.Read(func(s *pool.Snapshot) {
				if got := s.KnownSchema("r0"); got != test.want {
					t.Errorf("known to all: schema %d, want %d", got, test.want)
				}
			})
		})
	}
}
