package etcdstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rotatord/rotatord/internal/pool"
)

var (
	fastEncoded = []pool.Kind{pool.KindActive, pool.KindBackup, pool.KindRetired, pool.KindRotation, pool.KindLock}
	fastDecoded = append([]pool.Kind{pool.KindSlot}, fastEncoded...)
)

// maker makes random records. Those of an odd maker are not for the fast path, most of them.
type maker struct {
	*rand.Rand
	odd bool
}

func newMaker(odd bool) *maker { return &maker{rand.New(rand.NewPCG(20260301, 7)), odd} }

func pick[T any](m *maker, of ...T) T { return of[m.IntN(len(of))] }

// strange reports whether one field in six of an odd record is to be odd.
func (m *maker) strange() bool { return m.odd && m.IntN(6) == 0 }

func (m *maker) text() string {
	if m.strange() {
		return pick(m, `"`, `\`, `a "quoted" word`, `back\slash`, "\x00", "tab\there", "line\nbreak", "\x1f", "\x7f", "né", "日本", "😀", "\u2028", "\ufeff",
			"\ufffd", "\xff", "bad \xc3\x28", "\xed\xa0\x80", "a\r", "\b\f")
	}
	return pick(m, "", "x", "oh-03", "budget <used up> & gone", "{}[],:' ~!/", `"},{"`[1:1], strings.Repeat("long ", m.IntN(500)), fmt.Sprint(m.Int64()))
}

func (m *maker) number() int64 {
	return pick(m, 0, 1, -1, 47, -9007199254740993, 1<<63-1, -1<<63, m.Int64(), -m.Int64N(1000))
}

func (m *maker) time() time.Time {
	if m.strange() {
		return pick(m, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(0, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(-4, 1, 1, 0, 0, 0, 5, time.UTC))
	}
	nanos := pick(m, 0, 1, 10, 100_000, 120_000_000, 1_000, 999_999_999, 1_000_000, m.Int64N(1e9), m.Int64N(1e6)*1e3, m.Int64N(1e3)*1e6)
	return pick(m, time.Time{}, time.Time{}.Add(time.Duration(nanos)), time.Unix(0, nanos), time.Unix(-1, nanos), time.Unix(-m.Int64N(1e10), nanos), time.Unix(m.Int64N(1e11), nanos),
		time.Unix(minSeconds, nanos), time.Unix(maxSeconds, nanos), time.Unix(m.Int64N(2e9), nanos).In(time.FixedZone("east", 5*3600+1800)))
}

// enum is the number of a known value, which may be 0.
func (m *maker) enum(known int) int {
	if m.strange() {
		return pick(m, -1, known, 77, 1<<31-1, -1<<31, 1<<32+1)
	}
	return m.IntN(known)
}

func (m *maker) sealed() pool.Sealed {
	data := make([]byte, m.IntN(200))
	for i := range data {
		data[i] = byte(m.Uint32())
	}
	return pick(m, pool.Sealed{}, pool.Sealed{Ciphertext: []byte{}}, pool.Sealed{Preview: "sk-a...x1Zq"}, pool.Sealed{Ciphertext: []byte{}, Fingerprint: "f1"},
		pool.Sealed{Ciphertext: data}, pool.Sealed{Ciphertext: data, Fingerprint: m.text(), Preview: m.text()})
}

func (m *maker) labels() map[string]string {
	if m.strange() {
		return map[string]string{"team": m.text(), m.text(): "b", "account": "a-17"}
	}
	return pick(m, nil, map[string]string{})
}

func (m *maker) spend() *float64 {
	if m.strange() {
		return pointer(pick(m, 0, 12.5, -1e-7, 1e21, m.Float64()))
	}
	return nil
}

func (m *maker) record(kind pool.Kind) pool.Record {
	v := pool.Version{Schema: pool.Schema, CreateRevision: 40, ModRevision: 47}
	life := pool.Life{Pool: "p", Key: "k", Generation: m.number()}
	switch kind {
	case pool.KindSlot:
		return &pool.Slot{Version: v, Pool: "p", Name: "k", Closing: m.IntN(2) == 0, CreatedAt: m.time()}
	case pool.KindActive:
		return &pool.Active{Version: v, Pool: "p", Key: "k", Slot: m.text(), Status: pool.Status(m.enum(6)), StatusUntil: m.time(), Sealed: m.sealed(),
			Labels: m.labels(), Replaces: m.text(), AddedAt: m.time(), SpendUSD: m.spend()}
	case pool.KindBackup:
		return &pool.Backup{Version: v, Pool: "p", Key: "k", Sealed: m.sealed(), Labels: m.labels(), AddedAt: m.time()}
	case pool.KindRetired:
		return &pool.Retired{Version: v, Pool: "p", Key: "k", Phase: pool.PhaseRetired - 1 + pool.Phase(m.enum(2)), Slot: m.text(), Generation: m.number(), ReplacedBy: m.text(),
			Sealed: m.sealed(), Labels: m.labels(), AddedAt: m.time(), RetiredAt: m.time(), SpendUSD: m.spend()}
	case pool.KindRotation:
		life.Generation = 47 // it is in the name
		return &pool.Rotation{Version: v, Life: life, ID: m.text(), Slot: m.text(), NewKey: m.text(), Trigger: pool.Trigger(m.enum(6)), Source: m.text(),
			Reason: m.text(), RequestID: m.text(), ProxyID: m.text(), Holder: m.text(), CommittedAt: m.time()}
	case pool.KindLock:
		return &pool.Lock{Version: v, Life: life, Holder: m.text(), Campaign: m.text(), Stage: m.text(), BusyUntil: m.time()}
	}
	panic("no random records of kind " + string(kind))
}

func (m *maker) event() *pool.Event {
	return &pool.Event{Type: pool.EventType(m.text()), Subject: m.text(), Time: m.time(), Trigger: pool.Trigger(m.enum(6)), Source: m.text(),
		Reason: m.text(), RequestID: m.text(), Key: m.text(), NewKey: m.text(), Generation: m.number(), Slot: m.text(), Proxy: m.text(),
		RotationID: m.text(), Status: pool.Status(m.enum(6)), Home: pool.Home(m.enum(4))}
}

// messages calls f with many random messages of each kind that is written by the fast path.
func (m *maker) messages(f func(kind string, message proto.Message)) {
	for range 2000 {
		for _, kind := range fastEncoded {
			f(string(kind), message(m.record(kind), pool.Schema))
		}
		f("events", eventMessage(m.event(), m.text(), pool.Schema))
	}
}

// slowDecode is decode without the fast path.
func slowDecode(ref pool.Ref, kv *mvccpb.KeyValue) pool.Record {
	d := decoders[ref.Kind]
	m := d.empty()
	if err := unmarshal(kv.Value, m); err != nil {
		return broken(ref, versionOf(kv, 0), unreadable(m, err))
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

func refOf(kind pool.Kind) pool.Ref {
	ref := pool.Ref{Kind: kind, Pool: "p", Name: "k"}
	if kind == pool.KindRotation {
		ref.Generation = 47
	}
	return ref
}

// checkDecode fails unless a value reads as it does without the fast path, and reports whether the fast path took it.
func checkDecode(t testing.TB, kind pool.Kind, value string) (taken bool) {
	t.Helper()
	fast, slow := decoders[kind].empty(), decoders[kind].empty()
	err := unmarshal([]byte(value), slow)
	if taken = fastDecode([]byte(value), fast); taken && (err != nil || !proto.Equal(fast, slow)) {
		t.Fatalf("%s: the fast path takes %q for %v, protojson for %v (%v)", kind, value, fast, slow, err)
	}
	kv := &mvccpb.KeyValue{Value: []byte(value), CreateRevision: 40, ModRevision: 47, Lease: 9}
	if got, want := decode(refOf(kind), kv), slowDecode(refOf(kind), kv); !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: %q reads as %+v, without the fast path as %+v", kind, value, got, want)
	}
	return taken
}

// before stands in the buffer already, as other parts of a request may.
const before = `{"before":{`

func fast(m proto.Message) (line string, ok bool) {
	b := fastEncode([]byte(before), m)
	return strings.TrimPrefix(string(b), before), b != nil
}

func written(m proto.Message) (string, error) {
	b, err := appendMessage([]byte(before), m)
	line, kept := strings.CutPrefix(string(b), before)
	if !kept {
		line = "with what was before it changed: " + line
	}
	return line, err
}

func slow(m proto.Message) (string, error) {
	b, err := marshal(m)
	return string(b), err
}

// The fast path must not turn itself off unnoticed.
func TestFastEncodeTakesPlainRecords(t *testing.T) {
	newMaker(false).messages(func(kind string, m proto.Message) {
		want, err := slow(m)
		if err != nil {
			t.Fatalf("%s: marshal(%v): %v", kind, m, err)
		}
		if got, ok := fast(m); !ok || got != want {
			t.Fatalf("%s: the fast path writes %q (%v), protojson %q", kind, got, ok, want)
		}
	})
}

func TestFastEncodeOfOddRecordsIsThatOfProtojson(t *testing.T) {
	left := map[string]int{}
	newMaker(true).messages(func(kind string, m proto.Message) {
		want, wantErr := slow(m)
		got, gotErr := written(m)
		if got != want || (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("%s: written as %q (%v), by protojson as %q (%v)", kind, got, gotErr, want, wantErr)
		}
		if _, ok := fast(m); !ok {
			left[kind]++
		}
	})
	if len(left) != len(fastEncoded)+1 {
		t.Errorf("left to protojson were %v, want some of every kind", left)
	}
}

// A field that the contract gets and the fast path does not know would be lost without a word.
func TestFastEncodeKnowsEveryField(t *testing.T) {
	messages := []proto.Message{eventMessage(&pool.Event{}, "", pool.Schema)}
	for _, kind := range fastEncoded {
		messages = append(messages, decoders[kind].empty())
	}
	for _, empty := range messages {
		eachField(empty.ProtoReflect(), func(field protoreflect.FullName) {
			want, err := slow(empty)
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := fast(empty); ok && got != want {
				t.Errorf("with %s set, the fast path writes %s, protojson %s", field, got, want)
			}
		})
	}
}

// eachField sets the fields of a message and of the messages in it, one at a time, and calls f.
func eachField(m protoreflect.Message, f func(protoreflect.FullName)) {
	for i := range m.Descriptor().Fields().Len() {
		field := m.Descriptor().Fields().Get(i)
		had := m.Has(field)
		switch {
		case field.IsMap():
			key := nonZero(field.MapKey()).MapKey()
			m.Mutable(field).Map().Set(key, nonZero(field.MapValue()))
		case field.IsList():
			panic("a list is new here: " + string(field.FullName()))
		case field.Message() != nil:
			eachField(m.Mutable(field).Message(), f)
		default:
			m.Set(field, nonZero(field))
		}
		f(field.FullName())
		if !had {
			m.Clear(field)
		}
	}
}

func nonZero(field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{1})
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	}
	panic("a kind of field is new here: " + string(field.FullName()))
}

func TestFastEncodeLeavesToProtojson(t *testing.T) {
	active := func(change func(*pool.Active)) proto.Message {
		r := &pool.Active{Slot: "s", Status: pool.StatusHealthy, AddedAt: morning}
		change(r)
		return message(r, pool.Schema)
	}
	for name, m := range map[string]proto.Message{
		"a quote":           active(func(a *pool.Active) { a.Slot = `"` }),
		"a backslash":       active(func(a *pool.Active) { a.Slot = `\` }),
		"a control":         active(func(a *pool.Active) { a.Slot = "\n" }),
		"DEL":               active(func(a *pool.Active) { a.Slot = "\x7f" }),
		"not ASCII":         active(func(a *pool.Active) { a.Slot = "é" }),
		"not UTF-8":         active(func(a *pool.Active) { a.Replaces = "\xff" }),
		"not plain, sealed": active(func(a *pool.Active) { a.Sealed = pool.Sealed{Preview: "é"} }),
		"no status's name":  active(func(a *pool.Active) { a.Status = 77 }),
		"a label's name":    active(func(a *pool.Active) { a.Labels = map[string]string{"é": "b"} }),
		"a label's value":   active(func(a *pool.Active) { a.Labels = map[string]string{"a": `"`} }),
		"spend":             active(func(a *pool.Active) { a.SpendUSD = pointer(0.0) }),
		"too late":          active(func(a *pool.Active) { a.AddedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }),
		"too early":         active(func(a *pool.Active) { a.AddedAt = time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC) }),
		"another kind":      message(&pool.Fingerprint{Key: "k"}, pool.Schema),
	} {
		if line, ok := fast(m); ok {
			t.Errorf("%s: the fast path writes %q, want it left to protojson", name, line)
		}
	}
}

func TestFastDecodeTakesPlainRecords(t *testing.T) {
	m := newMaker(false)
	for range 2000 {
		for _, kind := range fastDecoded {
			value, err := slow(message(m.record(kind), pool.Schema))
			if err != nil {
				t.Fatal(err)
			}
			if !checkDecode(t, kind, value) {
				t.Fatalf("%s: %q is left to protojson", kind, value)
			}
		}
	}
}

func TestFastDecodeOfOddRecordsIsThatOfProtojson(t *testing.T) {
	m := newMaker(true)
	for range 2000 {
		for _, kind := range fastDecoded {
			value, err := slow(message(m.record(kind), pool.Schema))
			if err == nil {
				checkDecode(t, kind, value)
			}
		}
	}
}

// Damage finds what a scanner is lenient about and protojson is not, or the other way round.
func TestFastDecodeOfDamagedRecordsIsThatOfProtojson(t *testing.T) {
	m := newMaker(false)
	for range 1000 {
		for _, kind := range fastDecoded {
			value, err := slow(message(m.record(kind), pool.Schema))
			if err != nil {
				t.Fatal(err)
			}
			for range 4 {
				checkDecode(t, kind, m.damaged(value))
			}
		}
	}
}

func (m *maker) damaged(value string) string {
	i, j := m.IntN(len(value)), m.IntN(len(value))
	i, j = min(i, j), max(i, j)
	piece := pick(m, `"`, `\`, `,`, `:`, `{`, `}`, ` `, "0", "-", "1", "Z", "=", "a", "_", ".", "null", `"slot":"s",`, "\x00", "\xff", "\n")
	return pick(m, value[:i], value[:i]+piece+value[i:], value[:i]+piece+value[i+1:], value[:i]+value[j:], value+piece, value[:j]+value[i:])
}

func TestFastDecodeLeavesToProtojson(t *testing.T) {
	active := func(fields string) string {
		return `{"schema":1,"slot":"s","status":"KEY_STATUS_HEALTHY"` + fields + `}`
	}
	for name, c := range map[string]struct {
		kind  pool.Kind
		value string
	}{
		"nothing":                {pool.KindActive, ``},
		"null":                   {pool.KindActive, `null`},
		"an array":               {pool.KindActive, `[]`},
		"cut short":              {pool.KindActive, active(``)[:40]},
		"white space before":     {pool.KindActive, ` ` + active(``)},
		"white space after":      {pool.KindActive, active(``) + "\n"},
		"white space inside":     {pool.KindActive, `{"schema": 1,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"something after":        {pool.KindActive, active(``) + `{}`},
		"a brace after":          {pool.KindActive, active(``) + `}`},
		"a comma at the end":     {pool.KindActive, active(`,`)},
		"a comma at the start":   {pool.KindActive, `{,"schema":1}`},
		"no comma":               {pool.KindActive, `{"schema":1"slot":"s"}`},
		"unknown field":          {pool.KindActive, active(`,"mood":{"deep":[1]}`)},
		"unknown first":          {pool.KindActive, `{"mood":1,"schema":1,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"duplicate field":        {pool.KindActive, `{"schema":1,"schema":1,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"another order":          {pool.KindActive, `{"slot":"s","schema":1,"status":"KEY_STATUS_HEALTHY"}`},
		"escape":                 {pool.KindActive, active(`,"replaces":"\u0041"`)},
		"escape in a name":       {pool.KindActive, active(`,"replace\u0073":"a"`)},
		"not ASCII":              {pool.KindActive, active(`,"replaces":"é"`)},
		"not UTF-8":              {pool.KindActive, active(",\"replaces\":\"\xff\"")},
		"a field that is null":   {pool.KindActive, active(`,"replaces":null`)},
		"number for string":      {pool.KindActive, active(`,"replaces":1`)},
		"string for number":      {pool.KindActive, `{"schema":"1","slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"fraction":               {pool.KindActive, `{"schema":1.0,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"exponent":               {pool.KindActive, `{"schema":1e0,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"leading zero":           {pool.KindActive, `{"schema":01,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"plus":                   {pool.KindActive, `{"schema":+1,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"no digits":              {pool.KindActive, `{"schema":,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"beyond 32 bits":         {pool.KindActive, `{"schema":4294967297,"slot":"s","status":"KEY_STATUS_HEALTHY"}`},
		"snake case":             {pool.KindActive, active(`,"added_at":"2026-03-01T09:30:00Z"`)},
		"enum by number":         {pool.KindActive, `{"schema":1,"slot":"s","status":1}`},
		"unknown enum":           {pool.KindActive, `{"schema":1,"slot":"s","status":"KEY_STATUS_NEW"}`},
		"no labels":              {pool.KindActive, active(`,"labels":{}`)},
		"a label twice":          {pool.KindActive, active(`,"labels":{"a":"b","a":"c"}`)},
		"labels left open":       {pool.KindActive, active(`,"labels":{"a":"b",`)},
		"spend":                  {pool.KindActive, active(`,"spendUsd":12.5`)},
		"sealed is null":         {pool.KindActive, active(`,"sealed":null`)},
		"sealed is a string":     {pool.KindActive, active(`,"sealed":"AQ=="`)},
		"unknown in sealed":      {pool.KindActive, active(`,"sealed":{"ciphertext":"AQ==","mood":1}`)},
		"sealed left open":       {pool.KindActive, active(`,"sealed":{"ciphertext":"AQ=="`)},
		"no bytes":               {pool.KindActive, active(`,"sealed":{"ciphertext":""}`)},
		"base64 for URLs":        {pool.KindActive, active(`,"sealed":{"ciphertext":"-_-_"}`)},
		"base64 without padding": {pool.KindActive, active(`,"sealed":{"ciphertext":"AQ"}`)},
		"not base64":             {pool.KindActive, active(`,"sealed":{"ciphertext":"A!=="}`)},
		"not a time":             {pool.KindActive, active(`,"addedAt":"today"`)},
		"time is empty":          {pool.KindActive, active(`,"addedAt":""`)},
		"time with offset":       {pool.KindActive, active(`,"addedAt":"2026-03-01T09:30:00+01:00"`)},
		"time in small letters":  {pool.KindActive, active(`,"addedAt":"2026-03-01t09:30:00z"`)},
		"time with comma":        {pool.KindActive, active(`,"addedAt":"2026-03-01T09:30:00,5Z"`)},
		"time with short hour":   {pool.KindActive, active(`,"addedAt":"2026-03-01T9:30:00Z"`)},
		"time, short and long":   {pool.KindActive, active(`,"addedAt":"2026-03-01T9:30:00.1234Z"`)},
		"two digits of a second": {pool.KindActive, active(`,"addedAt":"2026-03-01T09:30:00.25Z"`)},
		"no such time":           {pool.KindActive, active(`,"addedAt":"2026-02-30T09:30:00Z"`)},
		"ten digits of a second": {pool.KindActive, active(`,"addedAt":"2026-03-01T09:30:00.0000000000Z"`)},
		"year 0":                 {pool.KindActive, active(`,"addedAt":"0000-03-01T09:30:00Z"`)},
		"generation, a number":   {pool.KindLock, `{"schema":1,"generation":41}`},
		"generation, minus 0":    {pool.KindLock, `{"schema":1,"generation":"-0"}`},
		"generation, plus":       {pool.KindLock, `{"schema":1,"generation":"+41"}`},
		"generation, spaced":     {pool.KindLock, `{"schema":1,"generation":" 41"}`},
		"generation, exponent":   {pool.KindLock, `{"schema":1,"generation":"4e1"}`},
		"generation, too large":  {pool.KindLock, `{"schema":1,"generation":"9223372036854775808"}`},
		"generation, empty":      {pool.KindLock, `{"schema":1,"generation":""}`},
		"another kind":           {pool.KindFingerprint, `{"schema":1,"keyId":"k"}`},
	} {
		if checkDecode(t, c.kind, c.value) {
			t.Errorf("%s: the fast path takes %s, want it left to protojson", name, c.value)
		}
	}
}

// The checks on what a record says are the same by either way.
func TestFastDecodedRecordsAreChecked(t *testing.T) {
	for value, want := range map[string]string{
		`{}`:                       "schema",
		`{"schema":0,"slot":"s"}`:  "schema",
		`{"schema":-1,"slot":"s"}`: "schema",
		`{"schema":1,"slot":"s"}`:  "status",
		`{"schema":1,"slot":"a/b","status":"KEY_STATUS_HEALTHY"}`: "slot must match",
	} {
		if !checkDecode(t, pool.KindActive, value) {
			t.Errorf("%s is left to protojson", value)
		}
		kv := keyValue("/rotator/active/p/k", value)
		if b, isBroken := decode(refOf(pool.KindActive), kv).(*pool.Broken); !isBroken || !strings.Contains(b.Err.Error(), want) {
			t.Errorf("%s reads as %+v, want a *pool.Broken that says %q", value, b, want)
		}
	}
}

func FuzzDecodeFast(f *testing.F) {
	m := newMaker(true)
	for i, kind := range fastDecoded {
		for range 20 {
			if value, err := slow(message(m.record(kind), pool.Schema)); err == nil {
				f.Add(uint8(i), []byte(value))
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, value []byte) {
		checkDecode(t, fastDecoded[int(kind)%len(fastDecoded)], string(value))
	})
}

// hot are the samples that a rotation reads and writes, without spend, reports and work.
func hot() map[string]pool.Record {
	out := map[string]pool.Record{}
	for _, rec := range samples() {
		switch r := rec.(type) {
		case *pool.Active:
			if r.StatusReason != "" {
				continue
			}
			r.SpendUSD = nil
		case *pool.Retired:
			if r.Work != nil {
				continue
			}
			r.SpendUSD = nil
		case *pool.Backup, *pool.Rotation, *pool.Lock:
		default:
			continue
		}
		out[string(rec.Ref().Kind)] = rec
	}
	return out
}

// Only the allocations show from outside which way was taken.
func TestFastPathIsTheOneInUse(t *testing.T) {
	fewer := func(what string, fast, slow func()) {
		if f, s := testing.AllocsPerRun(50, fast), testing.AllocsPerRun(50, slow); f > s/2 {
			t.Errorf("%s allocates %v times and %v without the fast path, want at most half", what, f, s)
		}
	}
	for kind, rec := range hot() {
		kv := keyValue("", encoded(t, rec))
		fewer("encoding "+kind, func() { _, _ = EncodeRecord(rec, pool.Schema) }, func() { _, _ = slow(message(rec, pool.Schema)) })
		fewer("decoding "+kind, func() { decode(rec.Ref(), kv) }, func() { slowDecode(rec.Ref(), kv) })
	}
	event := sampleEvent()
	fewer("encoding events", func() { _, _ = EncodeEvent(event, "r", pool.Schema) }, func() { _, _ = slow(eventMessage(event, "r", pool.Schema)) })
}

func BenchmarkEncode(b *testing.B) {
	compare := func(kind string, m func() proto.Message) {
		for name, way := range map[string]func(proto.Message) (string, error){"fast": written, "slow": slow} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := way(m()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	for kind, rec := range hot() {
		compare(kind, func() proto.Message { return message(rec, pool.Schema) })
	}
	event := sampleEvent()
	compare("events", func() proto.Message { return eventMessage(event, "rotatord/rotatord-0", pool.Schema) })
}

func BenchmarkDecode(b *testing.B) {
	for kind, rec := range hot() {
		ref, kv := rec.Ref(), &mvccpb.KeyValue{Value: []byte(encoded(b, rec)), CreateRevision: 40, ModRevision: 47}
		for name, way := range map[string]func(pool.Ref, *mvccpb.KeyValue) pool.Record{"fast": decode, "slow": slowDecode} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if broken, isBroken := way(ref, kv).(*pool.Broken); isBroken {
						b.Fatal(errors.Unwrap(broken.Err))
					}
				}
			})
		}
	}
}
