// Package provider asks upstreams for keys: LiteLLM over its admin API, and anything else through a command.
//
// It promises that a call is made once, that its error says "nothing was done" only where that is sure, and that no secret
// is in an error, an argument, an environment or a URL. It remembers nothing: what was asked for, and what became of it, is
// the caller's to write down.
//
// A new upstream is one type with the methods of pool.Provider, one case in Registry.Provider, and one line that runs
// providertest against it.
package provider

import (
	"errors"
	"fmt"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/upstream"
)

// Registry finds the provider of a pool.
type Registry struct {
	Client   *upstream.Client
	Sealer   pool.Sealer
	Commands map[string][]string // by name: a program and its arguments
}

var errNone = errors.New("the pool has no provider")

// Provider makes the provider of a pool. Its errors say what to do; they are about this replica or the pool's spec, and
// nothing was asked.
func (g *Registry) Provider(p *pool.Pool) (pool.Provider, error) {
	spec := p.Spec.Provider
	switch {
	case spec == nil:
		return nil, errNone
	case spec.Exec != nil:
		command := g.Commands[spec.Exec.Name]
		if len(command) == 0 {
			return nil, fmt.Errorf("this replica knows no command %q: start it with --exec-provider %s=COMMAND", spec.Exec.Name, spec.Exec.Name)
		}
		return &Exec{Command: command}, nil
	case spec.LiteLLM != nil:
		return g.litellm(p)
	}
	return nil, errNone
}

func (g *Registry) litellm(p *pool.Pool) (pool.Provider, error) {
	if p.Credential.IsZero() {
		return nil, fmt.Errorf("the pool has no credential for its upstream: rotatorctl pool credential %s", p.Name)
	}
	credential, err := g.Sealer.Open(p.Name, pool.CredentialID, p.Credential)
	if err != nil {
		return nil, fmt.Errorf("the credential of pool %s cannot be opened with this replica's keyset: %w", p.Name, err)
	}
	return &LiteLLM{Client: g.Client, Upstream: p.Spec.Upstream, Spec: *p.Spec.Provider.LiteLLM, Credential: credential}, nil
}

// nothingDone says that a call surely changed nothing.
func nothingDone(err error) error { return fmt.Errorf("%w: %w", pool.ErrNothingDone, err) }

// dead says that the upstream surely does not take a key.
func dead(why string) error { return fmt.Errorf("%w: %s", pool.ErrKeyRefused, why) }

// killAfter is how long a command that was told to stop may take before its pipes are closed.
const killAfter = time.Second
