package etcdstore

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rotatord/rotatord/internal/pool"
)

func TestConnectChecksItsConfig(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.pem")
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"no endpoints":            {Config{}, "no etcd endpoints"},
		"empty endpoint":          {Config{Endpoints: []string{"a:2379", ""}}, "endpoint is empty"},
		"user without password":   {Config{Endpoints: []string{"a:2379"}, User: "u"}, "needs a password"},
		"password without user":   {Config{Endpoints: []string{"a:2379"}, Password: "p"}, "a user"},
		"https and http":          {Config{Endpoints: []string{"https://a:2379", "http://b:2379"}}, "http://b:2379 would be used without TLS"},
		"http and https":          {Config{Endpoints: []string{"http://a:2379", "https://b:2379"}}, "https://b:2379 has TLS"},
		"no CA file":              {Config{Endpoints: []string{"a:2379"}, CAFile: missing}, "none.pem"},
		"certificate without key": {Config{Endpoints: []string{"a:2379"}, CertFile: missing}, "TLS files"},
	} {
		client, err := Connect(c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Connect says %v, want %q", name, err, c.want)
		}
		if client != nil {
			_ = client.Close()
		}
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// withUsers turns authentication on; the user "rotatord" has one role, with readwrite on the prefix.
func withUsers(t *testing.T) (endpoint string, root *clientv3.Client) {
	t.Helper()
	endpoint = newEtcd(t)
	root = connectTo(t, endpoint)
	ctx := t.Context()
	must[*clientv3.AuthUserAddResponse](t)(root.UserAdd(ctx, "root", "r"))
	must[*clientv3.AuthUserGrantRoleResponse](t)(root.UserGrantRole(ctx, "root", "root"))
	must[*clientv3.AuthRoleAddResponse](t)(root.RoleAdd(ctx, "rotatord"))
	must[*clientv3.AuthRoleGrantPermissionResponse](t)(root.RoleGrantPermission(ctx, "rotatord", DefaultPrefix, clientv3.GetPrefixRangeEnd(DefaultPrefix), clientv3.PermissionType(clientv3.PermReadWrite)))
	must[*clientv3.AuthUserAddResponse](t)(root.UserAdd(ctx, "rotatord", "p"))
	must[*clientv3.AuthUserGrantRoleResponse](t)(root.UserGrantRole(ctx, "rotatord", "rotatord"))
	must[*clientv3.AuthUserAddResponse](t)(root.UserAdd(ctx, "stranger", "p"))
	must[*clientv3.AuthEnableResponse](t)(root.AuthEnable(ctx))
	return endpoint, connectAs(t, endpoint, "root", "r")
}

func connectAs(t *testing.T, endpoint, user, password string) *clientv3.Client {
	t.Helper()
	client, err := Connect(Config{Endpoints: []string{endpoint}, User: user, Password: password})
	if err != nil {
		t.Fatalf("connecting as %s: %v", user, err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// One role with readwrite on the prefix is all a replica needs (docs/etcd.md).
func TestWithAuthentication(t *testing.T) {
	endpoint, root := withUsers(t)
	s := newStore(connectAs(t, endpoint, "rotatord", "p"))
	applied(t, s, &pool.Txn{If: []pool.Guard{pool.Absent(pool.BackupRef("p", "k"))}, Put: []pool.Record{backup("k")}, Event: event("e")})
	_, m := follow(t, s)
	compare(t, s, m)
	lease := must[*clientv3.LeaseGrantResponse](t)(s.client.Grant(t.Context(), 60))
	if err := s.PutReplica(t.Context(), &pool.Replica{Name: "r"}, lease.ID); err != nil {
		t.Errorf("PutReplica: %v", err)
	}
	if _, err := s.Alarms(t.Context()); err != nil {
		t.Errorf("Alarms: %v", err)
	}
	compare(t, s, m)

	// Any change of users or roles makes tokens old: the write is refused once and works when it is sent again.
	must[*clientv3.AuthUserAddResponse](t)(root.UserAdd(t.Context(), "another", "p"))
	txn := &pool.Txn{Put: []pool.Record{backup("k2")}, Event: event("e2")}
	if _, err := s.Apply(t.Context(), txn); err != nil && !errors.Is(err, pool.ErrNotApplied) {
		t.Errorf("with an old token, Apply says %v, want ErrNotApplied", err)
	}
	applied(t, s, txn)
	compare(t, s, m)
}

func TestWithoutPermission(t *testing.T) {
	endpoint, _ := withUsers(t)
	s := newStore(connectAs(t, endpoint, "stranger", "p"))
	_, err := s.Apply(t.Context(), &pool.Txn{Put: []pool.Record{backup("k")}})
	if !errors.Is(err, rpctypes.ErrPermissionDenied) || again(err) || !strings.Contains(err.Error(), "grant the etcd user") {
		t.Errorf("Apply says %v, want a final refusal that says what to do", err)
	}
	if _, err := s.Read(t.Context(), pool.PoolRef("p")); !errors.Is(err, rpctypes.ErrPermissionDenied) || again(err) {
		t.Errorf("Read says %v, want a final refusal at once", err)
	}
	if _, err := Connect(Config{Endpoints: []string{endpoint}, User: "rotatord", Password: "wrong"}); !errors.Is(err, rpctypes.ErrAuthFailed) || !strings.Contains(err.Error(), `user "rotatord"`) {
		t.Errorf("Connect with a wrong password says %v, want etcd's refusal and the user's name", err)
	}
	anonymous := newStore(connectTo(t, endpoint))
	if _, err := anonymous.Apply(t.Context(), &pool.Txn{Put: []pool.Record{backup("k")}}); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("Apply without a user says %v, want etcd's refusal in the chain", err)
	}
}

func TestTheClientsLogDoesNotFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := zapTo(slog.New(slog.NewTextHandler(&out, nil)))
		for range 100 {
			log.Warn("retrying of unary invoker failed", zap.String("method", "/Txn"), zap.Error(errors.New("no route")))
			log.Info("not worth it")
		}
		time.Sleep(quietFor) // of the bubble's clock
		log.With(zap.Int("n", 1)).Warn("retrying of unary invoker failed")
		log.Error("something else")
		text := out.String()
		for want, count := range map[string]int{"retrying of unary invoker failed": 2, "held_back=99": 1, "level=ERROR": 1, "not worth it": 0, `error="no route"`: 1, "method=/Txn": 1, "n=1": 1} {
			if got := strings.Count(text, want); got != count {
				t.Errorf("the log has %q %d times, want %d:\n%s", want, got, count, text)
			}
		}
	})
}
