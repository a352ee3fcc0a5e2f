package workload

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/rotatord/rotatord/faults/history"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// keyName is the id of the nth key of a pool.
func keyName(n int) string { return fmt.Sprintf("k%d", n) }

func trim(name, prefix string) string { return strings.TrimPrefix(name, prefix) }

func (c *caller) keyOf(pool string, k *v1.Key, withSecret bool) *history.Key {
	if k == nil {
		return nil
	}
	return &history.Key{
		ID: k.GetId(), Home: trim(k.GetHome().String(), "KEY_HOME_"), Slot: k.GetSlot(), Generation: k.GetGeneration(),
		Status: trim(k.GetStatus().String(), "KEY_STATUS_"), Pending: k.GetPending(), Revision: k.GetRevision(),
		SecretRight: !withSecret || c.secretIs(pool, k.GetId(), k.GetSecret()),
	}
}

// secretIs reports whether a key was added, or made at the upstream, with a secret.
func (c *caller) secretIs(pool, key, secret string) bool {
	return secret == secretOf(pool, key, 0) || secret == secretOf(pool, key, 1) || c.Upstream != nil && c.Upstream.Made(pool, key, secret)
}

func rotationOf(r *v1.Rotation) *history.Rotation {
	if r == nil {
		return nil
	}
	return &history.Rotation{
		ID: r.GetId(), Pool: r.GetPool(), Slot: r.GetSlot(), Generation: r.GetGeneration(), Old: r.GetOldKeyId(), New: r.GetNewKeyId(),
		Trigger: trim(r.GetTrigger().String(), "TRIGGER_"), RequestID: r.GetRequestId(), Holder: r.GetHolder(), Revision: r.GetRevision(),
	}
}

// rotate triggers a rotation. The history has op's fields; first is the replica to begin with.
func (c *caller) rotate(ctx context.Context, first int, b *board, t trigger, who v1.Trigger, proxy string) history.Op {
	b.asked(t)
	op := history.Op{
		Kind: history.Rotate, Pool: b.Name, Key: t.key, Generation: t.generation, RequestID: t.request, Trigger: trim(who.String(), "TRIGGER_"), Proxy: proxy,
	}
	op = c.callFrom(ctx, first, op, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.rot.RotateKey(ctx, &v1.RotateKeyRequest{
			Pool: op.Pool, KeyId: op.Key, Generation: op.Generation, Trigger: who, Source: c.name, Reason: "401 from the upstream", RequestId: op.RequestID,
			ProxyId: proxy, IncludeSecret: true,
		})
		if err != nil {
			return err
		}
		op.Outcome, op.Rotation, op.Revision = trim(resp.GetOutcome().String(), "OUTCOME_"), rotationOf(resp.GetRotation()), resp.GetRevision()
		op.Current = c.keyOf(op.Pool, resp.GetKey(), true)
		return nil
	})
	if rot := op.Rotation; rot != nil {
		b.swapped(rot.Old, rot.New, rot.Revision)
		if op.Outcome == history.Rotated {
			c.rotations.Add(1)
		}
	}
	return op
}

// getKeys reads what can be used, and tells the board if that is all of the pool.
func (c *caller) getKeys(ctx context.Context, b *board, proxy string, minRevision int64) history.Op {
	op := history.Op{Kind: history.GetKeys, Pool: b.Name, Proxy: proxy, MinRevision: minRevision}
	op = c.call(ctx, op, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.keys.GetKeys(ctx, &v1.GetKeysRequest{Pool: op.Pool, ProxyId: proxy, MinRevision: minRevision, IncludeSecret: true})
		if err != nil {
			return err
		}
		op.Revision, op.AsOf, op.Bound = resp.GetRevision(), resp.GetAsOf().AsTime(), resp.GetBound()
		for _, e := range resp.GetKeys() {
			k := c.keyOf(op.Pool, e.GetKey(), true)
			k.Priority = int(e.GetPriority())
			op.Keys = append(op.Keys, *k)
		}
		return nil
	})
	if op.Succeeded() && !op.Bound {
		alive := make(map[string]int64)
		for _, k := range op.Keys {
			alive[k.ID] = k.Generation
		}
		b.serves(alive)
	}
	return op
}

func (c *caller) getKey(ctx context.Context, b *board, key string, minRevision int64) history.Op {
	op := history.Op{Kind: history.GetKey, Pool: b.Name, Key: key, MinRevision: minRevision}
	return c.call(ctx, op, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.GetKey(ctx, &v1.GetKeyRequest{Pool: op.Pool, KeyId: key, MinRevision: minRevision})
		if err == nil {
			op.Current, op.Revision = c.keyOf(op.Pool, resp.GetKey(), false), resp.GetRevision()
		}
		return err
	})
}

func (c *caller) getRotation(ctx context.Context, b *board, t trigger) history.Op {
	op := history.Op{Kind: history.GetRotation, Pool: b.Name, Key: t.key, Generation: t.generation}
	return c.call(ctx, op, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.rot.GetRotation(ctx, &v1.GetRotationRequest{Pool: op.Pool, KeyId: op.Key, Generation: op.Generation})
		if err == nil {
			op.Rotation, op.Revision = rotationOf(resp.GetRotation()), resp.GetRevision()
		}
		return err
	})
}

// addKeys adds keys. version chooses among secrets for the same ids.
func (c *caller) addKeys(ctx context.Context, b *board, home v1.KeyHome, version int, ids ...string) history.Op {
	op := history.Op{Kind: history.AddKeys, Pool: b.Name, Home: trim(home.String(), "KEY_HOME_")}
	req := &v1.AddKeysRequest{Pool: b.Name, Home: home}
	for _, id := range ids {
		if b.Provider {
			c.Upstream.Register(b.Name, id, secretOf(b.Name, id, version))
		}
		req.Keys = append(req.Keys, &v1.NewKey{Id: id, Secret: secretOf(b.Name, id, version)})
		op.Added = append(op.Added, history.Added{ID: id})
	}
	return c.call(ctx, op, func(ctx context.Context, r *replica, op *history.Op) error {
		op.Added = append([]history.Added(nil), op.Added...)
		resp, err := r.adm.AddKeys(ctx, req)
		for i, k := range resp.GetResults() {
			op.Added[i] = history.Added{
				ID: k.GetId(), Result: trim(k.GetResult().String(), "ADD_RESULT_"), Refusal: trim(k.GetRefusal().String(), "KEY_REFUSAL_"),
				Home: trim(k.GetHome().String(), "KEY_HOME_"), Revision: k.GetRevision(),
			}
		}
		op.Revision = resp.GetRevision()
		return err
	})
}

func (c *caller) restore(ctx context.Context, b *board, key string) history.Op {
	op := c.call(ctx, history.Op{Kind: history.RestoreKey, Pool: b.Name, Key: key}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.RestoreKey(ctx, &v1.RestoreKeyRequest{Pool: op.Pool, KeyId: op.Key})
		op.Revision = resp.GetRevision()
		return err
	})
	if !op.Unknown() {
		b.notRetired(key)
	}
	return op
}

func (c *caller) disable(ctx context.Context, b *board, key string) history.Op {
	return c.call(ctx, history.Op{Kind: history.DisableKey, Pool: b.Name, Key: key}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.DisableKey(ctx, &v1.DisableKeyRequest{Pool: op.Pool, KeyId: op.Key, Reason: c.name})
		op.Current, op.Revision = c.keyOf(op.Pool, resp.GetKey(), false), resp.GetRevision()
		return err
	})
}

func (c *caller) enable(ctx context.Context, b *board, key string) history.Op {
	return c.call(ctx, history.Op{Kind: history.EnableKey, Pool: b.Name, Key: key}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.EnableKey(ctx, &v1.EnableKeyRequest{Pool: op.Pool, KeyId: op.Key, Reason: c.name})
		op.Current, op.Revision = c.keyOf(op.Pool, resp.GetKey(), false), resp.GetRevision()
		return err
	})
}

func (c *caller) remove(ctx context.Context, b *board, key string, unbind bool) history.Op {
	return c.call(ctx, history.Op{Kind: history.RemoveKey, Pool: b.Name, Key: key, Unbind: unbind}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.RemoveKey(ctx, &v1.RemoveKeyRequest{Pool: op.Pool, KeyId: op.Key, Unbind: unbind})
		op.Revision = resp.GetRevision()
		return err
	})
}

func (c *caller) bind(ctx context.Context, b *board, proxy string, slots ...history.Slot) history.Op {
	req := &v1.SetBindingRequest{Pool: b.Name, ProxyId: proxy}
	for _, s := range slots {
		req.Slots = append(req.Slots, &v1.SlotPriority{Slot: s.Slot, Priority: int32(s.Priority)})
	}
	return c.call(ctx, history.Op{Kind: history.SetBinding, Pool: b.Name, Proxy: proxy, Slots: slots}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.SetBinding(ctx, req)
		op.Revision = resp.GetRevision()
		return err
	})
}

func (c *caller) unbind(ctx context.Context, b *board, proxy string) history.Op {
	return c.call(ctx, history.Op{Kind: history.RemoveBinding, Pool: b.Name, Proxy: proxy}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.RemoveBinding(ctx, &v1.RemoveBindingRequest{Pool: op.Pool, ProxyId: proxy})
		op.Revision = resp.GetRevision()
		return err
	})
}

func (c *caller) pause(ctx context.Context, b *board) history.Op {
	return c.call(ctx, history.Op{Kind: history.PausePool, Pool: b.Name}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.PausePool(ctx, &v1.PausePoolRequest{Name: op.Pool})
		op.Revision = resp.GetRevision()
		return err
	})
}

func (c *caller) resume(ctx context.Context, b *board) history.Op {
	return c.call(ctx, history.Op{Kind: history.ResumePool, Pool: b.Name}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.ResumePool(ctx, &v1.ResumePoolRequest{Name: op.Pool})
		op.Revision = resp.GetRevision()
		return err
	})
}

// counts asks how many keys are where. It is no operation of the history: what it says is only used to decide what to
// do next.
func (c *caller) counts(ctx context.Context, b *board) *v1.PoolCounts {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for range c.replicas {
		resp, err := c.replicas[c.rng.IntN(len(c.replicas))].adm.GetPool(ctx, &v1.GetPoolRequest{Name: b.Name})
		if err == nil {
			return resp.GetPool().GetCounts()
		}
	}
	return nil
}

// report tells that an upstream has answered with a status to a request with a key. The body is what goes with it.
func (c *caller) report(ctx context.Context, first int, b *board, t trigger, httpStatus int, proxy string) history.Op {
	b.asked(trigger{key: t.key, generation: t.generation}) // not the request: it must not be repeated as a trigger
	op := history.Op{Kind: history.Report, Pool: b.Name, Key: t.key, Generation: t.generation, RequestID: t.request, Status: httpStatus, Proxy: proxy}
	op = c.callFrom(ctx, first, op, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.rot.ReportFailure(ctx, &v1.ReportFailureRequest{
			Pool: op.Pool, KeyId: op.Key, Generation: op.Generation, HttpStatus: int32(op.Status), Headers: headersOf[op.Status], Body: []byte(bodies[op.Status]),
			ProxyId: proxy, Source: c.name, RequestId: op.RequestID, IncludeSecret: true,
		})
		if err != nil {
			return err
		}
		op.Verdict, op.Rule, op.Incident, op.Revision = trim(resp.GetVerdict().String(), "VERDICT_"), resp.GetRule(), resp.GetIncident(), resp.GetRevision()
		op.Rotation, op.Current = rotationOf(resp.GetRotation()), c.keyOf(op.Pool, resp.GetKey(), true)
		if op.Verdict == history.VerdictRotate {
			op.Outcome = trim(resp.GetOutcome().String(), "OUTCOME_")
		}
		if resp.GetUntil() != nil {
			op.Until = resp.GetUntil().AsTime()
		}
		return nil
	})
	if rot := op.Rotation; rot != nil {
		b.swapped(rot.Old, rot.New, rot.Revision)
	}
	return op
}

// What upstreams answer: that they do not know the key, that it has to rest, that all is well.
var (
	bodies = map[int]string{
		401: `{"error":{"message":"Unable to find token in cache","type":"token_not_found_in_db","code":"401"}}`,
		429: `{"error":{"message":"slow down","type":"rate_limit_error","code":"429"}}`,
	}
	headersOf = map[int]map[string]string{429: {"Retry-After": "2"}}
)

// credential sets what the pool's upstream is asked with.
func (c *caller) credential(ctx context.Context, b *board) history.Op {
	return c.call(ctx, history.Op{Kind: history.SetCredential, Pool: b.Name}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.SetPoolCredential(ctx, &v1.SetPoolCredentialRequest{Name: op.Pool, Credential: c.Upstream.MasterKey()})
		op.Revision = resp.GetRevision()
		return err
	})
}

func (c *caller) retry(ctx context.Context, b *board, key string) history.Op {
	return c.call(ctx, history.Op{Kind: history.RetryKey, Pool: b.Name, Key: key}, func(ctx context.Context, r *replica, op *history.Op) error {
		resp, err := r.adm.RetryKey(ctx, &v1.RetryKeyRequest{Pool: op.Pool, KeyId: op.Key})
		op.Revision = resp.GetRevision()
		return err
	})
}

// phases lists the keys of a home by their phase. As with counts, what it says is only used to decide what to do next.
func (c *caller) phases(ctx context.Context, b *board, home v1.KeyHome) (byPhase map[v1.KeyPhase][]string, ok bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for range c.replicas {
		resp, err := c.replicas[c.rng.IntN(len(c.replicas))].adm.ListKeys(ctx, &v1.ListKeysRequest{Pool: b.Name, Home: home, PageSize: 1000})
		if err != nil {
			continue
		}
		byPhase = make(map[v1.KeyPhase][]string)
		for _, k := range resp.GetKeys() {
			byPhase[k.GetPhase()] = append(byPhase[k.GetPhase()], k.GetId())
		}
		return byPhase, true
	}
	return nil, false
}
