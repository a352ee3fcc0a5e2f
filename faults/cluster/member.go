package cluster

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"github.com/rotatord/rotatord/faults/netproxy"
)

// Member is one etcd process with the proxy in front of its peer address.
type Member struct {
	*Process
	direct    string // client address
	peerProxy *netproxy.Proxy
}

// token is part of what etcd makes member ids of.
const token = "faults"

func (c *Cluster) newMember(i int) (*Member, error) {
	name := fmt.Sprintf("etcd-%d", i+1)
	data, err := c.mkdir(name)
	if err != nil {
		return nil, err
	}
	client, peer := c.ports.take(), c.ports.take()
	m := &Member{direct: client}
	m.peerProxy = &netproxy.Proxy{Net: c.Net, Listen: c.ports.take(), Target: peer, To: name, Identify: c.names.identify}
	m.Process = &Process{Name: name, dir: c.Options.Dir, command: []string{
		c.Options.Etcd, "--name", name, "--data-dir", data,
		"--listen-client-urls", "http://" + client, "--advertise-client-urls", "http://" + client,
		"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + m.peerProxy.Listen,
		"--initial-cluster-token", token, "--heartbeat-interval", "100", "--election-timeout", "1000",
		"--quota-backend-bytes", strconv.FormatInt(c.Quota, 10), "--snapshot-count", "5000",
		"--grpc-keepalive-min-time", "500ms", "--log-level", "warn",
	}}
	if err := c.names.add(name, m.peerProxy.Listen); err != nil {
		return nil, err
	}
	return m, m.peerProxy.Start()
}

func (m *Member) close() { m.peerProxy.Close() }

// memberNames tells which member opened a connection: peers say their id in every request.
type memberNames map[uint64]string

var serverFrom = regexp.MustCompile(`(?i)\r\nX-Server-From: ([0-9a-f]+)\r\n`)

func (n memberNames) identify(first []byte) string {
	if found := serverFrom.FindSubmatch(first); found != nil {
		id, err := strconv.ParseUint(string(found[1]), 16, 64)
		if err == nil && n[id] != "" {
			return n[id]
		}
	}
	return netproxy.Unknown
}

// add notes a member under the id that etcd makes of its first peer address.
func (n memberNames) add(name, peer string) error {
	urls, err := types.NewURLs([]string{"http://" + peer})
	if err == nil {
		n[uint64(membership.NewMember(name, urls, token, nil).ID)] = name
	}
	return err
}

var errNoLeader = errors.New("no member leads")

// Leader is the member that leads.
func (c *Cluster) Leader(ctx context.Context) (*Member, error) {
	for _, m := range c.Etcds {
		sctx, cancel := context.WithTimeout(ctx, time.Second)
		status, err := c.client.Status(sctx, m.direct)
		cancel()
		if err == nil && status.Leader == status.Header.MemberId {
			return m, nil
		}
	}
	return nil, errNoLeader
}

// MoveLeader has another member lead.
func (c *Cluster) MoveLeader(ctx context.Context, to *Member) error {
	leader, err := c.Leader(ctx)
	if err != nil {
		return err
	}
	status, err := c.client.Status(ctx, to.direct)
	if err != nil {
		return err
	}
	client, err := c.Connect(leader.direct)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	_, err = client.MoveLeader(ctx, status.Header.MemberId)
	return err
}

// Direct is the member's client address past the proxies.
func (m *Member) Direct() string { return m.direct }

// Healthy waits until the member answers linearizable reads.
func (c *Cluster) Healthy(ctx context.Context, m *Member) error {
	client, err := c.Connect(m.direct)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	for {
		gctx, cancel := context.WithTimeout(ctx, time.Second)
		_, err := client.Get(gctx, "health")
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", m.Name, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
