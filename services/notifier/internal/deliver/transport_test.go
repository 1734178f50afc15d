package deliver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// certify makes a self-signed certificate, as PEM, for a host of 127.0.0.1 unless change says otherwise.
func certify(t *testing.T, change func(*x509.Certificate)) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// certified starts an HTTPS hook with a certificate, and returns its URL.
func certified(t *testing.T, cert, key []byte, clients *x509.CertPool) string {
	t.Helper()
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients != nil {
		config.MaxVersion = tls.VersionTLS12 // with 1.3 the refusal comes after the handshake, and crosses the request
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, clients
	}
	return tlsHook(t, config).URL
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	type change = func(*x509.Certificate)
	past, future := time.Now().Add(-time.Minute).UTC().Truncate(time.Second), time.Now().Add(time.Minute).UTC().Truncate(time.Second)
	for name, tt := range map[string]struct {
		change change
		class  Class
		reason string
	}{
		"good":              {nil, OK, "200"},
		"expired":           {func(c *x509.Certificate) { c.NotAfter = past }, TLS, "the certificate has expired, since " + past.Format(time.RFC3339)},
		"not valid yet":     {func(c *x509.Certificate) { c.NotBefore = future }, TLS, "the certificate is not valid before " + future.Format(time.RFC3339)},
		"for another name":  {func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"a.example", "*.b.example"} }, TLS, "for another host: it is for a.example, *.b.example"},
		"for many others":   {func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"a", "b", "c", "d", "e"} }, TLS, "it is for a, b, c and 2 more"},
		"for an odd name":   {func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"a b\tc"} }, TLS, "it is for an odd name"},
		"for another IP":    {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} }, TLS, "it is for 192.0.2.1"},
		"for no name":       {func(c *x509.Certificate) { c.IPAddresses = nil }, TLS, "it names none"},
		"for clients alone": {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, TLS, "the certificate is not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, key := certify(t, tt.change)
			res := sender(t, Target{URL: certified(t, cert, key, nil), CA: cert}).Send(t.Context(), "e1", request)
			if res.Class != tt.class || !strings.Contains(res.Reason, tt.reason) {
				t.Errorf("result is %+v, want class %s and %q", res, tt.class, tt.reason)
			}
		})
	}
}

func TestOnlyTheNamedAuthoritiesAreTrusted(t *testing.T) {
	t.Parallel()
	cert, key := certify(t, nil)
	other, _ := certify(t, nil)
	u := certified(t, cert, key, nil)
	if res := sender(t, Target{URL: u, CA: append(other, cert...)}).Send(t.Context(), "e1", request); res.Class != OK || res.Answer != "HTTP/2.0" {
		t.Errorf("two authorities: %+v", res)
	}
	res := sender(t, Target{URL: u, CA: other}).Send(t.Context(), "e1", request)
	if res.Class != TLS || !strings.Contains(res.Reason, "unknown authority: set ca_file") {
		t.Errorf("another authority: %+v", res)
	}
}

func TestClientCertificate(t *testing.T) {
	t.Parallel()
	cert, key := certify(t, nil)
	mine, mineKey := certify(t, nil)
	clients, err := ParseCA(mine)
	if err != nil {
		t.Fatal(err)
	}
	u := certified(t, cert, key, clients)
	if res := sender(t, Target{URL: u, CA: cert, Cert: mine, Key: mineKey}).Send(t.Context(), "e1", request); res.Class != OK {
		t.Errorf("with the certificate: %+v", res)
	}
	res := sender(t, Target{URL: u, CA: cert}).Send(t.Context(), "e1", request)
	if res.Class != TLS || !strings.Contains(res.Reason, "refused the TLS handshake: handshake failure") {
		t.Errorf("without: %+v", res)
	}
	res = sender(t, Target{URL: u, CA: cert, Cert: cert, Key: key}).Send(t.Context(), "e1", request)
	if res.Class != TLS || !strings.Contains(res.Reason, "refused the TLS handshake: ") {
		t.Errorf("with another: %+v", res)
	}
}

// proxyLog is what a proxy was asked for.
type proxyLog struct {
	mu    sync.Mutex
	hosts []string
}

func (l *proxyLog) add(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, host)
}

func (l *proxyLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.hosts = nil }()
	return l.hosts
}

const proxyAuth = "Basic dTpNQVJLRUQwcHJveHk=" // u:MARKED0proxy

// httpProxy is a handler that forwards, for whoever knows the password.
func httpProxy(t *testing.T, l *proxyLog) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != proxyAuth {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		l.add(r.Host)
		if r.Method != http.MethodConnect {
			r.RequestURI = ""
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			w.WriteHeader(resp.StatusCode)
			_, _ = io.Copy(w, resp.Body)
			return
		}
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		join(conn, buf, to)
	})
}

// join copies both ways until one ends.
func join(a net.Conn, from io.Reader, b net.Conn) {
	go func() {
		_, _ = io.Copy(b, from)
		b.Close()
	}()
	_, _ = io.Copy(a, b)
	a.Close()
}

// socksProxy starts a SOCKS 5 server (RFC 1928, RFC 1929) for the user u with a password.
func socksProxy(t *testing.T, password string, l *proxyLog) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	serve := func(conn net.Conn) {
		defer conn.Close()
		read := func(n int) []byte {
			b := make([]byte, n)
			_, _ = io.ReadFull(conn, b)
			return b
		}
		read(int(read(2)[1]))
		_, _ = conn.Write([]byte{5, 2})
		user := read(int(read(2)[1]))
		if given := read(int(read(1)[0])); string(user) != "u" || string(given) != password {
			_, _ = conn.Write([]byte{1, 1})
			return
		}
		_, _ = conn.Write([]byte{1, 0})
		var host string
		switch read(4)[3] {
		case 1:
			host = net.IP(read(4)).String()
		case 3:
			host = string(read(int(read(1)[0])))
		}
		port := read(2)
		host = net.JoinHostPort(host, fmt.Sprint(int(port[0])<<8|int(port[1])))
		l.add(host)
		to, err := net.Dial("tcp", host)
		if err != nil {
			_, _ = conn.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
			return
		}
		_, _ = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		join(conn, conn, to)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return "socks5://u:" + password + "@" + listener.Addr().String()
}

func TestProxies(t *testing.T) {
	t.Parallel()
	const password = "MARKED0proxy"
	cert, key := certify(t, nil)
	secure := certified(t, cert, key, nil)
	open := hook(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	closed := httptest.NewServer(nil)
	closed.Close()

	var l proxyLog
	plain := httptest.NewServer(httpProxy(t, &l))
	t.Cleanup(plain.Close)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	tlsProxy := httptest.NewUnstartedServer(httpProxy(t, &l))
	tlsProxy.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	tlsProxy.Config.ErrorLog = log.New(io.Discard, "", 0)
	tlsProxy.StartTLS()
	t.Cleanup(tlsProxy.Close)
	socks := socksProxy(t, password, &l)
	with := func(u, user string) string { return strings.Replace(u, "://", "://"+user+"@", 1) }
	good, bad := "u:"+password, "u:"+password+"2"

	for _, tt := range []struct {
		name, proxy, url string
		class            Class
		reason           string
	}{
		{"http to https", with(plain.URL, good), secure, OK, "200"},
		{"http to http", with(plain.URL, good), open, OK, "200"},
		{"https to https", with(tlsProxy.URL, good), secure, OK, "200"},
		{"socks5 to https", socks, secure, OK, "200"},
		{"socks5 to http", socks, open, OK, "200"},
		{"wrong password, https", with(plain.URL, bad), secure, Network, "the proxy answered 407 Proxy Authentication Required"},
		{"wrong password, http", with(plain.URL, bad), open, Network, "the proxy answered 407 Proxy Authentication Required"},
		{"wrong password, socks5", strings.Replace(socks, good, bad, 1), open, Network, "through the proxy: "},
		{"the hook refuses, https", with(plain.URL, good), strings.Replace(closed.URL, "http:", "https:", 1), Network, "the proxy answered 502 Bad Gateway"},
		{"the hook refuses, socks5", socks, closed.URL, Network, "connection refused"},
		{"the proxy refuses", closed.URL, secure, Refused, "on the way to the proxy: the connection was refused"},
		{"the proxy has no such name", "http://proxy.invalid", secure, DNS, "on the way to the proxy: the host's name"},
		{"the proxy speaks no TLS", strings.Replace(plain.URL, "http:", "https:", 1), secure, TLS, "on the way to the proxy: "},
		{"the proxy is link-local", "socks5://169.254.169.254:1080", secure, Blocked, "on the way to the proxy: the host's name leads to a link-local"},
		{"the proxy is link-local, mapped", "http://[::ffff:169.254.169.254]:80", secure, Blocked, "on the way to the proxy: the host's name leads to a link-local"},
		{"the hook is link-local", with(plain.URL, good), "http://169.254.169.254/" + password, Blocked, "link-local"},
		{"the hook is link-local, with a dot", with(plain.URL, good), "http://169.254.169.254./" + password, Blocked, "link-local"},
		{"the hook is link-local, in one number", socks, "http://2852039166/" + password, Blocked, "malformed"},
		{"the hook is link-local, in hexadecimal", with(plain.URL, good), "https://0xA9.0xFE.0xA9FE/" + password, Blocked, "malformed"},
		{"the hook is link-local, in wide digits", socks, "https://１６９.２５４.１６９.２５４/" + password, Blocked, "malformed"},
		{"the hook is link-local, with another dot", with(plain.URL, good), "https://169.254.169。254/" + password, Blocked, "malformed"},
		{"the hook is link-local, mapped", socks, "http://[::ffff:169.254.169.254]/" + password, Blocked, "link-local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := Target{URL: tt.url, Proxy: tt.proxy, CA: cert}
			res := sender(t, target).Send(t.Context(), "e1", request)
			if res.Class != tt.class || !strings.Contains(res.Reason, tt.reason) || tt.class != OK && res.Class.Verdict() != Retry {
				t.Errorf("result is %+v, want class %s and %q", res, tt.class, tt.reason)
			}
			if out := fmt.Sprintf("%+v %#v", res, target); strings.Contains(out, password) || strings.Contains(out, proxyAuth[6:]) {
				t.Errorf("a secret shows: %s", out)
			}
			u, err := url.Parse(tt.url)
			if err != nil {
				t.Fatal(err)
			}
			if asked := l.take(); tt.class == OK && (len(asked) != 1 || asked[0] != u.Host) {
				t.Errorf("the proxy was asked for %v, want %s", asked, u.Host)
			}
		})
	}
}

// A test cannot show it by the environment, which net/http reads once and not for loopback addresses.
func TestNoProxyUnlessNamed(t *testing.T) {
	t.Parallel()
	if sender(t, Target{URL: "https://h"}).transport.(*http.Transport).Proxy != nil {
		t.Error("a proxy of the environment may be taken")
	}
}

func TestPublicOnly(t *testing.T) {
	t.Parallel()
	for address, allowed := range map[string]bool{
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "172.31.255.255": false, "192.168.1.1": false,
		"100.64.0.1": false, "fd00::1": false, "::ffff:10.0.0.1": false, "64:ff9b::a00:1": false, "2002:7f00:1::": false, "169.254.169.254": false,
		"192.0.0.8": false, "198.19.0.1": false, "240.0.0.1": false, "64:ff9b:1::cb00:7107": false, "::7f00:1": false, "::ffff:0:a00:1": false,
		"203.0.113.7": true, "172.32.0.1": true, "100.128.0.1": true, "2001:db8::1": true, "64:ff9b::cb00:7107": true,
	} {
		err := guard(true)("tcp", netip.AddrPortFrom(netip.MustParseAddr(address), 443).String(), nil)
		if (err == nil) != allowed {
			t.Errorf("%s: %v, want allowed %t", address, err, allowed)
		}
	}
	u := hook(t, func(http.ResponseWriter, *http.Request) { t.Error("dialled") })
	for _, target := range []Target{{URL: u}, {URL: strings.Replace(u, "127.0.0.1", "localhost", 1)}, {URL: "https://h", Proxy: u}} {
		target.PublicOnly = true
		if res := sender(t, target).Send(t.Context(), "e1", request); res.Class != Blocked || !strings.Contains(res.Reason, "private address") {
			t.Errorf("result is %+v", res)
		}
	}
}

func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	res := sender(t, Target{URL: "https://" + silent.Addr().String(), ConnectTimeout: 50 * time.Millisecond, Timeout: time.Minute}).Send(t.Context(), "e1", request)
	if res.Class != Timeout || res.Latency > 30*time.Second {
		t.Errorf("result is %+v", res)
	}
}

func TestTransportMistakes(t *testing.T) {
	t.Parallel()
	const marked = "MARKED0secret"
	cert, key := certify(t, nil)
	_, otherKey := certify(t, nil)
	mark := []byte(marked)
	for name, tt := range map[string]struct {
		target Target
		want   string
	}{
		"no authority":          {Target{CA: mark}, "ca: no PEM certificate"},
		"a key for authority":   {Target{CA: key}, "ca: no PEM certificate"},
		"a broken authority":    {Target{CA: []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")}, "ca: a certificate is malformed"},
		"a certificate alone":   {Target{Cert: cert}, "client certificate: want a PEM certificate and its PEM key"},
		"a key alone":           {Target{Key: key}, "client certificate: want a PEM"},
		"another key":           {Target{Cert: cert, Key: otherKey}, "client certificate: the key does not belong"},
		"a text for key":        {Target{Cert: cert, Key: mark}, "client certificate: want a PEM"},
		"proxy of another kind": {Target{Proxy: "ftp://" + marked}, "proxy: want an http://, https:// or socks5:// URL"},
		"proxy without host":    {Target{Proxy: "http:///" + marked}, "proxy: the URL has no host"},
		"proxy with a path":     {Target{Proxy: "http://h/" + marked}, "proxy: the URL of a proxy ends"},
		"proxy that is no URL":  {Target{Proxy: "http://u:" + marked + "%zz@h"}, "proxy: not a URL"},
		"no time":               {Target{ConnectTimeout: -1}, "connect timeout is"},
	} {
		tt.target.URL = "https://h"
		if _, err := New(tt.target, ""); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), marked) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// What net/http makes of a name that is not ASCII, a proxy gets; so only names go through whose last part is a word.
func TestNamesOfOtherScriptsThroughAProxy(t *testing.T) {
	t.Parallel()
	for host, allowed := range map[string]bool{
		"bücher.example": true, "bücher２.example": true, "例え.jp": true, "例え。jp": true, "hooks.例え": true, "host1.example": true,
		"１６９.２５４.１６９.２５４": false, "169.254.169。254": false, "169.254.169.254。": false, "169.254.169.254.\u00ad": false,
		"２８５２０３９１６６": false, "0ｘa9fea9fe": false, "１６９.254.169.254": false,
	} {
		err := guardHost(host, func(string, string, syscall.RawConn) error { return nil })
		if (err == nil) != allowed {
			t.Errorf("%q: %v, want allowed: %t", host, err, allowed)
		}
	}
}
