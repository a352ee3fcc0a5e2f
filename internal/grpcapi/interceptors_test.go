package grpcapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// stubRotator and stubQueries do what a test wants of them; other calls panic.
type stubRotator func(context.Context, pool.RotateRequest) (*pool.RotateResult, error)

func (s stubRotator) Rotate(ctx context.Context, req pool.RotateRequest) (*pool.RotateResult, error) {
	return s(ctx, req)
}

func (s stubRotator) Report(context.Context, pool.FailureReport) (*pool.ReportResult, error) {
	panic("no test wants this")
}

type stubQueries struct {
	Queries
	getKeys func(context.Context, pool.KeysQuery) (pool.KeySet, error)
}

func (s stubQueries) GetKeys(ctx context.Context, req pool.KeysQuery) (pool.KeySet, error) {
	return s.getKeys(ctx, req)
}

const canary = "canary-0123456789abcdef"

func TestPanicsAreSurvived(t *testing.T) {
	for name, value := range map[string]any{"text": "boom", "error": errors.New("boom"), "other": pool.RotateRequest{Reason: canary}} {
		w := newWorld(t, func(c *Config) {
			c.Rotator = stubRotator(func(context.Context, pool.RotateRequest) (*pool.RotateResult, error) { panic(value) })
		})
		client := v1.NewRotationServiceClient(w.conn)
		_, err := client.RotateKey(t.Context(), &v1.RotateKeyRequest{Reason: canary})
		if status.Code(err) != codes.Internal || errorInfo(err).GetReason() != "UNSPECIFIED" {
			t.Errorf("%s: error is %v with ErrorInfo %v, want INTERNAL, UNSPECIFIED", name, err, errorInfo(err))
		}
		if strings.Contains(err.Error(), "boom") {
			t.Errorf("%s: the caller is told what panicked: %v", name, err)
		}
		log := w.log.String()
		for _, want := range []string{"handler panicked", "rotation.go", "level=ERROR", "RotateKey"} {
			if !strings.Contains(log, want) {
				t.Errorf("%s: the log has no %q:\n%s", name, want, log)
			}
		}
		if strings.Contains(log, canary) {
			t.Errorf("%s: the log shows the request:\n%s", name, log)
		}
		if _, err := client.RotateKey(t.Context(), &v1.RotateKeyRequest{}); status.Code(err) != codes.Internal {
			t.Errorf("%s: the next call: %v, want the same answer", name, err)
		}
	}
}

func TestCallsAreBounded(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Timeouts = Timeouts{Read: 20 * time.Millisecond, Write: 20 * time.Millisecond}
		c.Rotator = stubRotator(func(ctx context.Context, _ pool.RotateRequest) (*pool.RotateResult, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		c.Queries = stubQueries{getKeys: func(ctx context.Context, _ pool.KeysQuery) (pool.KeySet, error) {
			<-ctx.Done()
			return pool.KeySet{}, ctx.Err()
		}}
	})
	_, err := v1.NewRotationServiceClient(w.conn).RotateKey(t.Context(), &v1.RotateKeyRequest{})
	if status.Code(err) != codes.Unavailable || errorInfo(err).GetReason() != string(pool.ReasonOutcomeUnknown) {
		t.Errorf("a write that does not end: %v with ErrorInfo %v, want UNAVAILABLE, OUTCOME_UNKNOWN", err, errorInfo(err))
	}
	if retry := detail[*errdetails.RetryInfo](err); retry.GetRetryDelay().AsDuration() != 250*time.Millisecond {
		t.Errorf("a write that does not end has RetryInfo %v, want 250ms", retry)
	}
	_, err = v1.NewKeyServiceClient(w.conn).GetKeys(t.Context(), &v1.GetKeysRequest{})
	if status.Code(err) != codes.DeadlineExceeded || errorInfo(err).GetReason() != string(reasonDeadlineExceeded) {
		t.Errorf("a read that does not end: %v with ErrorInfo %v, want DEADLINE_EXCEEDED", err, errorInfo(err))
	}
}

func TestLogLines(t *testing.T) {
	answers := map[string]struct {
		err   error
		level string
		parts []string
	}{
		"fine":        {nil, "DEBUG", []string{"code=OK"}},
		"refused":     {pool.Refuse(pool.ReasonPoolNotFound, "no"), "DEBUG", []string{"code=NotFound", "reason=POOL_NOT_FOUND"}},
		"not applied": {pool.Refuse(pool.ReasonNotApplied, "no").Because(errors.New("etcd is away")), "WARN", []string{"reason=NOT_APPLIED", "etcd is away"}},
		"unreadable":  {pool.Refuse(pool.ReasonSecretUnreadable, "no"), "WARN", []string{"code=DataLoss"}},
		"unexpected":  {errors.New("what is this"), "WARN", []string{"code=Internal", "what is this"}},
	}
	for name, tc := range answers {
		w := newWorld(t, func(c *Config) {
			c.Queries = stubQueries{getKeys: func(context.Context, pool.KeysQuery) (pool.KeySet, error) {
				return pool.KeySet{}, tc.err
			}}
		})
		_, _ = v1.NewKeyServiceClient(w.conn).GetKeys(t.Context(), &v1.GetKeysRequest{Pool: canary})
		lines := strings.Split(strings.TrimSpace(w.log.String()), "\n")
		if len(lines) != 1 || !strings.Contains(lines[0], "level="+tc.level) || !strings.Contains(lines[0], "method=/rotator.v1.KeyService/GetKeys") {
			t.Errorf("%s: the log is %q, want one line at %s", name, lines, tc.level)
		}
		for _, part := range tc.parts {
			if !strings.Contains(lines[0], part) {
				t.Errorf("%s: the line %q has no %q", name, lines[0], part)
			}
		}
		if strings.Contains(lines[0], canary) {
			t.Errorf("%s: the line shows the request: %q", name, lines[0])
		}
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, nil)
	client := v1.NewKeyServiceClient(w.conn)
	for range 3 {
		_, _ = client.GetKeys(t.Context(), &v1.GetKeysRequest{Pool: "nowhere"})
	}
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	want := map[string]float64{
		"rotator_grpc_requests_total code=NotFound method=/rotator.v1.KeyService/GetKeys": 3,
		"rotator_grpc_request_duration_seconds method=/rotator.v1.KeyService/GetKeys":     3,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestHealth(t *testing.T) {
	w := newWorld(t, nil)
	client := healthv1.NewHealthClient(w.conn)
	check := func(when string, reads, writes bool) {
		t.Helper()
		for service, want := range map[string]bool{
			"": reads, "rotator.v1.KeyService": reads, "rotator.v1.RotationService": writes, "rotator.v1.AdminService": writes,
		} {
			resp, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
			if err != nil || (resp.GetStatus() == healthv1.HealthCheckResponse_SERVING) != want {
				t.Errorf("%s: %q is %s, error %v; want it serving: %t", when, service, resp.GetStatus(), err, want)
			}
		}
	}
	check("at the start", false, false)
	w.server.Health.SetServing(true, true)
	check("with quorum", true, true)
	w.server.Health.SetServing(true, false)
	check("without quorum", true, false)
	w.server.Health.SetServing(false, true)
	check("before the cache is loaded", false, false)
	w.server.Health.Shutdown()
	w.server.Health.SetServing(true, true)
	check("after the shutdown", false, false)
	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of an unknown service: %v, want NOT_FOUND as the health protocol says", err)
	}
}

func TestReflection(t *testing.T) {
	w := newWorld(t, nil)
	stream, err := reflectionv1.NewServerReflectionClient(w.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{ListServices: "*"},
	}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]bool)
	for _, s := range resp.GetListServicesResponse().GetService() {
		got[s.GetName()] = true
	}
	for _, want := range []string{"rotator.v1.RotationService", "rotator.v1.KeyService", "rotator.v1.AdminService", "grpc.health.v1.Health"} {
		if !got[want] {
			t.Errorf("reflection does not list %s, only %v", want, got)
		}
	}
}

func TestWatchingHealthDoesNotHoldUpTheShutdown(t *testing.T) {
	w := newWorld(t, nil)
	stream, err := healthv1.NewHealthClient(w.conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.server.Shutdown(t.Context())
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the shutdown took %s, want at once", took)
	}
	for err == nil {
		_, err = stream.Recv()
	}
}

func TestShutdownIsBounded(t *testing.T) {
	held := make(chan struct{})
	w := newWorld(t, func(c *Config) {
		c.Queries = stubQueries{getKeys: func(ctx context.Context, _ pool.KeysQuery) (pool.KeySet, error) {
			close(held)
			<-ctx.Done()
			return pool.KeySet{}, ctx.Err()
		}}
	})
	answered := make(chan error, 1)
	go func() {
		_, err := v1.NewKeyServiceClient(w.conn).GetKeys(context.Background(), &v1.GetKeysRequest{})
		answered <- err
	}()
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	w.server.Shutdown(ctx)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the shutdown took %s, want about 50ms", took)
	}
	if err := <-answered; err == nil {
		t.Error("the call under way was answered, want it cut off")
	}
	w.server.Shutdown(ctx)
}

func TestNewServerChecksItsConfig(t *testing.T) {
	if _, err := NewServer(Config{}); err == nil {
		t.Error("a server without anything behind it was made")
	}
}
