package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Names of the JetStream streams and the key-value bucket, for whoever reads them.
const (
	StreamEvents = "WG_EVENTS"    // every event, for seven days
	StateBucket  = "WG_PEERS"     // the current state of every peer
	StreamState  = "KV_WG_PEERS"  // the stream behind StateBucket
	stateSubject = "$KV.WG_PEERS" // where StreamState listens
)

// StateSubject returns the subject of a StateKey.
func StateSubject(key string) string { return stateSubject + "." + key }

// StateKey returns the key of a peer in StateBucket: "<node>.<interface>.<public key>", the key in unpadded base64url, and each byte of node and
// interface outside [A-Za-z0-9_-] as =XX. A dot would split permissions, and + is no legal key.
func StateKey(node, iface string, key Key) string {
	return escapeToken(node) + "." + escapeToken(iface) + "." + key.urlSafe()
}

// ParseStateKey is the inverse of StateKey.
func ParseStateKey(s string) (node, iface string, key Key, err error) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return "", "", Key{}, fmt.Errorf("state key %.200q: want <node>.<interface>.<public key>", s)
	}
	if node, err = unescapeToken(parts[0]); err == nil {
		if iface, err = unescapeToken(parts[1]); err == nil {
			key, err = parseURLSafe(parts[2])
		}
	}
	if err != nil {
		return "", "", Key{}, fmt.Errorf("state key %.200q: %w", s, err)
	}
	return node, iface, key, nil
}

const upperHex = "0123456789ABCDEF"

func isTokenByte(c byte) bool {
	return c == '_' || c == '-' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// EscapeNode returns a node's name as it stands in a StateKey, for broker permissions such as "$KV.WG_PEERS.<node>.>".
func EscapeNode(node string) string { return escapeToken(node) }

func escapeToken(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if isTokenByte(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('=')
		b.WriteByte(upperHex[c>>4])
		b.WriteByte(upperHex[c&15])
	}
	return b.String()
}

func unescapeToken(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case isTokenByte(c):
			b.WriteByte(c)
		case c == '=' && i+2 < len(s):
			hi, lo := strings.IndexByte(upperHex, s[i+1]), strings.IndexByte(upperHex, s[i+2])
			if hi < 0 || lo < 0 || isTokenByte(byte(hi<<4|lo)) {
				return "", fmt.Errorf("token %.80q: %q is no escaped byte", s, s[i:i+3])
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 2
		default:
			return "", fmt.Errorf("token %.80q: byte %d must be escaped as =XX", s, i)
		}
	}
	if b.Len() == 0 {
		return "", errors.New("token is empty")
	}
	return b.String(), nil
}

// State is the value of a StateKey: the peer as it now is. A reader keeps the value with the highest Sequence and ignores lower ones; a value
// without Sequence was written when the peer was first seen, before any event about it.
type State struct {
	Node      string    `json:"node"`
	Interface string    `json:"interface"`
	Peer      Peer      `json:"peer"`
	Connected bool      `json:"connected"`
	Session   *Session  `json:"session,omitempty"`   // the current session, or the last one
	Sequence  Sequence  `json:"sequence,omitzero"`   // of the last event about the peer
	EventID   string    `json:"eventID,omitempty"`   // of the last event about the peer
	EventType Type      `json:"eventType,omitempty"` // of the last event about the peer
	UpdatedAt time.Time `json:"updatedAt"`
}

// Encode returns the value in JSON.
func (s *State) Encode() ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	return marshal(s)
}

// DecodeState reads the value of a StateKey. A removed peer has no value: its key is deleted.
func DecodeState(value []byte) (*State, error) {
	if len(value) > MaxSize {
		return nil, fmt.Errorf("decode state: %w: %d bytes", ErrTooLarge, len(value))
	}
	var s State
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	return &s, nil
}

func (s *State) validate() error {
	err := errors.Join(ValidateName(s.Node), ValidateName(s.Interface), s.Peer.validate())
	if s.Session != nil {
		err = errors.Join(err, s.Session.validate())
	}
	if s.Connected && s.Session == nil {
		err = errors.Join(err, errors.New("session is missing of a connected peer"))
	}
	if err != nil {
		return fmt.Errorf("state of %.80q: %w", s.Peer.PublicKey, err)
	}
	return nil
}
