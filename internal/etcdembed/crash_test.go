package etcdembed_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/etcdembed"
	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
)

// A first start that is killed at any moment must leave a directory that starts. The moments are chance; what they hit
// is spread over the start and the first writes.
func TestKilledFirstStartLeavesAUsableDirectory(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		dir := t.TempDir()
		after := time.Duration(rand.Int64N(int64(200 * time.Millisecond)))
		cmd := exec.Command(os.Args[0], "-test.run=^TestHelperServe$", "-test.count=1")
		cmd.Env = append(os.Environ(), "ETCDEMBED_HELPER_DIR="+dir)
		if _, err := cmd.StdinPipe(); err != nil { // open, so that it goes on serving
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after) // the moment is the subject
		_ = cmd.Process.Kill()
		_ = cmd.Wait()

		t.Logf("killed after %v", after)
		s := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
		put(t, s.Endpoint(), "k", "v")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
