package etcdembed

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

// logged runs etcd's side of the log and returns the lines of the daemon's side.
func logged(t *testing.T, f func(*zap.Logger, *atomic.Bool)) []string {
	t.Helper()
	var buf bytes.Buffer
	h := slog.NewTextHandler(&buf, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	r := newRelay(slog.New(h))
	var closing atomic.Bool
	f(newZap(r, make(chan error, 1), &closing), &closing)
	r.close()
	return strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n")
}

func TestLogTakesWarningsAndErrorsOnly(t *testing.T) {
	got := logged(t, func(z *zap.Logger, _ *atomic.Bool) {
		z = z.With(zap.String("member", "m"))
		z.Debug("debug")
		z.Info("info")
		z.Warn("slow", zap.Duration("took", time.Second), zap.Int("n", 3))
		z.Error("broken", zap.Error(errors.New("no disk")), zap.Strings("urls", []string{"a", "b"}))
		z.Warn("simple token is not cryptographically signed")
	})
	want := []string{
		`level=WARN msg=slow component=etcd member=m n=3 took=1s`,
		`level=ERROR msg=broken component=etcd error="no disk" member=m urls="[a b]"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestLogIsNotDrowned(t *testing.T) {
	got := logged(t, func(z *zap.Logger, _ *atomic.Bool) {
		for range 1000 {
			z.Warn("apply request took too long", zap.String("request", strings.Repeat("x", 5000)))
		}
	})
	if len(got) != samplePerTick {
		t.Errorf("1000 equal warnings made %d lines, want %d", len(got), samplePerTick)
	}
	if len(got[0]) > 2*logFieldSize {
		t.Errorf("a line has %d bytes, want a field cut at %d", len(got[0]), logFieldSize)
	}
}

func TestLogKnowsWhatBelongsToClosing(t *testing.T) {
	const message = "setting up serving from embedded etcd failed."
	got := logged(t, func(z *zap.Logger, closing *atomic.Bool) {
		z.Error(message)
		closing.Store(true)
		z.Error(message)
		z.Error("something else")
	})
	want := []string{
		`level=ERROR msg="` + message + `" component=etcd`,
		`level=ERROR msg="something else" component=etcd`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// blocked is a log destination that takes nothing until it is released, like a full pipe.
type blocked struct {
	slog.Handler
	release chan struct{}
}

func (b blocked) Handle(ctx context.Context, r slog.Record) error {
	<-b.release
	return b.Handler.Handle(ctx, r)
}

func (b blocked) WithAttrs(a []slog.Attr) slog.Handler {
	return blocked{b.Handler.WithAttrs(a), b.release}
}

func TestBlockedLogBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		b := blocked{slog.NewTextHandler(&buf, nil), make(chan struct{})}
		r := newRelay(slog.New(b))
		const late = 10
		rec := slog.NewRecord(time.Now(), slog.LevelWarn, "w", 0)
		r.put(rec)
		synctest.Wait() // the writer holds this one
		for range logQueue + late {
			r.put(rec)
		}
		begin := time.Now()
		r.close()
		if took := time.Since(begin); took != flushLimit {
			t.Errorf("closing took %v, want %v", took, flushLimit)
		}
		close(b.release)
		<-r.done
		if got, want := strings.Count(buf.String(), "\n"), logQueue+1; got != want {
			t.Errorf("%d lines were written, want %d", got, want)
		}
		if !strings.Contains(buf.String(), "dropped_before=10") {
			t.Errorf("no line says that %d were dropped", late)
		}
	})
}

func TestFatalEndsTheGoroutineOnly(t *testing.T) {
	r := newRelay(slog.New(slog.DiscardHandler))
	defer r.close()
	fatal := make(chan error, 1)
	z := newZap(r, fatal, new(atomic.Bool))
	for name, log := range map[string]func(string, ...zap.Field){"fatal": z.Fatal, "panic": z.Panic} {
		t.Run(name, func(t *testing.T) {
			within(time.Minute, func() {
				log("cannot write", zap.Error(context.DeadlineExceeded))
				t.Error("the goroutine went on")
			})
			if err := <-fatal; !errors.Is(err, context.DeadlineExceeded) || err.Error() != "etcd: cannot write: context deadline exceeded" {
				t.Errorf("reported %v", err)
			}
		})
	}
}
