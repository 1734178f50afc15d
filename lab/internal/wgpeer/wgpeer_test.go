package wgpeer_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/testreq"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
)

var (
	hubEndpoint = netip.MustParseAddrPort("192.0.2.1:51820")
	hubInside   = netip.MustParseAddr("10.9.0.1")
	inside      = netip.MustParseAddr("10.9.0.2")
)

// pair is a hub and one client, in namespaces joined by a cable, configured for each other.
type pair struct {
	hubNS, clientNS   *netns.NS
	hub, client       *wgpeer.Device
	hubKey, clientKey wgtypes.Key
	sent              chan wgpeer.Sent // by the client
}

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func newPair(t *testing.T) *pair {
	t.Helper()
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	p := &pair{hubKey: newKey(t), clientKey: newKey(t), sent: make(chan wgpeer.Sent, 16)}
	for _, ns := range []**netns.NS{&p.hubNS, &p.clientNS} {
		n, err := netns.New()
		must(t, err)
		t.Cleanup(n.Close)
		*ns = n
	}
	must(t,
		netns.Pair(p.hubNS, "eth0", p.clientNS, "eth0"),
		p.hubNS.AddAddr("eth0", netip.MustParsePrefix("192.0.2.1/24")),
		p.clientNS.AddAddr("eth0", netip.MustParsePrefix("192.0.2.2/24")),
	)
	var err error
	p.hub, err = wgpeer.New(wgpeer.Config{
		NS: p.hubNS, Name: "wg0", PrivateKey: p.hubKey, ListenPort: int(hubEndpoint.Port()),
		Address: netip.MustParsePrefix("10.9.0.1/24"), UAPI: true,
	})
	must(t, err)
	t.Cleanup(func() { p.hub.Close() })
	p.client, err = wgpeer.New(wgpeer.Config{
		NS: p.clientNS, Name: "wg0", PrivateKey: p.clientKey, Address: netip.PrefixFrom(inside, 24),
		OnSend: func(s wgpeer.Sent) { p.sent <- s },
	})
	must(t, err)
	t.Cleanup(func() { p.client.Close() })
	must(t,
		p.hub.SetPeer(wgpeer.Peer{PublicKey: p.clientKey.PublicKey(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32")}}),
		p.client.SetPeer(wgpeer.Peer{
			PublicKey: p.hubKey.PublicKey(), Endpoint: hubEndpoint, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")},
		}),
	)
	return p
}

func (p *pair) ping(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return wgpeer.Ping(ctx, p.clientNS, inside, hubInside)
}

// peer is the client as the hub shows it to other programs.
func (p *pair) peer(t *testing.T) wgtypes.Peer {
	t.Helper()
	dev, err := p.hub.Observe()
	must(t, err)
	if len(dev.Peers) != 1 {
		t.Fatalf("hub has %d peers, want 1", len(dev.Peers))
	}
	return dev.Peers[0]
}

func TestPingMakesASession(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	if got := p.peer(t); !got.LastHandshakeTime.IsZero() {
		t.Fatalf("handshake before any packet: %+v", got)
	}
	before := time.Now()
	must(t, p.ping(t))

	got := p.peer(t)
	if got.LastHandshakeTime.Before(before.Add(-time.Second)) || got.ReceiveBytes == 0 {
		t.Errorf("no session after a ping: %+v", got)
	}
	if want := "192.0.2.2"; got.Endpoint == nil || got.Endpoint.IP.String() != want {
		t.Errorf("endpoint %v, want %s", got.Endpoint, want)
	}

	first, second := <-p.sent, <-p.sent
	if first.Kind != wgpeer.Initiation || second.Kind != wgpeer.FirstData {
		t.Errorf("sent kinds %v, %v, want an initiation and the first data packet", first.Kind, second.Kind)
	}
	if first.To != hubEndpoint || first.At.Before(before) || second.At.Before(first.At) {
		t.Errorf("sent %+v then %+v", first, second)
	}
}

func TestRoaming(t *testing.T) {
	t.Parallel()
	tests := map[string]func(p *pair) error{
		"to another address": func(p *pair) error {
			return errors.Join(
				p.clientNS.DeleteAddr("eth0", netip.MustParsePrefix("192.0.2.2/24")),
				p.clientNS.AddAddr("eth0", netip.MustParsePrefix("192.0.2.3/24")),
				p.client.SetEndpoint(p.hubKey.PublicKey(), hubEndpoint),
			)
		},
		"to another network": func(p *pair) error {
			return errors.Join(
				p.hubNS.AddAddr("eth0", netip.MustParsePrefix("198.51.100.1/24")),
				p.clientNS.AddAddr("eth0", netip.MustParsePrefix("198.51.100.2/24")),
				p.clientNS.DeleteAddr("eth0", netip.MustParsePrefix("192.0.2.2/24")),
				p.clientNS.SetDefaultRoute("eth0", netip.MustParseAddr("198.51.100.1")),
				p.client.SetEndpoint(p.hubKey.PublicKey(), hubEndpoint),
			)
		},
		"to another port": func(p *pair) error { return p.client.SetListenPort(40404) },
	}
	want := map[string]string{
		"to another address": "192.0.2.3",
		"to another network": "198.51.100.2",
		"to another port":    "192.0.2.2",
	}
	for name, roam := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			must(t, p.ping(t))
			before := p.peer(t)
			must(t, roam(p))
			must(t, p.ping(t))

			after := p.peer(t)
			if !after.LastHandshakeTime.Equal(before.LastHandshakeTime) {
				t.Error("a new handshake; roaming keeps the session")
			}
			if after.Endpoint.String() == before.Endpoint.String() || after.Endpoint.IP.String() != want[name] {
				t.Errorf("endpoint %v, was %v, want the address %s", after.Endpoint, before.Endpoint, want[name])
			}
		})
	}
}

func TestPeerWithPresharedKey(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	psk := newKey(t)
	must(t,
		p.hub.SetPeer(wgpeer.Peer{
			PublicKey: p.clientKey.PublicKey(), PresharedKey: psk, Keepalive: 25 * time.Second,
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32")},
		}),
		p.client.SetPeer(wgpeer.Peer{
			PublicKey: p.hubKey.PublicKey(), PresharedKey: psk, Endpoint: hubEndpoint,
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")},
		}),
		p.ping(t),
	)
	if got := p.peer(t); got.PresharedKey != psk || got.PersistentKeepaliveInterval != 25*time.Second {
		t.Errorf("hub has preshared key set: %t, keepalive %v", got.PresharedKey != wgtypes.Key{}, got.PersistentKeepaliveInterval)
	}
}

func TestRemovedPeerIsNotAnswered(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	must(t, p.ping(t), p.hub.RemovePeer(p.clientKey.PublicKey()))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := wgpeer.Ping(ctx, p.clientNS, inside, hubInside); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping of a removed peer: %v", err)
	}
}

func TestLinkDownAndUp(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	must(t, p.hub.SetLink(false), p.hub.SetLink(true), p.ping(t))
}

func TestCloseRemovesTheDevice(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	must(t, p.ping(t), p.hub.Close(), p.hub.Close())
	if err := p.hubNS.Do(func() error {
		if _, err := net.InterfaceByName("wg0"); err == nil {
			return errors.New("TUN device is still there")
		}
		left, err := os.ReadDir("/var/run/wireguard")
		if len(left) > 0 {
			return errors.New("the device's socket is still there")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestImpairedPath(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	must(t, p.ping(t))
	late := wgpeer.Impairment{Delay: 40 * time.Millisecond, Jitter: 10 * time.Millisecond}
	p.client.Impair(hubEndpoint.Addr(), late)
	p.hub.Impair(netip.MustParseAddr("192.0.2.2"), late)
	before := time.Now()
	must(t, p.ping(t))
	if took := time.Since(before); took < 60*time.Millisecond {
		t.Errorf("a ping over 30 ms or more in each direction takes %v", took)
	}
	for name, cut := range map[string]func(wgpeer.Impairment){
		"to the hub":   func(i wgpeer.Impairment) { p.client.Impair(hubEndpoint.Addr(), i) },
		"from the hub": func(i wgpeer.Impairment) { p.hub.Impair(netip.MustParseAddr("192.0.2.2"), i) },
	} {
		cut(wgpeer.Impairment{Loss: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := wgpeer.Ping(ctx, p.clientNS, inside, hubInside); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("all lost %s: %v", name, err)
		}
		cancel()
		cut(wgpeer.Impairment{})
	}
	must(t, p.ping(t))
}
