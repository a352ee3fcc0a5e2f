// Package etcdstore keeps rotatord's state in etcd: where each record is (Layout), how it is written (EncodeRecord,
// Layout.Decode), guarded transactions and linearizable reads (Store), and the standing watch that feeds the copy in
// memory (Follower).
//
// It promises:
//   - Store.Apply never calls a write failed that may have happened, and never calls one lost because its compares did
//     not hold: an event that is already there means that an earlier copy arrived, and says at which revision;
//   - every read is linearizable and shows one revision, however many pages it takes;
//   - the mirror goes from whole revision to whole revision, and a compaction under the watch loses nothing;
//   - every call to etcd has a deadline, with or without a server;
//   - a value that cannot be read is a *pool.Broken: it is seen and blocks what needs its absence, and nothing is
//     decided from it.
//
// It does not promise that a transaction makes sense: which compares a transition needs is the domain's business. It
// does not retry writes, decide who wins, or keep leases alive.
package etcdstore
