package etcdwire

import "google.golang.org/protobuf/encoding/protowire"

// field is one of a message. n is that of a varint, and bytes those of bytes; other types are not read.
type field struct {
	number protowire.Number
	kind   protowire.Type
	n      uint64
	bytes  []byte
	whole  []byte // with its tag
}

func (f *field) is(number protowire.Number, kind protowire.Type) bool {
	return f.number == number && f.kind == kind
}

// fields calls fn for each field of a message, which it puts into f. What that holds is a part of b. (A field as fn's
// argument would be copied or allocated.)
func fields(b []byte, f *field, fn func() error) error {
	for len(b) > 0 {
		var tag, size int
		if f.number, f.kind, tag = protowire.ConsumeTag(b); tag < 0 {
			return protowire.ParseError(tag)
		}
		switch f.kind {
		case protowire.VarintType:
			f.n, size = protowire.ConsumeVarint(b[tag:])
		case protowire.BytesType:
			f.bytes, size = protowire.ConsumeBytes(b[tag:])
		default:
			size = protowire.ConsumeFieldValue(f.number, f.kind, b[tag:])
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		f.whole, b = b[:tag+size], b[tag+size:]
		if err := fn(); err != nil {
			return err
		}
	}
	return nil
}
