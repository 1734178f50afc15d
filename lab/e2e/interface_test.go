package e2e

import (
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/pkg/events"
)

func TestInterfaceDownAndUp(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 2})
	alice, bob := s.Clients[0], s.Clients[1]
	s.connect(alice)

	from := s.Sink.Len()
	down := s.expect(events.InterfaceDown, lab.Interface, func() error { return s.Hub.SetLink(false) })
	left := s.await(from, events.PeerDisconnected, alice.PublicKey().String())
	if left.Time.Before(down.Time) {
		t.Errorf("the peer is gone at %v, before the interface at %v", left.Time, down.Time)
	}
	up := s.expect(events.InterfaceUp, lab.Interface, func() error { return s.Hub.SetLink(true) })
	// The device still shows the handshake from before. Only a new one is a session.
	s.must(alice.Down())
	s.connect(alice, bob)
	again := s.await(from, events.PeerConnected, alice.PublicKey().String())
	if started := again.Data.(*events.Connected).Session.StartedAt; started.Before(up.Time) {
		t.Errorf("the session began at %v, before the interface was up at %v", started, up.Time)
	}

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 2 peers, inferred", "down: set_down", "up, 2 peers"},
		"alice-laptop": {"connected from 203.0.113.11", "disconnected: interface_down", "connected from 203.0.113.11"},
		"bob-phone":    {"connected from 203.0.113.12"},
	})
}

func TestInterfaceDeletedAndRecreated(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 2})
	alice, bob := s.Clients[0], s.Clients[1]
	s.connect(alice)

	from := s.Sink.Len()
	s.expect(events.InterfaceDown, lab.Interface, s.DeleteHub)
	s.await(from, events.PeerDisconnected, alice.PublicKey().String())
	s.must(alice.Down())
	s.expect(events.InterfaceUp, lab.Interface, func() error { return s.CreateHub(alice, bob) })
	s.connect(alice, bob)

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 2 peers, inferred", "down: deleted", "up, 2 peers"},
		"alice-laptop": {"connected from 203.0.113.11", "disconnected: interface_down", "connected from 203.0.113.11"},
		"bob-phone":    {"connected from 203.0.113.12"},
	})
}

func TestChangedInterface(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 1})
	s.connect(s.Clients[0]) // so that the device is looked at more often
	s.expect(events.InterfaceChanged, lab.Interface, func() error { return s.Hub.SetListenPort(51821) })
	key, err := wgtypes.GeneratePrivateKey()
	s.must(err)
	e := s.expect(events.InterfaceChanged, lab.Interface, func() error { return s.Hub.SetPrivateKey(key) })
	if d := e.Data.(*events.DeviceChanged); d.Device.PublicKey != events.Key(key.PublicKey()) || d.Changes.PublicKey == nil || d.Changes.PublicKey.To != d.Device.PublicKey {
		t.Errorf("the device has another key than was set: %+v", d)
	}

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 1 peers, inferred", "changed port from 51820 to 51821", "changed key"},
		"alice-laptop": {"connected from 203.0.113.11"},
	})
}
