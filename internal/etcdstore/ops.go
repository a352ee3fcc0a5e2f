package etcdstore

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/rotatord/rotatord/internal/pool"
)

// Compares and operations are made here in the terms of etcd's API. The client's own are copied by reflection three times
// on their way into a group. What belongs together is in one piece of memory: a rotation has forty of them, and each is
// three or four small parts.

// cmpOp is a compare with room for what it compares with.
type cmpOp struct {
	pb.Compare
	created  pb.Compare_CreateRevision
	modified pb.Compare_ModRevision
}

func (c *cmpOp) set(key []byte, rule pool.Rule, revision int64) *pb.Compare {
	c.Key, c.Result = key, pb.Compare_EQUAL
	if rule == pool.Created {
		c.created.CreateRevision = revision
		c.Target, c.TargetUnion = pb.Compare_CREATE, &c.created
	} else {
		c.modified.ModRevision = revision
		c.Target, c.TargetUnion = pb.Compare_MOD, &c.modified
	}
	return &c.Compare
}

func created(key string, revision int64) *pb.Compare {
	return new(cmpOp).set([]byte(key), pool.Created, revision)
}

// getOp, putOp and delOp are operations with room for their parts.
type getOp struct {
	pb.RequestOp
	kind pb.RequestOp_RequestRange
	what pb.RangeRequest
}

func (o *getOp) set(key []byte) *pb.RequestOp {
	o.what.Key = key
	o.kind.RequestRange = &o.what
	o.Request = &o.kind
	return &o.RequestOp
}

func get(key string) *pb.RequestOp { return new(getOp).set([]byte(key)) }

type putOp struct {
	pb.RequestOp
	kind pb.RequestOp_RequestPut
	what pb.PutRequest
}

func (o *putOp) set(key []byte, value string, lease int64) *pb.RequestOp {
	o.what.Key, o.what.Value, o.what.Lease = key, []byte(value), lease
	o.kind.RequestPut = &o.what
	o.Request = &o.kind
	return &o.RequestOp
}

func put(key, value string, lease int64) *pb.RequestOp {
	return new(putOp).set([]byte(key), value, lease)
}

type delOp struct {
	pb.RequestOp
	kind pb.RequestOp_RequestDeleteRange
	what pb.DeleteRangeRequest
}

func (o *delOp) set(key []byte) *pb.RequestOp {
	o.what.Key = key
	o.kind.RequestDeleteRange = &o.what
	o.Request = &o.kind
	return &o.RequestOp
}

func del(key string) *pb.RequestOp { return new(delOp).set([]byte(key)) }

func nested(t *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: t}}
}

// keyOf is the key of an operation, and whether it changes it.
func keyOf(op *pb.RequestOp) (key []byte, changes bool) {
	switch r := op.GetRequest().(type) {
	case *pb.RequestOp_RequestPut:
		return r.RequestPut.Key, true
	case *pb.RequestOp_RequestDeleteRange:
		return r.RequestDeleteRange.Key, true
	}
	return op.GetRequestRange().GetKey(), false
}
