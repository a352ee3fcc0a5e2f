package app_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// script is a provider as an operator may write one: its keys are files, and its calls are written down.
const script = `#!/bin/sh
set -e
in=$(cat)
field() { printf '%s' "$in" | sed -n 's/.*"'$1'":"\([^"]*\)".*/\1/p'; }
op=$(field op) file=$1/keys/$(field alias)
echo "$op $(field key_id)" >> "$1/calls"
case $op in
mint)
	while test -f "$1/hold"; do sleep 0.05; done
	test -f "$file" || od -An -tx1 -N16 /dev/urandom | tr -d ' \n' > "$file"
	printf '{"result":"ok","secret":"sk-fake-%s"}' "$(cat "$file")" ;;
find) if test -f "$file"; then echo '{"result":"ok"}'; else echo '{"result":"missing"}'; fi ;;
verify) if test -f "$file"; then echo '{"result":"ok"}'; else echo '{"result":"refused"}'; fi ;;
revoke) rm -f "$file"; echo '{"result":"ok"}' ;;
esac
`

// provider is the directory of a script and a line for --exec-provider.
func newScript(t *testing.T) (dir, option string) {
	t.Helper()
	dir = t.TempDir()
	file := filepath.Join(dir, "provider.sh")
	if err := os.WriteFile(file, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, "files=" + file + " " + dir
}

// calls counts the script's calls by their lines.
func calls(t *testing.T, dir string) map[string]int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	n := make(map[string]int)
	for line := range strings.Lines(string(text)) {
		n[strings.TrimSpace(line)]++
	}
	return n
}

// TestLifeOfAMintedKey: stocked by a command, promoted by a rotation, replaced in stock, and the old one revoked; each step
// once, with three replicas.
func TestLifeOfAMintedKey(t *testing.T) {
	c := newCluster(t, 0, nil)
	dir, option := newScript(t)
	c.exec = []string{option}
	for _, name := range []string{"r0", "r1", "r2"} {
		c.start(name, app.Seams{})
	}
	spec := &v1.PoolSpec{
		Provider: &v1.ProviderSpec{Provider: &v1.ProviderSpec_Exec{Exec: &v1.ExecProvider{Name: "files"}}}, Stock: &v1.StockPolicy{Min: 2, Max: 3},
		Retirement: &v1.RetirementPolicy{RevokeAfter: durationpb.New(0)},
	}
	if _, err := c.replicas[0].adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: "p", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the pool is stocked", func() bool { return c.count("backup", "p") == 3 })
	c.add("p", v1.KeyHome_KEY_HOME_ACTIVE, "a", 0, 1)
	first := c.rotate(c.replicas[1], c.request("p", "a0"))
	second := c.rotate(c.replicas[2], c.request("p", first.Rotation.NewKeyId))
	c.want("the second rotation's old key", second.Rotation.OldKeyId, first.Rotation.NewKeyId)
	minted := first.Rotation.NewKeyId
	c.eventually("the retired keys are revoked", func() bool {
		for _, id := range []string{"a0", minted} {
			k, err := c.replicas[0].adm.GetKey(c.ctx(), &v1.GetKeyRequest{Pool: "p", KeyId: id})
			if err != nil || k.Key.Phase != v1.KeyPhase_KEY_PHASE_REVOKED {
				return false
			}
		}
		return true
	})
	c.eventually("the stock is filled again", func() bool { return c.count("backup", "p") == 3 && c.count("stock", "p") == 0 })
	n := calls(t, dir)
	c.want("mints of the key", n["mint "+minted], 1)
	c.want("revocations of the key", n["revoke "+minted], 1)
	for call, times := range n {
		if strings.HasPrefix(call, "mint ") && times != 1 {
			t.Errorf("%s: %d times", call, times)
		}
	}
	if _, err := c.replicas[0].adm.RestoreKey(c.ctx(), &v1.RestoreKeyRequest{Pool: "p", KeyId: minted}); reason(err) != "KEY_NOT_RESTORABLE" {
		t.Errorf("restoring a revoked key: %v", err)
	}
}

// TestDeadMinter: a replica dies after its call and before it could say so; another one finds the key within seconds and
// does not mint it again.
func TestDeadMinter(t *testing.T) {
	c := newCluster(t, 0, nil)
	dir, option := newScript(t)
	c.exec = []string{option}
	var deaths atomic.Int32
	dying := app.Seams{Phases: func(cfg *lifecycle.Config) {
		cfg.Steps = func(ctx context.Context, s lifecycle.Step, rec pool.Record) error {
			if p, ok := rec.(*pool.Preparation); ok && s == lifecycle.StepAnswered && p.Phase == pool.PhaseMinting && deaths.Add(1) == 1 {
				return context.Canceled
			}
			return nil
		}
	}}
	c.start("r0", dying)
	c.start("r1", dying)
	spec := &v1.PoolSpec{
		Provider: &v1.ProviderSpec{Provider: &v1.ProviderSpec_Exec{Exec: &v1.ExecProvider{Name: "files"}}}, Stock: &v1.StockPolicy{Min: 1},
	}
	began := time.Now()
	if _, err := c.replicas[0].adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: "p", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	// The script cannot show the secret of the key it has made: that one is undone and another one made.
	c.eventually("the pool is stocked", func() bool { return c.count("backup", "p") == 1 })
	t.Logf("stocked after %v", time.Since(began))
	for call, times := range calls(t, dir) {
		if strings.HasPrefix(call, "mint ") && times != 1 {
			t.Errorf("%s: %d times", call, times)
		}
	}
	c.want("deaths", deaths.Load() > 0, true)
	c.eventually("the lost key is undone", func() bool {
		keys, err := os.ReadDir(filepath.Join(dir, "keys"))
		return err == nil && len(keys) == 1
	})
}

// TestStopWhileMinting: a replica that is stopped waits for the command that makes a key, and puts its answer on record. It
// is the only place where the secret is.
func TestStopWhileMinting(t *testing.T) {
	c := newCluster(t, 0, nil)
	dir, option := newScript(t)
	c.exec = []string{option}
	hold := filepath.Join(dir, "hold")
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stopped := c.start("r0", app.Seams{})
	spec := &v1.PoolSpec{
		Provider: &v1.ProviderSpec{Provider: &v1.ProviderSpec_Exec{Exec: &v1.ExecProvider{Name: "files"}}}, Stock: &v1.StockPolicy{Min: 1},
	}
	if _, err := stopped.adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: "p", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	c.eventually("a key is being made", func() bool { return len(calls(t, dir)) == 1 })
	done := make(chan struct{})
	go func() {
		defer close(done)
		closeInTime(t, stopped.Replica)
	}()
	select {
	case <-done:
		t.Error("the replica stopped while its command was at work")
	case <-time.After(500 * time.Millisecond):
	}
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	<-done
	c.start("r1", app.Seams{})
	c.eventually("the pool is stocked", func() bool { return c.count("backup", "p") == 1 })
	for call, times := range calls(t, dir) {
		if strings.HasPrefix(call, "find ") || times != 1 {
			t.Errorf("%s: %d times", call, times)
		}
	}
}
