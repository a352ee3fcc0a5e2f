package pool_test

import (
	"flag"
	"os"
	"testing"

	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
)

// onEtcd runs the tests of the admin on real etcd instead of the store in memory: `make test` does both.
var onEtcd = flag.Bool("etcd", false, "run the tests of the admin on real etcd")

func TestMain(m *testing.M) {
	flag.Parse()
	if *onEtcd {
		newStore, fakeTime = etcdStore, false
	}
	os.Exit(m.Run())
}

func etcdStore(t testing.TB) pool.Store {
	t.Helper()
	client, err := etcdstore.Connect(etcdstore.Config{Endpoints: []string{etcdtest.Start(t)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return etcdstore.New(client, etcdstore.Options{Replica: "r0"})
}
