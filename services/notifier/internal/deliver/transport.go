package deliver

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// newTransport returns the way to a target, whose fields are checked. Proxies of the environment are not taken: what a hook's requests pass through
// stands in its configuration.
func newTransport(t Target, roots *x509.CertPool, own []tls.Certificate, proxy *url.URL) *http.Transport {
	connect := cmp.Or(t.ConnectTimeout, DefaultConnectTimeout)
	check := guard(t.PublicOnly)
	dialer := &net.Dialer{Timeout: connect, Control: check}
	transport := &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: own},
		TLSHandshakeTimeout:    connect,
		MaxIdleConnsPerHost:    t.Concurrency,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         1 << 10, // answers are short, and connections are many
		WriteBufferSize:        2 << 10, // a request of an event fits, with its headers
		DisableCompression:     true,    // the answer is hardly looked at, and unpacking has no bound
		ForceAttemptHTTP2:      true,
		// One HTTP/2 connection carries all attempts: without pings a dead one would be used until the kernel gives it up.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter},
	}
	if proxy == nil {
		return transport
	}
	// The dialer sees the proxy's address only. Of the target's there is what the URL has; a name is the proxy's to look up.
	transport.Proxy = func(r *http.Request) (*url.URL, error) {
		return proxy, guardHost(r.URL.Hostname(), check)
	}
	transport.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
		if answer.StatusCode != http.StatusOK {
			return &proxyError{answer.StatusCode}
		}
		return nil
	}
	return transport
}

// proxyError is a proxy's refusal to connect.
type proxyError struct{ status int }

func (e *proxyError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the proxy answered %d %s", e.status, http.StatusText(e.status)))
}

// ParseCA reads PEM certificates. Whoever names authorities trusts these and no others.
func ParseCA(text []byte) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), false
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("a certificate is malformed")
		}
		pool.AddCert(cert)
		found = true
	}
	if !found {
		return nil, errors.New("no PEM certificate (-----BEGIN CERTIFICATE-----)")
	}
	return pool, nil
}

// ParseClient reads a PEM certificate with its chain, and its key.
func ParseClient(cert, key []byte) (tls.Certificate, error) {
	c, err := tls.X509KeyPair(cert, key)
	switch {
	case err == nil:
		return c, nil
	case strings.Contains(err.Error(), "does not match"):
		return c, errors.New("the key does not belong to the certificate")
	}
	return c, errors.New("want a PEM certificate and its PEM key without passphrase") // the cause may quote the file
}

// ParseProxy reads the URL of a proxy. The error repeats nothing of it.
func ParseProxy(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	switch u.Scheme {
	case "http", "https", "socks5":
	default:
		return nil, errors.New("want an http://, https:// or socks5:// URL")
	}
	if u.Hostname() == "" {
		return nil, errors.New("the URL has no host")
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the URL of a proxy ends after its host and port")
	}
	return u, nil
}
