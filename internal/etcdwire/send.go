package etcdwire

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Request is what one call sends: one transaction, or one with several nested in it, each of which is decided by its
// own compares.
type Request struct {
	Txns []*Txn
}

// Response is the answer to one transaction.
type Response struct {
	Revision  int64
	Succeeded bool                // the compares held
	Reads     []*pb.RangeResponse // the answers to the reads of the branch that was taken, in their order
}

// Send sends transactions in one call, once, and returns their answers in the same order. Its errors are those of gRPC.
// The transactions must not change any more, also after it has returned.
func Send(ctx context.Context, conn grpc.ClientConnInterface, txns ...*Txn) ([]Response, error) {
	var got answer
	err := conn.Invoke(ctx, pb.KV_Txn_FullMethodName, &Request{txns}, &got, grpc.StaticMethod(), grpc.ForceCodecV2(codec{}))
	if err != nil {
		return nil, err
	}
	if len(txns) == 1 {
		return []Response{got.Response}, nil
	}
	if len(got.nested) != len(txns) {
		return nil, fmt.Errorf("etcd answered %d of %d nested transactions", len(got.nested), len(txns))
	}
	responses := make([]Response, len(txns))
	for i, n := range got.nested {
		n.Revision = got.Revision // only the outer one says it
		responses[i] = n.Response
	}
	return responses, nil
}

// Proto is the request as etcd's message, for who wants to look at it.
func (r *Request) Proto() (*pb.TxnRequest, error) {
	m := new(pb.TxnRequest)
	return m, proto.Unmarshal(r.buffers().Materialize(), m)
}

// buffers is the request as it is sent, put together without copying.
func (r *Request) buffers() mem.BufferSlice {
	if len(r.Txns) == 1 {
		return mem.BufferSlice{mem.SliceBuffer(r.Txns[0].wire)}
	}
	all, heads := make(mem.BufferSlice, 0, 2*len(r.Txns)), make([]byte, 0, len(r.Txns)*overhead)
	for _, t := range r.Txns {
		from := len(heads)
		heads = appendOp(heads, txnSuccess, opTxn, len(t.wire))
		all = append(all, mem.SliceBuffer(heads[from:]), mem.SliceBuffer(t.wire))
	}
	return all
}

// codec is protobuf for a Request and an answer.
type codec struct{}

// Name implements encoding.CodecV2; see watchCodec.
func (codec) Name() string { return "" }

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*Request)
	if !ok {
		return nil, fmt.Errorf("etcdwire does not send a %T", v)
	}
	return r.buffers(), nil
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	a, ok := v.(*answer)
	if !ok {
		return fmt.Errorf("etcdwire does not read a %T", v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	*a = answer{}
	return a.read(buf.ReadOnlyData())
}

// answer is a TxnResponse, as far as it is of interest.
type answer struct {
	Response
	nested []answer
}

// The fields of etcd's messages.
const (
	responseHeader, responseSucceeded, responseResponses protowire.Number = 1, 2, 3 // TxnResponse

	headerRevision protowire.Number = 3 // ResponseHeader
)

// read keeps nothing of b. What is of another type than in etcd's messages is passed over, as protobuf does.
func (a *answer) read(b []byte) error {
	var f field
	return fields(b, &f, func() error {
		switch {
		case f.is(responseHeader, protowire.BytesType):
			return a.readHeader(f.bytes)
		case f.is(responseSucceeded, protowire.VarintType):
			a.Succeeded = f.n != 0
		case f.is(responseResponses, protowire.BytesType):
			return a.readOp(f.bytes)
		}
		return nil
	})
}

func (a *answer) readHeader(b []byte) error {
	var f field
	return fields(b, &f, func() error {
		if f.is(headerRevision, protowire.VarintType) {
			a.Revision = int64(f.n)
		}
		return nil
	})
}

// readOp reads the answer to one operation; of those that change something there is nothing to read.
func (a *answer) readOp(b []byte) error {
	var f field
	return fields(b, &f, func() error {
		switch {
		case f.is(opRange, protowire.BytesType):
			r := new(pb.RangeResponse)
			a.Reads = append(a.Reads, r)
			return proto.Unmarshal(f.bytes, r)
		case f.is(opTxn, protowire.BytesType):
			a.nested = append(a.nested, answer{})
			return a.nested[len(a.nested)-1].read(f.bytes)
		}
		return nil
	})
}
