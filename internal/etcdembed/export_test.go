package etcdembed

import (
	"errors"

	"go.uber.org/zap"
)

// Fatal has etcd say what it says when it cannot write.
func (s *Server) Fatal(message, cause string) {
	s.member.etcd.GetLogger().Fatal(message, zap.Error(errors.New(cause)))
}

// StopEtcd stops etcd behind the server's back.
func (s *Server) StopEtcd() { s.member.etcd.Server.Stop() }
