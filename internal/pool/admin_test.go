package pool_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// newStore makes an empty store for one test. Every test of the admin goes through it, so that all of them can be run
// against etcd too; what a store may offer beyond pool.Store are the interfaces below.
var newStore = func(testing.TB) pool.Store { return pooltest.NewMemStore() }

// fakeTime says that newStore's stores can be used in a synctest bubble.
var fakeTime = true

type (
	// revisionWatcher lets the rig check every revision, not only those between calls.
	revisionWatcher interface {
		Watch(func(revision int64, records func() []pool.Record, t *pool.Txn))
	}
	// eventLister lets the rig count events.
	eventLister interface{ Events() []pooltest.StoredEvent }
	// handEditor lets tests make states that no call makes.
	handEditor interface {
		Put(...pool.Record) int64
		Drop(...pool.Ref) int64
	}
)

// inTime runs a test with fake time, where the store allows that: waits take no time then.
func inTime(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	if fakeTime {
		synctest.Test(t, fn)
		return
	}
	fn(t)
}

// adminRig is an Admin over a store that fails on demand, and another over the same store that does not: somebody else.
type adminRig struct {
	t      testing.TB
	ctx    context.Context
	store  pool.Store
	faulty *pooltest.Faulty
	admin  *pool.Admin
	rival  *pool.Admin
	byHand bool // the test makes states that are against the rules
}

// edit gives the store for edits by hand, or skips the test if it has no such thing.
func (r *adminRig) edit() handEditor {
	r.t.Helper()
	h, ok := r.store.(handEditor)
	if !ok {
		r.t.Skip("this store cannot be edited by hand")
	}
	r.byHand = true
	return h
}

func newAdminRig(t testing.TB) *adminRig {
	t.Helper()
	r := &adminRig{t: t, ctx: t.Context(), store: newStore(t)}
	r.faulty = &pooltest.Faulty{Store: r.store}
	cfg := pool.AdminConfig{Store: r.faulty, Sealer: pooltest.FakeSealer{}, Replica: "r0"}
	r.admin = pool.NewAdmin(cfg)
	cfg.Store = r.store
	r.rival = pool.NewAdmin(cfg)
	if w, ok := r.store.(revisionWatcher); ok {
		w.Watch(r.checkRevision)
	}
	return r
}

// checkRevision holds every revision to the invariants and every transition to the rules for writes.
func (r *adminRig) checkRevision(revision int64, recs func() []pool.Record, t *pool.Txn) {
	if r.byHand {
		return // against the rules on purpose
	}
	what := "a sweep"
	if t != nil {
		if what = "a reading"; t.Event != nil {
			what = fmt.Sprintf("%s of %s", t.Event.Type, t.Event.Subject)
		}
		if problem := lintTxn(t); problem != "" {
			r.t.Errorf("revision %d, %s: %s", revision, what, problem)
		}
	}
	for _, f := range pool.Check(recs(), time.Now()).Errors() {
		r.t.Errorf("revision %d, after %s: %s %s: %s", revision, what, f.Check, f.Subject, f.Message)
	}
}

// lintTxn says which of DESIGN's rules for writes a transaction does not obey; "" if none.
func lintTxn(t *pool.Txn) string {
	guards := make(map[pool.Ref]pool.Guard)
	for _, g := range t.If {
		guards[g.Ref] = g
	}
	switch {
	case t.Event == nil:
		return lintReading(t)
	case t.Event.ID == "" || t.Event.Type == "" || t.Event.Subject == "" || t.Event.Time.IsZero():
		return "has no whole event"
	case guards[pool.PoolRef(t.Event.Pool)].Ref == pool.Ref{}:
		return "does not compare the pool"
	}
	for _, ref := range changed(t) {
		if ref.Kind != pool.KindActive || guards[ref].Revision == 0 {
			continue
		}
		if _, ok := guards[pool.PendingRef(ref.Pool, ref.Name)]; !ok {
			return fmt.Sprintf("changes %s/%s without comparing what waits for it", ref.Kind, ref.Name)
		}
	}
	for _, rec := range t.Put {
		ref := rec.Ref()
		if slot, ok := rec.(*pool.Slot); ok && slot.Closing && guards[pool.ActiveRef(t.Event.Pool, t.Event.Key)].Revision == 0 {
			return fmt.Sprintf("closes slot %s without comparing the life in it", slot.Name)
		}
		if rec.At().Schema == 0 {
			return fmt.Sprintf("puts %s/%s without a schema", ref.Kind, ref.Name)
		}
		if ref.Kind != pool.KindActive && ref.Kind != pool.KindBackup && ref.Kind != pool.KindRetired {
			continue
		}
		if g, ok := guards[ref]; ok && g.Revision != 0 {
			continue // in place
		}
		for _, home := range []pool.Kind{pool.KindActive, pool.KindBackup, pool.KindRetired} {
			if _, ok := guards[pool.Ref{Kind: home, Pool: ref.Pool, Name: ref.Name}]; !ok {
				return fmt.Sprintf("puts %s/%s without comparing %s/", ref.Kind, ref.Name, home)
			}
		}
	}
	return ""
}

// lintReading says what a transaction without an event does that is a transition.
func lintReading(t *pool.Txn) string {
	if len(t.If) != 1 || len(t.Put) != 1 || len(t.Delete) != 0 || t.If[0].Rule != pool.Modified || t.If[0].Revision == 0 || t.If[0].Ref != t.Put[0].Ref() {
		return "does without an event more than writing one record over what was read"
	}
	if _, ok := t.Put[0].(*pool.Active); !ok {
		return "writes without an event what is no reading of a key"
	}
	return ""
}

// changed are the records a transaction puts or deletes.
func changed(t *pool.Txn) []pool.Ref {
	refs := slices.Clone(t.Delete)
	for _, rec := range t.Put {
		refs = append(refs, rec.Ref())
	}
	return refs
}

// sound fails the test if an invariant does not hold now.
func (r *adminRig) sound(when string) {
	r.t.Helper()
	report, err := r.rival.Diagnose(r.ctx)
	if err != nil {
		r.t.Fatalf("%s: diagnose: %v", when, err)
	}
	for _, f := range report.Errors() {
		r.t.Errorf("%s: %s %s: %s", when, f.Check, f.Subject, f.Message)
	}
}

func (r *adminRig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func newKey(id string) pool.NewKey {
	return pool.NewKey{ID: id, Secret: pool.NewSecret("secret-of-" + id)}
}

func newKeys(ids ...string) []pool.NewKey {
	keys := make([]pool.NewKey, len(ids))
	for i, id := range ids {
		keys[i] = newKey(id)
	}
	return keys
}

// add adds keys that must be new.
func (r *adminRig) add(name string, home pool.Home, keys ...pool.NewKey) {
	r.t.Helper()
	added, _, err := r.rival.AddKeys(r.ctx, name, home, keys, false)
	r.must(err)
	for _, a := range added {
		if a.Result != pool.AddResultAdded {
			r.t.Fatalf("adding %s: %+v", a.ID, a)
		}
	}
}

// fill makes pool p: keys k1 to k3 in service, k3 waiting for a replacement, r1 replaced by x1 in slot s4, backups b1 and
// b2, proxy x bound to s1 and s2, proxy y to s2; and an empty pool q.
func (r *adminRig) fill() *adminRig {
	r.t.Helper()
	r.byHand = true // thousands of rigs are filled: one look at the end will do
	for _, name := range []string{"p", "q"} {
		_, _, err := r.rival.CreatePool(r.ctx, name, pool.Spec{Description: "pool " + name})
		r.must(err)
	}
	active := newKeys("k1", "k2", "k3", "r1")
	for i := range active {
		active[i].Slot = fmt.Sprint("s", i+1)
	}
	r.add("p", pool.HomeActive, active...)
	r.add("p", pool.HomeBackup, newKeys("x1", "b1", "b2")...)
	r.must(r.rotate("r1", "x1"))
	r.must(r.park("k3"))
	r.bind("x", "s1", "s2")
	r.bind("y", "s2")
	r.sound("filled")
	r.byHand = false
	return r
}

func (r *adminRig) bind(proxy string, slots ...string) {
	r.t.Helper()
	_, _, err := r.rival.SetBinding(r.ctx, "p", proxy, priorities(slots...))
	r.must(err)
}

func priorities(slots ...string) []pool.SlotPriority {
	var ps []pool.SlotPriority
	for i, s := range slots {
		ps = append(ps, pool.SlotPriority{Slot: s, Priority: i + 1})
	}
	return ps
}

func read[R pool.Record](r *adminRig, ref pool.Ref) R {
	r.t.Helper()
	st, err := r.store.Read(r.ctx, ref)
	r.must(err)
	rec, err := pool.Find[R](st, ref)
	r.must(err)
	return rec
}

func (r *adminRig) has(ref pool.Ref) bool {
	r.t.Helper()
	st, err := r.store.Read(r.ctx, ref)
	r.must(err)
	return st.Has(ref)
}

// seen is everything a rotation of pool p by hand rests on.
func (r *adminRig) seen(old, backup string) (*pool.State, *pool.Pool, *pool.Active, error) {
	st, err := r.store.Read(r.ctx, pool.PoolRef("p"), pool.ActiveRef("p", old), pool.BackupRef("p", backup), pool.PendingRef("p", old), pool.LockRef("p", old))
	if err != nil {
		return nil, nil, nil, err
	}
	p, _ := st.Records[pool.PoolRef("p")].(*pool.Pool)
	a, _ := st.Records[pool.ActiveRef("p", old)].(*pool.Active)
	switch {
	case p == nil:
		return nil, nil, nil, pool.Refuse(pool.ReasonPoolNotFound, "gone")
	case p.Deleting:
		return nil, nil, nil, pool.Refuse(pool.ReasonPoolDeleting, "deleting")
	case p.Paused:
		return nil, nil, nil, pool.Refuse(pool.ReasonPoolPaused, "paused")
	case a == nil:
		return nil, nil, nil, pool.Refuse(pool.ReasonKeyNotFound, "not active")
	}
	return st, p, a, nil
}

// rotate makes a rotation as the Rotator commits it.
func (r *adminRig) rotate(old, backup string) error {
	t, err := r.rotation(old, backup)
	if err != nil {
		return err
	}
	return r.applied(t)
}

// rotation prepares one, as its holder does before it is stalled.
func (r *adminRig) rotation(old, backup string) (*pool.Txn, error) {
	st, p, a, err := r.seen(old, backup)
	if err != nil {
		return nil, err
	}
	b, _ := st.Records[pool.BackupRef("p", backup)].(*pool.Backup)
	if b == nil {
		return nil, pool.Refuse(pool.ReasonKeyNotFound, "no backup")
	}
	now := time.Now()
	v := pool.Version{Schema: pool.Schema}
	t := &pool.Txn{
		If: []pool.Guard{
			pool.LifeIs(a.Life()), pool.Absent(pool.RotationRef(a.Life())), pool.Same(b), pool.Same(p),
			pool.Absent(pool.ActiveRef("p", backup)), pool.Absent(pool.RetiredRef("p", backup)),
			pool.Absent(pool.RetiredRef("p", old)), pool.Absent(pool.BackupRef("p", old)),
		},
		Delete: []pool.Ref{a.Ref(), b.Ref()},
		Put: []pool.Record{
			&pool.Active{Version: v, Pool: "p", Key: backup, Slot: a.Slot, Status: pool.StatusHealthy, Sealed: b.Sealed, Labels: b.Labels, Replaces: old, AddedAt: b.AddedAt},
			&pool.Retired{Version: v, Pool: "p", Key: old, Phase: pool.PhaseRetired, Slot: a.Slot, Generation: a.CreateRevision, ReplacedBy: backup,
				Sealed: a.Sealed, Labels: a.Labels, AddedAt: a.AddedAt, RetiredAt: now},
			&pool.Rotation{Version: v, Life: a.Life(), ID: uuid.NewString(), Slot: a.Slot, NewKey: backup, Trigger: pool.TriggerPool, CommittedAt: now},
		},
		Event: &pool.Event{ID: uuid.NewString(), Type: pool.EventKeyRotated, Pool: "p", Subject: "keys/" + old, Time: now, Key: old},
	}
	for _, ref := range []pool.Ref{pool.PendingRef("p", old), pool.LockRef("p", old)} {
		t.If = append(t.If, guardSeen(st, ref))
		if st.Has(ref) {
			t.Delete = append(t.Delete, ref)
		}
	}
	return t, nil
}

func guardSeen(st *pool.State, ref pool.Ref) pool.Guard {
	if rec := st.Records[ref]; rec != nil {
		return pool.Same(rec)
	}
	return pool.Absent(ref)
}

// park records that a rotation waits for stock, as the Rotator does.
func (r *adminRig) park(key string) error {
	st, p, a, err := r.seen(key, "none")
	if err != nil {
		return err
	}
	exhausted := *a
	exhausted.Status, exhausted.StatusUntil = pool.StatusExhausted, time.Time{}
	return r.applied(&pool.Txn{
		If:    []pool.Guard{pool.Same(p), pool.Same(a), guardSeen(st, pool.PendingRef("p", key))},
		Put:   []pool.Record{&exhausted, &pool.Pending{Version: pool.Version{Schema: pool.Schema}, Life: a.Life(), Trigger: pool.TriggerPool, RequestedAt: time.Now()}},
		Event: &pool.Event{ID: uuid.NewString(), Type: pool.EventKeyPending, Pool: "p", Subject: "keys/" + key, Time: time.Now(), Key: key},
	})
}

func (r *adminRig) applied(t *pool.Txn) error {
	res, err := r.store.Apply(r.ctx, t)
	if err == nil && !res.Applied {
		err = pool.ErrConflict
	}
	return err
}

// lock puts a key's lock as a campaign does, and returns its fence.
func (r *adminRig) lock(key string) int64 {
	r.t.Helper()
	p, a := read[*pool.Pool](r, pool.PoolRef("p")), read[*pool.Active](r, pool.ActiveRef("p", key))
	r.must(r.applied(&pool.Txn{
		If:    []pool.Guard{pool.Same(p)},
		Put:   []pool.Record{&pool.Lock{Version: pool.Version{Schema: pool.Schema}, Life: a.Life(), Holder: "r0", Campaign: uuid.NewString()}},
		Event: &pool.Event{ID: uuid.NewString(), Type: "test.lock", Pool: "p", Subject: "keys/" + key, Time: time.Now()},
	}))
	return read[*pool.Lock](r, pool.LockRef("p", key)).ModRevision
}

// digest is the state and the events without revisions, ids and times: what two orders of the same calls have in common.
func (r *adminRig) digest() string {
	r.t.Helper()
	recs, _, err := r.store.ReadAll(r.ctx)
	r.must(err)
	var lines []string
	for _, rec := range recs {
		ref := rec.Ref()
		lines = append(lines, fmt.Sprintf("%s/%s/%s %s", ref.Kind, ref.Pool, ref.Name, essence(rec)))
	}
	count := make(map[pool.EventType]int)
	if l, ok := r.store.(eventLister); ok {
		for _, e := range l.Events() {
			count[e.Type]++
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(count)) {
		lines = append(lines, fmt.Sprintf("%d times %s", count[kind], kind))
	}
	return strings.Join(lines, "\n")
}

func essence(rec pool.Record) string {
	switch r := rec.(type) {
	case *pool.Pool:
		return fmt.Sprint(r.Spec, r.Paused, r.Deleting)
	case *pool.Slot:
		return fmt.Sprint(r.Closing)
	case *pool.Active:
		return fmt.Sprint(r.Slot, r.Status, r.StatusUntil, r.Sealed.Fingerprint, r.Labels, r.Replaces)
	case *pool.Backup:
		return fmt.Sprint(r.Sealed.Fingerprint, r.Labels)
	case *pool.Retired:
		return fmt.Sprint(r.Slot, r.ReplacedBy, r.Sealed.Fingerprint, r.Labels)
	case *pool.Binding:
		return fmt.Sprint(r.Slots)
	case *pool.Fingerprint:
		return r.Key
	case *pool.Rotation:
		return r.NewKey
	}
	return ""
}

// adminOp is one write, made on a filled rig.
type adminOp struct {
	name   string
	do     func(*adminRig, context.Context, *pool.Admin) error
	events map[pool.EventType]int // that it makes when nothing disturbs it
	steps  bool                   // it takes several transitions, so others may see it half done
	again  pool.Reason            // what repeating it answers once it has been done; "": success again
}

func events(pairs ...any) map[pool.EventType]int {
	m := make(map[pool.EventType]int)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(pool.EventType)] = pairs[i+1].(int)
	}
	return m
}

// addOne makes an answer for one key into an error.
func addOne(added []pool.Added, _ int64, err error) error {
	if err != nil || added[0].Result == pool.AddResultAdded || added[0].Result == pool.AddResultSame {
		return err
	}
	if added[0].Result == pool.AddResultUnknown {
		return pool.ErrOutcomeUnknown
	}
	if added[0].Refusal == pool.KeyRefusalNotApplied {
		return pool.Refuse(pool.ReasonNotApplied, "%s", added[0].Message)
	}
	return pool.Refuse(pool.ReasonKeyWrongHome, "refused: %s", added[0].Message)
}

func errOf[A, B any](_ A, _ B, err error) error { return err }

var adminOps = []adminOp{
	{name: "create pool", events: events(pool.EventPoolCreated, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.CreatePool(ctx, "n", pool.Spec{Description: "new"}))
	}},
	{name: "update pool", events: events(pool.EventPoolUpdated, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.UpdatePool(ctx, "p", pool.Spec{Description: "changed"}, 0))
	}},
	{name: "pause pool", events: events(pool.EventPoolPaused, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.PausePool(ctx, "p"))
	}},
	{name: "delete empty pool", steps: true, again: pool.ReasonPoolNotFound, events: events(pool.EventPoolDeleting, 1, pool.EventPoolDeleted, 1),
		do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
			_, err := a.DeletePool(ctx, "q", false)
			return err
		}},
	{name: "delete pool by force", steps: true, again: pool.ReasonPoolNotFound, events: events(pool.EventPoolDeleting, 1, pool.EventPoolDeleted, 1),
		do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
			_, err := a.DeletePool(ctx, "p", true)
			return err
		}},
	{name: "add active", events: events(pool.EventKeyAdded, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return addOne(a.AddKeys(ctx, "p", pool.HomeActive, newKeys("n1"), false))
	}},
	{name: "add backup", events: events(pool.EventKeyAdded, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return addOne(a.AddKeys(ctx, "p", pool.HomeBackup, newKeys("n1"), false))
	}},
	{name: "remove active", steps: true, again: pool.ReasonKeyNotFound, events: events(pool.EventSlotClosing, 1, pool.EventKeyRemoved, 1),
		do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
			return errOf(a.RemoveKey(ctx, "p", "k3", false))
		}},
	{name: "remove bound", steps: true, again: pool.ReasonKeyNotFound,
		events: events(pool.EventSlotClosing, 1, pool.EventBindingSet, 1, pool.EventBindingRemoved, 1, pool.EventKeyRemoved, 1),
		do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
			return errOf(a.RemoveKey(ctx, "p", "k2", true))
		}},
	{name: "remove backup", again: pool.ReasonKeyNotFound, events: events(pool.EventKeyRemoved, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.RemoveKey(ctx, "p", "b1", false))
	}},
	{name: "remove retired", again: pool.ReasonKeyNotFound, events: events(pool.EventKeyRemoved, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.RemoveKey(ctx, "p", "r1", false))
	}},
	{name: "restore", again: pool.ReasonKeyWrongHome, events: events(pool.EventKeyRestored, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.RestoreKey(ctx, "p", "r1"))
	}},
	{name: "disable", events: events(pool.EventKeyDisabled, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.DisableKey(ctx, "p", "k1", "why"))
	}},
	{name: "enable waiting", events: events(pool.EventKeyEnabled, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.EnableKey(ctx, "p", "k3", "why"))
	}},
	{name: "disable waiting", events: events(pool.EventKeyDisabled, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.DisableKey(ctx, "p", "k3", "why"))
	}},
	{name: "bind", events: events(pool.EventBindingSet, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.SetBinding(ctx, "p", "z", priorities("s3", "s1")))
	}},
	{name: "bind anew", events: events(pool.EventBindingSet, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.SetBinding(ctx, "p", "x", priorities("s3", "s4")))
	}},
	{name: "unbind", again: pool.ReasonBindingNotFound, events: events(pool.EventBindingRemoved, 1), do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		_, err := a.RemoveBinding(ctx, "p", "x")
		return err
	}},
}

// adminRivals are changes by somebody else that may come between any two calls of an operation.
var adminRivals = append(slices.Clone(adminOps), []adminOp{
	{name: "rotate k1", do: func(r *adminRig, _ context.Context, _ *pool.Admin) error { return r.rotate("k1", "b1") }},
	{name: "rotate k2", do: func(r *adminRig, _ context.Context, _ *pool.Admin) error { return r.rotate("k2", "b1") }},
	{name: "rotate k3", do: func(r *adminRig, _ context.Context, _ *pool.Admin) error { return r.rotate("k3", "b2") }},
	{name: "park k1", do: func(r *adminRig, _ context.Context, _ *pool.Admin) error { return r.park("k1") }},
	{name: "park k2", do: func(r *adminRig, _ context.Context, _ *pool.Admin) error { return r.park("k2") }},
	{name: "lock k3", do: func(r *adminRig, _ context.Context, _ *pool.Admin) error {
		if r.has(pool.ActiveRef("p", "k3")) && r.has(pool.PoolRef("p")) {
			r.lock("k3")
		}
		return nil
	}},
	{name: "bind z to s3", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.SetBinding(ctx, "p", "z", priorities("s3")))
	}},
	{name: "bind z to s2", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.SetBinding(ctx, "p", "z", priorities("s2", "s4")))
	}},
	{name: "bind y to s1", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.SetBinding(ctx, "p", "y", priorities("s1")))
	}},
	{name: "add n1 with another secret", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return addOne(a.AddKeys(ctx, "p", pool.HomeBackup, []pool.NewKey{{ID: "n1", Secret: pool.NewSecret("another")}}, false))
	}},
	{name: "add n1's secret as n2", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return addOne(a.AddKeys(ctx, "p", pool.HomeBackup, []pool.NewKey{{ID: "n2", Secret: newKey("n1").Secret}}, false))
	}},
	{name: "add to q", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return addOne(a.AddKeys(ctx, "q", pool.HomeBackup, newKeys("n1"), false))
	}},
	{name: "create n otherwise", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.CreatePool(ctx, "n", pool.Spec{}))
	}},
	{name: "delete p without force", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		_, err := a.DeletePool(ctx, "p", false)
		return err
	}},
	{name: "remove k2 bound", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.RemoveKey(ctx, "p", "k2", false))
	}},
	{name: "remove k1", do: func(_ *adminRig, ctx context.Context, a *pool.Admin) error {
		return errOf(a.RemoveKey(ctx, "p", "k1", true))
	}},
	{name: "close s3 and crash", do: func(r *adminRig, ctx context.Context, _ *pool.Admin) error { return r.crashAfterClosing(ctx, "k3") }},
	{name: "close s1 and crash", do: func(r *adminRig, ctx context.Context, _ *pool.Admin) error { return r.crashAfterClosing(ctx, "k1") }},
}...)

// crashAfterClosing begins the removal of a key and stops for ever once its slot is closed.
func (r *adminRig) crashAfterClosing(ctx context.Context, key string) error {
	dead := false
	crashing := pool.NewAdmin(pool.AdminConfig{Sealer: pooltest.FakeSealer{}, Store: &pooltest.Faulty{Store: r.store, Decide: func(c pooltest.Call) pooltest.Fault {
		if dead {
			return pooltest.Fault{Err: pool.Refuse(pool.ReasonPoolPaused, "crashed")}
		}
		if dead = c.Op == "Apply"; dead {
			return pooltest.Fault{Err: pool.Refuse(pool.ReasonPoolPaused, "crashed"), Made: true}
		}
		return pooltest.Fault{}
	}}})
	_, _, err := crashing.RemoveKey(ctx, "p", key, false)
	if dead {
		return nil
	}
	return err
}

// TestAdminOps makes each operation undisturbed, and again.
func TestAdminOps(t *testing.T) {
	for _, op := range adminOps {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			inTime(t, func(t *testing.T) {
				r := newAdminRig(t).fill()
				before := r.eventCounts()
				r.must(op.do(r, r.ctx, r.admin))
				r.sound("after it")
				if got := diffCounts(before, r.eventCounts()); !maps.Equal(got, op.events) {
					t.Errorf("events: got %v, want %v", got, op.events)
				}
				digest := r.digest()
				if err := op.do(r, r.ctx, r.admin); pool.ReasonOf(err) != op.again || err != nil && op.again == "" {
					t.Errorf("again: got %v, want reason %q", err, op.again)
				}
				if after := r.digest(); after != digest {
					t.Errorf("doing it again changed the state:\n%s\nto:\n%s", digest, after)
				}
			})
		})
	}
}

func (r *adminRig) eventCounts() map[pool.EventType]int {
	count := make(map[pool.EventType]int)
	if l, ok := r.store.(eventLister); ok {
		for _, e := range l.Events() {
			count[e.Type]++
		}
	}
	return count
}

func diffCounts(before, after map[pool.EventType]int) map[pool.EventType]int {
	diff := make(map[pool.EventType]int)
	for kind, n := range after {
		if n != before[kind] {
			diff[kind] = n - before[kind]
		}
	}
	return diff
}

// answers are the ways in which the store's answer to a write is lost.
var answers = []struct {
	name  string
	fault pooltest.Fault
}{
	{"not applied", pooltest.Fault{Err: pool.ErrNotApplied}},
	{"unknown and not persisted", pooltest.Fault{Err: pool.ErrOutcomeUnknown}},
	{"unknown and persisted", pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: true}},
	{"unknown and arriving twice", pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: true, Late: func(send func()) { send() }}},
}

// callsOf lists the store calls of an operation that nothing disturbs.
func callsOf(t testing.TB, op adminOp) (calls []pooltest.Call, digest string) {
	r := newAdminRig(t).fill()
	var mu sync.Mutex
	r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, c)
		return pooltest.Fault{}
	}
	r.must(op.do(r, r.ctx, r.admin))
	return calls, r.digest()
}

// TestAdminLostAnswers loses the answer of each write of each operation once: the operation still succeeds, and is made
// exactly once.
func TestAdminLostAnswers(t *testing.T) {
	for _, op := range adminOps {
		for _, answer := range answers {
			t.Run(op.name+"/"+answer.name, func(t *testing.T) {
				t.Parallel()
				inTime(t, func(t *testing.T) {
					calls, want := callsOf(t, op)
					writes := 0
					for _, call := range calls {
						if call.Op == "Apply" {
							writes++
							loseAnswer(t, op, writes, answer.fault, want)
						}
					}
				})
			})
		}
	}
}

// loseAnswer spoils the n-th write. Writes are counted by themselves: where an operation makes calls at the same time, a
// read may come where a write was the last time.
func loseAnswer(t *testing.T, op adminOp, n int, fault pooltest.Fault, want string) {
	r := newAdminRig(t).fill()
	var writes atomic.Int64
	r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
		if c.Op == "Apply" && writes.Add(1) == int64(n) {
			return fault
		}
		return pooltest.Fault{}
	}
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	if err := op.do(r, ctx, r.admin); err != nil {
		t.Errorf("write %d: got %v, want success", n, err)
	}
	r.sound(fmt.Sprintf("write %d", n))
	if got := r.digest(); got != want {
		t.Errorf("write %d: the state is\n%s\nwant\n%s", n, got, want)
	}
}

// TestAdminCrashes stops each operation for ever at each of its calls, before and after the call is made. The invariants
// hold at once, and calling again makes it whole.
func TestAdminCrashes(t *testing.T) {
	for _, op := range adminOps {
		for _, made := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/made=%t", op.name, made), func(t *testing.T) {
				t.Parallel()
				inTime(t, func(t *testing.T) {
					calls, _ := callsOf(t, op)
					for _, call := range calls {
						crashAt(t, op, call.N, made)
					}
				})
			})
		}
	}
}

func crashAt(t *testing.T, op adminOp, n int, made bool) {
	r := newAdminRig(t).fill()
	r.faulty.Decide = func(c pooltest.Call) pooltest.Fault {
		switch {
		case c.N == n && c.Op == "Apply":
			return pooltest.Fault{Err: pool.ErrOutcomeUnknown, Made: made}
		case c.N >= n:
			return pooltest.Fault{Err: pool.ErrNotApplied, Made: made && c.N == n}
		}
		return pooltest.Fault{}
	}
	ctx, cancel := context.WithTimeout(r.ctx, 200*time.Millisecond)
	defer cancel()
	err := op.do(r, ctx, r.admin)
	if reason := pool.ReasonOf(err); reason != pool.ReasonNotApplied && reason != pool.ReasonOutcomeUnknown {
		t.Errorf("call %d: got %v, want not applied or unknown", n, err)
	}
	if pool.ReasonOf(err) == pool.ReasonNotApplied && !op.steps && r.digest() != newAdminRig(t).fill().digest() {
		t.Errorf("call %d: said not to be applied, but the state is\n%s", n, r.digest())
	}
	r.sound(fmt.Sprintf("crashed at call %d", n))
	if err := op.do(r, r.ctx, r.rival); err != nil && (op.again == "" || pool.ReasonOf(err) != op.again) {
		t.Errorf("again after a crash at call %d: %v", n, err)
	}
	r.sound(fmt.Sprintf("again after a crash at call %d", n))
	if err := op.do(r, r.ctx, r.rival); pool.ReasonOf(err) != op.again {
		t.Errorf("a third time after a crash at call %d: got %v, want reason %q", n, err, op.again)
	}
}

// outcome is what a pair of calls came to.
type outcome struct {
	op, rival pool.Reason
	digest    string
}

// inOrder makes two calls one after the other.
func inOrder(t *testing.T, first, second adminOp) (a, b pool.Reason, digest string) {
	r := newAdminRig(t).fill()
	a = pool.ReasonOf(first.do(r, r.ctx, r.rival))
	b = pool.ReasonOf(second.do(r, r.ctx, r.rival))
	return a, b, r.digest()
}

// TestAdminRivals lets each rival in before each call of each operation. One transition and the rival come to what one of
// their two orders comes to. An operation of several transitions may be seen half done, but keeps every revision sound,
// and what it says it has done is done.
func TestAdminRivals(t *testing.T) {
	for _, op := range adminOps {
		for _, rival := range adminRivals {
			t.Run(op.name+"/"+rival.name, func(t *testing.T) {
				t.Parallel()
				inTime(t, func(t *testing.T) {
					calls, _ := callsOf(t, op)
					var orders []outcome
					a, b, digest := inOrder(t, op, rival)
					orders = append(orders, outcome{a, b, digest})
					b, a, digest = inOrder(t, rival, op)
					orders = append(orders, outcome{a, b, digest})
					for _, call := range calls {
						got := letIn(t, op, rival, call.N)
						if !op.steps && !rival.steps && !slices.Contains(orders, got) {
							t.Errorf("before call %d: got %q, %q and\n%s\nwant one of\n%v", call.N, got.op, got.rival, got.digest, orders)
						}
					}
				})
			})
		}
	}
}

// letIn makes an operation with a rival before its nth call.
func letIn(t *testing.T, op, rival adminOp, n int) (got outcome) {
	r := newAdminRig(t).fill()
	r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
		if c.N == n {
			f.Before = func() { got.rival = known(t, rival.name, rival.do(r, r.ctx, r.rival)) }
		}
		return f
	}
	err := op.do(r, r.ctx, r.admin)
	got.op = known(t, op.name, err)
	r.sound(fmt.Sprintf("%s before call %d", rival.name, n))
	r.faulty.Decide = nil
	if op.steps && err == nil {
		if err := op.do(r, r.ctx, r.rival); pool.ReasonOf(err) != op.again && pool.ReasonOf(err) != pool.ReasonPoolNotFound {
			t.Errorf("%s before call %d: %s said it was done, but again it says %v", rival.name, n, op.name, err)
		}
	}
	got.digest = r.digest()
	return got
}

// known makes sure that an error is a refusal that callers are told.
func known(t testing.TB, name string, err error) pool.Reason {
	var r *pool.Refusal
	if err != nil && !errors.As(err, &r) {
		t.Errorf("%s: got %v, which is no refusal", name, err)
	}
	return pool.ReasonOf(err)
}

// TestAdminGivesUpOnEndlessConflict: a call whose records are changed before each of its writes ends, and changes nothing.
func TestAdminGivesUpOnEndlessConflict(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r := newAdminRig(t).fill()
		n := 0
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Op == "Apply" {
				n++
				f.Before = func() { r.must(errOf(r.rival.UpdatePool(r.ctx, "p", pool.Spec{Description: fmt.Sprint(n)}, 0))) }
			}
			return f
		}
		_, _, err := r.admin.DisableKey(r.ctx, "p", "k1", "")
		if !errors.Is(err, pool.ErrConflict) {
			t.Fatalf("got %v, want %v", err, pool.ErrConflict)
		}
		if a := read[*pool.Active](r, pool.ActiveRef("p", "k1")); a.Status != pool.StatusHealthy {
			t.Errorf("status: got %v, want it unchanged", a.Status)
		}
		if n < 3 || n > 20 {
			t.Errorf("tried %d times, want a few", n)
		}
	})
}

// TestAdminLateCopies: a copy of a write that arrives after the operation has ended, and after its effect was undone,
// does not bring the effect back.
func TestAdminLateCopies(t *testing.T) {
	undo := map[string]func(*adminRig) error{
		"create pool": func(r *adminRig) error { _, err := r.rival.DeletePool(r.ctx, "n", true); return err },
		"add backup":  func(r *adminRig) error { return errOf(r.rival.RemoveKey(r.ctx, "p", "n1", false)) },
		"add active":  func(r *adminRig) error { return errOf(r.rival.RemoveKey(r.ctx, "p", "n1", false)) },
		"bind":        func(r *adminRig) error { _, err := r.rival.RemoveBinding(r.ctx, "p", "z"); return err },
	}
	for _, op := range adminOps {
		if undo[op.name] == nil {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			inTime(t, func(t *testing.T) {
				r := newAdminRig(t).fill()
				var late []func()
				first := true
				r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
					if c.Op == "Apply" && first {
						first = false
						f = pooltest.Fault{Err: pool.ErrOutcomeUnknown, Late: func(send func()) { late = append(late, send) }}
					}
					return f
				}
				r.must(op.do(r, r.ctx, r.admin))
				r.must(undo[op.name](r))
				want := r.digest()
				for _, send := range late {
					send()
				}
				if got := r.digest(); got != want {
					t.Errorf("the late copy changed\n%s\nto\n%s", want, got)
				}
			})
		})
	}
}

// TestAdminLateCopyOfAnEarlierTry: also a copy of a try that was followed by another does nothing once that one was made.
func TestAdminLateCopyOfAnEarlierTry(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r := newAdminRig(t).fill()
		var late []func()
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Op == "Apply" && late == nil {
				f = pooltest.Fault{Err: pool.ErrOutcomeUnknown, Late: func(send func()) {
					late = append(late, send)
					r.bind("z", "s4") // so the copy sent next is refused, and the call decides anew
				}}
			}
			return f
		}
		r.must(errOf(r.admin.SetBinding(r.ctx, "p", "z", priorities("s1"))))
		r.must(second(r.rival.RemoveBinding(r.ctx, "p", "z")))
		late[0]()
		if r.has(pool.BindingRef("p", "z")) {
			t.Error("the copy of the first try has brought the binding back")
		}
	})
}

// TestFailureAfterALateCopy: "not applied" of the last try says nothing of a copy of the first one.
func TestFailureAfterALateCopy(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r := newAdminRig(t).fill()
		var late []func()
		tries := 0
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Op != "Apply" {
				return f
			}
			switch tries++; {
			case tries == 1:
				f = pooltest.Fault{Err: pool.ErrOutcomeUnknown, Late: func(send func()) {
					late = append(late, send)
					r.bind("z", "s4") // so the copy sent next is refused, and the call decides anew
				}}
			case tries > 2:
				f = pooltest.Fault{Err: pool.ErrNotApplied}
			}
			return f
		}
		ctx, cancel := context.WithTimeout(r.ctx, 100*time.Millisecond)
		defer cancel()
		if err := errOf(r.admin.SetBinding(ctx, "p", "z", priorities("s1"))); pool.ReasonOf(err) != pool.ReasonOutcomeUnknown {
			t.Errorf("with a copy under way the answer is %v, want not known", err)
		}
		r.must(second(r.rival.RemoveBinding(r.ctx, "p", "z")))
		late[0]()
		if !r.has(pool.BindingRef("p", "z")) {
			t.Error("the copy was not made: this test shows nothing")
		}
	})
}

// TestRefusalWaitsForLateCopies: in a run of the fault test AddKeys was told that the id was taken, and a copy of its
// request was applied 40 ms later, since the other key of that id had been removed by then. While a copy may be under
// way the answer is "not known", and asking again gives the true one.
func TestRefusalWaitsForLateCopies(t *testing.T) {
	inTime(t, func(t *testing.T) {
		r := newAdminRig(t).fill()
		var late []func()
		r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
			if c.Op == "Apply" && late == nil {
				f = pooltest.Fault{Err: pool.ErrOutcomeUnknown, Late: func(send func()) {
					late = append(late, send)
					r.add("p", pool.HomeBackup, pool.NewKey{ID: "n1", Secret: pool.NewSecret("of somebody else")})
				}}
			}
			return f
		}
		add := func() pool.Added {
			added, _, err := r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, newKeys("n1"), false)
			r.must(err)
			return added[0]
		}
		if got := add(); got.Result != pool.AddResultUnknown {
			t.Errorf("with a copy under way the answer is %+v, want not known", got)
		}
		if got := add(); got.Refusal != pool.KeyRefusalIDTaken {
			t.Errorf("asked again the answer is %+v, want that the id is taken", got)
		}
	})
}

func sortedFields(err error) []string {
	var r *pool.Refusal
	if !errors.As(err, &r) {
		return nil
	}
	var fields []string
	for _, v := range r.Fields {
		fields = append(fields, v.Field)
	}
	sort.Strings(fields)
	return fields
}

// TestAdminNamesEveryViolation gives each call all the bad input it can get at once.
func TestAdminNamesEveryViolation(t *testing.T) {
	r := newAdminRig(t).fill()
	long := strings.Repeat("x", 2000)
	badSpec := pool.Spec{Description: long, Labels: map[string]string{"bad name": ""}}
	slots := []pool.SlotPriority{{Slot: "s1", Priority: 101}, {Slot: "s1"}, {Slot: "bad/slot", Priority: -1}}
	many := make([]pool.SlotPriority, pool.MaxBindingSlots+1)
	for name, tt := range map[string]struct {
		err  error
		want []string
	}{
		"create pool":       {errOf(r.admin.CreatePool(r.ctx, "a/b", badSpec)), []string{"name", "spec.description", "spec.labels"}},
		"update pool":       {errOf(r.admin.UpdatePool(r.ctx, "", badSpec, -1)), []string{"if_revision", "name", "spec.description", "spec.labels"}},
		"pause pool":        {errOf(r.admin.PausePool(r.ctx, " ")), []string{"name"}},
		"resume pool":       {errOf(r.admin.ResumePool(r.ctx, "")), []string{"name"}},
		"delete pool":       {second(r.admin.DeletePool(r.ctx, "", true)), []string{"name"}},
		"add no keys":       {errOf(r.admin.AddKeys(r.ctx, "", pool.HomeRetired, nil, false)), []string{"home", "keys", "pool"}},
		"add too many keys": {errOf(r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, make([]pool.NewKey, 1001), false)), []string{"keys"}},
		"remove key":        {errOf(r.admin.RemoveKey(r.ctx, "", "", false)), []string{"key_id", "pool"}},
		"restore key":       {errOf(r.admin.RestoreKey(r.ctx, "", "")), []string{"key_id", "pool"}},
		"disable key":       {errOf(r.admin.DisableKey(r.ctx, "", "", long)), []string{"key_id", "pool", "reason"}},
		"enable key":        {errOf(r.admin.EnableKey(r.ctx, "", "", "\x00")), []string{"key_id", "pool", "reason"}},
		"set binding":       {errOf(r.admin.SetBinding(r.ctx, "", "", slots)), []string{"pool", "proxy_id", "slots[0].priority", "slots[1].slot", "slots[2].priority", "slots[2].slot"}},
		"bind nothing":      {errOf(r.admin.SetBinding(r.ctx, "p", "x", nil)), []string{"slots"}},
		"bind too much":     {errOf(r.admin.SetBinding(r.ctx, "p", "x", many)), []string{"slots"}},
		"remove binding":    {second(r.admin.RemoveBinding(r.ctx, "", "")), []string{"pool", "proxy_id"}},
	} {
		if pool.ReasonOf(tt.err) != pool.ReasonInvalidArgument || !slices.Equal(sortedFields(tt.err), tt.want) {
			t.Errorf("%s: got %v with fields %v, want INVALID_ARGUMENT with %v", name, tt.err, sortedFields(tt.err), tt.want)
		}
	}
}

func second[A any](_ A, err error) error { return err }

// TestAdminNeedsAPool: every call says which way a pool is not there.
func TestAdminNeedsAPool(t *testing.T) {
	r := newAdminRig(t)
	calls := map[string]func() error{
		"update":  func() error { return errOf(r.admin.UpdatePool(r.ctx, "p", pool.Spec{}, 0)) },
		"pause":   func() error { return errOf(r.admin.PausePool(r.ctx, "p")) },
		"add":     func() error { return errOf(r.admin.AddKeys(r.ctx, "p", pool.HomeBackup, newKeys("n1"), false)) },
		"remove":  func() error { return errOf(r.admin.RemoveKey(r.ctx, "p", "k1", false)) },
		"restore": func() error { return errOf(r.admin.RestoreKey(r.ctx, "p", "r1")) },
		"disable": func() error { return errOf(r.admin.DisableKey(r.ctx, "p", "k1", "")) },
		"enable":  func() error { return errOf(r.admin.EnableKey(r.ctx, "p", "k1", "")) },
		"bind":    func() error { return errOf(r.admin.SetBinding(r.ctx, "p", "z", priorities("s1"))) },
		"unbind":  func() error { return second(r.admin.RemoveBinding(r.ctx, "p", "x")) },
	}
	check := func(want pool.Reason) {
		t.Helper()
		for name, call := range calls {
			if err := call(); pool.ReasonOf(err) != want {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
		}
	}
	check(pool.ReasonPoolNotFound)
	if err := second(r.admin.DeletePool(r.ctx, "p", true)); pool.ReasonOf(err) != pool.ReasonPoolNotFound {
		t.Errorf("delete: got %v", err)
	}
	r.fill()
	r.interruptDeletion("p")
	check(pool.ReasonPoolDeleting)
	if err := errOf(r.admin.CreatePool(r.ctx, "p", pool.Spec{})); pool.ReasonOf(err) != pool.ReasonPoolDeleting {
		t.Errorf("create: got %v", err)
	}
}

// interruptDeletion leaves a pool marked and everything in it.
func (r *adminRig) interruptDeletion(name string) {
	r.t.Helper()
	p := *read[*pool.Pool](r, pool.PoolRef(name))
	seen := p
	p.Deleting = true
	r.must(r.applied(&pool.Txn{If: []pool.Guard{pool.Same(&seen)}, Put: []pool.Record{&p},
		Event: &pool.Event{ID: uuid.NewString(), Type: pool.EventPoolDeleting, Pool: name, Subject: "pools/" + name, Time: time.Now()}}))
}

func byID(added []pool.Added) map[string]pool.Added {
	m := make(map[string]pool.Added)
	for _, a := range added {
		m[cmp.Or(a.ID, "-")] = a
	}
	return m
}
