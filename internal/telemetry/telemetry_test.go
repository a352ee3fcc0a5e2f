package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/rotatord/rotatord/internal/pool"
)

const canary = "sk-canary-do-not-show-0123456789"

// world is a Telemetry with what it writes to.
type world struct {
	*Telemetry
	t      *testing.T
	reg    *prometheus.Registry
	mirror *pool.Mirror
	out    safeBuffer
}

// safeBuffer can be read while the service writes to it.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newWorld(t *testing.T, records ...pool.Record) *world {
	t.Helper()
	w := &world{t: t, reg: prometheus.NewPedanticRegistry(), mirror: pool.NewMirror()}
	if len(records) > 0 {
		w.mirror.Load(records, 42, time.Now())
	}
	yes := func() bool { return true }
	no := func() bool { return false }
	log := slog.New(slog.NewJSONHandler(&w.out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.Telemetry = New(Config{Log: log, Registerer: w.reg, Mirror: w.mirror, SessionAlive: yes, Quorum: no})
	return w
}

// samples are the values of our metrics by name and labels; a histogram gives its count.
func (w *world) samples() map[string]float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatalf("gathering: %v", err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "rotator_") {
			continue
		}
		for _, m := range f.GetMetric() {
			got[f.GetName()+labels(m)] = value(m)
		}
	}
	return got
}

func labels(m *dto.Metric) string {
	var parts []string
	for _, l := range m.GetLabel() {
		parts = append(parts, l.GetName()+"="+l.GetValue())
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func value(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.GetCounter().GetValue()
	case m.Gauge != nil:
		return m.GetGauge().GetValue()
	}
	return float64(m.GetHistogram().GetSampleCount())
}

// counters are the samples of one metric.
func (w *world) counters(name string) map[string]float64 {
	w.t.Helper()
	got := make(map[string]float64)
	for sample, v := range w.samples() {
		if rest, ok := strings.CutPrefix(sample, name+"{"); ok {
			got["{"+rest] = v
		}
	}
	return got
}

// lines are the log lines without the fields that say when.
func (w *world) lines() (lines []map[string]any) {
	w.t.Helper()
	dec := json.NewDecoder(strings.NewReader(w.out.String()))
	for dec.More() {
		var line map[string]any
		if err := dec.Decode(&line); err != nil {
			w.t.Fatalf("log is not JSON lines: %v\n%s", err, w.out.String())
		}
		delete(line, "time")
		lines = append(lines, line)
	}
	return lines
}

func (w *world) wantLines(want ...map[string]any) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.lines()); diff != "" {
		w.t.Errorf("log lines (-want +got)\n%s", diff)
	}
}

var sealed = pool.Sealed{Ciphertext: []byte(canary), Fingerprint: "f", Preview: "sk-c...6789"}

func thePool(name string) *pool.Pool { return &pool.Pool{Name: name, CreatedAt: time.Now()} }

func theRotation() *pool.Rotation {
	return &pool.Rotation{
		Life: pool.Life{Pool: "openhands", Key: "k1", Generation: 7}, ID: "r-1", Slot: "s1", NewKey: "b1",
		Trigger: pool.TriggerProvider, Source: "openhands", Reason: "401 \"no\"\nsuch key", RequestID: "req-1",
	}
}

func TestRotationsTotal(t *testing.T) {
	k1 := pool.Life{Pool: "openhands", Key: "k1", Generation: 7}
	answered := func(outcome string, shared bool) func(w *world) {
		return func(w *world) { w.Answered(k1, pool.TriggerPool, "s", outcome, shared, time.Millisecond) }
	}
	for _, c := range []struct {
		name string
		do   func(w *world)
		want map[string]float64
	}{
		{"a rotation counts once", func(w *world) {
			w.Rotated(theRotation(), time.Millisecond)
			w.Answered(k1, pool.TriggerProvider, "s", "rotated", false, time.Millisecond)
		}, map[string]float64{"{outcome=rotated,pool=openhands,trigger=provider}": 1}},
		{"one that waited counts without a caller", func(w *world) { w.Rotated(theRotation(), time.Second) },
			map[string]float64{"{outcome=rotated,pool=openhands,trigger=provider}": 1}},
		{"same request again", answered("rotated", true), map[string]float64{"{outcome=repeated,pool=openhands,trigger=pool}": 1}},
		{"already rotated", answered("already_rotated", true), map[string]float64{"{outcome=already_rotated,pool=openhands,trigger=pool}": 1}},
		{"pending", answered("pending", false), map[string]float64{"{outcome=pending,pool=openhands,trigger=pool}": 1}},
		{"refused", answered("POOL_PAUSED", false), map[string]float64{"{outcome=pool_paused,pool=openhands,trigger=pool}": 1}},
		{"caller went away", answered("", false), map[string]float64{"{outcome=other,pool=openhands,trigger=pool}": 1}},
		{"pools that do not exist are one", func(w *world) {
			for i := range 100 {
				w.Answered(pool.Life{Pool: fmt.Sprint("made-up-", i), Key: "k"}, pool.TriggerProxy, "s", "pool_not_found", false, 0)
			}
		}, map[string]float64{"{outcome=pool_not_found,pool=unknown,trigger=proxy}": 100}},
		{"sources are no labels", func(w *world) {
			for i := range 100 {
				w.Answered(k1, pool.TriggerPool, fmt.Sprint("source-", i), "already_rotated", true, 0)
			}
		}, map[string]float64{"{outcome=already_rotated,pool=openhands,trigger=pool}": 100}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, thePool("openhands"))
			c.do(w)
			if diff := cmp.Diff(c.want, w.counters("rotator_rotations_total")); diff != "" {
				t.Errorf("rotator_rotations_total (-want +got)\n%s", diff)
			}
		})
	}
}

func TestOtherCounters(t *testing.T) {
	w := newWorld(t, thePool("openhands"))
	l := pool.Life{Pool: "openhands", Key: "k1", Generation: 7}
	w.Rotated(theRotation(), 3*time.Millisecond)
	w.Conflict(l, "backup_taken")
	w.Conflict(l, "backup_taken")
	w.Conflict(l, "")
	w.TookOver(l, "replica-2", time.Second)
	w.BoundReached(thePool("openhands"), "k1")
	w.OutcomeUnknown("openhands", "keys/k1", 1, errors.New("lost"))
	w.OutcomeUnknown("openhands", "keys/k1", 2, errors.New("lost"))
	w.Reported(l, pool.VerdictCoolDown, "openai/rate-limit")
	w.Reported(l, pool.VerdictIgnore, "incident")
	w.Reported(l, pool.VerdictIgnore, "incident")
	w.Probed(l, pool.ProbeAlive, "", time.Second)
	w.IncidentBegan("openhands", &pool.Incident{Keys: 7})
	got := w.samples()
	for name, want := range map[string]float64{
		"rotator_reports_total{pool=openhands,rule=openai/rate-limit,verdict=cool_down}": 1,
		"rotator_reports_total{pool=openhands,rule=incident,verdict=ignore}":             2,
		"rotator_probes_total{pool=openhands,result=alive}":                              1,
		"rotator_incidents_total{pool=openhands}":                                        1,

		"rotator_rotation_duration_seconds{}":                1,
		"rotator_commit_conflicts_total{cause=backup_taken}": 2,
		"rotator_commit_conflicts_total{cause=other}":        1,
		"rotator_lock_takeovers_total{}":                     1,
		"rotator_unknown_outcomes_total{}":                   2,

		"rotator_rotation_bound_reached_total{pool=openhands}": 1,
	} {
		if got[name] != want {
			t.Errorf("%s = %v, want %v", name, got[name], want)
		}
	}
}

func TestDurationBuckets(t *testing.T) {
	w := newWorld(t, thePool("openhands"))
	families, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "rotator_rotation_duration_seconds" {
			continue
		}
		b := f.GetMetric()[0].GetHistogram().GetBucket()
		if first, last := b[0].GetUpperBound(), b[len(b)-1].GetUpperBound(); first != 0.001 || last != 5 {
			t.Errorf("buckets go from %v to %v, want 1ms to 5s", first, last)
		}
		return
	}
	t.Error("rotator_rotation_duration_seconds is missing before the first rotation")
}

func TestGauges(t *testing.T) {
	now := time.Now()
	active := func(key string, status pool.Status, until time.Time) *pool.Active {
		return &pool.Active{Pool: "p", Key: key, Slot: key, Status: status, StatusUntil: until, Sealed: sealed}
	}
	waiting := func(key string, since time.Duration) *pool.Pending {
		return &pool.Pending{Life: pool.Life{Pool: "p", Key: key, Generation: 1}, RequestedAt: now.Add(-since), Trigger: pool.TriggerPool}
	}
	paused := thePool("q")
	paused.Paused = true
	paused.Spec.Stock = &pool.StockPolicy{Min: 3}
	paused.Spec.Bound.Rotations = new(int) // any number
	paused.Spec.Spend = &pool.SpendPolicy{}
	usd := func(n float64) *float64 { return &n }
	w := newWorld(t, thePool("p"), paused,
		&pool.Active{Pool: "q", Key: "a", Slot: "a", Status: pool.StatusHealthy, SpendUSD: usd(9), BudgetUSD: usd(10)},
		&pool.Active{Pool: "q", Key: "b", Slot: "b", Status: pool.StatusHealthy, SpendUSD: usd(3), BudgetUSD: usd(10)},
		&pool.Active{Pool: "q", Key: "c", Slot: "c", Status: pool.StatusHealthy, SpendUSD: usd(7)}, // imported, never read
		&pool.Token{Pool: "p", Name: "0", UsedAt: now}, &pool.Token{Pool: "p", Name: "1", UsedAt: now.Add(-time.Hour)},
		&pool.Token{Pool: "p", Name: pool.TokenReached, UsedAt: now}, &pool.Token{Pool: "p", Name: "20", UsedAt: now},
		active("a", pool.StatusHealthy, time.Time{}),
		active("b", pool.StatusRateLimited, now.Add(time.Hour)),
		active("c", pool.StatusRateLimited, now.Add(-time.Hour)), // over, so healthy
		active("d", pool.StatusExhausted, time.Time{}),
		active("e", pool.Status(77), time.Time{}),
		active("f", pool.Status(78), time.Time{}),
		&pool.Backup{Pool: "p", Key: "g", Sealed: sealed},
		&pool.Backup{Pool: "p", Key: "h", Sealed: sealed},
		&pool.Retired{Pool: "p", Key: "i", Sealed: sealed, Phase: pool.PhaseRetired},
		&pool.Preparation{Pool: "p", Key: "j", Phase: pool.PhaseFailed, Work: &pool.Work{PhaseSince: now.Add(-time.Minute)}},
		&pool.Preparation{Pool: "p", Key: "k", Phase: pool.PhaseFailed, Work: &pool.Work{PhaseSince: now.Add(-time.Second)}},
		waiting("d", time.Minute), waiting("z", time.Second),
		&pool.Slot{Pool: "left-over", Name: "s"}, // a pool that does not exist any more
		&pool.Replica{Name: "r1"}, &pool.Replica{Name: "r2"},
	)
	w.SpendDue(3, 1500*time.Millisecond)
	got := w.samples()
	want := map[string]float64{
		"rotator_active_keys{pool=p,status=healthy}":       2,
		"rotator_active_keys{pool=p,status=rate_limited}":  1,
		"rotator_active_keys{pool=p,status=exhausted}":     1,
		"rotator_active_keys{pool=p,status=error}":         0,
		"rotator_active_keys{pool=p,status=disabled}":      0,
		"rotator_active_keys{pool=p,status=unknown}":       2,
		"rotator_active_keys{pool=q,status=healthy}":       3,
		"rotator_active_keys{pool=q,status=rate_limited}":  0,
		"rotator_active_keys{pool=q,status=exhausted}":     0,
		"rotator_active_keys{pool=q,status=error}":         0,
		"rotator_active_keys{pool=q,status=disabled}":      0,
		"rotator_backup_keys{pool=p}":                      2,
		"rotator_backup_keys{pool=q}":                      0,
		"rotator_retired_keys{pool=p}":                     1,
		"rotator_retired_keys{pool=q}":                     0,
		"rotator_pending_rotations{pool=p}":                2,
		"rotator_pending_rotations{pool=q}":                0,
		"rotator_oldest_pending_seconds{pool=q}":           0,
		"rotator_incidents{pool=p}":                        0,
		"rotator_incidents{pool=q}":                        0,
		"rotator_pool_paused{pool=p}":                      0,
		"rotator_pool_paused{pool=q}":                      1,
		"rotator_pool_spend_usd{pool=q}":                   12,
		"rotator_pool_budget_usd{pool=q}":                  20,
		"rotator_spend_checks_due{}":                       3,
		"rotator_spend_check_lag_seconds{}":                1.5,
		"rotator_rotations_left{pool=p}":                   19,
		"rotator_mirror_revision{}":                        42,
		"rotator_replicas{}":                               2,
		"rotator_session_alive{}":                          1,
		"rotator_etcd_quorum{}":                            0,
		"rotator_lock_takeovers_total{}":                   0,
		"rotator_unknown_outcomes_total{}":                 0,
		"rotator_rotation_duration_seconds{}":              0,
		"rotator_phase_keys{phase=failed,pool=p}":          2,
		"rotator_phase_keys{phase=orphaned,pool=p}":        0,
		"rotator_phase_keys{phase=retired,pool=p}":         1,
		"rotator_phase_keys{phase=failed,pool=q}":          0,
		"rotator_phase_keys{phase=orphaned,pool=q}":        0,
		"rotator_phase_age_seconds{phase=orphaned,pool=p}": 0,
		"rotator_phase_age_seconds{phase=retired,pool=p}":  0,
		"rotator_phase_age_seconds{phase=failed,pool=q}":   0,
		"rotator_phase_age_seconds{phase=orphaned,pool=q}": 0,
		"rotator_stock_min{pool=q}":                        3,
		"rotator_stock_low{pool=q}":                        1,
	}
	about := func(name string, least float64) {
		if got[name] < least || got[name] > least+60 {
			t.Errorf("%s = %v, want about %v", name, got[name], least)
		}
		delete(got, name)
	}
	about("rotator_oldest_pending_seconds{pool=p}", 60)
	about("rotator_mirror_age_seconds{}", 0)
	about("rotator_phase_age_seconds{phase=failed,pool=p}", 60)
	for name := range got {
		if strings.HasPrefix(name, "rotator_build_info{go=go1") {
			delete(got, name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestGaugesBeforeLoad(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"rotator_mirror_revision{}", "rotator_mirror_age_seconds{}", "rotator_replicas{}"} {
		if v, there := w.samples()[name]; there {
			t.Errorf("%s = %v before the mirror is loaded, want no value", name, v)
		}
	}
}

func TestLines(t *testing.T) {
	w := newWorld(t, thePool("openhands"))
	l := pool.Life{Pool: "openhands", Key: "k1", Generation: 7}
	w.Rotated(theRotation(), 3*time.Millisecond)
	w.Parked(&pool.Pending{Life: l, Trigger: pool.TriggerProxy, Source: "gw", Reason: strings.Repeat("x", 5000), RequestID: "req-2"})
	w.Conflict(l, "lock_lost")
	w.TookOver(l, "replica-2", time.Second)
	w.OutcomeUnknown("openhands", "keys/k1", 1, errors.New("lost"))
	w.OutcomeUnknown("openhands", "keys/k1", 2, nil)
	life := func(level, msg string, more map[string]any) map[string]any {
		line := map[string]any{"level": level, "msg": msg, "pool": "openhands", "key": "k1", "generation": 7.0}
		for k, v := range more {
			line[k] = v
		}
		return line
	}
	const unknown = "etcd did not say whether a write was applied; looking into it"
	w.wantLines(
		life("INFO", "key rotated", map[string]any{
			"new_key": "b1", "slot": "s1", "trigger": "provider", "source": "openhands", "reason": "401 \"no\"\nsuch key",
			"request_id": "req-1", "rotation": "r-1", "took": 3e6,
		}),
		life("WARN", "no backup in stock: the rotation waits for one", map[string]any{
			"trigger": "proxy", "source": "gw", "reason": strings.Repeat("x", pool.MaxReason), "request_id": "req-2",
		}),
		life("INFO", "commit lost to somebody else's change; deciding again", map[string]any{"cause": "lock_lost"}),
		life("WARN", "lock taken over from a holder that did not finish in time", map[string]any{"holder": "replica-2", "after": 1e9}),
		map[string]any{"level": "WARN", "msg": unknown, "pool": "openhands", "subject": "keys/k1", "attempt": 1.0, "error": "lost"},
		map[string]any{"level": "DEBUG", "msg": unknown, "pool": "openhands", "subject": "keys/k1", "attempt": 2.0, "error": ""},
	)
}

func TestLinesAboutReports(t *testing.T) {
	w := newWorld(t, thePool("openhands"))
	until := time.Date(2026, 1, 25, 10, 0, 0, 0, time.UTC)
	a := &pool.Active{
		Version: pool.Version{CreateRevision: 7}, Pool: "openhands", Key: "k1", Slot: "s1", Status: pool.StatusRateLimited, StatusUntil: until,
		StatusReason: "openai/rate-limit",
	}
	w.Reported(a.Life(), pool.VerdictCoolDown, "openai/rate-limit") // no line: reports are many
	w.CooledDown(a, pool.TriggerProxy, "gw")
	w.IncidentBegan("openhands", &pool.Incident{Keys: 7, Until: until})
	w.IncidentEnded("openhands", pool.TriggerOperator)
	w.Probed(a.Life(), pool.ProbeDead, "HTTP 401", time.Second)
	w.wantLines(
		map[string]any{
			"level": "INFO", "msg": "key cools down", "pool": "openhands", "key": "k1", "generation": 7.0, "slot": "s1", "status": "rate_limited",
			"until": "2026-01-25T10:00:00Z", "rule": "openai/rate-limit", "trigger": "proxy", "source": "gw",
		},
		map[string]any{
			"level": "WARN", "pool": "openhands", "keys": 7.0, "until": "2026-01-25T10:00:00Z",
			"msg": "incident: so many keys were reported bad that the upstream must be at fault; reports change nothing until it ends",
		},
		map[string]any{"level": "INFO", "msg": "incident ended before its time; reports count again", "pool": "openhands", "trigger": "operator"},
		map[string]any{
			"level": "INFO", "msg": "upstream asked about a key that was reported bad", "pool": "openhands", "key": "k1", "generation": 7.0,
			"result": "dead", "answer": "HTTP 401", "took": float64(time.Second),
		},
	)
}

func TestCanary(t *testing.T) {
	w := newWorld(t, thePool("openhands"),
		&pool.Active{Pool: "openhands", Key: "k1", Slot: "s1", Status: pool.StatusHealthy, Sealed: sealed},
		&pool.Backup{Pool: "openhands", Key: "b1", Sealed: sealed},
		&pool.Retired{Pool: "openhands", Key: "r1", Sealed: sealed},
	)
	l := pool.Life{Pool: "openhands", Key: "k1", Generation: 7}
	w.Rotated(theRotation(), 0)
	w.Answered(l, pool.TriggerPool, "s", "already_rotated", true, 0)
	w.sums.log(w.log)
	families, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"metrics": fmt.Sprint(families), "log": w.out.String()} {
		if text == "" || strings.Contains(text, canary) {
			t.Errorf("the canary is in the %s, or nothing is: %s", name, text)
		}
	}
}

func TestSums(t *testing.T) {
	w := newWorld(t, thePool("openhands"))
	l := pool.Life{Pool: "openhands", Key: "k1", Generation: 7}
	for range 3 {
		w.Answered(l, pool.TriggerProvider, "openhands", "already_rotated", true, 0)
	}
	w.Answered(l, pool.TriggerPool, "", "rotated", true, 0)
	w.Answered(pool.Life{Pool: "openhands", Key: "k2"}, pool.TriggerProxy, "gw 1", "POOL_PAUSED", false, 0)
	w.Answered(l, pool.TriggerPool, "told by Rotated", "rotated", false, 0)
	w.Answered(l, pool.TriggerPool, "told by Parked", "pending", false, 0)
	w.sums.log(w.log)
	w.sums.log(w.log) // nothing is left for a second time
	const msg = "calls answered without a rotation of their own"
	w.wantLines(
		map[string]any{
			"level": "INFO", "msg": msg, "pool": "openhands", "key": "k1", "generation": 7.0, "calls": 4.0,
			"outcomes": map[string]any{"already_rotated": 3.0, "repeated": 1.0},
			"from": []any{
				map[string]any{"trigger": "provider", "source": "openhands", "calls": 3.0},
				map[string]any{"trigger": "pool", "calls": 1.0},
			},
		},
		map[string]any{
			"level": "INFO", "msg": msg, "pool": "openhands", "key": "k2", "calls": 1.0, "outcomes": map[string]any{"pool_paused": 1.0},
			"from": []any{map[string]any{"trigger": "proxy", "source": "gw 1", "calls": 1.0}},
		},
	)
}

func TestSumsAsText(t *testing.T) {
	var s sums
	l := pool.Life{Pool: "p", Key: "k"}
	for _, source := range []string{"openhands", "openhands", "two words", "a=b\nlevel=ERROR", "", "müller"} {
		s.add(l, caller{"provider", source}, "already_rotated")
	}
	var out bytes.Buffer
	s.log(slog.New(slog.NewTextHandler(&out, nil)))
	_, got, _ := strings.Cut(out.String(), "calls=")
	want := `6 outcomes.already_rotated=6 from="provider/openhands=2 provider=1 provider/\"a=b\\nlevel=ERROR\"=1 provider/müller=1 provider/\"two words\"=1"` + "\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestSumsAreBounded(t *testing.T) {
	w := newWorld(t, thePool("openhands"))
	for i := range 10 * maxLives {
		for j := range 10 * maxCallers {
			w.Answered(pool.Life{Pool: "p", Key: fmt.Sprint(i)}, pool.TriggerPool, fmt.Sprint(j), "key_not_found", false, 0)
		}
	}
	w.sums.log(w.log)
	lines := w.lines()
	if len(lines) != maxLives+1 {
		t.Fatalf("%d lines, want %d and one about the others", len(lines), maxLives)
	}
	first := lines[0]
	if n, more := len(first["from"].([]any)), first["from_others"]; n != maxCallers || more != 9.0*maxCallers {
		t.Errorf("line names %d callers and counts %v calls of others, want %d and %d", n, more, maxCallers, 9*maxCallers)
	}
	if last := lines[maxLives]; last["calls"] != 9.0*maxLives*10*maxCallers {
		t.Errorf("last line counts %v calls, want %d", last["calls"], 9*maxLives*10*maxCallers)
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, thePool("openhands"))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { w.Run(ctx); close(ended) }()
		call := func() {
			w.Answered(pool.Life{Pool: "openhands", Key: "k1"}, pool.TriggerPool, "s", "already_rotated", true, 0)
		}
		logged := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			if got := len(w.lines()); got != want {
				t.Errorf("%s: %d lines, want %d", when, got, want)
			}
		}
		call()
		time.Sleep(SumEvery - time.Second)
		logged("before the time", 0)
		time.Sleep(time.Second)
		logged("at the time", 1)
		time.Sleep(3 * SumEvery)
		logged("after idle times", 1)
		call()
		cancel()
		<-ended
		logged("after the end", 2)
	})
}

func TestRunForgetsPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, thePool("openhands"), thePool("other"))
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { w.Run(ctx) })
		for _, name := range []string{"openhands", "other"} {
			w.Answered(pool.Life{Pool: name, Key: "k1"}, pool.TriggerPool, "s", "already_rotated", true, 0)
		}
		time.Sleep(SumEvery + time.Second)
		w.mirror.Apply([]pool.Change{{Delete: thePool("other").Ref()}}, 43)
		time.Sleep(SumEvery)
		synctest.Wait()
		want := map[string]float64{"{outcome=already_rotated,pool=openhands,trigger=pool}": 1}
		if diff := cmp.Diff(want, w.counters("rotator_rotations_total")); diff != "" {
			t.Errorf("after the pool was deleted (-want +got)\n%s", diff)
		}
		cancel()
		work.Wait()
	})
}

func TestConcurrentUse(t *testing.T) {
	w := newWorld(t, thePool("openhands"))
	const goroutines, calls = 8, 200
	var work sync.WaitGroup
	for range goroutines {
		work.Go(func() {
			for i := range calls {
				w.Answered(pool.Life{Pool: "openhands", Key: fmt.Sprint(i % 5)}, pool.TriggerPool, "s", "already_rotated", true, 0)
			}
		})
	}
	work.Go(func() { w.sums.log(w.log) })
	work.Wait()
	w.sums.log(w.log)
	total := 0.0
	for _, line := range w.lines() {
		total += line["calls"].(float64)
	}
	counted := w.counters("rotator_rotations_total")["{outcome=already_rotated,pool=openhands,trigger=pool}"]
	if total != goroutines*calls || counted != goroutines*calls {
		t.Errorf("logged %v and counted %v calls, want %d", total, counted, goroutines*calls)
	}
}
