package app

import (
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// webConfig is what the metrics listener serves.
type webConfig struct {
	// Ready says why this replica should get no requests now, nil if it should; several reasons are joined.
	Ready func() error
	// Live says why the process cannot go on by itself and should be restarted, nil if it can. Default: always nil.
	Live     func() error
	Gatherer prometheus.Gatherer
	Log      *slog.Logger
}

// scrapeLimit is the number of scrapes at one time; each looks at every key.
const scrapeLimit = 4

const index = `rotatord

/livez    200 unless the process should be restarted
/readyz   200 when this replica should get requests, else 503 and why not
/metrics  Prometheus metrics
`

// newWeb returns the metrics listener's server, with bounds on what a caller may cost. net/http's own messages are about
// single callers' mistakes, so they are logged at debug level.
func newWeb(cfg webConfig) *http.Server {
	return &http.Server{
		Handler:           webHandler(cfg),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
}

func webHandler(cfg webConfig) http.Handler {
	if cfg.Live == nil {
		cfg.Live = func() error { return nil }
	}
	mux := http.NewServeMux()
	mux.Handle("GET /livez", probeHandler(cfg.Live))
	mux.Handle("GET /readyz", probeHandler(cfg.Ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapeLimit,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, index) })
	return mux
}

// probeHandler answers 200 if the probe finds nothing wrong and 503 with the reasons, one a line, if it does.
func probeHandler(probe func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := probe(); err != nil {
			plain(w, http.StatusServiceUnavailable, err.Error()+"\n")
			return
		}
		plain(w, http.StatusOK, "ok\n")
	}
}

func plain(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a caller who has gone does not matter
}
