package events_test

import (
	"crypto/ed25519"
	"fmt"
	"os"

	"github.com/wgherald/wgherald/pkg/events"
)

func ExampleDecode() {
	body, err := os.ReadFile("testdata/wg.peer.connected.json") // in a subscriber: msg.Data()
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := events.Decode(body)
	if err != nil {
		fmt.Println(err)
		return
	}
	switch d := e.Data.(type) {
	case *events.Connected:
		fmt.Println(d.Peer.Name, "came from", d.Peer.Endpoint)
	case *events.Disconnected:
		fmt.Println(d.Peer.Name, "left:", d.Reason)
	}
	// Output: alice-laptop came from 203.0.113.7:41641
}

func ExampleVerify() {
	body, err := os.ReadFile("testdata/wg.peer.connected.json")
	if err != nil {
		fmt.Println(err)
		return
	}
	probe := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // the probe's own; a subscriber has the public half
	signature := events.Sign(body, probe)                           // in a subscriber: msg.Headers().Get(events.HeaderSignature)

	ring := events.Keyring{"vpn-1": {probe.Public().(ed25519.PublicKey)}} // in a subscriber: events.ParseKeyring
	e, err := events.Verify(body, signature, ring)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(e.Type, "is proven to come from", e.Common().Node)
	// Output: wg.peer.connected is proven to come from vpn-1
}

func ExampleStateKey() {
	key, err := events.ParseKey("KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg=")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(events.StateKey("vpn.example.org", "wg0", key))
	// Output: vpn=2Eexample=2Eorg.wg0.KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg
}
