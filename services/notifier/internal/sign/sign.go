// Package sign makes Standard Webhooks v1 signatures (https://www.standardwebhooks.com, specification 1.0): HMAC-SHA256 over "id.timestamp.body".
//
// It is pure: the time comes in as a value. It does not verify, because the notifier only sends; receivers use the official libraries, and so do
// this package's tests. It is written here, and not taken from there, because the official library signs with one secret only and the official
// format has room for several.
package sign

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// The headers of a signed request. The id stays the same over all attempts, the timestamp is that of the attempt.
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
)

const (
	prefix = "whsec_"
	// The specification's bounds for a key, in bytes.
	minKey = 24
	maxKey = 64
)

// Secret is a symmetric signing key. Printed in any way it shows nothing.
type Secret struct{ key []byte }

// ParseSecret reads "whsec_" and standard base64 of 24 to 64 bytes; white space around it, as files have it, is dropped. No error repeats any
// part of the text.
func ParseSecret(text string) (Secret, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	if !ok {
		return Secret{}, errors.New("secret does not start with " + prefix)
	}
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return Secret{}, errors.New("secret is no base64 after " + prefix)
	}
	if len(key) < minKey || len(key) > maxKey {
		return Secret{}, fmt.Errorf("secret has %d bytes, want %d to %d", len(key), minKey, maxKey)
	}
	return Secret{key}, nil
}

// Format prints a mark in the secret's place, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// Sign returns the value of HeaderSignature: one "v1,<base64>" for each secret, separated by spaces, so that a receiver may hold any one of them
// while secrets rotate. The body must be the very bytes that are sent, and at must be sent as Timestamp gives it.
func Sign(id string, at time.Time, body []byte, secrets []Secret) string {
	var b strings.Builder
	for i, s := range secrets {
		if i > 0 {
			b.WriteByte(' ')
		}
		mac := hmac.New(sha256.New, s.key)
		mac.Write([]byte(id + "." + Timestamp(at) + "."))
		mac.Write(body)
		b.WriteString("v1,")
		b.WriteString(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return b.String()
}

// Timestamp returns the value of HeaderTimestamp: whole seconds since 1970.
func Timestamp(at time.Time) string { return strconv.FormatInt(at.Unix(), 10) }
