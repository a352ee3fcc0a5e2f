package workload_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/faults/litellm"
	"github.com/rotatord/rotatord/faults/short"
	"github.com/rotatord/rotatord/faults/workload"
	"github.com/rotatord/rotatord/internal/app"
	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	"github.com/rotatord/rotatord/internal/recorder"
	"github.com/rotatord/rotatord/internal/seal"
)

const prefix = "/rotator/"

// replicas starts three replicas on one etcd in this process and returns their addresses.
func replicas(t *testing.T, etcd string) (addresses []string) {
	t.Helper()
	keyset := filepath.Join(t.TempDir(), "keyset.json")
	if _, err := seal.Create(keyset); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		cfg := &app.Config{
			Name: fmt.Sprintf("r%d", i), Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", EtcdEndpoints: []string{etcd}, EtcdPrefix: prefix,
			KeysetFile: keyset, SessionTTL: 5 * time.Second, ShutdownTimeout: 5 * time.Second,
		}
		r, err := app.Start(t.Context(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)), app.Seams{Phases: short.Phases})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = r.Close(ctx)
		})
		for r.Writable() != nil {
			<-time.After(5 * time.Millisecond)
		}
		addresses = append(addresses, r.Address())
	}
	return addresses
}

// seconds is how long the callers work; more with WORKLOAD_SECONDS.
func seconds(t *testing.T) time.Duration {
	if s := os.Getenv("WORKLOAD_SECONDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n) * time.Second
	}
	return 3 * time.Second
}

// enough waits for as long as the callers shall work, and on until they have done much and have met the bound, which they
// do when they are fast: not every machine is idle.
func enough(ctx context.Context, w *history.Writer, least time.Duration) {
	const much = 700
	bounded := func(op history.Op) bool { return op.Reason == "ROTATION_BOUND" }
	timer := time.NewTimer(least)
	defer timer.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	for ops := w.Ops(); ctx.Err() == nil && (len(ops) < much || !slices.ContainsFunc(ops, bounded)); ops = w.Ops() {
		<-tick.C
	}
}

// Without faults the callers find every promise kept, and make enough of everything for the checks to mean something.
func TestQuietRun(t *testing.T) {
	etcd := etcdtest.Start(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	rec, err := recorder.StartWith(t.Context(), client, prefix, recorder.Options{Keep: true, Canaries: []string{"CANARY"}})
	if err != nil {
		t.Fatal(err)
	}
	w := history.NewWriter(nil)
	upstream := litellm.New(7)
	defer upstream.Close()
	load, err := workload.New(t.Context(), workload.Options{Replicas: replicas(t, etcd), Seed: 7, History: w, Upstream: upstream})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		defer cancel()
		enough(ctx, w, seconds(t))
	}()
	load.Run(ctx)
	healed := time.Now()
	if err := load.Final(t.Context()); err != nil {
		t.Error(err)
	}
	ended := time.Now()
	end, err := client.Get(t.Context(), prefix, append(clientv3.WithLastRev(), clientv3.WithPrefix())...)
	if err != nil {
		t.Fatal(err)
	}
	violations, err := rec.Stop(t.Context(), end.Kvs[0].ModRevision)
	if err != nil {
		t.Fatal(err)
	}
	deeds, secrets := upstream.Deeds()
	report := check.Run(check.Input{
		Upstream: deeds, Minted: secrets, Ended: ended,
		Epoch: w.Epoch(), Ops: w.Ops(), Recording: rec.History(), Recorder: violations, Healed: healed, Canaries: load.Canaries(),
		SessionTTL: 5 * time.Second, Slack: 3 * time.Second,
	})
	var text bytes.Buffer
	report.Write(&text)
	if !report.OK() {
		t.Error(text.String())
	}
	s := report.Stats
	t.Logf("%s%v\n%v\nslowest %v", text.String(), s.Requests, s.Errors, s.Slowest)
	if s.Errors["RESOURCE_EXHAUSTED ROTATION_BOUND"] == 0 {
		t.Error("the bound of the bounded pool was never reached")
	}
	if s.Phases < 20 || s.Mints < 5 || s.Revoked == 0 || s.CoolDowns == 0 || s.Verdicts[history.VerdictRotate] == 0 {
		t.Errorf("too little happened to keys at the upstream, or was reported: %+v", s)
	}
	if s.Rotations < 50 || s.Pendings == 0 || s.Lives < 50 || s.Reads < 100 {
		t.Errorf("too little happened: %+v", s)
	}
}
