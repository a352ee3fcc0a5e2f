package provider

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/upstream"
)

// LiteLLM mints keys with POST /key/generate and revokes them with POST /key/delete. It chooses the keys itself, so that
// asking twice makes one.
type LiteLLM struct {
	Client     *upstream.Client
	Upstream   pool.UpstreamSpec
	Spec       pool.LiteLLMProvider
	Credential pool.Secret
}

func (l *LiteLLM) api() *upstream.LiteLLMAPI {
	return &upstream.LiteLLMAPI{Client: l.Client, Kind: l.kind(), BaseURL: l.Upstream.BaseURL, Credential: l.Credential}
}

func (l *LiteLLM) kind() upstream.Kind {
	if l.Upstream.Is() == pool.UpstreamOpenHands {
		return upstream.OpenHands
	}
	return upstream.LiteLLM
}

// Choose implements pool.Provider.
func (l *LiteLLM) Choose() pool.Secret {
	var chance [24]byte
	_, _ = rand.Read(chance[:])
	return pool.NewSecret("sk-" + base64.RawURLEncoding.EncodeToString(chance[:]))
}

// Mint implements pool.Provider. That the alias is taken is no proof that nothing was done: an earlier call may have
// taken it.
func (l *LiteLLM) Mint(ctx context.Context, k pool.ProviderKey) (pool.Secret, error) {
	if k.Secret.IsZero() {
		return pool.Secret{}, nothingDone(errors.New("the key's secret was not chosen"))
	}
	err := l.api().GenerateKey(ctx, upstream.NewLiteLLMKey{
		Key: k.Secret, Alias: k.Alias, MaxBudgetUSD: l.Spec.MaxBudgetUSD, BudgetDuration: l.Spec.BudgetDuration, Models: l.Spec.Models,
		Metadata: map[string]string{"rotatord_pool": k.Pool, "rotatord_key": k.ID, "rotatord_intent": k.Intent},
	})
	if errors.Is(err, upstream.ErrAliasTaken) {
		return pool.Secret{}, err
	}
	return pool.Secret{}, sure(err)
}

// Find implements pool.Provider. The key is looked for by its hash; LiteLLM never shows a secret.
func (l *LiteLLM) Find(ctx context.Context, k pool.ProviderKey) (bool, pool.Secret, error) {
	if k.Secret.IsZero() {
		return false, pool.Secret{}, errors.New("the key's secret is not on record, so it cannot be looked for: find it by its alias at the upstream")
	}
	_, err := l.api().KeyInfo(ctx, k.Secret)
	if errors.Is(err, upstream.ErrUnknownKey) {
		return false, pool.Secret{}, nil
	}
	return err == nil, pool.Secret{}, held(err)
}

// Verify implements pool.Provider with a call that costs nothing.
func (l *LiteLLM) Verify(ctx context.Context, k pool.ProviderKey) error {
	switch r := l.Client.Probe(ctx, l.kind(), l.Upstream.BaseURL, k.Secret); {
	case r.Health == upstream.Alive:
		return nil
	case r.Health == upstream.Dead:
		return dead(r.Reason)
	case r.Err != nil:
		return held(r.Err)
	default:
		return errors.New(r.Reason)
	}
}

// Revoke implements pool.Provider.
func (l *LiteLLM) Revoke(ctx context.Context, k pool.ProviderKey) error {
	if k.Secret.IsZero() {
		return nothingDone(errors.New("the key's secret is not on record, so it cannot be revoked: delete it by its alias at the upstream"))
	}
	return sure(l.api().DeleteKey(ctx, k.Secret))
}

// sure tells the errors apart that say that nothing was done.
func sure(err error) error {
	var call *upstream.CallError
	if errors.As(err, &call) && !call.Held && call.NotApplied() {
		return nothingDone(err)
	}
	return held(err)
}

// held tells the errors apart of calls that were only held back.
func held(err error) error {
	var call *upstream.CallError
	if errors.As(err, &call) && call.Held {
		return &pool.HeldBackError{RetryAt: call.RetryAt, Cause: err}
	}
	return err
}
