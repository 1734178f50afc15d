package wgmsg

import (
	"crypto/subtle"
	"fmt"
	"hash"
	"sync"

	"golang.org/x/crypto/blake2s"
)

// labelMAC1 is LABEL-MAC1 of the whitepaper, section 5.4; the kernel's mac1_key_label.
const labelMAC1 = "mac1----"

// MAC1Key tells which handshake messages are meant for one public key. Every initiation and response carries mac1, a MAC under a key that is
// derived from the receiver's public key alone (whitepaper, section 5.4.4). Whoever does not know that key, a scanner for instance, cannot make it;
// whoever does can, so a right mac1 authenticates nobody.
//
// Make one per device and keep it. It is safe for concurrent use.
type MAC1Key struct {
	mu  sync.Mutex
	mac hash.Hash     // keyed BLAKE2s-128, reset before each use; kept because making one allocates
	sum [MACSize]byte // here, since a buffer passed to an interface method would be allocated by each call
}

// NewMAC1Key returns the key for handshake messages sent to the holder of public key pub: BLAKE2s-256(labelMAC1 || pub).
func NewMAC1Key(pub [32]byte) *MAC1Key {
	key := blake2s.Sum256(append([]byte(labelMAC1), pub[:]...))
	mac, err := blake2s.New128(key[:])
	if err != nil {
		panic(fmt.Sprintf("wgmsg: a BLAKE2s key of %d bytes was refused: %v", len(key), err))
	}
	return &MAC1Key{mac: mac}
}

// Verify reports whether msg is a whole initiation or response whose mac1 was made for k. It compares in constant time and does not allocate.
func (k *MAC1Key) Verify(msg []byte) bool {
	var end int // of what mac1 covers
	kind, _ := Classify(msg, len(msg))
	switch kind {
	case Initiation:
		end = InitiationMAC1Offset
	case Response:
		end = ResponseMAC1Offset
	default:
		return false
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	k.mac.Reset()
	k.mac.Write(msg[:end])
	sum := k.mac.Sum(k.sum[:0])
	return subtle.ConstantTimeCompare(sum, msg[end:end+MACSize]) == 1
}
