package app_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/seal"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// embeddedConfig is a replica of its own in dir.
func embeddedConfig(dir string) *app.Config {
	return &app.Config{
		Name: "solo", Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", EtcdPrefix: prefix, DataDir: dir, EmbeddedEtcdListen: "127.0.0.1:0",
		KeysetFile: filepath.Join(dir, "keyset.json"), SessionTTL: 5 * time.Second, ShutdownTimeout: 5 * time.Second,
	}
}

func startEmbedded(t *testing.T, cfg *app.Config) (*app.Replica, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return app.Start(ctx, cfg, slog.New(slog.NewTextHandler(io.Discard, nil)), app.Seams{})
}

// closeInTime closes a replica and fails the test if that takes long.
func closeInTime(t *testing.T, r *app.Replica) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Errorf("closing: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("a graceful stop took %v", took)
	}
	if err := r.Close(ctx); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func TestStartStopStart(t *testing.T) {
	cfg := embeddedConfig(t.TempDir())
	for range 2 { // the second start finds the first one's data and keyset
		r, err := startEmbedded(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		closeInTime(t, r)
	}
}

func TestStartFailsClearlyAndLeavesNothing(t *testing.T) {
	wantError := func(t *testing.T, err error, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if err == nil || !strings.Contains(err.Error(), p) {
				t.Errorf("error %v does not say %q", err, p)
			}
		}
	}
	t.Run("address in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cfg := embeddedConfig(t.TempDir())
		cfg.MetricsListen = l.Addr().String()
		_, err = startEmbedded(t, cfg)
		wantError(t, err, "--metrics-listen", "another address")
		if entries, _ := os.ReadDir(cfg.DataDir); len(entries) > 0 {
			t.Errorf("a start that failed left %v", entries)
		}
	})
	t.Run("data directory in use", func(t *testing.T) {
		cfg := embeddedConfig(t.TempDir())
		r, err := startEmbedded(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer closeInTime(t, r)
		began := time.Now()
		_, err = startEmbedded(t, cfg)
		wantError(t, err, cfg.DataDir, "--data-dir")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the second process failed only after %v", took)
		}
	})
	t.Run("keyset lost", func(t *testing.T) {
		cfg := embeddedConfig(t.TempDir())
		r, err := startEmbedded(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		closeInTime(t, r)
		if err := os.Remove(cfg.KeysetFile); err != nil {
			t.Fatal(err)
		}
		_, err = startEmbedded(t, cfg)
		wantError(t, err, cfg.KeysetFile, "backup")
		if _, err := os.Stat(cfg.KeysetFile); err == nil {
			t.Error("a lost keyset was replaced by a new one")
		}
	})
}

// A stop finishes calls under way, and gives the session up so that others need not wait for its lease.
func TestGracefulStop(t *testing.T) {
	steps := newGate(stepRead, true)
	c := newCluster(t, 2, steps.seams)
	t.Cleanup(steps.open)
	c.pool("p", 1, 1)
	done, req := make(chan error, 1), c.request2("p", "a0")
	go func() {
		_, err := c.replicas[0].rot.RotateKey(context.Background(), req)
		done <- err
	}()
	steps.await(t)
	stopped := make(chan struct{})
	go func() {
		closeInTime(t, c.replicas[0].Replica)
		close(stopped)
	}()
	c.eventually("the replica says that it stops", func() bool { return c.replicas[0].Writable() != nil })
	steps.open()
	if err := <-done; err != nil {
		t.Errorf("the call under way was not finished: %v", err)
	}
	<-stopped
	resp, err := c.replicas[1].adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{MinRevision: c.lastChange()})
	if err != nil {
		t.Fatal(err)
	}
	c.eventually("the session is given up", func() bool {
		resp, err = c.replicas[1].adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{})
		return err == nil && len(resp.Replicas) == 1
	})
	c.want("locks left", c.count("locks", "p"), 0)
}

// A replica with another keyset would seal what the others cannot open: it says so and writes nothing.
func TestAnotherKeyset(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.pool("p", 1, 1)
	other := filepath.Join(t.TempDir(), "other.json")
	if _, err := seal.Create(other); err != nil {
		t.Fatal(err)
	}
	r := c.launch("stranger", other, app.Seams{})
	c.eventually("it is noticed", func() bool { return strings.Contains(c.log.String(), "keyset does not open the stored keys") })
	_, err := r.adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "p", Home: v1.KeyHome_KEY_HOME_BACKUP, Keys: []*v1.NewKey{{Id: "n", Secret: secretOf("n")}}})
	c.want("adding keys there", reason(err), "NOT_APPLIED")
	_, err = r.rot.RotateKey(c.ctx(), c.request("p", "a0"))
	c.want("rotating there", reason(err), "NOT_APPLIED")
	c.want("rotating at another replica", c.rotate(c.replicas[0], c.request("p", "a0")).Outcome, v1.Outcome_OUTCOME_ROTATED)
}

// Two replicas with different keysets start on an empty etcd, where nothing tells which of them is wrong. The first secret
// does.
func TestAnotherKeysetOnAnEmptyEtcd(t *testing.T) {
	c := newCluster(t, 1, nil)
	other := filepath.Join(t.TempDir(), "other.json")
	if _, err := seal.Create(other); err != nil {
		t.Fatal(err)
	}
	r := c.launch("stranger", other, app.Seams{})
	c.eventually("the stranger serves", func() bool { return r.Writable() == nil })
	c.pool("p", 1, 1)
	c.eventually("it is noticed", func() bool { return r.Writable() != nil })
	_, err := r.adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "p", Home: v1.KeyHome_KEY_HOME_BACKUP, Keys: []*v1.NewKey{{Id: "n", Secret: secretOf("n")}}})
	c.want("adding keys there", reason(err), "NOT_APPLIED")
	c.want("rotating at the first replica", c.rotate(c.replicas[0], c.request("p", "a0")).Outcome, v1.Outcome_OUTCOME_ROTATED)
}

// Two processes have one name. When one goes, the other is on record again.
func TestNameTakenAndGivenBack(t *testing.T) {
	c := newCluster(t, 1, nil)
	twin := c.launch("r0", c.keyset, app.Seams{})
	c.eventually("the twin is on record", func() bool { return twin.Writable() == nil && c.address("r0") == twin.Address() })
	closeInTime(t, twin.Replica)
	c.eventually("the first is on record again", func() bool { return c.address("r0") == c.replicas[0].Address() })
}

func (c *cluster) address(name string) string {
	resp, err := c.replicas[0].adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range resp.Replicas {
		if r.Name == name {
			return r.Address
		}
	}
	return ""
}
