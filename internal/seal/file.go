package seal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/key"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf"
	"github.com/tink-crypto/tink-go/v2/prf/hmacprf"
)

// Sentinels of Load and Create; the texts they come in say what to do.
var (
	// ErrMissing: there is no file. Not returned for one that cannot be read.
	ErrMissing = errors.New("keyset file does not exist")
	// ErrExists: Create found a file, whatever is in it.
	ErrExists = errors.New("keyset file exists already and is never overwritten")
	// ErrExposed: others than the owner and the owner's group can get at the file, or the group can write it.
	ErrExposed = errors.New("keyset file is exposed")
	// ErrInvalid: the file is not what Create writes.
	ErrInvalid = errors.New("keyset file is invalid")
)

const maxFileSize = 1 << 20

// document is the file: two cleartext Tink keysets in Tink's JSON.
type document struct {
	AEAD json.RawMessage `json:"aead"`
	PRF  json.RawMessage `json:"prf"`
}

// Load reads a keyset file. It refuses one that everybody can access or the group can write (ErrExposed); reading by
// the group is allowed, and so are symbolic links, because that is how Kubernetes mounts a Secret for a process that is
// not root.
func Load(path string) (*Keyset, error) {
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	k, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	return k, nil
}

// Create makes a new keyset and writes it to a file that must not exist (ErrExists), with mode 0600, in a directory
// that is created if needed. Killed at any moment it leaves the complete file or none, and of several that run at once
// exactly one succeeds. What a crash can leave is a hidden file beside it, .NAME.*, with a key that may be in use: it is
// private like the keyset and may be deleted.
func Create(path string) (*Keyset, error) {
	b, err := generate()
	if err != nil {
		return nil, err
	}
	if err := writeNew(path, b); err != nil {
		return nil, fmt.Errorf("creating keyset file %s: %w", path, err)
	}
	return Load(path)
}

// LoadOrCreate is Load, or Create if there is no file. It must not be used beside data that was sealed before: a file
// that was lost would be replaced by one that opens nothing.
func LoadOrCreate(path string) (k *Keyset, created bool, err error) {
	k, err = Load(path)
	if !errors.Is(err, ErrMissing) {
		return k, false, err
	}
	k, err = Create(path)
	if !errors.Is(err, ErrExists) {
		return k, err == nil, err
	}
	// Somebody else was faster, and may not have come to this yet: without it, a power failure could take the file from
	// under what we seal with it.
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, false, fmt.Errorf("keyset file %s: %w", path, err)
	}
	k, err = Load(path)
	return k, false, err
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s: copy it from the first replica (every replica of a cluster needs the same file), "+
			"or let a rotatord that is started with the embedded etcd create it", ErrMissing, path)
	}
	if err != nil {
		return nil, fmt.Errorf("keyset file: %w", err)
	}
	defer f.Close()
	if err := checkFile(f); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize))
	if err != nil {
		return nil, fmt.Errorf("keyset file: %w", err)
	}
	return b, nil
}

func checkFile(f *os.File) error {
	const forbidden = 0o027
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("keyset file: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a regular file", ErrInvalid, f.Name())
	}
	if perm := fi.Mode().Perm(); perm&forbidden != 0 {
		return fmt.Errorf("%w: %s has mode %04o, so that others can get at it: chmod 600 %s "+
			"(for a Secret in Kubernetes: defaultMode: 0400)", ErrExposed, f.Name(), perm, f.Name())
	}
	return nil
}

// parse leaves out the texts of the JSON and Tink errors: parsers like to quote what they do not understand, and that
// would be keys.
func parse(b []byte) (*Keyset, error) {
	var doc document
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if d.Decode(&doc) != nil || d.Decode(&struct{}{}) != io.EOF {
		return nil, errors.New(`it is not one JSON object with the fields "aead" and "prf"`)
	}
	a, err := handle("aead", doc.AEAD)
	if err != nil {
		return nil, err
	}
	p, err := handle("prf", doc.PRF)
	if err != nil {
		return nil, err
	}
	if err := check(a, p); err != nil {
		return nil, err
	}
	return newKeyset(a, p)
}

func handle(name string, b []byte) (*keyset.Handle, error) {
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(b)))
	if err != nil {
		return nil, errNotTink(name)
	}
	return h, nil
}

func errNotTink(name string) error {
	return fmt.Errorf("field %q is not a cleartext Tink keyset in JSON", name)
}

// check refuses what works in Tink but is not what the package promises.
func check(a, p *keyset.Handle) error {
	encrypt, err := aesgcm.NewParameters(aesgcm.ParametersOpts{
		KeySizeInBytes: 32, IVSizeInBytes: 12, TagSizeInBytes: 16, Variant: aesgcm.VariantTink,
	})
	if err != nil {
		return err
	}
	hash, err := hmacprf.NewParameters(32, hmacprf.SHA256)
	if err != nil {
		return err
	}
	switch {
	case !all(a, encrypt):
		return errors.New("the aead keyset has a key that is not AES-256-GCM with Tink's prefix")
	case p.Len() != 1:
		return fmt.Errorf("the prf keyset has %d keys instead of one; it cannot be rotated, because stored "+
			"fingerprints would no longer match", p.Len())
	case !all(p, hash):
		return errors.New("the key of the prf keyset is not HMAC-SHA256 with 32 bytes")
	}
	return nil
}

func all(h *keyset.Handle, want key.Parameters) bool {
	for _, e := range entries(h) {
		if e.KeyStatus() == keyset.Enabled && !e.Key().Parameters().Equal(want) {
			return false
		}
	}
	return true
}

func entries(h *keyset.Handle) []*keyset.Entry {
	list := make([]*keyset.Entry, 0, h.Len())
	for i := range h.Len() {
		if e, err := h.Entry(i); err == nil {
			list = append(list, e)
		}
	}
	return list
}

func generate() ([]byte, error) {
	a, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("making an AEAD key: %w", err)
	}
	p, err := keyset.NewHandle(prf.HMACSHA256PRFKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("making a PRF key: %w", err)
	}
	return encode(a, p)
}

func encode(a, p *keyset.Handle) ([]byte, error) {
	var ab, pb bytes.Buffer
	err := errors.Join(
		insecurecleartextkeyset.Write(a, keyset.NewJSONWriter(&ab)),
		insecurecleartextkeyset.Write(p, keyset.NewJSONWriter(&pb)))
	if err != nil {
		return nil, errors.New("keys cannot be written as JSON") // Tink's text is left out, see parse
	}
	b, err := json.MarshalIndent(document{AEAD: ab.Bytes(), PRF: pb.Bytes()}, "", "  ")
	return append(b, '\n'), err
}

func writeNew(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := writeTemp(dir, "."+filepath.Base(path)+".*", b)
	if temp != "" {
		defer os.Remove(temp)
	}
	if err != nil {
		return err
	}
	// A crash before this line leaves no keyset, one after it a complete one. Unlike a rename, a link replaces nothing.
	if err := os.Link(temp, path); errors.Is(err, fs.ErrExist) {
		return ErrExists
	} else if err != nil {
		return err
	}
	// Not the directories above: if they are lost, so is the data beside the file.
	return syncDir(dir)
}

// writeTemp names the file also with an error, if there is one to remove.
func writeTemp(dir, pattern string, b []byte) (string, error) {
	f, err := os.CreateTemp(dir, pattern) // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	return f.Name(), errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
