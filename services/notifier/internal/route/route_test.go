package route_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
)

func golden(t *testing.T, typ events.Type) *events.Event {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../../../pkg/events/testdata", string(typ)+".json"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := events.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestWants(t *testing.T) {
	t.Parallel()
	connected := golden(t, events.PeerConnected)
	peer := connected.Peer()
	peer.Name, peer.Tags = "alice-laptop", []string{"staff", "berlin"}
	key := peer.PublicKey.String()
	node, iface := connected.Common().Node, connected.Common().Interface
	slash := *connected // a key with a slash in the middle
	slash.Subject = "ab/cdWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg="

	at := func(endpoint string) *events.Event {
		e := golden(t, events.PeerConnected)
		e.Peer().Endpoint = endpoint
		return e
	}

	for _, tt := range []struct {
		name  string
		rules route.Rules
		event *events.Event
		want  bool
	}{
		{"no rules take a peer event", route.Rules{}, connected, true},
		{"no rules take a probe event", route.Rules{}, golden(t, events.ProbeStarted), true},
		{"type", route.Rules{Types: []string{"wg.peer.connected"}}, connected, true},
		{"one of several types", route.Rules{Types: []string{"wg.peer.roamed", "wg.peer.connected"}}, connected, true},
		{"type glob", route.Rules{Types: []string{"wg.peer.*"}}, connected, true},
		{"other type", route.Rules{Types: []string{"wg.interface.*"}}, connected, false},
		{"node", route.Rules{Nodes: []string{node}}, connected, true},
		{"other node", route.Rules{Nodes: []string{node + "x"}}, connected, false},
		{"interface", route.Rules{Interfaces: []string{iface}}, connected, true},
		{"interface glob", route.Rules{Interfaces: []string{"wg[0-9]*"}}, connected, true},
		{"interface of a probe event", route.Rules{Interfaces: []string{"*"}}, golden(t, events.ProbeStarted), false},
		{"peer by name", route.Rules{Peers: []string{"alice-*"}}, connected, true},
		{"peer by key", route.Rules{Peers: []string{key}}, connected, true},
		{"peer by the start of a key with a slash", route.Rules{Peers: []string{"ab*"}}, &slash, true},
		{"peer by a key with a slash", route.Rules{Peers: []string{slash.Subject}}, &slash, true},
		{"other peer", route.Rules{Peers: []string{"bob-*"}}, connected, false},
		{"rejected peer by key", route.Rules{Peers: []string{golden(t, events.PeerRejected).Subject}}, golden(t, events.PeerRejected), true},
		{"any peer is no interface", route.Rules{Peers: []string{"*"}}, golden(t, events.InterfaceUp), false},
		{"tag", route.Rules{Tags: []string{"berlin"}}, connected, true},
		{"tag glob", route.Rules{Tags: []string{"sta*"}}, connected, true},
		{"other tag", route.Rules{Tags: []string{"guest"}}, connected, false},
		{"tag of an interface event", route.Rules{Tags: []string{"*"}}, golden(t, events.InterfaceUp), false},
		{"all lists must pass", route.Rules{Types: []string{"wg.peer.*"}, Tags: []string{"guest"}}, connected, false},
		{"endpoint in a network", route.Rules{Endpoints: []string{"203.0.113.0/24"}}, connected, true},
		{"endpoint in the second network", route.Rules{Endpoints: []string{"2001:db8::/32", "203.0.0.0/16"}}, connected, true},
		{"endpoint that is the address", route.Rules{Endpoints: []string{"203.0.113.7"}}, connected, true},
		{"endpoint that is the address, mapped", route.Rules{Endpoints: []string{"::ffff:203.0.113.7"}}, connected, true},
		{"endpoint elsewhere", route.Rules{Endpoints: []string{"203.0.112.0/24"}}, connected, false},
		{"every IPv6 endpoint is not IPv4", route.Rules{Endpoints: []string{"::/0"}}, connected, false},
		{"endpoint written as mapped", route.Rules{Endpoints: []string{"203.0.113.0/24"}}, at("[::ffff:203.0.113.7]:1"), true},
		{"endpoint with a zone", route.Rules{Endpoints: []string{"fe80::/10"}}, at("[fe80::1%eth0]:1"), true},
		{"prefix within the network", route.Rules{Endpoints: []string{"203.0.0.0/16"}}, at("203.0.113.0/24"), true},
		{"prefix that is the network", route.Rules{Endpoints: []string{"203.0.113.0/24"}}, at("203.0.113.0/24"), true},
		{"prefix that may be in the network", route.Rules{Endpoints: []string{"203.0.113.0/25"}}, at("203.0.113.0/24"), false},
		{"prefix and an address", route.Rules{Endpoints: []string{"203.0.113.7"}}, at("203.0.113.0/24"), false},
		{"no endpoint", route.Rules{Endpoints: []string{"0.0.0.0/0", "::/0"}}, at(""), false},
		{"endpoint of a rejected peer", route.Rules{Endpoints: []string{"2001:db8::/32"}}, golden(t, events.PeerRejected), true},
		{"where a peer roamed to", route.Rules{Endpoints: []string{"203.0.113.7"}}, golden(t, events.PeerRoamed), true},
		{"where a peer roamed from", route.Rules{Endpoints: []string{"198.51.100.4"}}, golden(t, events.PeerRoamed), true},
		{"an interface has no endpoint", route.Rules{Endpoints: []string{"0.0.0.0/0"}}, golden(t, events.InterfaceUp), false},
		{"endpoint and tag", route.Rules{Endpoints: []string{"203.0.113.7"}, Tags: []string{"guest"}}, connected, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f, err := route.Compile(tt.rules)
			if err != nil {
				t.Fatal(err)
			}
			if have := f.Wants(tt.event); have != tt.want {
				t.Errorf("wants it: %t, want %t", have, tt.want)
			}
		})
	}
}

func TestCompileNamesEveryMistake(t *testing.T) {
	t.Parallel()
	_, err := route.Compile(route.Rules{
		Types: []string{"wg.peer.conected", "wg.*"},
		Nodes: []string{"[vpn"},
		Tags:  []string{""},
		Peers: []string{"alice", `\`},

		Endpoints: []string{"203.0.113.0/24", "203.0.113.7/24", "alice.example:1", "fe80::1%eth0", "::ffff:203.0.113.0/120"},
	})
	if err == nil {
		t.Fatal("nothing is refused")
	}
	for _, want := range []string{
		`types: pattern "wg.peer.conected" matches no event type`, `nodes: pattern "[vpn" is malformed`, "tags: empty pattern",
		`peers: pattern "\\" is malformed`, "endpoints: 203.0.113.7/24 has bits beyond its prefix: want 203.0.113.0/24 or 203.0.113.7",
		`endpoints: "alice.example:1" is neither a network`, `endpoints: "fe80::1%eth0" is neither`,
		"endpoints: ::ffff:203.0.113.0/120: write it as an IPv4 network",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%v", want, err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("wg[0-9]*", "wg0")
	f.Add(`\`, "")
	f.Fuzz(func(t *testing.T, pattern, node string) {
		filter, err := route.Compile(route.Rules{Nodes: []string{pattern}})
		if err != nil {
			return
		}
		e := golden(t, events.PeerConnected)
		e.Common().Node = node
		filter.Wants(e) // must not panic
	})
}
