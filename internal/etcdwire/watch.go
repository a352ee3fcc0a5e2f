package etcdwire

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"
)

// Codec is gRPC's codec for protobuf, which reads the events of a watch by a shorter way: a rotation comes back in ten of
// them, and each is four small parts. Here all events of a response are in one piece of memory, with their keys and
// values in another.
func Codec() encoding.CodecV2 { return watchCodec{encoding.GetCodecV2(proto.Name)} }

type watchCodec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c watchCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, isWatch := v.(*pb.WatchResponse)
	if !isWatch {
		return c.CodecV2.Unmarshal(data, v)
	}
	return readWatch(data.Materialize(), m)
}

// The fields of etcd's messages.
const (
	watchEvents protowire.Number = 11 // WatchResponse

	eventType, eventKv protowire.Number = 1, 2 // Event

	kvKey, kvCreated, kvModified, kvVersion, kvValue, kvLease protowire.Number = 1, 2, 3, 4, 5, 6 // KeyValue
)

// readWatch is what protobuf would read, and keeps b.
func readWatch(b []byte, m *pb.WatchResponse) error {
	events, rest, ok := split(b)
	if ok {
		m.Events, ok = readEvents(events)
	}
	if !ok {
		return protobuf.Unmarshal(b, m)
	}
	all := m.Events
	err := protobuf.Unmarshal(rest, m) // resets it
	m.Events = all
	return err
}

// split takes the events out of a response.
func split(b []byte) (events [][]byte, rest []byte, ok bool) {
	for len(b) > 0 {
		f, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return nil, nil, false
		}
		size := protowire.ConsumeFieldValue(f, kind, b[tag:])
		if size < 0 {
			return nil, nil, false
		}
		if f == watchEvents && kind == protowire.BytesType {
			event, _ := protowire.ConsumeBytes(b[tag:])
			events = append(events, event)
		} else {
			rest = append(rest, b[:tag+size]...)
		}
		b = b[tag+size:]
	}
	return events, rest, true
}

// readEvents is not ok if there is more in the events than it knows.
func readEvents(wire [][]byte) (events []*mvccpb.Event, ok bool) {
	if len(wire) == 0 {
		return nil, true
	}
	room := make([]struct {
		event mvccpb.Event
		kv    mvccpb.KeyValue
	}, len(wire))
	events = make([]*mvccpb.Event, len(wire))
	for i, b := range wire {
		event, kv := &room[i].event, &room[i].kv
		ok := known(b, func(f protowire.Number, n uint64, bytes []byte) bool {
			switch {
			case f == eventType && bytes == nil:
				event.Type = mvccpb.Event_EventType(n)
			case f == eventKv && bytes != nil && event.Kv == nil:
				event.Kv = kv
				return readKv(bytes, kv)
			default:
				return false
			}
			return true
		})
		if !ok {
			return nil, false
		}
		events[i] = event
	}
	return events, true
}

func readKv(b []byte, kv *mvccpb.KeyValue) bool {
	return known(b, func(f protowire.Number, n uint64, bytes []byte) bool {
		switch {
		case f == kvKey && bytes != nil:
			kv.Key = bytes
		case f == kvValue && bytes != nil:
			kv.Value = bytes
		case bytes != nil:
			return false
		case f == kvCreated:
			kv.CreateRevision = int64(n)
		case f == kvModified:
			kv.ModRevision = int64(n)
		case f == kvVersion:
			kv.Version = int64(n)
		case f == kvLease:
			kv.Lease = int64(n)
		default:
			return false
		}
		return true
	})
}

// known calls fn for each field and reports whether it knew all of them. bytes is nil for a varint only.
func known(b []byte, fn func(f protowire.Number, n uint64, bytes []byte) bool) bool {
	for len(b) > 0 {
		f, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return false
		}
		b = b[size:]
		var n uint64
		var bytes []byte
		switch kind {
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			bytes, size = protowire.ConsumeBytes(b)
			bytes = slices.Clip(bytes)
		default:
			return false
		}
		if size < 0 || !fn(f, n, bytes) {
			return false
		}
		b = b[size:]
	}
	return true
}
