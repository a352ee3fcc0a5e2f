package nemesis

import (
	"slices"
	"testing"
)

func TestSelect(t *testing.T) {
	for _, test := range []struct {
		name     string
		kinds    []string
		embedded bool
		want     []string
	}{
		{"a name", []string{"leader-move"}, false, []string{"leader-move"}},
		{"a group", []string{"quorum"}, false, []string{"quorum-kill", "quorum-cut"}},
		{"a beginning", []string{"answer-*"}, false, []string{"answer-drop", "answer-cancel", "answer-reset", "answer-duplicate"}},
		{"each once", []string{"quorum-cut", "quorum"}, false, []string{"quorum-cut", "quorum-kill"}},
		{"what makes no sense with one node is left out", []string{"leader-move", "replica-kill"}, true, []string{"replica-kill"}},
		{"nothing that makes sense", []string{"leader-move"}, true, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Select(test.kinds, test.embedded)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("Select(%v, %v) is %v, %v; want %v", test.kinds, test.embedded, got, err, test.want)
			}
		})
	}
	if got, err := Select([]string{"no-such-fault"}, false); err == nil {
		t.Errorf("Select of an unknown fault is %v without an error", got)
	}
}

func TestNamesAreUnique(t *testing.T) {
	names := Names(false)
	slices.Sort(names)
	if n := len(slices.Compact(slices.Clone(names))); n != len(names) {
		t.Errorf("%d names of %d faults: %v", n, len(names), names)
	}
	for _, f := range faults {
		for _, g := range f.groups {
			if slices.Contains(names, g) {
				t.Errorf("%q is a fault and a group", g)
			}
		}
	}
}
