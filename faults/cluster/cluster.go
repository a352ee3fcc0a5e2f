// Package cluster runs the processes of a fault test on loopback: etcd members and replicas of rotatord, or one replica
// with etcd in it, each with stable addresses and its log in one directory.
//
// All connections between members, and from replicas to members, go through proxies of the harness. The harness itself
// reaches etcd directly.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/rotatord/rotatord/faults/netproxy"
	"github.com/rotatord/rotatord/faults/redial"
	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/seal"
)

// Options say what to run.
type Options struct {
	Dir      string // of data, logs and sockets; it must exist and its name be short, for the sockets
	Etcd     string // program; default: bin/etcd
	Rotatord string // program, built from faults/rotatord
	Next     string // the same with a schema to come, see Replica.Become; "": there is none
	Embedded bool   // one replica with etcd in it, instead of three and three
	Lock     string // normal, off or always-yes
	// SessionTTL of the replicas. Default: 3 s, so that a stop outlasts it soon.
	SessionTTL time.Duration
	// Quota is the size at which the members refuse writes. Default: 96 MiB, enough for three quarters of an hour.
	Quota int64
	Seed  uint64
}

const (
	// Prefix is where the replicas keep their records.
	Prefix = "/rotator/"
	// Relayed is the file in Dir that the replicas relay events to, whichever of them leads.
	Relayed = "audit.jsonl"

	startLimit = 30 * time.Second
	stopLimit  = 20 * time.Second // above rotatord's own --shutdown-timeout
	nodes      = 3
)

// Cluster is what runs.
type Cluster struct {
	Options
	Net    *netproxy.Network
	client *clientv3.Client

	Etcds     []*Member  // none if etcd is embedded
	Rotatords []*Replica // one if etcd is embedded
	Schema    int        // that all replicas know
	ports     *ports
	names     memberNames // complete before the first member starts
	keyset    string
}

// Start starts everything and waits until all replicas serve.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	o.Etcd, o.Lock = cmp.Or(o.Etcd, "bin/etcd"), cmp.Or(o.Lock, "normal")
	o.SessionTTL, o.Quota = cmp.Or(o.SessionTTL, 3*time.Second), cmp.Or(o.Quota, 96<<20)
	c := &Cluster{Options: o, Schema: pool.Schema, Net: netproxy.New(o.Seed), ports: newPorts(), names: make(memberNames), keyset: filepath.Join(o.Dir, "keyset.json")}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	for _, path := range []*string{&c.Options.Etcd, &c.Rotatord, &c.Next, &c.Options.Dir, &c.keyset} {
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	for _, step := range []func(context.Context) error{c.startEtcd, c.connect, c.startReplicas} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	if c.Embedded {
		return nil
	}
	for i := range nodes {
		m, err := c.newMember(i)
		if err != nil {
			return err
		}
		c.Etcds = append(c.Etcds, m)
	}
	initial := make([]string, nodes)
	for i, m := range c.Etcds {
		initial[i] = m.Name + "=http://" + m.peerProxy.Listen
	}
	for _, m := range c.Etcds {
		m.command = append(m.command, "--initial-cluster", strings.Join(initial, ","))
		if err := m.Start(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startReplicas(ctx context.Context) error {
	if !c.Embedded {
		if _, _, err := seal.LoadOrCreate(c.keyset); err != nil {
			return err
		}
	}
	n := nodes
	if c.Embedded {
		n = 1
	}
	for i := range n {
		r, err := c.newReplica(i)
		if err != nil {
			return err
		}
		c.Rotatords = append(c.Rotatords, r)
		if err := r.Start(); err != nil {
			return err
		}
	}
	return c.Serving(ctx, startLimit)
}

// connect makes the harness' own client, past the proxies.
func (c *Cluster) connect(context.Context) (err error) {
	if c.Embedded {
		c.ports.embedded = c.ports.take()
	}
	c.client, err = c.Connect(c.EtcdDirect()...)
	return err
}

// Connect returns a client that notices soon that a member does not answer, and soon that it does again.
func (c *Cluster) Connect(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 2 * time.Second, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 2 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{redial.Quickly()},
	})
}

// Client is the harness' own client.
func (c *Cluster) Client() *clientv3.Client { return c.client }

// Replicas are the gRPC addresses of the replicas; they are the same after restarts.
func (c *Cluster) Replicas() (addresses []string) {
	for _, r := range c.Rotatords {
		addresses = append(addresses, r.Address)
	}
	return addresses
}

// EtcdDirect are the client addresses of the members past the proxies.
func (c *Cluster) EtcdDirect() (addresses []string) {
	if c.Embedded {
		return []string{c.ports.embedded}
	}
	for _, m := range c.Etcds {
		addresses = append(addresses, m.direct)
	}
	return addresses
}

// Dir is where data and logs are.
func (c *Cluster) Dir() string { return c.Options.Dir }

// Serving waits until all replicas serve rotations.
func (c *Cluster) Serving(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, r := range c.Rotatords {
		if err := r.Serves(ctx); err != nil {
			return errors.Join(err, deaths(c.Died()))
		}
	}
	return nil
}

// deaths explain what follows from them.
func deaths(died []string) error {
	if len(died) == 0 {
		return nil
	}
	return errors.New(strings.Join(died, "; "))
}

// Heal undoes whatever faults there are: nothing is cut, everything runs.
func (c *Cluster) Heal() error {
	c.Net.Heal()
	var errs []error
	for _, p := range c.processes() {
		p.Continue()
		if !p.Running() {
			errs = append(errs, p.Start())
		}
	}
	return errors.Join(errs...)
}

// Died lists the ends of processes that nobody asked for.
func (c *Cluster) Died() (died []string) {
	for _, p := range c.processes() {
		died = append(died, p.Died()...)
	}
	return died
}

func (c *Cluster) processes() (all []*Process) {
	for _, m := range c.Etcds {
		all = append(all, m.Process)
	}
	for _, r := range c.Rotatords {
		all = append(all, r.Process)
	}
	return all
}

// StopReplicas stops the replicas as an operator would.
func (c *Cluster) StopReplicas() error {
	var errs []error
	for _, r := range c.Rotatords {
		errs = append(errs, r.Terminate(stopLimit))
	}
	return errors.Join(errs...)
}

// Close ends everything but the files.
func (c *Cluster) Close() {
	if c.client != nil {
		_ = c.client.Close()
	}
	for _, p := range c.processes() {
		p.Kill()
	}
	for _, m := range c.Etcds {
		m.close()
	}
	for _, r := range c.Rotatords {
		r.close()
	}
}

// ports gives out loopback addresses below the range that the kernel takes for outgoing connections: an address stays
// free while its process is down.
type ports struct {
	next     int
	embedded string
}

func newPorts() *ports { return &ports{next: 10000 + 50*rand.IntN(400)} }

func (p *ports) take() string {
	for {
		p.next++
		address := fmt.Sprintf("127.0.0.1:%d", p.next)
		l, err := net.Listen("tcp", address)
		if err == nil {
			_ = l.Close()
			return address
		}
		if p.next > 32000 {
			p.next = 10000
		}
	}
}

// mkdir makes a directory below the cluster's.
func (c *Cluster) mkdir(name string) (string, error) {
	dir := filepath.Join(c.Options.Dir, name)
	return dir, os.MkdirAll(dir, 0o700)
}
