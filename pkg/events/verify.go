package events

import (
	"bufio"
	"crypto/ed25519"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// HeaderSignature is the NATS header that carries the probe's signature over the body: standard base64 of an Ed25519 signature (RFC 8032).
const HeaderSignature = "Wg-Signature"

// Sign returns the value of HeaderSignature for an encoded event.
func Sign(body []byte, key ed25519.PrivateKey) string {
	return base64.StdEncoding.EncodeToString(ed25519.Sign(key, body))
}

// Keyring tells which keys may speak for which node. A node may have several, for rotation. Keys of AnyNode speak for every node.
type Keyring map[string][]ed25519.PublicKey

// AnyNode is the entry whose keys speak for every node.
const AnyNode = "*"

// Verify decodes an event and proves that a key of its node signed these very bytes. The error matches ErrUnverified when the bytes are a valid
// event whose origin is not proven.
func Verify(body []byte, signature string, ring Keyring) (*Event, error) {
	e, err := Decode(body)
	if err != nil {
		return nil, err
	}
	unverified := func(why string) (*Event, error) {
		return nil, fmt.Errorf("%w: %s of node %q: %s", ErrUnverified, e.Type, e.Common().Node, why)
	}
	if signature == "" {
		return unverified("it has no " + HeaderSignature)
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(signature)
	if err != nil || len(sig) != ed25519.SignatureSize {
		return unverified("its " + HeaderSignature + " is no base64 of 64 bytes")
	}
	keys := ring[e.Common().Node]
	if len(keys)+len(ring[AnyNode]) == 0 {
		return unverified("the keyring has no key for this node")
	}
	for _, set := range [][]ed25519.PublicKey{keys, ring[AnyNode]} {
		for _, k := range set {
			if ed25519.Verify(k, body, sig) {
				return e, nil
			}
		}
	}
	return unverified("no key of this node made its " + HeaderSignature)
}

// ParseKeyring reads lines of a node's name, or *, and an nkey ("U…"), separated by white space. Blank lines and lines that start with # are
// skipped. The error names every line that is wrong.
func ParseKeyring(text string) (Keyring, error) {
	ring := Keyring{}
	var errs []error
	sc := bufio.NewScanner(strings.NewReader(text))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 2 {
			errs = append(errs, fmt.Errorf("line %d: want a node and its nkey, separated by white space", n))
			continue
		}
		key, err := ParsePublicKey(fields[1])
		if err == nil && fields[0] != AnyNode {
			err = ValidateName(fields[0])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		ring[fields[0]] = append(ring[fields[0]], key)
	}
	if err := sc.Err(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("keyring: %w", errors.Join(errs...))
	}
	return ring, nil
}

// prefixUser is the first byte of a user's public nkey; it makes the text start with U.
const prefixUser = 20 << 3

// ParsePublicKey reads a user's public nkey ("U…"): base32 over a prefix byte, the Ed25519 key and a CRC-16 (github.com/nats-io/nkeys).
func ParsePublicKey(nkey string) (ed25519.PublicKey, error) {
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(nkey)
	if err != nil || len(raw) != 1+ed25519.PublicKeySize+2 || raw[0] != prefixUser {
		// The text is left out on purpose: a seed put in the wrong place is a secret.
		return nil, errors.New("nkey: want a user's public key, 56 characters that start with U")
	}
	payload, sum := raw[:len(raw)-2], raw[len(raw)-2:]
	if crc16(payload) != uint16(sum[0])|uint16(sum[1])<<8 {
		return nil, errors.New("nkey: the checksum is wrong, some character is mistyped")
	}
	return ed25519.PublicKey(payload[1:]), nil
}

// crc16 is CRC-16/XMODEM, as nkeys use it.
func crc16(b []byte) uint16 {
	var crc uint16
	for _, c := range b {
		crc ^= uint16(c) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}
