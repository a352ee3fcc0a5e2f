package pool

import (
	"fmt"
	"testing"
	"time"
)

// What is kept by pool does not grow with pools that came and went.
func TestPoolsAreForgotten(t *testing.T) {
	var notes healthNotes
	for i := range int64(100) {
		notes.keep(&Health{Pool: fmt.Sprint("p", i), Version: Version{ModRevision: i}}, i-2)
	}
	if n := len(notes.last); n != 2 {
		t.Errorf("notes of %d pools are kept, want the 2 that the mirror may not show yet", n)
	}

	var working workingKeys
	start := time.Now()
	for i := range 100 {
		now := start.Add(time.Duration(i) * time.Minute)
		p := &Pool{Name: fmt.Sprint("p", i), Incident: &Incident{Since: now, Until: now.Add(2 * time.Minute)}}
		if working.enough(&sighting{pool: p, active: &Active{Key: "k"}}, 3, now) {
			t.Fatal("one key that works was enough, want three")
		}
	}
	if n := len(working.pools); n != 2 {
		t.Errorf("the ends of %d incidents are kept, want those of the 2 that go on", n)
	}
}
