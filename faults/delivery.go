package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/cluster"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// streamLife is how long a stream of events is followed at most: the next one is at another replica.
const streamLife = 10 * time.Second

// delivery follows events across replicas and faults, as a consumer does: it resumes where it was.
type delivery struct {
	conns []*grpc.ClientConn
	stop  context.CancelFunc
	done  chan struct{}

	mu      sync.Mutex // protects the following fields
	streams [][]check.Delivered
	upTo    int64
	moved   chan struct{}
}

func follow(replicas []string) (*delivery, error) {
	ctx, cancel := context.WithCancel(context.Background())
	d := &delivery{stop: cancel, done: make(chan struct{}), moved: make(chan struct{}, 1)}
	for _, address := range replicas {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			cancel()
			return nil, err
		}
		d.conns = append(d.conns, conn)
	}
	go func() {
		defer close(d.done)
		for i := 0; ctx.Err() == nil; i++ {
			conn := d.conns[i%len(d.conns)]
			conn.ResetConnectBackoff()
			d.stream(ctx, rotatorv1.NewRotationServiceClient(conn))
			select {
			case <-ctx.Done():
			case <-time.After(50*time.Millisecond + rand.N(100*time.Millisecond)):
			}
		}
	}()
	return d, nil
}

// stream follows one stream to its end, which is a fault's, the server's or streamLife.
func (d *delivery) stream(ctx context.Context, client rotatorv1.RotationServiceClient) {
	ctx, cancel := context.WithTimeout(ctx, streamLife)
	defer cancel()
	d.mu.Lock()
	req := &rotatorv1.WatchEventsRequest{}
	for _, s := range d.streams {
		if n := len(s); n > 0 {
			req.FromRevision, req.AfterId = s[n-1].Revision, s[n-1].ID
		}
	}
	d.streams = append(d.streams, nil)
	d.mu.Unlock()
	stream, err := client.WatchEvents(ctx, req)
	for err == nil {
		var resp *rotatorv1.WatchEventsResponse
		if resp, err = stream.Recv(); err == nil {
			d.take(resp)
		}
	}
}

func (d *delivery) take(resp *rotatorv1.WatchEventsResponse) {
	d.mu.Lock()
	defer d.mu.Unlock()
	current := &d.streams[len(d.streams)-1]
	for _, e := range resp.GetEvents() {
		*current = append(*current, check.Delivered{ID: e.GetId(), Revision: e.GetRevision()})
	}
	d.upTo = max(d.upTo, resp.GetRevision())
	select {
	case d.moved <- struct{}{}:
	default:
	}
}

// delivered waits until everything up to now was delivered, by the streams and by the relay.
func (p *part) delivered(ctx context.Context) error {
	defer p.delivery.end()
	now, err := p.cluster.Client().Get(ctx, "now")
	if err != nil {
		return err
	}
	last, err := p.lastEvent(ctx, now.Header.Revision)
	if err != nil {
		return err
	}
	p.delivery.mu.Lock()
	upTo := p.delivery.upTo
	p.delivery.mu.Unlock()
	for upTo < last {
		select {
		case <-p.delivery.moved:
		case <-ctx.Done():
			return fmt.Errorf("the streams came to revision %d in time, not to the last event, of revision %d", upTo, last)
		}
		p.delivery.mu.Lock()
		upTo = p.delivery.upTo
		p.delivery.mu.Unlock()
	}
	p.deliveredTo = last
	return p.relayed(ctx, last)
}

// lastEvent is the revision of the newest event.
func (p *part) lastEvent(ctx context.Context, at int64) (int64, error) {
	resp, err := p.cluster.Client().Get(ctx, cluster.Prefix+"events/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return 0, err
	}
	last := int64(0)
	for _, kv := range resp.Kvs {
		if kv.ModRevision <= at {
			last = max(last, kv.ModRevision)
		}
	}
	return last, nil
}

// relayed waits until the relay's cursor is at a revision.
func (p *part) relayed(ctx context.Context, revision int64) error {
	var cursor struct {
		Revision int64 `json:",string"`
	}
	for {
		resp, err := p.cluster.Client().Get(ctx, cluster.Prefix+"relays/file")
		if err == nil && len(resp.Kvs) == 1 && json.Unmarshal(resp.Kvs[0].Value, &cursor) == nil && cursor.Revision >= revision {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the relay came to revision %d in time, not to the last event, of revision %d", cursor.Revision, revision)
		}
	}
}

func (d *delivery) end() {
	d.stop()
	<-d.done
	for _, c := range d.conns {
		_ = c.Close()
	}
}

// checkDelivery holds what was delivered against the recording.
func (p *part) checkDelivery() {
	relayed, torn, err := readRelayed(filepath.Join(p.dir, cluster.Relayed))
	if err != nil {
		p.violate("I8 the relay's file: %v", err)
		return
	}
	problems := check.Delivery("WatchEvents", p.recorder.History(), p.deliveredTo, p.delivery.streams)
	problems = append(problems, check.Delivery("relay", p.recorder.History(), p.deliveredTo, relayed)...)
	for _, problem := range problems {
		p.violate("I8 delivery: %s", problem)
	}
	events, lines := 0, 0
	for _, s := range p.delivery.streams {
		events += len(s)
	}
	for _, s := range relayed {
		lines += len(s)
	}
	fmt.Fprintf(p.out, "delivery: %d events in %d streams; %d lines from the relay, begun anew %d times, %d torn\n",
		events, len(p.delivery.streams), lines, len(relayed)-1, torn)
}

// readRelayed reads what the relay has written. Where an event does not come after the one before, the relay began anew
// at its cursor. Torn lines are left by a crash.
func readRelayed(path string) (streams [][]check.Delivered, torn int, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		err = errors.New("it is not there")
	}
	streams = [][]check.Delivered{nil}
	for line := range bytes.Lines(text) {
		var e struct {
			ID   string
			Data struct {
				Revision int64 `json:",string"`
			}
		}
		if json.Unmarshal(line, &e) != nil {
			torn++
			continue
		}
		d, current := check.Delivered{ID: e.ID, Revision: e.Data.Revision}, streams[len(streams)-1]
		if n := len(current); n > 0 && (d.Revision < current[n-1].Revision || d.Revision == current[n-1].Revision && d.ID <= current[n-1].ID) {
			streams = append(streams, nil)
		}
		streams[len(streams)-1] = append(streams[len(streams)-1], d)
	}
	return streams, torn, err
}
