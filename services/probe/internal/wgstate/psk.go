package wgstate

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// PSK tells whether a peer has a preshared key, and two different keys apart, without being one: it is a fingerprint under a salt that is
// drawn when the process starts and never leaves it. Values compare with ==, and the zero value means no preshared key. Values of two
// processes have nothing in common, so a key replaced while no probe ran goes unnoticed.
//
// However it is printed or marshalled, it says yes or no.
type PSK [16]byte

// Present reports whether there is a preshared key.
func (p PSK) Present() bool { return p != PSK{} }

// String returns "yes" or "no".
func (p PSK) String() string {
	if p.Present() {
		return "yes"
	}
	return "no"
}

// Format implements fmt.Formatter: no verb gets at the bytes.
func (p PSK) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(p.String())) }

// MarshalText implements encoding.TextMarshaler, which encoding/json and log/slog ask for.
func (p PSK) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// newFingerprint returns the function that makes a PSK of a preshared key, under a salt of its own.
func newFingerprint() func(wgtypes.Key) PSK {
	var salt [32]byte
	_, _ = rand.Read(salt[:]) // never fails
	return func(k wgtypes.Key) PSK {
		if k == (wgtypes.Key{}) {
			return PSK{}
		}
		var b [2 * 32]byte
		copy(b[:32], salt[:])
		copy(b[32:], k[:])
		sum := sha256.Sum256(b[:])
		return PSK(sum[:16])
	}
}
