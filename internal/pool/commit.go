package pool

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
)

// StageRotate is what a lock says that is held for nothing but a rotation. An ordinary rotation writes none.
const StageRotate = "rotate"

// situation is what a commit rests on, read at one revision. Each part is compared by the transaction.
type situation struct {
	pool    *Pool
	active  *Active
	pending *Pending // nil: none
	backup  *Backup
	token   *Token // of the bound, as it was seen; nil: none is used
}

// commit ends the life under its lock, starting from the state the campaign saw, or, with a bid, from what is known.
// It reports whether the lock is released; errAgain means that the lock or the life is not what it was.
func (r *Rotator) commit(ctx context.Context, f *flight, k *stake, s *State) (released bool, err error) {
	if err := r.Steps(ctx, StepRead, f.life); err != nil {
		return false, err
	}
	// Backups found taken by others. The key itself is one from the start: a mirror that lags may show it in stock, where
	// it was before this life or came to after it.
	spent := map[string]bool{f.life.Key: true}
	for ctx.Err() == nil && !k.over() {
		if done, err := r.ended(ctx, f, s); done || err != nil {
			return false, err
		}
		now, err := situationOf(f.life, s)
		if err != nil {
			return false, err
		}
		if f.fulfils && !now.waits(f.life) {
			return false, errCancelled
		}
		if err := mayRotate(now.pool, now.active, f.req.Trigger); err != nil {
			return false, err
		}
		if f.req.reported && now.pool.IncidentAt(r.Now()) != nil {
			return false, errIncident
		}
		lost, err := r.attempt(ctx, f, k, now, spent)
		if err != nil || lost == nil {
			return err == nil, err
		}
		if k.won == nil { // not won: somebody else has the lock, or the life is over
			return false, errAgain
		}
		if err := r.reconsider(f, lost, spent); err != nil {
			return false, err
		}
		s = lost.result.State
	}
	return false, errAgain
}

// situationOf takes a situation from a state in which the life is in service.
func situationOf(l Life, s *State) (now situation, err error) {
	var errs [3]error
	now.pool, errs[0] = Find[*Pool](s, PoolRef(l.Pool))
	now.active, errs[1] = Find[*Active](s, ActiveRef(l.Pool, l.Key))
	now.pending, errs[2] = Find[*Pending](s, PendingRef(l.Pool, l.Key))
	if now.pool == nil && errs[0] == nil {
		errs[0] = Refuse(ReasonPoolNotFound, "pool %q does not exist any more", l.Pool)
	}
	return now, errors.Join(errs[:]...)
}

// findBackup reserves a backup for this attempt, nil if the pool surely has none. A backup that another rotation of this
// process has reserved may come free again, so it is waited for a little before "no stock" is said.
func (r *Rotator) findBackup(ctx context.Context, pool string, not map[string]bool) (*Backup, error) {
	for range reservedLooks {
		if b := r.chooseBackup(pool, not); b != nil {
			return b, nil
		}
		b, reserved, err := r.searchStock(ctx, pool, not)
		if b != nil || err != nil || !reserved {
			return b, err
		}
		if !wait(ctx, reservedPause) {
			return nil, Refuse(ReasonNotApplied, "the rotation was not made in time; try again").Because(ctx.Err())
		}
	}
	return nil, nil
}

const (
	reservedLooks = 5
	reservedPause = 10 * time.Millisecond
)

// loss is a transaction that was not applied, with what the store held instead.
type loss struct {
	txn    *Txn
	result *Result
}

// lostTo is the loss of a transaction. If a copy of it may still be applied there is nothing to decide anew: what would be
// told could turn out wrong.
func lostTo(t *Txn, res *Result) (*loss, error) {
	if res.Late {
		return nil, errNotKnown
	}
	return &loss{t, res}, nil
}

// attempt makes the rotation, or without a backup records that it waits. It returns nil if that is done. The token comes
// before the backup, so that nobody who is refused at the bound keeps stock from others; only a rotation that waits already
// needs a token for nothing but a backup.
func (r *Rotator) attempt(ctx context.Context, f *flight, k *stake, now situation, spent map[string]bool) (lost *loss, err error) {
	defer func() { r.settleToken(now.token, f, err == nil && lost == nil) }()
	waits := now.waits(f.life)
	if !waits {
		if now.token, err = r.findToken(ctx, f, now.pool); err != nil {
			return nil, err
		}
	}
	if now.backup, err = r.findBackup(ctx, f.life.Pool, spent); err != nil {
		return nil, err
	}
	if now.backup == nil {
		return r.park(ctx, f, k, now)
	}
	defer r.stock.drop(now.backup.Ref())
	if waits {
		if now.token, err = r.findToken(ctx, f, now.pool); err != nil {
			return nil, err
		}
	}
	return r.swap(ctx, f, k, now)
}

// waits reports whether the rotation of a life waits for stock.
func (now *situation) waits(l Life) bool {
	return now.pending != nil && now.pending.Generation == l.Generation
}

// searchStock looks into the store when the mirror shows no backup that could be used: "no stock" is never said from
// memory. reserved: there are usable ones, but other rotations of this process have reserved them.
func (r *Rotator) searchStock(ctx context.Context, pool string, not map[string]bool) (found *Backup, reserved bool, err error) {
	recs, _, err := r.Store.List(ctx, KindBackup, pool, 0)
	if err != nil {
		return nil, false, err
	}
	for _, rec := range recs {
		b, ok := rec.(*Backup)
		if !ok || !usable(b, not) {
			continue
		}
		if r.stock.take(b.Ref()) {
			return b, false, nil
		}
		reserved = true
	}
	return nil, reserved, nil
}

// swap makes the rotation. A crash before its transaction is sent leaves at most a lock that others take over; after it,
// the rotation as it is on record. It returns the lost result for another try.
func (r *Rotator) swap(ctx context.Context, f *flight, k *stake, now situation) (*loss, error) {
	txn, rot, successor := rotationTxn(f, k, now, r.Replica, r.Now())
	if err := r.Steps(ctx, StepSend, f.life); err != nil {
		return nil, err
	}
	began := time.Now()
	res, err := r.apply(ctx, f, k, txn, rot)
	if err != nil {
		return nil, err
	}
	if err := r.Steps(ctx, StepCommit, f.life); err != nil {
		return nil, err
	}
	if !res.Applied {
		return lostTo(txn, res)
	}
	r.patience.observe(time.Since(began))
	f.unsure = nil // what may still be under way is void
	rot.CreateRevision, rot.ModRevision = res.Revision, res.Revision
	successor.CreateRevision, successor.ModRevision = res.Revision, res.Revision
	r.begun.add(now.pool, successor, r.Mirror.Revision())
	f.rotation, f.key, f.revision = rot, successor, res.Revision
	r.Observer.Rotated(rot, r.Now().Sub(f.began))
	return nil, r.Steps(ctx, StepAnswer, f.life)
}

// rotationTxn is the transaction at the heart of the service. Its compares alone make a rotation correct: the life is
// still in service (and was not rotated: rotations are kept longer than any call lives), the backup is as it was seen
// and in no other home, the pool is neither changed nor paused nor deleted, the token of its bound was not used by anybody
// else, and nobody else has the lock.
func rotationTxn(f *flight, k *stake, now situation, replica string, at time.Time) (*Txn, *Rotation, *Active) {
	old, backup := now.active, now.backup
	rot := &Rotation{
		Version: Version{Schema: Schema}, Life: f.life, ID: NewID(), Slot: old.Slot, NewKey: backup.Key,
		Trigger: f.req.Trigger, Source: f.req.Source, Reason: f.req.Reason, RequestID: f.req.RequestID, ProxyID: f.req.ProxyID,
		Holder: replica, CommittedAt: at,
	}
	if p := now.pending; now.waits(f.life) {
		// The rotation that waited is made now: it is the one on record, whoever finishes it.
		rot.Trigger, rot.Source, rot.Reason, rot.RequestID, rot.ProxyID = p.Trigger, p.Source, p.Reason, p.RequestID, p.ProxyID
	}
	successor := &Active{
		Version: Version{Schema: Schema}, Pool: f.life.Pool, Key: backup.Key, Slot: old.Slot, Status: StatusHealthy,
		Sealed: backup.Sealed, Labels: backup.Labels, Replaces: old.Key, AddedAt: backup.AddedAt,
	}
	txn := &Txn{
		If: []Guard{
			k.alive(old),
			Absent(RotationRef(f.life)),
			Same(backup),
			Absent(successor.Ref()),
			Absent(RetiredRef(f.life.Pool, backup.Key)),
			Absent(RetiredRef(f.life.Pool, old.Key)),
			Absent(BackupRef(f.life.Pool, old.Key)),
			Same(now.pool),
			pendingGuard(f.life, now.pending),
		},
		Delete: []Ref{old.Ref(), backup.Ref()},
		Put:    []Record{successor, retire(old, backup.Key, at), rot},
		Event:  rotatedEvent(rot),
	}
	if now.pending != nil {
		txn.Delete = append(txn.Delete, now.pending.Ref())
	}
	now.token.spend(txn, old.Key, at)
	k.guard(txn)
	return txn, rot, successor
}

func pendingGuard(l Life, seen *Pending) Guard {
	if seen == nil {
		return Absent(PendingRef(l.Pool, l.Key))
	}
	return Same(seen)
}

func retire(old *Active, by string, at time.Time) *Retired {
	return &Retired{
		Version: Version{Schema: Schema}, Pool: old.Pool, Key: old.Key, Phase: PhaseRetired, Slot: old.Slot,
		Generation: old.CreateRevision, ReplacedBy: by, Sealed: old.Sealed, Labels: old.Labels,
		AddedAt: old.AddedAt, RetiredAt: at, SpendUSD: old.SpendUSD,
	}
}

func rotatedEvent(rot *Rotation) *Event {
	return &Event{
		ID: NewID(), Type: EventKeyRotated, Pool: rot.Pool, Subject: "keys/" + rot.Key, Time: rot.CommittedAt,
		Trigger: rot.Trigger, Source: rot.Source, Reason: rot.Reason, RequestID: rot.RequestID,
		Key: rot.Key, NewKey: rot.NewKey, Generation: rot.Generation, Slot: rot.Slot, Proxy: rot.ProxyID,
		RotationID: rot.ID, Home: HomeRetired,
	}
}

// NewID makes a unique id that sorts by the time it was made.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// park records that the rotation waits for stock and takes the key out of service. If stock came in between, whoever
// sees both finishes it.
func (r *Rotator) park(ctx context.Context, f *flight, k *stake, now situation) (*loss, error) {
	if now.waits(f.life) && k.won == nil {
		return nil, errAgain // so it is remembered; a campaign finds out whether it is still so
	}
	if now.waits(f.life) {
		f.revision = now.pending.ModRevision
		r.resign(k)
		return nil, nil
	}
	txn, pending := parkTxn(f, k, now, r.Now())
	if err := r.Steps(ctx, StepSend, f.life); err != nil {
		return nil, err
	}
	res, err := r.apply(ctx, f, k, txn, pending)
	if err != nil {
		return nil, err
	}
	if err := r.Steps(ctx, StepCommit, f.life); err != nil {
		return nil, err
	}
	if !res.Applied {
		return lostTo(txn, res)
	}
	f.unsure, f.revision = nil, res.Revision
	r.Observer.Parked(pending)
	return nil, r.Steps(ctx, StepAnswer, f.life)
}

func parkTxn(f *flight, k *stake, now situation, at time.Time) (*Txn, *Pending) {
	pending := &Pending{
		Version: Version{Schema: Schema}, Life: f.life, Trigger: f.req.Trigger, Source: f.req.Source, Reason: f.req.Reason,
		RequestID: f.req.RequestID, ProxyID: f.req.ProxyID, RequestedAt: at,
	}
	exhausted := *now.active
	exhausted.Status, exhausted.StatusUntil = StatusExhausted, time.Time{}
	exhausted.StatusSince, exhausted.StatusReason = at, reasonPending
	txn := &Txn{
		If: []Guard{
			Same(now.active), // an in-place write, so the version and not only the life
			Absent(RotationRef(f.life)),
			Same(now.pool),
			pendingGuard(f.life, now.pending),
		},
		Put: []Record{&exhausted, pending},
		Event: &Event{
			ID: NewID(), Type: EventKeyPending, Pool: f.life.Pool, Subject: "keys/" + f.life.Key, Time: at,
			Trigger: pending.Trigger, Source: pending.Source, Reason: pending.Reason, RequestID: pending.RequestID,
			Key: f.life.Key, Generation: f.life.Generation, Slot: now.active.Slot, Proxy: pending.ProxyID,
			Status: StatusExhausted, Home: HomeActive,
		},
	}
	now.token.spend(txn, f.life.Key, at)
	k.guard(txn)
	return txn, pending
}

// causes names the compare that cost a commit, by the kind of the record it compares, as it is counted.
var causes = map[Kind]string{
	KindRotation: "already_rotated",
	KindActive:   "life_ended",
	KindLock:     "lock_lost",
	KindPool:     "pool_changed",
	KindPending:  "pending_changed",
	KindBackup:   "backup_taken",
	KindRetired:  "backup_taken",
	KindToken:    "token_taken",
}

var errCannotBe = errors.New("a transaction was refused although all its compares hold: this is a bug, please report it")

// reconsider looks into a lost commit. It returns nil if another try can be made from the state that was found, errAgain
// if the lock is lost, and a refusal if no try can succeed.
func (r *Rotator) reconsider(f *flight, lost *loss, spent map[string]bool) error {
	failed := lost.result.Failed(lost.txn)
	if len(failed) == 0 {
		return errCannotBe
	}
	r.Observer.Conflict(f.life, cause(f.life, failed[0], lost.result.State))
	rotated := func(g Guard) bool { return g.Ref.Kind == KindRotation }
	if slices.ContainsFunc(failed, rotated) || !LifeIs(f.life).Holds(lost.result.State) {
		return nil // the state says how the life ended
	}
	var err error
	for _, g := range failed {
		switch ofOld := g.Ref.Name == f.life.Key; g.Ref.Kind {
		case KindLock:
			err = errAgain
		case KindToken:
			if f.lostTokens == nil {
				f.lostTokens = make(map[string]bool)
			}
			f.lostTokens[g.Ref.Name] = true
		case KindBackup, KindActive, KindRetired:
			if !ofOld {
				spent[g.Ref.Name] = true
			} else if g.Ref.Kind != KindActive {
				return Refuse(ReasonConflict, "key %q is in service and also under %s/: `rotatorctl doctor` says what to do", f.life.Key, g.Ref.Kind)
			}
		}
	}
	return err
}

// cause is what a guard that does not hold in s is counted as.
func cause(l Life, g Guard, s *State) string {
	if g.Ref.Kind == KindActive && g.Ref.Name != l.Key {
		return causes[KindBackup]
	}
	if g.Ref.Kind == KindActive && LifeIs(l).Holds(s) {
		return "status_changed"
	}
	return causes[g.Ref.Kind]
}
