package grpcapi

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/specpb"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// The numbers of the contract's enums are those of the domain's, so they are converted, not mapped. A number the domain
// does not know is passed on, for the domain to refuse. A test compares the enums.

// stamp leaves a time unset that is not known.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func poolTo(p pool.PoolInfo) *v1.Pool {
	out := &v1.Pool{
		Name:      p.Name,
		Spec:      specpb.FromSpec(p.Spec),
		Paused:    p.Paused,
		Deleting:  p.Deleting,
		CreatedAt: stamp(p.CreatedAt),
		Revision:  p.ModRevision,
		Counts: &v1.PoolCounts{
			Active:   int32(p.Counts.Active),
			Backup:   int32(p.Counts.Backup),
			Retired:  int32(p.Counts.Retired),
			Pending:  int32(p.Counts.Pending),
			Bindings: int32(p.Counts.Bindings),
		},
		Incident:          specpb.FromIncident(p.Incident),
		CredentialPreview: p.Credential.Preview,
	}
	if p.Rotations.Bounded {
		out.RotationsLeft, out.NextRotationAt = proto.Int32(int32(p.Rotations.Left)), stamp(p.Rotations.NextAt)
	}
	return out
}

// keyTo is the one place where a secret gets into a response: Secret is only set where the query asked for it.
func keyTo(k *pool.KeyInfo) *v1.Key {
	return &v1.Key{
		Pool:        k.Pool,
		Id:          k.ID,
		Home:        v1.KeyHome(k.Home),
		Slot:        k.Slot,
		Generation:  k.Generation,
		Status:      v1.KeyStatus(k.Status),
		StatusUntil: stamp(k.StatusUntil),
		Preview:     k.Sealed.Preview,
		Fingerprint: k.Sealed.Fingerprint,
		Labels:      k.Labels,
		Replaces:    k.Replaces,
		ReplacedBy:  k.ReplacedBy,
		AddedAt:     stamp(k.AddedAt),
		RetiredAt:   stamp(k.RetiredAt),
		Revision:    k.Revision,
		Secret:      k.Secret.Reveal(),
		Pending:     k.Pending,
		SpendUsd:    k.SpendUSD,
		BudgetUsd:   k.BudgetUSD,
		SpendAt:     stamp(k.SpendAt),

		StatusSince:  stamp(k.StatusSince),
		StatusReason: k.StatusReason,
		Phase:        v1.KeyPhase(k.Phase),
		Problem:      k.Problem,
		NextTryAt:    stamp(k.NextTryAt),
	}
}

func keysTo(keys []pool.KeyInfo) []*v1.Key {
	out := make([]*v1.Key, len(keys))
	for i := range keys {
		out[i] = keyTo(&keys[i])
	}
	return out
}

func choicesTo(keys []pool.KeyChoice) []*v1.KeyEntry {
	out := make([]*v1.KeyEntry, len(keys))
	for i := range keys {
		out[i] = &v1.KeyEntry{Key: keyTo(&keys[i].KeyInfo), Priority: int32(keys[i].Priority)}
	}
	return out
}

// rotationTo translates a rotation that may be nil.
func rotationTo(r *pool.Rotation) *v1.Rotation {
	if r == nil {
		return nil
	}
	return &v1.Rotation{
		Id:          r.ID,
		Pool:        r.Pool,
		Slot:        r.Slot,
		Generation:  r.Generation,
		OldKeyId:    r.Key,
		NewKeyId:    r.NewKey,
		Trigger:     v1.Trigger(r.Trigger),
		Source:      r.Source,
		Reason:      r.Reason,
		RequestId:   r.RequestID,
		CommittedAt: stamp(r.CommittedAt),
		Revision:    r.Revision(),
		Holder:      r.Holder,
		ProxyId:     r.ProxyID,
	}
}

// reportTo leaves out the key, which may need its secret.
func reportTo(r *pool.ReportResult) *v1.ReportFailureResponse {
	return &v1.ReportFailureResponse{
		Verdict:     v1.Verdict(r.Verdict),
		Rule:        r.Rule,
		MatchedRule: r.MatchedRule,
		Reason:      r.Reason,
		Until:       stamp(r.Until),
		Outcome:     v1.Outcome(r.Outcome),
		Rotation:    rotationTo(r.Rotation),
		Incident:    r.Incident,
		Revision:    r.Revision,
	}
}

func bindingTo(b *pool.Binding) *v1.Binding {
	return &v1.Binding{
		Pool:      b.Pool,
		ProxyId:   b.Proxy,
		Slots:     all(b.Slots, slotTo),
		UpdatedAt: stamp(b.UpdatedAt),
		Revision:  b.ModRevision,
	}
}

func slotTo(s pool.SlotPriority) *v1.SlotPriority {
	return &v1.SlotPriority{Slot: s.Slot, Priority: int32(s.Priority)}
}

func slotFrom(s *v1.SlotPriority) pool.SlotPriority {
	return pool.SlotPriority{Slot: s.GetSlot(), Priority: int(s.GetPriority())}
}

func replicaTo(r *pool.Replica) *v1.Replica {
	return &v1.Replica{
		Name:      r.Name,
		Address:   r.Address,
		Version:   r.Build,
		Schema:    int32(r.KnowsSchema),
		StartedAt: stamp(r.StartedAt),
		Lease:     fmt.Sprintf("%x", r.Lease),
	}
}

func addedTo(a pool.Added) *v1.AddedKey {
	return &v1.AddedKey{
		Id:         a.ID,
		Result:     v1.AddResult(a.Result),
		Home:       v1.KeyHome(a.Home),
		Refusal:    v1.KeyRefusal(a.Refusal),
		Message:    a.Message,
		OtherKeyId: a.OtherKey,
		Revision:   a.Revision,
	}
}

func newKeyFrom(k *v1.NewKey) pool.NewKey {
	return pool.NewKey{
		ID:          k.GetId(),
		Secret:      pool.NewSecret(k.GetSecret()),
		Slot:        k.GetSlot(),
		Labels:      k.GetLabels(),
		Status:      pool.Status(k.GetStatus()),
		StatusUntil: untilFrom(pool.Status(k.GetStatus()), k.GetStatusUntil()),
		SpendUSD:    k.SpendUsd,
	}
}

// untilFrom translates when a status ends. A timestamp that is none has no form in the domain; it becomes the one of
// "missing" and "superfluous" that the domain refuses, so that the key is refused and not the call.
func untilFrom(s pool.Status, until *timestamppb.Timestamp) time.Time {
	switch {
	case until == nil:
		return time.Time{}
	case until.CheckValid() == nil:
		return until.AsTime()
	case s == pool.StatusRateLimited || s == pool.StatusError:
		return time.Time{}
	}
	return time.Unix(0, 0)
}

func invalid(fields ...pool.Violation) error {
	return &pool.Refusal{Reason: pool.ReasonInvalidArgument, Message: "the request has invalid fields", Fields: fields}
}

// pageFrom translates what all lists have.
func pageFrom(req interface {
	GetPageSize() int32
	GetPageToken() string
	GetMinRevision() int64
}) pool.PageRequest {
	return pool.PageRequest{Size: int(req.GetPageSize()), Token: req.GetPageToken(), MinRevision: req.GetMinRevision()}
}

func all[T, U any](in []T, to func(T) U) []U {
	out := make([]U, len(in))
	for i, v := range in {
		out[i] = to(v)
	}
	return out
}

func findingTo(f pool.Finding) *v1.Finding {
	return &v1.Finding{Severity: v1.Severity(f.Severity), Check: f.Check, Subject: f.Subject, Message: f.Message, Remedy: f.Remedy}
}
