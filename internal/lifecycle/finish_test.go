package lifecycle_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
)

// slow is an upstream that answers to a mint only when it is let, or when the call's time is over.
type slow struct {
	*upstream
	asked, answer chan struct{}
}

func (s *slow) Provider(*pool.Pool) (pool.Provider, error) { return s, nil }

func (s *slow) Mint(ctx context.Context, k pool.ProviderKey) (pool.Secret, error) {
	secret, err := s.upstream.Mint(ctx, k)
	close(s.asked)
	select {
	case <-s.answer:
		return secret, err
	case <-ctx.Done():
		return pool.Secret{}, ctx.Err()
	}
}

// TestFinish: a worker that is to finish writes down the answer to the call that is under way, and begins nothing else.
func TestFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(2, 2))
		r.upstream.chooses = true
		up := &slow{r.upstream, make(chan struct{}), make(chan struct{})}
		w := r.worker("r0", func(cfg *lifecycle.Config) { cfg.Providers, cfg.Parallel = up, 1 })
		stop := r.run("r0", w)
		<-up.asked
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			w.Finish(t.Context())
		}()
		time.Sleep(2 * time.Second)
		select {
		case <-finished:
			t.Error("finished while a call was under way")
		default:
		}
		close(up.answer)
		<-finished
		stop()
		minted := 0
		for _, p := range records[*pool.Preparation](r, pool.KindPreparation) {
			switch p.Phase {
			case pool.PhaseVerifying:
				minted++
				if p.Sealed.IsZero() || p.Work.Intent != "" {
					t.Errorf("minted with %+v, sealed %v", p.Work, !p.Sealed.IsZero())
				}
			case pool.PhasePlanned:
			default:
				t.Errorf("%s is %s with %+v", p.Key, p.Phase, p.Work)
			}
		}
		if minted != 1 || r.upstream.count("mint", "") != 1 || r.upstream.count("verify", "") != 0 {
			t.Errorf("%d keys are on record as minted, of %d; %d were verified", minted, r.upstream.count("mint", ""), r.upstream.count("verify", ""))
		}
		if locks := records[*pool.Lock](r, pool.KindLock); len(locks) != 0 {
			t.Errorf("locks are left: %v", locks)
		}
	})
}

// TestFinishInTime: what is not finished when there is no more time ends with Run's context.
func TestFinishInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withStock(1, 1))
		up := &slow{r.upstream, make(chan struct{}), make(chan struct{})}
		w := r.worker("r0", func(cfg *lifecycle.Config) { cfg.Providers = up })
		stop := r.run("r0", w)
		<-up.asked
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w.Finish(ctx)
		stop()
		if took := time.Since(began); took < time.Second || took > 2*time.Second {
			t.Errorf("stopped after %v, want one second", took)
		}
	})
}
