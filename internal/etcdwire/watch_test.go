package etcdwire

import (
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// watched is a random response of a watch. An odd one has what this service does not ask for.
func watched(r *rand.Rand, odd bool) *pb.WatchResponse {
	kv := func() *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(fmt.Sprint(r.Uint64())), Value: make([]byte, r.IntN(300)), CreateRevision: r.Int64(),
			ModRevision: r.Int64(), Version: r.Int64N(2), Lease: r.Int64N(2) * r.Int64()}
	}
	m := &pb.WatchResponse{Header: &pb.ResponseHeader{Revision: r.Int64()}, WatchId: r.Int64N(3), Fragment: r.IntN(4) == 0}
	if r.IntN(4) == 0 {
		m.Canceled, m.CancelReason, m.CompactRevision = true, "compacted", r.Int64()
	}
	for range r.IntN(20) {
		e := &mvccpb.Event{Kv: kv()}
		if r.IntN(2) == 0 {
			e.Type = mvccpb.Event_DELETE
		}
		if odd && r.IntN(3) == 0 {
			e.PrevKv = kv()
		}
		if odd && r.IntN(10) == 0 {
			e.Kv = nil
		}
		m.Events = append(m.Events, e)
	}
	return m
}

func TestWatchesAreEtcdsMessages(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for i := range 500 {
		want := watched(r, i%2 == 0)
		wire, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		half := len(wire) / 2
		got := &pb.WatchResponse{WatchId: 99, Events: make([]*mvccpb.Event, 1)} // as it may be used again
		if err := Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire[:half]), mem.SliceBuffer(wire[half:])}, got); err != nil {
			t.Fatal(err)
		}
		clear(wire) // it goes back to gRPC
		if !proto.Equal(want, got) {
			t.Fatalf("want %v\nread %v", want, got)
		}
	}
}

// Appending to a key must not write into what comes after it.
func TestEventsKeepApart(t *testing.T) {
	wire, err := proto.Marshal(&pb.WatchResponse{Events: []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v")}}}})
	if err != nil {
		t.Fatal(err)
	}
	m := new(pb.WatchResponse)
	if err := readWatch(wire, m); err != nil {
		t.Fatal(err)
	}
	_ = append(m.Events[0].Kv.Key, "and more"...)
	if v := string(m.Events[0].Kv.Value); v != "v" {
		t.Errorf("the value is %q now", v)
	}
}

// Messages that are no responses of watches are read as ever.
func TestCodecLeavesOthersAlone(t *testing.T) {
	want := &pb.RangeResponse{Count: 3, Kvs: []*mvccpb.KeyValue{{Key: []byte("k")}}}
	data, err := Codec().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := new(pb.RangeResponse)
	if err := Codec().Unmarshal(data, got); err != nil || !proto.Equal(want, got) {
		t.Errorf("read as %v, %v", got, err)
	}
}

func FuzzWatch(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 10))
	for i := range 20 {
		wire, err := proto.Marshal(watched(r, i%2 == 0))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		want, got := new(pb.WatchResponse), new(pb.WatchResponse)
		wantErr, gotErr := proto.Unmarshal(wire, want), readWatch(wire, got)
		if (wantErr == nil) != (gotErr == nil) || wantErr == nil && !proto.Equal(want, got) {
			t.Fatalf("protobuf reads %v, %v; here it is %v, %v", want, wantErr, got, gotErr)
		}
	})
}

func BenchmarkWatch(b *testing.B) {
	wire, err := proto.Marshal(watched(rand.New(rand.NewPCG(1, 1)), false))
	if err != nil {
		b.Fatal(err)
	}
	data := mem.BufferSlice{mem.SliceBuffer(wire)}
	for name, read := range map[string]func(*pb.WatchResponse) error{
		"short":    func(m *pb.WatchResponse) error { return Codec().Unmarshal(data, m) },
		"protobuf": func(m *pb.WatchResponse) error { return proto.Unmarshal(wire, m) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := read(new(pb.WatchResponse)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
