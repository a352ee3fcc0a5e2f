package version

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFrom(t *testing.T) {
	build := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123"}
	for _, c := range []struct {
		name    string
		stamped string
		build   *debug.BuildInfo
		want    Info
		line    string
	}{
		{"stamped wins", "v9", build("v1.0.0"), Info{Version: "v9"}, "v9 (" + runtime.Version() + ")"},
		{"module version", "", build("v1.0.0", commit), Info{Version: "v1.0.0", Commit: "0123"}, "v1.0.0 (commit 0123, " + runtime.Version() + ")"},
		{"nothing known", "", build(""), Info{Version: "(devel)"}, "(devel) (" + runtime.Version() + ")"},
		{
			"changed files", "v9", build("", commit, debug.BuildSetting{Key: "vcs.modified", Value: "true"}),
			Info{Version: "v9", Commit: "0123-dirty"}, "v9 (commit 0123-dirty, " + runtime.Version() + ")",
		},
	} {
		c.want.Go = runtime.Version()
		got := from(c.stamped, c.build)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
		if got.String() != c.line {
			t.Errorf("%s: String() = %q, want %q", c.name, got.String(), c.line)
		}
	}
}

func TestGet(t *testing.T) {
	if got := Get(); got.Version == "" || got.Go != runtime.Version() {
		t.Errorf("Get() = %+v, want a version and Go %s", got, runtime.Version())
	}
}
