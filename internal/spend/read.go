package spend

import (
	"context"
	"errors"
	"fmt"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/upstream"
)

// Upstreams is the Reader of the service: it asks over HTTP.
type Upstreams struct{ Client *upstream.Client }

// Read implements Reader. With the pool's credential the upstream is asked what it has on record for the key; without, the
// key is asked with itself.
func (u Upstreams) Read(ctx context.Context, t Target) (Reading, error) {
	if t.Kind != pool.UpstreamLiteLLM && t.Kind != pool.UpstreamOpenHands {
		return Reading{}, fmt.Errorf("an upstream of kind %s does not say what keys have spent", t.Kind)
	}
	l := &upstream.LiteLLMAPI{Client: u.Client, Kind: upstream.Kind(t.Kind), BaseURL: t.BaseURL}
	if t.Credential.IsZero() {
		return byKey(ctx, l, t.Key)
	}
	l.Credential = t.Credential
	info, err := l.KeyInfo(ctx, t.Key)
	if err != nil {
		return Reading{}, err
	}
	return Reading{SpendUSD: &info.SpendUSD, BudgetUSD: info.BudgetUSD}, nil
}

func byKey(ctx context.Context, l *upstream.LiteLLMAPI, key pool.Secret) (Reading, error) {
	s, err := l.SpendByKey(ctx, key)
	var b *upstream.BudgetError
	switch {
	case errors.As(err, &b):
		return Reading{SpendUSD: b.SpendUSD, BudgetUSD: b.BudgetUSD, Exceeded: true}, nil
	case err != nil:
		return Reading{}, err
	}
	return Reading{SpendUSD: &s.SpendUSD, BudgetUSD: s.BudgetUSD}, nil
}
