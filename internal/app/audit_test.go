package app_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rotatord/rotatord/internal/app"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func TestEventsAreRelayedToAFile(t *testing.T) {
	cfg := embeddedConfig(t.TempDir())
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	cfg.AuditRelay = "file:" + path
	r, err := startEmbedded(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeInTime(t, r)
	conn, err := grpc.NewClient(r.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for created := false; ; {
		if !created { // it may still be loading
			_, err := v1.NewAdminServiceClient(conn).CreatePool(ctx, &v1.CreatePoolRequest{Name: "p"})
			created = err == nil
		}
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), `"type":"dev.rotatord.pool.created.v1"`) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the event is not in the file: %q, %v", text, err)
		}
	}
}

func TestTheTargetOfTheRelayIsChecked(t *testing.T) {
	for target, ok := range map[string]bool{"stdout": true, "file:/a/b": true, "file:b": false, "syslog": false} {
		_, err := app.Parse([]string{"--audit-relay", target}, nil, nil)
		if got := err == nil || !strings.Contains(err.Error(), "--audit-relay"); got != ok {
			t.Errorf("--audit-relay %q: %v", target, err)
		}
	}
}
