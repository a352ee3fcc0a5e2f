package fleet

import (
	"context"
	"errors"
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

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// ReplicaOptions say which replica to run. All else is rotatord's defaults.
type ReplicaOptions struct {
	Dir       string // of logs
	Program   string
	Name      string
	Endpoints []string // of etcd
	Keyset    string   // file
	Pprof     bool     // Program serves profiles, as bench/rotatord does
	Traps     bool     // Program can be held at a step, as faults/rotatord can
}

// Replica is a running rotatord.
type Replica struct {
	*Process
	Address string // of gRPC
	Web     string // of health and metrics
	Pprof   string // of profiles; "": none
	control string
	conn    *grpc.ClientConn
}

// StartReplica starts a replica and does not wait for it.
func StartReplica(o ReplicaOptions) (*Replica, error) {
	r := &Replica{}
	if err := addresses(&r.Address, &r.Web); err != nil {
		return nil, err
	}
	r.Process = &Process{Name: o.Name, dir: o.Dir, command: []string{
		o.Program, "--name", o.Name, "--listen", r.Address, "--metrics-listen", r.Web,
		"--etcd-endpoints", strings.Join(o.Endpoints, ","), "--keyset-file", o.Keyset,
	}}
	if o.Pprof {
		if err := addresses(&r.Pprof); err != nil {
			return nil, err
		}
		r.env = append(r.env, "BENCH_PPROF="+r.Pprof)
	}
	if o.Traps {
		r.control = filepath.Join(o.Dir, o.Name+".sock")
		r.env = append(r.env, "FAULTS_CONTROL="+r.control, "FAULTS_LOCK=apart") // else there is no holder to be stopped
	}
	var err error
	if r.conn, err = grpc.NewClient(r.Address, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return nil, err
	}
	return r, r.start()
}

// Restart begins another life of a replica that is gone.
func (r *Replica) Restart() error { return r.start() }

// Ready waits until /readyz is green.
func (r *Replica) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return r.until(ctx, func(ctx context.Context) error {
		_, err := get(ctx, "http://"+r.Web+"/readyz")
		return err
	})
}

// Serves waits until the replica's health says that it rotates keys.
func (r *Replica) Serves(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return r.until(ctx, func(ctx context.Context) error {
		r.conn.ResetConnectBackoff()
		answer, err := healthv1.NewHealthClient(r.conn).Check(ctx, &healthv1.HealthCheckRequest{Service: rotatorv1.RotationService_ServiceDesc.ServiceName})
		if err == nil && answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			err = fmt.Errorf("its health is %v", answer.GetStatus())
		}
		return err
	})
}

// Close ends the replica.
func (r *Replica) Close() error {
	r.Kill()
	return r.conn.Close()
}

// Hold has the next rotation that comes to a step stand still there for a time.
func (r *Replica) Hold(ctx context.Context, step string, pause time.Duration) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.control)
	}}
	form := url.Values{"step": {step}, "pause": {pause.String()}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://control/arm", strings.NewReader(form))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	_, err = body(resp, err)
	return err
}

func get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	return body(http.DefaultClient.Do(req))
}

func body(resp *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return text, err
}
