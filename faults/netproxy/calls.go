package netproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// calls reads the HTTP/2 of one connection and spoils answers.
//
// What the client sends passes unchanged; its headers are read to know which call is whose. Headers of the server are
// encoded anew, since leaving some out would spoil the compression's state.
type calls struct {
	c *conn

	client, server bytes.Buffer // what is not yet a whole frame; each owned by its reader
	preface        bool         // the client's has been read
	fromC, fromS   *hpack.Decoder
	encoder        *hpack.Encoder
	encoded        bytes.Buffer

	mu     sync.Mutex // protects the following field
	spoilt map[uint32]*spoiltCall
}

type spoiltCall struct {
	kind   Spoil
	method string
	body   []byte // of the request, for Duplicate
	told   bool   // the client has been told something, or the server called again
}

func newCalls(c *conn) *calls {
	k := &calls{c: c, spoilt: make(map[uint32]*spoiltCall)}
	k.fromC = hpack.NewDecoder(4096, nil)
	k.fromS = hpack.NewDecoder(4096, nil)
	k.encoder = hpack.NewEncoder(&k.encoded)
	return k
}

const frameHeader = 9

type frame struct {
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
	raw    []byte // with its header
}

func (f frame) payload() []byte { return f.raw[frameHeader:] }

// next takes a whole frame out of a buffer.
func next(b *bytes.Buffer) (f frame, ok bool) {
	data := b.Bytes()
	if len(data) < frameHeader {
		return f, false
	}
	size := frameHeader + int(data[0])<<16 + int(data[1])<<8 + int(data[2])
	if len(data) < size {
		return f, false
	}
	f = frame{http2.FrameType(data[3]), http2.Flags(data[4]), binary.BigEndian.Uint32(data[5:]) &^ (1 << 31), bytes.Clone(data[:size])}
	b.Next(size)
	return f, true
}

func build(kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
	raw := make([]byte, frameHeader, frameHeader+len(payload))
	raw[0], raw[1], raw[2] = byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload))
	raw[3], raw[4] = byte(kind), byte(flags)
	binary.BigEndian.PutUint32(raw[5:], stream)
	return append(raw, payload...)
}

var errProtocol = errors.New("this is not the HTTP/2 of a gRPC peer")

// fromClient reads the client's frames. All of them pass, each whole, so that others can be put in between.
func (k *calls) fromClient(data []byte) (out []byte, err error) {
	k.client.Write(data)
	if !k.preface {
		if k.client.Len() < len(http2.ClientPreface) {
			return nil, nil
		}
		out = bytes.Clone(k.client.Next(len(http2.ClientPreface)))
		if string(out) != http2.ClientPreface {
			return nil, errProtocol
		}
		k.preface = true
	}
	for {
		f, ok := next(&k.client)
		if !ok {
			return out, nil
		}
		if err := k.look(f); err != nil {
			return nil, err
		}
		out = append(out, f.raw...)
	}
}

func (k *calls) look(f frame) error {
	switch f.kind {
	case http2.FrameHeaders:
		return k.called(f)
	case http2.FrameContinuation:
		return errProtocol // request headers of etcd's client are small
	case http2.FrameData:
		k.sent(f)
	}
	return nil
}

// called decides the fate of a call when its headers come.
func (k *calls) called(f frame) error {
	if f.flags.Has(http2.FlagHeadersPadded) || f.flags.Has(http2.FlagHeadersPriority) || !f.flags.Has(http2.FlagHeadersEndHeaders) {
		return errProtocol
	}
	fields, err := k.fromC.DecodeFull(f.payload())
	if err != nil {
		return err
	}
	for _, h := range fields {
		if h.Name != ":path" {
			continue
		}
		if kind := k.c.proxy.Net.draw(Way{k.c.from, k.c.proxy.To}, h.Value); kind != "" {
			k.mu.Lock()
			k.spoilt[f.stream] = &spoiltCall{kind: kind, method: h.Value}
			k.mu.Unlock()
		}
	}
	return nil
}

// sent collects the body of a call that is to be sent twice.
func (k *calls) sent(f frame) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.spoilt[f.stream]; s != nil && s.kind == Duplicate {
		s.body = append(s.body, f.payload()...)
	}
}

// fromServer reads the server's frames and leaves out those of answers that are spoilt.
func (k *calls) fromServer(data []byte) (out []byte, err error) {
	k.server.Write(data)
	for {
		f, ok := next(&k.server)
		if !ok {
			return out, nil
		}
		passed, err := k.answer(f)
		if err != nil {
			return nil, err
		}
		out = append(out, passed...)
	}
}

func (k *calls) answer(f frame) ([]byte, error) {
	switch f.kind {
	case http2.FrameHeaders, http2.FrameContinuation:
		return k.headers(f)
	case http2.FrameData:
		if s, told := k.fate(f); s != nil {
			k.giveBack(len(f.payload()))
			return k.tell(f.stream, s, told)
		}
	case http2.FrameRSTStream:
		if s, told := k.fate(f); s != nil {
			return k.tell(f.stream, s, told)
		}
	}
	return f.raw, nil
}

// fate says what is to become of a frame of an answer: nil, it passes.
func (k *calls) fate(f frame) (s *spoiltCall, told bool) {
	s, told = k.find(f)
	if s == nil || s.kind != Duplicate {
		return s, told
	}
	if !told {
		k.again(s.method, s.body)
	}
	return nil, false
}

// find returns the call that a frame of an answer belongs to if it is to be spoilt.
func (k *calls) find(f frame) (s *spoiltCall, told bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s = k.spoilt[f.stream]
	if s == nil {
		return nil, false
	}
	told, s.told = s.told, true
	if f.kind == http2.FrameRSTStream || (f.kind == http2.FrameData || f.kind == http2.FrameHeaders) && f.flags.Has(http2.FlagDataEndStream) {
		delete(k.spoilt, f.stream)
	}
	return s, told
}

// tell is what the client gets instead of a frame.
func (k *calls) tell(stream uint32, s *spoiltCall, told bool) ([]byte, error) {
	switch {
	case s.kind == Reset:
		return nil, errProtocol
	case s.kind == Cancel && !told:
		return build(http2.FrameRSTStream, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(http2.ErrCodeCancel))), nil
	}
	return nil, nil
}

// giveBack has the server's flow control forget bytes that the client never sees.
func (k *calls) giveBack(n int) {
	if n > 0 {
		k.c.queue(k.c.up, build(http2.FrameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(n))))
	}
}

// headers decodes the server's headers and encodes those that pass anew.
func (k *calls) headers(f frame) ([]byte, error) {
	if f.kind != http2.FrameHeaders || f.flags.Has(http2.FlagHeadersPadded) || f.flags.Has(http2.FlagHeadersPriority) || !f.flags.Has(http2.FlagHeadersEndHeaders) {
		return nil, errProtocol
	}
	fields, err := k.fromS.DecodeFull(f.payload())
	if err != nil {
		return nil, err
	}
	if s, told := k.fate(f); s != nil {
		return k.tell(f.stream, s, told)
	}
	k.encoded.Reset()
	for _, h := range fields {
		if err := k.encoder.WriteField(h); err != nil {
			return nil, err
		}
	}
	return build(http2.FrameHeaders, f.flags, f.stream, bytes.Clone(k.encoded.Bytes())), nil
}

// again sends a call a second time, on a connection of its own, before the client has its answer: that is when clients
// and what is between send again. The other calls of the connection wait meanwhile.
func (k *calls) again(method string, framed []byte) {
	const prefix = 5 // gRPC's, of a message
	if len(framed) < prefix {
		return
	}
	cc, err := grpc.NewClient(k.c.proxy.Target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return
	}
	defer func() { _ = cc.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	body := framed[prefix:]
	var answer []byte
	_ = cc.Invoke(ctx, method, &body, &answer, grpc.ForceCodecV2(raw{}))
}

// raw passes messages as they are.
type raw struct{}

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (raw) Name() string { return "proto" }
