package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rotatord/rotatord/faults/netproxy"
	"github.com/rotatord/rotatord/faults/overlay"
	"github.com/rotatord/rotatord/internal/pool"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// Replica is one rotatord process with the proxies between it and the members.
type Replica struct {
	*Process
	Address string // of gRPC
	Web     string // of health and metrics
	control string
	builds  [2]string // programs: of this build, and of those with a schema to come
	http    *http.Client
	conn    *grpc.ClientConn
	proxies []*netproxy.Proxy // by member
}

func (c *Cluster) newReplica(i int) (_ *Replica, err error) {
	name := fmt.Sprintf("rotatord-%d", i+1)
	r := &Replica{Address: c.ports.take(), Web: c.ports.take(), control: filepath.Join(c.Options.Dir, name+".sock")}
	r.Process = &Process{Name: name, dir: c.Options.Dir, env: []string{"FAULTS_CONTROL=" + r.control, "FAULTS_LOCK=" + c.Lock, "FAULTS_PHASES=short"}}
	r.builds = [...]string{c.Rotatord, c.Next}
	r.command = []string{
		c.Rotatord, "--name", name, "--listen", r.Address, "--metrics-listen", r.Web, "--log-format", "json",
		"--etcd-prefix", Prefix, "--session-ttl", c.SessionTTL.String(), "--audit-relay", "file:" + filepath.Join(c.Options.Dir, Relayed),
	}
	if c.Embedded {
		r.command = append(r.command, "--data-dir", filepath.Join(c.Options.Dir, "data"), "--embedded-etcd-listen", c.ports.embedded)
	} else {
		endpoints, err := r.startProxies(c)
		if err != nil {
			return nil, err
		}
		r.command = append(r.command, "--etcd-endpoints", strings.Join(endpoints, ","), "--keyset-file", c.keyset)
	}
	r.http = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.control)
		},
	}}
	r.conn, err = grpc.NewClient(r.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	return r, err
}

func (r *Replica) startProxies(c *Cluster) (endpoints []string, err error) {
	for _, m := range c.Etcds {
		p := &netproxy.Proxy{Net: c.Net, Listen: c.ports.take(), Target: m.direct, From: r.Name, To: m.Name, Calls: true}
		if err := p.Start(); err != nil {
			return nil, err
		}
		r.proxies = append(r.proxies, p)
		endpoints = append(endpoints, p.Listen)
	}
	return endpoints, nil
}

// Become has the replica's next life be that of a build that knows a schema: the one that is tested, or one to come.
func (r *Replica) Become(schema int) {
	program := r.builds[0]
	if schema != pool.Schema {
		program = r.builds[1]
	}
	r.replace(program, fmt.Sprint(envSchema, "=", schema))
}

const envSchema = "FAULTS_SCHEMA"

// NextBuild edits the sources into a build to come: its environment says which schema it knows.
var NextBuild = []overlay.Edit{
	{File: typesGo, Old: "import (\n", New: "import (\n\t\"os\"\n\t\"strconv\"\n"},
	{File: typesGo, Old: fmt.Sprint("const Schema = ", pool.Schema, "\n"), New: fmt.Sprintf("var Schema, _ = strconv.Atoi(os.Getenv(%q))\n", envSchema)},
}

const typesGo = "internal/pool/types.go"

// Break resets the replica's connections to etcd.
func (r *Replica) Break() {
	for _, p := range r.proxies {
		p.Break()
	}
}

func (r *Replica) close() {
	if r.conn != nil {
		_ = r.conn.Close()
	}
	for _, p := range r.proxies {
		p.Close()
	}
}

// Serves waits until the replica's health says that it rotates keys.
func (r *Replica) Serves(ctx context.Context) error {
	var err error
	for {
		var answer *healthv1.HealthCheckResponse
		cctx, cancel := context.WithTimeout(ctx, time.Second)
		answer, err = healthv1.NewHealthClient(r.conn).Check(cctx, &healthv1.HealthCheckRequest{Service: rotatorv1.RotationService_ServiceDesc.ServiceName})
		cancel()
		if answer.GetStatus() == healthv1.HealthCheckResponse_SERVING {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve (%v): %w", r.Name, answer.GetStatus(), err)
		case <-time.After(50 * time.Millisecond):
			r.conn.ResetConnectBackoff()
		}
	}
}

// Arm sets a trap: the n-th rotation that comes to a step pauses the process's work on it, or without a pause ends the
// process.
func (r *Replica) Arm(step string, n int, pause time.Duration) error {
	form := url.Values{"step": {step}, "n": {fmt.Sprint(n)}}
	if pause > 0 {
		form.Set("pause", pause.String())
	}
	resp, err := r.http.PostForm("http://control/arm", form)
	return answered(resp, err)
}

// Disarm takes all traps away.
func (r *Replica) Disarm() error {
	resp, err := r.http.Post("http://control/disarm", "", nil)
	return answered(resp, err)
}

func answered(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}

// Traps is what the replica says of its traps.
type Traps struct {
	Arrivals      map[string]int
	Sprung, Armed int
	Pauses        []Pause
}

// Pause is a rotation that a trap had stand still.
type Pause struct {
	Step, Pool, Key string
	Generation      int64
	Start, End      time.Time // End is zero while it does
}

// Traps asks the replica.
func (r *Replica) Traps() (t Traps, err error) {
	resp, err := r.http.Get("http://control/status")
	if err != nil {
		return t, err
	}
	defer func() { _ = resp.Body.Close() }()
	return t, json.NewDecoder(resp.Body).Decode(&t)
}

// Lease is the lease of the replica's session, 0 if it has none on record.
func (c *Cluster) Lease(ctx context.Context, r *Replica) (int64, error) {
	resp, err := c.client.Get(ctx, Prefix+"replicas/"+r.Name)
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	return resp.Kvs[0].Lease, nil
}
