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

// answer is a kind of call that is answered from memory.
type answer struct {
	name   string
	target *target // with 64 callers
	// calls returns the i-th caller's calls.
	calls func(s *stage, i int, lives []pool.Life) load.Call
}

// answeredKeys is how many keys the calls go round.
const answeredKeys = 64

// already measures triggers for lives that were rotated before.
func (b *bench) already(ctx context.Context) error {
	return b.answers(ctx, rotateAll, answer{"already", atLeast(0.7, 0.85), alreadyRotated})
}

// getKeys measures proxies that read the keys they are bound to.
func (b *bench) getKeys(ctx context.Context) error {
	return b.answers(ctx, bindAll,
		answer{"getkeys", atLeast(0.6, 0.8), func(s *stage, i int, _ []pool.Life) load.Call { return s.readKeys(i, false) }},
		answer{"getkeys-secrets", nil, func(s *stage, i int, _ []pool.Life) load.Call { return s.readKeys(i, true) }},
	)
}

// answers has calls to one replica and empty calls take turns. prepare makes what the calls are about.
func (b *bench) answers(ctx context.Context, prepare func(ctx context.Context, s *stage, lives []pool.Life) error, kinds ...answer) (err error) {
	s, err := b.newStage(ctx, 1, diskNormal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	lives, err := s.fill(ctx, seed.Pools(1, answeredKeys, 2*answeredKeys))
	if err != nil {
		return err
	}
	if err := s.addReplicas(ctx, 1, connections); err != nil {
		return err
	}
	if err := prepare(ctx, s, lives[0]); err != nil {
		return err
	}
	empty, err := b.startEmpty(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, empty.close()) }()
	for _, callers := range b.callers {
		if err := s.answerRounds(ctx, empty, callers, lives[0], kinds); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) answerRounds(ctx context.Context, empty *emptyServer, callers int, lives []pool.Life, kinds []answer) error {
	b := s.bench
	limit := fmt.Sprintf("empty for %s/c=%d", kinds[0].name, callers)
	turns := []func(round int) error{func(int) error {
		m, err := empty.measure(ctx, b, callers)
		return b.note(limit, m, err)
	}}
	for _, k := range kinds {
		turns = append(turns, func(round int) error {
			name := fmt.Sprintf("%s/c=%d", k.name, callers)
			m, err := s.measure(ctx, name, round, callers, func(i int) load.Call { return k.calls(s, i, lives) })
			return b.note(name, m, err)
		})
	}
	for round := range b.rounds {
		for _, turn := range turns {
			if err := turn(round); err != nil {
				return err
			}
		}
		slices.Reverse(turns)
	}
	for _, k := range kinds {
		t := k.target
		if callers != 64 {
			t = nil
		}
		name := fmt.Sprintf("%s/c=%d", k.name, callers)
		b.report.compare(name+": rate over empty calls", perSecond, b.report.values(name, rate), b.report.values(limit, rate), t)
	}
	return nil
}

// note adds a measurement to the report.
func (b *bench) note(name string, m *measure, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case m.Calls == 0:
		return fmt.Errorf("%s: not one call ended in %v", name, b.time)
	}
	b.report.add(name, m)
	b.log("%-62s %v", name, m)
	return nil
}

func rotateAll(ctx context.Context, s *stage, lives []pool.Life) error {
	for _, l := range lives {
		if _, err := rotateKey(ctx, s.rotation(0), l); err != nil {
			return err
		}
	}
	return nil
}

// alreadyRotated triggers for one life after the other.
func alreadyRotated(s *stage, i int, lives []pool.Life) load.Call {
	client := s.rotation(i)
	return func(ctx context.Context) error {
		i = (i + 1) % len(lives)
		resp, err := client.RotateKey(ctx, &v1.RotateKeyRequest{
			Pool: lives[i].Pool, KeyId: lives[i].Key, Generation: lives[i].Generation, Trigger: v1.Trigger_TRIGGER_PROXY,
			Source: seed.Source, Reason: seed.Reason, RequestId: "a-late-one", ProxyId: "gateway-1",
		})
		if err == nil && resp.GetOutcome() != v1.Outcome_OUTCOME_ALREADY_ROTATED {
			err = fmt.Errorf("the outcome is %v", resp.GetOutcome())
		}
		return err
	}
}

func proxyName(i int) string { return fmt.Sprintf("gateway-%03d", i) }

// bindAll binds as many proxies as there are keys, each to two slots.
func bindAll(ctx context.Context, s *stage, lives []pool.Life) error {
	admin := v1.NewAdminServiceClient(s.conn(0))
	for i := range lives {
		_, err := admin.SetBinding(ctx, &v1.SetBindingRequest{Pool: lives[i].Pool, ProxyId: proxyName(i), Slots: []*v1.SlotPriority{
			{Slot: seed.SlotName(i), Priority: 1}, {Slot: seed.SlotName((i + 1) % len(lives)), Priority: 2},
		}})
		if err != nil {
			return fmt.Errorf("binding a proxy: %w", err)
		}
	}
	return nil
}

// readKeys reads the keys of one proxy after the other.
func (s *stage) readKeys(i int, secrets bool) load.Call {
	client := v1.NewKeyServiceClient(s.conn(i))
	return func(ctx context.Context) error {
		i = (i + 1) % answeredKeys
		resp, err := client.GetKeys(ctx, &v1.GetKeysRequest{Pool: seed.PoolName(0), ProxyId: proxyName(i), IncludeSecret: secrets})
		if err == nil && len(resp.GetKeys()) != 2 {
			err = fmt.Errorf("proxy %d has %d keys instead of 2", i, len(resp.GetKeys()))
		}
		return err
	}
}
