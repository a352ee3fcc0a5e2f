// Package seal encrypts secrets at rest.
//
// It promises:
//   - A sealed secret opens only with the keyset that sealed it, and only for the pool and key id it was sealed for:
//     AES-256-GCM, with both names as associated data.
//   - Equal secrets have equal fingerprints wherever the same keyset file is used, and a fingerprint tells nothing to
//     somebody without the keyset: HMAC-SHA256, cut to 128 bits.
//   - The AEAD keyset can be rotated with Tink's means: what older keys sealed still opens while they are enabled.
//   - No error, log or formatting verb shows key material or a secret.
//
// It does not promise that the PRF keyset can be rotated: fingerprints are compared with stored ones, so its key must
// never change, and a file with a second one is refused. It does not protect the keyset file beyond its permissions: the file is in the clear, and who
// reads it and etcd has the secrets; who loses it has lost them. Key material is not wiped from memory.
package seal

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/rotatord/rotatord/internal/pool"
)

// What each use of a key begins with. Changing one makes everything written before unreadable or unequal.
const (
	secretDomain      = "rotatord/secret/v1\x00"
	fingerprintDomain = "rotatord/fingerprint/v1\x00"
	idDomain          = "rotatord/keyset-id/v1\x00"
)

const (
	fingerprintBytes = 16
	idBytes          = 4
)

var _ pool.Sealer = (*Keyset)(nil)

// Keyset implements pool.Sealer with the keys of one file. It does not change and is safe for concurrent use.
type Keyset struct {
	aead tink.AEAD
	prf  *prf.Set
	id   string
	open map[uint32]bool // Tink's ids of the keys that can open
}

// newKeyset takes handles that have been checked.
func newKeyset(a, p *keyset.Handle) (*Keyset, error) {
	encrypt, err := aead.New(a)
	if err != nil {
		return nil, errNotTink("aead")
	}
	hash, err := prf.NewPRFSet(p)
	if err != nil {
		return nil, errNotTink("prf")
	}
	k := &Keyset{aead: encrypt, prf: hash, open: map[uint32]bool{}}
	for _, e := range entries(a) {
		k.open[e.KeyID()] = e.KeyStatus() == keyset.Enabled
	}
	k.id = k.digest(idDomain, public(a), idBytes)
	return k, nil
}

// ID tells keysets apart without giving anything away: 8 hexadecimal digits over both keysets and the state of their
// keys. Replicas that show different ones do not have the same file: if the PRF keyset differs they cannot read each
// other's secrets, if a rotation of the AEAD keyset is on its way they can once the new key is everywhere. It changes
// with such a rotation, so it is for people and not for comparing with a stored one.
func (k *Keyset) ID() string { return k.id }

// Seal implements pool.Sealer.
func (k *Keyset) Seal(poolName, keyID string, secret pool.Secret) (pool.Sealed, error) {
	ct, err := k.aead.Encrypt([]byte(secret.Reveal()), associatedData(poolName, keyID))
	if err != nil {
		// Tink's text is left out; all it can say here is that the secret is too long for AES-GCM.
		return pool.Sealed{}, fmt.Errorf("sealing the secret of key %q in pool %q is not possible", keyID, poolName)
	}
	return pool.Sealed{Ciphertext: ct, Fingerprint: k.Fingerprint(secret), Preview: secret.Preview()}, nil
}

// Open implements pool.Sealer. Every error is a pool.ErrSecretUnreadable that says what is wrong as far as it can be
// known: nothing is sealed, another keyset sealed it, or it was altered or copied from another key.
func (k *Keyset) Open(poolName, keyID string, sealed pool.Sealed) (pool.Secret, error) {
	plain, err := k.aead.Decrypt(sealed.Ciphertext, associatedData(poolName, keyID))
	if err != nil {
		return pool.Secret{}, pool.Refuse(pool.ReasonSecretUnreadable,
			"the sealed secret of key %q in pool %q cannot be opened: %s", keyID, poolName, k.why(sealed.Ciphertext))
	}
	return pool.NewSecret(string(plain)), nil
}

// Fingerprint implements pool.Sealer. It depends on the secret alone.
func (k *Keyset) Fingerprint(secret pool.Secret) string {
	return k.digest(fingerprintDomain, []byte(secret.Reveal()), fingerprintBytes)
}

// digest is the keyed hash of input under a domain. HMAC fails only if more bytes are asked for than it has; an empty
// fingerprint would make all secrets equal, so that is not an error to be passed on.
func (k *Keyset) digest(domain string, input []byte, n uint32) string {
	sum, err := k.prf.ComputePrimaryPRF(append([]byte(domain), input...), n)
	if err != nil {
		panic("seal: HMAC-SHA256 gives fewer bytes than it has")
	}
	return hex.EncodeToString(sum)
}

// why reads the id of the sealing key, which Tink puts before the ciphertext in the clear.
func (k *Keyset) why(ciphertext []byte) string {
	const version, header = 1, 5
	if len(ciphertext) == 0 {
		return "nothing is sealed there (it may have been purged)"
	}
	if len(ciphertext) < header || ciphertext[0] != version {
		return "it is damaged"
	}
	if id := binary.BigEndian.Uint32(ciphertext[1:header]); !k.open[id] {
		return fmt.Sprintf("it was sealed with key %d, which keyset %s does not have; "+
			"every replica needs the keyset file of the one that sealed it", id, k.id)
	}
	return fmt.Sprintf("it was altered, or copied from another key or pool (keyset %s)", k.id)
}

// associatedData is unambiguous for any names: each is preceded by its length.
func associatedData(poolName, keyID string) []byte {
	b := []byte(secretDomain)
	for _, name := range []string{poolName, keyID} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
		b = append(b, name...)
	}
	return b
}

// public is what of a keyset is no secret and changes with it: ids and states of its keys, in order of the ids.
func public(h *keyset.Handle) []byte {
	all := entries(h)
	slices.SortFunc(all, func(x, y *keyset.Entry) int { return cmp.Compare(x.KeyID(), y.KeyID()) })
	var b []byte
	for _, e := range all {
		b = fmt.Appendf(b, "%d %v %t\n", e.KeyID(), e.KeyStatus(), e.IsPrimary())
	}
	return b
}

// String implements fmt.Stringer without the keys.
func (k *Keyset) String() string { return "keyset " + k.id }

// Format implements fmt.Formatter, so that no verb reaches the keys.
func (k *Keyset) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// LogValue implements slog.LogValuer without the keys.
func (k *Keyset) LogValue() slog.Value { return slog.StringValue(k.id) }

// MarshalJSON implements json.Marshaler without the keys.
func (k *Keyset) MarshalJSON() ([]byte, error) { return json.Marshal(k.id) }
