package grpcapi

import (
	"testing"
	"time"
)

func TestEveryMethodIsInTheTable(t *testing.T) {
	known := make(map[string]bool)
	for _, m := range contract() {
		known[fullMethod(m)] = true
		if _, there := methods[fullMethod(m)]; !there {
			t.Errorf("%s is not in the table", fullMethod(m))
		}
	}
	for name := range methods {
		if !known[name] {
			t.Errorf("the table has %s, which is not in the contract", name)
		}
	}
}

func TestTimeouts(t *testing.T) {
	d := Timeouts{Read: time.Second}.withDefaults()
	for _, tc := range []struct {
		name string
		m    method
		want time.Duration
	}{
		{"read", read, time.Second},
		{"write", write, 1800 * time.Millisecond},
		{"report", reports, 10 * time.Second},
		{"long read", longRead, time.Minute},
		{"long", longOne, time.Minute},
	} {
		if got := d.of(tc.m); got != tc.want {
			t.Errorf("a %s call is bound to %s, want %s", tc.name, got, tc.want)
		}
	}
}
