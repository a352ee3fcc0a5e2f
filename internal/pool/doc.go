// Package pool is the domain of rotatord: pools of upstream keys, and how a failing key is replaced exactly once.
//
// It promises, by the compares of its transactions alone (see Txn, and rotationTxn for the central one):
//   - one life of a key ends in at most one rotation, however many ask, wherever they ask;
//   - a key id is in one home at a time, and the number of active keys does not change in a rotation;
//   - a binding's slot always holds an active key;
//   - every transition is made together with its audit event, or not at all.
//
// The lock of a key (Locks) saves work and orders side effects. Nothing here is unsafe if it fails: a lock that always
// says yes costs conflicts, not keys.
//
// It does not promise that time is the same everywhere: clocks decide when a cool-down ends and what a record says about
// when it was made, never who wins.
//
// The package knows neither etcd nor gRPC. Store, Locks, Sealer and Observer are what it needs of the world.
package pool
