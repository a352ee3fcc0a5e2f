package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rotatord/rotatord/internal/app"
	pb "github.com/rotatord/rotatord/proto/rotator/v1"
)

// stepLimit ends a step that hangs.
const stepLimit = 30 * time.Second

// service is the real thing: a replica with an etcd of its own, and a client that looks into that etcd.
type service struct {
	dir     string
	replica *app.Replica
	etcd    *clientv3.Client
	saved   string // what was in etcd, by the command `revision save`
}

func (s *service) serve(tb interface{ Fatal(...any) }) (string, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	if err := s.start(ctx); err != nil {
		tb.Fatal(err)
	}
	return s.replica.Address(), func() {
		if err := s.stop(); err != nil {
			tb.Fatal(err)
		}
	}
}

func (s *service) start(ctx context.Context) (err error) {
	cfg := &app.Config{
		Name: "e2e", Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", EtcdPrefix: "/rotator/", DataDir: s.dir, EmbeddedEtcdListen: "127.0.0.1:0",
		KeysetFile: filepath.Join(s.dir, "keyset.json"), SessionTTL: 5 * time.Second, ShutdownTimeout: 5 * time.Second,
	}
	if s.replica, err = app.Start(ctx, cfg, slog.New(slog.DiscardHandler), app.Seams{}); err != nil {
		return err
	}
	s.etcd, err = clientv3.New(clientv3.Config{Endpoints: s.replica.EtcdEndpoints(), DialTimeout: stepLimit, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	return s.healthy(ctx)
}

// healthy waits until health says that keys are rotated.
func (s *service) healthy(ctx context.Context) error {
	conn, err := grpc.NewClient(s.replica.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	watch, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{Service: pb.RotationService_ServiceDesc.ServiceName})
	for serving := false; err == nil && !serving; {
		var answer *healthv1.HealthCheckResponse
		answer, err = watch.Recv()
		serving = answer.GetStatus() == healthv1.HealthCheckResponse_SERVING
	}
	if err != nil {
		return err
	}
	// Lists are answered from memory, which has caught up with the replica's own start when this is answered.
	now, err := s.etcd.Get(ctx, "/rotator/")
	if err != nil {
		return err
	}
	_, err = pb.NewAdminServiceClient(conn).ListReplicas(ctx, &pb.ListReplicasRequest{MinRevision: now.Header.GetRevision()})
	return err
}

func (s *service) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	_ = s.etcd.Close()
	return s.replica.Close(ctx)
}

// TestEndToEnd runs scripts against the real service, each against one of its own.
func TestEndToEnd(t *testing.T) {
	runScripts(t, "testdata/e2e", func() scriptServer { return &service{dir: t.TempDir()} }, map[string]func(*testscript.TestScript, bool, []string){
		"exit":     scriptExit,
		"etcd":     scriptEtcd,
		"revision": scriptRevision,
		"json":     scriptJSON,
	})
}

// scriptEtcd edits etcd by hand: etcd put KEY VALUE, etcd lease KEY VALUE, etcd del KEY, etcd copy FROM TO, etcd edit KEY
// OLD NEW. Keys are without the prefix.
func scriptEtcd(ts *testscript.TestScript, neg bool, args []string) {
	arguments := map[string]int{"put": 3, "lease": 3, "del": 2, "copy": 3, "edit": 4}
	if neg || len(args) == 0 || len(args) != arguments[args[0]] {
		ts.Fatalf("usage: etcd put|lease KEY VALUE, etcd del KEY, etcd copy FROM TO, etcd edit KEY OLD NEW")
	}
	s := ts.Value(serverKey{}).(*service)
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	ts.Check(s.edit(ctx, args[0], "/rotator/"+args[1], args[2:]))
}

func (s *service) edit(ctx context.Context, verb, key string, args []string) error {
	switch verb {
	case "put":
		_, err := s.etcd.Put(ctx, key, args[0])
		return err
	case "lease":
		lease, err := s.etcd.Grant(ctx, 600)
		if err != nil {
			return err
		}
		_, err = s.etcd.Put(ctx, key, args[0], clientv3.WithLease(lease.ID))
		return err
	case "del":
		answer, err := s.etcd.Delete(ctx, key)
		if err == nil && answer.Deleted != 1 {
			err = fmt.Errorf("%s is not there", key)
		}
		return err
	}
	answer, err := s.etcd.Get(ctx, key)
	if err != nil || len(answer.Kvs) != 1 {
		return fmt.Errorf("%s: found %d: %w", key, len(answer.Kvs), err)
	}
	value := string(answer.Kvs[0].Value)
	if verb == "copy" {
		_, err = s.etcd.Put(ctx, "/rotator/"+args[0], value)
		return err
	}
	if !strings.Contains(value, args[0]) {
		return fmt.Errorf("%s does not have %q: %s", key, args[0], value)
	}
	_, err = s.etcd.Put(ctx, key, strings.Replace(value, args[0], args[1], 1))
	return err
}

// scriptRevision tells whether etcd has been written to: revision save, and later revision same.
func scriptRevision(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: revision save|same")
	}
	s := ts.Value(serverKey{}).(*service)
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	now, err := s.records(ctx)
	ts.Check(err)
	switch {
	case args[0] == "save":
		s.saved = now
	case now != s.saved:
		ts.Fatalf("etcd was written to; there was\n%s\nand there is\n%s", s.saved, now)
	}
}

// records lists all keys with the revisions they were written at, but for what replicas write by themselves as they start.
func (s *service) records(ctx context.Context) (string, error) {
	answer, err := s.etcd.Get(ctx, "/rotator/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return "", err
	}
	var keys strings.Builder
	for _, kv := range answer.Kvs {
		if !strings.HasPrefix(string(kv.Key), "/rotator/leaders/") {
			fmt.Fprintf(&keys, "%s at %d\n", kv.Key, kv.ModRevision)
		}
	}
	return keys.String(), nil
}

// scriptJSON puts a value of the last output into a variable: json NAME FIELD.FIELD...
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: json NAME FIELD.FIELD...")
	}
	var value any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &value))
	for _, field := range strings.Split(args[1], ".") {
		fields, _ := value.(map[string]any)
		value = fields[field]
	}
	text, ok := value.(string)
	if !ok {
		ts.Fatalf("%s: want a string, got %v", args[1], value)
	}
	ts.Setenv(args[0], text)
}

// TestEndToEndIsComplete: no command is left out of the scripts.
func TestEndToEndIsComplete(t *testing.T) {
	files, err := filepath.Glob("testdata/e2e/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("scripts: %v %v", files, err)
	}
	var all []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	c := &cli{sys: System{Getenv: func(string) string { return "" }}}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		used := regexp.MustCompile(`(?m)^(exec|exit \d) ` + regexp.QuoteMeta(cmd.CommandPath()) + `( |$)`)
		if !cmd.HasSubCommands() && !used.Match(all) {
			t.Errorf("no script runs %q", cmd.CommandPath())
		}
	}
	walk(c.rootCommand())
}

// TestImportThousandKeys also sees progress, which is told by the clock: here every look at it takes a second.
func TestImportThousandKeys(t *testing.T) {
	s := &service{dir: t.TempDir()}
	server, stop := s.serve(t)
	defer stop()
	if got := runAt(t, server, "", "pool", "create", "p"); got.Code != 0 {
		t.Fatalf("pool create: %+v", got)
	}
	var lines strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&lines, "{\"id\":\"k%04d\",\"secret\":\"sk-fake-%04d\",\"labels\":{\"n\":\"%d\"}}\n", i, i, i)
	}
	now := testNow
	for _, want := range []struct{ out, progress string }{
		{"1000 keys into pool p as backup: 1000 new, 0 same, 0 refused\n", "500 keys so far: 500 new, 0 same, 0 refused\n"},
		{"1000 keys into pool p as backup: 0 new, 1000 same, 0 refused\n", "500 keys so far: 0 new, 500 same, 0 refused\n"},
	} {
		var out, errs bytes.Buffer
		code := Run(t.Context(), []string{"key", "import", "p", "-", "--backup", "--server", server}, System{
			In: strings.NewReader(lines.String()), Out: &out, Err: &errs, Getenv: func(string) string { return "" },
			Now: func() time.Time { now = now.Add(time.Second); return now },
		})
		if code != 0 || out.String() != want.out || !strings.Contains(errs.String(), want.progress) {
			t.Errorf("key import: want exit code 0, %q and on stderr %q, got %d, %q and\n%s", want.out, want.progress, code, &out, &errs)
		}
	}
	if got := runAt(t, server, "", "key", "list", "p", "-o", "json"); strings.Count(got.Out, `"id"`) != 1000 {
		t.Errorf("key list: want 1000 keys, got exit code %d and %d keys", got.Code, strings.Count(got.Out, `"id"`))
	}
	if got := runAt(t, server, "", "doctor"); got.Code != 0 || !strings.HasPrefix(got.Out, "all is well: 1 pool ") {
		t.Errorf("doctor: want all well, got %+v", got)
	}
}
