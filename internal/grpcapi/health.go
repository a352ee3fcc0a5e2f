package grpcapi

import (
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// Health says by service what works: reads are served from memory and so outlive the quorum that writes need. Before
// the first SetServing nothing serves. Its methods are safe for concurrent use.
type Health struct{ server *health.Server }

func newHealth() *Health {
	h := &Health{health.NewServer()}
	h.SetServing(false, false)
	return h
}

// SetServing sets the state of the services: the server as a whole and KeyService serve once the cache is loaded,
// RotationService and AdminService while writes work too. After Shutdown it does nothing.
func (h *Health) SetServing(cacheLoaded, writable bool) {
	h.set(cacheLoaded, "", v1.KeyService_ServiceDesc.ServiceName)
	h.set(cacheLoaded && writable, v1.RotationService_ServiceDesc.ServiceName, v1.AdminService_ServiceDesc.ServiceName)
}

func (h *Health) set(serving bool, services ...string) {
	state := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		state = healthv1.HealthCheckResponse_SERVING
	}
	for _, s := range services {
		h.server.SetServingStatus(s, state)
	}
}

// Shutdown says for good that nothing serves, so that callers go elsewhere before the server stops.
func (h *Health) Shutdown() { h.server.Shutdown() }
