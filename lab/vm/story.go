package vm

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"

	"github.com/wgherald/wgherald/pkg/events"
)

const (
	Node      = "vm"  // of the probe
	Interface = "wg0" // on the hub
)

// Addresses of the clients, which are outside of the tunnel.
const (
	aliceHome = "203.0.113.11"
	aliceAway = "198.51.100.11"
	bobHome   = "192.0.2.12"
)

// Step is a part of the story. The next one begins when all of Told has arrived.
type Step struct {
	Name string
	Told []Told
}

// Told is what the story wants of an event.
type Told struct {
	Type   events.Type
	About  string // a client, an interface or a node
	Detail string // see Tell
}

// Story is what is acted out, step by step, with all that is told of it, in this order.
var Story = []Step{
	{"start", []Told{{events.ProbeStarted, Node, "packets"}, {events.InterfaceUp, Interface, "as found"}}},
	{"alice connects", []Told{{events.PeerConnected, "alice", aliceHome}}},
	{"alice roams", []Told{{events.PeerRoamed, "alice", aliceHome + " to " + aliceAway}}},
	{"alice has another key", []Told{{events.PeerRejected, "stranger", aliceAway}}},
	{"bob has another preshared key", []Told{{events.PeerStalled, "bob", bobHome}}},
	{"bob has the right preshared key", []Told{{events.PeerConnected, "bob", bobHome}}},
	{"alice is removed", []Told{{events.PeerDisconnected, "alice", "removed"}, {events.PeerRemoved, "alice", aliceAway}}},
	{"the interface goes down", []Told{{events.InterfaceDown, Interface, "set_down"}, {events.PeerDisconnected, "bob", "interface_down"}}},
	{"the interface comes up", []Told{{events.InterfaceUp, Interface, ""}}},
	{"stop", []Told{{events.ProbeStopped, Node, ""}}},
}

// Tell says of an event what Story says. The names are those of public keys. The detail is a trigger, a reason, or else the address of the peer's
// endpoint; of an interface that was up before the probe it is that.
func Tell(e *events.Event, names map[string]string) Told {
	t := Told{Type: e.Type, About: e.Subject}
	if name, ok := names[e.Subject]; ok {
		t.About = name
	}
	switch d := e.Data.(type) {
	case *events.Started:
		t.Detail = string(d.Trigger)
	case *events.Up:
		if d.Inferred {
			t.Detail = "as found"
		}
	case *events.Down:
		t.Detail = string(d.Reason)
	case *events.Disconnected:
		t.Detail = string(d.Reason)
	case *events.Roamed:
		t.Detail = address(d.From) + " to " + address(d.To)
	case *events.Rejected:
		t.Detail = address(d.Endpoint)
	default:
		if p := e.Peer(); p != nil {
			t.Detail = address(p.Endpoint)
		}
	}
	return t
}

func address(endpoint string) string {
	ap, err := netip.ParseAddrPort(endpoint)
	if err != nil {
		return endpoint
	}
	return ap.Addr().String()
}

// Prefix begins the lines on the console that are for the test. The others are for whoever wants to know why it failed.
const Prefix = "wgherald-vm: "

// Line is one such line: JSON after the prefix. It has one of these fields, or Event with Signature.
type Line struct {
	Names     map[string]string `json:",omitempty"` // of public keys
	Keyring   string            `json:",omitempty"` // of the probe
	Event     json.RawMessage   `json:",omitempty"` // as it was received, in order of arrival
	Signature string            `json:",omitempty"` // by the probe
	Figure    string            `json:",omitempty"` // something measured
	End       bool              `json:",omitempty"` // of the story: all of it was acted out
}

// Print writes a line.
func Print(w io.Writer, l Line) error {
	text := bytes.NewBufferString(Prefix)
	enc := json.NewEncoder(text)
	enc.SetEscapeHTML(false) // would change an event, whose very bytes are signed
	if err := enc.Encode(l); err != nil {
		return err
	}
	_, err := w.Write(text.Bytes()) // at once: the kernel does not mix what two processes write at once
	return err
}
