package app_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

const (
	eventRotated       = "dev.rotatord.key.rotated.v1"
	eventCooledDown    = "dev.rotatord.key.cooled_down.v1"
	eventIncidentBegan = "dev.rotatord.pool.incident_began.v1"
	eventIncidentEnded = "dev.rotatord.pool.incident_ended.v1"
)

// deadKey is OpenAI's answer to a key that is not good, which repeats the key.
func deadKey(secret string) []byte {
	return []byte(`{"error":{"message":"Incorrect API key provided: ` + secret + `.","type":"invalid_request_error","code":"invalid_api_key"}}`)
}

// specified makes a pool with a spec, with active keys a0.. and backups b0...
func (c *cluster) specified(name string, spec *v1.PoolSpec, active, backups int) {
	c.t.Helper()
	if _, err := c.replicas[0].adm.CreatePool(c.ctx(), &v1.CreatePoolRequest{Name: name, Spec: spec}); err != nil {
		c.t.Fatal(err)
	}
	c.add(name, v1.KeyHome_KEY_HOME_ACTIVE, "a", 0, active)
	c.add(name, v1.KeyHome_KEY_HOME_BACKUP, "b", 0, backups)
}

func unbounded() *v1.RotationBound { n := int32(0); return &v1.RotationBound{Rotations: &n} }

// failed is a report that the key as it is now was refused as dead.
func (c *cluster) failed(pool, id string) *v1.ReportFailureRequest {
	c.t.Helper()
	return &v1.ReportFailureRequest{
		Pool: pool, KeyId: id, Generation: c.key(c.replicas[0], pool, id).Generation, HttpStatus: 401,
		Body: deadKey(secretOf(pool + "-" + id)), Source: "gateway",
	}
}

func (c *cluster) report(r *replica, req *v1.ReportFailureRequest) *v1.ReportFailureResponse {
	c.t.Helper()
	resp, err := r.rot.ReportFailure(c.ctx(), req)
	if err != nil {
		c.t.Fatalf("reporting %s/%s at %s: %v", req.Pool, req.KeyId, r.name, err)
	}
	return resp
}

// reportUntilAnswered repeats a report, with its request id if it has one, as callers are told to.
func (c *cluster) reportUntilAnswered(r *replica, req *v1.ReportFailureRequest) (*v1.ReportFailureResponse, error) {
	for deadline := time.Now().Add(30 * time.Second); ; {
		resp, err := r.rot.ReportFailure(c.ctx(), req)
		if err == nil || !repeatable[reason(err)] || time.Now().After(deadline) {
			return resp, err
		}
		<-time.After(10 * time.Millisecond)
	}
}

// atOnce reports each request at a replica, all at the same moment, until it is answered.
func (c *cluster) atOnce(n int, call func(i int) (*replica, *v1.ReportFailureRequest)) []*v1.ReportFailureResponse {
	c.t.Helper()
	answers := make([]*v1.ReportFailureResponse, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, req := call(i)
			var err error
			if answers[i], err = c.reportUntilAnswered(r, req); err != nil {
				c.t.Errorf("report %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	return answers
}

// The race of the incident that the service replaces: the provider and the pool trigger the same key at the same moment, at
// different replicas, again and again. The counts never move.
func TestRaceOfProviderAndPool(t *testing.T) {
	const rounds, keys = 300, 10
	c := newCluster(t, 3, nil)
	spec := &v1.PoolSpec{Upstream: &v1.UpstreamSpec{Kind: "openai"}, RotationBound: unbounded(), Incident: &v1.IncidentPolicy{Disabled: true}}
	c.specified("p", spec, keys, rounds)
	if _, err := c.replicas[0].adm.SetBinding(c.ctx(), &v1.SetBindingRequest{
		Pool: "p", ProxyId: "gw", Slots: []*v1.SlotPriority{{Slot: "a0", Priority: 1}, {Slot: "a1", Priority: 2}},
	}); err != nil {
		t.Fatal(err)
	}
	now := make([]*v1.Key, keys) // in each slot
	for i := range now {
		now[i] = c.key(c.replicas[0], "p", fmt.Sprint("a", i))
	}
	for round := range rounds {
		old := now[round%keys]
		var rotated *v1.RotateKeyResponse
		var reported *v1.ReportFailureResponse
		var errs [2]error
		var wg sync.WaitGroup
		wg.Go(func() {
			rotated, errs[0] = c.rotateUntilAnswered(&v1.RotateKeyRequest{
				Pool: "p", KeyId: old.Id, Generation: old.Generation, Trigger: v1.Trigger_TRIGGER_PROVIDER, Source: "openhands", RequestId: "provider",
			}, c.replicas[round%3])
		})
		wg.Go(func() {
			reported, errs[1] = c.reportUntilAnswered(c.replicas[(round+1)%3], &v1.ReportFailureRequest{
				Pool: "p", KeyId: old.Id, Generation: old.Generation, HttpStatus: 401, Body: deadKey("sk-fake"), ProxyId: "gw", RequestId: "pool",
			})
		})
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if rotated.Rotation.Id != reported.Rotation.GetId() || rotated.Key.Id != reported.Key.Id ||
			(rotated.Outcome == v1.Outcome_OUTCOME_ROTATED) == (reported.Outcome == v1.Outcome_OUTCOME_ROTATED) {
			t.Fatalf("round %d: the provider was told %v, the pool %v: want one rotation, made by one of them", round, rotated, reported)
		}
		now[round%keys] = rotated.Key
	}
	c.want("active keys", c.count("active", "p"), keys)
	c.want("stock", c.count("backup", "p"), 0)
	c.want("retired", c.count("retired", "p"), rounds)
	c.want("bindings", c.count("bindings", "p"), 1)
	c.want("rotations", len(c.settled().Rotations()), rounds)
	c.want("events", c.rec.Events(eventRotated), rounds)
	c.want("cool-downs", c.rec.Events(eventCooledDown), 0)
}

// The upstream answers 401 to all twelve keys, at three replicas at once.
func TestUpstreamOutage(t *testing.T) {
	c := newCluster(t, 3, nil)
	spec := &v1.PoolSpec{Upstream: &v1.UpstreamSpec{Kind: "openai"}, RotationBound: unbounded()}
	c.specified("p", spec, 12, 30)
	var requests []*v1.ReportFailureRequest
	for i := range 12 {
		requests = append(requests, c.failed("p", fmt.Sprint("a", i)))
	}
	answers := c.atOnce(36, func(i int) (*replica, *v1.ReportFailureRequest) { return c.replicas[i%3], requests[i/3] })
	rotated := len(c.settled().Rotations())
	t.Logf("%d of 12 keys were rotated before the incident was recognised", rotated)
	if rotated > 6 {
		t.Errorf("%d keys were rotated, want 6 at most", rotated)
	}
	for i, a := range answers {
		ignored := a.GetVerdict() == v1.Verdict_VERDICT_IGNORE && a.GetIncident() && a.GetRule() == "incident" && a.GetMatchedRule() == "openai/invalid-api-key"
		if !ignored && a.GetVerdict() != v1.Verdict_VERDICT_ROTATE {
			t.Errorf("report %d: %v", i, a)
		}
	}
	c.want("incidents", c.rec.Events(eventIncidentBegan), 1)
	if n := strings.Count(c.log.String(), "the upstream must be at fault"); n > 1 { // none, if etcd's answer came too late
		t.Errorf("log lines about it: got %d, want one", n)
	}

	// Nothing changes while it goes on, and the keys stay in use.
	for _, r := range c.replicas {
		c.caughtUp(r)
	}
	before := c.lastOfPools()
	for i := range 30 {
		req := requests[i%12]
		req.HttpStatus = []int32{401, 429}[i%2]
		c.report(c.replicas[i%3], req)
	}
	c.want("the last change", c.lastOfPools(), before)
	keys, err := c.replicas[1].keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "p"})
	if err != nil || len(keys.Keys) != 12 {
		t.Errorf("usable keys in the incident: %v, %v, want all 12", keys, err)
	}
	pool, err := c.replicas[2].adm.GetPool(c.ctx(), &v1.GetPoolRequest{Name: "p"})
	if err != nil || pool.Pool.Incident.GetKeys() < 7 {
		t.Errorf("the pool says %v, %v, want an incident of 7 keys or more", pool, err)
	}

	t.Run("ended by an operator", func(t *testing.T) {
		if _, err := c.replicas[1].adm.EndIncident(c.ctx(), &v1.EndIncidentRequest{Name: "p"}); err != nil {
			t.Fatal(err)
		}
		c.want("ends", c.settled().Events(eventIncidentEnded), 1)
		c.want("notes", c.count("health", "p"), 0)
		again := c.report(c.replicas[2], c.failed("p", keys.Keys[0].Key.Id))
		c.want("a report after it", again.Verdict, v1.Verdict_VERDICT_ROTATE)
	})
}

// An incident ends by its time, and by keys that work.
func TestEndOfAnIncident(t *testing.T) {
	c := newCluster(t, 2, nil)
	spec := &v1.PoolSpec{Upstream: &v1.UpstreamSpec{Kind: "openai"}, RotationBound: unbounded()}
	for name, text := range map[string]string{"timed": "1s", "working": ""} {
		s := &v1.PoolSpec{Upstream: spec.Upstream, RotationBound: spec.RotationBound, Incident: &v1.IncidentPolicy{}}
		if text != "" {
			d, err := time.ParseDuration(text)
			if err != nil {
				t.Fatal(err)
			}
			s.Incident.Duration = durationpb.New(d)
		}
		c.specified(name, s, 5, 5)
		requests := []*v1.ReportFailureRequest{c.failed(name, "a0"), c.failed(name, "a1"), c.failed(name, "a2"), c.failed(name, "a3")}
		c.atOnce(4, func(i int) (*replica, *v1.ReportFailureRequest) { return c.replicas[i%2], requests[i] })
	}
	c.want("incidents", c.settled().Events(eventIncidentBegan), 2)
	c.caughtUp(c.replicas[1])

	last := c.failed("timed", "a4")
	c.eventually("the incident of pool timed is over", func() bool {
		return c.report(c.replicas[0], last).Verdict == v1.Verdict_VERDICT_ROTATE
	})
	c.want("events of ends", c.settled().Events(eventIncidentEnded), 0)

	keys, err := c.replicas[1].keys.GetKeys(c.ctx(), &v1.GetKeysRequest{Pool: "working"})
	if err != nil || len(keys.Keys) != 5 {
		t.Fatalf("keys: %v, %v", keys, err)
	}
	for i, k := range keys.Keys[:3] {
		resp := c.report(c.replicas[1], &v1.ReportFailureRequest{Pool: "working", KeyId: k.Key.Id, Generation: k.Key.Generation, HttpStatus: 200})
		c.want(fmt.Sprintf("incident after %d keys that work", i+1), resp.Incident, i < 2)
	}
	c.want("events of ends", c.settled().Events(eventIncidentEnded), 1)
}

// fakeUpstream is asked about keys.
type fakeUpstream struct {
	*httptest.Server
	asked  atomic.Int32
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request)]
}

func newFakeUpstream(t *testing.T) *fakeUpstream {
	f := &fakeUpstream{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		(*f.answer.Load())(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeUpstream) answers(fn func(http.ResponseWriter, *http.Request)) {
	f.asked.Store(0)
	f.answer.Store(&fn)
}

// Fifty reports of one failure, at three replicas: the upstream is asked once, whatever it says.
func TestOneProbePerFailure(t *testing.T) {
	c := newCluster(t, 3, nil)
	for name, tt := range map[string]struct {
		answer  func(http.ResponseWriter, *http.Request)
		verdict v1.Verdict
		rule    string
		event   string
	}{
		"alive": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"data":[]}`)) },
			v1.Verdict_VERDICT_COOL_DOWN, "probe-alive", eventCooledDown},
		"dead": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401); _, _ = w.Write(deadKey("sk-fake")) },
			v1.Verdict_VERDICT_ROTATE, "openai/invalid-api-key", eventRotated},
		"unreachable": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
			v1.Verdict_VERDICT_IGNORE, "probe-unreachable", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeUpstream(t) // each: an upstream that fails is left alone for a while
			f.answers(tt.answer)
			spec := &v1.PoolSpec{Upstream: &v1.UpstreamSpec{Kind: "openai", BaseUrl: f.URL}, ConfirmReports: true, RotationBound: unbounded()}
			c.specified(name, spec, 2, 5)
			req := c.failed(name, "a0")
			before := c.settled().Events(tt.event)
			answers := c.atOnce(50, func(i int) (*replica, *v1.ReportFailureRequest) { return c.replicas[i%3], req })
			for i, a := range answers {
				if a.GetVerdict() != tt.verdict || a.GetRule() != tt.rule {
					t.Errorf("report %d: got %v by %s, want %v by %s", i, a.GetVerdict(), a.GetRule(), tt.verdict, tt.rule)
				}
			}
			c.want("probes", f.asked.Load(), int32(1))
			if tt.event != "" {
				c.want("events", c.settled().Events(tt.event)-before, 1)
			}
			c.want("active keys", c.count("active", name), 2)
		})
	}
}

// The holder is stopped while it asks the upstream: who does not need the answer takes the lock over, and what the holder
// then does is void.
func TestRotateKeyTakesOverAProbe(t *testing.T) {
	c, f := newCluster(t, 2, nil), newFakeUpstream(t)
	reached, way := make(chan struct{}), make(chan struct{})
	var waiting atomic.Bool // for the upstream's answer
	waiting.Store(true)
	f.answers(func(w http.ResponseWriter, r *http.Request) {
		defer context.AfterFunc(r.Context(), func() { waiting.Store(false) })()
		close(reached)
		<-way
		_, _ = w.Write([]byte(`{"data":[]}`)) // alive: the key is to rest
	})
	spec := &v1.PoolSpec{Upstream: &v1.UpstreamSpec{Kind: "openai", BaseUrl: f.URL}, ConfirmReports: true}
	c.specified("p", spec, 2, 2)
	req := c.failed("p", "a0")
	var report *v1.ReportFailureResponse
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { report, err = c.replicas[0].rot.ReportFailure(c.ctx(), req) })
	<-reached
	rotated := c.rotate(c.replicas[1], c.request("p", "a0"))
	if !waiting.Load() {
		t.Error("RotateKey waited until the report's replica asked no more, and does not need the answer")
	}
	c.want("outcome", rotated.Outcome, v1.Outcome_OUTCOME_ROTATED)
	close(way)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	c.want("the report's rotation", report.Rotation.GetId(), rotated.Rotation.Id)
	c.want("the report's outcome", report.Outcome, v1.Outcome_OUTCOME_ALREADY_ROTATED)
	c.want("cool-downs", c.settled().Events(eventCooledDown), 0)
}

// A report about a life that is over changes nothing, at any replica, neither the replacement nor the same key restored.
func TestLateReports(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.specified("p", &v1.PoolSpec{Upstream: &v1.UpstreamSpec{Kind: "openai"}}, 2, 1)
	late := c.failed("p", "a0")
	first := c.rotate(c.replicas[0], c.request("p", "a0"))
	if _, err := c.replicas[0].adm.RestoreKey(c.ctx(), &v1.RestoreKeyRequest{Pool: "p", KeyId: "a0"}); err != nil {
		t.Fatal(err)
	}
	second := c.rotate(c.replicas[1], c.request("p", first.Key.Id)) // a0 again, in its second life
	c.want("the key of the second life", second.Key.Id, "a0")
	before := c.lastOfPools()
	c.caughtUp(c.replicas[0])
	c.caughtUp(c.replicas[1])
	for i, status := range []int32{401, 429, 500, 429, 401} {
		late.HttpStatus = status
		resp := c.report(c.replicas[i%2], late)
		c.want("rotation", resp.Rotation.GetId(), first.Rotation.Id)
		c.want("key", resp.Key.GetId(), "a0")
		if status == 401 {
			c.want("outcome", resp.Outcome, v1.Outcome_OUTCOME_ALREADY_ROTATED)
		} else {
			c.want("rule", resp.Rule, "late")
		}
	}
	c.want("the last change", c.lastOfPools(), before)
}

// No secret of a report gets anywhere: it is in the body, in a header, in the source, and in the reason of a RotateKey call.
func TestReportsKeepNoSecrets(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.specified("p", &v1.PoolSpec{Upstream: &v1.UpstreamSpec{Kind: "openai"}}, 2, 3)
	secret := secretOf("p-a0")
	req := c.failed("p", "a0")
	req.Source, req.Headers = "key "+secret, map[string]string{"X-Key": secret}
	resp := c.report(c.replicas[0], req)
	rotate := c.request("p", "a1")
	rotate.Source, rotate.Reason = "has sk-fake-other-secret-000111", "401 for key "+secretOf("p-a1")
	rotated := c.rotate(c.replicas[0], rotate)
	all, err := c.client.Get(c.ctx(), "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(resp, rotated, c.log.String(), all.Kvs)
	for _, s := range []string{secret, secretOf("p-a1"), "sk-fake-other-secret-000111"} {
		if strings.Contains(text, s) {
			t.Errorf("%s is in an answer, the log or etcd", s)
		}
	}
	c.want("a reason without a secret", c.rotate(c.replicas[0], func() *v1.RotateKeyRequest {
		r := c.request("p", resp.Key.Id)
		r.Reason = "budget_exceeded_10.02107649999999"
		return r
	}()).Rotation.Reason, "budget_exceeded_10.02107649999999")
}
