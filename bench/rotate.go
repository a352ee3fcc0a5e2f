package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rotatord/rotatord/bench/load"
	"github.com/rotatord/rotatord/bench/seed"
	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// rawConnections are the numbers of connections the limit is measured with; the best one counts.
var rawConnections = []int{1, 4, 16}

// cell is one setting in which rotations are compared with raw transactions.
type cell struct {
	members int
	disk    string
	callers int
}

func (c cell) String() string {
	return fmt.Sprintf("etcd=%d/disk=%s/c=%d", c.members, c.disk, c.callers)
}

// slots are how many keys take turns: enough that a caller does not wait for its own last rotation to be seen.
func (c cell) slots() int { return max(64, c.callers) }

// figure is one way to make rotations in a cell.
type figure struct {
	cell
	replicas int
	pools    string
}

func (f figure) name() string {
	return fmt.Sprintf("rotate/etcd=%d/disk=%s/replicas=%d/pools=%s/c=%d", f.members, f.disk, f.replicas, f.pools, f.callers)
}

func (c cell) rawName(connections int) string { return fmt.Sprintf("raw/%v/conns=%d", c, connections) }

// rotate measures rotations of distinct keys against raw transactions, in all settings.
func (b *bench) rotate(ctx context.Context) error {
	for _, members := range b.etcd {
		for _, disk := range b.disk {
			for _, callers := range b.callers {
				c := cell{members, disk, callers}
				err := b.rotateCell(ctx, c)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					b.report.fail(c.String(), err)
				}
				b.rotateRows(c)
			}
		}
	}
	return nil
}

// once makes one measurement with some stock.
type once func(ctx context.Context, b *bench, round, stock int) (*measure, error)

// turn is a measurement that takes turns with others.
type turn struct {
	name string
	once once
}

// rotateCell has figures and limits take turns, each round in the opposite order of the last.
func (b *bench) rotateCell(ctx context.Context, c cell) error {
	turns := b.turns(c)
	for round := range b.rounds {
		for _, t := range turns {
			if err := b.refill(ctx, t, round, c); err != nil {
				return err
			}
		}
		slices.Reverse(turns)
	}
	return nil
}

func (b *bench) turns(c cell) (turns []turn) {
	figures, conns := b.figures(c), b.connectionsOf(c)
	for i := range max(len(conns), len(figures)) {
		if i < len(figures) {
			turns = append(turns, turn{figures[i].name(), figures[i].measure})
		}
		if i < len(conns) {
			turns = append(turns, turn{c.rawName(conns[i]), c.raw(conns[i])})
		}
	}
	return turns
}

func (b *bench) figures(c cell) (figures []figure) {
	for _, replicas := range b.replicas {
		for _, pools := range b.pools {
			figures = append(figures, figure{c, replicas, pools})
		}
	}
	return figures
}

// connectionsOf leaves out what would be the same as less: a caller uses one connection. A smoke test has one number.
func (b *bench) connectionsOf(c cell) (conns []int) {
	for _, n := range rawConnections {
		if n <= c.callers && (!b.quick || n == connections || c.callers < connections) {
			conns = append(conns, n)
		}
	}
	return conns
}

// firstGuess is how many transactions a second are prepared for, by callers, until that is known.
var firstGuess = map[int]int{1: 3000, 8: 7000}

const firstGuessOfMany = 10000

// guess is how many transactions a second are prepared for.
func (b *bench) guess(name string, c cell) int {
	rate := b.stock[name]
	if rate != 0 {
		return rate
	}
	if rate = firstGuess[c.callers]; rate == 0 {
		rate = firstGuessOfMany
	}
	if c.disk == diskSlow {
		rate = min(rate, 450*c.callers) // no call is answered before one slow sync
	}
	return rate / min(c.members, 2)
}

// refill measures with as much stock as is likely to be used, and again with twice as much if it was not enough: a
// measurement that ran out of stock does not count.
func (b *bench) refill(ctx context.Context, t turn, round int, c cell) error {
	rate := b.guess(t.name, c)
	for range 4 {
		m, err := t.once(ctx, b, round, int(float64(rate)*(b.time+b.warmUp()).Seconds())+1000)
		if errors.Is(err, seed.ErrUsedUp) {
			rate *= 2
			b.log("%s: %v; measuring again with twice as many", t.name, err)
			continue
		}
		if err == nil {
			b.stock[t.name] = max(b.stock[t.name], int(1.5*m.Rate))
		}
		return b.note(t.name, m, err)
	}
	return fmt.Errorf("%s: %w again and again", t.name, seed.ErrUsedUp)
}

// measure measures rotations through gRPC, on a fresh etcd that has been filled before.
func (f figure) measure(ctx context.Context, b *bench, round, stock int) (_ *measure, err error) {
	s, err := b.newStage(ctx, f.members, f.disk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	plan := seed.Pools(1, f.slots(), stock)
	if f.pools == poolsMany {
		plan = seed.Pools(f.slots(), 1, stock*5/4/f.slots()+20) // callers are not equally fast
	}
	lives, err := s.fill(ctx, plan)
	if err != nil {
		return nil, err
	}
	if err := s.addReplicas(ctx, f.replicas, min(connections, f.callers)); err != nil {
		return nil, err
	}
	all := slices.Concat(lives...)
	if err := s.look(ctx, &all[0]); err != nil {
		return nil, err
	}
	return s.measure(ctx, f.name(), round, f.callers, func(i int) load.Call {
		var own []pool.Life
		for at := i; at < len(all); at += f.callers {
			own = append(own, all[at])
		}
		return rotations(s.rotation(i), own)
	})
}

// look makes one rotation and notes what it changed in etcd, so that the limit can be held against it.
func (s *stage) look(ctx context.Context, life *pool.Life) error {
	next, err := rotateKey(ctx, s.rotation(0), *life)
	if err != nil {
		return err
	}
	*life = next
	if s.bench.report.RotationShape, err = seed.ShapeAt(ctx, s.etcd.Client, next.Generation); err != nil {
		return fmt.Errorf("looking at a rotation in etcd: %w", err)
	}
	return nil
}

// rotations rotates keys in turn: in the place of each comes its successor.
func rotations(client v1.RotationServiceClient, lives []pool.Life) load.Call {
	at := -1
	return func(ctx context.Context) error {
		at = (at + 1) % len(lives)
		next, err := rotateKey(ctx, client, lives[at])
		lives[at] = next
		return err
	}
}

// rotateKey makes one rotation and returns the life that began with it.
func rotateKey(ctx context.Context, client v1.RotationServiceClient, l pool.Life) (pool.Life, error) {
	resp, err := client.RotateKey(ctx, &v1.RotateKeyRequest{
		Pool: l.Pool, KeyId: l.Key, Generation: l.Generation, Trigger: v1.Trigger_TRIGGER_PROVIDER, Source: seed.Source, Reason: seed.Reason,
	})
	switch {
	case err != nil:
		return l, fmt.Errorf("rotating %v: %w", l, err)
	case resp.GetOutcome() == v1.Outcome_OUTCOME_PENDING:
		return l, seed.ErrUsedUp
	case resp.GetOutcome() != v1.Outcome_OUTCOME_ROTATED:
		return l, fmt.Errorf("rotating %v: the outcome is %v", l, resp.GetOutcome())
	}
	return pool.Life{Pool: l.Pool, Key: resp.GetRotation().GetNewKeyId(), Generation: resp.GetRotation().GetRevision()}, nil
}

// raw measures the limit with a number of connections.
func (c cell) raw(connections int) once {
	return func(ctx context.Context, b *bench, round, stock int) (*measure, error) {
		return c.measureRaw(ctx, b, round, connections, stock)
	}
}

// measureRaw measures raw transactions, on a fresh etcd that has been filled before.
func (c cell) measureRaw(ctx context.Context, b *bench, round, connections, stock int) (_ *measure, err error) {
	s, err := b.newStage(ctx, c.members, c.disk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	raw, err := seed.PrepareRaw(ctx, s.etcd.Client, b.sealer, c.slots(), stock)
	if err != nil {
		return nil, err
	}
	b.report.RawShape = raw.Shape()
	clients, err := s.etcdClients(connections)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, client := range clients {
			err = errors.Join(err, client.Close())
		}
	}()
	return s.measure(ctx, c.rawName(connections), round, c.callers, func(i int) load.Call {
		client := clients[i%len(clients)]
		return func(ctx context.Context) error { return raw.Commit(ctx, client) }
	})
}
