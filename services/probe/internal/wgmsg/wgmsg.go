// Package wgmsg reads the WireGuard wire format: what kind of message a UDP payload is, the fields sent in clear, whether mac1 shows that a
// handshake message is meant for a given public key, and, with a device's private key, who sent it an initiation and when.
//
// It is not an implementation of the protocol: it opens no data, keeps no session and answers nobody. It takes bytes and returns values, does
// no I/O and reads no clock, so that whatever arrives from the network can be fuzzed through it.
//
// The format is that of the WireGuard whitepaper, section 5.4, and of drivers/net/wireguard/messages.h in the Linux kernel. Integers are
// little-endian. Offsets and sizes are in bytes, counted from the start of the UDP payload.
package wgmsg

import (
	"encoding/binary"
	"fmt"
)

// Kind is a message's type field: one byte, followed by three reserved bytes that must be zero (whitepaper, section 5.4; enum message_type).
type Kind uint8

// The four kinds of messages. The zero Kind is none of them.
const (
	Initiation  Kind = 1 // first handshake message, section 5.4.2
	Response    Kind = 2 // second handshake message, section 5.4.3
	CookieReply Kind = 3 // the answer of a responder under load, section 5.4.7
	Data        Kind = 4 // transport data and keepalives, section 5.4.6
)

// String returns the kind's name in lower case.
func (k Kind) String() string {
	switch k {
	case Initiation:
		return "initiation"
	case Response:
		return "response"
	case CookieReply:
		return "cookie_reply"
	case Data:
		return "data"
	default:
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
}

// Sizes of whole messages. The first three kinds have exactly one size, data has a minimum.
const (
	InitiationSize  = 148
	ResponseSize    = 92
	CookieReplySize = 64
	DataHeaderSize  = 16                           // type, receiver index and counter
	MinDataSize     = DataHeaderSize + authTagSize // a keepalive: no content but its tag
)

// Offsets of the fields sent in clear, by message.
const (
	InitiationSenderOffset = 4
	InitiationMAC1Offset   = InitiationSize - 2*MACSize

	ResponseSenderOffset   = 4
	ResponseReceiverOffset = 8
	ResponseMAC1Offset     = ResponseSize - 2*MACSize

	CookieReplyReceiverOffset = 4

	DataReceiverOffset = 4
	DataCounterOffset  = 8
)

// MACSize is the size of mac1 and of mac2, which end an initiation and a response (whitepaper, section 5.4.4).
const MACSize = 16

// authTagSize is the size of the Poly1305 tag that ends every sealed field.
const authTagSize = 16

// Classify tells what kind of message a UDP payload of wireLength bytes is. payload holds its first bytes: all of them for a handshake message
// or a cookie reply, at least [DataHeaderSize] of them for data, which a capture may have cut short.
//
// It returns false for everything else, without allocating. True means only that the shape is right; anybody can send that.
func Classify(payload []byte, wireLength int) (Kind, bool) {
	k, ok := kindOf(payload), false
	switch k {
	case Initiation:
		ok = wireLength == InitiationSize && len(payload) == InitiationSize
	case Response:
		ok = wireLength == ResponseSize && len(payload) == ResponseSize
	case CookieReply:
		ok = wireLength == CookieReplySize && len(payload) == CookieReplySize
	case Data:
		ok = wireLength >= MinDataSize && len(payload) >= DataHeaderSize && len(payload) <= wireLength
	}
	if !ok {
		return 0, false
	}
	return k, true
}

// Sender returns the index that the sender of an initiation or a response chose for its side of the session. It returns false where msg is no
// such message or is too short to hold the field.
func Sender(msg []byte) (index uint32, ok bool) {
	switch kindOf(msg) {
	case Initiation:
		return uint32At(msg, InitiationSenderOffset)
	case Response:
		return uint32At(msg, ResponseSenderOffset)
	default:
		return 0, false
	}
}

// Receiver returns the index by which the receiver of a response, a cookie reply or data knows the session: the one it sent as sender before. It
// returns false where msg is no such message or is too short to hold the field.
func Receiver(msg []byte) (index uint32, ok bool) {
	switch kindOf(msg) {
	case Response:
		return uint32At(msg, ResponseReceiverOffset)
	case CookieReply:
		return uint32At(msg, CookieReplyReceiverOffset)
	case Data:
		return uint32At(msg, DataReceiverOffset)
	default:
		return 0, false
	}
}

// Counter returns the nonce counter of a data message, 0 for the first under a new key. It returns false where msg is no data message or is too
// short to hold the field.
func Counter(msg []byte) (n uint64, ok bool) {
	if kindOf(msg) != Data || len(msg) < DataHeaderSize {
		return 0, false
	}
	return binary.LittleEndian.Uint64(msg[DataCounterOffset:]), true
}

// kindOf returns the kind that the first four bytes of msg name, or the zero Kind.
func kindOf(msg []byte) Kind {
	t, ok := uint32At(msg, 0)
	if !ok || t > uint32(Data) {
		return 0
	}
	return Kind(t)
}

// uint32At returns the number at offset, or false where msg ends before it does.
func uint32At(msg []byte, offset int) (uint32, bool) {
	if len(msg) < offset+4 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(msg[offset:]), true
}
