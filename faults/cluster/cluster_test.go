package cluster_test

import (
	"path/filepath"
	"testing"

	"github.com/rotatord/rotatord/faults/cluster"
	"github.com/rotatord/rotatord/faults/overlay"
)

// The edits of the build to come fit the sources. The domain is where they may not.
func TestNextBuild(t *testing.T) {
	t.Chdir("../..")
	if err := overlay.Build(t.Context(), filepath.Join(t.TempDir(), "pool"), "./internal/pool", cluster.NextBuild); err != nil {
		t.Error(err)
	}
}
