package e2e

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/pkg/events"
)

func TestConnect(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 1})
	alice := s.Clients[0]
	before := time.Now()
	s.must(alice.Connect(s.ctx))
	published, err := s.Published(s.ctx, 0, events.PeerConnected, alice.PublicKey().String())
	s.must(err)
	delivered := s.await(0, events.PeerConnected, alice.PublicKey().String())

	got, device := published.Event, s.device(alice)
	session := got.Data.(*events.Connected).Session
	want := &events.Event{
		ID:           got.ID,
		Source:       "/nodes/lab/interfaces/wg0",
		Type:         "wg.peer.connected",
		Subject:      alice.PublicKey().String(),
		Time:         device.LastHandshakeTime,
		Sequence:     events.Sequence{Epoch: got.Sequence.Epoch, N: 1},
		PartitionKey: events.StateKey("lab", "wg0", alice.PublicKey()),
		Data: &events.Connected{
			Common: events.Common{Node: "lab", Interface: "wg0", DetectedAt: got.Common().DetectedAt},
			Peer: events.Peer{
				PublicKey: alice.PublicKey(), Name: "alice-laptop", Tags: []string{"lab"},
				Endpoint: device.Endpoint.String(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32")},
			},
			Session: events.Session{
				StartedAt: device.LastHandshakeTime, LastHandshakeAt: device.LastHandshakeTime,
				LastSeen: session.LastSeen, RxBytes: session.RxBytes, TxBytes: session.TxBytes,
			},
		},
	}
	comparable := cmpopts.EquateComparable(netip.Prefix{})
	if diff := cmp.Diff(want, got, comparable); diff != "" {
		t.Errorf("on NATS (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, delivered, comparable); diff != "" {
		t.Errorf("at the receiver (-want +got):\n%s", diff)
	}
	if e := time.UnixMilli(int64(got.Sequence.Epoch)); e.After(before) || before.Sub(e) > time.Minute {
		t.Errorf("the sequence's epoch is %v, want the time of the probe's first start", e)
	}
	if at := got.Common().DetectedAt; at.Before(got.Time) || at.After(published.At) {
		t.Errorf("detected at %v, want a time between the handshake at %v and the arrival at %v", at, got.Time, published.At)
	}
	// The packet that confirmed the session is the last sign of life, or one came before the probe looked.
	if seen := session.LastSeen; seen.After.After(device.LastHandshakeTime) || seen.Before.Before(device.LastHandshakeTime) || seen.Before.After(got.Common().DetectedAt) {
		t.Errorf("last seen between %v and %v, the handshake was at %v", seen.After, seen.Before, device.LastHandshakeTime)
	}
	if rx, tx := session.RxBytes, session.TxBytes; rx == 0 || rx > uint64(device.ReceiveBytes) || tx > uint64(device.TransmitBytes) {
		t.Errorf("%d bytes received and %d sent, the device counts %d and %d", rx, tx, device.ReceiveBytes, device.TransmitBytes)
	}

	// Whoever comes late finds the state, with the place of the event in it.
	bucket, err := s.jetStream("reader").KeyValue(s.ctx, events.StateBucket)
	s.must(err)
	s.eventually(func() error {
		entry, err := bucket.Get(s.ctx, got.PartitionKey)
		if err != nil {
			return err
		}
		state, err := events.DecodeState(entry.Value())
		if err != nil {
			return err
		}
		if !state.Connected {
			return errors.New("the state is still that of a peer without session")
		}
		want := &events.State{
			Node: "lab", Interface: "wg0", Peer: *want.Peer(), Connected: true, Session: state.Session,
			Sequence: got.Sequence, EventID: got.ID, EventType: events.PeerConnected, UpdatedAt: state.UpdatedAt,
		}
		if diff := cmp.Diff(want, state, comparable); diff != "" {
			t.Errorf("state (-want +got):\n%s", diff)
		}
		return nil
	})

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 1 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11"},
	})
}

// TestReconnectInsideTheSession has a client come back before its session is over, as after a reboot: WireGuard cannot tell that from a client that
// was there all the time, except for its port.
func TestReconnectInsideTheSession(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 1})
	alice := s.Clients[0]
	s.connect(alice)
	first := s.device(alice).LastHandshakeTime
	s.must(alice.Down())
	s.expect(events.PeerRoamed, alice.PublicKey().String(), func() error { return alice.Connect(s.ctx) })
	if s.device(alice).LastHandshakeTime.Equal(first) {
		t.Error("there was no second handshake")
	}
	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 1 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "roamed to another port of 203.0.113.11"},
	})
}

func TestRoam(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 3})
	alice, bob, carol := s.Clients[0], s.Clients[1], s.Clients[2]
	s.connect(alice, bob, carol)

	from := s.Sink.Len()
	was := map[*lab.Client]string{}
	for _, c := range s.Clients {
		was[c] = s.device(c).Endpoint.String()
	}
	s.must(alice.Roam(), bob.Rebind(), carol.Roam(), carol.Rebind())
	for _, c := range s.Clients {
		s.must(c.Ping(s.ctx))
		d := s.await(from, events.PeerRoamed, c.PublicKey().String()).Data.(*events.Roamed)
		if is := s.device(c).Endpoint.String(); d.From != was[c] || d.To != is || d.Peer.Endpoint != is {
			t.Errorf("%s roamed from %s to %s and is at %s, want from %s to %s", c.Name, d.From, d.To, d.Peer.Endpoint, was[c], is)
		}
	}
	s.expect(events.PeerRoamed, alice.PublicKey().String(), func() error {
		s.must(alice.Roam())
		return alice.Ping(s.ctx)
	})

	s.end(map[string][]string{
		"lab": {"started, packets", "stopped"},
		"wg0": {"up, 3 peers, inferred"},
		"alice-laptop": {
			"connected from 203.0.113.11", "roamed from 203.0.113.11 to 198.51.100.11", "roamed from 198.51.100.11 to 203.0.113.11",
		},
		"bob-phone":     {"connected from 203.0.113.12", "roamed to another port of 203.0.113.12"},
		"carol-desktop": {"connected from 203.0.113.13", "roamed from 203.0.113.13 to 198.51.100.13"},
	})
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 2})
	alice := s.Clients[0]
	s.connect(alice)
	gone := s.expect(events.PeerRemoved, alice.PublicKey().String(), func() error { return s.Remove(alice) })

	// The mark of the deletion is for those who come late, too.
	js := s.jetStream("reader")
	state, err := js.Stream(s.ctx, events.StreamState)
	s.must(err)
	s.eventually(func() error {
		m, err := state.GetLastMsgForSubject(s.ctx, events.StateSubject(gone.PartitionKey))
		if err == nil && m.Header.Get("KV-Operation") != "DEL" {
			err = errors.New("the state of a removed peer is not deleted")
		}
		return err
	})
	bucket, err := js.KeyValue(s.ctx, events.StateBucket)
	s.must(err)
	if _, err := bucket.Get(s.ctx, gone.PartitionKey); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("the state of a removed peer: %v, want none", err)
	}

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 2 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "disconnected: removed", "removed"},
	})
}

func TestChangedConfiguration(t *testing.T) {
	t.Parallel()
	s := begin(t, patience, lab.Options{Clients: 5})
	alice, bob, carol, dave, erin := s.Clients[0], s.Clients[1], s.Clients[2], s.Clients[3], s.Clients[4]
	s.must(s.Remove(erin), s.Start(s.ctx))
	s.connect(alice) // so that the device is looked at more often

	first := s.Sink.Len()
	moved, kept := bob.Peer(), carol.Peer()
	moved.AllowedIPs = append(moved.AllowedIPs, netip.MustParsePrefix("192.0.2.0/24"))
	kept.Keepalive = 25 * time.Second
	s.must(s.Hub.SetPeer(moved), s.Hub.SetPeer(kept), setPresharedKey(dave), s.Configure(dave), s.Configure(erin))
	for _, c := range []*lab.Client{bob, carol, dave} {
		s.await(first, events.PeerChanged, c.PublicKey().String())
	}
	s.await(first, events.PeerAdded, erin.PublicKey().String())

	s.expect(events.PeerChanged, dave.PublicKey().String(), func() error { return errors.Join(setPresharedKey(dave), s.Configure(dave)) })
	dave.PresharedKey = wgtypes.Key{}
	s.expect(events.PeerChanged, dave.PublicKey().String(), func() error { return s.Configure(dave) })

	s.end(map[string][]string{
		"lab":           {"started, packets", "stopped"},
		"wg0":           {"up, 4 peers, inferred"},
		"alice-laptop":  {"connected from 203.0.113.11"},
		"bob-phone":     {"changed: allowed IPs from [10.9.0.3/32] to [10.9.0.3/32 192.0.2.0/24]"},
		"carol-desktop": {"changed: keepalive from 0 to 25"},
		"dave-tablet":   {"changed: preshared key set", "changed: preshared key replaced", "changed: preshared key unset"},
		"erin-router":   {"added"},
	})
}

// setPresharedKey gives a client a new one. The hub learns it by Configure.
func setPresharedKey(c *lab.Client) (err error) {
	c.PresharedKey, err = wgtypes.GenerateKey()
	return err
}

func TestReplacedKey(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 1})
	alice := s.Clients[0]
	s.connect(alice)
	s.must(alice.Down(), s.ReplaceKey(alice))
	s.names[alice.PublicKey().String()] = "alice-laptop, new key"
	s.connect(alice)
	s.end(map[string][]string{
		"lab":                   {"started, packets", "stopped"},
		"wg0":                   {"up, 1 peers, inferred"},
		"alice-laptop":          {"connected from 203.0.113.11", "disconnected: removed", "removed"},
		"alice-laptop, new key": {"added", "connected from 203.0.113.11"},
	})
}

// TestExpired waits the real 180 s, which is when a peer is told gone where only what is certain is told. Beside a client that goes there is one that stays:
// its session is renewed on the way, and nothing is told of it.
func TestExpired(t *testing.T) {
	t.Parallel()
	s := begin(t, 5*time.Minute, lab.Options{Clients: 2, ProbeEnv: []string{"PROBE_SILENCE=off"}})
	alice, bob := s.Clients[0], s.Clients[1]
	bob.Keepalive = 25 * time.Second
	s.must(s.Start(s.ctx))
	s.connect(alice, bob)
	renewed := s.device(bob).LastHandshakeTime
	handshake, connected := s.device(alice).LastHandshakeTime, time.Now()
	s.must(alice.Down())

	e := s.await(0, events.PeerDisconnected, alice.PublicKey().String())
	d := e.Data.(*events.Disconnected)
	if d.Reason != events.Expired {
		t.Errorf("reason is %s", d.Reason)
	}
	// Its keys may be used for 180 s, and not a moment longer: the time of the event is not when it was noticed.
	if after := e.Time.Sub(handshake); after < 179*time.Second || after > 182*time.Second {
		t.Errorf("expired %v after the handshake, want 180 s", after)
	}
	if late := d.DetectedAt.Sub(e.Time); late < 0 || late > 5*time.Second {
		t.Errorf("noticed %v after it happened", late)
	}
	if !d.Session.LastHandshakeAt.Equal(handshake) || d.Session.DurationSeconds < 179 || d.Session.DurationSeconds > 182 {
		t.Errorf("session is %+v, want its handshake at %v and 180 s", d.Session, handshake)
	}
	// The last packet came between the handshake and connected.
	if seen := d.Session.LastSeen; seen.After.After(connected) || seen.Before.Before(handshake) || seen.Before.Sub(handshake) > 30*time.Second {
		t.Errorf("last seen between %v and %v, the last packets came between %v and %v", seen.After, seen.Before, handshake, connected)
	}
	if s.device(bob).LastHandshakeTime.Equal(renewed) {
		t.Error("the session of the client that stays was not renewed, so this shows nothing")
	}
	s.connect(alice)

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 2 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "disconnected: expired", "connected from 203.0.113.11"},
		"bob-phone":    {"connected from 203.0.113.12"},
	})
}
