package pool_test

import (
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

// Apply goes by a transaction's last moment.
func TestApplyNotAfter(t *testing.T) {
	for name, tt := range map[string]struct {
		notAfter time.Time
		want     pool.Reason
	}{
		"at any time": {time.Time{}, ""}, "in time": {time.Now().Add(time.Hour), ""}, "too late": {time.Now().Add(-time.Second), pool.ReasonNotApplied},
	} {
		store := pooltest.NewMemStore()
		txn := &pool.Txn{Put: []pool.Record{&pool.Pool{Name: "p"}}, NotAfter: tt.notAfter}
		_, err := pool.Apply(t.Context(), store, txn, func(int, error) {})
		if got := pool.ReasonOf(err); err == nil && tt.want != "" || err != nil && got != tt.want {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
