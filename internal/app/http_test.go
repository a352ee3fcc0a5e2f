package app

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestWebHandler(t *testing.T) {
	stuck, stopping := errors.New("stuck: no progress"), errors.New("this replica is stopping")
	fails := func(err error) func() error { return func() error { return err } }
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "rotator_test", Help: "Test."}))
	for _, c := range []struct {
		method, path string
		live, ready  error
		code         int
		body         string
	}{
		{"GET", "/livez", nil, stopping, 200, "ok\n"},
		{"GET", "/livez", stuck, nil, 503, "stuck: no progress\n"},
		{"GET", "/readyz", stuck, nil, 200, "ok\n"},
		{"GET", "/readyz", nil, stopping, 503, "this replica is stopping\n"},
		{"GET", "/readyz", nil, errors.Join(stopping, stuck), 503, "this replica is stopping\nstuck: no progress\n"},
		{"GET", "/metrics", nil, nil, 200, "# HELP rotator_test Test.\n# TYPE rotator_test gauge\nrotator_test 0\n"},
		{"GET", "/", nil, nil, 200, index},
		{"GET", "/other", nil, nil, 404, "404 page not found\n"},
		{"POST", "/readyz", nil, nil, 405, "Method Not Allowed\n"},
	} {
		h := webHandler(webConfig{Live: fails(c.live), Ready: fails(c.ready), Gatherer: reg, Log: slog.New(slog.DiscardHandler)})
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(c.method, c.path, nil))
		if rec.Code != c.code || rec.Body.String() != c.body {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, rec.Code, rec.Body.String(), c.code, c.body)
		}
		if got := rec.Header().Get("Content-Type"); rec.Code != 405 && !strings.HasPrefix(got, "text/plain") {
			t.Errorf("%s %s: content type %q, want plain text", c.method, c.path, got)
		}
	}
}

func TestWebServerBounds(t *testing.T) {
	srv := newWeb(webConfig{Ready: func() error { return nil }, Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if srv.ReadHeaderTimeout <= 0 || srv.ReadTimeout <= 0 || srv.WriteTimeout <= 0 || srv.IdleTimeout <= 0 {
		t.Errorf("a time-out is missing: %+v", srv)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	if got := status(t, l, "ok"); got != http.StatusOK {
		t.Errorf("small header: status %d, want 200", got)
	}
	if got := status(t, l, strings.Repeat("x", 100<<10)); got != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("header of 100 KiB: status %d, want 431", got)
	}
}

// status asks for /readyz with a header.
func status(t *testing.T, l net.Listener, header string) int {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go fmt.Fprintf(conn, "GET /readyz HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", header)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
