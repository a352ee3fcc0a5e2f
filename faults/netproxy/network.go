// Package netproxy is the network of a fault test: every connection between two named nodes goes through a proxy that
// can hold back what flows in either direction, delay it, break it, or spoil the answers to single calls.
//
// A cut holds bytes back, as a network does that drops packets while TCP sends them again: what was on its way arrives
// after the heal, unless an end has given up by then. A connection whose client has sent something into a cut for
// UserTimeout is broken for the client, as its kernel would (TCP_USER_TIMEOUT, which gRPC sets).
//
// It knows HTTP/2 and nothing of what is called: frames pass unchanged but for answers that are to be spoiled.
package netproxy

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Unknown is the name of a node that did not say who it is. Rules about it apply to whoever that may be.
const Unknown = "?"

// Way is a direction between two nodes.
type Way struct{ From, To string }

// Rule is what happens to what flows one way.
type Rule struct {
	Cut   bool
	Delay time.Duration
}

// Spoil says what becomes of the answer to a call.
type Spoil string

// The ways to spoil an answer. The call itself always reaches the server.
const (
	Drop      Spoil = "drop"      // the client waits for an answer that never comes
	Cancel    Spoil = "cancel"    // the client is told CANCELED
	Reset     Spoil = "reset"     // the connection breaks as the answer is there
	Duplicate Spoil = "duplicate" // the answer passes, and the call is sent to the server once more, a little later
)

// Spoiling is applied to a share of the calls of some methods.
type Spoiling struct {
	Kind    Spoil
	Methods map[string]bool // full names, such as /etcdserverpb.KV/Txn
	Share   float64
}

// Network holds the rules of all proxies made from it. All methods are safe for concurrent use.
type Network struct {
	// UserTimeout breaks connections into a cut for the client, 0: never.
	UserTimeout time.Duration

	mu       sync.Mutex // protects the following fields
	rules    map[Way]Rule
	spoiling map[Way]Spoiling // by who calls whom
	changed  chan struct{}    // closed and replaced on each change
	rng      *rand.Rand

	spoilt atomic.Int64
}

// New returns a network without faults.
func New(seed uint64) *Network {
	return &Network{
		UserTimeout: 2 * time.Second, rules: make(map[Way]Rule), spoiling: make(map[Way]Spoiling),
		changed: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 7)),
	}
}

// Set sets the rule for what flows one way.
func (n *Network) Set(w Way, r Rule) {
	n.change(func() { n.rules[w] = r })
}

// Spoil spoils answers to calls that w.From makes at w.To.
func (n *Network) Spoil(w Way, s Spoiling) {
	n.change(func() { n.spoiling[w] = s })
}

// Heal ends all faults.
func (n *Network) Heal() {
	n.change(func() { clear(n.rules); clear(n.spoiling) })
}

func (n *Network) change(what func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	what()
	close(n.changed)
	n.changed = make(chan struct{})
}

// Spoilt is how many answers have been spoilt.
func (n *Network) Spoilt() int64 { return n.spoilt.Load() }

// rule is what applies to a way now, and a channel that is closed when that may have changed.
func (n *Network) rule(w Way) (Rule, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rules[w], n.changed
}

// draw decides the fate of one call.
func (n *Network) draw(w Way, method string) Spoil {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, there := n.spoiling[w]
	if !there || !s.Methods[method] || n.rng.Float64() >= s.Share {
		return ""
	}
	n.spoilt.Add(1)
	return s.Kind
}
