package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"time"

	"golang.org/x/sync/errgroup"
)

// NewKey is a key to add.
type NewKey struct {
	ID          string
	Secret      Secret
	Slot        string // of an active key; default: the id
	Labels      map[string]string
	Status      Status // of an active key; default: healthy
	StatusUntil time.Time
	SpendUSD    *float64 // of an active key; nil: unknown
}

// AddResult says what happened to one key.
type AddResult int

// The results; the numbers are those of rotator.v1.AddResult.
const (
	AddResultUnspecified AddResult = iota
	AddResultAdded
	AddResultSame
	AddResultRefused
	AddResultUnknown
)

// KeyRefusal says why a key was not added.
type KeyRefusal int

// The refusals; the numbers are those of rotator.v1.KeyRefusal.
const (
	KeyRefusalUnspecified KeyRefusal = iota
	KeyRefusalInvalid
	KeyRefusalIDTaken
	KeyRefusalSecretTaken
	KeyRefusalSlotTaken
	KeyRefusalNotApplied
)

// Added is what happened to one key of an AddKeys call.
type Added struct {
	ID       string
	Result   AddResult
	Home     Home // where the key is now; HomeNone if refused
	Refusal  KeyRefusal
	Message  string
	OtherKey string // the key that has the same secret
	Revision int64  // of the addition
}

// AddKeys adds keys to one home, each in its own transaction, and says for each what happened, in their order. A key
// that is refused does not hinder the others. The revision is the highest of the additions, 0 if there was none.
//
// With dryRun it says what would happen and changes nothing.
func (a *Admin) AddKeys(ctx context.Context, pool string, home Home, keys []NewKey, dryRun bool) ([]Added, int64, error) {
	if err := checkAddKeys(pool, home, len(keys)); err != nil {
		return nil, 0, err
	}
	st, err := a.Store.Read(ctx, PoolRef(pool))
	if err != nil {
		return nil, 0, err
	}
	if _, err := openPool(st, pool); err != nil {
		return nil, 0, err
	}
	adds := a.additions(pool, home, keys)
	var work errgroup.Group
	work.SetLimit(adminParallel)
	for _, ad := range adds {
		if ad.answer == nil {
			work.Go(func() error { a.addKey(ctx, ad, dryRun); return nil })
		}
	}
	_ = work.Wait()
	if dryRun {
		settleAmongThemselves(adds)
	}
	answers, highest := collectAnswers(adds)
	return answers, highest, nil
}

func checkAddKeys(pool string, home Home, keys int) error {
	var f violations
	f.name("pool", pool)
	if home != HomeActive && home != HomeBackup {
		f.add("home", "must be active or backup")
	}
	switch {
	case keys == 0:
		f.add("keys", "is required")
	case keys > MaxKeysPerAdd:
		f.add("keys", fmt.Sprintf("has %d keys, at most %d are allowed", keys, MaxKeysPerAdd))
	}
	return f.refusal()
}

// addition is one key on its way into a home.
type addition struct {
	NewKey
	pool        string
	home        Home
	fingerprint string
	answer      *Added // nil: not known yet
}

// additions prepares the keys of a call; those that break a rule are answered already.
func (a *Admin) additions(pool string, home Home, keys []NewKey) []*addition {
	adds := make([]*addition, len(keys))
	first := make(map[string]int)
	for i, k := range keys {
		ad := &addition{NewKey: k, pool: pool, home: home}
		adds[i] = ad
		f := k.check(fmt.Sprintf("keys[%d].", i), home)
		if j, twice := first[k.ID]; twice {
			f.add(fmt.Sprintf("keys[%d].id", i), fmt.Sprintf("is the same as keys[%d].id", j))
		} else {
			first[k.ID] = i
		}
		if err := f.refusal(); err != nil {
			ad.refuse(KeyRefusalInvalid, err.Error())
			continue
		}
		ad.fingerprint = a.Sealer.Fingerprint(k.Secret)
		if home == HomeActive {
			ad.Slot = firstOf(k.Slot, k.ID)
			ad.Status = max(k.Status, StatusHealthy)
		}
	}
	return adds
}

func firstOf(given, otherwise string) string {
	if given == "" {
		return otherwise
	}
	return given
}

// check lists what is wrong with a key for a home.
func (k *NewKey) check(path string, home Home) (f violations) {
	f.name(path+"id", k.ID)
	f.add(path+"secret", CheckSecret(k.Secret))
	f.add(path+"labels", CheckLabels(k.Labels))
	if home == HomeBackup {
		k.checkBare(path, &f)
		return f
	}
	if k.Slot != "" {
		f.name(path+"slot", k.Slot)
	}
	switch {
	case k.Status < StatusUnspecified || k.Status > StatusDisabled:
		f.add(path+"status", "is unknown")
	case k.Status != StatusUnspecified:
		f.add(path+"status_until", CheckStatus(k.Status, k.StatusUntil))
	case !k.StatusUntil.IsZero():
		f.add(path+"status_until", "must not be given without a status")
	}
	if s := k.SpendUSD; s != nil && (math.IsNaN(*s) || math.IsInf(*s, 0) || *s < 0) {
		f.add(path+"spend_usd", "must be a number that is not negative")
	}
	return f
}

// checkBare refuses what only an active key has, rather than drop it silently.
func (k *NewKey) checkBare(path string, f *violations) {
	for _, field := range [...]struct {
		name  string
		given bool
	}{
		{"slot", k.Slot != ""},
		{"status", k.Status != StatusUnspecified},
		{"status_until", !k.StatusUntil.IsZero()},
		{"spend_usd", k.SpendUSD != nil},
	} {
		if field.given {
			f.add(path+field.name, "must not be given for a backup")
		}
	}
}

func (ad *addition) refuse(why KeyRefusal, message string) {
	ad.answer = &Added{ID: ad.ID, Result: AddResultRefused, Refusal: why, Message: message}
}

// refs are what decides whether a key can be added.
func (ad *addition) refs() []Ref {
	refs := append(HomeRefs(ad.pool, ad.ID), PoolRef(ad.pool), FingerprintRef(ad.pool, ad.fingerprint))
	if ad.home == HomeActive {
		refs = append(refs, SlotRef(ad.pool, ad.Slot))
	}
	return refs
}

// HomeRefs are the places a key can be in.
func HomeRefs(pool, key string) []Ref {
	return []Ref{ActiveRef(pool, key), BackupRef(pool, key), RetiredRef(pool, key), PreparationRef(pool, key)}
}

// addKey adds one key and sets its answer.
func (a *Admin) addKey(ctx context.Context, ad *addition, dryRun bool) {
	var sealed Sealed
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, err := a.Store.Read(ctx, ad.refs()...)
		if err != nil {
			return nil, err
		}
		p, err := openPool(st, ad.pool)
		if err != nil {
			return nil, err
		}
		if ad.answer = ad.found(st); ad.answer != nil {
			return nil, a.nameOtherKey(ctx, ad.pool, ad.answer, ad.fingerprint)
		}
		if dryRun {
			return nil, nil
		}
		if sealed.IsZero() {
			if sealed, err = a.Sealer.Seal(ad.pool, ad.ID, ad.Secret); err != nil {
				return nil, Refuse(ReasonNotApplied, "the secret cannot be sealed").Because(err)
			}
		}
		return a.addTxn(p, ad, sealed), nil
	})
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		ad.answer = &Added{ID: ad.ID, Result: AddResultUnknown, Message: "not known in time whether it was added; add it again"}
	case err != nil:
		ad.refuse(KeyRefusalNotApplied, toldOf(err))
	case ad.answer == nil:
		ad.answer = &Added{ID: ad.ID, Result: AddResultAdded, Home: ad.home, Revision: rev}
	}
}

// toldOf is the part of an error that a caller is told. What is no refusal is the store's word on why it will never take
// the write, which is for the operator.
func toldOf(err error) string {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Message
	}
	return err.Error()
}

// found answers for a key that cannot be added because of what is there, nil if it can.
func (ad *addition) found(st *State) *Added {
	if home, sealed := whereIs(st, HomeRefs(ad.pool, ad.ID)...); home != HomeNone {
		return ad.foundID(home, sealed)
	}
	if rec := st.Records[FingerprintRef(ad.pool, ad.fingerprint)]; rec != nil {
		added := &Added{ID: ad.ID, Result: AddResultRefused, Refusal: KeyRefusalSecretTaken}
		if fp, ok := rec.(*Fingerprint); ok {
			added.OtherKey = fp.Key
		}
		return added
	}
	if ad.home == HomeActive && st.Has(SlotRef(ad.pool, ad.Slot)) {
		return &Added{
			ID: ad.ID, Result: AddResultRefused, Refusal: KeyRefusalSlotTaken,
			Message: fmt.Sprintf("slot %q is held by another active key", ad.Slot),
		}
	}
	return nil
}

// foundID answers for an id that is there already.
func (ad *addition) foundID(home Home, sealed Sealed) *Added {
	if !sealed.IsZero() && sealed.Fingerprint == ad.fingerprint {
		return &Added{ID: ad.ID, Result: AddResultSame, Home: home, Message: "was there already, " + homeText[home]}
	}
	why := "with another secret"
	if sealed.IsZero() {
		why = "without a secret that could be compared"
	}
	return &Added{
		ID: ad.ID, Result: AddResultRefused, Refusal: KeyRefusalIDTaken,
		Message: fmt.Sprintf("the id is taken by a key %s, %s; `rotatorctl key remove %s %s` removes that", homeText[home], why, ad.pool, ad.ID),
	}
}

var homeText = map[Home]string{HomeActive: "in service", HomeBackup: "in stock", HomeRetired: "retired", HomePreparing: "being prepared"}

// whereIs says in which of its homes a key is, and its sealed secret if the record can be read.
func whereIs(st *State, homes ...Ref) (Home, Sealed) {
	for _, ref := range homes {
		if st.Has(ref) {
			return homeOf[ref.Kind], sealedIn(st.Records[ref])
		}
	}
	return HomeNone, Sealed{}
}

var homeOf = map[Kind]Home{KindActive: HomeActive, KindBackup: HomeBackup, KindRetired: HomeRetired, KindPreparation: HomePreparing}

func sealedIn(rec Record) Sealed {
	switch rec := rec.(type) {
	case *Active:
		return rec.Sealed
	case *Backup:
		return rec.Sealed
	case *Retired:
		return rec.Sealed
	case *Preparation:
		return rec.Sealed
	}
	return Sealed{}
}

// nameOtherKey completes a refusal because the secret is taken.
//
// A fingerprint is put with its key and deleted with it (or with its secret), in one transaction each. So one whose key
// is nowhere comes from a hand edit only. It still counts: what it stands for is not known here.
func (a *Admin) nameOtherKey(ctx context.Context, pool string, added *Added, fingerprint string) error {
	if added.Refusal != KeyRefusalSecretTaken {
		return nil
	}
	claim, other := FingerprintRef(pool, fingerprint), added.OtherKey
	if other == "" {
		added.Message = "the same secret is in the pool, under a record that cannot be read; `rotatorctl doctor` says more"
		return nil
	}
	st, err := a.Store.Read(ctx, append(HomeRefs(pool, other), claim)...)
	if err != nil {
		return err
	}
	if fp, _ := st.Records[claim].(*Fingerprint); fp == nil || fp.Key != other {
		return errLookAgain // the other key went between the two reads
	}
	home, _ := whereIs(st, HomeRefs(pool, other)...)
	if home == HomeNone {
		added.Message = fmt.Sprintf("the same secret is claimed for key %q, which does not exist; `rotatorctl doctor` says how to clear that", other)
		return nil
	}
	added.Message = fmt.Sprintf("the same secret is in the pool as key %q, %s", other, homeText[home])
	return nil
}

// addTxn puts a key into a home it is in no other of, and claims its secret. A crash before it is sent adds nothing;
// after it the key is added whole: in its home, with its slot and its claim.
func (a *Admin) addTxn(p *Pool, ad *addition, sealed Sealed) *Txn {
	now := a.Now().UTC()
	claim := &Fingerprint{Version: Version{Schema: Schema}, Pool: p.Name, HMAC: sealed.Fingerprint, Key: ad.ID}
	t := &Txn{If: []Guard{Same(p), Absent(claim.Ref())}, Put: []Record{claim}, Event: a.event(EventKeyAdded, p.Name, "keys/"+ad.ID)}
	for _, ref := range HomeRefs(p.Name, ad.ID) {
		t.If = append(t.If, Absent(ref))
	}
	t.Event.Key, t.Event.Home = ad.ID, ad.home
	if ad.home == HomeBackup {
		t.Put = append(t.Put, &Backup{
			Version: Version{Schema: Schema}, Pool: p.Name, Key: ad.ID, Sealed: sealed, Labels: maps.Clone(ad.Labels), AddedAt: now,
		})
		return t
	}
	t.Event.Slot, t.Event.Status = ad.Slot, ad.Status
	slot := &Slot{Version: Version{Schema: Schema}, Pool: p.Name, Name: ad.Slot, CreatedAt: now}
	t.If = append(t.If, Absent(slot.Ref()))
	t.Put = append(t.Put, slot, &Active{
		Version: Version{Schema: Schema}, Pool: p.Name, Key: ad.ID, Slot: ad.Slot, Status: ad.Status, StatusUntil: ad.StatusUntil,
		Sealed: sealed, Labels: maps.Clone(ad.Labels), AddedAt: now, SpendUSD: ad.SpendUSD,
	})
	return t
}

// settleAmongThemselves completes a dry run, in which the keys of the call did not meet each other, and says what was
// found out.
func settleAmongThemselves(adds []*addition) {
	secrets, slots := make(map[string]string), make(map[string]string)
	for _, ad := range adds {
		if ad.answer.Result != AddResultAdded {
			continue
		}
		ad.answer.Message = "would be added"
		if other, taken := secrets[ad.fingerprint]; taken {
			ad.refuse(KeyRefusalSecretTaken, fmt.Sprintf("the same secret is in this call as key %q", other))
			ad.answer.OtherKey = other
			continue
		}
		if other, taken := slots[ad.Slot]; taken && ad.home == HomeActive {
			ad.refuse(KeyRefusalSlotTaken, fmt.Sprintf("slot %q is asked for in this call for key %q", ad.Slot, other))
			continue
		}
		secrets[ad.fingerprint], slots[ad.Slot] = ad.ID, ad.ID
	}
}

func collectAnswers(adds []*addition) (answers []Added, highest int64) {
	for _, ad := range adds {
		answers = append(answers, *ad.answer)
		highest = max(highest, ad.answer.Revision)
	}
	return answers, highest
}

// RestoreKey moves a retired key back into stock, as it was: with its labels and the time it was first added. It needs
// the secret, and that nothing has begun to end the key's life upstream.
func (a *Admin) RestoreKey(ctx context.Context, pool, key string) (*Backup, int64, error) {
	if err := checkPoolAnd("key_id", pool, key); err != nil {
		return nil, 0, err
	}
	var out *Backup
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, p, err := a.readKey(ctx, pool, key)
		if err != nil {
			return nil, err
		}
		old, err := restorable(st, pool, key)
		if err != nil {
			return nil, err
		}
		out = &Backup{Version: Version{Schema: Schema}, Pool: pool, Key: key, Sealed: old.Sealed, Labels: old.Labels, AddedAt: old.AddedAt}
		return a.restoreTxn(p, old, out), nil
	})
	if err != nil {
		return nil, 0, err
	}
	done := *out
	done.Version = putAt(out.Version, rev)
	return &done, rev, nil
}

func restorable(st *State, pool, key string) (*Retired, error) {
	old, err := Find[*Retired](st, RetiredRef(pool, key))
	if err != nil {
		return nil, err
	}
	if old == nil {
		return nil, notIn(st, pool, key, HomeRetired)
	}
	if err := rewritable(old); err != nil {
		return nil, err
	}
	switch {
	case old.Phase != PhaseRetired:
		return nil, Refuse(ReasonKeyNotRestorable, "key %q cannot be restored: its revocation has begun", key)
	case old.Sealed.IsZero():
		return nil, Refuse(ReasonKeyNotRestorable, "key %q cannot be restored: its secret has been purged; remove it and add it again", key)
	}
	return old, nil
}

// notIn refuses a key that is not in the home an operation needs.
func notIn(st *State, pool, key string, want Home) error {
	home, _ := whereIs(st, HomeRefs(pool, key)...)
	if home == HomeNone {
		return noSuchKey(pool, key)
	}
	r := Refuse(ReasonKeyWrongHome, "key %q is %s, not %s", key, homeText[home], homeText[want])
	r.Metadata = map[string]string{"home": home.String()}
	return r
}

// restoreTxn moves the record. A crash before it leaves the key retired, after it in stock; it is never in both or none.
func (a *Admin) restoreTxn(p *Pool, old *Retired, next *Backup) *Txn {
	t := &Txn{
		If:     append(AtHome(old), Same(p)),
		Put:    []Record{next},
		Delete: []Ref{old.Ref()},
		Event:  a.event(EventKeyRestored, p.Name, "keys/"+old.Key),
	}
	t.Event.Key, t.Event.Home, t.Event.Generation = old.Key, HomeBackup, old.Generation
	return t
}

// DisableKey takes an active key out of service without replacing it.
func (a *Admin) DisableKey(ctx context.Context, pool, key, reason string) (*Active, int64, error) {
	return a.setStatus(ctx, pool, key, reason, StatusDisabled, EventKeyDisabled)
}

// EnableKey puts an active key back into service, whatever its status.
func (a *Admin) EnableKey(ctx context.Context, pool, key, reason string) (*Active, int64, error) {
	return a.setStatus(ctx, pool, key, reason, StatusHealthy, EventKeyEnabled)
}

// setStatus gives an active key a status that has no end, and cancels a rotation of it that waits for stock.
func (a *Admin) setStatus(ctx context.Context, pool, key, reason string, status Status, kind EventType) (*Active, int64, error) {
	var f violations
	f.name("pool", pool)
	f.name("key_id", key)
	f.add("reason", CheckText(reason, MaxReason))
	if err := f.refusal(); err != nil {
		return nil, 0, err
	}
	reason = a.Scrub(reason)
	var out *Active
	rev, err := a.transition(ctx, func() (*Txn, error) {
		st, p, err := a.readKey(ctx, pool, key, PendingRef(pool, key))
		if err != nil {
			return nil, err
		}
		seen, err := Find[*Active](st, ActiveRef(pool, key))
		if err != nil {
			return nil, err
		}
		if seen == nil {
			return nil, notIn(st, pool, key, HomeActive)
		}
		out = seen
		if seen.Status == status && seen.StatusUntil.IsZero() && !st.Has(PendingRef(pool, key)) {
			return nil, nil
		}
		if err := rewritable(seen); err != nil {
			return nil, err
		}
		next := *seen
		next.Version, next.Status, next.StatusUntil = renewed(seen.Version), status, time.Time{}
		next.StatusSince, next.StatusReason = a.Now().UTC(), "" // why is in the event
		out = &next
		return a.statusTxn(st, p, seen, out, kind, reason), nil
	})
	if err != nil {
		return nil, 0, err
	}
	done := *out
	done.Version = putAt(out.Version, rev)
	return &done, done.ModRevision, nil
}

// statusTxn puts a status over the record that was read.
//
// It also deletes the key's lock, whoever holds it. A rotation that was decided before this commit compares the lock's
// revision, or, where there was no lock, that of the record: so it cannot be made after the operator was told that the key
// is disabled or enabled. Its holder, or another, decides anew from the new status. A crash before the commit changes
// nothing.
func (a *Admin) statusTxn(st *State, p *Pool, seen, next *Active, kind EventType, reason string) *Txn {
	pending := PendingRef(p.Name, seen.Key)
	t := &Txn{
		If:     []Guard{Same(p), Same(seen), unseen(st, pending)},
		Put:    []Record{next},
		Delete: []Ref{LockRef(p.Name, seen.Key)},
		Event:  a.event(kind, p.Name, "keys/"+seen.Key),
	}
	if st.Has(pending) {
		t.Delete = append(t.Delete, pending)
	}
	t.Event.Key, t.Event.Slot, t.Event.Generation, t.Event.Home = seen.Key, seen.Slot, seen.CreateRevision, HomeActive
	t.Event.Status, t.Event.Reason = next.Status, reason
	return t
}
