package pool

import (
	"context"
	"errors"
	"time"
)

// Provider mints and revokes the keys of a pool at its upstream. Calls block until ctx ends at the latest and are safe for
// concurrent use. Whoever calls Mint or Revoke has written down before that it will; after an error that is not
// ErrNothingDone it asks Find what became of the call, and does not make it again unseen.
//
// No error's text holds a secret.
type Provider interface {
	// Choose makes up the secret of a key to be minted. It is zero if the upstream chooses secrets itself.
	Choose() Secret
	// Mint makes the key. It returns the secret that the upstream has chosen, zero if it is the one that was given.
	Mint(ctx context.Context, k ProviderKey) (Secret, error)
	// Find says whether the key is there, and its secret if the provider can still show one.
	Find(ctx context.Context, k ProviderKey) (found bool, secret Secret, err error)
	// Verify tries the key. nil: it works; ErrKeyRefused: it surely does not. It changes nothing.
	Verify(ctx context.Context, k ProviderKey) error
	// Revoke ends the key. A key that is not there is revoked.
	Revoke(ctx context.Context, k ProviderKey) error
}

// ProviderKey names a key to a provider.
type ProviderKey struct {
	Pool   string
	ID     string
	Alias  string // its name at the upstream, if it was minted; what was added has one too, which names nothing
	Secret Secret // zero if it is not known
	Intent string // id of this call, the same in the records
}

// What a provider's errors say for sure.
var (
	// ErrNothingDone: the call has changed nothing and will not: it was refused, or could not be sent.
	ErrNothingDone = errors.New("nothing was done")
	// ErrKeyRefused: the upstream does not take the key. Never for an upstream that could not be asked.
	ErrKeyRefused = errors.New("the upstream refuses the key")
)

// HeldBackError says that a call was not sent although nothing is wrong with it: the upstream is left alone for a while, or
// too many calls are under way. It is an ErrNothingDone, also of Find and Verify.
type HeldBackError struct {
	RetryAt time.Time // the upstream is left alone until then; zero: that is not known
	Cause   error
}

// Error implements error.
func (e *HeldBackError) Error() string { return e.Cause.Error() }

// Unwrap returns what can be told from this error.
func (e *HeldBackError) Unwrap() []error { return []error{ErrNothingDone, e.Cause} }

// AliasOf is the name that a minted key has at its upstream.
func AliasOf(pool, key string) string { return "rotatord-" + pool + "-" + key }
