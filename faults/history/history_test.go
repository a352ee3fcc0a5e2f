package history_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rotatord/rotatord/faults/history"
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	var file bytes.Buffer
	w := history.NewWriter(&file)
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			start := w.Now()
			w.Add(history.Op{
				Kind: history.Rotate, Client: fmt.Sprint(i), Pool: "p", Key: "k", Start: start, End: w.Now(), Code: history.OK,
				Outcome: history.Rotated, Rotation: &history.Rotation{ID: "r", Generation: 7},
			})
		})
	}
	writers.Wait()
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := history.Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w.Ops(), got); diff != "" || len(got) != 8 {
		t.Errorf("read %d operations, want the 8 that were written:\n%s", len(got), diff)
	}
}

func TestWhatAnAnswerPromises(t *testing.T) {
	for _, tc := range []struct {
		code, reason        string
		unknown, notApplied bool
	}{
		{"OK", "", false, false},
		{"UNAVAILABLE", "NOT_APPLIED", false, true},
		{"UNAVAILABLE", "OUTCOME_UNKNOWN", true, false},
		{"UNAVAILABLE", "", true, false},
		{"DEADLINE_EXCEEDED", "", true, false},
		{"FAILED_PRECONDITION", "POOL_PAUSED", false, true},
	} {
		op := history.Op{Code: tc.code, Reason: tc.reason}
		if op.Unknown() != tc.unknown || op.NotApplied() != tc.notApplied {
			t.Errorf("%s %s: unknown %v, not applied %v; want %v, %v", tc.code, tc.reason, op.Unknown(), op.NotApplied(), tc.unknown, tc.notApplied)
		}
	}
}
