package provider_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
	"github.com/rotatord/rotatord/internal/provider"
	"github.com/rotatord/rotatord/internal/provider/providertest"
	"github.com/rotatord/rotatord/internal/upstream"
	"github.com/rotatord/rotatord/internal/upstream/upstreamtest"
)

// litellmPool is a pool at a fake LiteLLM, with its credential.
func litellmPool(t *testing.T, f *upstreamtest.LiteLLM) *pool.Pool {
	t.Helper()
	credential, err := pooltest.FakeSealer{}.Seal("p", pool.CredentialID, pool.NewSecret(f.MasterKey()))
	if err != nil {
		t.Fatal(err)
	}
	return &pool.Pool{Name: "p", Credential: credential, Spec: pool.Spec{
		Upstream: pool.UpstreamSpec{Kind: pool.UpstreamLiteLLM, BaseURL: f.URL},
		Provider: &pool.ProviderSpec{LiteLLM: &pool.LiteLLMProvider{MaxBudgetUSD: 10}},
	}}
}

func TestLiteLLM(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Upstream {
		f := upstreamtest.New(upstreamtest.Options{})
		t.Cleanup(f.Close)
		g := &provider.Registry{Client: upstream.NewClient(upstream.ClientConfig{}), Sealer: pooltest.FakeSealer{}}
		p, err := g.Provider(litellmPool(t, f))
		if err != nil {
			t.Fatal(err)
		}
		return providertest.Upstream{Provider: p, Keys: f.Keys, Trouble: func(w providertest.Trouble) {
			f.Hook(faulty(w))
			// A client leaves a host alone that has just failed; what is looked at here is each call for itself.
			p.(*provider.LiteLLM).Client = upstream.NewClient(upstream.ClientConfig{})
		}}
	})
}

// A call to a host that is left alone is held back: nothing was done, and when to try again is said.
func TestLiteLLMLeftAlone(t *testing.T) {
	f := upstreamtest.New(upstreamtest.Options{})
	defer f.Close()
	g := &provider.Registry{Client: upstream.NewClient(upstream.ClientConfig{}), Sealer: pooltest.FakeSealer{}}
	p, err := g.Provider(litellmPool(t, f))
	if err != nil {
		t.Fatal(err)
	}
	k := pool.ProviderKey{Pool: "p", ID: "m1", Alias: "a", Secret: p.Choose()}
	f.Hook(func(upstreamtest.Call) upstreamtest.Fault {
		return upstreamtest.Fault{Status: http.StatusTooManyRequests}
	})
	var held *pool.HeldBackError
	if _, err := p.Mint(t.Context(), k); err == nil || errors.As(err, &held) {
		t.Errorf("a call that was sent: got %v", err)
	}
	for name, call := range map[string]func() error{
		"mint":   func() error { _, err := p.Mint(t.Context(), k); return err },
		"find":   func() error { _, _, err := p.Find(t.Context(), k); return err },
		"verify": func() error { return p.Verify(t.Context(), k) },
		"revoke": func() error { return p.Revoke(t.Context(), k) },
	} {
		if err := call(); !errors.As(err, &held) || !errors.Is(err, pool.ErrNothingDone) || !held.RetryAt.After(time.Now()) {
			t.Errorf("%s: got %v, want it held back and a time", name, err)
		}
	}
}

// What is wrong with a call itself does not get better with waiting.
func TestLiteLLMThatCannotBeCalled(t *testing.T) {
	p := &provider.LiteLLM{Client: upstream.NewClient(upstream.ClientConfig{}), Upstream: pool.UpstreamSpec{Kind: pool.UpstreamLiteLLM, BaseURL: "ftp://host"}}
	var held *pool.HeldBackError
	if err := p.Revoke(t.Context(), pool.ProviderKey{Secret: pool.NewSecret("sk-fake")}); !errors.Is(err, pool.ErrNothingDone) || errors.As(err, &held) {
		t.Errorf("got %v, want nothing done and nothing held back", err)
	}
}

func faulty(w providertest.Trouble) func(upstreamtest.Call) upstreamtest.Fault {
	fault := map[providertest.Trouble]upstreamtest.Fault{
		providertest.Refuse: {Status: http.StatusForbidden, Body: `{"error":{"message":"no right"}}`},
		providertest.Lose:   {Drop: true},
		providertest.Hang:   {Hang: true},
		providertest.Page:   {Status: http.StatusOK, Body: `<html><title>Sign in</title></html>`},
	}[w]
	return func(c upstreamtest.Call) upstreamtest.Fault {
		if c.Endpoint != upstreamtest.Generate && c.Endpoint != upstreamtest.Delete {
			return upstreamtest.Fault{}
		}
		return fault
	}
}

// TestRegistry: what a replica cannot ask it says how to mend.
func TestRegistry(t *testing.T) {
	f := upstreamtest.New(upstreamtest.Options{})
	defer f.Close()
	bare, foreign := litellmPool(t, f), litellmPool(t, f)
	bare.Credential = pool.Sealed{}
	foreign.Name = "q"
	g := &provider.Registry{Client: upstream.NewClient(upstream.ClientConfig{}), Sealer: pooltest.FakeSealer{}, Commands: map[string][]string{"c": {"true"}}}
	exec := func(name string) *pool.Pool {
		return &pool.Pool{Name: "p", Spec: pool.Spec{Provider: &pool.ProviderSpec{Exec: &pool.ExecProvider{Name: name}}}}
	}
	for name, tt := range map[string]struct {
		pool *pool.Pool
		ok   bool
	}{
		"litellm": {litellmPool(t, f), true}, "without a credential": {bare, false}, "with another's credential": {foreign, false},
		"a command": {exec("c"), true}, "a command that is not known": {exec("d"), false}, "no provider": {&pool.Pool{Name: "p"}, false},
	} {
		if _, err := g.Provider(tt.pool); (err == nil) != tt.ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
