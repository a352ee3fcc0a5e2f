package pool

import (
	"testing"
	"time"
)

// A process that stood still does not take the store for slow from then on.
func TestPatienceOutlivesAPause(t *testing.T) {
	var p patience
	for range 20 {
		p.observe(2 * time.Millisecond)
	}
	p.observe(time.Minute)
	if got := p.get(); got > 2*minPatience {
		t.Errorf("after one commit that took a minute: %v", got)
	}
	for range 100 {
		p.observe(time.Minute)
	}
	if got := p.get(); got < maxPatience*99/100 {
		t.Errorf("after many of them: %v, want %v", got, maxPatience)
	}
}
