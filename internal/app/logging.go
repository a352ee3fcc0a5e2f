package app

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// The values of --log-format.
const (
	formatText = "text"
	formatJSON = "json"
)

const (
	// logLines and logBytes bound what waits for a reader who does not keep up, beside what is being written. At info level
	// that is minutes of a busy service.
	logLines = 8192
	logBytes = 4 << 20
	logRoom  = 64 << 10 // is kept for the next lines, and about what is written at once
	// logFlush bounds how long the end of the process waits for such a reader.
	logFlush = time.Second
)

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// NewLogger returns the logger of the service, and a function that writes out what still waits; it takes a second at
// most. Logging never blocks: if nobody reads w, lines are dropped, counted, and reported when it is read again.
func (c *Config) NewLogger(w io.Writer) (log *slog.Logger, flush func()) {
	lines := newLineWriter(w, func(dropped int) []byte { return droppedLine(c.handler, dropped) })
	return slog.New(c.handler(lines)), func() { lines.close(logFlush) }
}

func (c *Config) handler(w io.Writer) slog.Handler {
	opts := &slog.HandlerOptions{Level: levels[c.LogLevel]}
	if c.LogFormat == formatJSON {
		opts.ReplaceAttr = readable
		return slog.NewJSONHandler(w, opts)
	}
	return slog.NewTextHandler(w, opts)
}

// readable has JSON say "1.5ms", as the text format does, where slog would write a number of nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// droppedLine is written whatever the level is: somebody who reads the log must know that it has a hole.
func droppedLine(handler func(io.Writer) slog.Handler, dropped int) []byte {
	var line bytes.Buffer
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines dropped here because the log was not read", 0)
	r.AddAttrs(slog.Int("lines", dropped))
	_ = handler(&line).Handle(context.Background(), r) // a buffer does not fail
	return line.Bytes()
}

// lineWriter writes lines in the background, so that a destination that blocks stops its goroutine and not the service
// (a pipe that nobody reads blocks its writer for ever). Each Write is taken as one line and never blocks or fails. Lines
// that wait are written together.
type lineWriter struct {
	out    io.Writer
	report func(dropped int) []byte
	wake   chan struct{} // gets a value after a change of the following fields
	done   chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // protects the following fields
	queue   []byte
	lines   int // in queue
	dropped int // lines since the last one in queue
	closed  bool
}

func newLineWriter(out io.Writer, report func(dropped int) []byte) *lineWriter {
	w := &lineWriter{out: out, report: report, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

// Write implements io.Writer.
func (w *lineWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(line), nil
	}
	if w.lines >= logLines || len(w.queue)+len(line) > logBytes {
		w.dropped++
		return len(line), nil
	}
	w.reportDropped()
	w.push(line)
	w.signal()
	return len(line), nil
}

// reportDropped puts the report of dropped lines where they would have been.
func (w *lineWriter) reportDropped() {
	if w.dropped > 0 {
		w.push(w.report(w.dropped))
		w.dropped = 0
	}
}

func (w *lineWriter) push(line []byte) {
	w.queue = append(w.queue, line...)
	w.lines++
}

func (w *lineWriter) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run writes until the writer is closed and everything is written. Errors are ignored: there is nowhere to report that
// logging fails.
func (w *lineWriter) run() {
	defer close(w.done)
	var lines []byte
	for {
		var closed bool
		lines, closed = w.next(lines)
		switch {
		case len(lines) > 0:
			w.write(lines)
		case closed:
			return
		default:
			<-w.wake
		}
	}
}

// write writes lines, some at a time: what fails in between costs those and not all.
func (w *lineWriter) write(lines []byte) {
	for len(lines) > 0 {
		n := len(lines)
		if n > logRoom {
			n = logRoom
			if end := bytes.LastIndexByte(lines[:n], '\n'); end >= 0 {
				n = end + 1
			}
		}
		_, _ = w.out.Write(lines[:n])
		lines = lines[n:]
	}
}

// next takes the lines that wait, none if there are none, and leaves room for others.
func (w *lineWriter) next(room []byte) (lines []byte, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lines == 0 {
		w.reportDropped()
	}
	if cap(room) > logRoom {
		room = nil
	}
	if w.lines == 0 {
		return room[:0], w.closed
	}
	lines = w.queue
	w.queue, w.lines = room[:0], 0
	return lines, false
}

// close takes no more lines and waits until those taken are written, but no longer than limit. It may be repeated.
func (w *lineWriter) close(limit time.Duration) {
	w.mu.Lock()
	w.closed = true
	w.signal()
	w.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
	}
}
