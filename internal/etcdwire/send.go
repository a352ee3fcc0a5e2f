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
	Nested    []Response          // and to the transactions in it
}

// Send sends transactions in one call, once, and returns their answers in the same order. Its errors are those of gRPC.
// The transactions must not change any more, also after it has returned.
func Send(ctx context.Context, conn grpc.ClientConnInterface, txns ...*Txn) ([]Response, error) {
	var got Response
	err := conn.Invoke(ctx, pb.KV_Txn_FullMethodName, &Request{txns}, &got, grpc.StaticMethod(), grpc.ForceCodecV2(codec{}))
	if err != nil {
		return nil, err
	}
	if len(txns) == 1 {
		return []Response{got}, nil
	}
	if len(got.Nested) != len(txns) {
		return nil, fmt.Errorf("etcd answered %d of %d nested transactions", len(got.Nested), len(txns))
	}
	for i := range got.Nested {
		got.Nested[i].Revision = got.Revision // only the outermost says it
	}
	return got.Nested, nil
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
	r, ok := v.(*Response)
	if !ok {
		return fmt.Errorf("etcdwire does not read a %T", v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	*r = Response{}
	return r.read(buf.ReadOnlyData())
}

// The fields of etcd's messages.
const (
	responseHeader, responseSucceeded, responseResponses protowire.Number = 1, 2, 3 // TxnResponse

	headerRevision protowire.Number = 3 // ResponseHeader
)

// read reads a TxnResponse, as far as it is of interest, and keeps nothing of b. What is of another type than in etcd's messages is passed over, as protobuf does.
func (r *Response) read(b []byte) error {
	var f field
	return fields(b, &f, func() error {
		switch {
		case f.is(responseHeader, protowire.BytesType):
			return r.readHeader(f.bytes)
		case f.is(responseSucceeded, protowire.VarintType):
			r.Succeeded = f.n != 0
		case f.is(responseResponses, protowire.BytesType):
			return r.readOp(f.bytes)
		}
		return nil
	})
}

func (r *Response) readHeader(b []byte) error {
	var f field
	return fields(b, &f, func() error {
		if f.is(headerRevision, protowire.VarintType) {
			r.Revision = int64(f.n)
		}
		return nil
	})
}

// readOp reads the answer to one operation; of those that change something there is nothing to read.
func (r *Response) readOp(b []byte) error {
	var f field
	return fields(b, &f, func() error {
		switch {
		case f.is(opRange, protowire.BytesType):
			read := new(pb.RangeResponse)
			r.Reads = append(r.Reads, read)
			return proto.Unmarshal(f.bytes, read)
		case f.is(opTxn, protowire.BytesType):
			r.Nested = append(r.Nested, Response{})
			return r.Nested[len(r.Nested)-1].read(f.bytes)
		}
		return nil
	})
}
