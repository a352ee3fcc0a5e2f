package pool

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// violations collects what is wrong with a request.
type violations []Violation

func (v *violations) add(field, problem string) {
	if problem != "" {
		*v = append(*v, Violation{field, problem})
	}
}

func (v *violations) name(field, value string) { v.add(field, CheckName(value)) }

func (v *violations) optionalName(field, value string) {
	if value != "" {
		v.name(field, value)
	}
}

func (v *violations) notNegative(field string, n int64) {
	if n < 0 {
		v.add(field, "must not be negative")
	}
}

// refusal names all violations at once, nil if there are none.
func (v violations) refusal() error {
	if len(v) == 0 {
		return nil
	}
	return &Refusal{Reason: ReasonInvalidArgument, Message: "the request has invalid fields", Fields: v}
}

// Limits of what callers may store. Records stay small: a rotation's transaction carries half a dozen of them.
const (
	MaxName         = 128  // bytes of a pool, key, slot or proxy name
	MaxSource       = 128  // bytes
	MaxReason       = 1024 // bytes
	MaxRequestID    = 128  // bytes
	MaxDescription  = 1024 // bytes
	MaxSecret       = 4096 // bytes
	MaxLabels       = 32   // labels of one record
	MaxLabelName    = 128  // bytes
	MaxLabelValue   = 256  // bytes
	MaxBindingSlots = 32   // slots of one binding: with its compares it must fit one etcd transaction of 128 operations
	MaxPriority     = 100
	MaxKeysPerAdd   = 1000
)

// CheckName says what is wrong with a pool, key, slot or proxy name; "" if nothing is.
func CheckName(name string) string {
	switch {
	case name == "":
		return "is required"
	case !wellNamed(name):
		return "must match [A-Za-z0-9][A-Za-z0-9._:@-]{0,127}"
	}
	return ""
}

// wellNamed is the rule without a regular expression: it is asked for each name of each call and record.
func wellNamed(name string) bool {
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || strings.IndexByte("._:@-", c) < 0) {
			return false
		}
	}
	return 0 < len(name) && len(name) <= 128
}

// CheckText says what is wrong with a free text of at most max bytes; "" if nothing is.
func CheckText(text string, max int) string {
	switch {
	case len(text) > max:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(text), max)
	case !utf8.ValidString(text):
		return "is not valid UTF-8"
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' }):
		return "contains control characters"
	}
	return ""
}

// CheckRequestID says what is wrong with a request id; "" if nothing is.
func CheckRequestID(id string) string {
	if len(id) > MaxRequestID {
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(id), MaxRequestID)
	}
	if strings.ContainsFunc(id, func(r rune) bool { return r < '!' || r > '~' }) {
		return "must be printable ASCII without spaces"
	}
	return ""
}

// CheckSecret says what is wrong with a secret without showing it; "" if nothing is.
func CheckSecret(s Secret) string {
	v := s.Reveal()
	switch {
	case v == "":
		return "is required"
	case len(v) > MaxSecret:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(v), MaxSecret)
	case strings.TrimSpace(v) != v:
		return "has white space at its start or end"
	case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "contains control characters"
	}
	return ""
}

// CheckLabels says what is wrong with labels; "" if nothing is.
func CheckLabels(labels map[string]string) string {
	if len(labels) > MaxLabels {
		return fmt.Sprintf("has %d labels, at most %d are allowed", len(labels), MaxLabels)
	}
	for name, value := range labels {
		if p := CheckName(name); p != "" {
			return fmt.Sprintf("label name %.140q %s", name, p)
		}
		if p := CheckText(value, MaxLabelValue); p != "" {
			return fmt.Sprintf("label %q %s", name, p)
		}
	}
	return ""
}

// CheckStatus says what is wrong with the status a key is added with; "" if nothing is.
func CheckStatus(s Status, until time.Time) string {
	switch s {
	case StatusRateLimited, StatusError:
		if until.IsZero() {
			return "needs a time at which it ends"
		}
	case StatusHealthy, StatusExhausted, StatusDisabled:
		if !until.IsZero() {
			return "does not end by itself, so it must not have a time at which it ends"
		}
	default:
		return "is unknown"
	}
	return ""
}

// Printable is text without what CheckText refuses: what is no UTF-8, and control characters.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// Clip bounds a text to max bytes without cutting a character in two.
func Clip(text string, max int) string {
	if len(text) <= max {
		return text
	}
	for max > 0 && !utf8.RuneStart(text[max]) {
		max--
	}
	return text[:max]
}
