package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// examples is where the gateway's export is, from the repository's top directory.
const examples = "examples/goproxy"

// poolState is a pool of the gateway, with the modules of it that reported its dead keys.
type poolState struct {
	name                    string
	keys, backups, bindings string // files
	provider, pool          string // sources of the two triggers
	before, after           counts
}

func gatewayPools() []*poolState {
	return []*poolState{
		{name: "openhands", keys: "openhands_keys.json", backups: "openhands_backup_keys.json", bindings: "openhands_bindings.json",
			provider: "openhands", pool: "openhandspool"},
		{name: "troll", keys: "troll_keys.json", backups: "backup_keys.json", bindings: "proxy_key_bindings.json",
			provider: "troll", pool: "keypool"},
	}
}

// importPools takes the gateway's pools over as an operator would.
func (d *demo) importPools(ctx context.Context) error {
	d.pools = gatewayPools()
	d.say("importing the gateway's two pools from %s with rotatorctl import mongo", examples)
	for _, p := range d.pools {
		text, err := d.ctl(ctx, "import", "mongo", p.name, "-o", "json", "--keys", filepath.Join(examples, p.keys),
			"--backups", filepath.Join(examples, p.backups), "--bindings", filepath.Join(examples, p.bindings))
		if err != nil {
			return err
		}
		var report struct {
			Keys, Backups, Proxies struct{ New int }
			UsedActive, UsedGone   int
		}
		if err := json.Unmarshal(text, &report); err != nil {
			return fmt.Errorf("reading what rotatorctl says: %w", err)
		}
		fmt.Fprintf(d.out, "   %-9s  %d active keys, %d backups (%d used ones left out), %d bound proxies\n",
			p.name, report.Keys.New, report.Backups.New, report.UsedActive+report.UsedGone, report.Proxies.New)
	}
	return nil
}

// showPools shows what an operator sees, and counts from outside.
func (d *demo) showPools(ctx context.Context) error {
	d.say("the pools now: rotatorctl pool list; rotatorctl key list openhands --state active")
	for i, args := range [][]string{{"pool", "list"}, {"key", "list", "openhands", "--state", "active"}} {
		text, err := d.ctl(ctx, args...)
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(d.out)
		}
		fmt.Fprint(d.out, indent(text))
	}
	found, err := d.etcd.read(ctx)
	if err != nil {
		return err
	}
	for _, p := range d.pools {
		if p.before, err = found.count(p.name); err != nil {
			return err
		}
	}
	return nil
}

func indent(text []byte) string {
	return "   " + strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n   ") + "\n"
}

// ctl runs bin/rotatorctl at the first replica.
func (d *demo) ctl(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "rotatorctl"), args...)
	cmd.Env, cmd.SysProcAttr = environ("ROTATORCTL_SERVER="+d.replicas[0].address), childAttributes()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return text, fmt.Errorf("rotatorctl %s: %w\n%s%s", strings.Join(args, " "), err, text, stderr.String())
	}
	return text, nil
}

// target is a key that is about to be reported dead.
type target struct {
	pool    *poolState
	key     *rotatorv1.Key
	answers []answer
}

// chooseKeys takes keys of the pools in turn.
func (d *demo) chooseKeys(ctx context.Context) error {
	lists := make([][]*rotatorv1.Key, len(d.pools))
	for i, p := range d.pools {
		list, err := d.replicas[0].admin.ListKeys(ctx, &rotatorv1.ListKeysRequest{Pool: p.name, Home: rotatorv1.KeyHome_KEY_HOME_ACTIVE})
		if err != nil {
			return err
		}
		lists[i] = list.GetKeys()
	}
	for i := range d.keys {
		p := i % len(d.pools)
		// From the end, where the gateway's original keys are.
		at := len(lists[p]) - 1 - i/len(d.pools)
		if at < 0 {
			return fmt.Errorf("pool %s has %d active keys, and --keys %d needs more", d.pools[p].name, len(lists[p]), d.keys)
		}
		d.targets = append(d.targets, &target{pool: d.pools[p], key: lists[p][at]})
	}
	return nil
}
