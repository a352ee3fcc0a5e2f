package pool

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
)

const redacted = "[secret]"

// Secret is an upstream credential in the clear. It has no way to be printed, logged or marshalled by accident:
// only Reveal gives it away, so every place that does is found by that name.
type Secret struct{ value string }

// NewSecret wraps a credential.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the credential in the clear.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether there is no credential.
func (s Secret) IsZero() bool { return s.value == "" }

// Equal compares in constant time.
func (s Secret) Equal(other Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.value), []byte(other.value)) == 1
}

// Preview shows enough of the credential to tell it from others: its first four and last four characters, and
// nothing of one that is too short to hide the rest.
func (s Secret) Preview() string {
	const shown, hidden = 4, 8
	if len(s.value) < 2*shown+hidden {
		return "..."
	}
	head, tail := s.value[:shown], s.value[len(s.value)-shown:]
	return strings.ToValidUTF8(head, "?") + "..." + strings.ToValidUTF8(tail, "?")
}

// String implements fmt.Stringer without the credential.
func (s Secret) String() string { return redacted }

// GoString implements fmt.GoStringer without the credential.
func (s Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb reaches the field.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer without the credential.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON implements json.Marshaler without the credential.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// Sealed is a secret that only a holder of the keyset can open, with what may be shown of it.
type Sealed struct {
	Ciphertext  []byte
	Fingerprint string // keyed hash, 32 hexadecimal digits, equal for equal secrets
	Preview     string
}

// IsZero reports whether nothing is sealed, as after a purge.
func (s Sealed) IsZero() bool { return len(s.Ciphertext) == 0 }

// Sealer seals and opens secrets. The pool and key id are bound to the ciphertext: a record copied to another key does
// not open. Calls do not block and are safe for concurrent use.
type Sealer interface {
	Seal(pool, keyID string, secret Secret) (Sealed, error)
	// Open fails with ErrSecretUnreadable.
	Open(pool, keyID string, sealed Sealed) (Secret, error)
	// Fingerprint is what Seal puts beside the ciphertext.
	Fingerprint(secret Secret) string
}
