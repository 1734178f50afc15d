package publish

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestNoAck: one that does not come has causes that differ much, and the probe cannot tell them apart.
func TestNoAck(t *testing.T) {
	t.Parallel()
	got := explain(context.DeadlineExceeded).Error()
	for _, part := range []string{"no ack within 5s", "away", "overloaded", "denies this identity the subject", "read its configuration once more"} {
		if !strings.Contains(got, part) {
			t.Errorf("it does not say %q: %s", part, got)
		}
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
		if err := explainConnect(errors.New(text), "U"); !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
