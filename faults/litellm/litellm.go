// Package litellm is the upstream of a fault test: a LiteLLM in the harness' own process that answers badly, and that knows
// of every key who made it and what became of it.
//
// It promises that a key is told apart by the alias it was made or registered with, and that each call that was to make or
// delete a key is among the deeds, whatever it was answered.
package litellm

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/internal/upstream/upstreamtest"
)

// Upstream answers badly until Heal. All methods are safe for concurrent use.
type Upstream struct {
	*upstreamtest.LiteLLM

	mu     sync.Mutex // protects the following fields
	rng    *rand.Rand
	healed bool
	owners map[string]owner // by hash
	made   map[string]owner // by secret
	added  []check.Deed
}

// owner is the key of a pool that a key at the upstream is.
type owner struct{ pool, key string }

// New starts an upstream; Close it.
func New(seed uint64) *Upstream {
	u := &Upstream{LiteLLM: upstreamtest.New(upstreamtest.Options{}), rng: rand.New(rand.NewPCG(seed, 31)), owners: make(map[string]owner), made: make(map[string]owner)}
	u.Hook(u.spoil)
	return u
}

// Heal has it answer well from now on.
func (u *Upstream) Heal() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.healed = true
}

// Register puts a key on record that was made before the run.
func (u *Upstream) Register(pool, key, value string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	hash := upstreamtest.Hash(value)
	if _, known := u.owners[hash]; known {
		return
	}
	u.owners[hash] = owner{pool, key}
	u.added = append(u.added, check.Deed{At: time.Now(), Pool: pool, Key: key, Registered: true, Has: true})
	u.AddKey(upstreamtest.Key{Value: value, Alias: aliasOf(pool, key)})
}

func aliasOf(pool, key string) string { return "rotatord-" + pool + "-" + key }

// Made reports whether a key of a pool has a secret, by what the upstream knows.
func (u *Upstream) Made(pool, key, secret string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.made[secret] == (owner{}) {
		for _, d := range u.LiteLLM.Deeds() {
			if d.Endpoint == upstreamtest.Generate && d.Has {
				u.made[d.Value] = ownerOf(d.Meta)
			}
		}
	}
	return u.made[secret] == owner{pool, key}
}

// Deeds are all calls that were to make or to delete keys, and the keys that were registered, with the secrets of those
// that were to be made.
func (u *Upstream) Deeds() (deeds []check.Deed, secrets []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	deeds = append(deeds, u.added...)
	for _, d := range u.LiteLLM.Deeds() {
		if d.Endpoint == upstreamtest.Generate {
			secrets = append(secrets, d.Value)
			u.owners[d.Key] = ownerOf(d.Meta)
		}
		o := u.owners[d.Key]
		deeds = append(deeds, check.Deed{
			At: d.At, Pool: o.pool, Key: o.key, Mint: d.Endpoint == upstreamtest.Generate, Intent: d.Meta["rotatord_intent"], Had: d.Had, Has: d.Has,
		})
	}
	return deeds, secrets
}

func ownerOf(meta map[string]string) owner { return owner{meta["rotatord_pool"], meta["rotatord_key"]} }

// What goes wrong with calls, in percent of them. No key is asked about more than a few times in a row, so it is seldom that
// one is given up for bad luck alone; those that are stubborn are for that.
const (
	failing  = 7 // an error of the server's, nothing done
	doubtful = 7 // an answer that leaves open what was done; nothing was
	broken   = 9 // done, and the answer is lost
	slow     = 8
	late     = 2 // nobody waits any more
)

// stubborn is how many calls of one kind about a key are refused, of those keys that are: more than are tried.
const stubborn = 4

// spoil decides what goes wrong with a call.
func (u *Upstream) spoil(c upstreamtest.Call) upstreamtest.Fault {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.healed || c.Endpoint != upstreamtest.Generate && c.Endpoint != upstreamtest.Delete && c.Endpoint != upstreamtest.KeyInfo {
		return upstreamtest.Fault{}
	}
	if c.Endpoint != upstreamtest.KeyInfo && c.Number <= stubborn {
		switch {
		case strings.HasPrefix(c.Key, "0"):
			return upstreamtest.Fault{Status: http.StatusBadRequest, Body: `{"error":{"message":"something else is wrong","type":"bad_request_error"}}`}
		case strings.HasPrefix(c.Key, "1"):
			return upstreamtest.Fault{Status: http.StatusForbidden, Body: `{"error":{"message":"not now","type":"auth_error"}}`}
		}
	}
	n := u.rng.IntN(100)
	for _, kind := range []struct {
		percent int
		fault   upstreamtest.Fault
	}{
		{failing, upstreamtest.Fault{Status: http.StatusInternalServerError}},
		{doubtful, upstreamtest.Fault{Status: http.StatusBadRequest, Body: `{"error":{"message":"cannot say","type":"bad_request_error"}}`}},
		{broken, upstreamtest.Fault{Drop: true}},
		{slow, upstreamtest.Fault{Delay: time.Duration(u.rng.IntN(900)) * time.Millisecond}},
		{late, upstreamtest.Fault{Delay: 3 * time.Second}},
	} {
		if n -= kind.percent; n < 0 {
			return kind.fault
		}
	}
	return upstreamtest.Fault{}
}
