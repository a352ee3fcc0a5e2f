package phases_test

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"

	"github.com/rotatord/rotatord/tools/phasecheck/phases"
)

func TestAnalyzer(t *testing.T) {
	analysistest.Run(t, analysistest.TestData(), phases.Analyzer, "lifecycle", "pool", "other")
}
