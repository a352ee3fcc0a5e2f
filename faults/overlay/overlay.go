// Package overlay builds programs of this module from sources that are edited on the way. The working tree, which must
// be the current directory, is not touched.
package overlay

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Edit replaces a text that is in a file exactly once: one that is not has to follow the sources.
type Edit struct{ File, Old, New string }

// Apply returns the edited files.
func Apply(edits []Edit) (map[string]string, error) {
	changed := make(map[string]string)
	for _, e := range edits {
		text, has := changed[e.File]
		if !has {
			content, err := os.ReadFile(e.File)
			if err != nil {
				return nil, err
			}
			text = string(content)
		}
		if n := strings.Count(text, e.Old); n != 1 {
			return nil, fmt.Errorf("a text is in %s %d times, not once:\n%s", e.File, n, e.Old)
		}
		changed[e.File] = strings.Replace(text, e.Old, e.New, 1)
	}
	return changed, nil
}

// Build builds the package of as program. It leaves the edited files beside it.
func Build(ctx context.Context, program, of string, edits []Edit) error {
	changed, err := Apply(edits)
	if err != nil {
		return err
	}
	list := struct{ Replace map[string]string }{make(map[string]string)}
	dir := program + ".overlay"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for file, text := range changed {
		path, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		list.Replace[path] = filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(list.Replace[path], []byte(text), 0o600); err != nil {
			return err
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", program, of).CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", of, err, out)
	}
	return nil
}
