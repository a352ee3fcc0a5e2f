// Command phasecheck holds rotatord's own rules about phases against its code. `make lint` runs it.
package main

import (
	"golang.org/x/tools/go/analysis/singlechecker"

	"github.com/rotatord/rotatord/tools/phasecheck/phases"
)

func main() { singlechecker.Main(phases.Analyzer) }
