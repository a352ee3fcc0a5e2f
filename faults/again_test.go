package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/internal/recorder"
)

// What was kept of a run is checked as the run was.
func TestRecheck(t *testing.T) {
	at := time.Date(2026, 11, 27, 1, 0, 0, 0, time.UTC)
	in := check.Input{
		Epoch: at, Recorder: []string{"a complaint"}, Single: true, Healed: at.Add(time.Minute), Ended: at.Add(time.Hour), SessionTTL: 3 * time.Second, Slack: time.Second, Locks: "off",
		Ops:       []history.Op{{ID: 1, Kind: history.GetKeys, Start: 1, End: 2, Code: "OK", AsOf: at, Keys: []history.Key{{ID: "k"}}}},
		Recording: []recorder.Revision{{Revision: 2, Seen: at, Changes: []recorder.Change{{Key: "pools/p", Value: json.RawMessage(`{"paused":true}`), Create: 2}}}},
		Faults:    []check.Fault{{Kind: "replica-kill", Target: "r", Start: at, End: at.Add(time.Second)}},
		Held:      []check.Hold{{Replica: "r", Pool: "p", Key: "k", Generation: 2, Start: at, End: at}},
		Upstream:  []check.Deed{{At: at, Pool: "p", Key: "k", Mint: true, Intent: "i"}},
		Minted:    []string{"sk-fake-minted"}, Canaries: []string{"sk-fake-canary"},
	}
	dir := t.TempDir()
	p := &part{Mode: modeEmbedded, dir: filepath.Join(dir, modeEmbedded)}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeLines(t, filepath.Join(p.dir, "history.jsonl"), in.Ops)
	writeLines(t, filepath.Join(p.dir, "revisions.jsonl"), in.Recording)
	in.Files = []string{filepath.Join(p.dir, "rotatord-1.log")}
	if err := os.WriteFile(in.Files[0], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.keepInput(in); err != nil {
		t.Fatal(err)
	}
	got, err := p.keptInput()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, *got, cmpopts.IgnoreFields(check.Input{}, "QuorumLoss")); diff != "" {
		t.Errorf("-kept +read again:\n%s", diff)
	}
	if got.QuorumLoss == nil || !got.QuorumLoss("replica-kill") {
		t.Error("one node has no other to take over, and its loss is not held to be one of the quorum")
	}
	if code := (&options{recheck: t.TempDir()}).again(io.Discard, io.Discard); code != exitFailed {
		t.Errorf("a directory without a run is checked with %d, want %d", code, exitFailed)
	}
	if code := (&options{recheck: dir}).again(io.Discard, io.Discard); code != exitViolated {
		t.Errorf("a run with a complaint of the recorder is checked again with %d, want %d", code, exitViolated)
	}
}

func writeLines[T any](t *testing.T, name string, all []T) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		if err := json.NewEncoder(f).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
