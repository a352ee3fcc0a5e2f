package etcdstore

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// avoidHung is the name of a gRPC balancer like round_robin that leaves out members that did not answer lately. A member
// that hangs, or is cut off without a word, keeps its connection for up to twelve seconds; round_robin would have a third
// of all calls wait there.
const avoidHung = "rotatord_avoid_hung"

func init() { // gRPC finds balancers by their names only
	balancer.Register(builder{base.NewBalancerBuilder(avoidHung, pickers{}, base.Config{})})
}

// builder implements balancer.Builder. Its name is the embedded one's.
type builder struct{ balancer.Builder }

// Build implements balancer.Builder.
func (b builder) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return flattened{b.Builder.Build(cc, opts)}
}

// connections is how many there are to each member. One costs a quarter of the transactions under load: its frames are
// written and read by one goroutine each.
const connections = 4

// connection tells the connections to one address from each other.
type connection struct{}

// flattened gives package base what it wants, an address for each connection. etcd's resolver names endpoints.
type flattened struct{ balancer.Balancer }

// UpdateClientConnState implements balancer.Balancer.
func (f flattened) UpdateClientConnState(s balancer.ClientConnState) error {
	s.ResolverState.Addresses = nil
	for _, endpoint := range s.ResolverState.Endpoints {
		for _, address := range endpoint.Addresses {
			for i := range connections {
				address.Attributes = attributes.New(connection{}, i)
				s.ResolverState.Addresses = append(s.ResolverState.Addresses, address)
			}
		}
	}
	return f.Balancer.UpdateClientConnState(s)
}

// avoidFor is how long a member that did not answer is left out before one call tries it again.
const avoidFor = time.Second

// pickers implements base.PickerBuilder.
type pickers struct{}

// Build implements base.PickerBuilder. It is called when a connection comes up or breaks; what was known of the others is
// forgotten then, which costs one call each.
func (pickers) Build(info base.PickerBuildInfo) balancer.Picker {
	if len(info.ReadySCs) == 0 {
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	p, members := new(picker), make(map[string]*member)
	for conn, of := range info.ReadySCs {
		m := members[of.Address.Addr]
		if m == nil {
			m = new(member)
			members[of.Address.Addr] = m
		}
		p.ways = append(p.ways, way{conn, m})
	}
	return p
}

// picker implements balancer.Picker.
type picker struct {
	ways []way
	next atomic.Uint32
}

// way is a connection to a member.
type way struct {
	conn   balancer.SubConn
	member *member
}

// Pick implements balancer.Picker. If no member answers they are asked in turn, as round_robin would.
func (p *picker) Pick(balancer.PickInfo) (balancer.PickResult, error) {
	now := time.Now().UnixNano()
	first, n := int(p.next.Add(1)), len(p.ways)
	chosen := p.ways[first%n]
	for i := range n {
		if w := p.ways[(first+i)%n]; w.member.answers(now) {
			chosen = w
			break
		}
	}
	return balancer.PickResult{SubConn: chosen.conn, Done: chosen.member.done}, nil
}

// member is a member of etcd.
type member struct {
	// tryAt is when it is tried again, in nanoseconds since the epoch; 0: it answers.
	tryAt atomic.Int64
}

// answers reports whether a call may go there. Of those that meet a member whose time has come one is let through.
func (m *member) answers(now int64) bool {
	at := m.tryAt.Load()
	return at == 0 || now >= at && m.tryAt.CompareAndSwap(at, now+int64(avoidFor))
}

// done learns from the end of a call. One that was given up in time without a byte from the server says that it hangs.
func (m *member) done(call balancer.DoneInfo) {
	switch {
	case call.BytesReceived:
		if m.tryAt.Load() != 0 {
			m.tryAt.Store(0)
		}
	case status.Code(call.Err) == codes.DeadlineExceeded:
		m.tryAt.Store(time.Now().Add(avoidFor).UnixNano())
	}
}
