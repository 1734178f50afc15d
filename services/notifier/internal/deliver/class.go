package deliver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Class says how an attempt went. It is a metric label: the set is closed.
type Class string

// The classes.
const (
	OK          Class = "ok"          // 2xx
	Redirected  Class = "redirected"  // 3xx, never followed
	Gone        Class = "gone"        // 410: the hook wants no more requests
	Rejected    Class = "rejected"    // any other 4xx that a repetition does not mend
	Throttled   Class = "throttled"   // 429
	Unavailable Class = "unavailable" // 408, 425, 5xx, and answers that are none
	Timeout     Class = "timeout"     // no connection, or no whole answer, in time
	DNS         Class = "dns"         // the host's name has no address
	TLS         Class = "tls"         // no TLS, or a certificate that is not trusted
	Refused     Class = "refused"     // nothing listens there
	Network     Class = "network"     // any other failure on the way
	Blocked     Class = "blocked"     // an address that is never dialled
	Canceled    Class = "canceled"    // cut off by our own shutdown: no fault of the hook, and no attempt
)

// Verdict is what follows from a class.
type Verdict uint8

// The verdicts.
const (
	Done  Verdict = iota // delivered
	Retry                // may succeed later
	Dead                 // will not succeed by repetition
)

// Verdict returns what follows from c. Whatever is not the hook's own answer is retried, a wrong certificate and a forbidden address too: names and
// certificates are repaired without anybody telling the notifier.
func (c Class) Verdict() Verdict {
	switch c {
	case OK:
		return Done
	case Redirected, Gone, Rejected:
		return Dead
	case Throttled, Unavailable, Timeout, DNS, TLS, Refused, Network, Blocked, Canceled:
		return Retry
	}
	panic("deliver: unknown class " + string(c))
}

// classifyStatus returns the class of an answer and the reason in plain words.
func classifyStatus(status int) (Class, string) {
	answered := fmt.Sprintf("the hook answered %d", status)
	if text := http.StatusText(status); text != "" { // never the server's own text, which may hold anything
		answered += " " + text
	}
	switch {
	case status >= 200 && status <= 299:
		return OK, answered
	case status >= 300 && status <= 399:
		return Redirected, answered + ": redirect refused"
	case status == http.StatusGone:
		return Gone, answered
	case status == http.StatusTooManyRequests:
		return Throttled, answered
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly:
		return Unavailable, answered
	case status >= 400 && status <= 499:
		return Rejected, answered
	default:
		// 5xx; and what is no final answer to a POST (101, or a number outside the classes of RFC 9110), which some broken proxy made.
		return Unavailable, answered
	}
}

// classifyError returns the class of a request that got no answer, and the reason in plain words. redact is for the texts of unforeseen errors.
func classifyError(err error, redact func(string) string) (Class, string) {
	var (
		blocked     *blockedError
		dns         *net.DNSError
		netError    net.Error
		op          *net.OpError
		authority   x509.UnknownAuthorityError
		hostname    x509.HostnameError
		invalid     x509.CertificateInvalidError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		proxy       *proxyError
	)
	switch {
	case errors.As(err, &proxy):
		return Network, proxy.Error()
	case errors.As(err, &op) && op.Op == "proxyconnect": // how net/http reports what is on this side of a proxy
		class, reason := classifyError(op.Err, redact)
		return class, "on the way to the proxy: " + reason
	case errors.As(err, &op) && op.Op == "socks connect":
		class, reason := classifyError(op.Err, redact)
		return class, "through the proxy: " + reason
	case errors.As(err, &blocked):
		return Blocked, blocked.Error()
	case errors.Is(err, context.Canceled):
		return Canceled, "the attempt was cut off by a shutdown"
	case errors.As(err, &dns):
		switch {
		case dns.IsNotFound:
			return DNS, "the host's name does not exist"
		case dns.IsTimeout:
			return DNS, "the host's name was not looked up in time"
		}
		return DNS, "the host's name could not be looked up"
	case errors.As(err, &authority):
		return TLS, "the certificate is signed by an unknown authority: set ca_file to the authority's certificate"
	case errors.As(err, &hostname):
		return TLS, "the certificate is for another host: " + redact(namesOf(hostname.Certificate))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if from := invalid.Cert.NotBefore; time.Now().Before(from) {
			return TLS, "the certificate is not valid before " + from.UTC().Format(time.RFC3339)
		}
		return TLS, "the certificate has expired, since " + invalid.Cert.NotAfter.UTC().Format(time.RFC3339)
	case errors.As(err, &certificate):
		return TLS, "the certificate is not valid"
	case errors.As(err, &record):
		return TLS, "the host does not speak TLS on this port"
	case errors.As(err, &op) && op.Op == "remote error": // how crypto/tls reports an alert
		return TLS, "the host refused the TLS handshake: " + strings.TrimPrefix(op.Err.Error(), "tls: ") // a closed set of words
	case errors.As(err, &op) && op.Op == "dial" && op.Timeout():
		return Timeout, "no connection in time"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netError) && netError.Timeout():
		return Timeout, "no answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused, "the connection was refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Network, "the connection was closed before an answer"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Network, "there is no route to the host"
	case strings.HasPrefix(err.Error(), "tls: "):
		// crypto/tls has no types for these.
		return TLS, "the TLS handshake failed: " + foreign(redact(err.Error()))
	}
	return Network, "the request failed: " + foreign(redact(err.Error()))
}

// foreign bounds a text that may repeat what the other side sent.
func foreign(text string) string {
	const most = 200 // bytes
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…" // without the character that is cut
}

// namesOf tells for which hosts a certificate is. Its names are foreign text.
func namesOf(c *x509.Certificate) string {
	const most = 3
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "it names none (subjectAltName is missing)"
	}
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	for i, name := range names {
		if !certName.MatchString(name) {
			names[i] = "an odd name"
		}
	}
	return "it is for " + strings.Join(names, ", ") + more
}

var certName = regexp.MustCompile(`^[A-Za-z0-9.:*_-]{1,100}$`)
