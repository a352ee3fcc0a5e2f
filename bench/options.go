package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are what the command line says.
type options struct {
	only     []string
	time     time.Duration
	rounds   int
	etcd     []int
	disk     []string
	callers  []int
	replicas []int
	pools    []string
	quick    bool
	json     string
	rotatord string
	dir      string
	pprof    string
	strict   bool
	keep     bool
}

const (
	diskNormal = "normal"
	diskSlow   = "slow"
	poolsMany  = "many"
	poolsOne   = "one"
)

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.DurationVar(&o.time, "time", 10*time.Second, "how long each measurement lasts")
	f.IntVar(&o.rounds, "rounds", 3, "how often each is made; medians are compared")
	f.BoolVar(&o.quick, "quick", false, "a smoke test of half a minute: short, one round, a part of the rows; its figures mean little")
	f.StringVar(&o.json, "json", os.Getenv("BENCH_JSON"), "file to write the figures to (default: $BENCH_JSON, if that is set)")
	f.StringVar(&o.rotatord, "rotatord", "", "the program to measure (default: ./cmd/rotatord is built)")
	f.StringVar(&o.dir, "dir", "bin", "directory of the data, which decides what disk is measured; the run makes one of its own in it")
	f.StringVar(&o.pprof, "pprof", "", "directory to write profiles of replicas and etcd to; the program is then built from ./bench/rotatord")
	f.BoolVar(&o.strict, "strict", false, "exit with 1 if a needed figure is missed")
	f.BoolVar(&o.keep, "keep", false, "keep the logs")
	o.lists(f)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q is no flag", f.Arg(0))
	}
	if o.quick {
		o.shorten(f)
	}
	return o, o.check()
}

func (o *options) lists(f *flag.FlagSet) {
	o.etcd, o.replicas, o.callers = []int{1, 3}, []int{1, 3}, []int{1, 8, 64, 256}
	o.disk, o.pools = []string{diskNormal, diskSlow}, []string{poolsMany, poolsOne}
	f.Func("only", "comma-separated rows to measure, each "+strings.Join(scenarioNames(), ", ")+" or the beginning of one (default: all)",
		words(&o.only, scenarioNames()))
	f.Func("etcd", "comma-separated numbers of etcd members, for rotate (default 1,3)", numbers(&o.etcd))
	f.Func("replicas", "comma-separated numbers of replicas, for rotate (default 1,3)", numbers(&o.replicas))
	f.Func("c", "comma-separated numbers of calls at a time (default 1,8,64,256)", numbers(&o.callers))
	f.Func("disk", "comma-separated: normal, and slow, with every sync of etcd's WAL slowed by 2 ms (default normal,slow)", words(&o.disk, o.disk))
	f.Func("pools", "comma-separated: many, and one, for rotate (default many,one)", words(&o.pools, o.pools))
}

func words(to *[]string, known []string) func(string) error {
	return func(text string) error {
		*to = strings.Split(text, ",")
		for _, word := range *to {
			if !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, word) }) {
				return fmt.Errorf("%q is none of %s", word, strings.Join(known, ", "))
			}
		}
		return nil
	}
}

func numbers(to *[]int) func(string) error {
	return func(text string) error {
		*to = nil
		for word := range strings.SplitSeq(text, ",") {
			n, err := strconv.Atoi(word)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is not a number of at least 1", word)
			}
			*to = append(*to, n)
		}
		return nil
	}
}

// shorten sets what -quick means, but for the flags that were given.
func (o *options) shorten(f *flag.FlagSet) {
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, set := range map[string]func(){
		"time": func() { o.time = time.Second }, "rounds": func() { o.rounds = 1 }, "etcd": func() { o.etcd = []int{1} },
		"replicas": func() { o.replicas = []int{1} }, "c": func() { o.callers = []int{64} }, "disk": func() { o.disk = []string{diskNormal} },
		"pools": func() { o.pools = []string{poolsMany} },
	} {
		if !given[name] {
			set()
		}
	}
}

func (o *options) check() error {
	switch {
	case o.time < 100*time.Millisecond:
		return fmt.Errorf("-time %v is too short to measure anything", o.time)
	case o.rounds < 1:
		return fmt.Errorf("-rounds %d measures nothing", o.rounds)
	case o.pprof != "" && o.rotatord != "":
		return fmt.Errorf("-pprof and -rotatord exclude each other: %s serves no profiles", o.rotatord)
	}
	return nil
}

// wants reports whether a row is to be measured.
func (o *options) wants(scenario string) bool {
	return len(o.only) == 0 || slices.ContainsFunc(o.only, func(only string) bool { return strings.HasPrefix(scenario, only) })
}

// warmUp is how long load runs before a measurement.
func (o *options) warmUp() time.Duration { return max(o.time/10, 300*time.Millisecond) }
