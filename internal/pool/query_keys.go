package pool

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"
)

// KeyInfo is a key in whatever home, flat. What does not apply to its home is zero.
type KeyInfo struct {
	Pool, ID    string
	Home        Home
	Slot        string // of a retired key: the slot it held
	Generation  int64  // of a retired key: its last life
	Status      Status // as stored; see Active.StatusAt
	StatusUntil time.Time
	Sealed      Sealed // zero once purged
	Labels      map[string]string
	Replaces    string
	ReplacedBy  string
	AddedAt     time.Time
	RetiredAt   time.Time
	Revision    int64  // of the record's last change
	Secret      Secret // only where the query asked for it
	Pending     bool   // a rotation of this life waits for stock
	SpendUSD    *float64
	BudgetUSD   *float64
	SpendAt     time.Time

	StatusSince  time.Time
	StatusReason string

	Phase     Phase // of a preparing or retired key
	Problem   string
	NextTryAt time.Time
}

// Info is the key without its secret. Whether a rotation waits is not known from the record alone.
func (a *Active) Info() KeyInfo {
	return KeyInfo{
		Pool: a.Pool, ID: a.Key, Home: HomeActive, Slot: a.Slot, Generation: a.CreateRevision,
		Status: a.Status, StatusUntil: a.StatusUntil, Sealed: a.Sealed, Labels: a.Labels, Replaces: a.Replaces,
		AddedAt: a.AddedAt, Revision: a.ModRevision, SpendUSD: a.SpendUSD, BudgetUSD: a.BudgetUSD, SpendAt: a.SpendAt,
		StatusSince: a.StatusSince, StatusReason: a.StatusReason,
	}
}

// Info is the key without its secret.
func (b *Backup) Info() KeyInfo {
	return KeyInfo{
		Pool: b.Pool, ID: b.Key, Home: HomeBackup, Sealed: b.Sealed, Labels: b.Labels, AddedAt: b.AddedAt,
		Revision: b.ModRevision,
	}
}

// Info is the key without its secret.
func (r *Retired) Info() KeyInfo {
	info := KeyInfo{
		Pool: r.Pool, ID: r.Key, Home: HomeRetired, Slot: r.Slot, Generation: r.Generation, Sealed: r.Sealed,
		Labels: r.Labels, ReplacedBy: r.ReplacedBy, AddedAt: r.AddedAt, RetiredAt: r.RetiredAt,
		Revision: r.ModRevision, SpendUSD: r.SpendUSD, Phase: r.Phase,
	}
	info.work(r.Work)
	return info
}

// Info is the key without its secret.
func (p *Preparation) Info() KeyInfo {
	info := KeyInfo{
		Pool: p.Pool, ID: p.Key, Home: HomePreparing, Sealed: p.Sealed, Labels: p.Labels, AddedAt: p.PlannedAt,
		Revision: p.ModRevision, Phase: p.Phase,
	}
	info.work(p.Work)
	return info
}

func (k *KeyInfo) work(w *Work) {
	if w == nil {
		return
	}
	k.Problem = w.Problem
	if k.Phase != PhaseFailed && k.Phase != PhaseOrphaned { // nobody tries these
		k.NextTryAt = w.NotBefore
	}
}

// waits reports whether a rotation of a's life waits for stock.
func (p *PoolState) waits(a *Active) bool {
	pending := p.Pending[a.Key]
	return pending != nil && pending.Generation == a.CreateRevision
}

// open puts the secret into k. A purged key has none, which is no failure.
func (q *Queries) open(k *KeyInfo) (err error) {
	if k.Sealed.IsZero() {
		return nil
	}
	k.Secret, err = q.sealer.Open(k.Pool, k.ID, k.Sealed)
	if err != nil {
		return Refuse(ReasonSecretUnreadable, "the secret of key %q cannot be opened with this replica's keyset", k.ID).Because(err)
	}
	return nil
}

// KeysQuery asks which keys to use now.
type KeysQuery struct {
	Pool          string
	Proxy         string // empty: the whole pool
	IncludeSecret bool
	MinRevision   int64
}

func (r *KeysQuery) check() error {
	var f violations
	f.name("pool", r.Pool)
	f.optionalName("proxy_id", r.Proxy)
	f.notNegative("min_revision", r.MinRevision)
	return f.refusal()
}

// KeyChoice is a key a proxy may use.
type KeyChoice struct {
	KeyInfo
	Priority int // 1 is primary
}

// KeySet is what can be used now, best first.
type KeySet struct {
	Keys         []KeyChoice // by priority, then slot
	NextUsableAt time.Time   // when the next of the others comes back by itself; zero: none will
	Revision     int64
	AsOf         time.Time // the state was still the newest then
	Bound        bool      // the proxy has a binding: the keys are its own, not the whole pool's
}

// GetKeys returns the usable keys of a proxy, or of a whole pool. A proxy without a binding may use the whole pool.
//
// The keys of a bound proxy cost the same in a pool of any size. An active record that cannot be decoded is left out;
// a binding that cannot be decoded refuses, for its proxy must not be taken for an unbound one. Whether there is a
// binding is as old as the answer's revision: who has just bound a proxy asks with that write's revision.
func (q *Queries) GetKeys(ctx context.Context, req KeysQuery) (set KeySet, err error) {
	if err := req.check(); err != nil {
		return KeySet{}, err
	}
	now, asOf := q.now(), q.mirror.AsOf() // before the look: the snapshot is then at least as new as it says
	var chosen []chosen
	err = q.answer(ctx, req.Pool, req.MinRevision, func(s *Snapshot) error {
		p, err := s.pooled(req.Pool)
		if err != nil {
			return err
		}
		set = KeySet{Revision: s.Revision, AsOf: asOf}
		if b := p.Bindings[req.Proxy]; b != nil {
			chosen = set.bound(p, b, now)
			return nil
		}
		chosen = set.whole(p, now)
		return s.broken(BindingRef(req.Pool, req.Proxy))
	})
	if err != nil {
		return KeySet{}, err
	}
	if err := q.fill(&set, chosen, req.IncludeSecret); err != nil {
		return KeySet{}, err
	}
	return set, nil
}

// chosen is a key on its way into a KeySet: what has to be taken from the snapshot while it is valid. Sorting, copying
// and opening are for later, when nobody waits for the mirror's lock.
type chosen struct {
	*Active
	priority int
	waits    bool
}

func (k *KeySet) bound(p *PoolState, b *Binding, now time.Time) []chosen {
	k.Bound = true
	keys := make([]chosen, 0, len(b.Slots))
	for _, slot := range b.Slots {
		if a := p.BySlot[slot.Slot]; a != nil && k.usable(a, now) {
			keys = append(keys, chosen{a, slot.Priority, p.waits(a)})
		}
	}
	return keys
}

func (k *KeySet) whole(p *PoolState, now time.Time) []chosen {
	keys := make([]chosen, 0, len(p.Active))
	for _, a := range p.Active {
		if k.usable(a, now) {
			keys = append(keys, chosen{a, 1, p.waits(a)})
		}
	}
	return keys
}

// usable reports whether a can be used now, and notes when it will be if that is known.
func (k *KeySet) usable(a *Active, now time.Time) bool {
	if a.StatusAt(now) == StatusHealthy {
		return true
	}
	if !a.StatusUntil.IsZero() && (k.NextUsableAt.IsZero() || a.StatusUntil.Before(k.NextUsableAt)) {
		k.NextUsableAt = a.StatusUntil
	}
	return false
}

func (q *Queries) fill(set *KeySet, keys []chosen, includeSecret bool) error {
	slices.SortFunc(keys, func(a, b chosen) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), strings.Compare(a.Slot, b.Slot))
	})
	set.Keys = make([]KeyChoice, len(keys))
	for i, c := range keys {
		key := &set.Keys[i]
		key.KeyInfo, key.Priority = c.Info(), c.priority
		key.Pending = c.waits
		if !includeSecret {
			continue
		}
		if err := q.open(&key.KeyInfo); err != nil {
			return err
		}
	}
	return nil
}

// KeyQuery asks for one key.
type KeyQuery struct {
	Pool, Key     string
	IncludeSecret bool
	MinRevision   int64
}

func (r *KeyQuery) check() error {
	var f violations
	f.name("pool", r.Pool)
	f.name("key_id", r.Key)
	f.notNegative("min_revision", r.MinRevision)
	return f.refusal()
}

// GetKey returns a key, whatever its home.
func (q *Queries) GetKey(ctx context.Context, req KeyQuery) (key KeyInfo, revision int64, err error) {
	if err := req.check(); err != nil {
		return KeyInfo{}, 0, err
	}
	err = q.answer(ctx, req.Pool, req.MinRevision, func(s *Snapshot) (err error) {
		revision = s.Revision
		key, err = s.key(req.Pool, req.Key)
		return err
	})
	if err == nil && req.IncludeSecret {
		err = q.open(&key)
	}
	if err != nil {
		return KeyInfo{}, 0, err
	}
	return key, revision, nil
}

func (s *Snapshot) key(pool, key string) (KeyInfo, error) {
	p, err := s.pooled(pool)
	if err != nil {
		return KeyInfo{}, err
	}
	if a := p.Active[key]; a != nil {
		return p.info(a), nil
	}
	if b := p.Backup[key]; b != nil {
		return b.Info(), nil
	}
	if r := p.Retired[key]; r != nil {
		return r.Info(), nil
	}
	if prep := p.Preparing[key]; prep != nil {
		return prep.Info(), nil
	}
	refs := []Ref{ActiveRef(pool, key), BackupRef(pool, key), RetiredRef(pool, key), PreparationRef(pool, key)}
	if err := s.broken(refs...); err != nil {
		return KeyInfo{}, err
	}
	return KeyInfo{}, &gap{pool: pool, refs: refs, refusal: noSuchKey(pool, key)}
}

func (p *PoolState) info(a *Active) KeyInfo {
	info := a.Info()
	info.Pending = p.waits(a)
	return info
}

// Describe completes a key that another answer named: whether a rotation of it waits, as far as the mirror knows, and
// its secret if that is wanted.
func (q *Queries) Describe(a *Active, includeSecret bool) (KeyInfo, error) {
	info := a.Info()
	q.mirror.Read(func(s *Snapshot) {
		if p := s.Pools[a.Pool]; p != nil {
			info.Pending = p.waits(a)
		}
	})
	if includeSecret {
		if err := q.open(&info); err != nil {
			return KeyInfo{}, err
		}
	}
	return info, nil
}

// KeysFilter picks keys of a pool.
type KeysFilter struct {
	Pool        string
	Home        Home // HomeNone: all
	PendingOnly bool // only keys with a rotation that waits for stock
}

// ListKeys lists keys by home (active, backup, retired, preparing) and then id, never with a secret. Keys whose record cannot be
// decoded are not in the list.
func (q *Queries) ListKeys(ctx context.Context, filter KeysFilter, req PageRequest) (*Page[KeyInfo], error) {
	var f violations
	f.name("pool", filter.Pool)
	if filter.Home < HomeNone || filter.Home > HomePreparing {
		f.add("home", "is unknown")
	}
	page := newPager[listedKey]("keys", req, &f)
	if err := f.refusal(); err != nil {
		return nil, err
	}
	var revision int64
	err := q.answer(ctx, filter.Pool, req.MinRevision, func(s *Snapshot) error {
		p, err := s.pooled(filter.Pool)
		if err != nil {
			return err
		}
		revision = s.Revision
		filter.offer(p, page)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return pageOf(page, revision, listedKey.info), nil
}

// listedKey is a record in a list of keys, small until it is known to be in the page.
type listedKey struct {
	rec   interface{ Info() KeyInfo }
	waits bool
}

func (l listedKey) info() KeyInfo {
	info := l.rec.Info()
	info.Pending = l.waits
	return info
}

func (f KeysFilter) offer(p *PoolState, page *pager[listedKey]) {
	if f.wants(HomeActive) {
		for id, a := range p.Active {
			if waits := p.waits(a); waits || !f.PendingOnly {
				page.offer(place{int64(HomeActive), id}, listedKey{a, waits})
			}
		}
	}
	if f.wants(HomeBackup) && !f.PendingOnly {
		for id, b := range p.Backup {
			page.offer(place{int64(HomeBackup), id}, listedKey{b, false})
		}
	}
	if f.wants(HomeRetired) && !f.PendingOnly {
		for id, r := range p.Retired {
			page.offer(place{int64(HomeRetired), id}, listedKey{r, false})
		}
	}
	if f.wants(HomePreparing) && !f.PendingOnly {
		for id, prep := range p.Preparing {
			page.offer(place{int64(HomePreparing), id}, listedKey{prep, false})
		}
	}
}

func (f KeysFilter) wants(h Home) bool { return f.Home == HomeNone || f.Home == h }
