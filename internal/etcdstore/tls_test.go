package etcdstore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/rotatord/rotatord/internal/etcdstore"
)

// authority signs certificates for one test and writes them as files, as operators have them.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = template, a.newKey()
	a.write("ca", template, a.key)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

// issue writes NAME.pem and NAME-key.pem for loopback.
func (a *authority) issue(name string) {
	a.write(name, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.newKey())
}

func (a *authority) write(name string, template *x509.Certificate, key *ecdsa.PrivateKey) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + "-key.pem": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// secureEtcd is a real etcd that talks TLS only, and only to clients with a certificate of the authority.
func secureEtcd(t *testing.T, a *authority) string {
	t.Helper()
	a.issue("server")
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.LogOutputs = t.TempDir(), "fatal", []string{"/dev/null"}
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.ListenClientUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	peer := url.URL{Scheme: "unix", Host: "tls-test"}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, []url.URL{peer}
	cfg.InitialCluster = cfg.Name + "=" + peer.String()
	cfg.ClientTLSInfo = transport.TLSInfo{
		CertFile: a.file("server.pem"), KeyFile: a.file("server-key.pem"), TrustedCAFile: a.file("ca.pem"), ClientCertAuth: true,
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return "https://" + e.Clients[0].Addr().String()
}

func TestConnectWithTLS(t *testing.T) {
	a := newAuthority(t)
	endpoint := secureEtcd(t, a)
	a.issue("rotatord")
	other := newAuthority(t)
	other.issue("stranger")
	for name, c := range map[string]struct {
		cfg  etcdstore.Config
		want bool
	}{
		"with a certificate": {etcdstore.Config{CAFile: a.file("ca.pem"), CertFile: a.file("rotatord.pem"), KeyFile: a.file("rotatord-key.pem")}, true},
		"without one":        {etcdstore.Config{CAFile: a.file("ca.pem")}, false},
		"with a stranger's":  {etcdstore.Config{CAFile: a.file("ca.pem"), CertFile: other.file("stranger.pem"), KeyFile: other.file("stranger-key.pem")}, false},
		"of another authority than the server's": {etcdstore.Config{
			CAFile: other.file("ca.pem"), CertFile: a.file("rotatord.pem"), KeyFile: a.file("rotatord-key.pem"),
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Endpoints = []string{endpoint}
			client, err := etcdstore.Connect(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err = etcdstore.New(client, etcdstore.Options{AttemptTimeout: 2 * time.Second}).Probe(ctx)
			if (err == nil) != c.want {
				t.Errorf("reading: %v, want success: %v", err, c.want)
			}
		})
	}
}
