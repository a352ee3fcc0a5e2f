// Package etcdwire writes transactions of etcd as they go over the wire, and reads their answers.
//
// It makes what etcd's own messages would, and a test holds it against them. It is there because a rotation has forty
// compares and operations: as messages each is three or four small parts, which are made, measured, written and thrown
// away again. Here each is written once, into the piece of memory that is sent, and transactions that go together are
// sent as they are. It knows what this service sends and nothing else; other calls are made with etcd's client.
package etcdwire

import (
	"fmt"
	"hash/maphash"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// The fields of etcd's messages (rpc.proto of etcdserverpb).
const (
	txnCompare, txnSuccess, txnFailure protowire.Number = 1, 2, 3 // TxnRequest

	compareTarget, compareKey, compareCreated, compareModified protowire.Number = 2, 3, 5, 6 // Compare

	opRange, opPut, opDelete, opTxn protowire.Number = 1, 2, 3, 4 // RequestOp, and ResponseOp

	opKey, putValue, putLease protowire.Number = 1, 2, 3 // RangeRequest, PutRequest and DeleteRangeRequest
)

// Compare is one thing that must hold: a key's revision is this one.
type Compare struct {
	Key      []byte
	Created  bool  // its CreateRevision is meant; or else its ModRevision
	Revision int64 // 0: there is no such key
}

// Touch is what a transaction does with a key.
type Touch struct {
	Key     uint64 // its hash, good within this process; that two keys have the same one is as good as impossible
	Changes bool   // or else it only reads or compares it
}

// Txn is a transaction on single keys. The zero value changes nothing. What is added is copied.
type Txn struct {
	wire                       []byte // fields of a TxnRequest; in protobuf those of one number may be between those of others
	touched                    []Touch
	compares, success, failure int
	nested                     int // operations of the largest one in Else
	twice                      string
}

// New returns a transaction with room for a number of compares and operations, and for bytes of keys and values.
func New(ops, bytes int) *Txn {
	return &Txn{wire: make([]byte, 0, bytes+ops*overhead), touched: make([]Touch, 0, ops)}
}

// overhead is more than a compare or an operation takes beside its key and value.
const overhead = 24

// If adds a compare.
func (t *Txn) If(c Compare) {
	t.compares++
	t.touch(c.Key, false)
	target, union := uint64(pb.Compare_MOD), compareModified
	if c.Created {
		target, union = uint64(pb.Compare_CREATE), compareCreated
	}
	n := sizeVarint(target) + sizeBytes(len(c.Key)) + sizeVarint(uint64(c.Revision))
	b := appendLength(t.wire, txnCompare, n)
	b = appendVarint(b, compareTarget, target)
	b = appendBytes(b, compareKey, c.Key)
	t.wire = appendVarint(b, union, uint64(c.Revision))
}

// Put adds to what is done if all compares hold. A lease of 0 is none.
func (t *Txn) Put(key, value []byte, lease int64) {
	t.success++
	t.touch(key, true)
	n := sizeBytes(len(key)) + sizeBytes(len(value))
	if lease != 0 {
		n += sizeVarint(uint64(lease))
	}
	b := appendOp(t.wire, txnSuccess, opPut, n)
	b = appendBytes(b, opKey, key)
	b = appendBytes(b, putValue, value)
	if lease != 0 {
		b = appendVarint(b, putLease, uint64(lease))
	}
	t.wire = b
}

// Delete adds to what is done if all compares hold.
func (t *Txn) Delete(key []byte) {
	t.success++
	t.touch(key, true)
	t.wire = appendBytes(appendOp(t.wire, txnSuccess, opDelete, sizeBytes(len(key))), opKey, key)
}

// Get adds a read to what is done if all compares hold.
func (t *Txn) Get(key []byte) {
	t.success++
	t.get(txnSuccess, key)
}

// ElseGet adds a read to what is done if one of the compares does not hold.
func (t *Txn) ElseGet(key []byte) {
	t.failure++
	t.get(txnFailure, key)
}

// Else has another transaction decided, by its own compares, if one of the compares does not hold. It is copied.
func (t *Txn) Else(other *Txn) {
	t.failure++
	t.nested = max(t.nested, other.Ops())
	t.touched = append(t.touched, other.touched...)
	if t.twice == "" {
		t.twice = other.twice
	}
	t.wire = append(appendOp(t.wire, txnFailure, opTxn, len(other.wire)), other.wire...)
}

func (t *Txn) get(branch protowire.Number, key []byte) {
	t.touch(key, false)
	t.wire = appendBytes(appendOp(t.wire, branch, opRange, sizeBytes(len(key))), opKey, key)
}

var seed = maphash.MakeSeed()

func (t *Txn) touch(key []byte, changes bool) {
	hash := maphash.Bytes(seed, key)
	if changes && t.twice == "" {
		for _, other := range t.touched {
			if other.Changes && other.Key == hash {
				t.twice = string(key)
			}
		}
	}
	t.touched = append(t.touched, Touch{hash, changes})
}

// Touched is what it does with keys, each as often as it is named.
func (t *Txn) Touched() []Touch { return t.touched }

// Ops is how many compares it has, or operations in one branch, whichever is most, and with one in Else those of that too:
// so etcd counts against its limit.
func (t *Txn) Ops() int { return max(t.compares, t.success, t.failure) + t.nested }

// Size is how many bytes are sent.
func (t *Txn) Size() int { return len(t.wire) }

// Check returns an error if etcd would refuse the transaction: because it changes a key twice, or is larger than the
// limits.
func (t *Txn) Check(maxOps, maxBytes int) error {
	switch {
	case t.twice != "":
		return fmt.Errorf("a transaction that changes %s twice", t.twice)
	case t.Ops() > maxOps:
		return fmt.Errorf("a transaction with %d operations, at most %d are possible: it must be split", t.Ops(), maxOps)
	case t.Size() > maxBytes:
		return fmt.Errorf("a transaction with %d bytes, at most %d are possible: it must be split", t.Size(), maxBytes)
	}
	return nil
}

// The sizes are those of fields whose number is below 16, whose tag is one byte.

func sizeVarint(v uint64) int { return 1 + protowire.SizeVarint(v) }

func sizeBytes(n int) int { return 1 + protowire.SizeBytes(n) }

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return append(appendLength(b, field, len(v)), v...)
}

// appendLength begins a field of n bytes.
func appendLength(b []byte, field protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(n))
}

// appendOp begins an operation of n bytes in a branch.
func appendOp(b []byte, branch, kind protowire.Number, n int) []byte {
	return appendLength(appendLength(b, branch, sizeBytes(n)), kind, n)
}
