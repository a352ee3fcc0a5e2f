package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/rotatord/rotatord/internal/pool"
)

// Follower keeps a mirror up to date: it loads everything, then follows one watch of the whole prefix.
//
// One WatchResponse never splits a revision, so each is applied as it comes. Read in etcd 3.7.3: a watcher that keeps up
// gets one response for each revision (watchable_store.go, notify); one that is behind gets a batch that ends only where
// a new revision begins (watcher_group.go, eventBatch.add), and goes on from there; one whose channel was full gets that
// same batch again (moveVictims). WithFragment cuts a large response on the wire (v3rpc/watch.go, sendFragments), and the
// client joins the pieces before it hands them over, or drops them if the stream ends between two (client watch.go, run).
// The header's revision is not the batch's: a batch that is not the last one carries the store's current revision. So
// how far a response goes is the revision of its last event, and the header's only if it has no events, which the
// server sends to a watcher that has everything (progressIfSync).
type Follower struct {
	store  *Store
	mirror *pool.Mirror
	log    *slog.Logger

	mu      sync.Mutex         // protects following fields
	cancel  context.CancelFunc // ends the current watch; nil between watches
	stream  metadata.MD        // of the current watch, once the server has confirmed it
	streams int
}

// NewFollower returns a follower that does nothing until Run.
func NewFollower(store *Store, mirror *pool.Mirror, log *slog.Logger) *Follower {
	return &Follower{store: store, mirror: mirror, log: log}
}

var (
	errRewatch   = errors.New("the watch was ended to begin a new one")
	errWatchDone = errors.New("the watch ended")
	// errWentBack: the store is at an older revision than the mirror was shown, so it was restored from a snapshot.
	errWentBack = errors.New("the store is at an older revision than before; was a snapshot restored without --bump-revision?")
)

// Run follows until ctx ends and returns its error. Whatever else goes wrong is logged and tried again: the mirror keeps
// what it has. A mirror that was loaded before goes on from its revision.
func (f *Follower) Run(ctx context.Context) error {
	pause := newPauser(50*time.Millisecond, time.Second)
	load := f.mirror.Revision() == 0
	for ctx.Err() == nil {
		err := f.follow(ctx, load, pause)
		load = f.mirror.Revision() == 0 || errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, errWentBack)
		if ctx.Err() != nil {
			break
		}
		f.log.Warn("watch of the store interrupted", "error", err, "revision", f.mirror.Revision(), "reload", load)
		if !errors.Is(err, errRewatch) {
			pause.wait(ctx)
		}
	}
	return ctx.Err()
}

// follow loads if it must, and watches until something goes wrong.
func (f *Follower) follow(ctx context.Context, load bool, pause *pauser) error {
	if load {
		if err := f.load(ctx); err != nil {
			return fmt.Errorf("loading the mirror: %w", err)
		}
	} else if err := f.checkForward(ctx); err != nil {
		return err
	}
	return f.watch(ctx, pause)
}

// load replaces what the mirror holds by everything at one revision.
func (f *Follower) load(ctx context.Context) error {
	began := time.Now()
	recs, revision, err := f.store.scan(ctx, f.store.layout.allBut(pool.KindEvent, pool.KindFingerprint, kindLeader), 0)
	if err != nil {
		return err
	}
	f.mirror.Load(recs, revision, began)
	f.log.Info("mirror loaded", "revision", revision, "records", len(recs), "took", time.Since(began))
	return nil
}

// checkForward looks whether the store has gone back: a watch from a revision that is yet to come would wait in silence.
// If it cannot be asked, the watch will tell.
func (f *Follower) checkForward(ctx context.Context) error {
	revision, err := f.store.Probe(ctx)
	if err == nil && revision < f.mirror.Revision() {
		return errWentBack
	}
	return nil
}

// watch applies what comes from the revision after the mirror's on. It returns an error always.
func (f *Follower) watch(ctx context.Context, pause *pauser) error {
	wctx, md := f.begin(ctx)
	defer f.end()
	responses := f.store.client.Watch(wctx, f.store.layout.Prefix, clientv3.WithPrefix(), clientv3.WithRev(f.mirror.Revision()+1),
		clientv3.WithFragment(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for resp := range responses {
		if err := resp.Err(); err != nil {
			return err
		}
		if resp.Created { // its header is ahead of the events still to come
			f.confirmed(md)
			continue
		}
		f.apply(&resp)
		pause.reset()
	}
	if ctx.Err() == nil && wctx.Err() != nil {
		return errRewatch
	}
	return errWatchDone
}

// apply takes one response into the mirror.
func (f *Follower) apply(resp *clientv3.WatchResponse) {
	if len(resp.Events) == 0 {
		f.mirror.Apply(nil, resp.Header.Revision)
		return
	}
	seen := f.mirror.Revision()
	changes := make([]pool.Change, 0, len(resp.Events))
	for _, ev := range resp.Events {
		if ev.Kv.ModRevision <= seen {
			continue // a resumed watch may repeat itself; the mirror must not go back
		}
		if c, held := f.store.layout.change(ev.Type == mvccpb.Event_DELETE, ev.Kv); held {
			if c.Put != nil {
				f.store.read(c.Put)
			}
			changes = append(changes, c)
		}
	}
	f.mirror.Apply(changes, resp.Events[len(resp.Events)-1].Kv.ModRevision)
}

// change is what an event means to the mirror; false for what it does not hold.
func (l Layout) change(deleted bool, kv *mvccpb.KeyValue) (pool.Change, bool) {
	key := string(kv.Key)
	switch {
	case !l.mirrored(key):
		return pool.Change{}, false
	case !deleted:
		return pool.Change{Put: l.Decode(kv)}, true
	}
	ref, ours := l.Parse(key)
	if !ours {
		ref = l.foreign(key)
	}
	return pool.Change{Delete: ref}, true
}

// mirrored is the filter of load for a single key.
func (l Layout) mirrored(key string) bool {
	rest, ours := strings.CutPrefix(key, l.Prefix)
	kind, _, inKind := strings.Cut(rest, "/")
	switch pool.Kind(kind) {
	case pool.KindEvent, pool.KindFingerprint, kindLeader:
		return !ours || !inKind
	}
	return true
}

// streamNames is how many gRPC streams the watches use in turn. A watch must not share a stream with the one it
// replaces, which may be dead, nor with other watches of this process; the client tells streams by their metadata.
// They are few because a progress request that meets the end of its stream opens it anew, and the client keeps that.
const streamNames = 4

func (f *Follower) begin(ctx context.Context) (context.Context, metadata.MD) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams++
	ctx = metadata.AppendToOutgoingContext(ctx, "rotatord-follower", strconv.Itoa(f.streams%streamNames))
	ctx, f.cancel = context.WithCancel(clientv3.WithRequireLeader(ctx))
	md, _ := metadata.FromOutgoingContext(ctx)
	return ctx, md
}

func (f *Follower) confirmed(md metadata.MD) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stream = md
}

func (f *Follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancel()
	f.cancel, f.stream = nil, nil
}

// ErrNoWatch is returned by RequestProgress while no watch stands.
var ErrNoWatch = errors.New("no watch of the store is standing")

// RequestProgress asks the server to say how far the watch is. The answer moves the mirror's revision; if none comes, the
// watch is behind or dead. It does not wait for the answer.
func (f *Follower) RequestProgress(ctx context.Context) error {
	f.mu.Lock()
	md := f.stream
	f.mu.Unlock()
	if md == nil {
		return ErrNoWatch
	}
	return f.store.client.RequestProgress(metadata.NewOutgoingContext(ctx, md))
}

// Rewatch ends the current watch, and Run begins a new one on a new stream from where the mirror is. Call it when the
// mirror stays behind a revision that a Probe has confirmed, or is ahead of it: a connection may die without a word, and
// a restored store may be older than the mirror. It does not block.
func (f *Follower) Rewatch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cancel != nil {
		f.cancel()
	}
}
