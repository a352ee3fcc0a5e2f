package app_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/rotatord/rotatord/internal/app"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// canary is a secret that must be found nowhere but in the answers that were asked for it.
const canary = "sk-fake-CANARY-7d1f3b-not-a-real-key"

// A canary goes through every call. Neither the log, nor metrics, nor errors, nor answers that were not asked for it,
// nor a single file of etcd's data may hold it.
func TestSecretsCanary(t *testing.T) {
	dir := t.TempDir()
	log := &logBuffer{}
	cfg := &app.Config{
		Name: "solo", Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", EtcdPrefix: prefix, DataDir: dir, EmbeddedEtcdListen: "127.0.0.1:0",
		KeysetFile: filepath.Join(dir, "keyset.json"), SessionTTL: 5 * time.Second, ShutdownTimeout: 5 * time.Second,
	}
	c := &cluster{t: t, log: log}
	r, err := app.Start(c.ctx(), cfg, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), app.Seams{})
	if err != nil {
		t.Fatal(err)
	}
	c.eventually("it serves", func() bool { return r.Writable() == nil })
	conn, err := grpc.NewClient(r.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	seen := &said{t: t}
	canaryCalls(c, conn, seen)
	resp, err := http.Get("http://" + r.WebAddress() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !bytes.Contains(metrics, []byte("rotator_active_keys")) {
		t.Fatalf("metrics: %v, %s", err, metrics)
	}
	if err := r.Close(c.ctx()); err != nil {
		t.Fatal(err)
	}

	clean(t, "the metrics", metrics)
	clean(t, "the log", []byte(log.String()))
	clean(t, "answers and errors", seen.Bytes())
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		clean(t, path, content)
		clean(t, "the name of "+path, []byte(path))
		files++
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("looked through %d files of the data directory: %v", files, err)
	}
}

func clean(t *testing.T, what string, content []byte) {
	t.Helper()
	for _, secret := range []string{canary, canary[:len(canary)-5], "CANARY"} {
		if bytes.Contains(content, []byte(secret)) {
			t.Errorf("%s holds the secret", what)
			return
		}
	}
}

// said is everything the service answered, as text.
type said struct {
	bytes.Buffer
	t *testing.T
}

func (s *said) answer(m proto.Message, err error) {
	text, _ := protojson.Marshal(m)
	fmt.Fprintf(s, "%s %+v %v\n", text, m, err)
}

func canaryCalls(c *cluster, conn *grpc.ClientConn, s *said) {
	adm, keys, rot := v1.NewAdminServiceClient(conn), v1.NewKeyServiceClient(conn), v1.NewRotationServiceClient(conn)
	secret := func(i int) string { return fmt.Sprintf("%s-%d", canary, i) }
	add := func(home v1.KeyHome, id, secret string) {
		resp, err := adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "p", Home: home, Keys: []*v1.NewKey{{Id: id, Secret: secret, Labels: map[string]string{"l": "v"}}}})
		s.answer(resp, err)
	}
	must := func(m proto.Message, err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatal(err)
		}
		s.answer(m, err)
	}
	m, err := adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: "p"})
	must(m, err)
	add(v1.KeyHome_KEY_HOME_ACTIVE, "a0", secret(0))
	add(v1.KeyHome_KEY_HOME_ACTIVE, "a1", secret(1))
	add(v1.KeyHome_KEY_HOME_BACKUP, "b0", secret(2))
	add(v1.KeyHome_KEY_HOME_BACKUP, "b1", secret(0))              // the same secret: refused
	add(v1.KeyHome_KEY_HOME_BACKUP, "a0", secret(3))              // the same id: refused
	add(v1.KeyHome_KEY_HOME_BACKUP, "b2", " "+secret(4))          // bad
	add(v1.KeyHome_KEY_HOME_BACKUP, secret(5)+"/", secret(5)+"x") // an id that is none; it is echoed, so it is no secret
	s.Reset()
	add(v1.KeyHome_KEY_HOME_BACKUP, "b3", strings.Repeat(secret(6), 200))
	r1, err := rot.RotateKey(c.ctx(), &v1.RotateKeyRequest{Pool: "p", KeyId: "a0", Trigger: v1.Trigger_TRIGGER_PROXY, Source: "x " + secret(0), Reason: "401: " + secret(0)})
	must(r1, err)
	r2, err := rot.RotateKey(c.ctx(), &v1.RotateKeyRequest{Pool: "p", KeyId: "a1", Trigger: v1.Trigger_TRIGGER_PROXY})
	must(r2, err)
	r3, err := rot.RotateKey(c.ctx(), &v1.RotateKeyRequest{Pool: "p", KeyId: "nobody", Trigger: v1.Trigger_TRIGGER_PROXY})
	s.answer(r3, err)
	m1, err := rot.GetRotation(c.ctx(), &v1.GetRotationRequest{Pool: "p", KeyId: "a0"})
	must(m1, err)
	m2, err := rot.ListRotations(c.ctx(), &v1.ListRotationsRequest{Pool: "p"})
	must(m2, err)
	m3, err := keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p"})
	must(m3, err)
	m4, err := adm.ListKeys(c.ctx(), &v1.ListKeysRequest{Pool: "p"})
	must(m4, err)
	m5, err := adm.GetKey(c.ctx(), &v1.GetKeyRequest{Pool: "p", KeyId: "a0"})
	must(m5, err)
	m6, err := adm.DisableKey(c.ctx(), &v1.DisableKeyRequest{Pool: "p", KeyId: "b0", Reason: "they say: " + secret(2)})
	must(m6, err)
	m7, err := adm.EnableKey(c.ctx(), &v1.EnableKeyRequest{Pool: "p", KeyId: "b0", Reason: secret(2) + " is good again"})
	must(m7, err)
	m8, err := adm.SetBinding(c.ctx(), &v1.SetBindingRequest{Pool: "p", ProxyId: "x", Slots: []*v1.SlotPriority{{Slot: "a0"}}})
	must(m8, err)
	m9, err := adm.RestoreKey(c.ctx(), &v1.RestoreKeyRequest{Pool: "p", KeyId: "a0"})
	must(m9, err)
	m10, err := adm.RemoveKey(c.ctx(), &v1.RemoveKeyRequest{Pool: "p", KeyId: "a0"})
	must(m10, err)
	m11, err := adm.Diagnose(c.ctx(), &v1.DiagnoseRequest{})
	must(m11, err)
	m14, err := adm.SetPoolCredential(c.ctx(), &v1.SetPoolCredentialRequest{Name: "p", Credential: secret(7)})
	must(m14, err)
	bad, err := adm.SetPoolCredential(c.ctx(), &v1.SetPoolCredentialRequest{Name: "p", Credential: " " + secret(8)})
	s.answer(bad, err)
	m15, err := adm.ListPools(c.ctx(), &v1.ListPoolsRequest{})
	must(m15, err)
	m12, err := adm.GetPool(c.ctx(), &v1.GetPoolRequest{Name: "p"})
	must(m12, err)
	m13, err := adm.ListBindings(c.ctx(), &v1.ListBindingsRequest{Pool: "p"})
	must(m13, err)

	// Asked for, it is there: the test would notice if the canary had got lost on the way in.
	got, err := keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p", IncludeSecret: true, MinRevision: m10.Revision})
	if err != nil || len(got.Keys) == 0 || !strings.HasPrefix(got.Keys[0].Key.Secret, canary) {
		c.t.Errorf("secrets that were asked for: %v, %v", got, err)
	}
	n1, err := adm.UpdatePool(c.ctx(), &v1.UpdatePoolRequest{Name: "p", Spec: &v1.PoolSpec{Description: "d"}})
	must(n1, err)
	n2, err := adm.PausePool(c.ctx(), &v1.PausePoolRequest{Name: "p"})
	must(n2, err)
	n3, err := adm.ResumePool(c.ctx(), &v1.ResumePoolRequest{Name: "p"})
	must(n3, err)
	n4, err := adm.ListPools(c.ctx(), &v1.ListPoolsRequest{})
	must(n4, err)
	n5, err := adm.ListReplicas(c.ctx(), &v1.ListReplicasRequest{})
	must(n5, err)
	n6, err := adm.RemoveBinding(c.ctx(), &v1.RemoveBindingRequest{Pool: "p", ProxyId: "x"})
	must(n6, err)
	// Another pool is deleted: the metrics of this one are still to be looked at.
	n7, err := adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: "q"})
	must(n7, err)
	n8, err := adm.AddKeys(c.ctx(), &v1.AddKeysRequest{Pool: "q", Home: v1.KeyHome_KEY_HOME_ACTIVE, Keys: []*v1.NewKey{{Id: "k", Secret: secret(7)}}})
	must(n8, err)
	n9, err := adm.DeletePool(c.ctx(), &v1.DeletePoolRequest{Name: "q", Force: true})
	must(n9, err)
}
