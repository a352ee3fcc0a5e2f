package pool

import (
	"testing"
	"time"
)

func TestCooled(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	for name, tc := range map[string]struct {
		was   Status
		until time.Time
		to    Status
		end   time.Time
		write bool
	}{
		"healthy":                        {StatusHealthy, time.Time{}, StatusRateLimited, in(time.Minute), true},
		"a cool-down that has passed":    {StatusError, in(-time.Second), StatusRateLimited, in(time.Minute), true},
		"not lengthened":                 {StatusRateLimited, in(time.Minute), StatusRateLimited, in(time.Minute), false},
		"shortened":                      {StatusRateLimited, in(time.Hour), StatusError, in(time.Minute), false},
		"lengthened a little":            {StatusRateLimited, in(time.Minute), StatusRateLimited, in(65 * time.Second), false},
		"lengthened by less than second": {StatusRateLimited, in(time.Second), StatusRateLimited, in(1900 * time.Millisecond), false},
		"lengthened by much":             {StatusRateLimited, in(time.Minute), StatusRateLimited, in(2 * time.Minute), true},
		"another reason, for longer":     {StatusError, in(30 * time.Second), StatusRateLimited, in(time.Minute), true},
		"exhausted":                      {StatusExhausted, time.Time{}, StatusRateLimited, in(time.Minute), false},
		"disabled":                       {StatusDisabled, time.Time{}, StatusRateLimited, in(time.Minute), false},
		"over before it began":           {StatusHealthy, time.Time{}, StatusRateLimited, now, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Active{Pool: "p", Key: "k", Status: tc.was, StatusUntil: tc.until}
			got := cooled(a, tc.to, tc.end, "r", now)
			if (got != nil) != tc.write {
				t.Fatalf("cooled down from %v until %v to %v until %v: written is %v, want %v", tc.was, tc.until, tc.to, tc.end, got != nil, tc.write)
			}
			if got != nil && (got.Status != tc.to || got.StatusUntil != tc.end || got.StatusSince != now || got.StatusReason != "r") {
				t.Errorf("the key is %+v, want %v until %v since %v because of r", got, tc.to, tc.end, now)
			}
			if a.Status != tc.was {
				t.Errorf("the record itself was changed to %v", a.Status)
			}
		})
	}
}
