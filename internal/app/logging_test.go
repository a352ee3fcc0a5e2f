package app

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// gatedWriter blocks while its gate is closed, like a pipe that nobody reads.
type gatedWriter struct {
	gate chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
}

func (w *gatedWriter) Write(p []byte) (int, error) {
	<-w.gate
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *gatedWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"text": `level=INFO msg="two words" reason="a\nb" took=1.5ms`, "json": `"level":"INFO","msg":"two words","reason":"a\nb","took":"1.5ms"}`} {
		var out bytes.Buffer
		cfg := &Config{LogFormat: format, LogLevel: "info"}
		log, flush := cfg.NewLogger(&out)
		log.Debug("not shown")
		log.Info("two words", "reason", "a\nb", "took", 1500*time.Microsecond)
		flush()
		if got := out.String(); !strings.Contains(got, want) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: got %q, want one line with %q", format, got, want)
		}
	}
}

func TestLogLevels(t *testing.T) {
	for level, want := range map[string]int{"debug": 4, "info": 3, "warn": 2, "error": 1} {
		var out bytes.Buffer
		cfg := &Config{LogFormat: "text", LogLevel: level}
		log, flush := cfg.NewLogger(&out)
		for _, l := range levels {
			log.Log(t.Context(), l, "a line")
		}
		flush()
		if got := strings.Count(out.String(), "\n"); got != want {
			t.Errorf("level %s: %d lines, want %d", level, got, want)
		}
	}
}

// TestLogReaderStuck is hazard 24.
func TestLogReaderStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &gatedWriter{gate: make(chan struct{})}
		cfg := &Config{LogFormat: "json", LogLevel: "info"}
		log, flush := cfg.NewLogger(out)
		const lost = 100
		log.Info("in the writer's hands")
		synctest.Wait() // the goroutine holds this line, so the queue is empty
		for range logLines {
			log.Info("kept")
		}
		for range lost {
			log.Info("lost")
		}
		close(out.gate)
		synctest.Wait()
		log.Info("after")
		flush()

		var msgs []string
		dec := json.NewDecoder(strings.NewReader(out.String()))
		for dec.More() {
			var line struct {
				Msg   string
				Lines int
			}
			if err := dec.Decode(&line); err != nil {
				t.Fatal(err)
			}
			if line.Lines != 0 && line.Lines != lost {
				t.Errorf("%d lines reported as dropped, want %d", line.Lines, lost)
			}
			msgs = append(msgs, line.Msg)
		}
		if n := len(msgs); n != logLines+3 || msgs[n-2] != "log lines dropped here because the log was not read" || msgs[n-1] != "after" {
			t.Errorf("%d lines ending with %q, want %d, the last two being the report of what was dropped and what came after", n, msgs[max(0, n-2):], logLines+3)
		}
	})
}

// TestLogHole checks that the report stands where the lines would have been, also if the queue does not run empty.
func TestLogHole(t *testing.T) {
	w := &lineWriter{report: func(int) []byte { return []byte("hole") }, wake: make(chan struct{}, 1)}
	big := make([]byte, logBytes)
	_, _ = w.Write(big)
	_, _ = w.Write([]byte("lost"))
	if line, _ := w.next(nil); len(line) != logBytes {
		t.Fatalf("first line has %d bytes, want %d", len(line), logBytes)
	}
	_, _ = w.Write([]byte(" after"))
	for _, want := range []string{"hole after", ""} {
		if got, _ := w.next(nil); string(got) != want {
			t.Errorf("next are %q, want %q", got, want)
		}
	}
}

func TestFlushIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &gatedWriter{gate: make(chan struct{})}
		cfg := &Config{LogFormat: "text", LogLevel: "info"}
		log, flush := cfg.NewLogger(out)
		log.Info("a line")
		began := time.Now()
		flush()
		if took := time.Since(began); took != logFlush {
			t.Errorf("flush took %v, want %v", took, logFlush)
		}
		flush() // may be repeated
		log.Info("after the end")
		close(out.gate)
		synctest.Wait()
		if got := out.String(); strings.Contains(got, "after the end") {
			t.Errorf("logged %q, want nothing after flush", got)
		}
	})
}

func TestLogKeepsNoBuffer(t *testing.T) {
	// slog reuses the buffer of a line after Write; a line that shares it would show another one's text.
	out := &gatedWriter{gate: make(chan struct{})}
	w := newLineWriter(out, nil)
	line := []byte("one\n")
	_, _ = w.Write(line)
	copy(line, "two\n")
	close(out.gate)
	for range 1000 { // while it writes
		_, _ = w.Write(line)
		runtime.Gosched()
	}
	w.close(time.Minute)
	if got, want := out.String(), "one\n"+strings.Repeat("two\n", 1000); got != want {
		t.Errorf("wrote %q, want one and two a thousand times", got)
	}
}

func BenchmarkLog(b *testing.B) {
	cfg := &Config{LogFormat: "text", LogLevel: "info"}
	log, flush := cfg.NewLogger(io.Discard)
	defer flush()
	for b.Loop() {
		log.LogAttrs(b.Context(), slog.LevelInfo, "a line", slog.String("pool", "openhands"))
	}
}
