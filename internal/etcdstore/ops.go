package etcdstore

import pb "go.etcd.io/etcd/api/v3/etcdserverpb"

// Compares and operations are made here in the terms of etcd's API. The client's own are copied by reflection three times
// on their way into a group.

func created(key string, revision int64) *pb.Compare {
	return &pb.Compare{
		Key: []byte(key), Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: revision},
	}
}

func modified(key string, revision int64) *pb.Compare {
	return &pb.Compare{
		Key: []byte(key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
	}
}

func get(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func put(key, value string, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: lease}}}
}

func del(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}}
}

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
