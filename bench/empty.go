package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/rotatord/rotatord/bench/fleet"
	"github.com/rotatord/rotatord/bench/load"
)

// serveEmpty is the argument with which the benchmark becomes the server of the empty calls: a process of its own, as
// the replica is, so that client and server share the processors alike.
const serveEmpty = "serve-empty"

const emptyService, emptyCall = "rotatord.bench.Empty", "Call"

// serveEmptyCalls serves empty unary calls until ctx ends. The server has the settings of rotatord's and none of its
// interceptors.
func serveEmptyCalls(ctx context.Context, address string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	)
	server.RegisterService(&grpc.ServiceDesc{ServiceName: emptyService, Methods: []grpc.MethodDesc{{MethodName: emptyCall, Handler: answerEmpty}}}, nil)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	return server.Serve(l)
}

func answerEmpty(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	return new(emptypb.Empty), decode(new(emptypb.Empty))
}

// emptyServer is the limit of what is answered from memory.
type emptyServer struct {
	*fleet.Server
	conns []*grpc.ClientConn
}

func (b *bench) startEmpty(ctx context.Context) (*emptyServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &emptyServer{}
	if s.Server, err = fleet.StartServer(b.dir, progEmpty, self, serveEmpty); err != nil {
		return nil, err
	}
	if s.conns, err = dial(s.Address, connections); err == nil {
		err = invokeEmpty(ctx, s.conns[0], grpc.WaitForReady(true))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the server of empty calls: %w", err), s.close())
	}
	return s, nil
}

func invokeEmpty(ctx context.Context, conn *grpc.ClientConn, opts ...grpc.CallOption) error {
	return conn.Invoke(ctx, "/"+emptyService+"/"+emptyCall, new(emptypb.Empty), new(emptypb.Empty), opts...)
}

// measure measures empty calls, on as many connections as callers of rotatord have.
func (s *emptyServer) measure(ctx context.Context, b *bench, callers int) (*measure, error) {
	m := &meter{of: processes{progEmpty: {s.PID()}, progBench: {os.Getpid()}}}
	result, err := load.Run(ctx, load.Options{Workers: callers, WarmUp: b.warmUp(), Time: b.time, Begin: m.begin}, func(i int) load.Call {
		conn := s.conns[i%min(len(s.conns), callers)]
		return func(ctx context.Context) error { return invokeEmpty(ctx, conn) }
	})
	if err := errors.Join(err, m.err); err != nil {
		return nil, fmt.Errorf("empty calls: %w", err)
	}
	return m.measure(result), nil
}

func (s *emptyServer) close() error {
	s.Kill()
	return closeAll(s.conns)
}
