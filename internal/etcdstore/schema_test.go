package etcdstore

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/internal/pool"
)

// schemaRig is a replica of a build that knows schema 3.
type schemaRig struct {
	t      *testing.T
	client *clientv3.Client
	store  *Store
	mirror *pool.Mirror
	n      int
}

func newSchemaRig(t *testing.T, client *clientv3.Client, replica string) *schemaRig {
	r := &schemaRig{t: t, client: client, mirror: pool.NewMirror()}
	r.store = New(client, Options{Replica: replica, AttemptTimeout: patient, Mirror: r.mirror})
	r.store.schemas.newest = 3
	return r
}

// follow keeps the mirror up to date.
func (r *schemaRig) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = NewFollower(r.store, r.mirror, quiet()).Run(ctx) }()
	r.t.Cleanup(func() { cancel(); <-done })
}

// caughtUp waits until the mirror shows what is in etcd, and not what has gone from it.
func (r *schemaRig) caughtUp() {
	r.t.Helper()
	revision, err := r.store.Probe(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.mirror.Wait(within(r.t, patient), revision); err != nil {
		r.t.Fatal(err)
	}
}

func (r *schemaRig) replica(name string, knows int) {
	r.t.Helper()
	if err := r.store.PutReplica(r.t.Context(), &pool.Replica{Name: name, KnowsSchema: knows}, 0); err != nil {
		r.t.Fatal(err)
	}
	r.caughtUp()
}

// writes makes a transition and returns the schema of its record, which is the event's too.
func (r *schemaRig) writes() int {
	r.t.Helper()
	r.n++
	id := fmt.Sprint(r.store.source[len("rotatord/"):], r.n)
	applied(r.t, r.store, &pool.Txn{Put: []pool.Record{backup(id)}, Event: event(id)})
	record, event := r.schemaOf(pool.BackupRef("p", id)), r.schemaOf(pool.EventRef("p", id))
	if record != event {
		r.t.Errorf("a record of schema %d with an event of schema %d", record, event)
	}
	return record
}

func (r *schemaRig) schemaOf(ref pool.Ref) int {
	r.t.Helper()
	resp, err := r.client.Get(r.t.Context(), r.store.Layout().Key(ref))
	var value struct{ Schema int }
	if err == nil {
		err = json.Unmarshal(resp.Kvs[0].Value, &value)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return value.Schema
}

// Two versions side by side: what is written is what the oldest one on record knows, and it does not fall again.
func TestSchemaThatAllKnow(t *testing.T) {
	r := newSchemaRig(t, connect(t), "r0")
	want := func(when string, schema int) {
		t.Helper()
		if got := r.writes(); got != schema {
			t.Errorf("%s schema %d is written, want %d", when, got, schema)
		}
	}
	want("before it is known who is there", 1)
	r.follow()
	r.replica("r1", 1)
	r.replica("r0", 3)
	want("beside a replica that knows schema 1", 1)
	if schema := r.schemaOf(pool.ReplicaRef("r0")); schema != 1 {
		t.Errorf("the replica's own record has schema %d", schema)
	}
	r.replica("r1", 2)
	want("beside one that knows schema 2", 2)
	r.replica("r1", 1)
	want("when that one was taken back", 2)
	applied(t, r.store, &pool.Txn{Delete: []pool.Ref{pool.ReplicaRef("r1")}})
	r.caughtUp()
	want("when it has gone", 3)
	r.replica("r2", 4)
	r.replica("r0", 4) // of another life
	want("beside newer ones", 3)
}

// What was read is known to all: one who does not know that yet must not write it anew with less.
func TestSchemaThatWasRead(t *testing.T) {
	client := connect(t)
	old := newSchemaRig(t, client, "r0")
	old.store.schemas.rise(2)
	old.writes()
	for name, read := range map[string]func(*schemaRig) error{
		"read": func(r *schemaRig) error {
			_, err := r.store.Read(t.Context(), pool.BackupRef("p", "r01"))
			return err
		},
		"listed": func(r *schemaRig) error {
			_, _, err := r.store.List(t.Context(), pool.KindBackup, "p", 0)
			return err
		},
		"found by a transaction": func(r *schemaRig) error {
			_, err := r.store.Apply(t.Context(), &pool.Txn{If: []pool.Guard{pool.Absent(pool.BackupRef("p", "r01"))}, Event: event("never")})
			return err
		},
		"watched": func(r *schemaRig) error {
			old.writes()
			r.follow()
			<-r.mirror.Loaded()
			r.store.schemas.known.Store(1) // it was loaded with the record, and that is another case
			old.writes()
			r.caughtUp()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSchemaRig(t, client, "r1"+name[:1])
			r.t = t
			if err := read(r); err != nil {
				t.Fatal(err)
			}
			if got := r.writes(); got != 2 {
				t.Errorf("schema %d is written, want 2", got)
			}
		})
	}
}
