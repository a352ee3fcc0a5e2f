package mongoexport

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestExampleFiles holds the example to what its README says of it.
func TestExampleFiles(t *testing.T) {
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join("../../../examples/goproxy", name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	type counts struct{ Keys, Backups, Used, UsedActive, Bindings, Dangling, Problems, Unknown, Secrets int }
	want := counts{Keys: 10, Backups: 25, Used: 5, UsedActive: 3, Bindings: 10, Secrets: 32}
	for layout, names := range map[Layout][3]string{
		LayoutOpenHands: {"openhands_keys.json", "openhands_backup_keys.json", "openhands_bindings.json"},
		LayoutFactory:   {"troll_keys.json", "backup_keys.json", "proxy_key_bindings.json"},
	} {
		keys, backups, bindings := ParseKeys(read(names[0])), ParseBackups(read(names[1])), ParseBindings(read(names[2]))
		got := counts{Keys: len(keys.Docs), Backups: len(backups.Docs), Bindings: len(bindings.Docs),
			Problems: len(keys.Problems) + len(backups.Problems) + len(bindings.Problems),
			Unknown:  len(keys.Unknown) + len(backups.Unknown) + len(bindings.Unknown)}
		active, secrets := map[string]string{}, map[string]bool{}
		note := func(s Secret) {
			secrets[s.Reveal()] = true
			if !strings.Contains(s.Reveal(), "-fake-not-a-real-key-") {
				t.Errorf("%s: a secret that does not say it is fake", layout)
			}
		}
		for _, k := range keys.Docs {
			active[k.ID] = k.Secret.Reveal()
			note(k.Secret)
		}
		for _, b := range backups.Docs {
			note(b.Secret)
			if b.Used {
				got.Used++
				if active[b.ID] == b.Secret.Reveal() {
					got.UsedActive++
				}
			}
		}
		for _, b := range bindings.Docs {
			if active[b.KeyID] == "" || b.Layout != layout || !b.Active {
				got.Dangling++
			}
		}
		got.Secrets = len(secrets)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", layout, diff)
		}
	}
}
