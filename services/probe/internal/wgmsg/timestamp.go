package wgmsg

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"
)

// Timestamp is the TAI64N label of an initiation (whitepaper, section 5.1): later ones compare greater. A responder takes an initiation only when its
// label is greater than those before. What time it means is the sender's word, and some senders have no clock.
type Timestamp [12]byte

const (
	// labelEpoch is the label of the Unix epoch. WireGuard adds no leap seconds to the 10 of 1970 (wireguard-go's tai64n, the kernel's tai64n_now).
	labelEpoch = 1<<62 + 10

	maxUnix = 253402300799 // the last second of the year 9999, beyond which times have no text
)

// Compare returns -1 when t is before u, +1 when it is after, 0 when they are the same.
func (t Timestamp) Compare(u Timestamp) int { return bytes.Compare(t[:], u[:]) }

// Time returns what the sender's clock showed, which implementations round down to 2^24 ns. It returns the zero time for labels outside of the years
// 1970 to 9999, and for those with a nanosecond part of a second or more.
func (t Timestamp) Time() time.Time {
	second := binary.BigEndian.Uint64(t[:]) - labelEpoch // wraps around to what is too great for a label before the epoch
	nano := binary.BigEndian.Uint32(t[8:])
	if second > maxUnix || nano >= 1e9 {
		return time.Time{}
	}
	return time.Unix(int64(second), int64(nano)).UTC()
}

// MarshalText implements encoding.TextMarshaler: 24 hex digits.
func (t Timestamp) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, t[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Timestamp) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(t)) {
		return fmt.Errorf("a timestamp of %d characters, want %d hex digits", len(text), hex.EncodedLen(len(t)))
	}
	var u Timestamp
	if _, err := hex.Decode(u[:], text); err != nil {
		return fmt.Errorf("a timestamp that is not hex: %v", err)
	}
	*t = u
	return nil
}
