package telemetry

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/rotatord/rotatord/internal/pool"
)

// Bounds of what is kept and logged between two looks, whatever callers send.
const (
	maxLives   = 64
	maxCallers = 8 // of one life
)

// sums counts the calls that are not worth a line each, by the life they are about.
type sums struct {
	mu     sync.Mutex // protects the following fields
	lives  map[pool.Life]*sum
	beyond int // calls about lives that found no room
}

type sum struct {
	calls    int
	outcomes map[string]int
	callers  map[caller]int
	beyond   int // calls of callers that found no room
}

// caller is who called, as far as a caller says.
type caller struct{ trigger, source string }

func (s *sums) add(l pool.Life, c caller, outcome string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.lives[l]
	if of == nil {
		if len(s.lives) >= maxLives {
			s.beyond++
			return
		}
		if s.lives == nil {
			s.lives = make(map[pool.Life]*sum)
		}
		of = &sum{outcomes: make(map[string]int), callers: make(map[caller]int)}
		s.lives[l] = of
	}
	of.add(c, outcome)
}

func (s *sum) add(c caller, outcome string) {
	s.calls++
	s.outcomes[outcome]++
	if _, known := s.callers[c]; !known && len(s.callers) >= maxCallers {
		s.beyond++
		return
	}
	s.callers[c]++
}

// take gives what was counted and begins anew.
func (s *sums) take() (lives map[pool.Life]*sum, beyond int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lives, beyond = s.lives, s.beyond
	s.lives, s.beyond = nil, 0
	return lives, beyond
}

// log writes a line for each life, most calls first, and begins anew.
func (s *sums) log(to *slog.Logger) {
	lives, beyond := s.take()
	for _, l := range mostFirst(lives, func(s *sum) int { return s.calls }, compareLives) {
		of := lives[l]
		fields := life(l, "calls", of.calls, of.outcomeGroup(), "from", of.from())
		if of.beyond > 0 {
			fields = append(fields, "from_others", of.beyond)
		}
		to.Info("calls answered without a rotation of their own", fields...)
	}
	if beyond > 0 {
		to.Info("more calls answered without a rotation of their own", "calls", beyond, "beyond_keys", maxLives)
	}
}

func compareLives(a, b pool.Life) int {
	return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Generation, b.Generation))
}

// mostFirst sorts a map's keys by a number, largest first, and then by order.
func mostFirst[K comparable, V any](m map[K]V, number func(V) int, order func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), func(a, b K) int {
		return cmp.Or(cmp.Compare(number(m[b]), number(m[a])), order(a, b))
	})
}

func itself(n int) int { return n }

func (s *sum) outcomeGroup() slog.Attr {
	var counts []any
	for _, name := range mostFirst(s.outcomes, itself, cmp.Compare) {
		counts = append(counts, slog.Int(name, s.outcomes[name]))
	}
	return slog.Group("outcomes", counts...)
}

func (s *sum) from() (list callers) {
	order := func(a, b caller) int {
		return cmp.Or(cmp.Compare(a.trigger, b.trigger), cmp.Compare(a.source, b.source))
	}
	for _, c := range mostFirst(s.callers, itself, order) {
		list = append(list, callerCount{c.trigger, c.source, s.callers[c]})
	}
	return list
}

// callers is a list of objects in JSON and one readable value in text.
type callers []callerCount

type callerCount struct {
	Trigger string `json:"trigger"`
	Source  string `json:"source,omitempty"`
	Calls   int    `json:"calls"`
}

// String is such as "provider/openhands=120 pool=79". A source that would not read as one word is quoted.
func (c callers) String() string {
	parts := make([]string, len(c))
	for i, one := range c {
		source := one.Source
		if strings.ContainsFunc(source, ambiguous) {
			source = strconv.Quote(source)
		}
		if source != "" {
			source = "/" + source
		}
		parts[i] = fmt.Sprintf("%s%s=%d", one.Trigger, source, one.Calls)
	}
	return strings.Join(parts, " ")
}

func ambiguous(r rune) bool {
	return r <= ' ' || r == '=' || r == '"' || r == '\\' || !strconv.IsPrint(r)
}
