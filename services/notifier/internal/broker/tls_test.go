package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
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

func TestTLS(t *testing.T) {
	t.Parallel()
	ids := filepath.Join(t.TempDir(), "ids")
	keys, err := EnsureIdentities(ids, Identities()...)
	if err != nil {
		t.Fatal(err)
	}
	start := func(tls ServerTLS) (url string) {
		text, err := ServerConfig{
			Listen: "127.0.0.1:0", StoreDir: t.TempDir(), TLS: tls,
			WGProvisioner: keys[WGProvisioner], HooksProvisioner: keys[HooksProvisioner], ReadersProvisioner: keys[ReadersProvisioner],
			Notifiers: []string{keys[Notifier]},
		}.Render()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "nats.conf")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		opts, err := server.ProcessConfigFile(file)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		opts.NoSigs, opts.NoLog = true, true
		s, err := server.NewServer(opts)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		if !s.ReadyForConnections(startTimeout) {
			t.Fatal("the broker does not start")
		}
		return s.ClientURL()
	}
	serve := func(ca *authority, name string, change func(*x509.Certificate), clients string) string {
		cert, key := ca.issue(name, change)
		return start(ServerTLS{Cert: cert, Key: key, CA: clients})
	}
	ca, stranger := newAuthority(t, "house"), newAuthority(t, "stranger")
	cert, key := ca.issue("notifier", nil)
	oldCert, oldKey := ca.issue("old", expired)
	serverCert, serverKey := ca.issue("server-only", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	strangeCert, strangeKey := stranger.issue("notifier", nil)

	good := serve(ca, "broker", nil, ca.file)
	works := []string{"broker connected"}
	client := []string{"client certificate", "NATS_CERT_FILE"} // what is wrong with it, see TestAlerts
	for name, tt := range map[string]struct {
		o    ConnectOptions
		want []string // in the log
	}{
		"CA and client certificate": {ConnectOptions{URL: good, CAFile: ca.file, CertFile: cert, KeyFile: key}, works},
		"no client certificate wanted": {
			ConnectOptions{URL: serve(ca, "open", nil, ""), CAFile: ca.file}, works},
		"tls://": {
			ConnectOptions{URL: strings.Replace(good, "nats://", "tls://", 1), CAFile: ca.file, CertFile: cert, KeyFile: key}, works},
		"no CA": {
			ConnectOptions{URL: good, CertFile: cert, KeyFile: key}, []string{"the broker's certificate, which was issued by CN=house", "not trusted here", "NATS_CA_FILE"}},
		"another CA": {
			ConnectOptions{URL: good, CAFile: stranger.file, CertFile: cert, KeyFile: key}, []string{"issued by CN=house", "not trusted here", "NATS_CA_FILE"}},
		"no client certificate": {
			ConnectOptions{URL: good, CAFile: ca.file}, client},
		"a client certificate of another CA": {
			ConnectOptions{URL: good, CAFile: ca.file, CertFile: strangeCert, KeyFile: strangeKey}, client},
		"a client certificate that is for servers": {
			ConnectOptions{URL: good, CAFile: ca.file, CertFile: serverCert, KeyFile: serverKey}, client},
		"a client certificate that has expired": {
			ConnectOptions{URL: good, CAFile: ca.file, CertFile: oldCert, KeyFile: oldKey}, client},
		"a broker whose certificate has expired": {
			ConnectOptions{URL: serve(ca, "old-broker", expired, ca.file), CAFile: ca.file, CertFile: cert, KeyFile: key},
			[]string{"the broker's certificate is valid from 2020-01-01 to 2020-12-31", "renew it"}},
		"a broker of another name": {
			ConnectOptions{URL: serve(ca, "elsewhere", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"nats.example", "nats-2.example"} }, ca.file),
				CAFile: ca.file, CertFile: cert, KeyFile: key},
			[]string{"the broker's certificate is for nats.example, nats-2.example, not for 127.0.0.1", "NATS_URL"}},
		"a broker without TLS": {
			ConnectOptions{URL: start(ServerTLS{}), CAFile: ca.file, CertFile: cert, KeyFile: key}, []string{"the broker has no TLS"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.o.Role, tt.o.NkeyFile = Notifier, IdentityFile(ids, Notifier)
			log, lines := newLog()
			nc, err := Connect(t.Context(), tt.o, log) // it waits, for that may be mended
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			for _, part := range tt.want {
				waitFor(t, func() bool { return lines.count(part) > 0 })
			}
		})
	}
}

// TestAlerts: what the broker thinks of a client's certificate comes after the handshake (TLS 1.3), and sometimes is lost with the connection, so here are the texts.
func TestAlerts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"remote error: tls: certificate required":          "the broker wants a client certificate of a CA that it trusts: set NATS_CERT_FILE and NATS_KEY_FILE",
		"remote error: tls: expired certificate":           "the broker finds the client certificate (NATS_CERT_FILE) expired: renew it",
		"remote error: tls: bad certificate":               "the broker does not accept the client certificate (NATS_CERT_FILE): it must be issued, for clients,",
		"remote error: tls: unknown certificate authority": "the broker does not accept the client certificate (NATS_CERT_FILE): it must be issued, for clients,",
	} {
		if err := explainConnect(errors.New(text)); !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
