package ctl

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
)

// interruptible reads until the context ends. Somebody who presses Ctrl-C at a terminal that waits for input wants the
// program to end, and reading a terminal cannot be cut short otherwise.
type interruptible struct {
	ctx context.Context
	in  io.Reader
}

// Read leaves its goroutine behind, blocked, when the context ends first. That happens once, as the program ends.
func (r interruptible) Read(p []byte) (int, error) {
	type answer struct {
		n   int
		err error
	}
	// A buffer of its own, because the caller has p back when we return early.
	buffer, done := make([]byte, len(p)), make(chan answer, 1)
	go func() {
		n, err := r.in.Read(buffer)
		done <- answer{n, err}
	}()
	select {
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	case a := <-done:
		return copy(p, buffer[:a.n]), a.err
	}
}

// isTerminal is also true for other character devices, which does no harm where it is used.
func isTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// readFile reads a file, or standard input for "-", of a bounded size.
func (c *cli) readFile(file string, limit int64) ([]byte, error) {
	in, done, err := c.openFile(file)
	if err != nil {
		return nil, usagef("%v", err)
	}
	defer done()
	return readBounded(in, fileName(file), limit)
}

func readBounded(in io.Reader, name string, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, readError(name, err)
	}
	if int64(len(text)) > limit {
		return nil, usagef("%s is larger than %d bytes", name, limit)
	}
	return text, nil
}

func readError(name string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return usagef("reading %s: %v", name, cause(err))
}

// openFile returns the reader and what to call at the end.
func (c *cli) openFile(file string) (io.Reader, func(), error) {
	if file == "-" {
		return c.sys.In, func() {}, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	return f, func() { _ = f.Close() }, nil
}

// cause is an error without the path it happened with.
func cause(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

func fileName(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}
