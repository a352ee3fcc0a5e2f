package pooltest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

func event(id string) *pool.Event {
	return &pool.Event{ID: id, Type: "test", Pool: "p", Subject: "slots/s", Time: time.Unix(1, 0)}
}

func apply(t *testing.T, s pool.Store, txn *pool.Txn) *pool.Result {
	t.Helper()
	res, err := s.Apply(t.Context(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestRevisions: a record's life begins with the put that brings it into being, its version with the last put.
func TestRevisions(t *testing.T) {
	s := pooltest.NewMemStore()
	slot := &pool.Slot{Pool: "p", Name: "s"}
	version := func() pool.Version {
		st, err := s.Read(t.Context(), slot.Ref())
		if err != nil {
			t.Fatal(err)
		}
		return st.Records[slot.Ref()].At()
	}
	first := apply(t, s, &pool.Txn{If: []pool.Guard{pool.Absent(slot.Ref())}, Put: []pool.Record{slot}, Event: event("1")})
	if v := version(); v.CreateRevision != first.Revision || v.ModRevision != first.Revision || v.Schema != pool.Schema {
		t.Errorf("after the first put at %d: %+v", first.Revision, v)
	}
	second := apply(t, s, &pool.Txn{If: []pool.Guard{pool.Unchanged(slot.Ref(), first.Revision)}, Put: []pool.Record{slot}, Event: event("2")})
	if v := version(); v.CreateRevision != first.Revision || v.ModRevision != second.Revision {
		t.Errorf("after the second put at %d: %+v", second.Revision, v)
	}
	apply(t, s, &pool.Txn{Delete: []pool.Ref{slot.Ref(), pool.SlotRef("p", "absent")}, Event: event("3")})
	third := apply(t, s, &pool.Txn{Put: []pool.Record{slot}, Event: event("4")})
	if v := version(); v.CreateRevision != third.Revision {
		t.Errorf("after it was deleted and put at %d: %+v", third.Revision, v)
	}
	if slot.ModRevision != 0 {
		t.Error("the store has written into the record it was given")
	}
}

// TestLostGuard: nothing is changed, and the answer says what all guarded refs held.
func TestLostGuard(t *testing.T) {
	s := pooltest.NewMemStore()
	slot := &pool.Slot{Pool: "p", Name: "s"}
	rev := s.Put(slot)
	txn := &pool.Txn{If: []pool.Guard{pool.Absent(slot.Ref()), pool.Absent(pool.PoolRef("p"))}, Put: []pool.Record{&pool.Slot{Pool: "p", Name: "s2"}}, Event: event("1")}
	res := apply(t, s, txn)
	if failed := res.Failed(txn); res.Applied || len(failed) != 1 || failed[0].Ref != slot.Ref() || res.State.Has(pool.PoolRef("p")) {
		t.Errorf("got %+v, failed %v; want the slot's guard lost", res, failed)
	}
	if s.Revision() != rev || len(s.Events()) != 0 {
		t.Errorf("revision %d with events %v, want %d with none", s.Revision(), s.Events(), rev)
	}
}

// TestSecondCopy: a transaction whose event is there was applied, and is not applied again.
func TestSecondCopy(t *testing.T) {
	s := pooltest.NewMemStore()
	txn := &pool.Txn{Put: []pool.Record{&pool.Slot{Pool: "p", Name: "s"}}, Event: event("1")}
	first := apply(t, s, txn)
	s.Drop(pool.SlotRef("p", "s"))
	if again := apply(t, s, txn); !again.Applied || again.Revision != first.Revision {
		t.Errorf("the second copy: got %+v, want applied at %d", again, first.Revision)
	}
	if recs, _, _ := s.ReadAll(t.Context()); len(recs) != 0 {
		t.Errorf("the second copy has put %v", recs)
	}
}

// TestRefusedTxns are those that etcd refuses, or that a rule of ours forbids.
func TestRefusedTxns(t *testing.T) {
	slot, active := &pool.Slot{Pool: "p", Name: "s"}, &pool.Active{Pool: "p", Key: "k"}
	many := &pool.Txn{Event: event("1")}
	for range pooltest.MaxOps + 1 {
		many.If = append(many.If, pool.Absent(slot.Ref()))
	}
	for name, txn := range map[string]*pool.Txn{
		"put twice":        {Put: []pool.Record{slot, slot}},
		"put and delete":   {Put: []pool.Record{slot}, Delete: []pool.Ref{slot.Ref()}},
		"too many":         many,
		"unguarded active": {Put: []pool.Record{active}},
	} {
		if _, err := pooltest.NewMemStore().Apply(t.Context(), txn); err == nil {
			t.Errorf("%s: applied, want it refused", name)
		}
	}
}

// TestFaults: each fault does to the call what it says.
func TestFaults(t *testing.T) {
	var late func()
	for name, tt := range map[string]struct {
		fault pooltest.Fault
		made  bool
	}{
		"none":     {pooltest.Fault{}, true},
		"not made": {pooltest.Fault{Err: pool.ErrOutcomeUnknown}, false},
		"made":     {pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: true}, true},
		"late":     {pooltest.Fault{Err: pool.ErrOutcomeUnknown, Late: func(send func()) { late = send }}, false},
	} {
		s := pooltest.NewMemStore()
		f := &pooltest.Faulty{Store: s, Decide: func(pooltest.Call) pooltest.Fault { return tt.fault }}
		_, err := f.Apply(t.Context(), &pool.Txn{Put: []pool.Record{&pool.Slot{Pool: "p", Name: "s"}}, Event: event("1")})
		if !errors.Is(err, tt.fault.Err) || (len(s.Events()) == 1) != tt.made || f.Calls() != 1 {
			t.Errorf("%s: got %v with %d events", name, err, len(s.Events()))
		}
		if late != nil {
			late()
			if late = nil; len(s.Events()) != 1 {
				t.Errorf("%s: the late copy was not made", name)
			}
		}
	}
}

// TestMirror: a mirror that is fed shows what the store holds.
func TestMirror(t *testing.T) {
	s, m := pooltest.NewMemStore(), pool.NewMirror()
	s.Put(&pool.Pool{Name: "p"})
	s.Feed(m)
	rev := s.Put(&pool.Slot{Pool: "p", Name: "s"})
	m.Read(func(snap *pool.Snapshot) {
		if p := snap.Pool("p"); p == nil || p.Slots["s"] == nil || snap.Revision != rev {
			t.Errorf("the mirror at %d does not show revision %d", snap.Revision, rev)
		}
	})
}

func TestFakeSealer(t *testing.T) {
	s, secret := pooltest.FakeSealer{}, pool.NewSecret("s3cret")
	sealed, err := s.Seal("p", "k", secret)
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := s.Open("p", "k", sealed); err != nil || !opened.Equal(secret) {
		t.Errorf("does not open: %v", err)
	}
	if sealed.Fingerprint != s.Fingerprint(secret) || len(sealed.Fingerprint) != 32 {
		t.Errorf("fingerprint %q", sealed.Fingerprint)
	}
	for name, open := range map[string]func() (pool.Secret, error){
		"another key":    func() (pool.Secret, error) { return s.Open("p", "k2", sealed) },
		"another keyset": func() (pool.Secret, error) { return pooltest.FakeSealer{Keyset: "x"}.Open("p", "k", sealed) },
	} {
		if _, err := open(); !errors.Is(err, pool.ErrSecretUnreadable) {
			t.Errorf("%s: got %v, want %v", name, err, pool.ErrSecretUnreadable)
		}
	}
}
