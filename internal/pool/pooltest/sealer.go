package pooltest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/rotatord/rotatord/internal/pool"
)

// FakeSealer seals nothing: the secret can be read by anybody. Keyset stands for the keyset; what another one sealed does
// not open.
type FakeSealer struct{ Keyset string }

var _ pool.Sealer = FakeSealer{}

func (s FakeSealer) mark(name, key string) string {
	return "NOT-SEALED|" + s.Keyset + "|" + name + "|" + key + "|"
}

// Seal implements pool.Sealer.
func (s FakeSealer) Seal(name, key string, secret pool.Secret) (pool.Sealed, error) {
	text := s.mark(name, key) + base64.StdEncoding.EncodeToString([]byte(secret.Reveal()))
	return pool.Sealed{Ciphertext: []byte(text), Fingerprint: s.Fingerprint(secret), Preview: secret.Preview()}, nil
}

// Open implements pool.Sealer.
func (s FakeSealer) Open(name, key string, sealed pool.Sealed) (pool.Secret, error) {
	text, ours := strings.CutPrefix(string(sealed.Ciphertext), s.mark(name, key))
	if !ours {
		return pool.Secret{}, pool.ErrSecretUnreadable
	}
	clear, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return pool.Secret{}, pool.ErrSecretUnreadable
	}
	return pool.NewSecret(string(clear)), nil
}

// Fingerprint implements pool.Sealer.
func (s FakeSealer) Fingerprint(secret pool.Secret) string {
	sum := sha256.Sum256([]byte("fake|" + secret.Reveal()))
	return hex.EncodeToString(sum[:16])
}
