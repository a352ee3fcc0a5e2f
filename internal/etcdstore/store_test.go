package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

func TestApplyIsGuarded(t *testing.T) {
	s := newStore(connect(t))
	ref := pool.ActiveRef("p", "k")
	created := applied(t, s, &pool.Txn{If: []pool.Guard{pool.Absent(ref)}, Put: []pool.Record{active("k", "s")}, Event: event("e1")})

	again := &pool.Txn{If: []pool.Guard{pool.Absent(ref), pool.Absent(pool.BackupRef("p", "k"))}, Put: []pool.Record{active("k", "other")}, Event: event("e2")}
	res := apply(t, s, again)
	if res.Applied {
		t.Fatal("applied although the key is there")
	}
	if diff := cmp.Diff([]pool.Guard{pool.Absent(ref)}, res.Failed(again)); diff != "" {
		t.Errorf("failed guards (-want +got):\n%s", diff)
	}
	rec, err := pool.Find[*pool.Active](res.State, ref)
	if err != nil || rec.Slot != "s" || rec.CreateRevision != created || res.State.Revision != created {
		t.Errorf("the refusal shows %+v, %v at %d, want the record of revision %d", rec, err, res.State.Revision, created)
	}

	// An in-place write changes the version and keeps the life.
	modified := applied(t, s, &pool.Txn{If: []pool.Guard{pool.Same(rec)}, Put: []pool.Record{rec}})
	if apply(t, s, &pool.Txn{If: []pool.Guard{pool.Same(rec)}, Put: []pool.Record{rec}}).Applied {
		t.Error("applied although the version has changed")
	}
	deleted := applied(t, s, &pool.Txn{If: []pool.Guard{pool.LifeIs(rec.Life())}, Delete: []pool.Ref{ref}})
	if modified != created+1 || deleted != created+2 {
		t.Errorf("revisions %d, %d, %d, want them in a row", created, modified, deleted)
	}
	state, err := s.Read(t.Context(), ref)
	if err != nil || state.Has(ref) {
		t.Errorf("after the deletion: %+v, %v, want nothing there", state, err)
	}
}

func TestEventsAreWrittenWithTheirTransaction(t *testing.T) {
	s := newStore(connect(t))
	revision := applied(t, s, &pool.Txn{Put: []pool.Record{backup("k")}, Event: event("e1")})
	resp, err := s.client.Get(t.Context(), "/rotator/events/p/e1")
	if err != nil || len(resp.Kvs) != 1 || resp.Kvs[0].ModRevision != revision {
		t.Fatalf("the event is %+v, %v, want it at revision %d", resp, err, revision)
	}
	if value := string(resp.Kvs[0].Value); !strings.Contains(value, `"source":"rotatord/test"`) {
		t.Errorf("the event is %s, want it to name its replica", value)
	}
}

// However an answer gets lost, sending again finds out, and the transaction is applied once.
func TestApplyFindsWhatAnEarlierSendDid(t *testing.T) {
	for name, fault := range map[string]txnFault{
		"lost answer":        answerWith(status.Error(codes.Unavailable, "error reading from server: EOF")),
		"cancelled answer":   answerWith(status.Error(codes.Canceled, "context canceled")),
		"deadline answer":    answerWith(status.Error(codes.DeadlineExceeded, "context deadline exceeded")),
		"leader changed":     answerWith(rpctypes.ErrGRPCLeaderChanged),
		"no space, applied":  answerWith(rpctypes.ErrGRPCNoSpace),
		"timed out, applied": answerWith(rpctypes.ErrGRPCTimeout),
		"stopped, applied":   answerWith(rpctypes.ErrGRPCStopped),
		"invisible duplicate": func(send func(context.Context) error, ctx context.Context) error {
			return errors.Join(send(ctx), send(ctx), errShut)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := new(faulty)
			s := newStore(connect(t, f.option()))
			before := applied(t, s, &pool.Txn{Put: []pool.Record{active("old", "s")}})
			txn := &pool.Txn{
				If:     []pool.Guard{pool.LifeIs(pool.Life{Pool: "p", Key: "old", Generation: before})},
				Put:    []pool.Record{active("new", "s")},
				Delete: []pool.Ref{pool.ActiveRef("p", "old")},
				Event:  event("e1"),
			}
			f.next(fault)
			if _, err := s.Apply(t.Context(), txn); !errors.Is(err, pool.ErrOutcomeUnknown) {
				t.Fatalf("with its answer lost, Apply says %v, want ErrOutcomeUnknown", err)
			}
			for range 2 {
				if res := apply(t, s, txn); !res.Applied || res.Revision != before+1 {
					t.Fatalf("sent again: %+v, want applied at %d", res, before+1)
				}
			}
			if revision, err := s.Probe(t.Context()); err != nil || revision != before+1 {
				t.Errorf("the store is at %d, %v, want %d: applied once", revision, err, before+1)
			}
		})
	}
}

func TestApplyOfADuplicatedSend(t *testing.T) {
	f := new(faulty)
	s := newStore(connect(t, f.option()))
	// The client sends twice and hears of the second only, which finds the guard broken by the first.
	f.next(func(send func(context.Context) error, ctx context.Context) error {
		if err := send(ctx); err != nil {
			return err
		}
		return send(ctx)
	})
	res := apply(t, s, &pool.Txn{If: []pool.Guard{pool.Absent(pool.BackupRef("p", "k"))}, Put: []pool.Record{backup("k")}, Event: event("e")})
	if !res.Applied || res.Revision != 2 {
		t.Errorf("%+v, want applied at 2, the first write of all", res)
	}
}

// A copy that was on its way for long arrives after the transaction was sent again, and after its guards hold anew.
func TestApplyOfADelayedSend(t *testing.T) {
	f := new(faulty)
	s := newStore(connect(t, f.option()))
	release, arrived := make(chan struct{}), make(chan error, 1)
	f.next(func(send func(context.Context) error, ctx context.Context) error {
		go func() {
			<-release
			arrived <- send(context.WithoutCancel(ctx))
		}()
		return status.Error(codes.DeadlineExceeded, "context deadline exceeded")
	})
	ref := pool.BackupRef("p", "k")
	txn := &pool.Txn{If: []pool.Guard{pool.Absent(ref)}, Put: []pool.Record{backup("k")}, Event: event("e")}
	if _, err := s.Apply(t.Context(), txn); !errors.Is(err, pool.ErrOutcomeUnknown) {
		t.Fatalf("Apply says %v, want ErrOutcomeUnknown", err)
	}
	first := applied(t, s, txn)
	applied(t, s, &pool.Txn{Delete: []pool.Ref{ref}})
	close(release)
	if err := <-arrived; err != nil {
		t.Fatalf("the delayed copy: %v", err)
	}
	state, err := s.Read(t.Context(), ref)
	if err != nil || state.Has(ref) || state.Revision != first+1 {
		t.Errorf("the delayed copy was applied: %+v, %v", state, err)
	}
	if res := apply(t, s, txn); !res.Applied || res.Revision != first {
		t.Errorf("asked again: %+v, want applied at %d", res, first)
	}
}

func TestApplyRefusesWhatCanNeverWork(t *testing.T) {
	f := new(faulty)
	s := newStore(connect(t, f.option()))
	many := new(pool.Txn)
	for i := range 129 {
		many.Put = append(many.Put, backup(name(i)))
	}
	guards := new(pool.Txn)
	for i := range 128 {
		guards.If = append(guards.If, pool.Absent(pool.BackupRef("p", name(i))))
	}
	guards.Event = event("e")
	large := new(pool.Txn)
	for i := range 20 {
		b := backup(name(i))
		b.Sealed.Ciphertext = make([]byte, 100_000)
		large.Put = append(large.Put, b)
	}
	newer := active("k", "s")
	newer.Schema = pool.Schema + 1
	for name, c := range map[string]struct {
		txn  *pool.Txn
		want string
	}{
		"129 puts":                {many, "129 operations"},
		"128 guards and an event": {guards, "129 operations"},
		"too large":               {large, "bytes"},
		"put twice":               {&pool.Txn{Put: []pool.Record{backup("k"), backup("k")}}, "/rotator/backup/p/k twice"},
		"put and delete":          {&pool.Txn{Put: []pool.Record{backup("k")}, Delete: []pool.Ref{pool.BackupRef("p", "k")}}, "/rotator/backup/p/k twice"},
		"newer record":            {&pool.Txn{Put: []pool.Record{newer}}, "active/p/k has schema 2"},
		"broken record":           {&pool.Txn{Put: []pool.Record{&pool.Broken{Of: pool.BackupRef("p", "k")}}}, "not a record"},
	} {
		_, err := s.Apply(t.Context(), c.txn)
		if err == nil || !strings.Contains(err.Error(), c.want) || again(err) {
			t.Errorf("%s: Apply says %v, want a final refusal with %q", name, err, c.want)
		}
	}
	if f.sent != 0 {
		t.Errorf("%d transactions were sent, want none", f.sent)
	}
	many.Put = many.Put[:128]
	applied(t, s, many)
}

func TestApplyAfterItsTime(t *testing.T) {
	f := new(faulty)
	s := newStore(connect(t, f.option()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Apply(ctx, &pool.Txn{Put: []pool.Record{backup("k")}}); !errors.Is(err, pool.ErrNotApplied) || f.sent != 0 {
		t.Errorf("with a context that is over, Apply says %v and sends %d, want ErrNotApplied and 0", err, f.sent)
	}
}

func TestWithoutAServer(t *testing.T) {
	s := New(connectTo(t, "127.0.0.1:1"), Options{AttemptTimeout: 50 * time.Millisecond})
	if _, err := s.Apply(within(t, patient), &pool.Txn{Put: []pool.Record{backup("k")}}); !errors.Is(err, pool.ErrNotApplied) {
		t.Errorf("Apply says %v, want ErrNotApplied: nothing was sent", err)
	}
	if _, err := s.Read(within(t, 200*time.Millisecond), pool.PoolRef("p")); !errors.Is(err, pool.ErrNotApplied) {
		t.Errorf("Read says %v, want ErrNotApplied", err)
	}
	if _, err := s.Probe(within(t, patient)); !errors.Is(err, pool.ErrNotApplied) {
		t.Errorf("Probe says %v, want ErrNotApplied", err)
	}
}

// A server that stops answering costs one attempt's time, and the answer is found later.
func TestASlowServerCostsOneAttempt(t *testing.T) {
	v := new(valve)
	s := newStore(connect(t, v.option()))
	before, err := s.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.committer = NewCommitter(s.client, 100*time.Millisecond)
	txn := &pool.Txn{If: []pool.Guard{pool.Absent(pool.BackupRef("p", "k"))}, Put: []pool.Record{backup("k")}, Event: event("e")}
	v.block()
	began := time.Now()
	_, err = s.Apply(t.Context(), txn)
	if !errors.Is(err, pool.ErrOutcomeUnknown) || time.Since(began) > patient/2 {
		t.Errorf("Apply says %v after %v, want ErrOutcomeUnknown after 100ms", err, time.Since(began))
	}
	v.flow()
	s.committer = NewCommitter(s.client, patient)
	if res := apply(t, s, txn); !res.Applied || res.Revision != before+1 {
		t.Errorf("sent again: %+v, want applied at %d", res, before+1)
	}
}

func TestReadShowsOneRevision(t *testing.T) {
	s := newStore(connect(t))
	var refs []pool.Ref
	for i := range 300 { // three transactions of etcd
		refs = append(refs, pool.BackupRef("p", name(i)))
	}
	revision := applied(t, s, &pool.Txn{Put: []pool.Record{backup(name(0)), backup(name(299))}})
	state, err := s.Read(t.Context(), refs...)
	if err != nil || state.Revision != revision || !state.Has(refs[0]) || state.Has(refs[1]) || !state.Has(refs[299]) {
		t.Errorf("Read = %+v, %v, want the first and the last at revision %d", state, err, revision)
	}
	if state, err := s.Read(t.Context()); err != nil || state.Revision != revision {
		t.Errorf("Read of nothing = %+v, %v, want revision %d", state, err, revision)
	}
}

func TestLists(t *testing.T) {
	s := newStore(connect(t))
	const n = 2300 // three pages
	for batch := range slices.Chunk(records(n), 100) {
		applied(t, s, &pool.Txn{Put: batch})
	}
	applied(t, s, &pool.Txn{Put: []pool.Record{&pool.Backup{Pool: "p2", Key: "else"}, &pool.Backup{Pool: "p-", Key: "else"}}})
	for _, limit := range []int{0, 1, 1000, 1001, n, n + 1} {
		recs, _, err := s.List(t.Context(), pool.KindBackup, "p", limit)
		want := records(n)
		if limit > 0 {
			want = want[:min(limit, n)]
		}
		if diff := cmp.Diff(refsOf(want), refsOf(recs)); err != nil || diff != "" {
			t.Errorf("List with limit %d: %v (-want +got):\n%s", limit, err, diff)
		}
	}
	if recs, revision, err := s.List(t.Context(), pool.KindBackup, "none", 0); err != nil || len(recs) != 0 || revision == 0 {
		t.Errorf("List of nothing = %v, %d, %v, want nothing at a revision", recs, revision, err)
	}
}

func records(n int) []pool.Record {
	recs := make([]pool.Record, n)
	for i := range recs {
		recs[i] = backup(fmt.Sprintf("k%06d", i))
	}
	return recs
}

func refsOf(recs []pool.Record) []pool.Ref {
	refs := make([]pool.Ref, len(recs))
	for i, rec := range recs {
		refs[i] = rec.Ref()
	}
	return refs
}

// Pages that were begun at a revision that is compacted away are read again from the start.
func TestScanStartsOverAfterCompaction(t *testing.T) {
	s := newStore(connect(t))
	for batch := range slices.Chunk(records(1200), 100) {
		applied(t, s, &pool.Txn{Put: batch})
	}
	old, err := s.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now := applied(t, s, &pool.Txn{Put: []pool.Record{backup("z")}})
	if _, err := s.client.Compact(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	rounds := 0
	var recs []pool.Record
	err = s.atOneRevision(t.Context(), func(ctx context.Context) error {
		revision := old
		if rounds++; rounds > 1 {
			revision, recs = 0, nil
		}
		return s.scanSpan(ctx, prefixSpan("/rotator/backup/p/"), 0, &recs, &revision)
	})
	if err != nil || rounds != 2 || len(recs) != 1201 {
		t.Errorf("%d records in %d rounds, %v, want 1201 in the second", len(recs), rounds, err)
	}
}

func TestRotationsAreInTheirOrder(t *testing.T) {
	s := newStore(connect(t))
	txn := new(pool.Txn)
	for _, generation := range []int64{100, 9, 10, 2000, 99} {
		txn.Put = append(txn.Put, &pool.Rotation{Life: pool.Life{Pool: "p", Key: "k", Generation: generation}, ID: "r", Slot: "s", NewKey: "n", Trigger: pool.TriggerPool})
	}
	txn.Put = append(txn.Put, &pool.Rotation{Life: pool.Life{Pool: "p", Key: "k2", Generation: 1}, Slot: "s", NewKey: "n", Trigger: pool.TriggerPool})
	want := applied(t, s, txn)
	rotations, revision, err := s.Rotations(t.Context(), "p", "k")
	var got []int64
	for _, r := range rotations {
		got = append(got, r.Generation)
	}
	if diff := cmp.Diff([]int64{9, 10, 99, 100, 2000}, got); err != nil || revision != want || diff != "" {
		t.Errorf("Rotations at %d (want %d): %v (-want +got):\n%s", revision, want, err, diff)
	}
	if recs, _, err := s.List(t.Context(), pool.KindRotation, "p", 0); err != nil || recs[0].Ref().Generation != 9 || recs[4].Ref().Generation != 2000 || recs[5].Ref().Name != "k2" {
		t.Errorf("List of rotations = %+v, %v, want them by key and generation", refsOf(recs), err)
	}
	if _, err := s.client.Put(t.Context(), "/rotator/rotations/p/k/11", "{}"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Rotations(t.Context(), "p", "k"); pool.ReasonOf(err) != pool.ReasonRecordUnreadable {
		t.Errorf("with one that cannot be read: %v, want RECORD_UNREADABLE", err)
	}
}

func TestReadAllShowsWhatIsNotOurs(t *testing.T) {
	s := newStore(connect(t))
	applied(t, s, &pool.Txn{Put: []pool.Record{backup("k"), &pool.Pool{Name: "p"}, &pool.Slot{Pool: "p", Name: "s"}}, Event: event("e")})
	for key, value := range map[string]string{
		"/rotator/notes": "x", "/rotator/active/p/bad name": "{}", "/rotator/zzz/1": "", "/rotator/leaders/spend/7": "", "/elsewhere/a": "x", "/rotator/slots/p/b": "{",
	} {
		if _, err := s.client.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	recs, _, err := s.ReadAll(t.Context())
	want := []pool.Ref{
		{Kind: KindUnknown, Name: "active/p/bad name"}, pool.BackupRef("p", "k"), {Kind: KindUnknown, Name: "notes"}, pool.PoolRef("p"),
		pool.SlotRef("p", "b"), pool.SlotRef("p", "s"), {Kind: KindUnknown, Name: "zzz/1"},
	}
	if diff := cmp.Diff(want, refsOf(recs)); err != nil || diff != "" {
		t.Errorf("ReadAll: %v (-want +got):\n%s", err, diff)
	}
}

func TestSweep(t *testing.T) {
	f := new(faulty)
	s := newStore(connect(t, f.option()))
	p := &pool.Pool{Name: "p", Deleting: true}
	applied(t, s, &pool.Txn{Put: []pool.Record{p}})
	for batch := range slices.Chunk(records(250), 100) {
		applied(t, s, &pool.Txn{Put: batch})
	}
	applied(t, s, &pool.Txn{Put: []pool.Record{&pool.Backup{Pool: "p2", Key: "k"}, active("k", "s")}})
	state, err := s.Read(t.Context(), pool.PoolRef("p"))
	if err != nil {
		t.Fatal(err)
	}
	p, _ = pool.Find[*pool.Pool](state, pool.PoolRef("p"))
	f.sent = 0
	f.next(answerWith(errShut), answerWith(nil)) // the first batch is swept without an answer
	if err := s.Sweep(t.Context(), pool.KindBackup, p); err != nil {
		t.Fatalf("Sweep: %v", err)
	}
	recs, _, err := s.ReadAll(t.Context())
	want := []pool.Ref{pool.ActiveRef("p", "k"), pool.BackupRef("p2", "k"), pool.PoolRef("p")}
	if diff := cmp.Diff(want, refsOf(recs)); err != nil || diff != "" || f.sent != 3 {
		t.Errorf("after the sweep, in %d batches (want 3): %v (-want +got):\n%s", f.sent, err, diff)
	}

	applied(t, s, &pool.Txn{Put: []pool.Record{p}})
	if err := s.Sweep(t.Context(), pool.KindActive, p); !errors.Is(err, pool.ErrConflict) {
		t.Errorf("sweeping a pool that was changed: %v, want ErrConflict", err)
	}
}

func TestReplicasLiveWithTheirLease(t *testing.T) {
	s := newStore(connect(t))
	lease, err := s.client.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutReplica(t.Context(), &pool.Replica{Name: "r", KnowsSchema: 1}, lease.ID); err != nil {
		t.Fatal(err)
	}
	lock := &pool.Lock{Life: pool.Life{Pool: "p", Key: "k", Generation: 3}, Holder: "r", Lease: int64(lease.ID)}
	applied(t, s, &pool.Txn{Put: []pool.Record{lock}})
	state, err := s.Read(t.Context(), pool.ReplicaRef("r"), pool.LockRef("p", "k"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := pool.Find[*pool.Replica](state, pool.ReplicaRef("r")); err != nil || r.Lease != int64(lease.ID) {
		t.Errorf("the replica is %+v, %v, want lease %d", r, err, lease.ID)
	}
	if l, err := pool.Find[*pool.Lock](state, pool.LockRef("p", "k")); err != nil || l.Lease != int64(lease.ID) {
		t.Errorf("the lock is %+v, %v, want lease %d", l, err, lease.ID)
	}
	if _, err := s.client.Revoke(t.Context(), lease.ID); err != nil {
		t.Fatal(err)
	}
	if recs, _, err := s.ReadAll(t.Context()); err != nil || len(recs) != 0 {
		t.Errorf("after the lease: %v, %v, want nothing", refsOf(recs), err)
	}
	if err := s.PutReplica(t.Context(), &pool.Replica{Name: "r"}, lease.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("with a lease that is gone: %v, want ErrLeaseNotFound in the chain", err)
	}
}

// What the campaign's transaction is built of: other compares and operations beside ours.
func TestPiecesForOtherTransactions(t *testing.T) {
	s := newStore(connect(t))
	revision := applied(t, s, &pool.Txn{Put: []pool.Record{active("k", "s")}})
	life := pool.Life{Pool: "p", Key: "k", Generation: revision}
	refs := []pool.Ref{pool.ActiveRef("p", "k"), pool.RotationRef(life)}
	guards := []pool.Guard{pool.LifeIs(life), pool.Absent(refs[1])}
	txn := new(etcdwire.Txn)
	for _, g := range guards {
		txn.If(s.Compare(g))
	}
	for _, key := range append(s.Keys(refs), []byte("/rotator/locks/p/k")) {
		txn.Get(key)
	}
	resp, err := s.committer.Commit(t.Context(), txn)
	if err != nil || !resp.Succeeded {
		t.Fatalf("the transaction: %+v, %v, want it to succeed", resp, err)
	}
	state := s.StateOf(refs, resp)
	if a, err := pool.Find[*pool.Active](state, refs[0]); err != nil || a.Life() != life || state.Has(refs[1]) || state.Revision != revision {
		t.Errorf("StateOf = %+v, %v, want the active record alone at %d", state, err, revision)
	}
}

func TestAlarms(t *testing.T) {
	s := newStore(connect(t))
	if alarms, err := s.Alarms(t.Context()); err != nil || len(alarms) != 0 {
		t.Errorf("Alarms = %v, %v, want none", alarms, err)
	}
}
