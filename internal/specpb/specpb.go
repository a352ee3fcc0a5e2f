// Package specpb translates what the domain, the contract and the stored records have in common: specs of pools,
// incidents and events. The API shows them as they are stored.
package specpb

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotatord/rotatord/internal/pool"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// FromSpec is the spec in the contract's terms.
func FromSpec(s pool.Spec) *rotatorv1.PoolSpec {
	return &rotatorv1.PoolSpec{
		Description: s.Description, Labels: s.Labels, Upstream: fromUpstream(s.Upstream), RotationBound: fromBound(s.Bound),
		ConfirmReports: s.ConfirmReports, Incident: fromPolicy(s.Incident), Spend: fromSpend(s.Spend),
		Provider: fromProvider(s.Provider), Stock: fromStock(s.Stock), Retirement: fromRetirement(s.Retirement),
		RecordRetention: duration(s.RecordRetention),
	}
}

// ToSpec is the spec in the domain's terms. What is out of bounds is passed on, for the domain to refuse.
func ToSpec(s *rotatorv1.PoolSpec) pool.Spec {
	labels := s.GetLabels()
	if len(labels) == 0 {
		labels = nil
	}
	return pool.Spec{
		Description: s.GetDescription(), Labels: labels,
		Upstream: pool.UpstreamSpec{Kind: pool.UpstreamKind(s.GetUpstream().GetKind()), BaseURL: s.GetUpstream().GetBaseUrl()},
		Bound:    toBound(s.GetRotationBound()), ConfirmReports: s.GetConfirmReports(), Incident: toPolicy(s.GetIncident()),
		Spend: toSpend(s.GetSpend()), Provider: toProvider(s.GetProvider()), Stock: toStock(s.GetStock()),
		Retirement: toRetirement(s.GetRetirement()), RecordRetention: s.GetRecordRetention().AsDuration(),
	}
}

// duration leaves unset what is zero.
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func fromUpstream(u pool.UpstreamSpec) *rotatorv1.UpstreamSpec {
	if u == (pool.UpstreamSpec{}) {
		return nil
	}
	return &rotatorv1.UpstreamSpec{Kind: string(u.Kind), BaseUrl: u.BaseURL}
}

func fromBound(b pool.BoundSpec) *rotatorv1.RotationBound {
	if b == (pool.BoundSpec{}) {
		return nil
	}
	out := &rotatorv1.RotationBound{Window: duration(b.Window)}
	if b.Rotations != nil {
		n := int32(*b.Rotations)
		out.Rotations = &n
	}
	return out
}

func toBound(b *rotatorv1.RotationBound) pool.BoundSpec {
	out := pool.BoundSpec{Window: b.GetWindow().AsDuration()}
	if b != nil && b.Rotations != nil {
		n := int(b.GetRotations())
		out.Rotations = &n
	}
	return out
}

func fromPolicy(p pool.IncidentPolicy) *rotatorv1.IncidentPolicy {
	if p == (pool.IncidentPolicy{}) {
		return nil
	}
	return &rotatorv1.IncidentPolicy{
		Share: p.Share, MinKeys: int32(p.MinKeys), Window: duration(p.Window), Duration: duration(p.Duration), Disabled: p.Disabled,
	}
}

func toPolicy(p *rotatorv1.IncidentPolicy) pool.IncidentPolicy {
	return pool.IncidentPolicy{
		Share: p.GetShare(), MinKeys: int(p.GetMinKeys()), Window: p.GetWindow().AsDuration(), Duration: p.GetDuration().AsDuration(),
		Disabled: p.GetDisabled(),
	}
}

func fromSpend(p *pool.SpendPolicy) *rotatorv1.SpendPolicy {
	if p == nil {
		return nil
	}
	return &rotatorv1.SpendPolicy{BudgetUsd: p.BudgetUSD, Threshold: p.Threshold}
}

func toSpend(p *rotatorv1.SpendPolicy) *pool.SpendPolicy {
	if p == nil {
		return nil
	}
	return &pool.SpendPolicy{BudgetUSD: p.BudgetUsd, Threshold: p.Threshold}
}

func fromProvider(p *pool.ProviderSpec) *rotatorv1.ProviderSpec {
	switch {
	case p == nil:
		return nil
	case p.Exec != nil:
		return &rotatorv1.ProviderSpec{Provider: &rotatorv1.ProviderSpec_Exec{Exec: &rotatorv1.ExecProvider{Name: p.Exec.Name}}}
	case p.LiteLLM != nil:
		return &rotatorv1.ProviderSpec{Provider: &rotatorv1.ProviderSpec_Litellm{Litellm: &rotatorv1.LiteLLMProvider{
			MaxBudgetUsd: p.LiteLLM.MaxBudgetUSD, BudgetDuration: p.LiteLLM.BudgetDuration, Models: p.LiteLLM.Models,
		}}}
	}
	return &rotatorv1.ProviderSpec{}
}

func toProvider(p *rotatorv1.ProviderSpec) *pool.ProviderSpec {
	if p == nil {
		return nil
	}
	out := &pool.ProviderSpec{}
	if e := p.GetExec(); e != nil {
		out.Exec = &pool.ExecProvider{Name: e.GetName()}
	}
	if l := p.GetLitellm(); l != nil {
		out.LiteLLM = &pool.LiteLLMProvider{MaxBudgetUSD: l.GetMaxBudgetUsd(), BudgetDuration: l.GetBudgetDuration(), Models: l.GetModels()}
	}
	return out
}

func fromStock(p *pool.StockPolicy) *rotatorv1.StockPolicy {
	if p == nil {
		return nil
	}
	return &rotatorv1.StockPolicy{Min: int32(p.Min), Max: int32(p.Max)}
}

func toStock(p *rotatorv1.StockPolicy) *pool.StockPolicy {
	if p == nil {
		return nil
	}
	return &pool.StockPolicy{Min: int(p.GetMin()), Max: int(p.GetMax())}
}

func fromRetirement(p pool.RetirementPolicy) *rotatorv1.RetirementPolicy {
	if p == (pool.RetirementPolicy{}) {
		return nil
	}
	out := &rotatorv1.RetirementPolicy{KeepAtUpstream: p.KeepAtUpstream, SecretRetention: duration(p.SecretRetention)}
	if p.RevokeAfter != nil {
		out.RevokeAfter = durationpb.New(*p.RevokeAfter)
	}
	return out
}

func toRetirement(p *rotatorv1.RetirementPolicy) pool.RetirementPolicy {
	out := pool.RetirementPolicy{KeepAtUpstream: p.GetKeepAtUpstream(), SecretRetention: p.GetSecretRetention().AsDuration()}
	if p.GetRevokeAfter() != nil {
		d := p.GetRevokeAfter().AsDuration()
		out.RevokeAfter = &d
	}
	return out
}

// FromIncident is an incident in the contract's terms.
func FromIncident(i *pool.Incident) *rotatorv1.Incident {
	if i == nil {
		return nil
	}
	return &rotatorv1.Incident{Since: timestamppb.New(i.Since), Until: timestamppb.New(i.Until), Keys: int32(i.Keys)}
}

// ToIncident is an incident in the domain's terms.
func ToIncident(i *rotatorv1.Incident) *pool.Incident {
	if i == nil {
		return nil
	}
	return &pool.Incident{Since: i.GetSince().AsTime(), Until: i.GetUntil().AsTime(), Keys: int(i.GetKeys())}
}
