package etcdstore

import (
	"encoding/base64"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/rotatord/rotatord/proto/rotator/storage/v1"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// fastDecode reads a value of the form that fastEncode writes, fields in that order, into an empty message. If it
// reports false the message may be half filled and protojson, which empties it first, has to read the value: all
// leniency and all errors are protojson's.
func fastDecode(value []byte, m stored) bool {
	s := scanner{in: value}
	s.expect('{')
	switch m := m.(type) {
	case *storagev1.Slot:
		s.slot(m)
	case *storagev1.Active:
		s.active(m)
	case *storagev1.Backup:
		s.backup(m)
	case *storagev1.Retired:
		s.retired(m)
	case *storagev1.Rotation:
		s.rotation(m)
	case *storagev1.Lock:
		s.lock(m)
	default:
		return false
	}
	s.expect('}')
	return !s.foreign && s.at == len(s.in)
}

// scanner reads fields that are there in the order they are asked for. A field that is out of order, twice there or
// unknown is asked for by nobody, so the end of the object is not where it is expected.
type scanner struct {
	in      []byte
	at      int
	further bool // a field of this object has been read
	foreign bool // not of the form; nothing after this counts
}

func (s *scanner) slot(m *storagev1.Slot) {
	s.int32("schema", &m.Schema)
	scanEnum(s, "state", &m.State, storagev1.SlotState_value)
	s.time("createdAt", &m.CreatedAt)
}

func (s *scanner) active(m *storagev1.Active) {
	s.int32("schema", &m.Schema)
	s.text("slot", &m.Slot)
	scanEnum(s, "status", &m.Status, rotatorv1.KeyStatus_value)
	s.time("statusUntil", &m.StatusUntil)
	s.sealed(&m.Sealed)
	s.labels(&m.Labels)
	s.text("replaces", &m.Replaces)
	s.time("addedAt", &m.AddedAt)
}

func (s *scanner) backup(m *storagev1.Backup) {
	s.int32("schema", &m.Schema)
	s.sealed(&m.Sealed)
	s.labels(&m.Labels)
	s.time("addedAt", &m.AddedAt)
}

func (s *scanner) retired(m *storagev1.Retired) {
	s.int32("schema", &m.Schema)
	scanEnum(s, "phase", &m.Phase, storagev1.RetiredPhase_value)
	s.text("slot", &m.Slot)
	s.int64("generation", &m.Generation)
	s.text("replacedBy", &m.ReplacedBy)
	s.sealed(&m.Sealed)
	s.labels(&m.Labels)
	s.time("addedAt", &m.AddedAt)
	s.time("retiredAt", &m.RetiredAt)
}

func (s *scanner) rotation(m *storagev1.Rotation) {
	s.int32("schema", &m.Schema)
	s.text("id", &m.Id)
	s.text("slot", &m.Slot)
	s.text("newKeyId", &m.NewKeyId)
	scanEnum(s, "trigger", &m.Trigger, rotatorv1.Trigger_value)
	s.text("source", &m.Source)
	s.text("reason", &m.Reason)
	s.text("requestId", &m.RequestId)
	s.text("proxyId", &m.ProxyId)
	s.text("holder", &m.Holder)
	s.time("committedAt", &m.CommittedAt)
}

func (s *scanner) lock(m *storagev1.Lock) {
	s.int32("schema", &m.Schema)
	s.text("holder", &m.Holder)
	s.text("campaign", &m.Campaign)
	s.text("stage", &m.Stage)
	s.time("busyUntil", &m.BusyUntil)
	s.int64("generation", &m.Generation)
}

func (s *scanner) sealed(to **storagev1.Sealed) {
	if !s.field("sealed") {
		return
	}
	m := &storagev1.Sealed{}
	s.expect('{')
	s.further = false
	s.bytes("ciphertext", &m.Ciphertext)
	s.text("fingerprint", &m.Fingerprint)
	s.text("preview", &m.Preview)
	s.expect('}')
	s.further = true
	*to = m
}

// labels leaves none at all, and one that is there twice, to protojson.
func (s *scanner) labels(to *map[string]string) {
	if !s.field("labels") {
		return
	}
	start := s.at
	s.pairs(func(_, _ []byte) {})
	if s.foreign {
		return
	}
	text := s.in[start:s.at]
	if *to = labelSets.get(text); *to != nil {
		return
	}
	m, n := make(map[string]string), 0
	s.at = start
	s.pairs(func(name, value []byte) { m[string(name)] = string(value); n++ })
	if len(m) != n {
		s.foreign = true
		return
	}
	*to = labelSets.add(text, m)
}

// pairs reads an object of strings.
func (s *scanner) pairs(each func(name, value []byte)) {
	s.expect('{')
	for !s.foreign {
		name := s.quoted()
		s.expect(':')
		each(name, s.quoted())
		if s.at >= len(s.in) || s.in[s.at] != ',' {
			break
		}
		s.at++
	}
	s.expect('}')
}

// field reports whether the field with this name comes next, and goes to its value.
func (s *scanner) field(name string) bool {
	rest := s.in[s.at:]
	if s.further {
		if len(rest) == 0 || rest[0] != ',' {
			return false
		}
		rest = rest[1:]
	}
	n := len(name)
	if len(rest) < n+3 || rest[0] != '"' || string(rest[1:n+1]) != name || rest[n+1] != '"' || rest[n+2] != ':' {
		return false
	}
	s.at, s.further = len(s.in)-len(rest)+n+3, true
	return true
}

func (s *scanner) expect(c byte) {
	if s.at >= len(s.in) || s.in[s.at] != c {
		s.foreign = true
		return
	}
	s.at++
}

// quoted reads a string that has the same bytes inside its quotes as it has in memory.
func (s *scanner) quoted() []byte {
	s.expect('"')
	start := s.at
	for s.at < len(s.in) && plain(s.in[s.at]) {
		s.at++
	}
	text := s.in[start:s.at]
	s.expect('"')
	return text
}

func (s *scanner) text(name string, to *string) {
	if s.field(name) {
		*to = string(s.quoted())
	}
}

// bytes leaves a value of no bytes to protojson: it is never written, and nil and empty are not the same.
func (s *scanner) bytes(name string, to *[]byte) {
	if !s.field(name) {
		return
	}
	text := s.quoted()
	data := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(data, text)
	if err != nil || n == 0 {
		s.foreign = true
	}
	*to = data[:n]
}

func scanEnum[E ~int32](s *scanner, name string, to *E, values map[string]int32) {
	if !s.field(name) {
		return
	}
	value, known := values[string(s.quoted())]
	if !known {
		s.foreign = true
	}
	*to = E(value)
}

func (s *scanner) int32(name string, to *int32) {
	if !s.field(name) {
		return
	}
	start := s.at
	for s.at < len(s.in) && (s.in[s.at] == '-' || '0' <= s.in[s.at] && s.in[s.at] <= '9') {
		s.at++
	}
	*to = int32(s.integer(s.in[start:s.at], 32))
}

func (s *scanner) int64(name string, to *int64) {
	if s.field(name) {
		*to = s.integer(s.quoted(), 64)
	}
}

// integer takes the one way strconv prints a number: protojson has its own rules for +1, 01 and -0.
func (s *scanner) integer(digits []byte, size int) int64 {
	n, err := strconv.ParseInt(string(digits), 10, size)
	var room [20]byte
	if err != nil || string(strconv.AppendInt(room[:0], n, 10)) != string(digits) {
		s.foreign = true
	}
	return n
}

func (s *scanner) time(name string, to **timestamppb.Timestamp) {
	if !s.field(name) {
		return
	}
	text := s.quoted()
	var t time.Time
	if !timeLike(text) || t.UnmarshalText(text) != nil || t.Unix() < minSeconds || t.Unix() > maxSeconds {
		s.foreign = true
		return
	}
	*to = &timestamppb.Timestamp{Seconds: t.Unix(), Nanos: int32(t.Nanosecond())}
}

// timeLike keeps away what package time reads too and nobody here writes, such as a comma, one digit for the hour, or
// another zone.
func timeLike(text []byte) bool {
	const whole = len("2006-01-02T15:04:05")
	switch len(text) - whole {
	case len("Z"):
		return text[whole] == 'Z'
	case len(".000Z"), len(".000000Z"), len(".000000000Z"):
		return text[whole] == '.' && text[len(text)-1] == 'Z'
	}
	return false
}
