package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// programs are the files that are run.
type programs struct {
	etcdNormal, etcdSlow string
	replica              string
	trapped              string // a replica that can be held at a step
}

// etcdOf is the etcd of a disk.
func (p *programs) etcdOf(disk string) string {
	if disk == diskSlow {
		return p.etcdSlow
	}
	return p.etcdNormal
}

// build builds all programs that the run needs.
func (b *bench) build(ctx context.Context) error {
	b.etcdNormal, b.etcdSlow = "bin/etcd", "bin/etcd-slow"
	b.replica, b.trapped = b.rotatord, filepath.Join(b.dir, "rotatord-trapped")
	if _, err := os.Stat(b.etcdNormal); err != nil {
		return fmt.Errorf("%w; make etcd builds it, and bench is run in the top directory of the repository", err)
	}
	if slices.Contains(b.disk, diskSlow) && b.wants("rotate") {
		if err := b.buildSlowEtcd(ctx); err != nil {
			return err
		}
	}
	if b.replica == "" {
		from := "./cmd/rotatord"
		if b.pprof != "" {
			from = "./bench/rotatord"
		}
		b.replica = filepath.Join(b.dir, "rotatord")
		if err := goBuild(ctx, "build", "-trimpath", "-o", b.replica, from); err != nil {
			return err
		}
	}
	if b.wants("handover") {
		return goBuild(ctx, "build", "-trimpath", "-o", b.trapped, "./faults/rotatord")
	}
	return nil
}

// slowSync replaces the end of fileutil.Fdatasync. etcd calls that for its WAL and nothing else; bbolt has its own. The
// thread sleeps in the kernel, as it does in a slow sync.
const slowSync = `	pause := syscall.Timespec{Nsec: 2_000_000}
	_ = syscall.Nanosleep(&pause, nil)
	return syscall.Fdatasync(`

const (
	syncModule = "go.etcd.io/etcd/client/pkg/v3"
	syncFile   = "fileutil/sync_linux.go"
)

// buildSlowEtcd builds etcd from the same modules with every sync of the WAL slowed by 2 ms. The go command lays nothing
// over files of the module cache, so what it lays over is tools/go.mod, which then takes the module with the sync from a
// changed copy.
func (b *bench) buildSlowEtcd(ctx context.Context) error {
	found, err := exec.CommandContext(ctx, "go", "list", "-C", "tools", "-m", "-f", "{{.Dir}}", syncModule).Output()
	if err != nil {
		return fmt.Errorf("looking for etcd's module: %w", err)
	}
	changed := filepath.Join(b.dir, "slow-sync")
	if err := os.CopyFS(changed, os.DirFS(strings.TrimSpace(string(found)))); err != nil {
		return fmt.Errorf("copying %s: %w", syncModule, err)
	}
	if err := slowDown(filepath.Join(changed, syncFile)); err != nil {
		return err
	}
	overlay, err := b.overlay("tools/go.mod", fmt.Sprintf("\nreplace %s => %s\n", syncModule, changed))
	if err != nil {
		return err
	}
	target, err := filepath.Abs(b.etcdSlow)
	if err != nil {
		return err
	}
	return goBuild(ctx, "build", "-C", "tools", "-trimpath", "-overlay", overlay, "-o", target, "go.etcd.io/etcd/server/v3")
}

// slowDown changes the sync. The copy has the permissions of the module cache, where nothing can be written.
func slowDown(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	slow := strings.Replace(string(text), "\treturn syscall.Fdatasync(", slowSync, 1)
	if slow == string(text) {
		return fmt.Errorf("%s does not end its sync as it did: the slow etcd cannot be built of it", file)
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(slow), 0o600)
}

// overlay makes the file for go build -overlay that adds text to the end of one file.
func (b *bench) overlay(file, text string) (overlay string, err error) {
	original, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	before, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	replacement, overlay := filepath.Join(b.dir, filepath.Base(file)), filepath.Join(b.dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {original: replacement}})
	if err != nil {
		return "", err
	}
	return overlay, errors.Join(os.WriteFile(replacement, append(before, text...), 0o600), os.WriteFile(overlay, list, 0o600))
}

func goBuild(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}
