package etcdstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/specpb"
	storagev1 "github.com/rotatord/rotatord/proto/rotator/storage/v1"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// EncodeRecord is the value a record is stored as with a schema: protobuf JSON of its storage message on one line, equal
// for equal records. It refuses a record that was read with a newer schema than this build knows: what this build does
// not know of it would be lost. What came with a later schema than the one to write is to be left out.
func EncodeRecord(rec pool.Record, schema int) (string, error) {
	value, err := appendRecord(nil, rec, schema)
	return string(value), err
}

func appendRecord(b []byte, rec pool.Record, schema int) ([]byte, error) {
	if rec.At().TooNew() {
		return nil, tooNew(rec)
	}
	m := message(rec, int32(schema))
	if m == nil {
		return nil, fmt.Errorf("a %T is not a record that can be written", rec)
	}
	return appendMessage(b, m)
}

func tooNew(rec pool.Record) error {
	ref := rec.Ref()
	return pool.Refuse(pool.ReasonSchemaTooNew,
		"the record %s has schema %d and this replica knows up to %d: a newer rotatord wrote it; upgrade this replica",
		Layout{}.Key(ref), rec.At().Schema, pool.Schema)
}

// EncodeEvent is the value an event is stored as. source names the replica, as "rotatord/{replica}".
func EncodeEvent(e *pool.Event, source string, schema int) (string, error) {
	value, err := appendMessage(nil, eventMessage(e, source, int32(schema)))
	return string(value), err
}

func eventMessage(e *pool.Event, source string, schema int32) *storagev1.Event {
	return &storagev1.Event{
		Schema: schema, Type: string(e.Type), Source: source, Subject: e.Subject, Time: toProto(e.Time),
		Data: &storagev1.EventData{
			Trigger: rotatorv1.Trigger(e.Trigger), TriggerSource: e.Source, Reason: e.Reason, RequestId: e.RequestID,
			KeyId: e.Key, NewKeyId: e.NewKey, Generation: e.Generation, Slot: e.Slot, ProxyId: e.Proxy,
			RotationId: e.RotationID, Status: rotatorv1.KeyStatus(e.Status), Home: rotatorv1.KeyHome(e.Home),
			StatusUntil: toProto(e.Until), Phase: rotatorv1.KeyPhase(e.Phase), Rule: e.Rule,
		},
	}
}

// marshal undoes the white space protojson adds at random so that nobody relies on it; the order of fields and of map
// keys is fixed.
func marshal(m proto.Message) ([]byte, error) {
	text, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	var line bytes.Buffer
	if err := json.Compact(&line, text); err != nil {
		return nil, fmt.Errorf("encoding %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return line.Bytes(), nil
}

func message(rec pool.Record, schema int32) proto.Message {
	switch r := rec.(type) {
	case *pool.Pool:
		return &storagev1.Pool{Schema: schema, Spec: specpb.FromSpec(r.Spec), Paused: r.Paused, Deleting: r.Deleting,
			CreatedAt: toProto(r.CreatedAt), Incident: specpb.FromIncident(r.Incident), Credential: sealedToProto(r.Credential),
			UpstreamSince: toProto(r.UpstreamSince)}
	case *pool.Slot:
		return &storagev1.Slot{Schema: schema, State: slotState(r.Closing), CreatedAt: toProto(r.CreatedAt)}
	case *pool.Active:
		return &storagev1.Active{Schema: schema, Slot: r.Slot, Status: rotatorv1.KeyStatus(r.Status), StatusUntil: toProto(r.StatusUntil),
			Sealed: sealedToProto(r.Sealed), Labels: r.Labels, Replaces: r.Replaces, AddedAt: toProto(r.AddedAt), SpendUsd: r.SpendUSD,
			BudgetUsd: r.BudgetUSD, SpendAt: toProto(r.SpendAt), StatusSince: toProto(r.StatusSince), StatusReason: r.StatusReason}
	case *pool.Backup:
		return &storagev1.Backup{Schema: schema, Sealed: sealedToProto(r.Sealed), Labels: r.Labels, AddedAt: toProto(r.AddedAt)}
	case *pool.Retired:
		return &storagev1.Retired{Schema: schema, Phase: retiredPhase(r.Phase), Slot: r.Slot, Generation: r.Generation, ReplacedBy: r.ReplacedBy,
			Sealed: sealedToProto(r.Sealed), Labels: r.Labels, AddedAt: toProto(r.AddedAt), RetiredAt: toProto(r.RetiredAt), SpendUsd: r.SpendUSD,
			Work: workToProto(r.Work)}
	case *pool.Rotation:
		return &storagev1.Rotation{Schema: schema, Id: r.ID, Slot: r.Slot, NewKeyId: r.NewKey, Trigger: rotatorv1.Trigger(r.Trigger), Source: r.Source,
			Reason: r.Reason, RequestId: r.RequestID, ProxyId: r.ProxyID, Holder: r.Holder, CommittedAt: toProto(r.CommittedAt)}
	case *pool.Pending:
		return &storagev1.Pending{Schema: schema, Generation: r.Generation, Trigger: rotatorv1.Trigger(r.Trigger), Source: r.Source,
			Reason: r.Reason, RequestId: r.RequestID, ProxyId: r.ProxyID, RequestedAt: toProto(r.RequestedAt)}
	case *pool.Binding:
		return &storagev1.Binding{Schema: schema, Slots: slotsToProto(r.Slots), UpdatedAt: toProto(r.UpdatedAt)}
	case *pool.Fingerprint:
		return &storagev1.Fingerprint{Schema: schema, KeyId: r.Key}
	case *pool.Lock:
		return &storagev1.Lock{Schema: schema, Holder: r.Holder, Campaign: r.Campaign, Stage: r.Stage, BusyUntil: toProto(r.BusyUntil), Generation: r.Generation}
	case *pool.Replica:
		return &storagev1.Replica{Schema: schema, KnowsSchema: int32(r.KnowsSchema), Address: r.Address, Version: r.Build,
			StartedAt: toProto(r.StartedAt), Instance: r.Instance}
	case *pool.Preparation:
		return &storagev1.Stock{Schema: schema, Phase: storagev1.StockPhase(r.Phase), Work: workToProto(r.Work), Sealed: sealedToProto(r.Sealed),
			Labels: r.Labels, PlannedAt: toProto(r.PlannedAt), Alias: r.Alias}
	case *pool.Token:
		return &storagev1.Token{Schema: schema, UsedAt: toProto(r.UsedAt), KeyId: r.Key}
	case *pool.Health:
		return &storagev1.Health{Schema: schema, Strikes: strikesToProto(r.Strikes)}
	case *pool.Relay:
		return &storagev1.Relay{Schema: schema, Revision: r.Revision, EventId: r.EventID, UpdatedAt: toProto(r.UpdatedAt)}
	}
	return nil
}

// retiredPhase is the phase of a retired key as it is stored. The stored enums begin at 1, each.
func retiredPhase(p pool.Phase) storagev1.RetiredPhase {
	return storagev1.RetiredPhase(p - pool.PhaseRetired + 1)
}

func workToProto(w *pool.Work) *storagev1.Work {
	if w == nil {
		return nil
	}
	return &storagev1.Work{Generation: w.Generation, ObservedGeneration: w.Observed, Attempts: int32(w.Attempts), NotBefore: toProto(w.NotBefore),
		Problem: w.Problem, Intent: w.Intent, PhaseSince: toProto(w.PhaseSince)}
}

func work(m *storagev1.Work) *pool.Work {
	if m == nil {
		return nil
	}
	w := &pool.Work{Generation: m.Generation, Observed: m.ObservedGeneration, Attempts: int(m.Attempts), NotBefore: toTime(m.NotBefore),
		Problem: m.Problem, Intent: m.Intent, PhaseSince: toTime(m.PhaseSince)}
	if len(w.Observed) == 0 {
		w.Observed = nil
	}
	return w
}

func strikesToProto(strikes []pool.Strike) []*storagev1.Strike {
	out := make([]*storagev1.Strike, len(strikes))
	for i, s := range strikes {
		out[i] = &storagev1.Strike{KeyId: s.Key, Generation: s.Generation, Slot: s.Slot, At: toProto(s.At)}
	}
	return out
}

func slotState(closing bool) storagev1.SlotState {
	if closing {
		return storagev1.SlotState_SLOT_STATE_CLOSING
	}
	return storagev1.SlotState_SLOT_STATE_OPEN
}

func sealedToProto(s pool.Sealed) *storagev1.Sealed {
	if s.IsZero() && s.Fingerprint == "" && s.Preview == "" {
		return nil
	}
	return &storagev1.Sealed{Ciphertext: s.Ciphertext, Fingerprint: s.Fingerprint, Preview: s.Preview}
}

func slotsToProto(slots []pool.SlotPriority) []*rotatorv1.SlotPriority {
	out := make([]*rotatorv1.SlotPriority, len(slots))
	for i, s := range slots {
		out[i] = &rotatorv1.SlotPriority{Slot: s.Slot, Priority: int32(s.Priority)}
	}
	return out
}

func toProto(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Decode reads a record. It never fails: what is none of ours or cannot be read is a *pool.Broken.
func (l Layout) Decode(kv *mvccpb.KeyValue) pool.Record {
	if ref, ours := l.Parse(string(kv.Key)); ours {
		return decode(ref, kv)
	}
	return broken(l.foreign(string(kv.Key)), versionOf(kv, 0), errForeign)
}

// foreign names a key under the prefix that no record of ours can have.
func (l Layout) foreign(key string) pool.Ref {
	return pool.Ref{Kind: KindUnknown, Name: key[len(l.Prefix):]}
}

func decode(ref pool.Ref, kv *mvccpb.KeyValue) pool.Record {
	d, known := decoders[ref.Kind]
	if !known {
		return broken(ref, versionOf(kv, 0), errNoRecord)
	}
	m := d.empty()
	if !fastDecode(kv.Value, m) {
		if err := unmarshal(kv.Value, m); err != nil {
			return broken(ref, versionOf(kv, 0), unreadable(m, err))
		}
	}
	v := versionOf(kv, int(m.GetSchema()))
	if v.Schema < 1 {
		return broken(ref, v, errNoSchema)
	}
	rec, err := d.record(ref, v, kv.Lease, m)
	if err != nil {
		return broken(ref, v, err)
	}
	return rec
}

// unmarshal leaves out what it does not know: a newer replica may have written fields and enum values.
func unmarshal(value []byte, m proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(value, m)
}

var (
	errForeign  = errors.New("no record of rotatord has a key like this")
	errNoRecord = errors.New("this kind is not read as a record")
	errNoSchema = errors.New("schema is missing or below 1")
)

func broken(ref pool.Ref, v pool.Version, err error) *pool.Broken {
	return &pool.Broken{Version: v, Of: ref, Err: err}
}

func versionOf(kv *mvccpb.KeyValue, schema int) pool.Version {
	return pool.Version{Schema: schema, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision}
}

var whereRule = regexp.MustCompile(`\(line \d+:\d+\)(: invalid value for \w+ field \w+)?`)

// unreadable says where a value went wrong and not what it holds there: protojson quotes the value, and a person who
// edits records by hand may have put a secret into it.
func unreadable(m proto.Message, err error) error {
	return fmt.Errorf("not the JSON of a %s %s", m.ProtoReflect().Descriptor().FullName(), whereRule.FindString(err.Error()))
}

// stored is a storage message.
type stored interface {
	proto.Message
	GetSchema() int32
}

// decoder reads the records of one kind.
type decoder struct {
	empty  func() stored
	record func(ref pool.Ref, v pool.Version, lease int64, m stored) (pool.Record, error)
}

// of makes a decoder of a function on the concrete message type.
func of[M any, P interface {
	*M
	stored
}](read func(pool.Ref, pool.Version, P) (pool.Record, error)) decoder {
	return leased(func(ref pool.Ref, v pool.Version, _ int64, m P) (pool.Record, error) { return read(ref, v, m) })
}

func leased[M any, P interface {
	*M
	stored
}](read func(pool.Ref, pool.Version, int64, P) (pool.Record, error)) decoder {
	return decoder{
		empty: func() stored { return P(new(M)) },
		record: func(ref pool.Ref, v pool.Version, lease int64, m stored) (pool.Record, error) {
			return read(ref, v, lease, m.(P))
		},
	}
}

var decoders = map[pool.Kind]decoder{
	pool.KindPool:        of(readPool),
	pool.KindSlot:        of(readSlot),
	pool.KindActive:      of(readActive),
	pool.KindBackup:      of(readBackup),
	pool.KindRetired:     of(readRetired),
	pool.KindRotation:    of(readRotation),
	pool.KindPending:     of(readPending),
	pool.KindBinding:     of(readBinding),
	pool.KindFingerprint: of(readFingerprint),
	pool.KindLock:        leased(readLock),
	pool.KindReplica:     leased(readReplica),
	pool.KindPreparation: of(readPreparation),
	pool.KindToken:       of(readToken),
	pool.KindHealth:      of(readHealth),
	pool.KindRelay:       of(readRelay),
}

func readPool(ref pool.Ref, v pool.Version, m *storagev1.Pool) (pool.Record, error) {
	return &pool.Pool{Version: v, Name: ref.Pool, Spec: specpb.ToSpec(m.GetSpec()), Paused: m.Paused, Deleting: m.Deleting,
		CreatedAt: toTime(m.CreatedAt), Incident: specpb.ToIncident(m.Incident), Credential: sealed(m.Credential),
		UpstreamSince: toTime(m.UpstreamSince)}, nil
}

func readSlot(ref pool.Ref, v pool.Version, m *storagev1.Slot) (pool.Record, error) {
	switch m.State {
	case storagev1.SlotState_SLOT_STATE_OPEN, storagev1.SlotState_SLOT_STATE_CLOSING:
	default:
		return nil, fmt.Errorf("state is unknown (%d)", m.State)
	}
	return &pool.Slot{Version: v, Pool: ref.Pool, Name: ref.Name, Closing: m.State == storagev1.SlotState_SLOT_STATE_CLOSING, CreatedAt: toTime(m.CreatedAt)}, nil
}

func readActive(ref pool.Ref, v pool.Version, m *storagev1.Active) (pool.Record, error) {
	status := pool.Status(m.Status)
	if status <= pool.StatusUnspecified || status > pool.StatusDisabled {
		return nil, fmt.Errorf("status is unknown (%d)", m.Status)
	}
	return &pool.Active{Version: v, Pool: ref.Pool, Key: ref.Name, Slot: m.Slot, Status: status, StatusUntil: toTime(m.StatusUntil),
			Sealed: sealed(m.Sealed), Labels: labels(m.Labels), Replaces: m.Replaces, AddedAt: toTime(m.AddedAt), SpendUSD: m.SpendUsd,
			BudgetUSD: m.BudgetUsd, SpendAt: toTime(m.SpendAt), StatusSince: toTime(m.StatusSince), StatusReason: m.StatusReason},
		checkName("slot", m.Slot)
}

func readBackup(ref pool.Ref, v pool.Version, m *storagev1.Backup) (pool.Record, error) {
	return &pool.Backup{Version: v, Pool: ref.Pool, Key: ref.Name, Sealed: sealed(m.Sealed), Labels: labels(m.Labels), AddedAt: toTime(m.AddedAt)}, nil
}

func readRetired(ref pool.Ref, v pool.Version, m *storagev1.Retired) (pool.Record, error) {
	phase := pool.Phase(m.Phase) + pool.PhaseRetired - 1
	if phase < pool.PhaseRetired || phase > pool.PhasePurged {
		return nil, fmt.Errorf("phase is unknown (%d)", m.Phase)
	}
	return &pool.Retired{Version: v, Pool: ref.Pool, Key: ref.Name, Phase: phase, Slot: m.Slot, Generation: m.Generation, ReplacedBy: m.ReplacedBy,
			Sealed: sealed(m.Sealed), Labels: labels(m.Labels), AddedAt: toTime(m.AddedAt), RetiredAt: toTime(m.RetiredAt), SpendUSD: m.SpendUsd,
			Work: work(m.Work)},
		checkLastLife(m)
}

// checkLastLife: a retired key names its last life, unless it was given up in preparation and never had one.
func checkLastLife(m *storagev1.Retired) error {
	if m.Slot == "" && m.ReplacedBy == "" && m.Generation == 0 && m.Phase != storagev1.RetiredPhase_RETIRED_PHASE_RETIRED {
		return nil
	}
	return errors.Join(checkName("slot", m.Slot), checkName("replacedBy", m.ReplacedBy), checkGeneration(m.Generation))
}

func readRotation(ref pool.Ref, v pool.Version, m *storagev1.Rotation) (pool.Record, error) {
	return &pool.Rotation{Version: v, Life: lifeOf(ref, ref.Generation), ID: m.Id, Slot: m.Slot, NewKey: m.NewKeyId, Trigger: pool.Trigger(m.Trigger), Source: m.Source,
			Reason: m.Reason, RequestID: m.RequestId, ProxyID: m.ProxyId, Holder: m.Holder, CommittedAt: toTime(m.CommittedAt)},
		errors.Join(checkName("slot", m.Slot), checkName("newKeyId", m.NewKeyId), checkTrigger(v, m.Trigger))
}

func readPending(ref pool.Ref, v pool.Version, m *storagev1.Pending) (pool.Record, error) {
	return &pool.Pending{Version: v, Life: lifeOf(ref, m.Generation), Trigger: pool.Trigger(m.Trigger), Source: m.Source,
			Reason: m.Reason, RequestID: m.RequestId, ProxyID: m.ProxyId, RequestedAt: toTime(m.RequestedAt)},
		errors.Join(checkGeneration(m.Generation), checkTrigger(v, m.Trigger))
}

func readBinding(ref pool.Ref, v pool.Version, m *storagev1.Binding) (pool.Record, error) {
	slots := make([]pool.SlotPriority, len(m.Slots))
	for i, s := range m.Slots {
		if err := checkName("slot", s.GetSlot()); err != nil {
			return nil, err
		}
		if s.GetPriority() < 1 {
			return nil, fmt.Errorf("priority %d is below 1", s.GetPriority())
		}
		slots[i] = pool.SlotPriority{Slot: s.GetSlot(), Priority: int(s.GetPriority())}
	}
	pool.SortSlots(slots)
	return &pool.Binding{Version: v, Pool: ref.Pool, Proxy: ref.Name, Slots: slots, UpdatedAt: toTime(m.UpdatedAt)}, nil
}

func readFingerprint(ref pool.Ref, v pool.Version, m *storagev1.Fingerprint) (pool.Record, error) {
	return &pool.Fingerprint{Version: v, Pool: ref.Pool, HMAC: ref.Name, Key: m.KeyId}, checkName("keyId", m.KeyId)
}

func readLock(ref pool.Ref, v pool.Version, lease int64, m *storagev1.Lock) (pool.Record, error) {
	l := &pool.Lock{Version: v, Life: lifeOf(ref, m.Generation), Holder: m.Holder, Campaign: m.Campaign, Stage: m.Stage,
		BusyUntil: toTime(m.BusyUntil), Lease: lease}
	if m.Generation == 0 && m.Stage != pool.StageRotate { // of a key that was never in service
		return l, nil
	}
	return l, checkGeneration(m.Generation)
}

func readReplica(ref pool.Ref, v pool.Version, lease int64, m *storagev1.Replica) (pool.Record, error) {
	return &pool.Replica{Version: v, Name: ref.Name, KnowsSchema: int(m.KnowsSchema), Address: m.Address, Build: m.Version,
		StartedAt: toTime(m.StartedAt), Instance: m.Instance, Lease: lease}, nil
}

func readPreparation(ref pool.Ref, v pool.Version, m *storagev1.Stock) (pool.Record, error) {
	phase := pool.Phase(m.Phase)
	if phase < pool.PhasePlanned || phase > pool.PhaseFailed {
		return nil, fmt.Errorf("phase is unknown (%d)", m.Phase)
	}
	return &pool.Preparation{Version: v, Pool: ref.Pool, Key: ref.Name, Phase: phase, Work: work(m.Work), Sealed: sealed(m.Sealed),
		Labels: labels(m.Labels), PlannedAt: toTime(m.PlannedAt), Alias: m.Alias}, nil
}

func readToken(ref pool.Ref, v pool.Version, m *storagev1.Token) (pool.Record, error) {
	return &pool.Token{Version: v, Pool: ref.Pool, Name: ref.Name, UsedAt: toTime(m.UsedAt), Key: m.KeyId}, nil
}

func readHealth(ref pool.Ref, v pool.Version, m *storagev1.Health) (pool.Record, error) {
	if ref != pool.HealthRef(ref.Pool) {
		return nil, errForeign
	}
	h := &pool.Health{Version: v, Pool: ref.Pool}
	for _, s := range m.Strikes {
		h.Strikes = append(h.Strikes, pool.Strike{Key: s.GetKeyId(), Generation: s.GetGeneration(), Slot: s.GetSlot(), At: toTime(s.GetAt())})
	}
	return h, nil
}

func readRelay(ref pool.Ref, v pool.Version, m *storagev1.Relay) (pool.Record, error) {
	if m.Revision < 0 {
		return nil, fmt.Errorf("revision %d is negative", m.Revision)
	}
	return &pool.Relay{Version: v, Name: ref.Name, Revision: m.Revision, EventID: m.EventId, UpdatedAt: toTime(m.UpdatedAt)}, nil
}

func lifeOf(ref pool.Ref, generation int64) pool.Life {
	return pool.Life{Pool: ref.Pool, Key: ref.Name, Generation: generation}
}

func checkName(field, name string) error {
	if problem := pool.CheckName(name); problem != "" {
		return fmt.Errorf("%s %s", field, problem)
	}
	return nil
}

func checkGeneration(g int64) error {
	if g < 1 {
		return fmt.Errorf("generation %d is below 1", g)
	}
	return nil
}

// checkTrigger is lenient with newer records: who asked decides nothing, and that the life has ended must be readable.
func checkTrigger(v pool.Version, t rotatorv1.Trigger) error {
	if !pool.Trigger(t).Known() && !v.TooNew() {
		return fmt.Errorf("trigger is unknown (%d)", t)
	}
	return nil
}

func sealed(m *storagev1.Sealed) pool.Sealed {
	if m == nil {
		return pool.Sealed{}
	}
	return pool.Sealed{Ciphertext: m.Ciphertext, Fingerprint: m.Fingerprint, Preview: m.Preview}
}

func labels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

func toTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
