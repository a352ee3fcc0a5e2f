package etcdwire

import (
	"errors"
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

// Name implements encoding.CodecV2. Without one calls say application/grpc, as they do without a codec of ours.
func (watchCodec) Name() string { return "" }

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
	var rest []byte
	var wire [][]byte
	var f field
	err := fields(b, &f, func() error {
		if f.is(watchEvents, protowire.BytesType) {
			wire = append(wire, f.bytes)
		} else {
			rest = append(rest, f.whole...)
		}
		return nil
	})
	var events []*mvccpb.Event
	if err == nil {
		events, err = readEvents(wire)
	}
	if err != nil {
		return protobuf.Unmarshal(b, m)
	}
	err = protobuf.Unmarshal(rest, m) // resets it
	m.Events = events
	return err
}

var errUnknown = errors.New("more than this service asks for")

// readEvents returns an error if there is more in the events than it knows, or they are damaged.
func readEvents(wire [][]byte) ([]*mvccpb.Event, error) {
	if len(wire) == 0 {
		return nil, nil
	}
	room := make([]struct {
		event mvccpb.Event
		kv    mvccpb.KeyValue
	}, len(wire))
	events := make([]*mvccpb.Event, len(wire))
	for i, b := range wire {
		event, kv := &room[i].event, &room[i].kv
		var f field
		err := fields(b, &f, func() error {
			switch {
			case f.is(eventType, protowire.VarintType):
				event.Type = mvccpb.Event_EventType(f.n)
			case f.is(eventKv, protowire.BytesType) && event.Kv == nil:
				event.Kv = kv
				return readKv(f.bytes, kv)
			default:
				return errUnknown
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		events[i] = event
	}
	return events, nil
}

func readKv(b []byte, kv *mvccpb.KeyValue) error {
	var f field
	return fields(b, &f, func() error {
		switch {
		case f.is(kvKey, protowire.BytesType):
			kv.Key = slices.Clip(f.bytes)
		case f.is(kvValue, protowire.BytesType):
			kv.Value = slices.Clip(f.bytes)
		case f.is(kvCreated, protowire.VarintType):
			kv.CreateRevision = int64(f.n)
		case f.is(kvModified, protowire.VarintType):
			kv.ModRevision = int64(f.n)
		case f.is(kvVersion, protowire.VarintType):
			kv.Version = int64(f.n)
		case f.is(kvLease, protowire.VarintType):
			kv.Lease = int64(f.n)
		default:
			return errUnknown
		}
		return nil
	})
}
