package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// startLimit bounds a start: a replica may have to load hundreds of thousands of records.
const startLimit = time.Minute

// quota is the one setting in which the members depart from etcd's defaults: 8 GiB instead of 2, so that a long
// measurement is not ended by it. It changes nothing below that size.
const quota = "8589934592"

// EtcdOptions say which etcd to run.
type EtcdOptions struct {
	Dir     string // of data and logs
	Program string
	Members int
	Pprof   bool
}

// Etcd is a running cluster of one or more members.
type Etcd struct {
	Members   []*Process
	Endpoints []string // host:port of each
	Client    *clientv3.Client
	dir       string
}

// StartEtcd starts members with fresh data, and waits until all of them serve.
func StartEtcd(ctx context.Context, o EtcdOptions) (_ *Etcd, err error) {
	e := &Etcd{}
	if e.dir, err = os.MkdirTemp(o.Dir, "etcd-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if err := e.start(o); err != nil {
		return nil, err
	}
	if e.Client, err = Connect(e.Endpoints...); err != nil {
		return nil, err
	}
	return e, e.serving(ctx)
}

// Connect returns a client as it comes, with one connection to each member. It sends every call once.
func Connect(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, MaxUnaryRetries: 1, Logger: zap.NewNop()})
}

func (e *Etcd) start(o EtcdOptions) error {
	var initial []string
	for i := range o.Members {
		var client, peer string
		if err := addresses(&client, &peer); err != nil {
			return err
		}
		name := fmt.Sprintf("etcd-%d", i+1)
		initial = append(initial, name+"=http://"+peer)
		e.Endpoints = append(e.Endpoints, client)
		m := &Process{Name: name, dir: e.dir, command: []string{
			o.Program, "--name", name, "--data-dir", filepath.Join(e.dir, name),
			"--listen-client-urls", "http://" + client, "--advertise-client-urls", "http://" + client,
			"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + peer,
			"--quota-backend-bytes", quota, "--log-level", "warn",
		}}
		if o.Pprof {
			m.command = append(m.command, "--enable-pprof")
		}
		e.Members = append(e.Members, m)
	}
	for _, m := range e.Members {
		m.command = append(m.command, "--initial-cluster", strings.Join(initial, ","))
		if err := m.start(); err != nil {
			return err
		}
	}
	return nil
}

// serving waits until each member answers a linearizable read.
func (e *Etcd) serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for i, m := range e.Members {
		client, err := Connect(e.Endpoints[i])
		if err != nil {
			return err
		}
		err = m.until(ctx, func(ctx context.Context) error { _, err := client.Get(ctx, "health"); return err })
		if err := errors.Join(err, client.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Leader is the address of the member that leads.
func (e *Etcd) Leader(ctx context.Context) (string, error) {
	for _, address := range e.Endpoints {
		status, err := e.Client.Status(ctx, address)
		if err != nil {
			return "", fmt.Errorf("asking %s who leads: %w", address, err)
		}
		if status.Leader == status.Header.MemberId {
			return address, nil
		}
	}
	return "", errors.New("no member of etcd leads")
}

// Close ends the members and removes their data.
func (e *Etcd) Close() error {
	var errs []error
	if e.Client != nil {
		errs = append(errs, e.Client.Close())
	}
	for _, m := range e.Members {
		m.Kill()
	}
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}
