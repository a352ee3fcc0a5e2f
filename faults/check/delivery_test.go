package check

import (
	"strings"
	"testing"

	"github.com/rotatord/rotatord/internal/recorder"
)

func TestDelivery(t *testing.T) {
	put := func(revision int64, ids ...string) recorder.Revision {
		r := recorder.Revision{Revision: revision}
		for _, id := range ids {
			r.Changes = append(r.Changes, recorder.Change{Key: "events/p/" + id})
		}
		return r
	}
	recording := []recorder.Revision{put(5, "b", "a"), put(6, "c"), put(9, "later")}
	a, b, c := Delivered{"a", 5}, Delivered{"b", 5}, Delivered{"c", 6}
	for _, tc := range []struct {
		name    string
		streams [][]Delivered
		want    string // part of the only problem
	}{
		{"once", [][]Delivered{{a, b, c}}, ""},
		{"again in another stream", [][]Delivered{{a, b}, {b, c, {"later", 9}}}, ""},
		{"missing", [][]Delivered{{a}, {c}}, "event b of revision 5 was never delivered"},
		{"order", [][]Delivered{{b, a, c}}, "event a of revision 5 after b"},
		{"twice in a stream", [][]Delivered{{a, a, b, c}}, "event a of revision 5 after a"},
		{"made up", [][]Delivered{{a, b, {"x", 5}, c}}, "event x of revision 5, on record at 0"},
		{"with another revision", [][]Delivered{{a, b, {"c", 7}}}, "event c of revision 7, on record at 6"},
	} {
		got := strings.Join(Delivery("d", recording, 8, tc.streams), "\n")
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: problems %q, want %q", tc.name, got, tc.want)
		}
	}
}
