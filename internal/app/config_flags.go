package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// The options by name: the same in flags, in the environment (in another spelling) and in the file.
const (
	optConfig             = "config"
	optHelp               = "help"
	optVersion            = "version"
	optName               = "name"
	optDataDir            = "data-dir"
	optEmbeddedEtcdListen = "embedded-etcd-listen"
	optListen             = "listen"
	optMetricsListen      = "metrics-listen"
	optInsecureListen     = "insecure-listen"
	optEtcdPrefix         = "etcd-prefix"
	optEtcdEndpoints      = "etcd-endpoints"
	optEtcdCACert         = "etcd-cacert"
	optEtcdCert           = "etcd-cert"
	optEtcdKey            = "etcd-key"
	optEtcdUser           = "etcd-user"
	optEtcdPasswordFile   = "etcd-password-file"
	optKeysetFile         = "keyset-file"
	optExecProvider       = "exec-provider"
	optSessionTTL         = "session-ttl"
	optShutdownTimeout    = "shutdown-timeout"
	optAuditRelay         = "audit-relay"
	optLogFormat          = "log-format"
	optLogLevel           = "log-level"
)

// options are the flags, which are also the table of what the other sources may set.
type options struct {
	flags  *pflag.FlagSet
	groups []group

	help       bool
	version    bool
	configFile string

	given    map[string]string // option to the origin of its value
	problems []error
}

type group struct {
	title string
	flags *pflag.FlagSet
}

func newOptions(cfg *Config) *options {
	o := &options{flags: pflag.NewFlagSet("rotatord", pflag.ContinueOnError), given: make(map[string]string)}
	o.group("General", o.general(cfg))
	o.group("Listening", listening(cfg))
	o.group("Embedded etcd (the default)", embedded(cfg))
	o.group("External etcd", external(cfg))
	o.group("Coordination", coordination(cfg))
	o.group("Keys", keyFlags(cfg))
	o.group("Audit", auditFlags(cfg))
	o.group("Log", logFlags(cfg))
	return o
}

func (o *options) group(title string, flags *pflag.FlagSet) {
	flags.SortFlags = false
	o.groups = append(o.groups, group{title, flags})
	o.flags.AddFlagSet(flags)
}

func newGroup() *pflag.FlagSet { return pflag.NewFlagSet("", pflag.ContinueOnError) }

func (o *options) general(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.StringVar(&o.configFile, optConfig, "", "`FILE` in YAML whose keys are the names of these flags")
	f.StringVar(&cfg.Name, optName, cfg.Name, "`NAME` of this replica, unique among the replicas (default: the host name)")
	f.StringVar(&cfg.KeysetFile, optKeysetFile, cfg.KeysetFile, "`FILE` with the keyset that seals the secrets; the same for all replicas.\n"+
		"Default with embedded etcd: keyset.json in the data directory, made at the first start.\nRequired with --etcd-endpoints")
	f.BoolVarP(&o.help, optHelp, "h", false, "print this and exit")
	f.BoolVar(&o.version, optVersion, false, "print the version and exit")
	return f
}

func listening(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.StringVar(&cfg.Listen, optListen, cfg.Listen, "`HOST:PORT` of the gRPC API")
	f.StringVar(&cfg.MetricsListen, optMetricsListen, cfg.MetricsListen, "`HOST:PORT` of /livez, /readyz and /metrics")
	f.BoolVar(&cfg.InsecureListen, optInsecureListen, false, "listen beyond loopback WITHOUT encryption or authentication:\n"+
		"anyone who can reach the port can read the keys and rotate them")
	return f
}

func embedded(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.StringVar(&cfg.DataDir, optDataDir, cfg.DataDir, "`DIRECTORY` of etcd's data; one rotatord at a time may use it")
	f.StringVar(&cfg.EmbeddedEtcdListen, optEmbeddedEtcdListen, cfg.EmbeddedEtcdListen, "`HOST:PORT` at which etcdctl reaches it")
	return f
}

func external(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.Var(&list{to: &cfg.EtcdEndpoints}, optEtcdEndpoints, "comma-separated list `A,B,C` of etcd members, each host:port or a URL. Turns the embedded etcd off")
	f.StringVar(&cfg.EtcdCACert, optEtcdCACert, "", "`FILE` with the CA certificates that etcd's are checked against (default: the system's)")
	f.StringVar(&cfg.EtcdCert, optEtcdCert, "", "`FILE` with this replica's client certificate")
	f.StringVar(&cfg.EtcdKey, optEtcdKey, "", "`FILE` with its private key")
	f.StringVar(&cfg.EtcdUser, optEtcdUser, "", "`NAME` of the etcd user")
	f.StringVar(&cfg.EtcdPasswordFile, optEtcdPasswordFile, "", "`FILE` with that user's password")
	return f
}

func coordination(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.StringVar(&cfg.EtcdPrefix, optEtcdPrefix, cfg.EtcdPrefix, "`PREFIX` of everything rotatord keeps in etcd")
	f.DurationVar(&cfg.SessionTTL, optSessionTTL, cfg.SessionTTL, "`TIME` after which etcd forgets a replica that died; at least "+minSessionTTL.String())
	f.DurationVar(&cfg.ShutdownTimeout, optShutdownTimeout, cfg.ShutdownTimeout, "longest `TIME` a graceful stop may take")
	return f
}

func keyFlags(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.Var(&list{to: &cfg.ExecProviders, whole: true}, optExecProvider, "`NAME=COMMAND` that mints and revokes keys for pools with that exec provider; it is\n"+
		"split at white space, without a shell. May be repeated; the same on all replicas")
	return f
}

func auditFlags(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.StringVar(&cfg.AuditRelay, optAuditRelay, "", "append all audit events as JSON lines to `TARGET`: file: and an absolute path, or stdout;\n"+
		"one replica at a time does it, at least once for each event. Default: no relay")
	return f
}

func logFlags(cfg *Config) *pflag.FlagSet {
	f := newGroup()
	f.Var(&choice{&cfg.LogFormat, []string{formatText, formatJSON}}, optLogFormat, "format of the log, which goes to the standard error")
	f.Var(&choice{&cfg.LogLevel, []string{"debug", "info", "warn", "error"}}, optLogLevel, "least level that is logged")
	return f
}

const usageHead = `rotatord makes one rotation of any number of triggers for a dead key.

Usage:
  rotatord [flags]

`

const usageTail = `Every flag but --config, --help and --version can also be a key of the --config file, and every flag but --help and
--version an environment variable: --session-ttl is ROTATORD_SESSION_TTL. An empty variable counts as not set.
A flag wins over the environment, the environment over the file, the file over the default.

Exit codes: 0 stopped as asked, 1 failed or stopped by a second signal, 2 wrong flags or configuration.
`

func (o *options) usage() string {
	var b strings.Builder
	b.WriteString(usageHead)
	for _, g := range o.groups {
		fmt.Fprintf(&b, "%s:\n%s\n", g.title, g.flags.FlagUsages())
	}
	b.WriteString(usageTail)
	return b.String()
}

// readFlags collects the flags' values without setting them, so that a wrong value is reported beside all others.
// --help and --version are set at once.
func (o *options) readFlags(args []string) ([]setting, error) {
	var settings []setting
	err := o.flags.ParseAll(args, func(f *pflag.Flag, value string) error {
		if f.Name == optHelp || f.Name == optVersion {
			return f.Value.Set(value)
		}
		i := slices.IndexFunc(settings, func(s setting) bool { return s.option == f.Name })
		if i < 0 {
			settings = append(settings, setting{f.Name, []string{value}, "--" + f.Name})
			return nil
		}
		settings[i].values = append(settings[i].values, value)
		return nil
	})
	switch {
	case err != nil:
		return nil, o.explain(err)
	case o.flags.NArg() > 0 && !o.help && !o.version:
		// What they are is not said: it may be a password that somebody tried to give.
		return nil, fmt.Errorf("arguments that are not flags (%d): rotatord takes flags only, and a switch is turned off with --flag=false", o.flags.NArg())
	}
	return settings, nil
}

// explain adds the way out to pflag's errors, which name flags but never show their values here: no value is set while
// flags are read, but for --help and --version.
func (o *options) explain(err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		return fmt.Errorf("%w%s; rotatord --help lists the flags", err, didYouMean("--", nearest(unknown.GetSpecifiedName(), o.names())))
	}
	return fmt.Errorf("%w; rotatord --help lists the flags", err)
}

// names are all options in the order of the flags' names.
func (o *options) names() (names []string) {
	o.flags.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// wanted says what a flag's value should have been.
func wanted(f *pflag.Flag) string {
	switch v := f.Value.(type) {
	case *choice:
		last := len(v.allowed) - 1
		return strings.Join(v.allowed[:last], ", ") + " or " + v.allowed[last]
	case *list:
		return "a list separated by commas"
	}
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "duration":
		return "a duration such as 10s or 1m30s"
	}
	return "a " + f.Value.Type()
}

// choice is a flag with a few allowed values.
type choice struct {
	to      *string
	allowed []string
}

// Set implements pflag.Value.
func (c *choice) Set(value string) error {
	if !slices.Contains(c.allowed, value) {
		return errors.New("not allowed")
	}
	*c.to = value
	return nil
}

// String implements pflag.Value.
func (c *choice) String() string { return *c.to }

// Type implements pflag.Value; the usage shows it.
func (c *choice) Type() string { return strings.Join(c.allowed, "|") }

// list is a flag with values separated by commas, which may also be repeated.
type list struct {
	to    *[]string
	whole bool // a value is one item, commas and all
}

// Set implements pflag.Value.
func (l *list) Set(value string) error {
	if l.whole {
		*l.to = append(*l.to, value)
		return nil
	}
	for item := range strings.SplitSeq(value, ",") {
		*l.to = append(*l.to, strings.TrimSpace(item))
	}
	return nil
}

// String implements pflag.Value.
func (l *list) String() string { return strings.Join(*l.to, ",") }

// Type implements pflag.Value.
func (l *list) Type() string { return "list" }
