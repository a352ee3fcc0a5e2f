package stat

import (
	"math"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, tc := range []struct {
		of   []int
		p    float64
		want int
	}{
		{nil, 0.5, 0},
		{[]int{7}, 0, 7},
		{[]int{7}, 0.999, 7},
		{[]int{1, 2}, 0.5, 1},
		{[]int{1, 2}, 0.51, 2},
		{[]int{1, 2, 3}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0.999, 100},
		{hundred, 1, 100},
	} {
		if got := Percentile(tc.of, tc.p); got != tc.want {
			t.Errorf("Percentile of %d values at %v is %d, want %d", len(tc.of), tc.p, got, tc.want)
		}
	}
}

func TestSpreadOf(t *testing.T) {
	for _, tc := range []struct {
		of   []float64
		want Spread
	}{
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{3, 1}, Spread{2, 1, 3}},
		{[]float64{9, 1, 2}, Spread{2, 1, 9}},
		{[]float64{4, 1, 3, 2}, Spread{2.5, 1, 4}},
	} {
		if got := SpreadOf(tc.of); got != tc.want {
			t.Errorf("SpreadOf(%v) is %v, want %v", tc.of, got, tc.want)
		}
	}
	if got := SpreadOf(nil); !math.IsNaN(got.Median) || !math.IsNaN(got.Min) || !math.IsNaN(got.Max) {
		t.Errorf("SpreadOf of nothing is %v, want NaN", got)
	}
}

func TestSpreadOfLeavesItsInput(t *testing.T) {
	values := []float64{3, 1, 2}
	SpreadOf(values)
	if values[0] != 3 || values[1] != 1 || values[2] != 2 {
		t.Errorf("SpreadOf changed its input to %v", values)
	}
}

func TestLatenciesOf(t *testing.T) {
	var durations []time.Duration
	for i := 1000; i > 0; i-- {
		durations = append(durations, time.Duration(i))
	}
	want := Latencies{P50: 500, P99: 990, P999: 999, Max: 1000}
	if got := LatenciesOf(durations); got != want {
		t.Errorf("LatenciesOf(1..1000) is %v, want %v", got, want)
	}
}
