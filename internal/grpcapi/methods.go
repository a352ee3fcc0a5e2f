package grpcapi

import (
	"time"

	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// method is what the interceptors have to know of an rpc.
type method struct {
	// writes: an answer that does not come in time leaves it unknown whether something was changed.
	writes bool
	// long: works on many records, so it may take more time than other calls.
	long bool
	// probes: an upstream may have to be asked first.
	probes bool
	// asks: the domain asks by itself whether it can write, since it can answer some calls without.
	asks bool
}

// gated reports whether a call is refused at once while the replica has no session or no quorum. Long calls are, even
// if they only read: nobody should wait their long bound for a store that does not answer.
func (m method) gated() bool { return (m.writes || m.long) && !m.asks }

var (
	read     = method{}
	write    = method{writes: true}
	rotates  = method{writes: true, asks: true}
	reports  = method{writes: true, asks: true, probes: true}
	longRead = method{long: true}
	longOne  = method{writes: true, long: true}
)

// methods is every rpc of the contract.
var methods = map[string]method{
	v1.RotationService_RotateKey_FullMethodName:     rotates,
	v1.RotationService_ReportFailure_FullMethodName: reports,
	v1.RotationService_GetRotation_FullMethodName:   read,
	v1.RotationService_ListRotations_FullMethodName: read,
	v1.RotationService_WatchEvents_FullMethodName:   read,

	v1.KeyService_GetKeys_FullMethodName: read,

	v1.AdminService_CreatePool_FullMethodName:        write,
	v1.AdminService_GetPool_FullMethodName:           read,
	v1.AdminService_ListPools_FullMethodName:         read,
	v1.AdminService_UpdatePool_FullMethodName:        write,
	v1.AdminService_DeletePool_FullMethodName:        longOne,
	v1.AdminService_PausePool_FullMethodName:         write,
	v1.AdminService_ResumePool_FullMethodName:        write,
	v1.AdminService_SetPoolCredential_FullMethodName: write,
	v1.AdminService_EndIncident_FullMethodName:       write,
	v1.AdminService_RetryKey_FullMethodName:          write,
	v1.AdminService_AddKeys_FullMethodName:           longOne,
	v1.AdminService_ListKeys_FullMethodName:          read,
	v1.AdminService_GetKey_FullMethodName:            read,
	v1.AdminService_RemoveKey_FullMethodName:         longOne,
	v1.AdminService_RestoreKey_FullMethodName:        write,
	v1.AdminService_DisableKey_FullMethodName:        write,
	v1.AdminService_EnableKey_FullMethodName:         write,
	v1.AdminService_SetBinding_FullMethodName:        write,
	v1.AdminService_RemoveBinding_FullMethodName:     write,
	v1.AdminService_ListBindings_FullMethodName:      read,
	v1.AdminService_ListReplicas_FullMethodName:      read,
	v1.AdminService_Diagnose_FullMethodName:          longRead,
}

// Timeouts bound calls on the server's side, whatever the caller's own deadline is. Zero values are the defaults.
type Timeouts struct {
	Read  time.Duration // default: 5 s
	Write time.Duration // default: 1.8 s, so that callers learn within two seconds that a write cannot work
	Probe time.Duration // default: 10 s, for writes that may have to ask an upstream first
	Long  time.Duration // default: 60 s
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&t.Read, 5*time.Second)
	set(&t.Write, 1800*time.Millisecond)
	set(&t.Probe, 10*time.Second)
	set(&t.Long, time.Minute)
	return t
}

func (t Timeouts) of(m method) time.Duration {
	switch {
	case m.long:
		return t.Long
	case m.probes:
		return t.Probe
	case m.writes:
		return t.Write
	}
	return t.Read
}
