package ctl

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func TestState(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	c := &cli{sys: System{Now: func() time.Time { return now }}}
	for _, tt := range []struct {
		key  *rotatorv1.Key
		want string
	}{
		{&rotatorv1.Key{Status: rotatorv1.KeyStatus_KEY_STATUS_HEALTHY}, "healthy"},
		{&rotatorv1.Key{Status: rotatorv1.KeyStatus_KEY_STATUS_RATE_LIMITED, StatusUntil: in(43 * time.Second)}, "rate-limited 43s"},
		{&rotatorv1.Key{Status: rotatorv1.KeyStatus_KEY_STATUS_RATE_LIMITED, StatusUntil: in(-time.Second)}, "healthy"},
		{&rotatorv1.Key{Status: rotatorv1.KeyStatus_KEY_STATUS_EXHAUSTED, Pending: true}, "exhausted [PENDING: waits for a backup]"},
		{&rotatorv1.Key{Home: rotatorv1.KeyHome_KEY_HOME_BACKUP}, ""},
		{&rotatorv1.Key{Home: rotatorv1.KeyHome_KEY_HOME_RETIRED, Phase: rotatorv1.KeyPhase_KEY_PHASE_RETIRED}, ""},
		{&rotatorv1.Key{Home: rotatorv1.KeyHome_KEY_HOME_RETIRED, Phase: rotatorv1.KeyPhase_KEY_PHASE_REVOKING, NextTryAt: in(2 * time.Minute)}, "revoking, next try in 2m"},
		{&rotatorv1.Key{Home: rotatorv1.KeyHome_KEY_HOME_RETIRED, Phase: rotatorv1.KeyPhase_KEY_PHASE_ORPHANED}, "orphaned"},
		{&rotatorv1.Key{Phase: rotatorv1.KeyPhase_KEY_PHASE_MINTING, NextTryAt: in(-time.Minute)}, "minting"},
	} {
		if got := c.state(tt.key); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.key, got, tt.want)
		}
	}
}

func TestSpend(t *testing.T) {
	usd := func(n float64) *float64 { return &n }
	for _, tt := range []struct {
		spend, budget *float64
		want          string
	}{
		{nil, nil, ""},
		{nil, usd(10), ""},
		{usd(9.97), nil, "$9.97"},
		{usd(9.97), usd(0), "$9.97"},
		{usd(0), usd(10), "0.00/10.00 [----------]"},
		{usd(9.4), usd(10), "9.40/10.00 [#########-]"},
		{usd(10), usd(10), "10.00/10.00 [##########]"},
		{usd(30), usd(10), "30.00/10.00 [##########]"},
		{usd(0.3), usd(2.5), "0.30/2.50 [#---------]"},
	} {
		if got := spend(&rotatorv1.Key{SpendUsd: tt.spend, BudgetUsd: tt.budget}); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
