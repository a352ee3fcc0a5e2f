// Package stat reduces what was measured to a few numbers.
package stat

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Percentile is the smallest value that is not below a share p (0 to 1) of all, by the nearest rank. sorted must be
// sorted; of nothing it is 0.
func Percentile[T cmp.Ordered](sorted []T, p float64) T {
	var none T
	if len(sorted) == 0 {
		return none
	}
	rank := int(math.Ceil(p * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Spread is how values of several rounds lie.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// SpreadOf is the spread of values, in any order. The median of an even number is the mean of the two in the middle. Of
// nothing all are NaN.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{math.NaN(), math.NaN(), math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

// Latencies are the percentiles that are shown.
type Latencies struct {
	P50  time.Duration `json:"p50"`
	P99  time.Duration `json:"p99"`
	P999 time.Duration `json:"p999"`
	Max  time.Duration `json:"max"`
}

// LatenciesOf sorts durations and takes their percentiles.
func LatenciesOf(durations []time.Duration) Latencies {
	slices.Sort(durations)
	return Latencies{
		P50: Percentile(durations, 0.5), P99: Percentile(durations, 0.99), P999: Percentile(durations, 0.999), Max: Percentile(durations, 1),
	}
}
