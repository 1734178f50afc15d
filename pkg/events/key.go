package events

import (
	"encoding/base64"
	"errors"
	"fmt"
)

// Key is a WireGuard public key: a Curve25519 point. There is no type for private or preshared keys here, because none ever travels.
type Key [32]byte

// ParseKey reads the form that wg(8) prints: 44 characters of standard base64.
func ParseKey(s string) (Key, error) {
	var k Key
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) {
		// The text is left out on purpose: a private key put in the wrong place looks the same.
		return k, errors.New("public key: want 44 characters of base64 that encode 32 bytes")
	}
	return Key(b), nil
}

// String returns the form that wg(8) prints.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether k is not set.
func (k Key) IsZero() bool { return k == Key{} }

// MarshalText implements encoding.TextMarshaler.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(text []byte) error {
	parsed, err := ParseKey(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

// urlSafe returns the key in unpadded base64url, the form that is legal in a NATS subject token.
func (k Key) urlSafe() string { return base64.RawURLEncoding.EncodeToString(k[:]) }

// parseURLSafe is the inverse of urlSafe.
func parseURLSafe(s string) (Key, error) {
	var k Key
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("public key %q: want 43 characters of unpadded base64url", s)
	}
	return Key(b), nil
}
