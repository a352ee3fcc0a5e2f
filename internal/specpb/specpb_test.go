package specpb

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/rotatord/rotatord/internal/pool"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func ptr[T any](v T) *T { return &v }

// Whatever a spec says comes back the same: through the contract's message and through its JSON, as it is stored.
func TestSpecsComeBack(t *testing.T) {
	for name, spec := range map[string]pool.Spec{
		"empty": {},
		"all of it": {
			Description: "d", Labels: map[string]string{"a": "b"},
			Upstream:       pool.UpstreamSpec{Kind: pool.UpstreamLiteLLM, BaseURL: "https://litellm.example.org"},
			Bound:          pool.BoundSpec{Rotations: ptr(7), Window: 90 * time.Second},
			ConfirmReports: true,
			Incident:       pool.IncidentPolicy{Share: 0.4, MinKeys: 4, Window: 30 * time.Second, Duration: time.Minute, Disabled: true},
			Spend:          &pool.SpendPolicy{BudgetUSD: 25, Threshold: 0.9},
			Provider:       &pool.ProviderSpec{LiteLLM: &pool.LiteLLMProvider{MaxBudgetUSD: 10, BudgetDuration: "30d", Models: []string{"m1", "m2"}}},
			Stock:          &pool.StockPolicy{Min: 2, Max: 5},
			Retirement:     pool.RetirementPolicy{RevokeAfter: ptr(10 * time.Minute), SecretRetention: 48 * time.Hour},

			RecordRetention: 10 * 24 * time.Hour,
		},
		"zeros that are not defaults": {
			Bound: pool.BoundSpec{Rotations: ptr(0)}, Spend: &pool.SpendPolicy{},
			Provider: &pool.ProviderSpec{Exec: &pool.ExecProvider{Name: "mint"}}, Stock: &pool.StockPolicy{},
			Retirement: pool.RetirementPolicy{RevokeAfter: ptr(time.Duration(0)), KeepAtUpstream: true},
		},
		"a provider that is none": {Provider: &pool.ProviderSpec{}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := protojson.Marshal(FromSpec(spec))
			if err != nil {
				t.Fatal(err)
			}
			var stored rotatorv1.PoolSpec
			if err := protojson.Unmarshal(text, &stored); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(spec, ToSpec(&stored)); diff != "" {
				t.Errorf("the spec comes back changed from %s (-want +got):\n%s", text, diff)
			}
			if !spec.Equal(ToSpec(&stored)) {
				t.Errorf("the spec is not equal to itself after it was stored as %s", text)
			}
		})
	}
}
