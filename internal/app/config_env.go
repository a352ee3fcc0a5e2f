package app

import (
	"fmt"
	"strings"
)

const envPrefix = "ROTATORD_"

// envName is how an option is called in the environment.
func envName(option string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
}

// readEnviron collects the settings of the environment. A variable that looks like ours and is not is an error: a typing
// mistake must not be a silent default.
func (o *options) readEnviron(environ []string) (settings []setting, problems []error) {
	byName := o.envNames()
	injected := kubernetesServices(environ)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		option, known := byName[name]
		switch {
		case !strings.HasPrefix(name, envPrefix):
		case known && value == "": // as good as unset: templates for deployments leave it so
		case known:
			settings = append(settings, setting{option, []string{value}, name})
		case !injected.made(name):
			problems = append(problems, o.unknownVariable(name, byName))
		}
	}
	return settings, problems
}

func (o *options) envNames() map[string]string {
	names := make(map[string]string)
	for _, option := range o.names() {
		if option != optHelp && option != optVersion {
			names[envName(option)] = option
		}
	}
	return names
}

func (o *options) unknownVariable(name string, known map[string]string) error {
	var candidates []string
	for _, option := range o.names() {
		if env := envName(option); known[env] != "" {
			candidates = append(candidates, strings.TrimPrefix(env, envPrefix))
		}
	}
	return fmt.Errorf("environment variable %s is not known%s; rotatord --help lists the flags, each of which is also a variable",
		name, didYouMean(envPrefix, nearest(strings.TrimPrefix(name, envPrefix), candidates)))
}

// services are the prefixes of variables that Kubernetes gives every container for the services of its namespace. A
// service called rotatord, or rotatord-something, gets variables that look like ours.
type services []string

// kubernetesServices finds the services whose names start with rotatord: of each there is a _SERVICE_HOST and a
// _SERVICE_PORT.
func kubernetesServices(environ []string) services {
	found := services{"ROTATORD"}
	there := make(map[string]bool)
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		there[name] = true
	}
	for name := range there {
		service, ok := strings.CutSuffix(name, "_SERVICE_HOST")
		if ok && strings.HasPrefix(service, envPrefix) && there[service+"_SERVICE_PORT"] {
			found = append(found, service)
		}
	}
	return found
}

// made reports whether Kubernetes makes a variable of this name for one of the services.
func (s services) made(name string) bool {
	for _, service := range s {
		rest, ok := strings.CutPrefix(name, service+"_")
		if !ok {
			continue
		}
		if rest == "SERVICE_HOST" || isOrExtends(rest, "SERVICE_PORT") || isOrExtends(rest, "PORT") {
			return true
		}
	}
	return false
}

func isOrExtends(name, base string) bool { return name == base || strings.HasPrefix(name, base+"_") }

// didYouMean is part of a message, empty without a suggestion.
func didYouMean(prefix, name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s%s?)", prefix, name)
}

// nearest is the candidate that begins with name or else has the fewest differences from it, "" if all are far from it.
func nearest(name string, candidates []string) string {
	best, least := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		if len(name) > 2 && strings.HasPrefix(c, name) {
			return c
		}
		if d := distance(name, c); d < least {
			best, least = c, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
