package seal_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rotatord/rotatord/internal/seal"
)

func create(t *testing.T) (string, *seal.Keyset) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keyset.json")
	k, err := seal.Create(path)
	if err != nil {
		t.Fatalf("creating a keyset: %v", err)
	}
	return path, k
}

func wantError(t *testing.T, err, want error, parts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error = %v, want %v", err, want)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestCreateThenLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir", "keyset.json")
	k, err := seal.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := seal.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	wantOpens(t, again, poolName, keyID, sealed(t, k, poolName, keyID, canary), canary)
	if k.ID() != again.ID() {
		t.Errorf("created %v, loaded %v", k, again)
	}
}

func TestCreateIsPrivateAndLeavesNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "keyset.json")
	if _, err := seal.Create(path); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != want {
			t.Errorf("mode of %s = %04o, want %04o", name, got, want)
		}
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1 {
		t.Errorf("the directory holds %v, %v, want only the keyset", list, err)
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	path, k := create(t)
	_, err := seal.Create(path)
	wantError(t, err, seal.ErrExists, path)
	if again, err := seal.Load(path); err != nil || again.ID() != k.ID() {
		t.Errorf("after a second Create the file holds %v, %v, want %v", again, err, k)
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1 {
		t.Errorf("the directory holds %v, %v, want only the keyset", list, err)
	}
}

func TestCreateBesideTheRestsOfACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	rest := filepath.Join(filepath.Dir(path), ".keyset.json.123")
	if err := os.WriteFile(rest, []byte(`{"aead": {"pri`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, created, err := seal.LoadOrCreate(path); err != nil || !created {
		t.Errorf("LoadOrCreate = created %v, %v", created, err)
	}
}

func TestCreateFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(file, "keyset.json")
	if _, err := seal.Create(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Create below a file = %v, want an error that names %s", err, path)
	}
}

func TestLoadMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	_, err := seal.Load(path)
	wantError(t, err, seal.ErrMissing, path, "first replica", "embedded etcd")
}

func TestLoadInvalid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := seal.Load(path)
	wantError(t, err, seal.ErrInvalid, path)
	_, err = seal.Load(t.TempDir())
	wantError(t, err, seal.ErrInvalid, "not a regular file")
	_, created, err := seal.LoadOrCreate(path)
	wantError(t, err, seal.ErrInvalid)
	if created {
		t.Error("LoadOrCreate replaced a file that it cannot read")
	}
}

func TestLoadChecksTheMode(t *testing.T) {
	path, _ := create(t)
	for _, mode := range []os.FileMode{0o400, 0o440, 0o600, 0o640} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.Load(path); err != nil {
			t.Errorf("Load with mode %04o = %v", mode, err)
		}
	}
	for _, mode := range []os.FileMode{0o644, 0o604, 0o602, 0o601, 0o660, 0o620, 0o444, 0o666, 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := seal.Load(path)
		wantError(t, err, seal.ErrExposed, fmt.Sprintf("%04o", mode), "chmod 600 "+path, "defaultMode: 0400")
	}
}

// Kubernetes mounts keyset.json -> ..data/keyset.json, ..data -> a directory with a date.
func TestLoadFollowsLinks(t *testing.T) {
	path, k := create(t)
	dir := t.TempDir()
	for from, to := range map[string]string{"..data": filepath.Dir(path), "keyset.json": "..data/keyset.json"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := seal.Load(filepath.Join(dir, "keyset.json"))
	if err != nil || got.ID() != k.ID() {
		t.Errorf("Load through links = %v, %v, want %v", got, err, k)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = seal.Load(filepath.Join(dir, "keyset.json"))
	wantError(t, err, seal.ErrExposed) // the file's mode counts, not the link's
}

func TestLoadOrCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	first, created, err := seal.LoadOrCreate(path)
	if err != nil || !created {
		t.Fatalf("first LoadOrCreate = created %v, %v", created, err)
	}
	second, created, err := seal.LoadOrCreate(path)
	if err != nil || created || second.ID() != first.ID() {
		t.Errorf("second LoadOrCreate = %v, created %v, %v, want %v", second, created, err, first)
	}
}

func TestConcurrentCreatorsGetOneKeyset(t *testing.T) {
	const creators = 16
	for range 20 {
		path := filepath.Join(t.TempDir(), "keyset.json")
		var (
			mu   sync.Mutex // protects ids and wins
			ids  = map[string]bool{}
			wins int
			wg   sync.WaitGroup
		)
		for range creators {
			wg.Go(func() {
				k, created, err := seal.LoadOrCreate(path)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				ids[k.ID()] = true
				if created {
					wins++
				}
			})
		}
		wg.Wait()
		if len(ids) != 1 || wins != 1 {
			t.Fatalf("%d creators got %d keysets, %d say that they made it, want one and one", creators, len(ids), wins)
		}
	}
}
