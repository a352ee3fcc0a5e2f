package etcdstore

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/rotatord/rotatord/internal/pool"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const goldenFile = "testdata/records.txt"

var (
	morning = time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)
	noon    = time.Date(2026, 3, 1, 12, 0, 0, 250_000_000, time.UTC)
	version = pool.Version{Schema: 1, CreateRevision: 40, ModRevision: 47}
)

// sealedAs looks like what a Sealer makes.
func sealedAs(preview string) pool.Sealed {
	sum := sha256.Sum256([]byte(preview))
	return pool.Sealed{Ciphertext: append([]byte{1}, sum[:]...), Fingerprint: hex.EncodeToString(sum[16:]), Preview: preview}
}

func pointer[T any](v T) *T { return &v }

// samples has every kind in at least one state, with every field set in at least one record.
func samples() []pool.Record {
	labels := map[string]string{"team": "research", "account": "a-17"}
	life := pool.Life{Pool: "openhands", Key: "oh-03", Generation: 47}
	return []pool.Record{
		&pool.Active{Version: version, Pool: "openhands", Key: "oh-01", Slot: "oh-01", Status: pool.StatusHealthy, Sealed: sealedAs("sk-a...x1Zq"), Labels: labels, AddedAt: morning},
		&pool.Active{Version: version, Pool: "openhands", Key: "oh-02", Slot: "oh-02", Status: pool.StatusRateLimited, StatusUntil: noon, Sealed: sealedAs("sk-b...9fTe"), AddedAt: morning, SpendUSD: pointer(12.5)},
		&pool.Active{Version: version, Pool: "openhands", Key: "oh-11", Slot: "oh-03", Status: pool.StatusHealthy, Sealed: sealedAs("sk-c...Lm0p"), Replaces: "oh-03", AddedAt: morning},
		&pool.Backup{Version: version, Pool: "openhands", Key: "oh-12", Sealed: sealedAs("sk-d...77Qs"), Labels: labels, AddedAt: morning},
		&pool.Binding{Version: version, Pool: "openhands", Proxy: "gw-1", Slots: []pool.SlotPriority{{Slot: "oh-01", Priority: 1}, {Slot: "oh-03", Priority: 2}}, UpdatedAt: morning},
		&pool.Fingerprint{Version: version, Pool: "openhands", HMAC: sealedAs("sk-a...x1Zq").Fingerprint, Key: "oh-01"},
		&pool.Lock{Version: version, Life: pool.Life{Pool: "openhands", Key: "oh-02", Generation: 41}, Holder: "rotatord-0", Campaign: "c-8c1d", Stage: "rotate", BusyUntil: noon, Lease: 7587},
		&pool.Pending{Version: version, Life: pool.Life{Pool: "openhands", Key: "oh-02", Generation: 41}, Trigger: pool.TriggerSpendChecker, Source: "spend", Reason: "budget <used up> & gone", RequestID: "r-2", ProxyID: "gw-1", RequestedAt: noon},
		&pool.Pool{Version: version, Name: "openhands", Spec: pool.Spec{Description: "keys of the agents", Labels: labels}, CreatedAt: morning},
		&pool.Pool{Version: version, Name: "troll", Paused: true, Deleting: true, CreatedAt: morning},
		&pool.Replica{Version: version, Name: "rotatord-0", KnowsSchema: 1, Address: "10.0.0.7:7070", Build: "v0.1.0", StartedAt: morning, Instance: "i-52d0", Lease: 7588},
		&pool.Retired{Version: version, Pool: "openhands", Key: "oh-03", Phase: pool.PhaseRetired, Slot: "oh-03", Generation: 47, ReplacedBy: "oh-11", Sealed: sealedAs("sk-e...0aBc"), Labels: labels, AddedAt: morning, RetiredAt: noon, SpendUSD: pointer(99.75)},
		&pool.Rotation{Version: version, Life: life, ID: "01JX3", Slot: "oh-03", NewKey: "oh-11", Trigger: pool.TriggerProvider, Source: "openhands", Reason: "401 from the upstream", RequestID: "r-1", ProxyID: "gw-1", Holder: "rotatord-0", CommittedAt: noon},
		&pool.Active{Version: version, Pool: "openhands", Key: "oh-04", Slot: "oh-04", Status: pool.StatusError, StatusUntil: noon, StatusSince: morning, StatusReason: "bound",
			Sealed: sealedAs("sk-f...c0de"), AddedAt: morning, SpendUSD: pointer(9.4), BudgetUSD: pointer(10.0), SpendAt: morning},
		&pool.Pool{Version: version, Name: "minted", CreatedAt: morning, UpstreamSince: noon, Incident: &pool.Incident{Since: morning, Until: noon, Keys: 3},
			Credential: sealedAs("sk-m...9xYz"), Spec: pool.Spec{
				Upstream: pool.UpstreamSpec{Kind: pool.UpstreamLiteLLM, BaseURL: "https://litellm.example.org"},
				Bound:    pool.BoundSpec{Rotations: pointer(5), Window: time.Minute}, Stock: &pool.StockPolicy{Min: 2, Max: 4},
				Provider: &pool.ProviderSpec{LiteLLM: &pool.LiteLLMProvider{MaxBudgetUSD: 10, BudgetDuration: "30d"}},
			}},
		&pool.Retired{Version: version, Pool: "minted", Key: "m-01", Phase: pool.PhaseRevoking, Slot: "m-01", Generation: 47, ReplacedBy: "m-02", Sealed: sealedAs("sk-g...1111"),
			AddedAt: morning, RetiredAt: noon, Work: &pool.Work{Generation: 2, Observed: map[string]int64{"retired": 2}, Attempts: 3, NotBefore: noon,
				Problem: "503 from the upstream", Intent: "i-1", PhaseSince: noon}},
		&pool.Preparation{Version: version, Pool: "minted", Key: "m-03", Phase: pool.PhaseVerifying, Work: &pool.Work{Generation: 1, Observed: map[string]int64{"planned": 1, "minting": 1},
			PhaseSince: noon}, Sealed: sealedAs("sk-h...2222"), Labels: labels, PlannedAt: morning, Alias: "rotatord-minted-m-03"},
		&pool.Token{Version: version, Pool: "openhands", Name: "0", UsedAt: noon, Key: "oh-03"},
		&pool.Health{Version: version, Pool: "openhands", Strikes: []pool.Strike{{Key: "oh-03", Generation: 47, Slot: "oh-03", At: noon}}},
		&pool.Relay{Version: version, Name: "file", Revision: 47, EventID: "01JX4", UpdatedAt: noon},
		&pool.Slot{Version: version, Pool: "openhands", Name: "oh-01", CreatedAt: morning},
		&pool.Slot{Version: version, Pool: "openhands", Name: "oh-02", Closing: true, CreatedAt: morning},
	}
}

func sampleEvent() *pool.Event {
	return &pool.Event{ID: "01JX4", Type: pool.EventKeyRotated, Pool: "openhands", Subject: "keys/oh-03", Time: noon,
		Trigger: pool.TriggerProvider, Source: "openhands", Reason: "401 from the upstream", RequestID: "r-1", Key: "oh-03", NewKey: "oh-11",
		Generation: 47, Slot: "oh-03", Proxy: "gw-1", RotationID: "01JX3", Status: pool.StatusHealthy, Home: pool.HomeRetired}
}

func encoded(t testing.TB, rec pool.Record) string {
	t.Helper()
	value, err := EncodeRecord(rec, pool.Schema)
	if err != nil {
		t.Fatalf("EncodeRecord(%+v): %v", rec.Ref(), err)
	}
	return value
}

func keyValue(key, value string) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: version.CreateRevision, ModRevision: version.ModRevision}
}

// The golden file is the format on disk, as `etcdctl get --prefix` shows it: a changed line is a changed format.
func TestRecordsOnDisk(t *testing.T) {
	l := Layout{DefaultPrefix}
	var got strings.Builder
	for _, rec := range samples() {
		got.WriteString(l.Key(rec.Ref()) + "\n" + encoded(t, rec) + "\n")
	}
	event, err := EncodeEvent(sampleEvent(), "rotatord/rotatord-0", pool.Schema)
	if err != nil {
		t.Fatal(err)
	}
	got.WriteString(l.Key(pool.EventRef("openhands", "01JX4")) + "\n" + event + "\n")
	if *update {
		if err := os.WriteFile(goldenFile, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("records as written differ from %s (-want +got):\n%s", goldenFile, diff)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	l := Layout{DefaultPrefix}
	for _, rec := range samples() {
		kv := keyValue(l.Key(rec.Ref()), encoded(t, rec))
		switch r := rec.(type) {
		case *pool.Lock:
			kv.Lease = r.Lease
		case *pool.Replica:
			kv.Lease = r.Lease
		}
		if diff := cmp.Diff(rec, l.Decode(kv)); diff != "" {
			t.Errorf("%s comes back changed (-written +read):\n%s", kv.Key, diff)
		}
	}
}

func TestUnreadableValuesAreBroken(t *testing.T) {
	l := Layout{DefaultPrefix}
	for name, c := range map[string]struct{ key, value, want string }{
		"empty":              {"/rotator/active/p/k", ``, "not the JSON"},
		"not JSON":           {"/rotator/active/p/k", `{"schema":`, "not the JSON"},
		"an array":           {"/rotator/backup/p/k", `[]`, "not the JSON"},
		"null":               {"/rotator/backup/p/k", `null`, "not the JSON"},
		"no schema":          {"/rotator/backup/p/k", `{}`, "schema"},
		"schema 0":           {"/rotator/backup/p/k", `{"schema":0}`, "schema"},
		"schema below 0":     {"/rotator/backup/p/k", `{"schema":-1}`, "schema"},
		"schema no number":   {"/rotator/backup/p/k", `{"schema":"one"}`, "field schema"},
		"bad time":           {"/rotator/backup/p/k", `{"schema":1,"addedAt":"today"}`, "not the JSON"},
		"no status":          {"/rotator/active/p/k", `{"schema":1,"slot":"s"}`, "status"},
		"status by name":     {"/rotator/active/p/k", `{"schema":1,"slot":"s","status":"KEY_STATUS_NEW"}`, "status"},
		"status by number":   {"/rotator/active/p/k", `{"schema":1,"slot":"s","status":77}`, "status"},
		"status below 0":     {"/rotator/active/p/k", `{"schema":1,"slot":"s","status":-1}`, "status"},
		"newer status":       {"/rotator/active/p/k", `{"schema":2,"slot":"s","status":"KEY_STATUS_NEW"}`, "status"},
		"no slot":            {"/rotator/active/p/k", `{"schema":1,"status":"KEY_STATUS_HEALTHY"}`, "slot is required"},
		"bad slot":           {"/rotator/active/p/k", `{"schema":1,"slot":"a/b","status":"KEY_STATUS_HEALTHY"}`, "slot must match"},
		"no slot state":      {"/rotator/slots/p/s", `{"schema":1}`, "state"},
		"no phase":           {"/rotator/retired/p/k", `{"schema":1,"slot":"s","replacedBy":"n","generation":"1"}`, "phase"},
		"no generation":      {"/rotator/pending/p/k", `{"schema":1,"trigger":"TRIGGER_POOL"}`, "generation"},
		"no trigger":         {"/rotator/rotations/p/k/1", `{"schema":1,"slot":"s","newKeyId":"n"}`, "trigger"},
		"no new key":         {"/rotator/rotations/p/k/1", `{"schema":1,"slot":"s","trigger":"TRIGGER_POOL"}`, "newKeyId"},
		"no priority":        {"/rotator/bindings/p/x", `{"schema":1,"slots":[{"slot":"s"}]}`, "priority"},
		"a slot that is not": {"/rotator/bindings/p/x", `{"schema":1,"slots":[{}]}`, "slot"},
		"no key id":          {"/rotator/fingerprints/p/00", `{"schema":1}`, "keyId"},
		"foreign":            {"/rotator/notes/today", `remember the milk`, "no record of rotatord"},
		"event":              {"/rotator/events/p/e", `{"schema":1}`, "not read as a record"},
	} {
		rec, isBroken := l.Decode(keyValue(c.key, c.value)).(*pool.Broken)
		if !isBroken || rec.Err == nil || !strings.Contains(rec.Err.Error(), c.want) {
			t.Errorf("%s: %s reads as %+v, want a *pool.Broken that says %q", name, c.value, rec, c.want)
			continue
		}
		if rec.ModRevision != version.ModRevision || rec.CreateRevision != version.CreateRevision {
			t.Errorf("%s: broken record is at %+v, want the revisions of %+v", name, rec.Version, version)
		}
		if got := l.Key(rec.Ref()); got != c.key {
			t.Errorf("%s: broken record says it is at %s, want %s", name, got, c.key)
		}
	}
}

func TestNewerRecordsAreReadAndNotRewritten(t *testing.T) {
	l := Layout{DefaultPrefix}
	rec := l.Decode(keyValue("/rotator/rotations/p/k/7", `{"schema":2,"slot":"s","newKeyId":"n","trigger":"TRIGGER_CLOCK","mood":{"deep":[1]}}`))
	r, ok := rec.(*pool.Rotation)
	if !ok || r.Schema != 2 || r.NewKey != "n" || r.Generation != 7 {
		t.Fatalf("a newer rotation reads as %+v, want its fields and schema 2", rec)
	}
	_, err := EncodeRecord(r, pool.Schema)
	if pool.ReasonOf(err) != pool.ReasonSchemaTooNew || !strings.Contains(err.Error(), "rotations/p/k/7") || !strings.Contains(err.Error(), "upgrade this replica") {
		t.Errorf("rewriting a newer record: %v, want SCHEMA_TOO_NEW with its name and what to do", err)
	}
}

// A person who edits by hand may put a secret where it does not belong.
func TestBrokenRecordsDoNotQuoteTheirValue(t *testing.T) {
	const canary = "sk-canary-1234567890"
	for _, value := range []string{
		`{"schema":1,"slot":"s","status":"KEY_STATUS_HEALTHY","sealed":{"ciphertext":"` + canary + `!"}}`,
		`{"schema":"` + canary + `"}`, `{"schema":1,"sealed":"` + canary + `"}`, canary, `{"` + canary + `":1,"` + canary + `":1}`, `{"schema":1,"addedAt":"` + canary + `"}`,
		`{"schema":1,"status":"` + canary + `"}`, `{"schema":1,"status":"KEY_STATUS_HEALTHY","slot":"` + canary + `/"}`,
	} {
		rec, isBroken := Layout{DefaultPrefix}.Decode(keyValue("/rotator/active/p/k", value)).(*pool.Broken)
		if !isBroken || strings.Contains(rec.Err.Error(), "canary") {
			t.Errorf("%s reads as %+v, want it broken and not quoted", value, rec)
		}
	}
}

func FuzzDecode(f *testing.F) {
	l := Layout{DefaultPrefix}
	for _, rec := range samples() {
		f.Add(l.Key(rec.Ref()), encoded(f, rec))
	}
	f.Add("/rotator/active/p/k", `{"schema":1,"slot":"s","status":5,"spendUsd":"NaN","labels":{"":""},"addedAt":"9999-12-31T23:59:59.999999999Z"}`)
	f.Fuzz(func(t *testing.T, key, value string) {
		if !strings.HasPrefix(key, l.Prefix) {
			t.Skip()
		}
		rec := l.Decode(keyValue(key, value))
		if got := l.Key(rec.Ref()); got != key {
			t.Fatalf("Decode(%q, %q) is a record at %q", key, value, got)
		}
		if _, isBroken := rec.(*pool.Broken); isBroken || rec.At().TooNew() {
			return
		}
		again := l.Decode(keyValue(key, encoded(t, rec)))
		if encoded(t, again) != encoded(t, rec) {
			t.Fatalf("%q does not settle: %q, then %q", value, encoded(t, rec), encoded(t, again))
		}
	})
}
