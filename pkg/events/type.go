package events

import "strings"

// Type names a kind of event. It is the CloudEvents type and the NATS subject.
type Type string

// The catalogue. The package comment tells what each one means.
const (
	PeerConnected    Type = "wg.peer.connected"
	PeerDisconnected Type = "wg.peer.disconnected"
	PeerRoamed       Type = "wg.peer.roamed"
	PeerStalled      Type = "wg.peer.stalled"
	PeerRejected     Type = "wg.peer.rejected"
	PeerAdded        Type = "wg.peer.added"
	PeerRemoved      Type = "wg.peer.removed"
	PeerChanged      Type = "wg.peer.changed"
	InterfaceUp      Type = "wg.interface.up"
	InterfaceDown    Type = "wg.interface.down"
	InterfaceChanged Type = "wg.interface.changed"
	ProbeStarted     Type = "wg.probe.started"
	ProbeStopped     Type = "wg.probe.stopped"
)

// Types returns the whole catalogue in its documented order.
func Types() []Type {
	return []Type{
		PeerConnected, PeerDisconnected, PeerRoamed, PeerStalled, PeerRejected, PeerAdded, PeerRemoved, PeerChanged,
		InterfaceUp, InterfaceDown, InterfaceChanged, ProbeStarted, ProbeStopped,
	}
}

// scope is the second token of a type. It decides what an event is about, and with that its source, subject and partition key.
type scope string

const (
	scopePeer      scope = "peer"
	scopeInterface scope = "interface"
	scopeProbe     scope = "probe"
)

// scope returns the scope of t, or false when t is not "wg.<scope>.<token>" with a known scope. Types outside the catalogue but of this form come
// from a newer probe and decode as Unknown.
func (t Type) scope() (scope, bool) {
	parts := strings.Split(string(t), ".")
	if len(parts) != 3 || parts[0] != "wg" || !isToken(parts[2]) {
		return "", false
	}
	s := scope(parts[1])
	switch s {
	case scopePeer, scopeInterface, scopeProbe:
		return s, true
	}
	return "", false
}

// isToken reports whether s is a lower-case word, as the last token of a type is.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		if c != '_' && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != ""
}
