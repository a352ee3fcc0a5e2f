package spend

import (
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/upstream"
	"github.com/rotatord/rotatord/internal/upstream/upstreamtest"
)

const (
	oldSecret = "sk-fake-old-0123456789"
	newSecret = "sk-fake-new-0123456789"
)

// withLiteLLM is a rig whose keys are those of a fake LiteLLM.
func withLiteLLM(t *testing.T, opts upstreamtest.Options, spec func(*pool.Spec), key upstreamtest.Key) (*rig, *upstreamtest.LiteLLM) {
	t.Helper()
	f := upstreamtest.New(opts)
	t.Cleanup(f.Close)
	s := watchedSpec()
	s.Upstream.BaseURL = f.URL
	if spec != nil {
		spec(&s)
	}
	r := newRig(t, s)
	client := upstream.NewClient(upstream.ClientConfig{Timeout: 5 * time.Second})
	t.Cleanup(client.Close)
	r.cfg.Reader = Upstreams{client}
	key.Value = oldSecret
	f.AddKey(key)
	f.AddKey(upstreamtest.Key{Value: newSecret, MaxBudget: 10})
	for home, secret := range map[pool.Home]string{pool.HomeActive: oldSecret, pool.HomeBackup: newSecret} {
		id := map[pool.Home]string{pool.HomeActive: "old", pool.HomeBackup: "new"}[home]
		if _, _, err := r.admin.AddKeys(t.Context(), "p", home, []pool.NewKey{{ID: id, Secret: pool.NewSecret(secret)}}, false); err != nil {
			t.Fatal(err)
		}
	}
	return r, f
}

// giveCredential puts the pool's credential on record by hand.
func (r *rig) giveCredential(secret string) {
	r.t.Helper()
	var p pool.Pool
	r.mirror.Read(func(s *pool.Snapshot) { p = *s.Pool("p").Pool })
	var err error
	if p.Credential, err = (r.cfg.Sealer.(pool.Sealer)).Seal("p", pool.CredentialID, pool.NewSecret(secret)); err != nil {
		r.t.Fatal(err)
	}
	r.store.Put(&p)
}

// until waits for what the checker does.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	changed, stop := r.mirror.WatchAll()
	defer stop()
	for deadline := time.After(20 * time.Second); !ok(); {
		select {
		case <-changed:
		case <-deadline:
			r.t.Fatalf("not in time: %s\n%s", what, r.log.text.String())
		}
	}
}

func TestWithLiteLLM(t *testing.T) {
	openhands := func(s *pool.Spec) { s.Upstream.Kind = pool.UpstreamOpenHands }
	for name, tt := range map[string]struct {
		opts       upstreamtest.Options
		spec       func(*pool.Spec)
		credential bool
		key        upstreamtest.Key
		want       string
	}{
		"by key, threshold": {key: upstreamtest.Key{Spend: 9.96, Rows: 250, MaxBudget: 10}, want: "proactive_threshold_9.96"},
		"by key, exceeded":  {key: upstreamtest.Key{Spend: 10.02, MaxBudget: 10}, want: "budget_exceeded_10.02"},
		"by key, exceeded with 429": {
			opts: upstreamtest.Options{OpenHands: true, ExceededStatus: 429}, spec: openhands,
			key: upstreamtest.Key{Spend: 10.02, MaxBudget: 10}, want: "budget_exceeded_10.02",
		},
		"by credential":       {credential: true, key: upstreamtest.Key{Spend: 2.49, MaxBudget: 2.5}, want: "proactive_threshold_2.49"},
		"by credential, over": {credential: true, key: upstreamtest.Key{Spend: 10.02, MaxBudget: 10}, want: "proactive_threshold_10.02"},
		"no budget upstream":  {credential: true, key: upstreamtest.Key{Spend: 9.95}, want: "proactive_threshold_9.95"},
	} {
		t.Run(name, func(t *testing.T) {
			r, f := withLiteLLM(t, tt.opts, tt.spec, tt.key)
			if tt.credential {
				r.giveCredential(f.MasterKey())
			}
			r.run()
			defer r.end()
			r.until("the new key is read", func() bool { a := r.active("new"); return a != nil && a.SpendUSD != nil })
			if got := strings.Join(r.rotations(), "; "); got != "old>new spend-checker spend "+tt.want {
				t.Errorf("got the rotations %q, want one for %s", got, tt.want)
			}
			var old *pool.Retired
			r.mirror.Read(func(s *pool.Snapshot) { old = s.Pool("p").Retired["old"] })
			if old == nil || old.SpendUSD == nil || *old.SpendUSD != tt.key.Spend && *old.SpendUSD-tt.key.Spend > 1e-9 {
				t.Errorf("want what it has spent on the retired key's record, got %+v", old)
			}
			asked, other := upstreamtest.Activity, upstreamtest.KeyInfo
			if tt.credential {
				asked, other = other, asked
			}
			if f.Calls(asked, oldSecret) == 0 || f.Calls(other, "") != 0 {
				t.Errorf("want %s asked and %s not, got %d and %d calls", asked, other, f.Calls(asked, oldSecret), f.Calls(other, ""))
			}
			for _, u := range f.URLs() {
				if strings.Contains(u, "sk-") {
					t.Errorf("want no key in a URL, got %s", u)
				}
			}
		})
	}
}

// Half of a sum rotates nothing, and neither does an upstream that is out of order.
func TestLiteLLMThatFails(t *testing.T) {
	r, f := withLiteLLM(t, upstreamtest.Options{}, nil, upstreamtest.Key{Spend: 9.96, Rows: 250, MaxBudget: 10})
	f.Hook(func(c upstreamtest.Call) upstreamtest.Fault {
		if c.Number == 3 {
			return upstreamtest.Fault{Status: 401, Body: `{"error":{"message":"oops","type":"auth_error"}}`}
		}
		return upstreamtest.Fault{}
	})
	r.run()
	defer r.end()
	r.until("the second reading's rotation", func() bool { return r.active("new") != nil })
	if r.seen.of(ResultFailed) != 1 || f.Calls(upstreamtest.Activity, oldSecret) != 6 {
		t.Errorf("want one failed reading and another one, got %v after %d calls", r.seen.results, f.Calls(upstreamtest.Activity, oldSecret))
	}
	if n := r.log.count("sk-fake"); n != 0 {
		t.Errorf("a key is in the log %d times", n)
	}
}
