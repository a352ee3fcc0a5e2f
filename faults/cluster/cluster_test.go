package cluster_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/rotatord/rotatord/faults/cluster"
	"github.com/rotatord/rotatord/faults/overlay"
)

// The edits of the build to come fit the sources. The domain is where they may not.
func TestNextBuild(t *testing.T) {
	t.Chdir("../..")
	if err := overlay.Build(t.Context(), filepath.Join(t.TempDir(), "pool"), "./internal/pool", cluster.NextBuild); err != nil {
		t.Error(err)
	}
}

// History: faults -seed 20261203, embedded. Etcd was away for four seconds, and the recording's connection came back five
// seconds after it: what was on record when it was asked about seemed to be written later.
func TestClientComesBackSoon(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := new(cluster.Cluster).Connect(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.ActiveConnection().Connect()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for attempt := range 8 { // the eighth comes after a second; with gRPC's delays after forty
		conn, err := l.Accept()
		if err != nil {
			t.Fatalf("attempt %d to connect: %v", attempt+1, err)
		}
		_ = conn.Close()
		client.ActiveConnection().Connect()
	}
}
