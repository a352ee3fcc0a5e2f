package nemesis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/faults/cluster"
	"github.com/rotatord/rotatord/faults/netproxy"
)

// faults are all kinds. Steps have names of their own, see internal/pool and internal/lifecycle.
var faults = append([]fault{
	{name: "replica-kill", groups: []string{"replica", "basic"}, embedded: true, run: replicaKill},
	{name: "replica-stop", groups: []string{"replica", "basic"}, embedded: true, run: replicaStopShort},
	{name: "replica-stop-past-ttl", groups: []string{"replica", "basic"}, embedded: true, run: replicaStopLong},
	{name: "replica-rolling", groups: []string{"replica", "basic"}, embedded: true, run: replicaRolling},
	{name: Upgrade, embedded: true, run: upgrade},
	{name: "replica-cut-off", groups: []string{"replica", "net"}, run: replicaCutOff},
	{name: "member-kill", groups: []string{"etcd", "basic"}, run: memberKill},
	{name: "member-stop", groups: []string{"etcd", "basic"}, run: memberStop},
	{name: "leader-kill", groups: []string{"etcd", "basic"}, run: leaderKill},
	{name: "leader-stop", groups: []string{"etcd"}, run: leaderStop},
	{name: "leader-move", groups: []string{"etcd", "basic"}, run: leaderMove},
	{name: "member-cut", groups: []string{"etcd", "net"}, run: memberCut},
	{name: "member-cut-in", groups: []string{"etcd", "net"}, run: memberCutIn},
	{name: "member-cut-out", groups: []string{"etcd", "net"}, run: memberCutOut},
	{name: "leader-cut", groups: []string{"etcd", "net"}, run: leaderCut},
	{name: "client-cut-to", groups: []string{"net"}, run: clientCutTo},
	{name: "client-cut-from", groups: []string{"net"}, run: clientCutFrom},
	{name: "client-reset", groups: []string{"net"}, run: clientReset},
	{name: "client-delay", groups: []string{"net"}, run: clientDelay},
	{name: "peer-delay", groups: []string{"net"}, run: peerDelay},
	{name: "answer-drop", groups: []string{"answers", "net"}, run: spoil(netproxy.Drop)},
	{name: "answer-cancel", groups: []string{"answers", "net"}, run: spoil(netproxy.Cancel)},
	{name: "answer-reset", groups: []string{"answers", "net"}, run: spoil(netproxy.Reset)},
	{name: "answer-duplicate", groups: []string{"answers", "net"}, run: spoil(netproxy.Duplicate)},
	{name: "lease-revoke-holder", groups: []string{"lease"}, embedded: true, run: revokeHolder},
	{name: "lease-revoke-waiter", groups: []string{"lease"}, run: revokeWaiters},
	{name: "compaction", groups: []string{"etcd", "basic"}, embedded: true, run: compaction},
	{name: "no-space", groups: []string{"etcd", "space"}, quorum: true, run: noSpace},
	{name: "quorum-kill", groups: []string{"quorum"}, quorum: true, run: quorumKill},
	{name: "quorum-cut", groups: []string{"quorum"}, quorum: true, run: quorumCut},
}, atSteps()...)

// atSteps are a crash and a pause at each step of a rotation, and at each step of a phase of a key that is minted or revoked.
func atSteps() (kinds []fault) {
	for _, step := range []string{"campaign", "locked", "read", "send", "commit", "answer"} {
		kinds = append(kinds,
			fault{name: "crash-" + step, groups: []string{"steps", "crash", "basic"}, embedded: true, run: crashAt(step)},
			fault{name: "pause-" + step, groups: []string{"steps", "pause", "basic"}, embedded: true, run: pauseAt(step)})
	}
	for _, step := range []string{"phase-read", "phase-written", "phase-ask", "phase-answered"} {
		kinds = append(kinds,
			fault{name: "crash-" + step, groups: []string{"steps", "crash", "phases"}, embedded: true, run: crashAt(step)},
			fault{name: "pause-" + step, groups: []string{"steps", "pause", "phases"}, embedded: true, run: pauseAt(step)})
	}
	return kinds
}

func replicaKill(r *run) error {
	p := r.replica()
	r.hit(p.Name)
	p.Kill()
	r.last(200*time.Millisecond, 4*time.Second)
	return nil
}

func replicaStopShort(r *run) error {
	return r.stop(r.replica().Process, 200*time.Millisecond, 1500*time.Millisecond)
}

func replicaStopLong(r *run) error {
	ttl := r.c.SessionTTL
	return r.stop(r.replica().Process, ttl+1500*time.Millisecond, ttl+3*time.Second)
}

func (r *run) stop(p *cluster.Process, least, most time.Duration) error {
	r.hit(p.Name)
	p.Stop()
	r.last(least, most)
	p.Continue()
	return nil
}

// replicaRolling restarts all replicas as an upgrade does: each when the one before serves again.
func replicaRolling(r *run) error {
	for _, p := range r.c.Rotatords {
		r.hit(p.Name)
		if err := p.Terminate(20 * time.Second); err != nil {
			return err
		}
		if err := p.Start(); err != nil {
			return err
		}
		if err := r.serves(p); err != nil {
			return err
		}
	}
	return nil
}

// Upgrade is the fault for which there must be a build to come.
const Upgrade = "upgrade"

// upgrade brings all replicas to a build that knows one schema more, one after the other and under traffic. Half of the
// time some go there and back before. Once all know the new schema it must soon be written, and there is no way back.
func upgrade(r *run) error {
	all := slices.Clone(r.c.Rotatords)
	r.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	next := r.c.Schema + 1
	if n := len(all); n > 1 && r.rng.IntN(2) == 0 {
		some := all[:1+r.rng.IntN(n-1)]
		for _, schema := range []int{next, r.c.Schema} {
			if err := r.become(some, schema); err != nil {
				return err
			}
		}
	}
	if err := r.become(all, next); err != nil {
		return err
	}
	r.c.Schema = next
	return r.written(next)
}

// become restarts replicas as another build, now and then without asking them to stop.
func (r *run) become(replicas []*cluster.Replica, schema int) error {
	for _, p := range replicas {
		r.hit(fmt.Sprint(p.Name, "=", schema))
		p.Become(schema)
		if r.rng.IntN(4) == 0 {
			p.Kill()
		} else if err := p.Terminate(20 * time.Second); err != nil {
			return err
		}
		if err := p.Start(); err != nil {
			return err
		}
		if err := r.serves(p); err != nil {
			return err
		}
		r.last(200*time.Millisecond, time.Second)
	}
	return nil
}

func (r *run) serves(p *cluster.Replica) error {
	ctx, cancel := context.WithTimeout(context.Background(), r.Patience)
	defer cancel()
	return p.Serves(ctx)
}

// written waits until callers' work has brought a record of a schema.
func (r *run) written(schema int) error {
	for limit := time.Now().Add(r.Patience); r.Schema() < schema; r.sleep(context.Background(), 20*time.Millisecond) {
		if time.Now().After(limit) {
			return fmt.Errorf("%w: all replicas know schema %d and none has written it for %v", ErrNoProgress, schema, r.Patience)
		}
	}
	return nil
}

func replicaCutOff(r *run) error {
	p := r.replica()
	r.hit(p.Name)
	for _, m := range r.c.Etcds {
		r.c.Net.Set(netproxy.Way{From: p.Name, To: m.Name}, netproxy.Rule{Cut: true})
		r.c.Net.Set(netproxy.Way{From: m.Name, To: p.Name}, netproxy.Rule{Cut: true})
	}
	r.last(time.Second, r.c.SessionTTL+3*time.Second)
	return nil
}

func memberKill(r *run) error {
	m := r.member()
	r.hit(m.Name)
	m.Kill()
	r.last(500*time.Millisecond, 5*time.Second)
	return nil
}

func memberStop(r *run) error { return r.stop(r.member().Process, 500*time.Millisecond, 5*time.Second) }

func leaderKill(r *run) error {
	m, err := r.leader()
	if err != nil {
		return err
	}
	r.hit(m.Name)
	m.Kill()
	r.last(2*time.Second, 5*time.Second)
	return nil
}

func leaderStop(r *run) error {
	m, err := r.leader()
	if err != nil {
		return err
	}
	return r.stop(m.Process, 2*time.Second, 5*time.Second)
}

func leaderMove(r *run) error {
	for range 3 {
		m := r.member()
		r.hit(m.Name)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		err := r.c.MoveLeader(ctx, m)
		cancel()
		if err != nil {
			r.Log("moving the leader to %s: %v", m.Name, err) // an election of its own came in between
		}
		r.last(200*time.Millisecond, 800*time.Millisecond)
	}
	return nil
}

// others are all who talk to a member.
func (r *run) others(of *cluster.Member) (names []string) {
	names = []string{netproxy.Unknown}
	for _, m := range r.c.Etcds {
		if m != of {
			names = append(names, m.Name)
		}
	}
	for _, p := range r.c.Rotatords {
		names = append(names, p.Name)
	}
	return names
}

func (r *run) cut(m *cluster.Member, in, out bool) {
	r.hit(m.Name)
	for _, other := range r.others(m) {
		if in {
			r.c.Net.Set(netproxy.Way{From: other, To: m.Name}, netproxy.Rule{Cut: true})
		}
		if out {
			r.c.Net.Set(netproxy.Way{From: m.Name, To: other}, netproxy.Rule{Cut: true})
		}
	}
	r.last(2*time.Second, 6*time.Second)
}

func memberCut(r *run) error    { r.cut(r.member(), true, true); return nil }
func memberCutIn(r *run) error  { r.cut(r.member(), true, false); return nil }
func memberCutOut(r *run) error { r.cut(r.member(), false, true); return nil }

func leaderCut(r *run) error {
	m, err := r.leader()
	if err == nil {
		r.cut(m, true, true)
	}
	return err
}

func clientCutTo(r *run) error {
	p, m := r.replica(), r.member()
	r.hit(p.Name + ">" + m.Name)
	r.c.Net.Set(netproxy.Way{From: p.Name, To: m.Name}, netproxy.Rule{Cut: true})
	r.last(time.Second, 5*time.Second)
	return nil
}

func clientCutFrom(r *run) error {
	p, m := r.replica(), r.member()
	r.hit(p.Name + "<" + m.Name)
	r.c.Net.Set(netproxy.Way{From: m.Name, To: p.Name}, netproxy.Rule{Cut: true})
	r.last(time.Second, 5*time.Second)
	return nil
}

func clientReset(r *run) error {
	for range 5 {
		p := r.replica()
		r.hit(p.Name)
		p.Break()
		r.last(100*time.Millisecond, 600*time.Millisecond)
	}
	return nil
}

func clientDelay(r *run) error {
	r.hit("all")
	for _, p := range r.c.Rotatords {
		for _, m := range r.c.Etcds {
			d := r.between(10*time.Millisecond, 120*time.Millisecond)
			r.c.Net.Set(netproxy.Way{From: p.Name, To: m.Name}, netproxy.Rule{Delay: d})
			r.c.Net.Set(netproxy.Way{From: m.Name, To: p.Name}, netproxy.Rule{Delay: r.between(10*time.Millisecond, 120*time.Millisecond)})
		}
	}
	r.last(3*time.Second, 5*time.Second)
	return nil
}

func peerDelay(r *run) error {
	r.hit("all")
	for _, a := range r.c.Etcds {
		for _, b := range r.c.Etcds {
			if a != b {
				r.c.Net.Set(netproxy.Way{From: a.Name, To: b.Name}, netproxy.Rule{Delay: r.between(5*time.Millisecond, 60*time.Millisecond)})
			}
		}
	}
	r.last(3*time.Second, 5*time.Second)
	return nil
}

// spoil spoils the answers to a part of all transactions. Watches and keepalives are hit by resets only, with the
// connection they share.
func spoil(kind netproxy.Spoil) func(*run) error {
	return func(r *run) error {
		r.hit("all")
		methods := map[string]bool{"/etcdserverpb.KV/Txn": true, "/etcdserverpb.KV/Put": true, "/etcdserverpb.Lease/LeaseGrant": true}
		for _, p := range r.c.Rotatords {
			for _, m := range r.c.Etcds {
				r.c.Net.Spoil(netproxy.Way{From: p.Name, To: m.Name}, netproxy.Spoiling{Kind: kind, Methods: methods, Share: 0.25})
			}
		}
		r.last(3*time.Second, 5*time.Second)
		return nil
	}
}

// crashAt ends a replica at one of the next arrivals at a step.
func crashAt(step string) func(*run) error {
	return func(r *run) error {
		p := r.replica()
		r.hit(p.Name)
		p.Expect()
		if err := p.Arm(step, 1+r.rng.IntN(5), 0); err != nil {
			return err
		}
		select {
		case <-p.Ended():
		case <-time.After(10 * time.Second):
			r.target = append(r.target, "never got there")
			return p.Disarm()
		}
		r.last(200*time.Millisecond, 2*time.Second)
		return nil
	}
}

// pauseAt pauses three rotations of a replica at a step, shorter and longer than their budget and the lease.
func pauseAt(step string) func(*run) error {
	return func(r *run) error {
		p := r.replica()
		r.hit(p.Name)
		for i, pause := range []time.Duration{200 * time.Millisecond, time.Second, r.c.SessionTTL + time.Second} {
			if err := p.Arm(step, 1+i+r.rng.IntN(3), pause); err != nil {
				return err
			}
		}
		r.last(time.Second, 3*time.Second)
		return r.release(p)
	}
}

// sprung waits until a replica has come to a trap.
func (r *run) sprung(p *cluster.Replica, before int) (bool, error) {
	for range 100 {
		t, err := p.Traps()
		if err != nil || t.Sprung > before {
			return err == nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false, nil
}

// release takes a replica's traps away, waits until nothing stands still any more, and notes what did.
func (r *run) release(p *cluster.Replica) error {
	if err := p.Disarm(); err != nil {
		return err
	}
	for {
		t, err := p.Traps()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(t.Pauses, func(p cluster.Pause) bool { return p.End.IsZero() }) {
			for _, was := range t.Pauses {
				r.holds = append(r.holds, Hold{p.Name, was.Step, was.Pool, was.Key, was.Generation, was.Start, was.End})
			}
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// hold pauses a replica at a step with the lock in its hands.
func (r *run) hold(p *cluster.Replica, step string, pause time.Duration) error {
	t, err := p.Traps()
	if err != nil {
		return err
	}
	if err := p.Arm(step, 1, pause); err != nil {
		return err
	}
	there, err := r.sprung(p, t.Sprung)
	if err == nil && !there {
		r.target = append(r.target, "never got there")
	}
	return err
}

func revokeHolder(r *run) error {
	p := r.replica()
	for _, step := range []string{"locked", "read", "send"} {
		if err := r.hold(p, step, 1500*time.Millisecond); err != nil {
			return err
		}
		if err := r.revoke(p); err != nil {
			return err
		}
		r.last(1500*time.Millisecond, 2*time.Second)
	}
	return r.release(p)
}

// revokeWaiters ends the sessions of all who wait for a paused holder.
func revokeWaiters(r *run) error {
	holder := r.replica()
	if err := r.hold(holder, "locked", 1500*time.Millisecond); err != nil {
		return err
	}
	for _, p := range r.c.Rotatords {
		if p != holder {
			if err := r.revoke(p); err != nil {
				return err
			}
		}
	}
	return r.release(holder)
}

func (r *run) revoke(p *cluster.Replica) error {
	r.hit(p.Name)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	lease, err := r.c.Lease(ctx, p)
	if err != nil || lease == 0 {
		return err
	}
	_, err = r.c.Client().Revoke(ctx, clientv3.LeaseID(lease))
	return err
}

// compaction compacts everything that was recorded, every 200 ms. At first a replica is held up and falls behind, unless
// it has the only etcd inside.
func compaction(r *run) error {
	p := r.replica()
	r.hit(p.Name)
	until := time.Now().Add(r.between(3*time.Second, 6*time.Second))
	held := time.Now().Add(time.Second)
	if !r.c.Embedded {
		p.Stop()
	}
	for time.Now().Before(until) && r.ctx.Err() == nil {
		if time.Now().After(held) {
			p.Continue()
		}
		if err := r.compact(); err != nil {
			return err
		}
		r.sleep(r.ctx, 200*time.Millisecond)
	}
	return nil
}

func (r *run) compact() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return Compact(ctx, r.c, r.Recorded)
}

// Compact compacts what has been recorded.
func Compact(ctx context.Context, c *cluster.Cluster, recorded func(context.Context, int64) error) error {
	now, err := c.Client().Get(ctx, "now")
	if err != nil {
		return err
	}
	if err := recorded(ctx, now.Header.Revision); err != nil {
		return err
	}
	_, err = c.Client().Compact(ctx, now.Header.Revision)
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) { // nothing was written since the last time
		return fmt.Errorf("compacting to %d: %w", now.Header.Revision, err)
	}
	return nil
}

// quorumKill kills two of three.
func quorumKill(r *run) error {
	spared := r.member()
	for _, m := range r.c.Etcds {
		if m != spared {
			r.hit(m.Name)
			m.Kill()
		}
	}
	r.last(2*time.Second, 6*time.Second)
	return nil
}

// quorumCut separates all three from each other.
func quorumCut(r *run) error {
	for _, a := range r.c.Etcds {
		r.hit(a.Name)
		for _, b := range r.c.Etcds {
			if a != b {
				r.c.Net.Set(netproxy.Way{From: a.Name, To: b.Name}, netproxy.Rule{Cut: true})
			}
		}
		r.c.Net.Set(netproxy.Way{From: netproxy.Unknown, To: a.Name}, netproxy.Rule{Cut: true})
		r.c.Net.Set(netproxy.Way{From: a.Name, To: netproxy.Unknown}, netproxy.Rule{Cut: true})
	}
	r.last(3*time.Second, 6*time.Second)
	return nil
}
