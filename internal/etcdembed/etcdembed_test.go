package etcdembed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rotatord/rotatord/internal/etcdembed"
	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
)

const limit = 30 * time.Second

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatalf("dialling %s: %v", endpoint, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func put(t *testing.T, endpoint, key, value string) {
	t.Helper()
	if _, err := dial(t, endpoint).Put(deadline(t, limit), key, value); err != nil {
		t.Fatalf("putting %s: %v", key, err)
	}
}

func wantValue(t *testing.T, endpoint, key, want string) {
	t.Helper()
	r, err := dial(t, endpoint).Get(deadline(t, limit), key)
	if err != nil {
		t.Fatalf("getting %s: %v", key, err)
	}
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != want {
		t.Errorf("value of %s = %v, want %q", key, r.Kvs, want)
	}
}

// startError starts a server that must not start.
func startError(t *testing.T, cfg etcdembed.Config) error {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := etcdembed.Start(deadline(t, limit), cfg)
	if err == nil {
		_ = s.Close()
		t.Fatalf("Start(%q) succeeded, want an error", cfg.DataDir)
	}
	return err
}

func wantText(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not contain %q", err, p)
		}
	}
}

func TestStartServesAndSaysWhere(t *testing.T) {
	begin := time.Now()
	endpoint := etcdtest.Start(t)
	t.Logf("started in %v", time.Since(begin))
	if _, port, err := net.SplitHostPort(endpoint); err != nil || port == "0" {
		t.Fatalf("endpoint = %q, want a host and a real port", endpoint)
	}
	put(t, endpoint, "k", "v")
	wantValue(t, endpoint, "k", "v")
}

func TestRestartKeepsDataAtAnotherPort(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	first := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
	put(t, first.Endpoint(), "k", "v")
	if err := first.Close(); err != nil {
		t.Fatalf("closing: %v", err)
	}
	second := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
	if second.Endpoint() == first.Endpoint() {
		t.Skipf("the system gave %s twice", first.Endpoint())
	}
	wantValue(t, second.Endpoint(), "k", "v")
}

func TestRestartAtTheSameAddress(t *testing.T) {
	cfg := etcdembed.Config{DataDir: t.TempDir()}
	s := etcdtest.StartServer(t, cfg)
	cfg.ClientListen = s.Endpoint()
	for i := range 3 {
		put(t, cfg.ClientListen, "k", fmt.Sprint(i))
		if err := s.Close(); err != nil {
			t.Fatalf("closing: %v", err)
		}
		s = etcdtest.StartServer(t, cfg)
		wantValue(t, cfg.ClientListen, "k", fmt.Sprint(i))
	}
}

func TestDataDirIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
	for _, name := range []string{"", "member"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != 0o700 {
			t.Errorf("mode of %s = %v, want 0700", fi.Name(), got)
		}
	}
}

func TestHasData(t *testing.T) {
	dir := t.TempDir()
	if got, err := etcdembed.HasData(dir); got || err != nil {
		t.Errorf("HasData before the first start = %v, %v, want false", got, err)
	}
	etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
	if got, err := etcdembed.HasData(dir); !got || err != nil {
		t.Errorf("HasData after the first start = %v, %v, want true", got, err)
	}
}

func TestSecondStartFailsAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})

	begin := time.Now()
	err := startError(t, etcdembed.Config{DataDir: dir, ClientListen: "127.0.0.1:0"})
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("second Start took %v, want it to fail at once", took)
	}
	if !errors.Is(err, etcdembed.ErrDataDirInUse) {
		t.Errorf("second Start = %v, want ErrDataDirInUse", err)
	}
	wantText(t, err, dir, fmt.Sprintf("process %d", os.Getpid()), "--data-dir")
	put(t, s.Endpoint(), "k", "the first one is not disturbed")
}

// TestHelperServe is not a test: TestSecondProcess runs it in a process of its own.
func TestHelperServe(t *testing.T) {
	dir := os.Getenv("ETCDEMBED_HELPER_DIR")
	if dir == "" {
		t.Skip("run by TestSecondProcess only")
	}
	etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
	fmt.Println("serving")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends it
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperServe$", "-test.count=1")
	cmd.Env = append(os.Environ(), "ETCDEMBED_HELPER_DIR="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := io.ReadFull(stdout, make([]byte, len("serving"))); err != nil {
		t.Fatalf("waiting for the other process: %v", err)
	}

	got := startError(t, etcdembed.Config{DataDir: dir, ClientListen: "127.0.0.1:0"})
	if !errors.Is(got, etcdembed.ErrDataDirInUse) {
		t.Errorf("Start = %v, want ErrDataDirInUse", got)
	}
	wantText(t, got, fmt.Sprintf("process %d", cmd.Process.Pid))

	// A killed holder leaves no lock, and its data opens.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
}

func TestForeignEtcdOnTheDataDir(t *testing.T) {
	dir := t.TempDir()
	s := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := os.OpenFile(filepath.Join(dir, "member", "snap", "db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(db.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	got := startError(t, etcdembed.Config{DataDir: dir, ClientListen: "127.0.0.1:0"})
	if !errors.Is(got, etcdembed.ErrDataDirInUse) {
		t.Errorf("Start beside another holder of the database = %v, want ErrDataDirInUse", got)
	}
	_ = db.Close()
	etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := etcdembed.Config{DataDir: t.TempDir(), ClientListen: l.Addr().String()}
	got := startError(t, cfg)
	if !errors.Is(got, etcdembed.ErrAddressInUse) {
		t.Errorf("Start = %v, want ErrAddressInUse", got)
	}
	wantText(t, got, cfg.ClientListen, "--embedded-etcd-listen")

	// Nothing is left behind: the same directory starts elsewhere.
	cfg.ClientListen = ""
	etcdtest.StartServer(t, cfg)
}

func TestStartIsBoundedByItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	_, err := etcdembed.Start(ctx, etcdembed.Config{
		DataDir: dir, ClientListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a cancelled context = %v, want context.Canceled", err)
	}
	wantText(t, err, dir)
}

// Damage makes etcd panic (the database) or call for the end of the process (the log); both have to come back as an
// error of Start.
func TestDamagedData(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"database": func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, "member", "snap", "db"))
		},
		"log": func(t *testing.T, dir string) {
			logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
			if err != nil || len(logs) == 0 {
				t.Fatalf("no write-ahead log in %s: %v", dir, err)
			}
			overwrite(t, logs[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
			put(t, s.Endpoint(), "k", "v")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, dir)
			err := startError(t, etcdembed.Config{DataDir: dir, ClientListen: "127.0.0.1:0"})
			wantText(t, err, dir)
			t.Log(err)
		})
	}
}

func overwrite(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("damage! "), 4096), 0); err != nil {
		t.Fatal(err)
	}
}

func TestCloseIsBoundedWithOpenWatchesAndSilentConnections(t *testing.T) {
	dir := t.TempDir()
	s := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
	w := dial(t, s.Endpoint()).Watch(deadline(t, limit), "k", clientv3.WithCreatedNotify())
	if _, ok := <-w; !ok {
		t.Fatal("the watch did not open")
	}
	silent, err := net.Dial("tcp", s.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("Close took %v", took)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	if err, ok := <-s.Err(); ok {
		t.Errorf("Err gave %v after Close, want it closed", err)
	}
	etcdtest.StartServer(t, etcdembed.Config{DataDir: dir})
}

func TestErrReportsWhatEndsEtcd(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*etcdembed.Server)
		want string
	}{
		"fatal message": {func(s *etcdembed.Server) { s.Fatal("failed to save", "disk on fire") }, "etcd: failed to save: disk on fire"},
		"stopped":       {(*etcdembed.Server).StopEtcd, "etcd stopped by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			s := etcdtest.StartServer(t, etcdembed.Config{})
			go tt.end(s) // a fatal message ends the goroutine
			err, ok := <-s.Err()
			if !ok || err.Error() != tt.want {
				t.Errorf("Err gave %v, want %q", err, tt.want)
			}
			if err, ok := <-s.Err(); ok {
				t.Errorf("Err gave a second error %v, want it closed", err)
			}
		})
	}
}

func TestOnlyTheClientAddressListens(t *testing.T) {
	before := listeners(t)
	s := etcdtest.StartServer(t, etcdembed.Config{})
	members, err := dial(t, s.Endpoint()).MemberList(deadline(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	if got := members.Members[0].PeerURLs; len(got) != 1 || !strings.HasPrefix(got[0], "unix://") {
		t.Errorf("peer URLs = %v, want one that nobody can dial", got)
	}
	if after := listeners(t); len(after) != len(before)+1 {
		t.Errorf("listening sockets before and after = %v, %v, want one more, %s", before, after, s.Endpoint())
	}
}

// listeners are the listening TCP and unix sockets of this process.
func listeners(t *testing.T) []string {
	t.Helper()
	own := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Skip("needs /proc")
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil {
			own[target] = true
		}
	}
	var found []string
	for table, columns := range map[string][3]int{ // state, its value when listening is below, inode, address
		"tcp": {3, 9, 1}, "tcp6": {3, 9, 1}, "unix": {3, 6, 6},
	} {
		b, err := os.ReadFile("/proc/self/net/" + table)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
			f := strings.Fields(line)
			if len(f) <= columns[1] {
				continue
			}
			listening := f[columns[0]] == "0A" || (table == "unix" && f[columns[0]] == "00010000")
			if listening && own["socket:["+f[columns[1]]+"]"] {
				found = append(found, table+" "+f[columns[2]])
			}
		}
	}
	return found
}

func TestHTTPCannotWriteAndRefusesForeignHosts(t *testing.T) {
	endpoint := etcdtest.Start(t)
	for _, tt := range []struct {
		method, path, host string
		want               int
	}{
		{http.MethodGet, "/version", endpoint, http.StatusOK},
		{http.MethodGet, "/version", "attacker.example", http.StatusMisdirectedRequest},
		{http.MethodPost, "/v3/kv/put", endpoint, http.StatusNotFound},
	} {
		req, err := http.NewRequestWithContext(deadline(t, limit), tt.method, "http://"+endpoint+tt.path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tt.host
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s %s for host %s = %d, want %d", tt.method, tt.path, tt.host, resp.StatusCode, tt.want)
		}
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("%s %s allows origin %q, want none", tt.method, tt.path, got)
		}
	}
}

// A process that is being made while etcd stops holds etcd's locks a moment longer. Who starts etcd again after Close, as
// the making of a new member does, must not meet them.
func TestCloseWaitsForProcessesBeingMade(t *testing.T) {
	s, err := etcdembed.Start(deadline(t, limit), etcdembed.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	syscall.ForkLock.Lock() // as while one is being made
	made, closed := make(chan struct{}), make(chan error, 1)
	go func() { closed <- s.Close() }()
	time.AfterFunc(time.Second, func() { close(made); syscall.ForkLock.Unlock() })
	err = <-closed
	select {
	case <-made:
	default:
		t.Error("Close did not wait for the process that is being made")
	}
	<-made
	if err != nil {
		t.Error(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	dir := t.TempDir()
	for name, cfg := range map[string]etcdembed.Config{
		"no data directory":   {},
		"no port":             {DataDir: dir, ClientListen: "127.0.0.1"},
		"a name":              {DataDir: dir, ClientListen: "example.com:2379"},
		"every interface":     {DataDir: dir, ClientListen: ":2379"},
		"port is a word":      {DataDir: dir, ClientListen: "127.0.0.1:etcd"},
		"negative quota":      {DataDir: dir, QuotaBytes: -1},
		"negative retention":  {DataDir: dir, CompactionRetention: -time.Hour},
		"tick below a milli":  {DataDir: dir, Tick: time.Microsecond},
		"data dir is a file":  {DataDir: os.Args[0]},
		"data dir is in file": {DataDir: filepath.Join(os.Args[0], "x")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Log(startError(t, cfg))
		})
	}
}

func TestStartIsQuietAndGlobalLoggersStay(t *testing.T) {
	global := zap.L()
	var buf bytes.Buffer
	dir := filepath.Join(t.TempDir(), "data")
	for range 2 {
		s := etcdtest.StartServer(t, etcdembed.Config{DataDir: dir, Log: slog.New(slog.NewTextHandler(&buf, nil))})
		if err := s.Close(); err != nil { // ends the writer, so that buf can be read
			t.Fatal(err)
		}
	}
	if buf.Len() > 0 {
		t.Errorf("a clean start and stop logged:\n%s", &buf)
	}
	if zap.L() != global {
		t.Error("the global zap logger was replaced")
	}
}
