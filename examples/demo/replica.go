package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

const (
	startLimit = 30 * time.Second // for slow machines; a second or so is normal
	stopLimit  = 20 * time.Second // above rotatord's own --shutdown-timeout
)

// replica is one rotatord process.
type replica struct {
	name    string
	cmd     *exec.Cmd
	logFile string
	log     io.WriteCloser
	ended   chan struct{} // closed when the process is gone and err is set
	err     error
	killed  bool

	underWay atomic.Int64 // calls

	address string   // of gRPC
	etcd    []string // endpoints of the etcd it uses
	conn    *grpc.ClientConn
	rotate  rotatorv1.RotationServiceClient
	admin   rotatorv1.AdminServiceClient
}

// prepare looks for what the demo needs before it starts anything.
func (d *demo) prepare(context.Context) (err error) {
	if d.bin, err = filepath.Abs(d.bin); err != nil {
		return err
	}
	for _, name := range []string{"rotatord", "rotatorctl"} {
		if _, err := os.Stat(filepath.Join(d.bin, name)); err != nil {
			return fmt.Errorf("%w; build it with `make build`, or run `make demo`, which does", err)
		}
	}
	if _, err := os.Stat(examples); err != nil {
		return fmt.Errorf("%w; run the demo in the repository's top directory", err)
	}
	d.dir, err = os.MkdirTemp("", "rotatord-demo-")
	return err
}

// startReplicas starts the first replica with etcd in it, and two that are attached to that etcd.
func (d *demo) startReplicas(ctx context.Context) error {
	d.say("starting three replicas: replica-1 with the embedded etcd, replica-2 and replica-3 attached to it")
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	data := filepath.Join(d.dir, "data")
	first, err := d.start(ctx, "replica-1", "--data-dir", data, "--embedded-etcd-listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	for _, name := range []string{"replica-2", "replica-3"} {
		// All replicas seal with one keyset, which the first one made.
		if _, err := d.start(ctx, name, "--etcd-endpoints", strings.Join(first.etcd, ","), "--keyset-file", filepath.Join(data, "keyset.json")); err != nil {
			return err
		}
	}
	for _, r := range d.replicas {
		if err := r.serves(ctx); err != nil {
			return err
		}
		fmt.Fprintf(d.out, "   %s serves on %s\n", r.name, r.address)
	}
	d.etcd, err = d.lookFromOutside(ctx, first.etcd)
	return err
}

// start starts a process and waits until it listens.
func (d *demo) start(ctx context.Context, name string, args ...string) (*replica, error) {
	r := &replica{name: name, logFile: filepath.Join(d.dir, name+".log"), ended: make(chan struct{})}
	r.cmd = exec.Command(filepath.Join(d.bin, "rotatord"), append([]string{
		"--name", name, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-format", "json"}, args...)...)
	r.cmd.Dir, r.cmd.Env = d.dir, environ()
	r.cmd.SysProcAttr = childAttributes()
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if r.log, err = os.Create(r.logFile); err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, errors.Join(err, r.log.Close())
	}
	d.replicas = append(d.replicas, r)
	up := make(chan upLine, 1)
	go r.follow(stderr, up)
	select {
	case line := <-up:
		return r, r.connect(line)
	case <-r.ended:
		return nil, fmt.Errorf("%s ended instead of starting: %w", name, r.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("%s is not up: %w", name, ctx.Err())
	}
}

// upLine is the line of rotatord's log that says where it listens.
type upLine struct {
	Msg  string   `json:"msg"`
	GRPC string   `json:"grpc"`
	Etcd []string `json:"etcd"`
}

// follow writes the log to its file, finds the line that says where the replica listens, and notes the process's end.
func (r *replica) follow(stderr io.Reader, up chan<- upLine) {
	defer close(r.ended)
	lines := bufio.NewReader(stderr)
	for {
		text, err := lines.ReadBytes('\n')
		_, _ = r.log.Write(text) // a full disk ends the demo elsewhere
		var line upLine
		if json.Unmarshal(text, &line) == nil && line.Msg == "rotatord is up" {
			up <- line
		}
		if err != nil {
			break
		}
	}
	r.err = errors.Join(r.cmd.Wait(), r.log.Close())
}

func (r *replica) connect(line upLine) (err error) {
	r.address, r.etcd = line.GRPC, line.Etcd
	r.conn, err = grpc.NewClient(r.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	r.rotate, r.admin = rotatorv1.NewRotationServiceClient(r.conn), rotatorv1.NewAdminServiceClient(r.conn)
	return err
}

// serves waits until the replica's health says that it rotates keys.
func (r *replica) serves(ctx context.Context) error {
	watch, err := healthv1.NewHealthClient(r.conn).Watch(ctx, &healthv1.HealthCheckRequest{Service: rotatorv1.RotationService_ServiceDesc.ServiceName})
	for err == nil {
		var answer *healthv1.HealthCheckResponse
		if answer, err = watch.Recv(); err == nil && answer.GetStatus() == healthv1.HealthCheckResponse_SERVING {
			return nil
		}
	}
	return fmt.Errorf("%s does not serve: %w", r.name, err)
}

// kill ends the process without warning and waits until it is gone. It may be called again, and after the end.
func (r *replica) kill() {
	select {
	case <-r.ended:
	default:
		r.killed = true
		_ = r.cmd.Process.Kill()
		<-r.ended
	}
}

// close leaves nothing of the replica but its files.
func (r *replica) close() {
	r.kill()
	if r.conn != nil {
		_ = r.conn.Close()
	}
}

// stopReplicas stops what still runs as an operator would, those with etcd inside last.
func (d *demo) stopReplicas(context.Context) error {
	d.etcd.close()
	for i := len(d.replicas) - 1; i >= 0; i-- {
		r := d.replicas[i]
		if r.killed {
			continue
		}
		if err := r.stop(); err != nil {
			return fmt.Errorf("stopping %s: %w", r.name, err)
		}
	}
	return nil
}

func (r *replica) stop() error {
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case <-r.ended:
		return r.err
	case <-time.After(stopLimit):
		return fmt.Errorf("it still runs %s after it was asked to stop", stopLimit)
	}
}

// environ leaves out what would configure the programs of this demo.
func environ(more ...string) []string {
	env := more
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "ROTATORD_") && !strings.HasPrefix(name, "ROTATORCTL_") && !strings.HasPrefix(name, "ETCDCTL_") {
			env = append(env, entry)
		}
	}
	return env
}

// lastLines is how much of each log is shown after a failure.
const lastLines = 8

func (d *demo) showLogs(w io.Writer) {
	for _, r := range d.replicas {
		text, err := os.ReadFile(r.logFile)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		lines = lines[max(0, len(lines)-lastLines):]
		fmt.Fprintf(w, "the end of %s:\n  %s\n", r.logFile, strings.Join(lines, "\n  "))
	}
}
