package publish_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
)

// authority issues certificates into files of a test's directory.
type authority struct {
	t    *testing.T
	dir  string
	file string // its own certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.file, _ = a.issue(name, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	return a
}

// issue makes a certificate for both ends of a connection to 127.0.0.1, valid now, where change does not say otherwise. The first is the authority's own.
func (a *authority) issue(name string, change func(*x509.Certificate)) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	if a.cert == nil {
		a.cert, a.key = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	write := func(kind, file string, der []byte) string {
		path := filepath.Join(a.dir, file)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
		return path
	}
	return write("CERTIFICATE", name+".crt", der), write("PRIVATE KEY", name+".key", keyDER)
}

func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2020, 12, 31, 0, 0, 0, 0, time.UTC)
}

// TestTLS: a connection with certificates works, and where it does not the log says which of them is wrong and what to do. The probe waits, for that may be mended.
func TestTLS(t *testing.T) {
	t.Parallel()
	issued := func(ca *authority, name string, change func(*x509.Certificate), clients string) string {
		cert, key := ca.issue(name, change)
		config, err := server.GenTLSConfig(&server.TLSConfigOpts{CertFile: cert, KeyFile: key, CaFile: clients, Verify: clients != ""})
		if err != nil {
			t.Fatal(err)
		}
		return serve(t, t.TempDir(), -1, func(o *server.Options) {
			o.TLS, o.TLSVerify, o.TLSConfig, o.TLSTimeout = true, clients != "", config, 10
		}).ClientURL()
	}
	ca, stranger := newAuthority(t, "house"), newAuthority(t, "stranger")
	cert, key := ca.issue("probe", nil)
	oldCert, oldKey := ca.issue("old", expired)
	strangeCert, strangeKey := stranger.issue("probe", nil)
	plain := serve(t, t.TempDir(), -1, nil).ClientURL()
	good := issued(ca, "broker", nil, ca.file)
	const client = "client certificate" // what is wrong with it, see TestAlerts
	for name, tt := range map[string]struct {
		config config.NATS
		want   string // in the log
	}{
		"CA and client certificate":          {config.NATS{URL: good, CAFile: ca.file, CertFile: cert, KeyFile: key}, "msg=connected"},
		"no client certificate wanted":       {config.NATS{URL: issued(ca, "open", nil, ""), CAFile: ca.file}, "msg=connected"},
		"no CA":                              {config.NATS{URL: good, CertFile: cert, KeyFile: key}, "which was issued by CN=house, is of a CA that is not trusted here: set NATS_CA_FILE"},
		"another CA":                         {config.NATS{URL: good, CAFile: stranger.file, CertFile: cert, KeyFile: key}, "is of a CA that is not trusted here: set NATS_CA_FILE"},
		"no client certificate":              {config.NATS{URL: good, CAFile: ca.file}, client},
		"a client certificate of another CA": {config.NATS{URL: good, CAFile: ca.file, CertFile: strangeCert, KeyFile: strangeKey}, client},
		"an expired client certificate":      {config.NATS{URL: good, CAFile: ca.file, CertFile: oldCert, KeyFile: oldKey}, client},
		"an expired broker":                  {config.NATS{URL: issued(ca, "old-broker", expired, ca.file), CAFile: ca.file, CertFile: cert, KeyFile: key}, "valid from 2020-01-01 to 2020-12-31: renew it there"},
		"a broker of another name": {config.NATS{URL: issued(ca, "elsewhere", func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"nats.example"}
		}, ca.file), CAFile: ca.file, CertFile: cert, KeyFile: key}, "is for nats.example, not for 127.0.0.1: put a name in NATS_URL"},
		"a broker without TLS": {config.NATS{URL: plain, CAFile: ca.file}, "the broker has no TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &lines{}
			nc, _, err := publish.Connect(t.Context(), tt.config, "vpn-1", publish.Identity{}, func() {}, func(publish.Denied) {}, slog.New(slog.NewTextHandler(log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			eventually(t, tt.want+" in the log", func() bool { return strings.Contains(log.String(), tt.want) })
		})
	}
}
