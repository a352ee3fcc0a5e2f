package etcdstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/rotatord/rotatord/internal/etcdwire"
)

// Config says how etcd is reached.
type Config struct {
	Endpoints []string // host:port or URLs
	// Files in PEM. CAFile alone checks the servers; CertFile and KeyFile, given together, identify this client. They
	// are read again for new connections, so renewed certificates need no restart.
	CAFile, CertFile, KeyFile string
	User, Password            string // together or not at all
	// DialOptions come last, so they can replace what Connect chooses.
	DialOptions []grpc.DialOption
	Log         *slog.Logger // of warnings and errors, each message at most every ten seconds; nil: none
}

const (
	// authTimeout bounds the one call Connect makes, to log in; without a user it makes none.
	authTimeout = 2 * time.Second
	// pingEvery is the least gRPC allows; etcd objects below 5 s. A cut connection with traffic on it is noticed sooner:
	// gRPC makes pingTimeout the kernel's limit for unacknowledged data too (TCP_USER_TIMEOUT).
	pingEvery   = 10 * time.Second
	pingTimeout = 2 * time.Second
)

// Connect returns a client without waiting for a server. With a user it logs in first, and fails if that takes longer
// than two seconds or is refused.
//
// The client sends every call once: what may be repeated is decided in this package, where it is known.
func Connect(cfg Config) (*clientv3.Client, error) {
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	if err := cfg.check(tlsConfig != nil); err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  tlsConfig,
		Username:             cfg.User,
		Password:             cfg.Password,
		DialTimeout:          authTimeout,
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: pingTimeout,
		// PermitWithoutStream stays off: etcd ends connections that ping without a stream.
		MaxUnaryRetries: 1,
		Logger:          zapTo(cfg.Log),
		DialOptions:     append(dialOptions(), cfg.DialOptions...),
	})
	switch {
	case err == nil:
		return client, nil
	case cfg.User != "":
		return nil, fmt.Errorf("logging in to etcd at %s as user %q: %w", strings.Join(cfg.Endpoints, ","), cfg.User, err)
	default:
		return nil, fmt.Errorf("connecting to etcd at %s: %w", strings.Join(cfg.Endpoints, ","), err)
	}
}

// The windows of flow control are those that gRPC would go up to by itself. To find out how far, it would answer each
// message from etcd with a ping, which costs both sides a packet each for every call.
const (
	streamWindow     = 4 << 20
	connectionWindow = 16 << 20
)

func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connectionWindow),
		// A member that comes back is to be used within a second, not within gRPC's two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		// etcd's resolver asks for round_robin, which knows nothing of members that hang.
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"` + avoidHung + `": {}}]}`),
		grpc.WithStatsHandler(sendingHandler{}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(etcdwire.Codec())),
	}
}

func (c Config) tls() (*tls.Config, error) {
	if c.CAFile == "" && c.CertFile == "" && c.KeyFile == "" {
		return nil, nil
	}
	conf, err := transport.TLSInfo{TrustedCAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the TLS files for etcd (CA %q, certificate %q, key %q): %w", c.CAFile, c.CertFile, c.KeyFile, err)
	}
	return conf, nil
}

// check refuses what the client would quietly read as "without TLS" or "without a user".
func (c Config) check(withTLS bool) error {
	if len(c.Endpoints) == 0 {
		return errors.New("no etcd endpoints are given")
	}
	for _, e := range c.Endpoints {
		secure := withTLS || strings.HasPrefix(c.Endpoints[0], "https://")
		switch {
		case e == "":
			return errors.New("an etcd endpoint is empty")
		case secure && strings.HasPrefix(e, "http://"):
			return fmt.Errorf("etcd endpoint %s would be used without TLS, though TLS is set up for etcd; write https://", e)
		case !secure && strings.HasPrefix(e, "https://"):
			return fmt.Errorf("etcd endpoint %s has TLS and %s has not; one connection uses all endpoints, so they must be alike", e, c.Endpoints[0])
		}
	}
	if (c.User == "") != (c.Password == "") {
		return errors.New("an etcd user needs a password, and an etcd password a user")
	}
	return nil
}
