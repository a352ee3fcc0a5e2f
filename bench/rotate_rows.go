package main

import "slices"

// targets of rotations, by callers.
var (
	latencyTargets = map[int]*target{1: atMost(2.4, 2.0)}
	rateTargets    = map[int]map[int]*target{ // by members of etcd
		1: {64: atLeast(0.70, 0.9), 256: atLeast(0.85, 1.0)},
		3: {64: atLeast(0.60, 0.9), 256: atLeast(0.80, 1.0)},
	}
	slowTargets    = map[int]*target{64: atLeast(0.50, 0.8)}
	onePoolTargets = map[int]*target{64: atLeast(0.8, 0.95), 256: atLeast(0.8, 0.95)}
)

// rotateRows compares what was measured in a cell. The targets are for many pools; one pool is held against those.
func (b *bench) rotateRows(c cell) {
	r := b.report
	var rates, latencies [][]float64
	for _, n := range rawConnections {
		rates = append(rates, r.values(c.rawName(n), rate))
		latencies = append(latencies, r.values(c.rawName(n), p50))
	}
	bestRates := best(rates, func(v ...float64) float64 { return slices.Max(v) })
	bestLatencies := best(latencies, func(v ...float64) float64 { return slices.Min(v) })
	for _, f := range b.figures(c) {
		own := r.values(f.name(), rate)
		r.compare(f.name()+": rate over raw", perSecond, own, bestRates, f.rateTarget())
		if c.callers == 1 {
			r.compare(f.name()+": p50 over raw", duration, r.values(f.name(), p50), bestLatencies, f.latencyTarget())
		}
		if many := (figure{c, f.replicas, poolsMany}); f.pools == poolsOne {
			r.compare(f.name()+": rate over many pools", perSecond, own, r.values(many.name(), rate), f.onePoolTarget())
		}
	}
}

// latencyTarget is that of the ordinary disk; on a slow one two writes take two syncs, whatever is done.
func (f figure) latencyTarget() *target {
	if f.disk == diskSlow || f.pools == poolsOne {
		return nil
	}
	return latencyTargets[f.callers]
}

func (f figure) rateTarget() *target {
	switch {
	case f.pools == poolsOne:
		return nil
	case f.disk == diskSlow:
		return slowTargets[f.callers]
	}
	return rateTargets[f.members][f.callers]
}

func (f figure) onePoolTarget() *target {
	if f.disk == diskSlow {
		return nil
	}
	return onePoolTargets[f.callers]
}
