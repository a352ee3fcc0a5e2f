package main

// edit replaces a text that is in a file exactly once.
type edit struct{ file, old, new string }

// mutant is a seeded bug.
type mutant struct {
	name  string
	spoil string // what provokes it; see probe
	edits []edit
	// faults are those that show it on real processes too; "": none do in bounded time.
	faults   string
	versions bool // it shows only where two versions run side by side, which the probe has not
	// note says why it is not the plainer bug one would think of: another compare covers that.
	note string
}

const (
	commitGo = "internal/pool/commit.go"
	rotateGo = "internal/pool/rotate.go"
	stakeGo  = "internal/pool/stake.go"
	decideGo = "internal/pool/decide.go"
	keysGo   = "internal/pool/admin_keys.go"
	removeGo = "internal/pool/admin_remove.go"
	bindGo   = "internal/pool/admin_bindings.go"
	storeGo  = "internal/etcdstore/store.go"
	errorsGo = "internal/etcdwire/errors.go"
	schemaGo = "internal/etcdstore/schema.go"
	electGo  = "internal/election/campaign.go"
	reportGo = "internal/pool/report.go"

	moveGo       = "internal/lifecycle/move.go"
	preparingGo  = "internal/lifecycle/preparation.go"
	retirementGo = "internal/lifecycle/retirement.go"
	reconcileGo  = "internal/lifecycle/reconcile.go"
)

// uncompared leaves out the compares of transitions for which a condition on t and g holds. They are still read when the
// transaction is lost, because decisions rest on that.
func uncompared(condition string) edit {
	return edit{storeGo, `	s.guard(req.Txn, t.If)`, `	for _, g := range t.If {
		if t.Event == nil || !(` + condition + `) {
			s.guard(req.Txn, []pool.Guard{g})
		}
	}`}
}

var mutants = []mutant{
	{
		name: "rotation-record guard dropped", spoil: "lock-off",
		edits: []edit{uncompared(`t.Event.Type == pool.EventKeyRotated && g.Ref.Name == t.Event.Key && g.Ref.Kind != pool.KindPending`)},
		note:  "with the life and the homes of the old key: the record is put by the transaction that ends the life and retires the key, so each of these compares covers the others",
	},
	{
		name: "life not compared by the commit", spoil: "lock-off",
		edits: []edit{uncompared(`t.Event.Type == pool.EventKeyRotated && g.Ref == pool.ActiveRef(t.Event.Pool, t.Event.Key)`)},
		note:  "without the lock: with it the fence covers it, since a removal takes the lock along",
	},
	{
		name: "one-home compare dropped", spoil: "late key.added",
		edits: []edit{{keysGo, `		t.If = append(t.If, Absent(ref))
	}
	t.Event.Key, t.Event.Home = ad.ID, ad.home`, `		_ = ref
	}
	t.Event.Key, t.Event.Home = ad.ID, ad.home`}},
		note: "in the addition of keys: a rotation moves a backup that it compares, which by induction has no other home",
	},
	{
		name: "fence by create revision", spoil: "stalls",
		faults: "pause-locked,pause-read,pause-send",
		edits:  []edit{{stakeGo, `txn.If = append(txn.If, Unchanged(ref, k.won.Fence))`, `txn.If = append(txn.If, Guard{ref, Created, k.won.Fence})`}},
	},
	{
		name: "key not compared by a campaign with its commit", spoil: "late key.rotated",
		edits: []edit{{stakeGo, `		return Same(a)`, `		return LifeIs(a.Life())`}},
	},
	{
		name: "Succeeded=false read as lost", spoil: "lost",
		faults: "answers",
		edits: []edit{{storeGo, `	if r.event {
		if kvs :=`, `	if r.event && len(r.refs) == 0 {
		if kvs :=`}},
	},
	{
		name: "no-space read as failed", spoil: "no-space",
		edits: []edit{{errorsGo, `	rpctypes.ErrNoLeader,
}`, `	rpctypes.ErrNoLeader,
	rpctypes.ErrNoSpace,
}`}},
	},
	{
		name: "lock released by name only", spoil: "stalls",
		edits: []edit{{electGo, `			If(clientv3.Compare(clientv3.ModRevision(t.Key), "=", t.Fence)).`, `			If(clientv3.Compare(clientv3.ModRevision(t.Key), ">", 0)).`}},
		note:  "not on processes: two holders of one lock have to stand still one after the other, and the first wake up first",
	},
	{
		name: "event written after the commit", spoil: "",
		faults: "replica-kill",
		edits: []edit{{storeGo, `		w.event(t.Event, s.source)`, `		w.txn.If(s.Compare(pool.Absent(pool.EventRef(t.Event.Pool, t.Event.ID))))
		w.elseGet(pool.EventRef(t.Event.Pool, t.Event.ID))
		late := writer{layout: s.layout, txn: new(etcdwire.Txn), schema: w.schema}
		late.event(t.Event, s.source)
		time.AfterFunc(20*time.Millisecond, func() { _, _ = s.committer.Commit(context.Background(), late.txn) })`}},
	},
	{
		name: "backup chosen without compare", spoil: "late key.rotated",
		edits: []edit{uncompared(`t.Event.Type == pool.EventKeyRotated && g.Ref.Name == t.Event.NewKey`)},
		note:  "with its one-home compares, which notice a backup that another rotation has taken as well",
	},
	{
		name: "unconditional status put", spoil: "late key.enabled key.disabled",
		edits: []edit{{keysGo, `If:     []Guard{Same(p), Same(seen), unseen(st, pending)},`, `If:     []Guard{Same(p)},`}},
	},
	{
		name: "pool not compared", spoil: "late key.rotated",
		edits: []edit{uncompared(`t.Event.Type == pool.EventKeyRotated && g.Ref.Kind == pool.KindPool`)},
	},
	{
		name: "token of the bound not compared", spoil: "late key.rotated",
		edits: []edit{uncompared(`t.Event.Type == pool.EventKeyRotated && g.Ref.Kind == pool.KindToken`)},
	},
	{
		name: "cache answers without generation", spoil: "",
		faults: "replica-kill",
		edits: []edit{{decideGo, `		if rot := p.Rotation(life); rot != nil {
			v = verdict{action: report, rotation: rot}`, `		if rot := p.LastRotation(req.Key); rot != nil {
			v = verdict{action: report, rotation: rot}`}},
	},
	{
		name: "late trigger takes the next life", spoil: "",
		faults: "replica-kill",
		edits: []edit{
			{decideGo, `if a == nil || a.CreateRevision != req.Generation || p.Pending`, `if a == nil || p.Pending`},
			{decideGo, `			v = verdict{action: rotate, life: life}
		}
	})`, `			v = verdict{action: rotate, life: a.Life()}
		}
	})`},
			{decideGo, `		if rot := p.Rotation(life); rot != nil {
			v`, `		if rot := p.Rotation(life); rot != nil && p.Active[req.Key] == nil {
			v`},
		},
	},
	{
		name: "fulfilling leaves what waited", spoil: "",
		faults: "replica-kill",
		edits:  []edit{{commitGo, `		txn.Delete = append(txn.Delete, now.pending.Ref())`, `		_ = now.pending.Ref()`}},
	},
	{
		name: "removal without the life compare", spoil: "late key.removed",
		edits: []edit{{removeGo, `If: []Guard{Same(p), LifeIs(c.Life), Same(c.slot), unseen(st, pending)},`, `If: []Guard{Same(p), Same(c.slot), unseen(st, pending)},`}},
	},
	{
		name: "binding without the slot compare", spoil: "late binding.set",
		edits: []edit{{bindGo, `		If:    append(slots, Same(p), unseen(st, next.Ref())),`, `		If:    append(slots[:0:0], Same(p), unseen(st, next.Ref())),`}},
	},
	{
		name: "answer says whose request it was by the caller", spoil: "",
		edits: []edit{{rotateGo, `	if rot.RequestID == req.RequestID {
		res.Outcome`, `	if rot.RequestID == req.RequestID || successor != nil {
		res.Outcome`}},
	},
	{
		name: "new schema written at once", versions: true,
		faults: "upgrade",
		edits: []edit{{schemaGo, `	s.known.Store(1)
`, `	s.rise(newest)
`}},
	},
	{
		name: "event of a phase written apart", spoil: "",
		faults: "phases",
		edits: []edit{{reconcileGo, `	res, err := pool.Apply(ctx, r.Store, t, func(attempt int, err error) {`, `	if apart := t.Event; apart != nil {
		t.Event = nil
		defer func() {
			_, _ = pool.Apply(context.WithoutCancel(ctx), r.Store, &pool.Txn{Event: apart}, func(int, error) {})
		}()
	}
	res, err := pool.Apply(ctx, r.Store, t, func(attempt int, err error) {`}},
	},
	{
		name: "upstream asked before the intent is written", spoil: "late key.minting",
		faults: "phases",
		edits: []edit{{reconcileGo, `	released := r.fence(m)
`, `	if m.stage == pool.StageMint && m.fresh != "" {
		var of *pool.Pool
		r.Mirror.Read(func(s *pool.Snapshot) { of = s.Pool(r.ref.Pool).Pool })
		_ = r.call(ctx, m.next, View{Pool: of}, CallMint)
	}
	released := r.fence(m)
`}},
	},
	{
		name: "mint repeated without a look", spoil: "",
		faults: "phases",
		edits: []edit{{preparingGo, `		return mintAgain(v, p, now)
	}
	return asking(CallFind, pool.StageMint)`, `		return mintAgain(v, p, now)
	}
	return mintAgain(v, p, now)`}},
	},
	{
		name: "revocation without comparing the key", spoil: "late key.revoking",
		faults: "phases",
		edits: []edit{{moveGo, `	if next != nil {
		m.txn.Put`, `	if r, is := next.(*pool.Retired); is && r.Phase == pool.PhaseRevoking {
		m.txn.If = []pool.Guard{pool.Same(v.Pool)}
	}
	if next != nil {
		m.txn.Put`}},
	},
	{
		name: "revoked although nobody knows", spoil: "",
		faults: "phases",
		edits:  []edit{{retirementGo, `(a.Call == CallRevoke && a.Result == Done ||`, `(a.Call == CallRevoke ||`}},
	},
	{
		name: "late report touches the next life", spoil: "",
		faults: "replica-kill",
		edits: []edit{
			{reportGo, `		a := p.Active[rep.Key]
		if a != nil && (rep.Generation == 0 || rep.Generation == a.CreateRevision) {
			s =`, `		a := p.Active[rep.Key]
		if a != nil {
			s =`},
			{reportGo, `		if rot := p.Rotation(Life{rep.Pool, rep.Key, rep.Generation}); rot != nil {
			s`, `		if rot := p.Rotation(Life{rep.Pool, rep.Key, rep.Generation}); rot != nil && p.Active[rep.Key] == nil {
			s`},
		},
	},
	{
		name: "rest without comparing the key", spoil: "late key.cooled_down",
		edits: []edit{uncompared(`t.Event.Type == pool.EventKeyCooledDown && g.Ref.Kind == pool.KindActive`)},
	},
	{
		name: "incident not seen by the commit", spoil: "late key.rotated",
		edits: []edit{{commitGo, `if f.req.reported && now.pool.IncidentAt(r.Now()) != nil {`, `if f.req.reported && now.pool.IncidentAt(r.Now()) != nil && f.fulfils {`}},
	},
}
