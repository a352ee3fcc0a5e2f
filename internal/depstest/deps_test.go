// Package depstest states which imports are forbidden, each with its reason.
//
// Tests may import what they like; only what is built is looked at.
package depstest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/rotatord/rotatord"

// rules forbid imports, direct or by way of others. A path that starts with "./" is ours; one that ends in "/" stands for
// all below it.
var rules = []struct {
	of      string
	never   []string
	because string
}{
	{"./internal/pool", []string{"go.etcd.io/", "google.golang.org/", "./proto/", "github.com/prometheus/", "net/http"},
		"the domain decides in its own terms, so that it can be read and tested without a server"},
	{"./internal/election", []string{"./internal/pool", "./proto/"},
		"a campaign knows nothing of what is locked: safety must not come to rest on the lock"},
	{"./internal/etcdstore", []string{"./internal/grpcapi", "./internal/election", "./internal/app"},
		"the store carries transactions out; it neither decides nor locks"},
	{"./internal/grpcapi", []string{"go.etcd.io/", "./internal/etcdstore", "./internal/election"},
		"handlers translate; what they need of the world comes through the domain"},
	{"./internal/seal", []string{"go.etcd.io/", "google.golang.org/grpc"},
		"sealing has no business with where the sealed secret goes"},
	{"./internal/upstream", []string{"go.etcd.io/", "google.golang.org/", "./internal/", "./proto/"},
		"what an answer means for a key depends on the answer alone, so that it can be told without a server"},
	{"./internal/app", []string{"./internal/upstream/upstreamtest"},
		"the fake upstream is for tests and the demo, not for what users run"},
	{"./internal/lifecycle", []string{"go.etcd.io/", "google.golang.org/", "./proto/", "net/http", "os/exec"},
		"phases decide and write; who asks an upstream, and how, is not theirs"},
	{"./internal/provider", []string{"go.etcd.io/", "google.golang.org/grpc", "./internal/lifecycle"},
		"a provider makes calls; when, and what for, is decided elsewhere"},
	{"./internal/spend", []string{"go.etcd.io/", "google.golang.org/", "./proto/"},
		"whose turn it is to check, and what becomes of a rotation, is decided elsewhere"},
	{"./internal/etcdwire", []string{"./internal/", "./proto/"},
		"how a transaction is sent is independent of what it is for"},
	{"./internal/etcdembed", []string{"./internal/"},
		"running etcd is independent of what is kept in it"},
	{"./internal/ctl", []string{"go.etcd.io/", "./internal/pool", "./internal/app", "./internal/etcdstore"},
		"the command line is a client like any other: what it can do, the API can"},
	{"./cmd/rotatorctl", []string{"go.etcd.io/etcd/server/v3/", "./internal/app"},
		"the operator's tool stays small and does not carry the server"},
	{"./proto/rotator/v1", []string{"./internal/", "./cmd/", "go.etcd.io/", "./proto/rotator/storage/"},
		"clients build on the contract alone"},
}

// neighbours are the imports between siblings that are wanted. All other packages of internal/ are joined by app.
var neighbours = map[string][]string{
	"./internal/app":   {"./internal/"},         // the wiring
	"./internal/ctl":   {"./internal/upstream"}, // explains a verdict without a server
	"./internal/spend": {"./internal/upstream"}, // reads what upstreams say

	"./internal/provider": {"./internal/upstream"}, // asks LiteLLM

	"./internal/etcdstore": {"./internal/etcdwire"}, // sends what it has made of the domain's transactions
	"./internal/election":  {"./internal/etcdwire"}, // sends its campaigns the same way
}

// common is what every package of internal/ may import.
var common = []string{"./internal/pool", "./internal/specpb", "./internal/cloudevent", "./internal/version"}

func TestForbiddenImports(t *testing.T) {
	g := load(t)
	for _, r := range rules {
		if g[full(r.of)] == nil {
			t.Errorf("the rule for %s (%s) is about a package that does not exist", r.of, r.because)
			continue
		}
		for _, path := range g.reach(full(r.of)) {
			if target := path[len(path)-1]; matches(r.never, target) && !within(r.of, target) {
				t.Errorf("%s must not import %s: %s\nthe way there: %s", r.of, short(target), r.because, chain(path))
			}
		}
	}
}

func TestSiblings(t *testing.T) {
	g := load(t)
	for name, p := range g {
		own := short(name)
		if !strings.HasPrefix(own, "./internal/") {
			continue
		}
		allowed := slices.Concat(common, neighbours[family(own)])
		for _, to := range p.Imports {
			other := short(to)
			if !strings.HasPrefix(other, "./internal/") || family(other) == family(own) || matches(allowed, to) {
				continue
			}
			t.Errorf("%s must not import %s: packages of internal/ know the domain and not each other; internal/app joins them", own, other)
		}
	}
}

func TestAppIsImportedByCommandsOnly(t *testing.T) {
	for name, p := range load(t) {
		if slices.Contains(p.Imports, full("./internal/app")) && !within("./internal/app", name) && !within("./cmd", name) {
			t.Errorf("%s must not import internal/app: it imports everything, so only the commands may import it", short(name))
		}
	}
}

// testing registers flags and keeps test code in what users run.
func TestTestingReachesNoBinary(t *testing.T) {
	g := load(t)
	for name := range g {
		if !within("./cmd", name) {
			continue
		}
		for _, path := range g.reach(name) {
			if target := path[len(path)-1]; target == "testing" || strings.HasPrefix(target, "testing/") {
				t.Errorf("%s must not reach %s: it belongs into tests\nthe way there: %s", short(name), target, chain(path))
			}
		}
	}
}

// listed is what we use of an entry of go list.
type listed struct {
	ImportPath string
	Imports    []string
}

type graph map[string]*listed

// load reads all packages that our own are built of.
func load(t *testing.T) graph {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports", "./cmd/...", "./internal/...", "./proto/...")
	cmd.Dir = "../.."
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, problems.String())
	}
	g := make(graph)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := new(listed)
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			return g
		} else if err != nil {
			t.Fatalf("reading what go list prints: %v", err)
		}
		g[p.ImportPath] = p
	}
}

// reach lists a shortest way from a package to each it imports, directly or not.
func (g graph) reach(from string) (paths [][]string) {
	seen := map[string]bool{from: true}
	for queue := [][]string{{from}}; len(queue) > 0; queue = queue[1:] {
		path := queue[0]
		if len(path) > 1 {
			paths = append(paths, path)
		}
		p := g[path[len(path)-1]]
		if p == nil { // "C", or an import that is vendored in the standard library
			continue
		}
		for _, to := range p.Imports {
			if !seen[to] {
				seen[to] = true
				queue = append(queue, append(slices.Clone(path), to))
			}
		}
	}
	return paths
}

// full is the import path of a package of ours.
func full(name string) string { return module + strings.TrimPrefix(name, ".") }

// short is how the rules write an import path. The standard library has packages below internal/ too, hence the "./".
func short(path string) string {
	if rest, ours := strings.CutPrefix(path, module+"/"); ours {
		return "./" + rest
	}
	return path
}

// family is a package with all below it: ./internal/ctl for ./internal/ctl/mongoexport.
func family(name string) string {
	parts := strings.SplitN(name, "/", 4)
	return strings.Join(parts[:min(3, len(parts))], "/")
}

func within(root, path string) bool {
	return short(path) == root || strings.HasPrefix(short(path), root+"/")
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return short(path) == p || strings.HasSuffix(p, "/") && strings.HasPrefix(short(path), p)
	})
}

func chain(path []string) string {
	names := make([]string, len(path))
	for i, p := range path {
		names[i] = short(p)
	}
	return strings.Join(names, " -> ")
}
