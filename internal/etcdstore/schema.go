package etcdstore

import (
	"sync/atomic"

	"github.com/rotatord/rotatord/internal/pool"
)

// schemas decides with which schema records are written: the newest that every replica on record knows, this one among
// them, so that none meets a record that it must leave alone.
//
// It never falls. What the others write may be newer than what this replica has found out about itself, and a record is
// not written with an older schema than it had: so a schema that was read is known to all as well. A replica that starts
// learns from its first look at the records how far the others are.
type schemas struct {
	replica string
	mirror  *pool.Mirror
	newest  int          // that this build knows
	known   atomic.Int64 // to all
}

// newSchemas decides for a replica by who is on record in a mirror. Without one there are no others.
func newSchemas(replica string, mirror *pool.Mirror, newest int) *schemas {
	s := &schemas{replica: replica, mirror: mirror, newest: newest}
	s.known.Store(1)
	if mirror == nil {
		s.rise(newest)
	}
	return s
}

// now is the schema to write with. Once it is this build's there is nothing more to find out.
func (s *schemas) now() int {
	if int(s.known.Load()) < s.newest {
		s.mirror.Read(func(snap *pool.Snapshot) { s.rise(snap.KnownSchema(s.replica)) })
	}
	return int(s.known.Load())
}

// rise takes a schema that all know, or what of it this build knows.
func (s *schemas) rise(schema int) {
	to := int64(min(schema, s.newest))
	for known := s.known.Load(); known < to; known = s.known.Load() {
		if s.known.CompareAndSwap(known, to) {
			return
		}
	}
}
