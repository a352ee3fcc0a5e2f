package provider_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/provider"
	"github.com/rotatord/rotatord/internal/provider/providertest"
)

// fakeCommand makes this test binary a provider's command: its keys are files in a directory.
const fakeCommand = "fake-provider-command"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == fakeCommand {
		os.Exit(command(os.Args[2]))
	}
	os.Exit(m.Run())
}

// command answers one request. What it does to it is said in the file "trouble".
func command(dir string) int {
	var req struct{ Op, Pool, Alias, Secret string }
	if err := json.NewDecoder(os.Stdin).Decode(&req); err != nil {
		return 2
	}
	answer := func(result, secret string) int {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]string{"result": result, "secret": secret, "message": "about " + req.Secret})
		return 0
	}
	_ = os.WriteFile(filepath.Join(dir, "environment"), []byte(strings.Join(os.Environ(), "\n")), 0o600)
	file := filepath.Join(dir, "keys", req.Alias)
	kept, err := os.ReadFile(file)
	trouble, _ := os.ReadFile(filepath.Join(dir, "trouble"))
	changes := req.Op == "mint" || req.Op == "revoke"
	switch {
	case changes && string(trouble) == "refuse":
		return answer("nothing_done", "")
	case changes && string(trouble) == "hang":
		time.Sleep(time.Minute)
	case changes && string(trouble) == "page":
		_, _ = os.Stdout.WriteString("<html><title>Sign in</title></html>")
		return 0
	case string(trouble) == "talk":
		_, _ = os.Stdout.WriteString(strings.Repeat("x", 1<<20))
		return 0
	}
	switch req.Op {
	case "mint":
		if err != nil {
			kept = []byte("sk-fake-" + pool.NewID())
			_ = os.WriteFile(file, kept, 0o600)
		}
		if string(trouble) == "lose" {
			return 3
		}
		return answer("ok", string(kept))
	case "find":
		if err != nil {
			return answer("missing", "")
		}
		return answer("ok", "")
	case "verify":
		if err != nil || string(kept) != req.Secret {
			return answer("refused", "")
		}
		return answer("ok", "")
	case "revoke":
		_ = os.Remove(file)
		if string(trouble) == "lose" {
			return 3
		}
		return answer("ok", "")
	}
	return 2
}

func execUpstream(t *testing.T) providertest.Upstream { return execIn(t, t.TempDir()) }

func execIn(t *testing.T, dir string) providertest.Upstream {
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	words := map[providertest.Trouble]string{providertest.Refuse: "refuse", providertest.Lose: "lose", providertest.Hang: "hang", providertest.Page: "page", talk: "talk"}
	return providertest.Upstream{
		Provider: &provider.Exec{Command: []string{os.Args[0], fakeCommand, dir}},
		Keys: func() int {
			keys, err := os.ReadDir(filepath.Join(dir, "keys"))
			if err != nil {
				t.Fatal(err)
			}
			return len(keys)
		},
		Trouble: func(w providertest.Trouble) {
			if err := os.WriteFile(filepath.Join(dir, "trouble"), []byte(words[w]), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// talk is a trouble of commands only: an answer without end.
const talk = providertest.Page + 1

func TestExec(t *testing.T) { providertest.Run(t, execUpstream) }

func TestExecAnswerIsBounded(t *testing.T) {
	u := execUpstream(t)
	u.Trouble(talk)
	_, err := u.Provider.Mint(t.Context(), pool.ProviderKey{Alias: "a"})
	if err == nil || errors.Is(err, pool.ErrNothingDone) {
		t.Errorf("got %v, want an outcome that is not known", err)
	}
}

// A command gets the variables that it may have and no others, also where none of those is set.
func TestExecEnvironment(t *testing.T) {
	t.Setenv("ROTATORD_FAKE", "sk-fake-of-the-daemon")
	for _, tt := range []struct {
		name string
		set  map[string]string
		want string
	}{{"some", map[string]string{"LANG": "C", "TZ": "UTC"}, "LANG=C\nTZ=UTC"}, {"none", nil, ""}} {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range provider.Passed {
				t.Setenv(name, "") // is set again after the test
				_ = os.Unsetenv(name)
			}
			dir := t.TempDir()
			u := execIn(t, dir)
			for name, value := range tt.set {
				t.Setenv(name, value)
			}
			if _, err := u.Provider.Mint(t.Context(), pool.ProviderKey{Alias: "a"}); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "environment")); err != nil || string(got) != tt.want {
				t.Errorf("the command has the environment %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestExecThatCannotStart(t *testing.T) {
	_, err := (&provider.Exec{Command: []string{"/no/such/program"}}).Mint(t.Context(), pool.ProviderKey{Alias: "a"})
	if !errors.Is(err, pool.ErrNothingDone) {
		t.Errorf("got %v, want %v", err, pool.ErrNothingDone)
	}
}

func TestParseCommand(t *testing.T) {
	for text, want := range map[string]int{"a=cmd": 1, "a=cmd x  y": 3, "a=": 0, "cmd": 0, "=cmd": 0, "a b=cmd": 0} {
		if _, command, err := provider.ParseCommand(text); len(command) != want || (err == nil) != (want > 0) {
			t.Errorf("%q: got %q, %v", text, command, err)
		}
	}
}
