// Package version says which build this is. It is the one place that knows.
package version

import (
	"cmp"
	"runtime"
	"runtime/debug"
	"strings"
)

// version is set by the build: -ldflags "-X github.com/rotatord/rotatord/internal/version.version=v1.2.3". Without it
// the module's version, as the Go toolchain recorded it, is used.
var version string

// Info is what is known of the binary.
type Info struct {
	Version string `json:"version"`          // such as v1.2.3; "(devel)" without tags, "unknown" without build information
	Commit  string `json:"commit,omitempty"` // with "-dirty" if files were changed
	Go      string `json:"go"`               // such as go1.26.8
}

// Get returns what is known of this binary.
func Get() Info {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return Info{Version: cmp.Or(version, "unknown"), Go: runtime.Version()}
	}
	return from(version, build)
}

func from(stamped string, build *debug.BuildInfo) Info {
	info := Info{Version: cmp.Or(stamped, build.Main.Version, "(devel)"), Go: runtime.Version()}
	dirty := false
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Commit = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if info.Commit != "" && dirty {
		info.Commit += "-dirty"
	}
	return info
}

// String is one line, such as "v1.2.3 (commit 0123456789ab, go1.26.8)".
func (i Info) String() string {
	var details []string
	if i.Commit != "" {
		details = append(details, "commit "+i.Commit)
	}
	return i.Version + " (" + strings.Join(append(details, i.Go), ", ") + ")"
}

// String is Get's line.
func String() string { return Get().String() }
