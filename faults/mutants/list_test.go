package main

import (
	"testing"

	"github.com/rotatord/rotatord/faults/overlay"
)

// Every mutant follows the sources: what it edits is there, exactly once.
func TestMutantsFollowTheSources(t *testing.T) {
	t.Chdir("../..")
	for _, mu := range mutants {
		changed, err := overlay.Apply(mu.overlay())
		if err != nil {
			t.Errorf("%s: %v", mu.name, err)
		} else if len(changed) == 0 {
			t.Errorf("%s edits nothing", mu.name)
		}
	}
}
