package etcdembed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const lockName = "rotatord.lock"

// ErrDataDirInUse is returned by Start when another process, or another Server of this one, has the data directory.
var ErrDataDirInUse = errors.New("the data directory is in use")

// dirLock is an flock on a file of our own. etcd takes locks too, but waits for them for ever. The kernel drops it with
// the process, however that ends; the file stays, because removing it would let two processes lock two files.
type dirLock struct{ file *os.File }

func lockDir(dir string) (*dirLock, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the data directory: %w", err)
	}
	if err := tryLock(f); err != nil {
		defer f.Close()
		return nil, inUse(err, dir, holder(f))
	}
	if err := writePID(f); err != nil {
		return nil, errors.Join(fmt.Errorf("writing %s: %w", path, err), f.Close())
	}
	return &dirLock{file: f}, nil
}

// release may be called once; closing the file drops the lock.
func (l *dirLock) release() error { return l.file.Close() }

// probeDatabase looks whether a program that does not know our lock, such as a plain etcd, has the database open.
func probeDatabase(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, memberDir, "snap", "db"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the database of etcd: %w", err)
	}
	defer f.Close()
	if err := tryLock(f); err != nil {
		return inUse(err, dir, "another program (an etcd, or etcdutl)")
	}
	return nil
}

func tryLock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

func inUse(err error, dir, who string) error {
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("locking the data directory %s: %w", dir, err)
	}
	return fmt.Errorf("%w: %s is held by %s; stop it, or choose another --data-dir", ErrDataDirInUse, dir, who)
}

// holder reads who wrote the lock file. It may be caught between locking and writing, so it is for people only.
func holder(f *os.File) string {
	b, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 0 {
		return "process " + strconv.Itoa(pid)
	}
	return "another process"
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}
