package seal_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/seal"
)

const (
	poolName = "openhands"
	keyID    = "key-01"
	canary   = "sk-test-not-a-real-secret-0001"
)

func newKeyset(t *testing.T) *seal.Keyset {
	t.Helper()
	b, err := seal.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, b)
}

func parse(t *testing.T, b []byte) *seal.Keyset {
	t.Helper()
	k, err := seal.Parse(b)
	if err != nil {
		t.Fatalf("parsing a keyset: %v", err)
	}
	return k
}

func golden(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/keyset.json")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sealed(t *testing.T, k *seal.Keyset, p, id, secret string) pool.Sealed {
	t.Helper()
	s, err := k.Seal(p, id, pool.NewSecret(secret))
	if err != nil {
		t.Fatalf("sealing for %s/%s: %v", p, id, err)
	}
	return s
}

func wantOpens(t *testing.T, k *seal.Keyset, p, id string, s pool.Sealed, want string) {
	t.Helper()
	got, err := k.Open(p, id, s)
	if err != nil {
		t.Fatalf("opening %s/%s: %v", p, id, err)
	}
	if got.Reveal() != want {
		t.Errorf("opening %s/%s gave another secret than was sealed", p, id)
	}
}

func wantUnreadable(t *testing.T, k *seal.Keyset, p, id string, s pool.Sealed, why string) {
	t.Helper()
	got, err := k.Open(p, id, s)
	if !errors.Is(err, pool.ErrSecretUnreadable) {
		t.Fatalf("opening %s/%s = %v, want ErrSecretUnreadable", p, id, err)
	}
	if !got.IsZero() {
		t.Errorf("opening %s/%s gave a secret with its error", p, id)
	}
	if !strings.Contains(err.Error(), why) {
		t.Errorf("error %q does not say %q", err, why)
	}
}

// What is stored must stay readable: this fails when the format, a domain or the associated data changes.
func TestGolden(t *testing.T) {
	k := parse(t, golden(t))
	ct, err := base64.StdEncoding.DecodeString(
		"AUBcq2xhUxhIj0+7OoaCUvCMP3X+RN5akPTGwgkGwiH2s6inaIfLOPLJ1YDlgQqF3g4Kd4aVE/yq4ixZc/pA")
	if err != nil {
		t.Fatal(err)
	}
	wantOpens(t, k, poolName, keyID, pool.Sealed{Ciphertext: ct}, canary)
	got := []string{k.ID(), k.Fingerprint(pool.NewSecret(canary))}
	want := []string{"3eede42c", "83f9d9c8dcc61d0dd0f0809d407612e1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("id and fingerprint (-want +got):\n%s", diff)
	}
}

func TestFingerprintIsHMACSHA256(t *testing.T) {
	var doc struct {
		PRF struct {
			Key []struct{ KeyData struct{ Value []byte } }
		}
	}
	if err := json.Unmarshal(golden(t), &doc); err != nil {
		t.Fatal(err)
	}
	const before = 6 // bytes of protobuf before the 32 bytes of the key
	mac := hmac.New(sha256.New, doc.PRF.Key[0].KeyData.Value[before:])
	mac.Write([]byte("rotatord/fingerprint/v1\x00" + canary))
	want := hex.EncodeToString(mac.Sum(nil)[:16])
	if got := parse(t, golden(t)).Fingerprint(pool.NewSecret(canary)); got != want {
		t.Errorf("fingerprint = %s, want %s", got, want)
	}
}

func TestSealAndOpen(t *testing.T) {
	k := newKeyset(t)
	for name, tt := range map[string]struct{ pool, key, secret string }{
		"usual":      {poolName, keyID, canary},
		"no key id":  {poolName, "", canary},
		"no secret":  {poolName, keyID, ""},
		"any bytes":  {poolName, keyID, "\x00\xff\xfe line\nbreak"},
		"long":       {poolName, keyID, strings.Repeat("x", 1<<16)},
		"same names": {"a", "a", canary},
	} {
		t.Run(name, func(t *testing.T) {
			s := sealed(t, k, tt.pool, tt.key, tt.secret)
			wantOpens(t, k, tt.pool, tt.key, s, tt.secret)
			secret := pool.NewSecret(tt.secret)
			if s.Fingerprint != k.Fingerprint(secret) || s.Preview != secret.Preview() {
				t.Errorf("sealed with fingerprint %s and preview %s, want the secret's", s.Fingerprint, s.Preview)
			}
			if tt.secret != "" && bytes.Contains(s.Ciphertext, []byte(tt.secret)) {
				t.Error("the ciphertext contains the secret")
			}
		})
	}
}

func TestEqualSecretsDifferAtRest(t *testing.T) {
	k := newKeyset(t)
	a, b := sealed(t, k, poolName, keyID, canary), sealed(t, k, poolName, keyID, canary)
	if bytes.Equal(a.Ciphertext, b.Ciphertext) {
		t.Error("sealing twice gave one ciphertext")
	}
}

func TestFingerprint(t *testing.T) {
	b, err := seal.Generate()
	if err != nil {
		t.Fatal(err)
	}
	k, again, other := parse(t, b), parse(t, b), newKeyset(t)
	secret := pool.NewSecret(canary)
	got := k.Fingerprint(secret)
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(got) {
		t.Errorf("fingerprint %q is not 32 lower-case hexadecimal digits", got)
	}
	if again.Fingerprint(secret) != got || sealed(t, k, "other", "other", canary).Fingerprint != got {
		t.Error("equal secrets have different fingerprints")
	}
	if other.Fingerprint(secret) == got || k.Fingerprint(pool.NewSecret(canary+"x")) == got {
		t.Error("another keyset or another secret has the same fingerprint")
	}
}

func TestOpenRefusesWhatWasSealedForAnother(t *testing.T) {
	k := newKeyset(t)
	s := sealed(t, k, "pool", "key", canary)
	for _, names := range [][2]string{
		{"pool", "key2"}, {"pool2", "key"}, {"key", "pool"}, {"poo", "lkey"}, {"poolk", "ey"}, {"", "poolkey"},
		{"pool\x00key", ""}, {"Pool", "key"},
	} {
		wantUnreadable(t, k, names[0], names[1], s, "copied from another key")
	}
}

func TestOpenRefusesEveryAlteration(t *testing.T) {
	k := newKeyset(t)
	s := sealed(t, k, poolName, keyID, canary)
	for i := range s.Ciphertext {
		altered := pool.Sealed{Ciphertext: bytes.Clone(s.Ciphertext)}
		altered.Ciphertext[i] ^= 1
		wantUnreadable(t, k, poolName, keyID, altered, "cannot be opened")
		wantUnreadable(t, k, poolName, keyID, pool.Sealed{Ciphertext: s.Ciphertext[:i]}, "cannot be opened")
	}
	wantUnreadable(t, k, poolName, keyID, pool.Sealed{}, "nothing is sealed")
	wantUnreadable(t, k, poolName, keyID, pool.Sealed{Ciphertext: []byte("x")}, "damaged")
}

func TestOpenRefusesAnotherKeyset(t *testing.T) {
	k, other := newKeyset(t), newKeyset(t)
	wantUnreadable(t, other, poolName, keyID, sealed(t, k, poolName, keyID, canary), "which keyset "+other.ID()+" does not have")
	if k.ID() == other.ID() {
		t.Errorf("two keysets have the id %s", k.ID())
	}
}

// handles are the Tink keysets of a fresh document, to be changed by a test.
func handles(t *testing.T) (a, p *keyset.Manager) {
	t.Helper()
	ah, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	ph, err := keyset.NewHandle(prf.HMACSHA256PRFKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	return keyset.NewManagerFromHandle(ah), keyset.NewManagerFromHandle(ph)
}

func encode(t *testing.T, a, p *keyset.Manager) []byte {
	t.Helper()
	ah, err := a.Handle()
	if err != nil {
		t.Fatal(err)
	}
	ph, err := p.Handle()
	if err != nil {
		t.Fatal(err)
	}
	b, err := seal.Encode(ah, ph)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRotationOfTheAEADKeyset(t *testing.T) {
	a, p := handles(t)
	before := parse(t, encode(t, a, p))
	old := sealed(t, before, poolName, keyID, canary)
	ah, err := a.Handle()
	if err != nil {
		t.Fatal(err)
	}
	oldKey := ah.KeysetInfo().GetPrimaryKeyId()

	newKey, err := a.Add(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	added := parse(t, encode(t, a, p))
	if err := a.SetPrimary(newKey); err != nil {
		t.Fatal(err)
	}
	after := parse(t, encode(t, a, p))

	wantOpens(t, added, poolName, keyID, old, canary)
	wantOpens(t, after, poolName, keyID, old, canary)
	renewed := sealed(t, after, poolName, keyID, canary)
	wantOpens(t, added, poolName, keyID, renewed, canary) // a replica that has the key and not yet its promotion
	wantUnreadable(t, before, poolName, keyID, renewed, fmt.Sprintf("key %d", newKey))
	if old.Fingerprint != renewed.Fingerprint {
		t.Error("rotating the AEAD keyset changed a fingerprint")
	}

	if err := a.Disable(oldKey); err != nil {
		t.Fatal(err)
	}
	disabled := parse(t, encode(t, a, p))
	wantUnreadable(t, disabled, poolName, keyID, old, fmt.Sprintf("key %d", oldKey))
	ids := map[string]bool{before.ID(): true, added.ID(): true, after.ID(): true, disabled.ID(): true}
	if len(ids) != 4 {
		t.Errorf("four states of a keyset have the ids %v", ids)
	}
}

func TestParseRefusesWhatIsNotPromised(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(a, p *keyset.Manager)
		want   string
	}{
		"short AES key":    {func(a, _ *keyset.Manager) { add(t, a, aes128) }, "AES-256-GCM"},
		"other AEAD":       {func(a, _ *keyset.Manager) { add(t, a, chacha) }, "AES-256-GCM"},
		"no prefix":        {func(a, _ *keyset.Manager) { add(t, a, noPrefix) }, "AES-256-GCM"},
		"second PRF key":   {func(_, p *keyset.Manager) { add(t, p, hmac256) }, "cannot be rotated"},
		"PRF of AEAD kind": {func(_, p *keyset.Manager) { replace(t, p, aes128) }, "HMAC-SHA256"},
		"other PRF":        {func(_, p *keyset.Manager) { replace(t, p, hkdf) }, "HMAC-SHA256"},
		"other HMAC":       {func(_, p *keyset.Manager) { replace(t, p, hmac512) }, "HMAC-SHA256"},
	} {
		t.Run(name, func(t *testing.T) {
			a, p := handles(t)
			tt.change(a, p)
			_, err := seal.Parse(encode(t, a, p))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func aes128(m *keyset.Manager) (uint32, error)   { return m.Add(aead.AES128GCMKeyTemplate()) }
func chacha(m *keyset.Manager) (uint32, error)   { return m.Add(aead.ChaCha20Poly1305KeyTemplate()) }
func noPrefix(m *keyset.Manager) (uint32, error) { return m.Add(aead.AES256GCMNoPrefixKeyTemplate()) }
func hmac256(m *keyset.Manager) (uint32, error)  { return m.Add(prf.HMACSHA256PRFKeyTemplate()) }
func hmac512(m *keyset.Manager) (uint32, error)  { return m.Add(prf.HMACSHA512PRFKeyTemplate()) }
func hkdf(m *keyset.Manager) (uint32, error)     { return m.Add(prf.HKDFSHA256PRFKeyTemplate()) }

type adder func(*keyset.Manager) (uint32, error)

func add(t *testing.T, m *keyset.Manager, key adder) {
	t.Helper()
	if _, err := key(m); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, m *keyset.Manager, with adder) {
	t.Helper()
	h, err := m.Handle()
	if err != nil {
		t.Fatal(err)
	}
	id, err := with(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.SetPrimary(id), m.Delete(h.KeysetInfo().GetPrimaryKeyId())); err != nil {
		t.Fatal(err)
	}
}

// tinkOnly is one keyset as Tink's own tools write it.
func tinkOnly(t *testing.T) string {
	t.Helper()
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&b)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestParseRefusesForeignFiles(t *testing.T) {
	good := string(golden(t))
	for name, tt := range map[string]struct{ file, want string }{
		"empty":        {"", "not one JSON object"},
		"null":         {"null", `"aead"`},
		"empty object": {"{}", `"aead"`},
		"a list":       {"[]", "not one JSON object"},
		"one keyset":   {tinkOnly(t), "not one JSON object"},
		"two objects":  {good + good, "not one JSON object"},
		"more fields":  {strings.Replace(good, "{", `{"note": 1,`, 1), "not one JSON object"},
		"no prf":       {`{"aead":` + tinkOnly(t) + `}`, `"prf"`},
		"encrypted":    {`{"aead":{"encryptedKeyset":"AAAA"},"prf":{}}`, `"aead"`},
		"no keys":      {`{"aead":{"key":[]},"prf":{"key":[]}}`, `"aead"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := seal.Parse([]byte(tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that says %s", err, tt.want)
			}
		})
	}
}

// Parsers like to quote what they do not understand. Every way of cutting or breaking the file is tried, and no
// error may quote key material.
func TestErrorsShowNoKeyMaterial(t *testing.T) {
	good := golden(t)
	var material []string
	for _, m := range regexp.MustCompile(`"value": "([^"]+)"`).FindAllSubmatch(good, -1) {
		const shown = 8 // the beginning is the same for all keys, so pieces from everywhere
		for i := 12; i+shown <= len(m[1]); i++ {
			material = append(material, string(m[1][i:i+shown]))
		}
	}
	if len(material) == 0 {
		t.Fatal("the golden file has no keys")
	}
	check := func(b []byte) {
		k, err := seal.Parse(b)
		if err != nil {
			for _, m := range material {
				if strings.Contains(err.Error(), m) {
					t.Fatalf("error %q shows key material", err)
				}
			}
			return
		}
		if k == nil {
			t.Fatal("no keyset and no error")
		}
	}
	for i := range good {
		check(good[:i])
		for _, c := range []byte("x\"{}\x00") {
			b := bytes.Clone(good)
			b[i] = c
			check(b)
		}
	}
}

func TestKeysetDoesNotPrint(t *testing.T) {
	k := parse(t, golden(t))
	want := "keyset " + k.ID()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(verb, k); got != want {
			t.Errorf("%s prints %q, want %q", verb, got, want)
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "k", k)
	if !strings.HasSuffix(log.String(), " k="+k.ID()+"\n") {
		t.Errorf("slog writes %q, want only the id", log.String())
	}
	if b, err := json.Marshal(k); err != nil || string(b) != `"`+k.ID()+`"` {
		t.Errorf("JSON is %s, %v, want only the id", b, err)
	}
}

func TestConcurrentUse(t *testing.T) {
	k := newKeyset(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			id := fmt.Sprint("key-", i)
			for range 50 {
				s, err := k.Seal(poolName, id, pool.NewSecret(canary))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := k.Open(poolName, id, s); err != nil || got.Reveal() != canary {
					t.Errorf("opening %s: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
}
