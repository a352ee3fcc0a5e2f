// Package providertest is what every provider is held to.
package providertest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// Trouble is what an upstream does to the next call that changes something.
type Trouble int

// The troubles.
const (
	None   Trouble = iota
	Refuse         // it surely does nothing, and says so
	Lose           // it does what was asked, and its answer is lost
	Hang           // it does not answer
	Page           // something in between answers with a success that is not the upstream's, and nothing is done
)

// Upstream is a provider with the other side of it.
type Upstream struct {
	Provider pool.Provider
	// Trouble is what happens to calls of Mint and Revoke from now on.
	Trouble func(Trouble)
	// Keys is how many keys the upstream has.
	Keys func() int
}

// Run runs the suite. start makes an upstream without keys and without trouble.
func Run(t *testing.T, start func(t *testing.T) Upstream) {
	for name, test := range map[string]func(*testing.T, *suite){
		"Life": life, "Absent": absent, "Again": again, "Refused": refused, "Lost": lost, "Paged": paged, "Hangs": hangs, "Over": over,
	} {
		t.Run(name, func(t *testing.T) {
			u := start(t)
			test(t, &suite{u, pool.ProviderKey{
				Pool: "p", ID: "m1", Alias: pool.AliasOf("p", "m1"), Secret: u.Provider.Choose(), Intent: "intent-1",
			}})
		})
	}
}

type suite struct {
	Upstream
	key pool.ProviderKey
}

func (s *suite) mint(t *testing.T) {
	t.Helper()
	secret, err := s.Provider.Mint(t.Context(), s.key)
	if err != nil {
		t.Fatalf("minting: %v", err)
	}
	if !secret.IsZero() {
		s.key.Secret = secret
	}
	if s.key.Secret.IsZero() {
		t.Fatal("minted a key without a secret")
	}
}

func (s *suite) found(t *testing.T) bool {
	t.Helper()
	found, _, err := s.Provider.Find(t.Context(), s.key)
	if err != nil {
		t.Fatalf("finding: %v", err)
	}
	return found
}

func (s *suite) clean(t *testing.T, err error) {
	t.Helper()
	if secret := s.key.Secret.Reveal(); err != nil && secret != "" && strings.Contains(err.Error(), secret) {
		t.Errorf("an error shows the secret")
	}
}

// life: minted, found, working, revoked, gone.
func life(t *testing.T, s *suite) {
	s.mint(t)
	if !s.found(t) || s.Keys() != 1 {
		t.Errorf("a minted key is not there; the upstream has %d", s.Keys())
	}
	if err := s.Provider.Verify(t.Context(), s.key); err != nil {
		t.Errorf("a minted key does not work: %v", err)
	}
	if err := s.Provider.Revoke(t.Context(), s.key); err != nil {
		t.Errorf("revoking: %v", err)
	}
	if s.found(t) || s.Keys() != 0 {
		t.Errorf("a revoked key is there; the upstream has %d", s.Keys())
	}
	if err := s.Provider.Verify(t.Context(), s.key); !errors.Is(err, pool.ErrKeyRefused) {
		t.Errorf("a revoked key: %v, want it refused", err)
	}
}

// absent: what is not there is missing, and revoking it is done.
func absent(t *testing.T, s *suite) {
	if s.key.Secret.IsZero() {
		s.key.Secret = pool.NewSecret("sk-fake-never-minted")
	}
	if s.found(t) {
		t.Error("found a key that was never minted")
	}
	if err := s.Provider.Revoke(t.Context(), s.key); err != nil {
		t.Errorf("revoking what is not there: %v", err)
	}
	s.clean(t, s.Provider.Verify(t.Context(), s.key))
}

// again: the same call makes no second key, whatever it answers.
func again(t *testing.T, s *suite) {
	s.mint(t)
	_, err := s.Provider.Mint(t.Context(), s.key)
	s.clean(t, err)
	if !s.found(t) || s.Keys() != 1 {
		t.Errorf("after the same mint again the upstream has %d keys, want 1", s.Keys())
	}
}

// refused: what surely was not done is said to be so.
func refused(t *testing.T, s *suite) {
	s.Trouble(Refuse)
	_, err := s.Provider.Mint(t.Context(), s.key)
	if s.clean(t, err); !errors.Is(err, pool.ErrNothingDone) || s.Keys() != 0 {
		t.Errorf("a refused mint: %v with %d keys, want %v", err, s.Keys(), pool.ErrNothingDone)
	}
	s.Trouble(None)
	s.mint(t)
	s.Trouble(Refuse)
	err = s.Provider.Revoke(t.Context(), s.key)
	if s.clean(t, err); !errors.Is(err, pool.ErrNothingDone) || s.Keys() != 1 {
		t.Errorf("a refused revocation: %v with %d keys, want %v", err, s.Keys(), pool.ErrNothingDone)
	}
}

// lost: a call whose answer is lost is not known, and can be found out about.
func lost(t *testing.T, s *suite) {
	s.Trouble(Lose)
	_, err := s.Provider.Mint(t.Context(), s.key)
	if s.clean(t, err); err == nil || errors.Is(err, pool.ErrNothingDone) {
		t.Errorf("a mint whose answer was lost: %v", err)
	}
	s.Trouble(None)
	if !s.found(t) {
		t.Error("the key whose answer was lost is not found")
	}
	s.Trouble(Lose)
	if err := s.Provider.Revoke(t.Context(), s.key); err == nil || errors.Is(err, pool.ErrNothingDone) {
		t.Errorf("a revocation whose answer was lost: %v", err)
	}
	s.Trouble(None)
	if s.found(t) {
		t.Error("the key whose revocation's answer was lost is found")
	}
}

// paged: a success that another has answered, such as a login page, says nothing of what was asked for.
func paged(t *testing.T, s *suite) {
	s.Trouble(Page)
	_, err := s.Provider.Mint(t.Context(), s.key)
	if s.clean(t, err); err == nil || errors.Is(err, pool.ErrNothingDone) || s.Keys() != 0 {
		t.Errorf("a mint that a page has answered: %v with %d keys", err, s.Keys())
	}
	s.Trouble(None)
	s.mint(t)
	s.Trouble(Page)
	err = s.Provider.Revoke(t.Context(), s.key)
	if s.clean(t, err); err == nil || errors.Is(err, pool.ErrNothingDone) || s.Keys() != 1 {
		t.Errorf("a revocation that a page has answered: %v with %d keys", err, s.Keys())
	}
}

// hangs: calls end with their context.
func hangs(t *testing.T, s *suite) {
	s.Trouble(Hang)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := s.Provider.Mint(ctx, s.key)
	if s.clean(t, err); err == nil || errors.Is(err, pool.ErrNothingDone) || time.Since(began) > 10*time.Second {
		t.Errorf("a mint that hangs: %v after %v", err, time.Since(began))
	}
}

// over: a call that begins too late is not made.
func over(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Provider.Mint(ctx, s.key); err == nil || s.Keys() != 0 {
		t.Errorf("a mint after its time: %v with %d keys", err, s.Keys())
	}
}
