package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
)

// stockWork reports whether anything is to be done about a pool's stock as the mirror has it, and a number that changes
// with what that rests on.
func stockWork(p *pool.PoolState) (revision int64, wanted bool) {
	backups, preparing, marker := p.Stock.Len(), len(p.Preparing), p.Tokens[pool.TokenStockLow]
	revision = int64(backups)<<20 | int64(preparing)
	if marker != nil {
		revision += marker.ModRevision << 40
	}
	s := levels{backups, preparing, p.Pool.Spec.Stock}
	switch {
	case marker == nil:
		return revision, s.low()
	case s.missing() > 0:
		return revision, !p.Pool.Paused
	}
	return revision, !s.low()
}

// levels are how much stock there is and how much is wanted.
type levels struct {
	backups, preparing int
	policy             *pool.StockPolicy // nil: operators stock the pool
}

// low reports whether the stock is below its minimum. What is being prepared does not count before it is verified.
func (l levels) low() bool { return l.policy != nil && l.backups < l.policy.Min }

// missing is how many keys to plan once the stock was found low. Keys that failed count until somebody looks at them:
// otherwise an upstream that refuses everything would be asked for more and more.
func (l levels) missing() int {
	if l.policy == nil {
		return 0
	}
	return max(0, l.policy.Target()-l.backups-l.preparing)
}

// keepStock keeps a pool's stock between its bounds, and says when to look again.
//
// The marker is there from when the stock is low until nothing is missing any more: until then the pool is being filled, also
// if it is paused or has no provider here meanwhile. Putting it is the crossing, with its event. Every planned key rewrites
// it, so that of two replicas that have counted the same stock one loses its compare and counts again.
func (w *Worker) keepStock(ctx context.Context, name string) time.Time {
	for range tries {
		p, marker, l, err := w.countStock(ctx, name)
		if err != nil || p == nil {
			return w.Now().Add(pauseAfter)
		}
		var t *pool.Txn
		_, perr := w.Providers.Provider(p)
		switch {
		case l.low() && marker == nil:
			t = lowTxn(p, l, w.Now().UTC())
		case marker != nil && l.missing() > 0 && !p.Paused && p.Spec.Provider != nil && perr == nil:
			t, err = w.plan(p, marker, w.Now().UTC())
		case marker != nil && l.missing() > 0 && perr != nil:
			return w.Now().Add(w.Limits.Recheck)
		case marker != nil && l.missing() == 0 && !l.low():
			t = &pool.Txn{If: []pool.Guard{pool.Same(p), pool.Same(marker)}, Delete: []pool.Ref{marker.Ref()}}
		default:
			return w.Now().Add(forever)
		}
		if err != nil || !w.applyStock(ctx, name, t) {
			return w.Now().Add(pauseAfter)
		}
	}
	return w.Now() // more is to be planned
}

// countStock reads the marker before it counts: whoever plans after that changes it. What is being prepared is listed before
// the stock, so that a key that is stocked in between is in both lists and not in neither.
func (w *Worker) countStock(ctx context.Context, name string) (p *pool.Pool, marker *pool.Token, l levels, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeBudget)
	defer cancel()
	ref := pool.TokenRef(name, pool.TokenStockLow)
	st, err := w.Store.Read(ctx, pool.PoolRef(name), ref)
	if err != nil {
		return nil, nil, l, err
	}
	p, err = pool.Find[*pool.Pool](st, pool.PoolRef(name))
	if err != nil || p == nil || p.Deleting || p.TooNew() {
		return nil, nil, l, err
	}
	if marker, err = pool.Find[*pool.Token](st, ref); err != nil {
		return nil, nil, l, err
	}
	preparing, _, err := w.Store.List(ctx, pool.KindPreparation, name, 0)
	if err != nil {
		return nil, nil, l, err
	}
	backups, _, err := w.Store.List(ctx, pool.KindBackup, name, 0)
	return p, marker, levels{usable(backups), without(preparing, backups), p.Spec.Stock}, err
}

// without counts the records of keys that others has no record of.
func without(recs, others []pool.Record) (n int) {
	has := make(map[string]bool, len(others))
	for _, rec := range others {
		has[rec.Ref().Name] = true
	}
	for _, rec := range recs {
		if !has[rec.Ref().Name] {
			n++
		}
	}
	return n
}

// usable counts the backups that rotations can use.
func usable(recs []pool.Record) (n int) {
	for _, rec := range recs {
		if b, ok := rec.(*pool.Backup); ok && !b.TooNew() {
			n++
		}
	}
	return n
}

// lowTxn says that the stock has fallen below its minimum: once, whoever sees it.
func lowTxn(p *pool.Pool, l levels, now time.Time) *pool.Txn {
	marker := &pool.Token{Version: pool.Version{Schema: pool.Schema}, Pool: p.Name, Name: pool.TokenStockLow, UsedAt: now}
	return &pool.Txn{
		If:  []pool.Guard{pool.Same(p), pool.Absent(marker.Ref())},
		Put: []pool.Record{marker},
		Event: &pool.Event{
			Type: pool.EventStockLow, Pool: p.Name, Subject: "pools/" + p.Name, Time: now, Source: "lifecycle",
			Reason: fmt.Sprintf("%d keys in stock, at least %d are wanted", l.backups, p.Spec.Stock.Min),
		},
	}
}

// plan puts a key into preparation. Its secret is chosen here if we choose it, so that the same key is made however often
// it is asked for.
func (w *Worker) plan(p *pool.Pool, marker *pool.Token, now time.Time) (*pool.Txn, error) {
	provider, err := w.Providers.Provider(p)
	if err != nil {
		return nil, err
	}
	key := newKeyID(now)
	prep := &pool.Preparation{
		Version: pool.Version{Schema: pool.Schema}, Pool: p.Name, Key: key, Phase: pool.PhasePlanned, PlannedAt: now,
		Work: &pool.Work{Generation: 1, PhaseSince: now}, Alias: pool.AliasOf(p.Name, key),
	}
	next := *marker
	next.Schema, next.Key = pool.Schema, key
	t := &pool.Txn{
		If:  []pool.Guard{pool.Same(p), pool.Same(marker)},
		Put: []pool.Record{prep, &next},
		Event: &pool.Event{
			Type: pool.EventKeyPlanned, Pool: p.Name, Subject: "keys/" + key, Time: now, Source: "lifecycle",
			Key: key, Home: pool.HomePreparing, Phase: prep.Phase,
		},
	}
	for _, ref := range pool.HomeRefs(p.Name, key) {
		t.If = append(t.If, pool.Absent(ref))
	}
	if secret := provider.Choose(); !secret.IsZero() {
		if prep.Sealed, err = w.Sealer.Seal(p.Name, key, secret); err != nil {
			return nil, err
		}
		claim := &pool.Fingerprint{Version: pool.Version{Schema: pool.Schema}, Pool: p.Name, HMAC: prep.Sealed.Fingerprint, Key: key}
		t.If, t.Put = append(t.If, pool.Absent(claim.Ref())), append(t.Put, claim)
	}
	return t, nil
}

// newKeyID makes up the id of a key, such as m261126-k7q2x9da4m: the day it was planned, and chance.
func newKeyID(now time.Time) string {
	var chance [7]byte
	_, _ = rand.Read(chance[:])
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(chance[:])
	return "m" + now.Format("060102") + "-" + strings.ToLower(text[:10])
}

// applyStock sends a transition of the stock. It reports false if its outcome is not known; a lost compare is counted
// and decided anew.
func (w *Worker) applyStock(ctx context.Context, name string, t *pool.Txn) bool {
	ctx, cancel := context.WithTimeout(ctx, writeBudget)
	defer cancel()
	life := pool.Life{Pool: name}
	if t.Event != nil {
		t.Event.ID = pool.NewID()
		life.Key = t.Event.Key
	}
	if err := w.Steps(ctx, StepRead, firstPut(t)); err != nil {
		return false
	}
	res, err := pool.Apply(ctx, w.Store, t, func(attempt int, err error) {
		w.Observer.OutcomeUnknown(name, "pools/"+name, attempt, err)
	})
	if err != nil {
		return false
	}
	if err := w.Steps(ctx, StepWritten, firstPut(t)); err != nil {
		return false
	}
	if !res.Applied {
		w.Observer.Conflict(life, "lifecycle")
		return true
	}
	if t.Event != nil {
		w.Observer.Moved(firstPut(t), t.Event)
	}
	return true
}

// firstPut is what a transition is about: the first record it puts, nil if it only deletes.
func firstPut(t *pool.Txn) pool.Record {
	if len(t.Put) == 0 {
		return nil
	}
	return t.Put[0]
}
