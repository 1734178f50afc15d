package publish

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/pkg/events"
)

// explainConnect adds to the error of an attempt to connect what is wrong, in plain words, and what to do. One that needs no explanation is returned as it is.
// public is the key that the probe logs in with, unless it is told otherwise.
func explainConnect(err error, public string) error {
	advice := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		advice = "the broker does not know this login (public key " + public + ", unless NATS_CREDS_FILE or NATS_URL has another): give it the nats.conf of `notifier keys`" +
			" and have it read that again, or set NATS_NKEY_FILE to the key that it knows"
	case deniesState(err):
		advice = "the broker refuses the states of this node, as it does where the probe's key is another node's, and then nobody who verifies believes its events either:" +
			" set PROBE_NODE to the node of the key, which `notifier keys -list` shows," +
			" or give the key this node with `notifier keys -probe NAME=NODE`, and have the broker read its configuration (compose did the first: restart nats)"
	case deniesEvent(err):
		advice = "the broker refuses events of this login, as it does where the key is not a probe's, and they are kept:" +
			" set NATS_NKEY_FILE to a probe.nk, which the notifier makes for the broker that it embeds, and `notifier keys` for others"
	case errors.Is(err, nats.ErrSecureConnWanted):
		advice = "the broker has no TLS: switch it on there, or take tls:// and the NATS_CA_FILE, NATS_CERT_FILE and NATS_KEY_FILE out here"
	default:
		advice = explainTLS(err)
	}
	if advice == "" {
		return err
	}
	return fmt.Errorf("%s (%w)", advice, err)
}

// Denied is what the broker refuses to this login.
type Denied int32

const (
	DeniesStates Denied = iota + 1 // those of the peers of this node
	DeniesEvents
)

// deniesEvent reports whether the broker refuses an event, which any probe may publish.
func deniesEvent(err error) bool {
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `Publish to "wg.`)
}

// deniesState reports whether the broker refuses a peer's state of this node: a probe's key may write those of its own node alone.
func deniesState(err error) bool {
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), events.StateSubject(""))
}

// explainTLS is about certificates. What the broker thinks of ours is known by the text of its alert alone (RFC 8446, section 6): crypto/tls has no type for it.
func explainTLS(err error) string {
	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		by := ""
		if unknown.Cert != nil {
			by = ", which was issued by " + unknown.Cert.Issuer.String()
		}
		return "the broker's certificate" + by + ", is of a CA that is not trusted here: set NATS_CA_FILE to the CA's certificate"
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("the broker's certificate is for %s, not for %s: put a name in NATS_URL that it is for, or have it issued for this one",
			strings.Join(certificateNames(name.Certificate), ", "), name.Host)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Sprintf("the broker's certificate is valid from %s to %s: renew it there, or set the clock here",
			invalid.Cert.NotBefore.UTC().Format(time.DateOnly), invalid.Cert.NotAfter.UTC().Format(time.DateOnly))
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the broker does not speak TLS at this port: is it another service's?"
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "tls: certificate required"):
		return "the broker wants a client certificate of a CA that it trusts: set NATS_CERT_FILE and NATS_KEY_FILE to one"
	case strings.Contains(text, "tls: expired certificate"):
		return "the broker finds the client certificate (NATS_CERT_FILE) expired: renew it"
	case strings.Contains(text, "tls: unknown certificate authority"), strings.Contains(text, "tls: bad certificate"):
		return "the broker does not accept the client certificate (NATS_CERT_FILE): it must be issued, for clients, by the CA that the broker trusts"
	case errors.Is(err, nats.ErrTLS): // TLS 1.3: its alert may be lost with the connection, and which it was is in the broker's log
		return "the broker ended the connection after the handshake: it wants a client certificate (NATS_CERT_FILE, NATS_KEY_FILE) that is of a CA that it trusts and has not expired"
	}
	return ""
}

// certificateNames are the names that a certificate is for.
func certificateNames(c *x509.Certificate) []string {
	names := c.DNSNames
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return []string{"no name"}
	}
	return names
}
