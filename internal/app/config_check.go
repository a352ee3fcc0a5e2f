package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rotatord/rotatord/internal/audit"
	"github.com/rotatord/rotatord/internal/etcdstore"
	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/provider"
)

// minSessionTTL is the shortest lease that survives an etcd election.
const minSessionTTL = 2 * time.Second

// checker looks for everything that is wrong with a configuration. A message about two options names both, with where
// they come from, and the way out.
type checker struct {
	cfg      *Config
	given    map[string]string // option to origin
	problems []error
}

func (ck *checker) addf(format string, args ...any) {
	ck.problems = append(ck.problems, fmt.Errorf(format, args...))
}

func (ck *checker) has(option string) bool { return ck.given[option] != "" }

// by names an option as the operator gave it.
func (ck *checker) by(option string) string {
	if origin := ck.given[option]; origin != "" {
		return origin
	}
	return "--" + option
}

func (ck *checker) all() {
	ck.name()
	ck.listeners()
	ck.times()
	ck.commands()
	if _, _, err := audit.OpenSink(ck.cfg.AuditRelay, nil); ck.cfg.AuditRelay != "" && err != nil {
		ck.addf("%s: %w", ck.by(optAuditRelay), err)
	}
	if _, err := etcdstore.NewLayout(ck.cfg.EtcdPrefix); err != nil {
		ck.addf("%s: %w", ck.by(optEtcdPrefix), err)
	}
	if ck.has(optEtcdEndpoints) {
		ck.external()
	} else {
		ck.embedded()
	}
}

func (ck *checker) name() {
	problem := pool.CheckName(ck.cfg.Name)
	if problem == "" {
		return
	}
	if ck.has(optName) {
		ck.addf("%s: %q %s", ck.by(optName), ck.cfg.Name, problem)
		return
	}
	ck.addf("the host name %q cannot name this replica, because a name %s: give --name", ck.cfg.Name, problem)
}

func (ck *checker) times() {
	if ck.cfg.SessionTTL < minSessionTTL {
		ck.addf("%s: %v is below %v, the least that survives an etcd election", ck.by(optSessionTTL), ck.cfg.SessionTTL, minSessionTTL)
	}
	if ck.cfg.ShutdownTimeout <= 0 {
		ck.addf("%s: %v is not positive; a graceful stop needs some time, %v by default", ck.by(optShutdownTimeout), ck.cfg.ShutdownTimeout, defaultShutdownTimeout)
	}
}

// commands checks the providers' commands: whether they are there is found out when they are needed.
func (ck *checker) commands() {
	seen := make(map[string]bool)
	for _, text := range ck.cfg.ExecProviders {
		name, _, err := provider.ParseCommand(text)
		switch {
		case err != nil:
			ck.addf("%s: a value %w", ck.by(optExecProvider), err) // which one is not said: somebody may have put a secret into it
		case seen[name]:
			ck.addf("%s: the name %q is given twice: a pool could not tell which command it means", ck.by(optExecProvider), name)
		}
		seen[name] = true
	}
}

// listeners checks each address, and that no two are the same.
func (ck *checker) listeners() {
	taken := make(map[string]string) // address to option
	for _, l := range []struct{ option, address string }{
		{optListen, ck.cfg.Listen},
		{optMetricsListen, ck.cfg.MetricsListen},
		{optEmbeddedEtcdListen, ck.cfg.EmbeddedEtcdListen},
	} {
		if l.option == optEmbeddedEtcdListen && ck.has(optEtcdEndpoints) {
			continue
		}
		host, port, ok := ck.address(l.option, l.address)
		if !ok {
			continue
		}
		ck.reach(l.option, host, port)
		if other := taken[l.address]; other != "" && port != "0" {
			ck.addf("%s and %s are both %s: give one of them another port", ck.by(other), ck.by(l.option), l.address)
		}
		taken[l.address] = l.option
	}
}

func (ck *checker) address(option, address string) (host, port string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		ck.addf("%s: %q is not HOST:PORT, such as %s", ck.by(option), address, defaultListen)
		return "", "", false
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		ck.addf("%s: port %q of %q is not a number from 0 to 65535", ck.by(option), port, address)
		return "", "", false
	}
	return host, port, true
}

// reach refuses addresses that others than this machine's users may reach, unless the operator says so.
func (ck *checker) reach(option, host, port string) {
	_, notIP := netip.ParseAddr(host)
	switch {
	case loopback(host):
	case !ck.cfg.InsecureListen:
		ck.addf("%s: %s is not a loopback address%s, and without encryption and authentication %s: listen on %s, or accept that with --insecure-listen",
			ck.by(option), net.JoinHostPort(host, port), meaning(host), danger(option), net.JoinHostPort("127.0.0.1", port))
	case option == optEmbeddedEtcdListen && notIP != nil:
		ck.addf("%s: host %q is not an IP address, which the embedded etcd needs: give one, such as 0.0.0.0 for all interfaces", ck.by(option), host)
	}
}

func meaning(host string) string {
	if host == "" {
		return " (no host means all interfaces)"
	}
	return ""
}

// danger says what --insecure-listen would let others do.
func danger(option string) string {
	switch option {
	case optMetricsListen:
		return "anyone who can reach the port can read the names of pools and how they fare"
	case optEmbeddedEtcdListen:
		return "anyone who can reach the port can read and change all state"
	}
	return "anyone who can reach the port can read the keys and rotate them"
}

// loopback does not ask a name server: what a name means may change later.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func (ck *checker) embedded() {
	if ck.cfg.DataDir == "" {
		ck.addf("%s is empty: name a directory for the embedded etcd, or give --etcd-endpoints for an external one", ck.by(optDataDir))
	}
	for _, option := range []string{optEtcdCACert, optEtcdCert, optEtcdKey, optEtcdUser, optEtcdPasswordFile} {
		if ck.has(option) {
			ck.addf("%s is for an external etcd, and without --etcd-endpoints etcd is embedded: give --etcd-endpoints, or leave it out", ck.by(option))
		}
	}
}

func (ck *checker) external() {
	for _, option := range []string{optDataDir, optEmbeddedEtcdListen} {
		if ck.has(option) {
			ck.addf("%s is for the embedded etcd, and %s selects an external one: leave one of them out", ck.by(option), ck.by(optEtcdEndpoints))
		}
	}
	if ck.cfg.KeysetFile == "" {
		ck.addf("%s needs --keyset-file: all replicas must seal and open secrets with the same keyset. Start rotatord once without --etcd-endpoints, "+
			"which makes keyset.json in its --data-dir, and give every replica a copy that only it can read", ck.by(optEtcdEndpoints))
	}
	ck.endpoints()
	ck.tls()
	ck.user()
}

// endpoints checks the endpoints and completes them to URLs of one scheme.
func (ck *checker) endpoints() {
	byScheme := make(map[string]string) // scheme to the first endpoint with it
	hosts := make([]string, 0, len(ck.cfg.EtcdEndpoints))
	for _, e := range ck.cfg.EtcdEndpoints {
		scheme, host, err := splitEndpoint(e)
		if err != nil {
			ck.addf("%s: endpoint %q %w", ck.by(optEtcdEndpoints), withoutUser(e), err)
			continue
		}
		hosts = append(hosts, host)
		if byScheme[scheme] == "" {
			byScheme[scheme] = e
		}
	}
	if len(byScheme) > 1 {
		ck.addf("%s mixes %s: give all of them the same scheme", ck.by(optEtcdEndpoints), mixed(byScheme))
		return
	}
	for scheme := range byScheme {
		ck.scheme(scheme, hosts)
	}
}

func mixed(byScheme map[string]string) string {
	var parts []string
	for _, s := range []struct{ scheme, name string }{{"https", "https"}, {"http", "http"}, {"", "no scheme"}} {
		if e := byScheme[s.scheme]; e != "" {
			parts = append(parts, fmt.Sprintf("%s (%s)", s.name, e))
		}
	}
	return strings.Join(parts, " and ")
}

// scheme settles whether etcd is spoken to over TLS. Endpoints without a scheme go by whether there are certificates.
func (ck *checker) scheme(scheme string, hosts []string) {
	files := ck.tlsFiles()
	if scheme == "http" && len(files) > 0 {
		ck.addf("%s uses http, which is not encrypted, but %s is for https: write the endpoints with https://, or leave the certificates out",
			ck.by(optEtcdEndpoints), strings.Join(files, ", "))
	}
	if scheme == "" {
		scheme = "http"
		if len(files) > 0 {
			scheme = "https"
		}
	}
	if len(hosts) != len(ck.cfg.EtcdEndpoints) {
		return // some are wrong: keep what was given
	}
	for i, host := range hosts {
		ck.cfg.EtcdEndpoints[i] = scheme + "://" + host
	}
}

// tlsFiles names the given options that only make sense over TLS.
func (ck *checker) tlsFiles() (given []string) {
	for _, option := range []string{optEtcdCACert, optEtcdCert, optEtcdKey} {
		if ck.has(option) {
			given = append(given, ck.by(option))
		}
	}
	return given
}

// splitEndpoint takes host:port or a URL apart. Its errors do not show the endpoint.
func splitEndpoint(e string) (scheme, host string, err error) {
	scheme, rest, found := strings.Cut(e, "://")
	if !found {
		scheme, rest = "", e
	}
	u, err := url.Parse("//" + rest)
	switch {
	case found && scheme != "http" && scheme != "https":
		return "", "", errors.New("has a scheme other than http and https")
	case strings.Contains(rest, "@"):
		return "", "", errors.New("holds a user: give --etcd-user and --etcd-password-file instead")
	case err != nil || u.Hostname() == "" || !validPort(u.Port()):
		return "", "", errors.New("is not HOST:PORT or a URL such as https://etcd-1:2379")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", "", errors.New("has something after the port")
	}
	return scheme, u.Host, nil
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// withoutUser hides what stands before an '@': it may hold a password.
func withoutUser(endpoint string) string {
	if i := strings.LastIndex(endpoint, "@"); i >= 0 {
		return "..." + endpoint[i:]
	}
	return endpoint
}

// tls reads the files once, so that a wrong one is found now and not at the first connection.
func (ck *checker) tls() {
	cert, key := ck.cfg.EtcdCert, ck.cfg.EtcdKey
	switch {
	case cert != "" && key == "":
		ck.addf("%s is %s, but there is no --etcd-key: a client certificate needs its private key", ck.by(optEtcdCert), cert)
		return
	case cert == "" && key != "":
		ck.addf("%s is %s, but there is no --etcd-cert: a private key needs its client certificate", ck.by(optEtcdKey), key)
		return
	}
	if ca := ck.cfg.EtcdCACert; ca != "" {
		ck.authorities(ca)
	}
	if cert != "" {
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			ck.addf("%s %s and %s %s: %w", ck.by(optEtcdCert), cert, ck.by(optEtcdKey), key, err)
		}
	}
}

func (ck *checker) authorities(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		ck.addf("%s: reading the CA certificates: %w", ck.by(optEtcdCACert), err)
		return
	}
	if !x509.NewCertPool().AppendCertsFromPEM(text) {
		ck.addf("%s: %s holds no certificate in PEM", ck.by(optEtcdCACert), file)
	}
}

// user checks the user, and that there is a password to log in with.
func (ck *checker) user() {
	user, file := ck.cfg.EtcdUser, ck.cfg.EtcdPasswordFile
	switch {
	case strings.Contains(user, ":"):
		ck.addf("%s holds a ':' (its value is not shown): give the name alone, and the password in --etcd-password-file", ck.by(optEtcdUser))
	case user != "" && file == "":
		ck.addf("%s is %q, but there is no --etcd-password-file: without a password a user is proven by --etcd-cert alone, and then --etcd-user is not needed", ck.by(optEtcdUser), user)
	case user == "" && file != "":
		ck.addf("%s is %s, but there is no --etcd-user: a password needs the user it belongs to", ck.by(optEtcdPasswordFile), file)
	case file != "":
		ck.password(file)
	}
}

func (ck *checker) password(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		ck.addf("%s: reading the password: %w", ck.by(optEtcdPasswordFile), err)
		return
	}
	if strings.TrimRight(string(text), "\r\n") == "" {
		ck.addf("%s: %s holds no password", ck.by(optEtcdPasswordFile), file)
	}
}
