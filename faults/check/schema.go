package check

import (
	"fmt"
	"strings"
)

// written: a schema is written only after all replicas on record have known it at one moment. That stays so when one
// comes back that does not know it: it reads such records and leaves them alone.
func (r *run) written(id string, rec *record, revision int64, first bool) {
	r.Stats.Schemas[rec.Schema]++
	if first {
		r.world.schema = max(r.world.schema, rec.Schema)
	}
	if rec.Schema > r.world.schema {
		_, pool, name := split(id)
		r.add(Violation{Invariant: "schema", Revision: revision, Pool: pool, Key: name,
			Text: fmt.Sprintf("%s is put with schema %d; what all replicas on record have known is %d", id, rec.Schema, r.world.schema)})
	}
}

// known is the newest schema that all replicas on record know; 0 without any.
func (w *world) known() (least int) {
	for key, rec := range w.at {
		if strings.HasPrefix(key, "replicas/") && (least == 0 || rec.KnowsSchema < least) {
			least = rec.KnowsSchema
		}
	}
	return least
}

// schemas: what a transition writes has no lower schema than what it rewrites or takes away, which would lose what the
// lower one cannot hold.
func (s *step) schemas() {
	lowest, highest, of := 0, 0, ""
	for kind, names := range s.changed {
		for _, id := range names {
			key := kind + "/" + strings.TrimSuffix(id, "/") // a pool's record has no name behind the pool's
			if is := s.is(key); is != nil && !transient(kind) && (lowest == 0 || is.Schema < lowest) {
				lowest, of = is.Schema, id
			}
			if was := s.was(key); was != nil && !transient(kind) {
				highest = max(highest, was.Schema)
			}
		}
	}
	if lowest != 0 && lowest < highest {
		s.violate("schema", of, "a record of schema %d is put in place of one of schema %d", lowest, highest)
	}
}
