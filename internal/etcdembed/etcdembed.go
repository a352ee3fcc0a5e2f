// Package etcdembed runs the etcd of a single machine inside the daemon.
//
// It promises:
//   - One process per data directory. A second Start, here or in another process, fails at once and names the holder;
//     it never waits for a lock.
//   - Every write that etcd acknowledged is on disk: fsync stays on. A process killed at any moment, the first start
//     included, leaves a directory that starts again.
//   - Nothing but the client address is listened on. A single member has no peers, so there is no peer listener at all,
//     and etcd's JSON gateway is off, so that a web page cannot write to it through a browser on this machine.
//   - Start is bounded by its context, Close by a constant; a fatal error of etcd comes out of Err instead of ending
//     the process.
//   - etcd's log can neither drown nor block the daemon's: warnings and errors only, few of a kind, in the background.
//
// It does not promise availability: one member is one machine. It has no TLS and no users, so whoever reaches the
// client address can read and change everything in etcd; refusing an address that is not loopback is the caller's
// part. A member that belongs to a larger cluster is not supported: it never becomes ready. A bug that panics in a
// goroutine of etcd ends the process.
package etcdembed

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Defaults of Config.
const (
	DefaultClientListen        = "127.0.0.1:2379"
	DefaultQuotaBytes          = 2 << 30
	DefaultCompactionRetention = time.Hour
	DefaultTick                = 100 * time.Millisecond
)

const (
	memberName = "rotatord"
	memberDir  = "member" // etcd's name for what it keeps in its data directory
	// electionTicks follows etcd's default proportion of heartbeat to election time-out.
	electionTicks = 10
)

// peerURL is nobody's address. It is part of the member's identity, so it is the same at every start whatever the
// client address is; the unix scheme keeps etcd from resolving it.
var peerURL = url.URL{Scheme: "unix", Host: "rotatord.embedded"}

// Config says where and how etcd runs.
type Config struct {
	// DataDir is created with mode 0700 if it does not exist.
	DataDir string
	// ClientListen is the host:port for clients, DefaultClientListen if empty. The host is an IP address or localhost;
	// port 0 picks a free one (see Server.Endpoint), which etcd then does not advertise, so it is for tests.
	ClientListen string
	// Log receives etcd's warnings and errors with component=etcd; slog.Default() if nil.
	Log *slog.Logger
	// QuotaBytes is the size of the database at which etcd refuses writes, DefaultQuotaBytes if 0.
	QuotaBytes int64
	// CompactionRetention is how much history is kept, DefaultCompactionRetention if 0.
	CompactionRetention time.Duration
	// Tick is raft's heartbeat, DefaultTick if 0. Tests make it small for a fast start. It also scales the smallest
	// lease TTL that etcd grants: 2 s with the default, 1 s with less.
	Tick time.Duration
	// BcryptCost is what hashing a user's password costs, etcd's default if 0. Tests make it small: with the race detector
	// a login takes seconds.
	BcryptCost uint
}

// HasData reports whether an etcd has run in dir before. A caller that creates things beside the data, such as the
// keyset, uses it to tell a first start from one that has lost them.
func HasData(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, memberDir))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (c Config) withDefaults() (Config, error) {
	c.ClientListen = cmp.Or(c.ClientListen, DefaultClientListen)
	c.QuotaBytes = cmp.Or(c.QuotaBytes, DefaultQuotaBytes)
	c.CompactionRetention = cmp.Or(c.CompactionRetention, DefaultCompactionRetention)
	c.Tick = cmp.Or(c.Tick, DefaultTick)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c, c.check()
}

func (c Config) check() error {
	switch {
	case c.DataDir == "":
		return errors.New("embedded etcd: no data directory given")
	case c.QuotaBytes < 0:
		return fmt.Errorf("embedded etcd: quota of %d bytes is negative", c.QuotaBytes)
	case c.CompactionRetention < time.Second:
		return fmt.Errorf("embedded etcd: compaction retention of %v is below 1s", c.CompactionRetention)
	case c.Tick < time.Millisecond:
		return fmt.Errorf("embedded etcd: tick of %v is below 1ms", c.Tick)
	}
	return checkListen(c.ClientListen)
}

func checkListen(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("embedded etcd: listen address %q is not host:port: %w", address, err)
	}
	if host != "localhost" && net.ParseIP(host) == nil {
		return fmt.Errorf("embedded etcd: host of listen address %q is neither an IP address nor localhost", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("embedded etcd: port of listen address %q is not a number from 0 to 65535", address)
	}
	return nil
}

// etcdConfig is long and straight: one line for each setting that differs from etcd's default or that we rely on.
func (c Config) etcdConfig() *embed.Config {
	client := url.URL{Scheme: "http", Host: c.ClientListen}

	e := embed.NewConfig()
	e.Name = memberName
	e.Dir = c.DataDir
	e.ListenPeerUrls = nil
	e.AdvertisePeerUrls = []url.URL{peerURL}
	e.InitialCluster = e.InitialClusterFromName(memberName)
	e.InitialClusterToken = memberName
	e.ListenClientUrls = []url.URL{client}
	e.AdvertiseClientUrls = []url.URL{client}
	e.EnableGRPCGateway = false
	e.HostWhitelist = allowedHosts(c.ClientListen)
	e.CORS = map[string]struct{}{"null.invalid": {}} // empty would mean every origin
	e.TickMs = uint(c.Tick.Milliseconds())
	e.BcryptCost = cmp.Or(c.BcryptCost, e.BcryptCost)
	e.ElectionMs = electionTicks * e.TickMs
	e.QuotaBackendBytes = c.QuotaBytes
	e.AutoCompactionMode = embed.CompactorModePeriodic
	e.AutoCompactionRetention = c.CompactionRetention.String()
	e.MaxTxnOps = embed.DefaultMaxTxnOps
	e.MaxRequestBytes = embed.DefaultMaxRequestBytes
	e.UnsafeNoFsync = false
	return e
}

// allowedHosts are the names by which HTTP requests may call a loopback server, so that a foreign name that resolves to
// 127.0.0.1 (DNS rebinding) is refused. A server that is reachable from outside has names we do not know.
func allowedHosts(address string) map[string]struct{} {
	host, _, _ := net.SplitHostPort(address)
	if ip := net.ParseIP(host); ip != nil && !ip.IsLoopback() {
		return map[string]struct{}{"*": {}}
	}
	return map[string]struct{}{"localhost": {}, "127.0.0.1": {}, "::1": {}, host: {}}
}
