package mongoexport

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	at2026      = time.Date(2026, 1, 25, 10, 0, 0, 0, time.UTC)
	sameSecrets = cmp.Comparer(func(a, b Secret) bool { return a.Reveal() == b.Reveal() })
)

func dollars(v float64) *float64 { return &v }

func TestParseKeys(t *testing.T) {
	tests := []struct {
		name, in string
		want     File[Key]
	}{
		{name: "nothing", in: " \n\n"},
		{
			name: "every field in plain JSON",
			in: `{"_id":"k1","apiKey":"s1","status":"rate_limited","tokensUsed":1,"requestsCount":2,"lastError":"x",` +
				`"cooldownUntil":{"$date":"2026-01-25T10:00:00.000Z"},"createdAt":{"$date":"2026-01-25T10:00:00.000Z"},` +
				`"replacedKey":"k0","totalSpend":9.5,"lastSpendCheck":{"$date":"2026-01-25T10:00:00Z"},"lastUsedAt":null}`,
			want: File[Key]{
				Docs: []Key{{Line: 1, ID: "k1", Secret: NewSecret("s1"), Status: "rate_limited", CooldownUntil: at2026,
					CreatedAt: at2026, ReplacedKey: "k0", TotalSpend: dollars(9.5)}},
				NotKept: []FieldCount{{"lastError", 1}, {"lastSpendCheck", 1}, {"lastUsedAt", 1}, {"requestsCount", 1}, {"tokensUsed", 1}},
			},
		},
		{
			name: "canonical extended JSON",
			in: `{"_id":{"$oid":"65b0"},"apiKey":"s1","createdAt":{"$date":{"$numberLong":"1769335200000"}},` +
				`"totalSpend":{"$numberDouble":"0.25"}}`,
			want: File[Key]{Docs: []Key{{Line: 1, ID: "65b0", Secret: NewSecret("s1"), CreatedAt: at2026, TotalSpend: dollars(0.25)}}},
		},
		{
			name: "other spellings of numbers and dates",
			in: `{"_id":"a","apiKey":"s1","createdAt":{"$date":1769335200000},"totalSpend":{"$numberInt":"7"}}` + "\r\n" +
				`{"_id":"b","apiKey":"s2","createdAt":{"$date":"2026-01-25T12:00:00.000+0200"},"totalSpend":{"$numberLong":"8"}}`,
			want: File[Key]{Docs: []Key{
				{Line: 1, ID: "a", Secret: NewSecret("s1"), CreatedAt: at2026, TotalSpend: dollars(7)},
				{Line: 2, ID: "b", Secret: NewSecret("s2"), CreatedAt: at2026, TotalSpend: dollars(8)},
			}},
		},
		{
			name: "an array, with the lines of its documents",
			in:   "\ufeff[\n{\"_id\":\"a\",\"apiKey\":\"s1\"},\n\n{\"_id\":\"b\",\n\"apiKey\":\"s2\"}]\n",
			want: File[Key]{Docs: []Key{{Line: 2, ID: "a", Secret: NewSecret("s1")}, {Line: 4, ID: "b", Secret: NewSecret("s2")}}},
		},
		{
			name: "pretty-printed documents",
			in:   "{\n  \"_id\": \"a\",\n  \"apiKey\": \"s1\"\n}\n{\n  \"_id\": \"b\",\n  \"apiKey\": \"s2\"\n}\n",
			want: File[Key]{Docs: []Key{{Line: 1, ID: "a", Secret: NewSecret("s1")}, {Line: 5, ID: "b", Secret: NewSecret("s2")}}},
		},
		{
			name: "a broken line hides no other",
			in:   "{\"_id\":\"a\",\"apiKey\":\"s1\"}\n\n{\"_id\":\"b\",\"apiKey\":\"s2\n{\"_id\":\"c\",\"apiKey\":\"s3\"}",
			want: File[Key]{
				Docs:     []Key{{Line: 1, ID: "a", Secret: NewSecret("s1")}, {Line: 4, ID: "c", Secret: NewSecret("s3")}},
				Problems: []Problem{{Line: 3, Message: "not a JSON document", Refused: true}},
			},
		},
		{
			name: "an array that breaks off",
			in:   "[{\"_id\":\"a\",\"apiKey\":\"s1\"},\n{\"_id\":\"b\",",
			want: File[Key]{
				Docs:     []Key{{Line: 1, ID: "a", Secret: NewSecret("s1")}},
				Problems: []Problem{{Line: 2, Message: "not valid JSON from line 2 on; nothing after it was read", Refused: true}},
			},
		},
		{
			name: "a bracket too many between documents",
			in:   "{\n\"_id\":\"a\",\"apiKey\":\"s1\"\n}\n}\n{\"_id\":\"b\",\"apiKey\":\"s2\"}",
			want: File[Key]{
				Docs:     []Key{{Line: 1, ID: "a", Secret: NewSecret("s1")}},
				Problems: []Problem{{Line: 4, Message: "not valid JSON from line 4 on; nothing after it was read", Refused: true}},
			},
		},
		{
			name: "text after an array",
			in:   "[]\n{\"_id\":\"b\"}",
			want: File[Key]{Problems: []Problem{{Line: 2, Message: "there is text after the array's end; it was not read", Refused: true}}},
		},
		{
			name: "what is missing is named, all of it",
			in:   `{"status":3}`,
			want: File[Key]{Problems: []Problem{{Line: 1, Message: "_id is missing; apiKey is missing", Refused: true}}},
		},
		{
			name: "an id that is the secret",
			in:   `{"_id":"sk-1","apiKey":"sk-1"}`,
			want: File[Key]{Problems: []Problem{{Line: 1, Message: "_id is the secret itself; give the key another id", Refused: true}}},
		},
		{
			name: "a secret that is not UTF-8",
			in:   "{\"_id\":\"a\",\"apiKey\":\"s\xff\"}",
			want: File[Key]{Problems: []Problem{{Line: 1, ID: "a", Message: "apiKey is not valid UTF-8", Refused: true}}},
		},
		{
			name: "what can be left out is left out and told",
			in:   `{"_id":"a","apiKey":"s1","status":1,"cooldownUntil":"soon","totalSpend":{"$numberDouble":"NaN"},"createdAt":{"$date":{"$numberLong":"9e99"}}}`,
			want: File[Key]{
				Docs: []Key{{Line: 1, ID: "a", Secret: NewSecret("s1")}},
				Problems: []Problem{
					{Line: 1, ID: "a", Message: "status is not a string; left out"},
					{Line: 1, ID: "a", Message: "cooldownUntil is not a date; left out"},
					{Line: 1, ID: "a", Message: "createdAt is not a date; left out"},
					{Line: 1, ID: "a", Message: "totalSpend is not an amount; left out"},
				},
			},
		},
		{
			name: "unknown fields by name and count",
			in:   "{\"_id\":\"a\",\"apiKey\":\"s1\",\"zone\":1,\"color\":2}\n{\"_id\":\"b\",\"apiKey\":\"s2\",\"zone\":1}",
			want: File[Key]{
				Docs:    []Key{{Line: 1, ID: "a", Secret: NewSecret("s1")}, {Line: 2, ID: "b", Secret: NewSecret("s2")}},
				Unknown: []FieldCount{{"color", 1}, {"zone", 2}},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ParseKeys([]byte(tt.in)), sameSecrets); diff != "" {
				t.Errorf("ParseKeys(%q): -want +got\n%s", tt.in, diff)
			}
		})
	}
}

func TestParseBackups(t *testing.T) {
	in := `{"_id":"b1","apiKey":"s1","isUsed":true,"activated":true,"createdAt":{"$date":"2026-01-25T10:00:00.000Z"},"usedAt":{"$date":"2026-01-25T10:00:00.000Z"},"usedFor":"k1"}
{"_id":"b2","apiKey":"s2","isUsed":false}
{"_id":"b3","apiKey":"s3","activated":"no"}
{"_id":"b4","apiKey":"s4","isUsed":"no"}`
	want := File[Backup]{
		Docs: []Backup{
			{Line: 1, ID: "b1", Secret: NewSecret("s1"), Used: true, Activated: true, CreatedAt: at2026, UsedFor: "k1"},
			{Line: 2, ID: "b2", Secret: NewSecret("s2")},
		},
		Problems: []Problem{
			{Line: 3, ID: "b3", Message: "isUsed is missing", Refused: true},
			{Line: 4, ID: "b4", Message: "isUsed is neither true nor false", Refused: true},
		},
		NotKept: []FieldCount{{"usedAt", 1}},
	}
	if diff := cmp.Diff(want, ParseBackups([]byte(in)), sameSecrets); diff != "" {
		t.Errorf("ParseBackups: -want +got\n%s", diff)
	}
}

func TestParseBindings(t *testing.T) {
	in := `{"_id":{"$oid":"65b000000000000000000001"},"proxyId":"p1","openhandsKeyId":"k1","priority":{"$numberInt":"2"},"isActive":true,"createdAt":{"$date":"2026-01-25T10:00:00.000Z"},"updatedAt":null}
{"_id":{"$oid":"65b000000000000000000002"},"proxyId":"p1","factoryKeyId":"k2","isActive":false}
{"_id":"3","proxyId":"p1","isActive":true,"priority":1}
{"_id":"4","proxyId":"p1","openhandsKeyId":"a","factoryKeyId":"b","isActive":true,"priority":1}
{"_id":"5","proxyId":"p1","factoryKeyId":"b","isActive":true,"priority":0}
{"_id":"6","proxyId":"p1","factoryKeyId":"b","isActive":true,"priority":1.5}`
	want := File[Binding]{
		Docs: []Binding{
			{Line: 1, ID: "65b000000000000000000001", Layout: LayoutOpenHands, ProxyID: "p1", KeyID: "k1", Priority: 2, Active: true},
			{Line: 2, ID: "65b000000000000000000002", Layout: LayoutFactory, ProxyID: "p1", KeyID: "k2", Priority: 1},
		},
		Problems: []Problem{
			{Line: 2, ID: "65b000000000000000000002", Message: "priority is missing; taken as 1"},
			{Line: 3, ID: "3", Message: "neither openhandsKeyId nor factoryKeyId is given", Refused: true},
			{Line: 4, ID: "4", Message: "both openhandsKeyId and factoryKeyId are given", Refused: true},
			{Line: 5, ID: "5", Message: "priority is not a whole number from 1 to 100", Refused: true},
			{Line: 6, ID: "6", Message: "priority is not a whole number from 1 to 100", Refused: true},
		},
		NotKept: []FieldCount{{"createdAt", 1}, {"updatedAt", 1}},
	}
	if diff := cmp.Diff(want, ParseBindings([]byte(in))); diff != "" {
		t.Errorf("ParseBindings: -want +got\n%s", diff)
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	key := Key{Secret: NewSecret("canary")}
	text, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprint(key), fmt.Sprintf("%+v %#v %x %q", key, key, key, key.Secret), string(text)} {
		if strings.Contains(shown, "canary") || strings.Contains(shown, fmt.Sprintf("%x", "canary")) {
			t.Errorf("the secret shows: %s", shown)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"_id":"k1","apiKey":"sk-canary","status":"healthy","createdAt":{"$date":"2026-01-25T10:00:00.000Z"}}`,
		`[{"_id":{"$oid":"65b0"},"apiKey":"sk-canary","isUsed":true,"totalSpend":{"$numberDouble":"1"}}]`,
		"{\n\"_id\":\"a\",\"proxyId\":\"p\",\"factoryKeyId\":\"k\",\"priority\":1,\"isActive\":true}",
		"[{},\n{\"_id\":", "[] x", "{\"_id\":\"a\xff\",\"apiKey\":null}", "\ufeff[1,null,\"a\"]",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := 1 + strings.Count(string(data), "\n")
		keys, backups, bindings := ParseKeys(data), ParseBackups(data), ParseBindings(data)
		if keys.Documents() != backups.Documents() || keys.Documents() != bindings.Documents() {
			t.Errorf("documents: %d as keys, %d as backups, %d as bindings", keys.Documents(), backups.Documents(), bindings.Documents())
		}
		for _, key := range keys.Docs {
			if key.ID == "" || key.Secret.Reveal() == "" || key.ID == key.Secret.Reveal() || key.Line < 1 || key.Line > lines {
				t.Errorf("a key that should have been refused: line %d of %d, id %q", key.Line, lines, key.ID)
			}
		}
		for _, binding := range bindings.Docs {
			if binding.ProxyID == "" || binding.KeyID == "" || binding.Priority < 1 || binding.Priority > MaxPriority {
				t.Errorf("a binding that should have been refused: %+v", binding)
			}
		}
		for _, p := range append(keys.Problems, backups.Problems...) {
			if p.Line < 1 || p.Line > lines || p.Message == "" || strings.Contains(p.Message, "canary") {
				t.Errorf("problem at line %d of %d: %q", p.Line, lines, p.Message)
			}
		}
	})
}
