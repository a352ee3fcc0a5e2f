package lifecycle

import (
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// A write without an event is known again by what it put. One that was lost to somebody else's change must not pass for made:
// what it puts off keeps the intent and the attempts that are on record.
func TestEventlessWritesAreKnownAgain(t *testing.T) {
	now := time.Now()
	announced := &pool.Preparation{Pool: "p", Key: "k", Phase: pool.PhaseMinting, Work: &pool.Work{Generation: 1}}
	id := intent(announced.Work, DefaultLimits(), now)
	asked := &Answer{Call: CallMint, Result: Unknown, phase: pool.PhaseMinting, generation: 1, intent: id}
	put := stepped(announced, announced.Phase, putOff(announced.Work, asked, DefaultLimits(), now.Add(time.Second)))
	for name, tt := range map[string]struct {
		there pool.Record
		want  bool
	}{
		"made": {put, true}, "not made": {announced, false}, "gone": {nil, false},
	} {
		st := &pool.State{Asked: map[pool.Ref]bool{put.Ref(): true}, Records: map[pool.Ref]pool.Record{}}
		if tt.there != nil {
			st.Records[put.Ref()] = tt.there
		}
		if got := wrote(st, &pool.Txn{Put: []pool.Record{put}}); got != tt.want {
			t.Errorf("%s: got %t, want %t", name, got, tt.want)
		}
	}
}
