package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Sink takes lines. When Write returns nil they are kept, as well as the sink can keep anything. After an error, some of
// them may have been taken, the last one in part; they are given again. A sink is used by one goroutine at a time.
type Sink interface {
	Write(lines []byte) error
}

// OpenSink makes the sink that a target names, "stdout" or "file:PATH", and the name of the relay that uses it.
// Nothing is opened before the first write: only the replica that relays touches the file.
func OpenSink(target string, stdout io.Writer) (name string, sink Sink, err error) {
	path, isFile := strings.CutPrefix(target, "file:")
	switch {
	case target == "stdout":
		return "stdout", &writerSink{stdout}, nil
	case isFile && filepath.IsAbs(path):
		return "file", &fileSink{path: path}, nil
	case isFile:
		return "", nil, fmt.Errorf("the file %q must have an absolute path, such as file:/var/log/rotatord/audit.jsonl", path)
	}
	return "", nil, fmt.Errorf("%q must be stdout or file: and an absolute path", target)
}

// writerSink keeps nothing by itself: who reads it does.
type writerSink struct{ to io.Writer }

// Write implements Sink.
func (s *writerSink) Write(lines []byte) error {
	_, err := s.to.Write(lines)
	return err
}

// fileSink appends to a file and syncs it. If the file is moved away or deleted, as logrotate does, the next write begins
// a new one.
type fileSink struct {
	path string
	file *os.File
}

// Write implements Sink. A crash in it leaves whole lines and at most one torn line, which the next write ends.
func (s *fileSink) Write(lines []byte) error {
	err := s.reopen()
	if err == nil {
		_, err = s.file.Write(lines)
	}
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil && s.file != nil { // what is at its end is not known
		err = errors.Join(err, s.file.Close())
		s.file = nil
	}
	return err
}

// reopen opens the file if it is not open, or is not the one at its path any more.
func (s *fileSink) reopen() error {
	if s.file != nil {
		opened, err := s.file.Stat()
		if there, statErr := os.Stat(s.path); err == nil && statErr == nil && os.SameFile(opened, there) {
			return nil
		}
		_ = s.file.Close() // it was synced
		s.file = nil
	}
	file, err := os.OpenFile(s.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.file = file
	if err := syncDirectory(filepath.Dir(s.path)); err != nil {
		return err
	}
	return s.endTornLine()
}

// endTornLine keeps what a crash has left of a line apart from the lines to come.
func (s *fileSink) endTornLine() error {
	info, err := s.file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return err
	}
	last := make([]byte, 1)
	if _, err := s.file.ReadAt(last, info.Size()-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err = s.file.Write([]byte("\n"))
	return err
}

// syncDirectory makes a new file's name durable.
func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// bounded lets nobody wait for a sink that hangs, such as a pipe that nobody reads. The write that hangs goes on; the
// next one waits for its end.
type bounded struct {
	sink Sink
	turn chan struct{} // holds something while a write is under way
}

func newBounded(s Sink) *bounded { return &bounded{s, make(chan struct{}, 1)} }

func (b *bounded) write(ctx context.Context, lines []byte) error {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	done := make(chan error, 1)
	go func() {
		err := b.sink.Write(lines)
		<-b.turn
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
