package main

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rotatord/rotatord/bench/fleet"
	"github.com/rotatord/rotatord/bench/seed"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// connections are how many a caller of rotatord, or of the empty calls, has at most: one alone would be the limit.
const connections = 4

// stage is what one measurement runs on: an etcd of its own and some replicas.
type stage struct {
	bench    *bench
	etcd     *fleet.Etcd
	replicas []*fleet.Replica
	conns    [][]*grpc.ClientConn // by replica
	traps    bool                 // replicas can be held at a step
}

// newStage starts an etcd with fresh data.
func (b *bench) newStage(ctx context.Context, members int, disk string) (*stage, error) {
	etcd, err := fleet.StartEtcd(ctx, fleet.EtcdOptions{Dir: b.dir, Program: b.etcdOf(disk), Members: members, Pprof: b.pprof != ""})
	if err != nil {
		return nil, fmt.Errorf("starting etcd: %w", err)
	}
	return &stage{bench: b, etcd: etcd}, nil
}

// addReplicas starts replicas, waits until all of them serve, and connects to each.
func (s *stage) addReplicas(ctx context.Context, n, conns int) error {
	for i := range n {
		r, err := s.startReplica(i)
		if err != nil {
			return err
		}
		s.replicas = append(s.replicas, r)
	}
	for _, r := range s.replicas {
		if err := r.Serves(ctx); err != nil {
			return err
		}
		conns, err := dial(r.Address, conns)
		s.conns = append(s.conns, conns)
		if err != nil {
			return err
		}
	}
	return nil
}

// startReplica starts the i-th replica and does not wait for it.
func (s *stage) startReplica(i int) (*fleet.Replica, error) {
	b := s.bench
	o := fleet.ReplicaOptions{
		Dir: b.dir, Program: b.replica, Name: fmt.Sprintf("rotatord-%d", i+1), Endpoints: s.etcd.Endpoints, Keyset: b.keyset, Pprof: b.pprof != "",
	}
	if s.traps {
		o.Program, o.Pprof, o.Traps = b.trapped, false, true
	}
	return fleet.StartReplica(o)
}

// dial makes n connections to one address.
func dial(address string, n int) (conns []*grpc.ClientConn, err error) {
	for range n {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return conns, err
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

// conn is the connection of the i-th caller: callers take replicas in turn, and connections of one replica in turn.
func (s *stage) conn(i int) *grpc.ClientConn {
	conns := s.conns[i%len(s.conns)]
	return conns[i/len(s.conns)%len(conns)]
}

// rotation is the i-th caller's client.
func (s *stage) rotation(i int) v1.RotationServiceClient {
	return v1.NewRotationServiceClient(s.conn(i))
}

// fill writes pools; the replicas need not run.
func (s *stage) fill(ctx context.Context, pools []seed.Pool) ([]seed.Lives, error) {
	lives, err := seed.Fill(ctx, s.etcd.Client, s.bench.sealer, pools)
	if err != nil {
		return nil, fmt.Errorf("writing the keys: %w", err)
	}
	return lives, nil
}

// close ends all processes.
func (s *stage) close() error {
	var errs []error
	for _, conns := range s.conns {
		errs = append(errs, closeAll(conns))
	}
	for _, r := range s.replicas {
		errs = append(errs, r.Close())
	}
	return errors.Join(append(errs, s.etcd.Close())...)
}

func closeAll(conns []*grpc.ClientConn) error {
	var errs []error
	for _, conn := range conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// etcdClients are n clients of their own for etcd, as the limits use them.
func (s *stage) etcdClients(n int) (clients []*clientv3.Client, err error) {
	for range n {
		client, err := fleet.Connect(s.etcd.Endpoints...)
		if err != nil {
			return clients, err
		}
		clients = append(clients, client)
	}
	return clients, nil
}
