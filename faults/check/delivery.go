package check

import (
	"fmt"
	"strings"

	"github.com/rotatord/rotatord/internal/recorder"
)

// Delivered is an event as a stream or a relay delivered it.
type Delivered struct {
	ID       string
	Revision int64
}

// Delivery holds what was delivered against the recording, up to a revision: every event came, with its revision, and none
// that is not on record. It may have come several times, but within one stream only once and in the order of (revision,
// id). name is what delivered, in one or more streams.
func Delivery(name string, recording []recorder.Revision, upTo int64, streams [][]Delivered) (problems []string) {
	at := make(map[string]int64)
	for _, rev := range recording {
		for _, c := range rev.Changes {
			if kind, _, id := split(c.Key); kind == "events" && !c.Deleted && rev.Revision <= upTo {
				at[id] = rev.Revision
			}
		}
	}
	add := func(format string, args ...any) {
		problems = append(problems, name+": "+fmt.Sprintf(format, args...))
	}
	came := make(map[string]bool)
	for i, stream := range streams {
		var last Delivered
		for _, d := range stream {
			if d.Revision < last.Revision || d.Revision == last.Revision && strings.Compare(d.ID, last.ID) <= 0 {
				add("stream %d: event %s of revision %d after %s of revision %d", i, d.ID, d.Revision, last.ID, last.Revision)
			}
			if rev, there := at[d.ID]; there && rev != d.Revision || !there && d.Revision <= upTo {
				add("stream %d: event %s of revision %d, on record at %d (0: not at all)", i, d.ID, d.Revision, rev)
			}
			last, came[d.ID] = d, true
		}
	}
	for id, rev := range at {
		if !came[id] {
			add("event %s of revision %d was never delivered", id, rev)
		}
	}
	return problems
}
