package overlay_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rotatord/rotatord/faults/overlay"
)

// A program is built from edited sources, and the sources stay as they are.
func TestBuild(t *testing.T) {
	t.Chdir(t.TempDir())
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example\n")
	write("main.go", "package main\n\nfunc main() { println(`plain`) }\n")
	program := filepath.Join(t.TempDir(), "program")
	for _, test := range []struct {
		edits []overlay.Edit
		want  string
	}{
		{nil, "plain\n"},
		{[]overlay.Edit{{File: "main.go", Old: "plain", New: "edited"}, {File: "main.go", Old: "edited", New: "edited twice"}}, "edited twice\n"},
	} {
		if err := overlay.Build(t.Context(), program, ".", test.edits); err != nil {
			t.Fatal(err)
		}
		if said, err := exec.Command(program).CombinedOutput(); err != nil || string(said) != test.want {
			t.Errorf("with the edits %v the program says %q, %v; want %q", test.edits, said, err, test.want)
		}
	}
	if err := overlay.Build(t.Context(), program, ".", []overlay.Edit{{File: "main.go", Old: "m", New: "n"}}); err == nil {
		t.Error("a text that is there more than once was edited")
	}
}
