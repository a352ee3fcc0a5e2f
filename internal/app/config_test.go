package app

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// canary is a secret that somebody puts where it does not belong.
const canary = "hunter2-canary"

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func parse(args, environ []string) (*Config, error) { return Parse(args, environ, io.Discard) }

// words splits a command line; no argument in these tests has a space.
func words(line string) []string { return strings.Fields(line) }

func TestDefaults(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse(nil, []string{"PATH=/bin", "HOME=/root"})
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Name: host, Listen: "127.0.0.1:7070", MetricsListen: "127.0.0.1:7071",
		DataDir: "./rotatord-data", EmbeddedEtcdListen: "127.0.0.1:2379", EtcdPrefix: "/rotator/",
		KeysetFile: "rotatord-data/keyset.json", SessionTTL: 10 * time.Second, ShutdownTimeout: 15 * time.Second,
		LogFormat: "text", LogLevel: "info",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !got.Embedded() {
		t.Error("etcd is not embedded by default")
	}
}

func TestEverySourceSetsEverything(t *testing.T) {
	cert, key := certificate(t)
	password := write(t, "password", canary+"\n")
	values := map[string]string{
		"name": "r1", "listen": "localhost:1", "metrics-listen": "[::1]:2", "insecure-listen": "true", "etcd-prefix": "/x/",
		"etcd-endpoints": "https://a:2379,https://b:2379", "etcd-cacert": cert, "etcd-cert": cert, "etcd-key": key,
		"etcd-user": "root", "etcd-password-file": password, "keyset-file": "/k", "session-ttl": "3s", "shutdown-timeout": "4s",
		"log-format": "json", "log-level": "debug", "exec-provider": "a=/bin/mint x,y", "audit-relay": "file:/a",
	}
	want := &Config{
		Name: "r1", Listen: "localhost:1", MetricsListen: "[::1]:2", InsecureListen: true, EtcdPrefix: "/x/",
		DataDir: "./rotatord-data", EmbeddedEtcdListen: "127.0.0.1:2379",
		EtcdEndpoints: []string{"https://a:2379", "https://b:2379"}, EtcdCACert: cert, EtcdCert: cert, EtcdKey: key,
		EtcdUser: "root", EtcdPasswordFile: password, KeysetFile: "/k", SessionTTL: 3 * time.Second, ShutdownTimeout: 4 * time.Second,
		LogFormat: "json", LogLevel: "debug", AuditRelay: "file:/a", ExecProviders: []string{"a=/bin/mint x,y"},
	}
	var args, environ, lines []string
	for option, value := range values {
		args = append(args, "--"+option+"="+value)
		environ = append(environ, envName(option)+"="+value)
		if option != optInsecureListen {
			value = strconv.Quote(value)
		}
		lines = append(lines, option+": "+value)
	}
	for name, run := range map[string]func() (*Config, error){
		"flags":       func() (*Config, error) { return parse(args, nil) },
		"environment": func() (*Config, error) { return parse(nil, environ) },
		"file": func() (*Config, error) {
			return parse([]string{"--config", write(t, "c.yaml", strings.Join(lines, "\n"))}, nil)
		},
	} {
		got, err := run()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
		if got.Embedded() {
			t.Errorf("%s: etcd is embedded although endpoints are given", name)
		}
	}
}

func TestEmbeddedOptions(t *testing.T) {
	cfg, err := parse(words("--data-dir /d --embedded-etcd-listen 127.0.0.1:9"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.DataDir != "/d" || cfg.EmbeddedEtcdListen != "127.0.0.1:9" || cfg.KeysetFile != "/d/keyset.json" {
		t.Errorf("got %+v, want the data and the keyset under /d and etcd on port 9", cfg)
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "c.yaml", "name: from-file\nlog-level: error\nsession-ttl: 7s\n")
	environ := []string{"ROTATORD_CONFIG=" + file, "ROTATORD_NAME=from-env", "ROTATORD_LOG_LEVEL=warn", "ROTATORD_ETCD_PREFIX="}
	cfg, err := parse(words("--name from-flag"), environ)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{cfg.Name, cfg.LogLevel, cfg.SessionTTL.String(), cfg.LogFormat, cfg.EtcdPrefix}
	want := []string{"from-flag", "warn", "7s", "text", "/rotator/"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flag, environment, file, default, empty variable (-want +got)\n%s", diff)
	}
}

func TestWeakerSourcesAreStillChecked(t *testing.T) {
	file := write(t, "c.yaml", "nam: x\n")
	_, err := parse(words("--name ok --config "+file), []string{"ROTATORD_NAM=x"})
	wantErrors(t, err, "environment variable ROTATORD_NAM is not known (did you mean ROTATORD_NAME?)", file+":1: nam is not a known field (did you mean name?)")
}

func TestEndpoints(t *testing.T) {
	cert, key := certificate(t)
	for _, c := range []struct {
		args string
		want []string
	}{
		{"--etcd-endpoints a:1,b:2", []string{"http://a:1", "http://b:2"}},
		{"--etcd-endpoints http://a:1/ --etcd-endpoints http://[::1]:2", []string{"http://a:1", "http://[::1]:2"}},
		{"--etcd-endpoints https://a:1", []string{"https://a:1"}},
		{"--etcd-endpoints a:1 --etcd-cacert " + cert, []string{"https://a:1"}},
		{"--etcd-endpoints a:1 --etcd-cert " + cert + " --etcd-key " + key, []string{"https://a:1"}},
	} {
		cfg, err := parse(words(c.args+" --keyset-file /k"), nil)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		if diff := cmp.Diff(c.want, cfg.EtcdEndpoints); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.args, diff)
		}
	}
	file := write(t, "c.yaml", "etcd-endpoints:\n  - a:1\n  - b:2\nkeyset-file: /k\n")
	cfg, err := parse([]string{"--config=" + file}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"http://a:1", "http://b:2"}, cfg.EtcdEndpoints); diff != "" {
		t.Errorf("list in the file: (-want +got)\n%s", diff)
	}
}

func TestProblems(t *testing.T) {
	cert, key := certificate(t)
	empty := write(t, "empty", "\n")
	password := write(t, "password", canary)
	ext := "--etcd-endpoints a:1 --keyset-file /k "
	for _, c := range []struct {
		args    string
		environ string
		want    []string
	}{
		{args: "--lisen x", want: []string{"unknown flag: --lisen (did you mean --listen?); rotatord --help lists the flags"}},
		{args: "--etcd-password=" + canary, want: []string{"unknown flag: --etcd-password"}},
		{args: canary, want: []string{"arguments that are not flags (1): rotatord takes flags only"}},
		{args: "--session-ttl", want: []string{"flag needs an argument: --session-ttl; rotatord --help"}},
		{args: "--session-ttl 5", want: []string{`--session-ttl: "5" is not a duration such as 10s or 1m30s`}},
		{args: "--session-ttl 1s", want: []string{"--session-ttl: 1s is below 2s, the least that survives an etcd election"}},
		{args: "--exec-provider " + canary, want: []string{"--exec-provider: a value must be NAME=COMMAND"}},
		{args: "--exec-provider=a=x --exec-provider=a=y", want: []string{`--exec-provider: the name "a" is given twice`}},
		{args: "--shutdown-timeout 0s", want: []string{"--shutdown-timeout: 0s is not positive"}},
		{args: "--insecure-listen=maybe", want: []string{`--insecure-listen: "maybe" is not true or false`}},
		{args: "--log-format xml --log-level loud", want: []string{
			`--log-format: "xml" is not text or json`, `--log-level: "loud" is not debug, info, warn or error`}},
		{environ: "ROTATORD_SESSION_TTL=1s", want: []string{"ROTATORD_SESSION_TTL: 1s is below 2s"}},
		{environ: "ROTATORD_HELP=true", want: []string{"environment variable ROTATORD_HELP is not known"}},
		{args: "--name a/b", want: []string{`--name: "a/b" must match`}},
		{args: "--etcd-prefix rotator", want: []string{`--etcd-prefix: etcd prefix "rotator" must start and end with '/'`}},
		{args: "--listen 7070", want: []string{`--listen: "7070" is not HOST:PORT, such as 127.0.0.1:7070`}},
		{args: "--listen localhost:http", want: []string{`--listen: port "http" of "localhost:http" is not a number`}},
		{args: "--listen 127.0.0.1:7071", want: []string{"--listen and --metrics-listen are both 127.0.0.1:7071: give one of them another port"}},
		{args: "--data-dir=", want: []string{"--data-dir is empty"}},
		{args: "--etcd-user u --etcd-cacert x", want: []string{
			"--etcd-cacert is for an external etcd, and without --etcd-endpoints etcd is embedded", "--etcd-user is for an external etcd"}},
		{args: "--etcd-endpoints a:1", want: []string{"--etcd-endpoints needs --keyset-file: all replicas must", "Start rotatord once without --etcd-endpoints"}},
		{args: ext + "--embedded-etcd-listen 127.0.0.1:1", environ: "ROTATORD_DATA_DIR=/d", want: []string{
			"ROTATORD_DATA_DIR is for the embedded etcd, and --etcd-endpoints selects an external one", "--embedded-etcd-listen is for the embedded etcd"}},
		{args: "--keyset-file /k --etcd-endpoints=", want: []string{`endpoint "" is not HOST:PORT`}},
		{args: "--keyset-file /k --etcd-endpoints a,http://b,c:x,d:0", want: []string{
			`endpoint "a" is not HOST:PORT or a URL`, `endpoint "http://b" is not`, `endpoint "c:x" is not`, `endpoint "d:0" is not`}},
		{args: "--keyset-file /k --etcd-endpoints ftp://a:1,a:1/path", want: []string{"has a scheme other than http and https", "has something after the port"}},
		{args: "--keyset-file /k --etcd-endpoints http://root:" + canary + "@a:1", want: []string{`endpoint "...@a:1" holds a user: give --etcd-user`}},
		{args: "--keyset-file /k --etcd-endpoints http://a:1,https://b:1", want: []string{"--etcd-endpoints mixes https (https://b:1) and http (http://a:1)"}},
		{args: "--keyset-file /k --etcd-endpoints a:1,https://b:1", want: []string{"mixes https (https://b:1) and no scheme (a:1)"}},
		{args: "--keyset-file /k --etcd-endpoints http://a:1 --etcd-cacert " + cert, want: []string{"--etcd-endpoints uses http, which is not encrypted, but --etcd-cacert is for https"}},
		{args: ext + "--etcd-cert " + cert, want: []string{"there is no --etcd-key"}},
		{args: ext + "--etcd-key " + key, want: []string{"there is no --etcd-cert"}},
		{args: ext + "--etcd-cacert " + empty, want: []string{"holds no certificate in PEM"}},
		{args: ext + "--etcd-cacert /does/not/exist", want: []string{"--etcd-cacert: reading the CA certificates: open /does/not/exist"}},
		{args: ext + "--etcd-cert " + cert + " --etcd-key " + cert, want: []string{"--etcd-cert " + cert + " and --etcd-key " + cert}},
		{args: ext + "--etcd-user root:" + canary, want: []string{"--etcd-user holds a ':' (its value is not shown)"}},
		{args: ext + "--etcd-user root", want: []string{"there is no --etcd-password-file"}},
		{args: ext + "--etcd-password-file " + password, want: []string{"there is no --etcd-user"}},
		{args: ext + "--etcd-user root --etcd-password-file " + empty, want: []string{empty + " holds no password"}},
		{args: ext + "--etcd-user root --etcd-password-file /does/not/exist", want: []string{"reading the password: open /does/not/exist"}},
		{args: "--config /does/not/exist", want: []string{"--config: reading the configuration: open /does/not/exist"}},
	} {
		t.Run(c.environ+" "+c.args, func(t *testing.T) {
			_, err := parse(words(c.args), words(c.environ))
			wantErrors(t, err, c.want...)
		})
	}
}

// wantErrors checks that all texts are in the error, and no secret.
func wantErrors(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", want)
	}
	for _, text := range want {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error is\n%v\nwant it to contain\n%s", err, text)
		}
	}
	if strings.Contains(strings.ReplaceAll(err.Error(), "/"+canary, ""), canary) {
		t.Errorf("the canary is in the error: %v", err)
	}
}

func TestProblemsAreReportedTogether(t *testing.T) {
	file := write(t, "c.yaml", "log-level: 7\nfoo: 1\n")
	_, err := parse(words("--session-ttl 1s --listen :1 --shutdown-timeout x --config "+file), []string{"ROTATORD_BAR=1"})
	wantErrors(t, err, "--session-ttl: 1s", "--listen: :1", "--shutdown-timeout: ", "ROTATORD_BAR", file+":1: log-level", file+":2: foo")
	if n := len(strings.Split(err.Error(), "\n")); n != 6 {
		t.Errorf("%d lines, want one for each of the 6 problems:\n%v", n, err)
	}
}

func TestListenBeyondLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "example.com:1": false, "localhost.example.com:1": false,
	} {
		for _, option := range []string{"listen", "metrics-listen", "embedded-etcd-listen"} {
			_, err := parse([]string{"--" + option, address}, nil)
			if (err == nil) != want {
				t.Errorf("--%s %s: error %v, want it accepted: %v", option, address, err, want)
			}
			if err != nil && !strings.Contains(err.Error(), "listen on 127.0.0.1:1, or accept that with --insecure-listen") {
				t.Errorf("--%s %s: error %v does not say the way out", option, address, err)
			}
		}
	}
	if _, err := parse(words("--insecure-listen --listen :1 --metrics-listen host:2 --embedded-etcd-listen 0.0.0.0:3"), nil); err != nil {
		t.Errorf("with --insecure-listen: %v", err)
	}
	_, err := parse(words("--insecure-listen --embedded-etcd-listen :3"), nil)
	wantErrors(t, err, `host "" is not an IP address, which the embedded etcd needs`)
}

func TestFile(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown field", "\nlisten: 127.0.0.1:1\nsession_ttl: 3s\n", ":3: session_ttl is not a known field (did you mean session-ttl?)"},
		{"field in the wrong place", "rotatord:\n  listen: x\n", ":1: rotatord is not a known field"},
		{"duplicate", "name: a\nlisten: 127.0.0.1:1\nname: b\n", ":3: name is given twice, first in line 1"},
		{"number for a string", "name: 5\n", ":1: name must be a string (put it in quotes), it is a number"},
		{"number for a duration", "session-ttl: 5\n", ":1: session-ttl must be a duration such as 10s, it is a number"},
		{"wrong duration", "session-ttl: soon\n", `:1: session-ttl: "soon" is not a duration such as 10s`},
		{"string for a switch", "insecure-listen: \"true\"\n", ":1: insecure-listen must be true or false, it is a string"},
		{"list for a string", "name: [a]\n", ":1: name must be a string (put it in quotes), it is a list"},
		{"mapping in a list", "etcd-endpoints:\n  - a:1\n  - {a: 1}\n", ":1: etcd-endpoints must be a list of strings, the item in line 3 is a mapping"},
		{"empty list", "etcd-endpoints: []\n", ":1: etcd-endpoints is an empty list"},
		{"no value", "name:\n", ":1: name has no value; leave the line out for the default"},
		{"the file itself", "config: x\n", ":1: config can be given on the command line only"},
		{"not a mapping", "- a\n", ":1: the file must be a mapping"},
		{"two documents", "name: a\n---\nname: b\n", "a second document begins"},
		{"no YAML", "name: [\n", "yaml: "},
		{"password", "etcd-password: " + canary + "\n", ":1: etcd-password is not a known field (did you mean etcd-password-file?)"},
		{"merge key", "<<: {name: a}\n", ":1: << is not a known field"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse([]string{"--config", write(t, "c.yaml", c.text)}, nil)
			wantErrors(t, err, c.want)
		})
	}
	for _, text := range []string{"", "# nothing\n", "---\n", "insecure-listen: true\nlisten: ':1'\n", "listen: &a 127.0.0.1:7\nname: \"7\"\n"} {
		if _, err := parse([]string{"--config", write(t, "c.yaml", text)}, nil); err != nil {
			t.Errorf("file %q: %v", text, err)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add("name: a\netcd-endpoints: [a, b]\n")
	f.Add("? [a]\n: b\n")
	f.Add("a: &a [*a]\n")
	f.Add("name: *x\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = parse([]string{"--config", path}, nil) // must not panic
	})
}

func TestKubernetesVariablesAreIgnored(t *testing.T) {
	if _, err := parse(nil, words(`
		ROTATORD_SERVICE_HOST=10.0.0.1 ROTATORD_SERVICE_PORT=7070 ROTATORD_SERVICE_PORT_GRPC=7070 ROTATORD_PORT=tcp://10.0.0.1:7070
		ROTATORD_PORT_7070_TCP=tcp://10.0.0.1:7070 ROTATORD_PORT_7070_TCP_ADDR=10.0.0.1
		ROTATORD_ETCD_SERVICE_HOST=10.0.0.2 ROTATORD_ETCD_SERVICE_PORT=2379 ROTATORD_ETCD_PORT=tcp://10.0.0.2:2379 ROTATORD_ETCD_PORT_2379_TCP=x`)); err != nil {
		t.Errorf("variables of the services rotatord and rotatord-etcd: %v", err)
	}
	_, err := parse(nil, words("ROTATORD_LISTEN_PORT=7070 ROTATORD_PORTS=1"))
	wantErrors(t, err, "ROTATORD_LISTEN_PORT is not known", "ROTATORD_PORTS is not known")
}

func TestHelp(t *testing.T) {
	for _, flag := range []string{"--help", "-h"} {
		var out bytes.Buffer
		if _, err := Parse([]string{flag}, []string{"ROTATORD_WRONG=1"}, &out); !errors.Is(err, ErrAnswered) {
			t.Fatalf("%s: error %v, want ErrAnswered", flag, err)
		}
		help := out.String()
		newOptions(defaults()).flags.VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(help, "--"+f.Name+" ") {
				t.Errorf("%s does not name --%s", flag, f.Name)
			}
			if d := f.DefValue; d != "" && d != "false" && !strings.Contains(help, d) {
				t.Errorf("%s does not show the default of --%s, %s", flag, f.Name, d)
			}
		})
		for _, text := range []string{"ROTATORD_SESSION_TTL", "Exit codes", "WITHOUT encryption or authentication", "text|json"} {
			if !strings.Contains(help, text) {
				t.Errorf("%s does not contain %q:\n%s", flag, text, help)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	if _, err := Parse([]string{"--version"}, nil, &out); !errors.Is(err, ErrAnswered) {
		t.Fatalf("error %v, want ErrAnswered", err)
	}
	if !strings.HasPrefix(out.String(), "rotatord ") || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("--version printed %q, want one line that begins with the name", out.String())
	}
}

func TestNearest(t *testing.T) {
	candidates := []string{"name", "listen", "log-level", "log-format"}
	for name, want := range map[string]string{"nam": "name", "log_level": "log-level", "log-fromat": "log-format", "zzzzzz": "", "": "", "log-le": "log-level"} {
		if got := nearest(name, candidates); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"same", "same", 0}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// certificate makes a self-signed certificate and its key, in files.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return write(t, "cert.pem", encode("CERTIFICATE", cert)), write(t, "key.pem", encode("EC PRIVATE KEY", der))
}

func ExampleParse() {
	_, err := Parse([]string{"--listen", ":7070", "--session-ttl", "1s"}, nil, io.Discard)
	fmt.Println(err)
	// Output:
	// --listen: :7070 is not a loopback address (no host means all interfaces), and without encryption and authentication anyone who can reach the port can read the keys and rotate them: listen on 127.0.0.1:7070, or accept that with --insecure-listen
	// --session-ttl: 1s is below 2s, the least that survives an etcd election
}
