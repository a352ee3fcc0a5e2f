// Package mongoexport reads what mongoexport wrote for the collections of the gateway rotatord comes from: keys, backup
// keys and bindings, in the layouts of both of its providers.
//
// It promises that nothing is dropped in silence: a document is either in Docs or has a Problem that says Refused, and
// every field that does not come along is counted, in Unknown or in NotKept. It promises that no message holds a secret
// or any other value of a field but the document's id.
//
// It does not promise that documents agree with each other: duplicates and orphans are for the reader of the result.
// It keeps the whole input in memory.
package mongoexport

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// File is the content of one exported collection.
type File[T any] struct {
	Docs []T
	// Problems are in the order of the lines.
	Problems []Problem
	// Unknown counts the documents that have a field we do not know, by name.
	Unknown []FieldCount
	// NotKept counts the documents that have a field we know and have no place for, by name.
	NotKept []FieldCount
}

// Documents returns how many documents were seen, good or bad.
func (f File[T]) Documents() int {
	n := len(f.Docs)
	for _, p := range f.Problems {
		if p.Refused {
			n++
		}
	}
	return n
}

// Problem is something a person should look at.
type Problem struct {
	// Line is where the document starts, from 1.
	Line int
	// ID is the document's id, if it could be read.
	ID string
	// Message never holds a secret.
	Message string
	// Refused says that the document is not in Docs.
	Refused bool
}

// FieldCount is a field's name and the number of documents that have it.
type FieldCount struct {
	Field string `json:"field"`
	Count int    `json:"count"`
}

// Key is a document of openhands_keys or troll_keys.
type Key struct {
	Line   int
	ID     string
	Secret Secret
	// Status as exported; empty if there was none.
	Status string
	// CooldownUntil, CreatedAt are zero if there was none.
	CooldownUntil time.Time
	CreatedAt     time.Time
	// ReplacedKey is the id of the key this one took over from.
	ReplacedKey string
	// TotalSpend is in dollars; nil if there was none.
	TotalSpend *float64
}

// Backup is a document of openhands_backup_keys or backup_keys.
type Backup struct {
	Line      int
	ID        string
	Secret    Secret
	Used      bool
	Activated bool
	CreatedAt time.Time
	// UsedFor is the id of the key it replaced.
	UsedFor string
}

// Layout tells the two origins of bindings apart.
type Layout string

// The layouts, named by the field that refers to the key.
const (
	LayoutOpenHands Layout = "openhandsKeyId"
	LayoutFactory   Layout = "factoryKeyId"
)

// Binding is a document of openhands_bindings or proxy_key_bindings.
type Binding struct {
	Line    int
	ID      string
	Layout  Layout
	ProxyID string
	KeyID   string
	// Priority is 1 to MaxPriority.
	Priority int
	Active   bool
}

// MaxPriority is the largest priority rotatord knows.
const MaxPriority = 100

// ParseKeys reads an export of openhands_keys or troll_keys.
func ParseKeys(data []byte) File[Key] {
	return parse(data, readKey,
		[]string{"_id", "apiKey", "status", "cooldownUntil", "createdAt", "replacedKey", "totalSpend"},
		[]string{"tokensUsed", "requestsCount", "lastError", "lastSpendCheck", "lastUsedAt"})
}

// ParseBackups reads an export of openhands_backup_keys or backup_keys.
func ParseBackups(data []byte) File[Backup] {
	return parse(data, readBackup,
		[]string{"_id", "apiKey", "isUsed", "activated", "createdAt", "usedFor"},
		[]string{"usedAt"})
}

// ParseBindings reads an export of openhands_bindings or proxy_key_bindings.
func ParseBindings(data []byte) File[Binding] {
	return parse(data, readBinding,
		[]string{"_id", "proxyId", string(LayoutOpenHands), string(LayoutFactory), "priority", "isActive"},
		[]string{"createdAt", "updatedAt"})
}

func readKey(d *document) Key {
	return Key{
		Line:          d.line,
		ID:            d.identity(),
		Secret:        d.secret("apiKey"),
		Status:        d.optionalText("status"),
		CooldownUntil: d.date("cooldownUntil"),
		CreatedAt:     d.date("createdAt"),
		ReplacedKey:   d.optionalText("replacedKey"),
		TotalSpend:    d.amount("totalSpend"),
	}
}

func readBackup(d *document) Backup {
	return Backup{
		Line:      d.line,
		ID:        d.identity(),
		Secret:    d.secret("apiKey"),
		Used:      d.flag("isUsed"),
		Activated: d.optionalFlag("activated"),
		CreatedAt: d.date("createdAt"),
		UsedFor:   d.optionalText("usedFor"),
	}
}

func readBinding(d *document) Binding {
	layout, key := d.keyReference()
	return Binding{
		Line:     d.line,
		ID:       d.identity(),
		Layout:   layout,
		ProxyID:  d.text("proxyId"),
		KeyID:    key,
		Priority: d.priority("priority"),
		Active:   d.flag("isActive"),
	}
}

// parse reads every document with read and sorts out those that read refused.
func parse[T any](data []byte, read func(*document) T, kept, notKept []string) File[T] {
	var f File[T]
	unknown, dropped := map[string]int{}, map[string]int{}
	for _, r := range split(data) {
		d, ok := open(r)
		if ok {
			value := read(d)
			d.countFields(kept, notKept, unknown, dropped)
			if !d.refused() {
				f.Docs = append(f.Docs, value)
			}
		}
		f.Problems = append(f.Problems, d.problems()...)
	}
	f.Unknown, f.NotKept = counts(unknown), counts(dropped)
	return f
}

func counts(m map[string]int) []FieldCount {
	var out []FieldCount
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, FieldCount{Field: name, Count: m[name]})
	}
	return out
}

// Secret is an apiKey. It cannot be printed, logged or marshalled by accident: only Reveal gives it away.
type Secret struct{ value string }

// NewSecret wraps an apiKey.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the apiKey in the clear.
func (s Secret) Reveal() string { return s.value }

// Format implements fmt.Formatter, so that no verb reaches the field.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

// MarshalJSON implements json.Marshaler without the apiKey.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal("[secret]") }
