// Package lifecycle does what a key needs before it is in stock and after it was retired: minting, verifying, revoking,
// purging.
//
// Each phase is a handler: a pure function of a record, the time, and what the upstream said. It begins by asking whether
// its phase has done its work for the generation that is wanted, and makes at most one transition. That transition, its
// event and the intent of the next call to the upstream are one transaction, which compares the record's version, the
// pool and the key's other homes. If a compare is lost nothing happened: the record is read again.
//
// It promises:
//   - In etcd everything happens exactly once: one transition, one event, however many replicas work and wherever they die.
//   - At the upstream an intent is carried out at most once. A call is made only by the worker that wrote its intent down,
//     in that run; whoever finds an intent it did not write asks the provider what became of it, and makes another
//     call, under another intent, only if the answer is that nothing did.
//   - What cannot be found out is listed (failed, orphaned) and not tried for ever.
//   - Nothing is revoked while the key that took its place is not in service and healthy, or shares its secret.
//
// It does not promise that an upstream keeps a call apart from another: a call that is on its way longer than its time,
// through a proxy that holds it, may take effect after it was found not to have. Where the secret is chosen before the call
// that makes the same key; elsewhere it leaves one that the provider's own list shows.
//
// The lock of a key saves calls. All of the above holds with a lock that always says yes.
package lifecycle
