package pool_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotatord/rotatord/internal/pool"
)

// queryStore is a store that is only read. It panics where a query should not need it.
type queryStore struct {
	pool.Store
	mu      sync.Mutex // protects the following fields
	records map[pool.Ref]pool.Record
	at      int64
	down    bool
	reads   int
}

func (s *queryStore) put(recs ...pool.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rec := range recs {
		s.records[rec.Ref()] = rec
		s.at = max(s.at, rec.At().ModRevision)
	}
}

// begin counts a read. A store that is down says so when the caller's patience ends, as the real one does.
func (s *queryStore) begin(ctx context.Context) error {
	s.mu.Lock()
	s.reads++
	down := s.down
	s.mu.Unlock()
	if down {
		<-ctx.Done()
		return pool.Refuse(pool.ReasonNotApplied, "no quorum").Because(ctx.Err())
	}
	return nil
}

func (s *queryStore) Read(ctx context.Context, refs ...pool.Ref) (*pool.State, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &pool.State{Revision: s.at, Asked: map[pool.Ref]bool{}, Records: map[pool.Ref]pool.Record{}}
	for _, ref := range refs {
		st.Asked[ref] = true
		if rec := s.records[ref]; rec != nil {
			st.Records[ref] = rec
		}
	}
	return st, nil
}

func (s *queryStore) Rotations(ctx context.Context, poolName, key string) ([]*pool.Rotation, int64, error) {
	if err := s.begin(ctx); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*pool.Rotation
	for _, rec := range s.records {
		if r, ok := rec.(*pool.Rotation); ok && r.Pool == poolName && r.Key == key {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *pool.Rotation) int { return int(a.Generation - b.Generation) })
	return out, s.at, nil
}

// querySealer opens "sealed:x" to "x" and nothing else.
type querySealer struct{ pool.Sealer }

func (querySealer) Open(_, _ string, s pool.Sealed) (pool.Secret, error) {
	value, ok := strings.CutPrefix(string(s.Ciphertext), "sealed:")
	if !ok {
		return pool.Secret{}, pool.ErrSecretUnreadable
	}
	return pool.NewSecret(value), nil
}

var queryNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// queryWorld is a mirror, the store behind it and the reads over both.
type queryWorld struct {
	*pool.Queries
	mirror   *pool.Mirror
	store    *queryStore
	progress int
}

func newQueryWorld(t testing.TB, recs ...pool.Record) *queryWorld {
	t.Helper()
	w := &queryWorld{mirror: pool.NewMirror(), store: &queryStore{records: map[pool.Ref]pool.Record{}}}
	w.store.put(recs...)
	w.mirror.Load(recs, max(w.store.at, 1), queryNow)
	w.store.at = max(w.store.at, 1)
	w.Queries = pool.NewQueries(pool.QueriesConfig{
		Mirror: w.mirror, Store: w.store, Sealer: querySealer{},
		Now:      func() time.Time { return queryNow },
		Progress: func() { w.progress++ },
	})
	return w
}

func qVersion(revision int64) pool.Version {
	return pool.Version{Schema: 1, CreateRevision: revision, ModRevision: revision}
}

func qPool(name string, rev int64) *pool.Pool { return &pool.Pool{Version: qVersion(rev), Name: name} }

func qActive(key, slot string, rev int64) *pool.Active {
	return &pool.Active{
		Version: qVersion(rev), Pool: "p", Key: key, Slot: slot, Status: pool.StatusHealthy,
		Sealed: pool.Sealed{Ciphertext: []byte("sealed:" + key), Fingerprint: "f-" + key, Preview: "..."},
	}
}

func qStatus(a *pool.Active, s pool.Status, until time.Time) *pool.Active {
	a.Status, a.StatusUntil = s, until
	return a
}

func qBackup(key string, rev int64) *pool.Backup {
	return &pool.Backup{Version: qVersion(rev), Pool: "p", Key: key, Sealed: pool.Sealed{Ciphertext: []byte("sealed:" + key)}}
}

func qRetired(key string, rev int64) *pool.Retired {
	return &pool.Retired{Version: qVersion(rev), Pool: "p", Key: key, Phase: pool.PhaseRetired, Slot: "s", Generation: 2}
}

func qRotation(key string, generation, rev int64) *pool.Rotation {
	return &pool.Rotation{Version: qVersion(rev), Life: pool.Life{Pool: "p", Key: key, Generation: generation}, ID: fmt.Sprintf("%s-%d", key, rev)}
}

func qBinding(proxy string, rev int64, slots ...pool.SlotPriority) *pool.Binding {
	return &pool.Binding{Version: qVersion(rev), Pool: "p", Proxy: proxy, Slots: slots}
}

func qWantReason(t *testing.T, err error, want pool.Reason) {
	t.Helper()
	if got := pool.ReasonOf(err); got != want {
		t.Errorf("error is %v with reason %q, want reason %q", err, got, want)
	}
}

func qChoiceNames(keys []pool.KeyChoice) string {
	var names []string
	for _, k := range keys {
		names = append(names, fmt.Sprintf("%s=%d", k.ID, k.Priority))
	}
	return strings.Join(names, " ")
}

func TestGetKeys(t *testing.T) {
	soon, later := queryNow.Add(time.Minute), queryNow.Add(time.Hour)
	records := []pool.Record{
		qPool("p", 2), qPool("empty", 3),
		qActive("k1", "s3", 11), qActive("k2", "s1", 12), qActive("k3", "s2", 13),
		qStatus(qActive("cooling", "s4", 14), pool.StatusRateLimited, later),
		qStatus(qActive("failing", "s5", 15), pool.StatusError, soon),
		qStatus(qActive("cooled", "s6", 16), pool.StatusRateLimited, queryNow),
		qStatus(qActive("off", "s7", 17), pool.StatusDisabled, time.Time{}),
		qBinding("two", 20, pool.SlotPriority{Slot: "s3", Priority: 1}, pool.SlotPriority{Slot: "s1", Priority: 2}),
		qBinding("waiting", 21, pool.SlotPriority{Slot: "s4", Priority: 1}, pool.SlotPriority{Slot: "s7", Priority: 2}),
		qBinding("stuck", 22, pool.SlotPriority{Slot: "s7", Priority: 1}),
	}
	for _, tc := range []struct {
		name, pool, proxy string
		want              string
		next              time.Time
		bound             bool
	}{
		{"whole pool in slot order", "p", "", "k2=1 k3=1 k1=1 cooled=1", soon, false},
		{"unbound proxy has the whole pool", "p", "nobody", "k2=1 k3=1 k1=1 cooled=1", soon, false},
		{"bound proxy in priority order", "p", "two", "k1=1 k2=2", time.Time{}, true},
		{"bound proxy waits for its own keys only", "p", "waiting", "", later, true},
		{"nothing will come back by itself", "p", "stuck", "", time.Time{}, true},
		{"empty pool", "empty", "", "", time.Time{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newQueryWorld(t, records...)
			got, err := w.GetKeys(t.Context(), pool.KeysQuery{Pool: tc.pool, Proxy: tc.proxy})
			if err != nil {
				t.Fatal(err)
			}
			if keys := qChoiceNames(got.Keys); keys != tc.want {
				t.Errorf("keys are %q, want %q", keys, tc.want)
			}
			got.Keys = nil
			want := pool.KeySet{NextUsableAt: tc.next, Bound: tc.bound, Revision: 22, AsOf: queryNow}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the rest of the answer (-want +got):\n%s", diff)
			}
			if w.store.reads > 0 {
				t.Errorf("the store was read %d times for keys that are in memory", w.store.reads)
			}
		})
	}
}

func TestGetKeysOpensSecretsOnlyWhenAsked(t *testing.T) {
	w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3))
	for _, include := range []bool{false, true} {
		got, err := w.GetKeys(t.Context(), pool.KeysQuery{Pool: "p", IncludeSecret: include})
		if err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{true: "k1"}[include]
		if secret := got.Keys[0].Secret.Reveal(); secret != want {
			t.Errorf("include %t: the secret is %q, want %q", include, secret, want)
		}
	}
}

func TestQuerySecretsThatDoNotOpen(t *testing.T) {
	spoiled := qActive("k2", "s2", 4)
	spoiled.Sealed.Ciphertext = []byte("other keyset")
	purged := qRetired("old", 5)
	w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3), spoiled, purged)

	set, err := w.GetKeys(t.Context(), pool.KeysQuery{Pool: "p", IncludeSecret: true})
	qWantReason(t, err, pool.ReasonSecretUnreadable)
	if len(set.Keys) > 0 {
		t.Errorf("a failed GetKeys returned %d keys, want none", len(set.Keys))
	}
	_, _, err = w.GetKey(t.Context(), pool.KeyQuery{Pool: "p", Key: "k2", IncludeSecret: true})
	qWantReason(t, err, pool.ReasonSecretUnreadable)
	_, err = w.Describe(spoiled, true)
	qWantReason(t, err, pool.ReasonSecretUnreadable)
	if _, _, err = w.GetKey(t.Context(), pool.KeyQuery{Pool: "p", Key: "k2"}); err != nil {
		t.Errorf("GetKey without the secret: %v", err)
	}
	if key, _, err := w.GetKey(t.Context(), pool.KeyQuery{Pool: "p", Key: "old", IncludeSecret: true}); err != nil || !key.Secret.IsZero() {
		t.Errorf("GetKey of a purged key: secret %q, error %v; want none of both", key.Secret.Reveal(), err)
	}
}

func TestGetKeyInEveryHome(t *testing.T) {
	waiting := qStatus(qActive("a", "s1", 3), pool.StatusExhausted, time.Time{})
	stale := qActive("again", "s2", 9)
	w := newQueryWorld(t, qPool("p", 2), waiting, stale, qBackup("b", 4), qRetired("r", 5),
		&pool.Pending{Version: qVersion(6), Life: waiting.Life()},
		&pool.Pending{Version: qVersion(7), Life: pool.Life{Pool: "p", Key: "again", Generation: 1}})
	for _, tc := range []struct {
		key     string
		home    pool.Home
		gen     int64
		pending bool
	}{
		{"a", pool.HomeActive, 3, true},
		{"again", pool.HomeActive, 9, false}, // what waits is about an earlier life
		{"b", pool.HomeBackup, 0, false},
		{"r", pool.HomeRetired, 2, false},
	} {
		got, rev, err := w.GetKey(t.Context(), pool.KeyQuery{Pool: "p", Key: tc.key})
		if err != nil {
			t.Fatalf("GetKey %s: %v", tc.key, err)
		}
		if got.ID != tc.key || got.Home != tc.home || got.Generation != tc.gen || got.Pending != tc.pending || rev != 9 {
			t.Errorf("GetKey %s: %+v at %d, want home %s, generation %d, pending %t at 9", tc.key, got, rev, tc.home, tc.gen, tc.pending)
		}
	}
	if got, _ := w.Describe(waiting, false); !got.Pending {
		t.Error("Describe does not say that a rotation waits")
	}
}

// qNegatives are the reads whose answer may be "not found".
var qNegatives = []struct {
	name   string
	reason pool.Reason
	later  []pool.Record // what the mirror has not seen yet
	ask    func(*pool.Queries, context.Context) error
}{
	{"pool", pool.ReasonPoolNotFound, []pool.Record{qPool("new", 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, _, err := q.GetPool(ctx, "new", 0)
		return err
	}},
	{"keys of a pool", pool.ReasonPoolNotFound, []pool.Record{qPool("new", 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, err := q.GetKeys(ctx, pool.KeysQuery{Pool: "new"})
		return err
	}},
	{"list of keys", pool.ReasonPoolNotFound, []pool.Record{qPool("new", 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, err := q.ListKeys(ctx, pool.KeysFilter{Pool: "new"}, pool.PageRequest{})
		return err
	}},
	{"list of bindings", pool.ReasonPoolNotFound, []pool.Record{qPool("new", 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, err := q.ListBindings(ctx, "new", "", pool.PageRequest{})
		return err
	}},
	{"list of rotations", pool.ReasonPoolNotFound, []pool.Record{qPool("new", 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, err := q.ListRotations(ctx, "new", "", pool.PageRequest{})
		return err
	}},
	{"active key", pool.ReasonKeyNotFound, []pool.Record{qActive("k9", "s9", 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, _, err := q.GetKey(ctx, pool.KeyQuery{Pool: "p", Key: "k9"})
		return err
	}},
	{"retired key", pool.ReasonKeyNotFound, []pool.Record{qRetired("k9", 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, _, err := q.GetKey(ctx, pool.KeyQuery{Pool: "p", Key: "k9"})
		return err
	}},
	{"rotation of a life", pool.ReasonRotationNotFound, []pool.Record{qRotation("k1", 3, 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, _, err := q.GetRotation(ctx, pool.RotationQuery{Pool: "p", Key: "k1", Generation: 3})
		return err
	}},
	{"latest rotation", pool.ReasonRotationNotFound, []pool.Record{qRotation("k1", 3, 50)}, func(q *pool.Queries, ctx context.Context) error {
		_, _, err := q.GetRotation(ctx, pool.RotationQuery{Pool: "p", Key: "k1"})
		return err
	}},
	{"rotation in an unknown pool", pool.ReasonPoolNotFound, []pool.Record{qPool("new", 49), &pool.Rotation{
		Version: qVersion(50), Life: pool.Life{Pool: "new", Key: "k", Generation: 4},
	}}, func(q *pool.Queries, ctx context.Context) error {
		_, _, err := q.GetRotation(ctx, pool.RotationQuery{Pool: "new", Key: "k", Generation: 4})
		return err
	}},
}

func TestNothingIsNotFoundBeforeTheStoreSaysSo(t *testing.T) {
	for _, tc := range qNegatives {
		t.Run(tc.name, func(t *testing.T) {
			w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3))
			qWantReason(t, tc.ask(w.Queries, t.Context()), tc.reason)
			if w.store.reads == 0 {
				t.Error("not found was said without reading the store")
			}
		})
	}
}

func TestQueriesCatchUpWithWhatTheStoreHas(t *testing.T) {
	for _, tc := range qNegatives {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3))
				w.store.put(tc.later...)
				done := make(chan error, 1)
				go func() { done <- tc.ask(w.Queries, t.Context()) }()
				synctest.Wait()
				select {
				case err := <-done:
					t.Fatalf("answered with %v before the mirror had the record", err)
				default:
				}
				var changes []pool.Change
				for _, rec := range tc.later {
					changes = append(changes, pool.Change{Put: rec})
				}
				w.mirror.Apply(changes, 50)
				if err := <-done; err != nil {
					t.Errorf("after the mirror caught up: %v", err)
				}
			})
		})
	}
}

func TestQueriesWithoutQuorum(t *testing.T) {
	for _, tc := range qNegatives {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3))
				w.store.down = true
				began := time.Now()
				qWantReason(t, tc.ask(w.Queries, t.Context()), pool.ReasonNotApplied)
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("it took %s to say so, want at most 2s", took)
				}
				if _, err := w.GetKeys(t.Context(), pool.KeysQuery{Pool: "p"}); err != nil {
					t.Errorf("GetKeys of known keys: %v", err)
				}
				if _, _, err := w.GetKey(t.Context(), pool.KeyQuery{Pool: "p", Key: "k1"}); err != nil {
					t.Errorf("GetKey of a known key: %v", err)
				}
			})
		})
	}
}

func TestGetRotationOfAFutureLife(t *testing.T) {
	w := newQueryWorld(t, qPool("p", 2))
	_, _, err := w.GetRotation(t.Context(), pool.RotationQuery{Pool: "p", Key: "k", Generation: 1000})
	qWantReason(t, err, pool.ReasonGenerationInFuture)
}

func TestGetRotationOfTheLatestLife(t *testing.T) {
	w := newQueryWorld(t, qPool("p", 2), qRotation("k", 3, 10), qRotation("k", 11, 20))
	for generation, want := range map[int64]string{0: "k-20", 3: "k-10", 11: "k-20"} {
		got, _, err := w.GetRotation(t.Context(), pool.RotationQuery{Pool: "p", Key: "k", Generation: generation})
		if err != nil || got.ID != want {
			t.Errorf("rotation of generation %d: %v, error %v; want %s", generation, got, err, want)
		}
	}
}

// qMinRevisionReads are all reads, asked with a min_revision.
func qMinRevisionReads(q *pool.Queries, ctx context.Context, rev int64) map[string]func() (int64, error) {
	page := pool.PageRequest{MinRevision: rev}
	return map[string]func() (int64, error){
		"GetKeys": func() (int64, error) {
			set, err := q.GetKeys(ctx, pool.KeysQuery{Pool: "p", MinRevision: rev})
			return set.Revision, err
		},
		"GetKey": func() (int64, error) {
			_, at, err := q.GetKey(ctx, pool.KeyQuery{Pool: "p", Key: "k1", MinRevision: rev})
			return at, err
		},
		"GetPool": func() (int64, error) { _, at, err := q.GetPool(ctx, "p", rev); return at, err },
		"GetRotation": func() (int64, error) {
			_, at, err := q.GetRotation(ctx, pool.RotationQuery{Pool: "p", Key: "k", MinRevision: rev})
			return at, err
		},
		"ListReplicas": func() (int64, error) { _, at, err := q.ListReplicas(ctx, rev); return at, err },
		"ListPools":    func() (int64, error) { return qPageRevision(q.ListPools(ctx, page)) },
		"ListKeys": func() (int64, error) {
			return qPageRevision(q.ListKeys(ctx, pool.KeysFilter{Pool: "p"}, page))
		},
		"ListBindings":  func() (int64, error) { return qPageRevision(q.ListBindings(ctx, "p", "", page)) },
		"ListRotations": func() (int64, error) { return qPageRevision(q.ListRotations(ctx, "p", "", page)) },
	}
}

func qPageRevision[T any](p *pool.Page[T], err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return p.Revision, nil
}

func TestQueriesMinRevision(t *testing.T) {
	world := func(t *testing.T) *queryWorld {
		return newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3), qRotation("k", 3, 10))
	}
	for name := range qMinRevisionReads(nil, nil, 0) {
		t.Run(name+" waits for it", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world(t)
				w.store.at = 60
				go func() {
					time.Sleep(300 * time.Millisecond)
					w.mirror.Apply(nil, 60)
				}()
				at, err := qMinRevisionReads(w.Queries, t.Context(), 60)[name]()
				if err != nil || at != 60 {
					t.Errorf("answered at %d, error %v; want 60", at, err)
				}
				if w.progress == 0 {
					t.Error("the watch was not asked for progress")
				}
			})
		})
		t.Run(name+" refuses the future", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world(t)
				_, err := qMinRevisionReads(w.Queries, t.Context(), 60)[name]()
				qWantReason(t, err, pool.ReasonRevisionInFuture)
			})
		})
		t.Run(name+" ends with its context", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world(t)
				w.store.at = 60
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := qMinRevisionReads(w.Queries, ctx, 60)[name]()
				if !errors.Is(err, context.DeadlineExceeded) || pool.ReasonOf(err) != "" {
					t.Errorf("error is %v, want the context's", err)
				}
			})
		})
		t.Run(name+" without quorum", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world(t)
				w.store.down = true
				_, err := qMinRevisionReads(w.Queries, t.Context(), 60)[name]()
				qWantReason(t, err, pool.ReasonNotApplied)
			})
		})
		t.Run(name+" while loading", func(t *testing.T) {
			q := pool.NewQueries(pool.QueriesConfig{Mirror: pool.NewMirror(), Now: time.Now})
			_, err := qMinRevisionReads(q, t.Context(), 0)[name]()
			qWantReason(t, err, pool.ReasonNotApplied)
		})
	}
}

func TestQueriesOfBrokenRecords(t *testing.T) {
	broken := func(ref pool.Ref) *pool.Broken {
		return &pool.Broken{Version: qVersion(30), Of: ref, Err: errors.New("bad JSON")}
	}
	w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3), qBinding("b", 4, pool.SlotPriority{Slot: "s1", Priority: 1}),
		broken(pool.BackupRef("p", "k2")), broken(pool.BindingRef("p", "proxy")), broken(pool.PoolRef("lost")),
		broken(pool.PoolRef("half")), &pool.Active{Version: qVersion(5), Pool: "half", Key: "k", Slot: "s", Status: pool.StatusHealthy},
		broken(pool.RotationRef(pool.Life{Pool: "p", Key: "k1", Generation: 9})))

	_, _, err := w.GetKey(t.Context(), pool.KeyQuery{Pool: "p", Key: "k2"})
	qWantReason(t, err, pool.ReasonRecordUnreadable)
	_, err = w.GetKeys(t.Context(), pool.KeysQuery{Pool: "p", Proxy: "proxy"})
	qWantReason(t, err, pool.ReasonRecordUnreadable)
	_, _, err = w.GetPool(t.Context(), "lost", 0)
	qWantReason(t, err, pool.ReasonRecordUnreadable)
	_, _, err = w.GetPool(t.Context(), "half", 0)
	qWantReason(t, err, pool.ReasonRecordUnreadable)
	_, _, err = w.GetRotation(t.Context(), pool.RotationQuery{Pool: "p", Key: "k1", Generation: 9})
	qWantReason(t, err, pool.ReasonRecordUnreadable)

	if set, err := w.GetKeys(t.Context(), pool.KeysQuery{Pool: "half"}); err != nil || len(set.Keys) != 1 {
		t.Errorf("keys of a pool whose own record is broken: %s, error %v; want k", qChoiceNames(set.Keys), err)
	}
	if set, err := w.GetKeys(t.Context(), pool.KeysQuery{Pool: "p", Proxy: "b"}); err != nil || len(set.Keys) != 1 {
		t.Errorf("keys of a bound proxy beside broken records: %s, error %v; want k1", qChoiceNames(set.Keys), err)
	}
}

func TestQueryViolations(t *testing.T) {
	w := newQueryWorld(t, qPool("p", 2))
	bad := pool.PageRequest{Size: 1001, Token: "?", MinRevision: -1}
	ctx := t.Context()
	for name, tc := range map[string]struct {
		want []string
		ask  func() error
	}{
		"GetKeys": {[]string{"pool", "proxy_id", "min_revision"}, func() error {
			_, err := w.GetKeys(ctx, pool.KeysQuery{Pool: "", Proxy: "-", MinRevision: -1})
			return err
		}},
		"GetKey": {[]string{"pool", "key_id", "min_revision"}, func() error {
			_, _, err := w.GetKey(ctx, pool.KeyQuery{MinRevision: -1})
			return err
		}},
		"GetPool": {[]string{"name", "min_revision"}, func() error { _, _, err := w.GetPool(ctx, "a/b", -1); return err }},
		"GetRotation": {[]string{"pool", "key_id", "generation", "min_revision"}, func() error {
			_, _, err := w.GetRotation(ctx, pool.RotationQuery{Generation: -1, MinRevision: -1})
			return err
		}},
		"ListPools": {[]string{"page_size", "page_token", "min_revision"}, func() error { _, err := w.ListPools(ctx, bad); return err }},
		"ListKeys": {[]string{"pool", "home", "page_size", "page_token", "min_revision"}, func() error {
			_, err := w.ListKeys(ctx, pool.KeysFilter{Home: 5}, bad)
			return err
		}},
		"ListBindings": {[]string{"pool", "slot", "page_size", "page_token", "min_revision"}, func() error {
			_, err := w.ListBindings(ctx, "", " ", bad)
			return err
		}},
		"ListRotations": {[]string{"pool", "key_id", "page_size", "page_token", "min_revision"}, func() error {
			_, err := w.ListRotations(ctx, "", " ", bad)
			return err
		}},
		"ListReplicas": {[]string{"min_revision"}, func() error { _, _, err := w.ListReplicas(ctx, -1); return err }},
	} {
		t.Run(name, func(t *testing.T) {
			var r *pool.Refusal
			if err := tc.ask(); !errors.As(err, &r) || r.Reason != pool.ReasonInvalidArgument {
				t.Fatalf("error is %v, want violations", err)
			}
			var fields []string
			for _, v := range r.Fields {
				fields = append(fields, v.Field)
			}
			if diff := cmp.Diff(tc.want, fields); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}

// collect walks all pages of a list.
func qCollect[T any](t *testing.T, size int, list func(pool.PageRequest) (*pool.Page[T], error), name func(T) string) []string {
	t.Helper()
	var names []string
	for token := ""; ; {
		page, err := list(pool.PageRequest{Size: size, Token: token})
		if err != nil {
			t.Fatalf("page after %d records: %v", len(names), err)
		}
		if len(page.Items) > size {
			t.Fatalf("a page of %d has %d records", size, len(page.Items))
		}
		for _, item := range page.Items {
			names = append(names, name(item))
		}
		if token = page.Next; token == "" {
			return names
		}
	}
}

func TestListsArePagedInOrder(t *testing.T) {
	records := []pool.Record{qPool("p", 2), qPool("q", 3), qPool("a", 4)}
	var keys, bindings, rotations []string
	for i := range 25 {
		a := qActive(fmt.Sprintf("a%02d", i), fmt.Sprintf("s%02d", i), 100)
		r := qRetired(fmt.Sprintf("0r%02d", i), 100)
		b := qBackup(fmt.Sprintf("0b%02d", i), 100)
		records = append(records, a, r, b, qBinding(fmt.Sprintf("x%02d", i), 100, pool.SlotPriority{Slot: a.Slot, Priority: 1}),
			qRotation(fmt.Sprintf("k%02d", 24-i), 5, 200+int64(i/2)))
		bindings = append(bindings, fmt.Sprintf("x%02d", i))
	}
	for _, home := range []string{"a", "0b", "0r"} {
		for i := range 25 {
			keys = append(keys, fmt.Sprintf("%s%02d", home, i))
		}
	}
	for i := 0; i < 25; i += 2 {
		if i+1 < 25 {
			rotations = append(rotations, fmt.Sprintf("k%02d", 24-i-1))
		}
		rotations = append(rotations, fmt.Sprintf("k%02d", 24-i))
	}
	w := newQueryWorld(t, records...)
	ctx := t.Context()
	check := func(what string, size int, got, want []string) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s by %d (-want +got):\n%s", what, size, diff)
		}
	}
	keyID := func(k pool.KeyInfo) string { return k.ID }
	for _, size := range []int{1, 2, 7, 24, 25, 26, 75, 1000} {
		check("keys", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[pool.KeyInfo], error) {
			return w.ListKeys(ctx, pool.KeysFilter{Pool: "p"}, p)
		}, keyID), keys)
		check("backups", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[pool.KeyInfo], error) {
			return w.ListKeys(ctx, pool.KeysFilter{Pool: "p", Home: pool.HomeBackup}, p)
		}, keyID), keys[25:50])
		check("bindings", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[*pool.Binding], error) {
			return w.ListBindings(ctx, "p", "", p)
		}, func(b *pool.Binding) string { return b.Proxy }), bindings)
		check("bindings of a slot", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[*pool.Binding], error) {
			return w.ListBindings(ctx, "p", "s07", p)
		}, func(b *pool.Binding) string { return b.Proxy }), bindings[7:8])
		check("rotations", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[*pool.Rotation], error) {
			return w.ListRotations(ctx, "p", "", p)
		}, func(r *pool.Rotation) string { return r.Key }), rotations)
		check("rotations of a key", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[*pool.Rotation], error) {
			return w.ListRotations(ctx, "p", "k03", p)
		}, func(r *pool.Rotation) string { return r.Key }), []string{"k03"})
		check("pools", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[pool.PoolInfo], error) {
			return w.ListPools(ctx, p)
		}, func(p pool.PoolInfo) string { return p.Name }), []string{"a", "p", "q"})
		check("keys of an empty pool", size, qCollect(t, size, func(p pool.PageRequest) (*pool.Page[pool.KeyInfo], error) {
			return w.ListKeys(ctx, pool.KeysFilter{Pool: "q"}, p)
		}, keyID), nil)
	}
}

func TestListKeysPendingOnly(t *testing.T) {
	waiting := qActive("k2", "s2", 4)
	w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3), waiting, qBackup("k3", 5), qRetired("k4", 6),
		&pool.Pending{Version: qVersion(7), Life: waiting.Life()})
	page, err := w.ListKeys(t.Context(), pool.KeysFilter{Pool: "p", PendingOnly: true}, pool.PageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Items) != 1 || page.Items[0].ID != "k2" || !page.Items[0].Pending {
		t.Errorf("listed %+v, want k2", page.Items)
	}
}

func TestATokenGoesOnAfterItsRecordIsGone(t *testing.T) {
	w := newQueryWorld(t, qPool("p", 2), qActive("k1", "s1", 3), qActive("k2", "s2", 4), qActive("k3", "s3", 5))
	first, err := w.ListKeys(t.Context(), pool.KeysFilter{Pool: "p"}, pool.PageRequest{Size: 2})
	if err != nil {
		t.Fatal(err)
	}
	w.mirror.Apply([]pool.Change{{Delete: pool.ActiveRef("p", "k2")}}, 6)
	second, err := w.ListKeys(t.Context(), pool.KeysFilter{Pool: "p"}, pool.PageRequest{Size: 2, Token: first.Next})
	if err != nil || len(second.Items) != 1 || second.Items[0].ID != "k3" || second.Next != "" {
		t.Errorf("second page is %+v, error %v; want only k3", second, err)
	}
	if _, err := w.ListBindings(t.Context(), "p", "", pool.PageRequest{Token: first.Next}); pool.ReasonOf(err) != pool.ReasonInvalidArgument {
		t.Errorf("the token of another list: %v, want %s", err, pool.ReasonInvalidArgument)
	}
}

func TestGetPoolCounts(t *testing.T) {
	a := qActive("k1", "s1", 3)
	w := newQueryWorld(t, qPool("p", 2), a, qBackup("b1", 4), qBackup("b2", 5), qRetired("r", 6), qBinding("x", 7),
		&pool.Pending{Version: qVersion(8), Life: a.Life()})
	want := pool.PoolCounts{Active: 1, Backup: 2, Retired: 1, Pending: 1, Bindings: 1}
	got, rev, err := w.GetPool(t.Context(), "p", 0)
	if err != nil || rev != 8 {
		t.Fatalf("GetPool at %d: %v", rev, err)
	}
	if diff := cmp.Diff(want, got.Counts); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, w.WithCounts(got.Pool).Counts); diff != "" {
		t.Errorf("counts of a pool at hand (-want +got):\n%s", diff)
	}
}

func TestListReplicas(t *testing.T) {
	w := newQueryWorld(t, &pool.Replica{Version: qVersion(3), Name: "r2"}, &pool.Replica{Version: qVersion(4), Name: "r1"})
	got, rev, err := w.ListReplicas(t.Context(), 0)
	if err != nil || rev != 4 || len(got) != 2 || got[0].Name != "r1" {
		t.Errorf("replicas %v at %d, error %v; want r1, r2 at 4", got, rev, err)
	}
}

func qLargePool(keys, bound int) []pool.Record {
	recs := map[string]pool.Record{"p": qPool("p", 2)}
	for i := range keys {
		id := fmt.Sprintf("k%06d", i)
		recs[id] = qActive(id, id, int64(10+i))
	}
	b := qBinding("proxy", 5)
	for i := range bound {
		b.Slots = append(b.Slots, pool.SlotPriority{Slot: fmt.Sprintf("k%06d", i*keys/bound), Priority: i + 1})
	}
	return append(slices.Collect(maps.Values(recs)), b)
}

func TestGetKeysOfABoundProxyIsCheap(t *testing.T) {
	w := newQueryWorld(t, qLargePool(2_000, 4)...)
	ctx := t.Context()
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := w.GetKeys(ctx, pool.KeysQuery{Pool: "p", Proxy: "proxy"}); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 2 {
		t.Errorf("GetKeys of a bound proxy makes %.0f allocations, want at most 2", allocs)
	}
}

func BenchmarkGetKeys(b *testing.B) {
	w := newQueryWorld(b, qLargePool(100_000, 4)...)
	for _, bm := range []struct {
		name string
		req  pool.KeysQuery
	}{
		{"bound", pool.KeysQuery{Pool: "p", Proxy: "proxy"}},
		{"whole", pool.KeysQuery{Pool: "p"}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.GetKeys(b.Context(), bm.req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("list", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.ListKeys(b.Context(), pool.KeysFilter{Pool: "p"}, pool.PageRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
