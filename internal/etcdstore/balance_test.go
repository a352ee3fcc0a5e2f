package etcdstore

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/etcdembed/etcdtest"
)

// frozen is a way to a server on which, while it is locked, no bytes pass and no connection breaks.
type frozen struct {
	sync.RWMutex
	passed atomic.Int64 // bytes, both ways
}

// way returns an address that leads to target.
func (f *frozen) way(t *testing.T, target string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", target)
			if err != nil {
				_ = from.Close()
				return
			}
			go f.copy(from, to)
			go f.copy(to, from)
		}
	}()
	return l.Addr().String()
}

func (f *frozen) copy(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 32*1024)
	for {
		n, err := from.Read(buf)
		f.RLock() // held up while frozen
		if err == nil {
			_, err = to.Write(buf[:n])
		}
		f.RUnlock()
		if err != nil {
			return
		}
		f.passed.Add(int64(n))
	}
}

// Of two members one hangs: it costs one call, not every second one. When it is back it is used again.
func TestMembersThatHangAreAvoided(t *testing.T) {
	endpoint := etcdtest.Start(t)
	var one, other frozen
	client, err := Connect(Config{Endpoints: []string{one.way(t, endpoint), other.way(t, endpoint)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	failed := func(calls int) (n int) {
		for range calls {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			if _, err := client.Get(ctx, "k"); err != nil {
				n++
			}
			cancel()
		}
		return n
	}
	bothUsed := func() {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for inRow := 0; inRow < 3; { // what was held up passes in the first
			a, b := one.passed.Load(), other.passed.Load()
			if inRow++; failed(10) != 0 || one.passed.Load() == a || other.passed.Load() == b {
				inRow = 0
			}
			if time.Now().After(deadline) {
				t.Fatal("one of the members is not used")
			}
		}
	}
	bothUsed()
	one.Lock()
	if n := failed(20); n < 1 || n > 2 { // round_robin: 10
		t.Errorf("%d of 20 calls were given to a member that hangs, want 1", n)
	}
	one.Unlock()
	bothUsed()
	other.Lock()
	defer other.Unlock()
	if n := failed(20); n < 1 || n > 2 {
		t.Errorf("after the members changed places %d of 20 calls were given to the one that hangs, want 1", n)
	}
}
