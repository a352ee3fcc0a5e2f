package app

import (
	"testing"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// The records are there, and whether this replica's keyset opens them is not known yet.
func TestNothingIsWrittenBeforeTheKeysetWasLookedAt(t *testing.T) {
	r := &Replica{mirror: pool.NewMirror(), looked: make(chan struct{})}
	pooltest.NewMemStore().Feed(r.mirror)
	if !r.loaded() {
		t.Fatal("the mirror is not loaded")
	}
	if err := r.Writable(); err != error(errStarting) {
		t.Errorf("writable: %v, want %v", err, errStarting)
	}
	close(r.looked)
	if err := r.Writable(); err != error(errNoQuorum) {
		t.Errorf("writable after the look: %v, want %v: that is next", err, errNoQuorum)
	}
}
