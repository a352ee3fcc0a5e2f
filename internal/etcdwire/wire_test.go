package etcdwire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// random makes a transaction, and the same as etcd's message, with at most so many in each other.
func random(r *rand.Rand, deep int) (*Txn, *pb.TxnRequest) {
	text := func(most int) []byte {
		b := make([]byte, r.IntN(most))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		return b
	}
	number := func() int64 {
		return []int64{0, 1, 127, 128, 1 << 40, -1, 1<<63 - 1, -1 << 63}[r.IntN(8)]
	}
	get := func(key []byte) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
	}
	t, m := New(r.IntN(10), r.IntN(100)), new(pb.TxnRequest)
	for range r.IntN(30) {
		key := append([]byte(fmt.Sprint(r.Uint64())), text(300)...)
		switch r.IntN(6) {
		case 0:
			c := Compare{Key: key, Created: r.IntN(2) == 0, Revision: number()}
			t.If(c)
			want := &pb.Compare{Key: key, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: c.Revision}}
			if c.Created {
				want.Target, want.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: c.Revision}
			}
			m.Compare = append(m.Compare, want)
		case 1:
			put := &pb.PutRequest{Key: key, Value: text(2000), Lease: number()}
			t.Put(put.Key, put.Value, put.Lease)
			m.Success = append(m.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		case 2:
			t.Delete(key)
			m.Success = append(m.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}})
		case 3:
			t.Get(key)
			m.Success = append(m.Success, get(key))
		case 4:
			t.ElseGet(key)
			m.Failure = append(m.Failure, get(key))
		case 5:
			if deep > 1 {
				other, own := random(r, deep-1)
				t.Else(other)
				m.Failure = append(m.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: own}})
			}
		}
	}
	return t, m
}

// opsOf is what etcd counts against its limit.
func opsOf(m *pb.TxnRequest) (ops int) {
	for _, op := range m.Failure {
		if txn := op.GetRequestTxn(); txn != nil {
			ops = max(ops, opsOf(txn))
		}
	}
	return ops + max(len(m.Compare), len(m.Success), len(m.Failure))
}

func TestRequestsAreEtcdsMessages(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		txns, want := make([]*Txn, 1+r.IntN(4)), new(pb.TxnRequest)
		for i := range txns {
			var own *pb.TxnRequest
			txns[i], own = random(r, 3)
			if most := opsOf(own); txns[i].Ops() != most {
				t.Fatalf("Ops() = %d for %d", txns[i].Ops(), most)
			}
			if len(txns) == 1 {
				want = own
			} else {
				want.Success = append(want.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: own}})
			}
		}
		sent, err := codec{}.Marshal(&Request{txns})
		if err != nil {
			t.Fatal(err)
		}
		got := new(pb.TxnRequest)
		if err := proto.Unmarshal(sent.Materialize(), got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(want, got) {
			t.Fatalf("want %v\nsent %v", want, got)
		}
	}
}

func TestTouched(t *testing.T) {
	var txn Txn
	txn.If(Compare{Key: []byte("a")})
	txn.Put([]byte("a"), nil, 0)
	txn.Delete([]byte("b"))
	txn.Get([]byte("b"))
	txn.ElseGet([]byte("a"))
	var other Txn
	other.Put([]byte("b"), nil, 0)
	txn.Else(&other)
	got := txn.Touched()
	a, b := got[0].Key, got[2].Key
	if diff := cmp.Diff([]Touch{{a, false}, {a, true}, {b, true}, {b, false}, {a, false}, {b, true}}, got); diff != "" || a == b {
		t.Errorf("a is %x, b %x; -want +got:\n%s", a, b, diff)
	}
}

func TestCheck(t *testing.T) {
	var txn Txn
	txn.If(Compare{Key: []byte("a")})
	txn.ElseGet([]byte("a"))
	txn.Put([]byte("a"), make([]byte, 100), 0)
	if err := txn.Check(1, 200); err != nil {
		t.Error(err)
	}
	for want, err := range map[string]error{
		"with 1 operations": txn.Check(0, 200), "bytes, at most 100": txn.Check(1, 100),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to say %q", err, want)
		}
	}
	txn.Delete([]byte("a"))
	if err := txn.Check(10, 1000); err == nil || !strings.Contains(err.Error(), "changes a twice") {
		t.Errorf("a key changed twice: %v", err)
	}
}

// response is a random answer of etcd to a transaction.
func response(r *rand.Rand, nested bool) *pb.TxnResponse {
	m := &pb.TxnResponse{Succeeded: r.IntN(2) == 0}
	if r.IntN(4) > 0 {
		m.Header = &pb.ResponseHeader{ClusterId: r.Uint64(), MemberId: r.Uint64(), Revision: r.Int64(), RaftTerm: r.Uint64()}
	}
	for range r.IntN(6) {
		op := new(pb.ResponseOp)
		switch kind := r.IntN(4); {
		case kind == 0:
			get := &pb.RangeResponse{Header: m.Header, Count: r.Int64N(3)}
			for range get.Count {
				get.Kvs = append(get.Kvs, &mvccpb.KeyValue{Key: []byte(fmt.Sprint(r.Uint64())), Value: bytes.Repeat([]byte("v"), r.IntN(400)), ModRevision: r.Int64()})
			}
			op.Response = &pb.ResponseOp_ResponseRange{ResponseRange: get}
		case kind == 1:
			op.Response = &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: m.Header}}
		case kind == 2:
			op.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: 1}}
		case nested:
			op.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: response(r, false)}
		}
		m.Responses = append(m.Responses, op)
	}
	return m
}

// answerOf is what should be read of an answer.
func answerOf(m *pb.TxnResponse) Response {
	a := Response{Revision: m.GetHeader().GetRevision(), Succeeded: m.Succeeded}
	for _, op := range m.Responses {
		if get := op.GetResponseRange(); get != nil {
			a.Reads = append(a.Reads, get)
		}
		if txn := op.GetResponseTxn(); txn != nil {
			a.Nested = append(a.Nested, answerOf(txn))
		}
	}
	return a
}

func sameAnswers(a, b Response) bool {
	return a.Revision == b.Revision && a.Succeeded == b.Succeeded &&
		slices.EqualFunc(a.Reads, b.Reads, func(x, y *pb.RangeResponse) bool { return proto.Equal(x, y) }) &&
		slices.EqualFunc(a.Nested, b.Nested, sameAnswers)
}

func TestAnswersAreEtcdsMessages(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		m := response(r, true)
		wire, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		half := len(wire) / 2
		var got Response
		if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire[:half]), mem.SliceBuffer(wire[half:])}, &got); err != nil {
			t.Fatal(err)
		}
		clear(wire) // nothing of it may be kept
		if want := answerOf(m); !sameAnswers(want, got) {
			t.Fatalf("want %+v\nread %+v", want, got)
		}
	}
}

// Nothing makes it panic, and whatever etcd's own message can be read from is no error.
func FuzzAnswer(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		wire, err := proto.Marshal(response(r, true))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var got Response
		err := got.read(wire)
		m := new(pb.TxnResponse)
		if proto.Unmarshal(wire, m) == nil && err != nil {
			t.Fatalf("%v, and etcd's message can be read from it", err)
		}
	})
}

func BenchmarkTxn(b *testing.B) {
	key, value := bytes.Repeat([]byte("k"), 40), bytes.Repeat([]byte("v"), 400)
	b.ReportAllocs()
	for b.Loop() {
		t := New(29, 3000)
		for i := range 11 {
			key[0] = byte(i)
			t.If(Compare{Key: key})
			t.ElseGet(key)
		}
		for i := range 3 {
			key[0] = byte(i)
			t.Delete(key)
			key[0] = byte(i + 10)
			t.Put(key, value, 0)
		}
	}
}
