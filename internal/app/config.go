// Package app joins the parts of rotatord into a running replica: it reads the configuration, sets up logging, and
// starts and stops everything in order.
//
// It promises that a configuration is checked as a whole before anything starts, and that nothing here prints a
// secret. It holds no logic of its own about keys and rotations.
package app

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rotatord/rotatord/internal/election"
	"github.com/rotatord/rotatord/internal/etcdembed"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/version"
)

// Config is a checked configuration. It holds no secrets, only the names of files with some.
type Config struct {
	Name          string // this replica's, unique among the replicas
	Listen        string // host:port of gRPC
	MetricsListen string // host:port of health and metrics

	// InsecureListen says that the operator accepts addresses beyond loopback without encryption or authentication.
	InsecureListen bool

	DataDir            string // of the embedded etcd
	EmbeddedEtcdListen string // host:port at which etcdctl reaches it

	EtcdPrefix    string   // starts and ends with '/'
	EtcdEndpoints []string // URLs, all http or all https; empty: etcd is embedded
	EtcdCACert    string   // files
	EtcdCert      string
	EtcdKey       string

	EtcdUser         string // "": no user
	EtcdPasswordFile string // line breaks at its end are not part of the password

	KeysetFile string // never empty

	ExecProviders []string // NAME=COMMAND, each name once
	AuditRelay    string   // where events are relayed to: "stdout", "file:" and a path, or "": nowhere

	SessionTTL      time.Duration
	ShutdownTimeout time.Duration

	LogFormat string // text or json
	LogLevel  string // debug, info, warn or error
}

// Embedded reports whether this replica runs etcd itself.
func (c *Config) Embedded() bool { return len(c.EtcdEndpoints) == 0 }

// ErrAnswered is returned by Parse when --help or --version was asked for and has been printed. There is nothing to run.
var ErrAnswered = errors.New("answered")

// Defaults that are not another package's.
const (
	defaultDataDir         = "./rotatord-data"
	defaultListen          = "127.0.0.1:7070"
	defaultMetricsListen   = "127.0.0.1:7071"
	defaultShutdownTimeout = 15 * time.Second
)

func defaults() *Config {
	return &Config{
		Listen:             defaultListen,
		MetricsListen:      defaultMetricsListen,
		DataDir:            defaultDataDir,
		EmbeddedEtcdListen: etcdembed.DefaultClientListen,
		EtcdPrefix:         etcdstore.DefaultPrefix,
		SessionTTL:         election.DefaultTTL,
		ShutdownTimeout:    defaultShutdownTimeout,
		LogFormat:          formatText,
		LogLevel:           "info",
	}
}

// Parse reads the configuration from flags, the environment ("NAME=value") and the file they name, in this order of
// precedence, and checks it as a whole: the error joins all problems, one a line. --help and --version are answered on
// stdout, and the error is ErrAnswered.
func Parse(args, environ []string, stdout io.Writer) (*Config, error) {
	cfg := defaults()
	o := newOptions(cfg)
	fromFlags, err := o.readFlags(args)
	switch {
	case err != nil:
		return nil, err
	case o.help:
		_, err := io.WriteString(stdout, o.usage())
		return nil, errors.Join(ErrAnswered, err)
	case o.version:
		_, err := fmt.Fprintln(stdout, "rotatord", version.String())
		return nil, errors.Join(ErrAnswered, err)
	}
	fromEnv, errs := o.readEnviron(environ)
	o.apply(fromFlags, fromEnv)
	if path := o.configFile; path != "" {
		fromFile, more := o.readFile(path)
		o.apply(fromFile)
		errs = append(errs, more...)
	}
	errs = append(errs, o.problems...)
	errs = append(errs, cfg.complete(o.given)...)
	return cfg, errors.Join(errs...)
}

// setting is what one source says about an option. A flag may be repeated, hence the values.
type setting struct {
	option string
	values []string
	origin string // how messages name it, such as "--listen" or "/etc/rotatord.yaml:3: listen"
}

// apply sets what no earlier source has set. The first to come is the strongest.
func (o *options) apply(sources ...[]setting) {
	for _, source := range sources {
		for _, s := range source {
			if _, taken := o.given[s.option]; taken {
				continue
			}
			o.given[s.option] = s.origin
			o.set(s)
		}
	}
}

func (o *options) set(s setting) {
	flag := o.flags.Lookup(s.option)
	for _, value := range s.values {
		if err := flag.Value.Set(value); err != nil {
			o.problems = append(o.problems, fmt.Errorf("%s: %q is not %s", s.origin, value, wanted(flag)))
			_ = flag.Value.Set(flag.DefValue) // pflag may have set a zero, which would look like a second problem
		}
	}
}

// complete fills in the defaults that depend on something, and checks everything.
func (c *Config) complete(given map[string]string) []error {
	if c.Name == "" {
		c.Name, _ = os.Hostname() // without one the check asks for --name
	}
	if c.KeysetFile == "" && c.Embedded() {
		c.KeysetFile = filepath.Join(c.DataDir, "keyset.json")
	}
	ck := checker{cfg: c, given: given}
	ck.all()
	return ck.problems
}
