package etcdembed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// bootstrapTick is short because a new member has nobody to wait for.
const bootstrapTick = 10 * time.Millisecond

// ErrAddressInUse is returned by Start when another program listens on the client address.
var ErrAddressInUse = errors.New("the listen address of the embedded etcd is in use")

// Server is a running etcd. Its methods are safe for concurrent use.
type Server struct {
	dir      string
	endpoint string
	lock     *dirLock
	relay    *relay
	member   *member

	errs      chan error    // filled and closed by watch, capacity 1
	closing   chan struct{} // closed when Close begins
	closeOnce sync.Once
	closeErr  error // written inside closeOnce
}

// Start runs etcd and returns when it serves. The context bounds the start only; it should have a deadline. After an
// error nothing is left running, but for one case: if etcd hangs or dies in its own start, what it has opened stays
// open, and the directory locked, until the process ends.
//
// It fails with ErrDataDirInUse or ErrAddressInUse, whose texts say what to do, or with what etcd says.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	lock, err := takeDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	s := &Server{
		dir:     cfg.DataDir,
		lock:    lock,
		relay:   newRelay(cfg.Log),
		errs:    make(chan error, 1),
		closing: make(chan struct{}),
	}
	if err := s.start(ctx, cfg); err != nil {
		s.relay.close()
		return nil, errors.Join(explain(err, cfg), s.unlock(err))
	}
	return s, nil
}

// takeDir creates and locks the data directory.
func takeDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the data directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	if err := probeDatabase(dir); err != nil {
		return nil, errors.Join(err, lock.release())
	}
	return lock, nil
}

func (s *Server) start(ctx context.Context, cfg Config) error {
	if err := ctx.Err(); err != nil {
		return err // before anything is there that would have to be abandoned
	}
	if err := s.bootstrap(ctx, cfg); err != nil {
		return fmt.Errorf("making a new member: %w", err)
	}
	m, err := startMember(ctx, cfg.etcdConfig(), s.relay)
	if err != nil {
		return err
	}
	s.member = m
	s.endpoint = reachable(m.etcd.Clients[0].Addr())
	go s.watch()
	return nil
}

// bootstrap makes the member of an empty directory beside its place, where no client can reach it, and moves it in when
// it is complete. A member whose first start is killed before its log has a beginning would never start again: etcd
// waits for a leader for ever. A crash here leaves a directory that the next bootstrap removes; nobody wrote to it.
func (s *Server) bootstrap(ctx context.Context, cfg Config) error {
	has, err := HasData(cfg.DataDir)
	if has || err != nil {
		return err
	}
	place := cfg.DataDir
	cfg.DataDir = filepath.Join(place, "new-member")
	if err := os.RemoveAll(cfg.DataDir); err != nil {
		return err
	}
	cfg.Tick = bootstrapTick
	ec := cfg.etcdConfig()
	ec.ListenClientUrls = nil
	m, err := startMember(ctx, ec, s.relay)
	if err != nil {
		return err
	}
	if err := m.stop(); err != nil {
		return err
	}
	return move(cfg.DataDir, place)
}

// move is the moment at which the directory has data.
func move(from, to string) error {
	if err := os.Rename(filepath.Join(from, memberDir), filepath.Join(to, memberDir)); err != nil {
		return err
	}
	d, err := os.Open(to)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close(), os.RemoveAll(from))
}

// unlock keeps the lock for an etcd that may still have the data open; the process ends before long.
func (s *Server) unlock(after error) error {
	if errors.As(after, new(abandonedError)) {
		return nil
	}
	return s.lock.release()
}

func explain(err error, cfg Config) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: another program listens on %s; stop it, or choose another --embedded-etcd-listen: %w",
			ErrAddressInUse, cfg.ClientListen, err)
	}
	return fmt.Errorf("starting the embedded etcd in %s: %w", cfg.DataDir, err)
}

// reachable replaces an address that means every interface by the loopback one.
func reachable(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	host := "127.0.0.1"
	if tcp.IP.To4() == nil {
		host = "::1"
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// Endpoint is the host:port at which this machine reaches etcd. It can be given as Config.ClientListen again, to
// restart at the same address.
func (s *Server) Endpoint() string { return s.endpoint }

// Err gives at most one error, when etcd fails or stops by itself, and is closed after it or by Close. After an error
// nothing more can be written: Close it and end the process.
func (s *Server) Err() <-chan error { return s.errs }

// watch owns errs.
func (s *Server) watch() {
	defer close(s.errs)
	select {
	case err := <-s.member.failed:
		select {
		case <-s.closing: // it was asked for
		default:
			s.errs <- err
		}
	case <-s.closing:
	}
}

// Close stops etcd: calls in flight get half a second, then the data is closed and the directory unlocked. It is
// idempotent, and takes a few seconds at most, but stopLimit (10 s) if etcd hangs: then it returns an error, and the
// directory stays locked until the process ends. A crash instead of Close loses nothing.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Server) close() error {
	close(s.closing)
	defer s.relay.close()
	if err := s.member.stop(); err != nil {
		return fmt.Errorf("closing the embedded etcd in %s: %w", s.dir, err)
	}
	return s.lock.release()
}
