package pool_test

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/rotatord/rotatord/internal/pool"
)

func TestNamesFollowTheRule(t *testing.T) {
	rule := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$`)
	rng := rand.New(rand.NewPCG(1, 2))
	check := func(name string) {
		t.Helper()
		if got, want := pool.CheckName(name) == "", rule.MatchString(name); got != want {
			t.Errorf("CheckName(%q) accepts it: %v, the rule: %v", name, got, want)
		}
	}
	for _, n := range []int{0, 1, 127, 128, 129} {
		check(strings.Repeat("a", n))
	}
	for range 20000 {
		name := make([]byte, rng.IntN(6))
		for i := range name {
			name[i] = byte(rng.IntN(256))
		}
		check(string(name))
		for i := range name {
			name[i] = "aZ09._:@-/ é\n"[rng.IntN(14)]
		}
		check(string(name))
	}
}

func TestClip(t *testing.T) {
	for _, c := range []struct {
		text string
		max  int
		want string
	}{
		{"short", 5, "short"},
		{"longer", 5, "longe"},
		{"aaaaü", 5, "aaaa"}, // ü has two bytes
		{"\xbf\xbf\xbf", 2, ""},
	} {
		if got := pool.Clip(c.text, c.max); got != c.want {
			t.Errorf("Clip(%q, %d) = %q, want %q", c.text, c.max, got, c.want)
		}
	}
}
