package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/rotatord/rotatord/internal/upstream/upstreamtest"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// The second act: keys run out of budget while gateways use them. Gateways report what the upstream answers, and the
// spend checker reads what the keys have spent; both come to the same keys, and each key is replaced once.
const (
	budgetPool     = "spending"
	budgetKeys     = 4 // in service
	budgetStock    = 16
	budgetEach     = 2.0  // dollars
	budgetCost     = 0.25 // of a request
	budgetGateways = 8
	budgetRequests = 10 // that succeed, of each gateway
)

// budget is what the second act counts.
type budget struct {
	mu        sync.Mutex                     // protects the following fields
	refused   int                            // answers of the upstream that were reported
	rotations map[string]*rotatorv1.Rotation // by the key that left, as callers were told
}

// spendBudgets runs the second act and says what it came to.
func (d *demo) spendBudgets(ctx context.Context) error {
	d.say("a LiteLLM whose keys run out of budget: %d gateways report what it answers, and the spend checker looks at the same keys", budgetGateways)
	fake := upstreamtest.New(upstreamtest.Options{ChatCost: budgetCost})
	defer fake.Close()
	if err := d.fillBudgetPool(ctx, fake); err != nil {
		return err
	}
	b := &budget{rotations: map[string]*rotatorv1.Rotation{}}
	errs := make([]error, budgetGateways)
	var work sync.WaitGroup
	for i := range budgetGateways {
		work.Go(func() { errs[i] = d.gateway(ctx, fake, b, i) })
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.judgeBudgets(ctx, b)
}

// fillBudgetPool makes the pool and its keys, at rotatord and at the upstream.
func (d *demo) fillBudgetPool(ctx context.Context, fake *upstreamtest.LiteLLM) error {
	spec := fmt.Sprintf("upstream: {kind: litellm, baseUrl: %q}\nspend: {budgetUsd: %v}\nrotationBound: {rotations: %d}\n",
		fake.URL, budgetEach, budgetStock)
	file := filepath.Join(d.dir, "spending.yaml")
	if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
		return err
	}
	if _, err := d.ctl(ctx, "pool", "create", budgetPool, "-f", file); err != nil {
		return err
	}
	for home, n := range map[rotatorv1.KeyHome]int{rotatorv1.KeyHome_KEY_HOME_ACTIVE: budgetKeys, rotatorv1.KeyHome_KEY_HOME_BACKUP: budgetStock} {
		request := &rotatorv1.AddKeysRequest{Pool: budgetPool, Home: home}
		for i := range n {
			id := fmt.Sprintf("%s-%02d", strings.ToLower(strings.TrimPrefix(home.String(), "KEY_HOME_")), i+1)
			secret := "sk-fake-" + id + "-not-a-real-key"
			fake.AddKey(upstreamtest.Key{Value: secret, Alias: id, MaxBudget: budgetEach})
			request.Keys = append(request.Keys, &rotatorv1.NewKey{Id: id, Secret: secret})
		}
		answer, err := d.replicas[0].admin.AddKeys(ctx, request)
		if err != nil {
			return err
		}
		for _, added := range answer.GetResults() {
			if added.GetResult() != rotatorv1.AddResult_ADD_RESULT_ADDED {
				return fmt.Errorf("key %s was not added: %s", added.GetId(), added.GetMessage())
			}
		}
	}
	return nil
}

// gateway makes requests to the upstream until enough have succeeded, each with the first key it may use, and reports what
// is refused. Half of the gateways prefer another slot, so that two slots run out of budget again and again.
func (d *demo) gateway(ctx context.Context, fake *upstreamtest.LiteLLM, b *budget, n int) error {
	proxy := fmt.Sprintf("gateway-%d", n+1)
	if _, err := d.ctl(ctx, "binding", "set", budgetPool, proxy, fmt.Sprintf("active-%02d", n%2+1), fmt.Sprintf("active-%02d=2", n%2+3)); err != nil {
		return err
	}
	key, err := d.currentKey(ctx, proxy, n)
	for served := 0; err == nil && served < budgetRequests; {
		var status int
		var body []byte
		if status, body, err = chat(ctx, fake.URL, key.GetSecret()); err != nil {
			return err
		}
		if status == http.StatusOK {
			served++
			continue
		}
		dead := key
		if key, err = d.reportFailure(ctx, b, proxy, dead, status, body, n); err == nil && key.GetId() == dead.GetId() {
			return fmt.Errorf("%s is to go on with key %s, which the upstream refuses", proxy, dead.GetId())
		}
	}
	return err
}

// currentKey asks for the key to use.
func (d *demo) currentKey(ctx context.Context, proxy string, first int) (key *rotatorv1.Key, err error) {
	err = d.insist(ctx, first, func(ctx context.Context, r *replica) error {
		answer, err := rotatorv1.NewKeyServiceClient(r.conn).GetKeys(ctx, &rotatorv1.GetKeysRequest{Pool: budgetPool, ProxyId: proxy, IncludeSecret: true})
		if err == nil && len(answer.GetKeys()) == 0 {
			return fmt.Errorf("there is no key for %s", proxy)
		}
		if err == nil {
			key = answer.GetKeys()[0].GetKey()
		}
		return err
	})
	return key, err
}

// chat makes one request with a key.
func chat(ctx context.Context, base, secret string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/chat/completions", bytes.NewReader([]byte(`{"model":"fake","messages":[]}`)))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+secret)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, 64<<10))
	return response.StatusCode, body, err
}

// reportFailure says what the upstream answered, and returns the key to go on with.
func (d *demo) reportFailure(ctx context.Context, b *budget, proxy string, dead *rotatorv1.Key, status int, body []byte, first int) (*rotatorv1.Key, error) {
	request := &rotatorv1.ReportFailureRequest{
		Pool: budgetPool, KeyId: dead.GetId(), Generation: dead.GetGeneration(), HttpStatus: int32(status), Body: body, ProxyId: proxy,
		Source: "gateway", RequestId: uuid.NewString(), IncludeSecret: true,
	}
	var answer *rotatorv1.ReportFailureResponse
	err := d.insist(ctx, first, func(ctx context.Context, r *replica) (err error) {
		answer, err = r.rotate.ReportFailure(ctx, request)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reporting %s: %w", dead.GetId(), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused++
	if rotation := answer.GetRotation(); rotation != nil {
		if known := b.rotations[rotation.GetOldKeyId()]; known != nil && known.GetId() != rotation.GetId() {
			return nil, fmt.Errorf("key %s was rotated by %s and by %s", rotation.GetOldKeyId(), known.GetId(), rotation.GetId())
		}
		b.rotations[rotation.GetOldKeyId()] = rotation
	}
	if answer.GetKey() == nil {
		return nil, fmt.Errorf("reporting %s: %s by rule %s, and no key to go on with", dead.GetId(), answer.GetVerdict(), answer.GetRule())
	}
	return answer.GetKey(), nil
}

// insist repeats a call as the README asks of callers, at the replicas in turn.
func (d *demo) insist(ctx context.Context, first int, call func(context.Context, *replica) error) error {
	ctx, cancel := context.WithTimeout(ctx, callerLimit)
	defer cancel()
	for n, pause := first, 20*time.Millisecond; ; n, pause = n+1, min(2*pause, longestPause) {
		attempt, stop := context.WithTimeout(ctx, attemptLimit)
		err := call(attempt, d.replicas[n%len(d.replicas)])
		stop()
		if err == nil || !repeatable(err) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// judgeBudgets counts at one revision of etcd, and notes which promise was broken.
func (d *demo) judgeBudgets(ctx context.Context, b *budget) error {
	found, err := d.etcd.read(ctx)
	if err != nil {
		return err
	}
	after, err := found.count(budgetPool)
	if err != nil {
		return err
	}
	by, err := found.triggers(budgetPool)
	if err != nil {
		return err
	}
	used := budgetStock - after.Backups
	d.table([][]string{
		{"requests that succeeded", fmt.Sprint(budgetGateways * budgetRequests)},
		{"answers of the upstream that were reported", fmt.Sprint(b.refused)},
		{"rotations begun by reports of gateways", fmt.Sprint(by[rotatorv1.Trigger_TRIGGER_PROXY.String()])},
		{"rotations begun by the spend checker", fmt.Sprint(by[rotatorv1.Trigger_TRIGGER_SPEND_CHECKER.String()])},
		{"backups used", fmt.Sprint(used)},
		{"keys in service", fmt.Sprint(after.Active)},
	})
	least := int(budgetGateways*budgetRequests*budgetCost/budgetEach) - budgetKeys
	d.breaks(used != after.Rotations, "%d backups were used for %d rotations", used, after.Rotations)
	d.breaks(after.Active != budgetKeys, "%d keys are in service, and were %d", after.Active, budgetKeys)
	d.breaks(after.Dangling != 0, "%d bindings dangle", after.Dangling)
	d.breaks(after.Rotations < least, "%d rotations, and at least %d keys ran out of budget", after.Rotations, least)
	return nil
}

// breaks notes a promise that was broken.
func (d *demo) breaks(broken bool, format string, args ...any) {
	if broken {
		d.broken = append(d.broken, fmt.Sprintf(format, args...))
	}
}

// triggers counts a pool's rotations by who began them.
func (s state) triggers(pool string) (map[string]int, error) {
	by := map[string]int{}
	for key, value := range s {
		if !strings.HasPrefix(key, "rotations/"+pool+"/") {
			continue
		}
		var record struct{ Trigger string }
		if err := json.Unmarshal(value, &record); err != nil {
			return nil, fmt.Errorf("%s%s: %w", prefix, key, err)
		}
		by[record.Trigger]++
	}
	return by, nil
}
