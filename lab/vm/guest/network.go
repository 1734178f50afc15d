package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/vm"
)

// Addresses that the hub has, and those in the tunnel.
var (
	hubForAlice     = netip.MustParsePrefix("203.0.113.1/24")
	hubForAliceAway = netip.MustParsePrefix("198.51.100.1/24")
	hubForBob       = netip.MustParsePrefix("192.0.2.1/24")
	hubInside       = netip.MustParsePrefix("10.9.0.1/24")
	aliceInside     = netip.MustParsePrefix("10.9.0.2/24")
	bobInside       = netip.MustParsePrefix("10.9.0.3/24")
	aliceHome       = netip.MustParsePrefix("203.0.113.11/24")
	aliceAway       = netip.MustParsePrefix("198.51.100.11/24")
	bobHome         = netip.MustParsePrefix("192.0.2.12/24")
)

const listenPort = 51820 // of the hub

// host is a namespace with a WireGuard device of the kernel.
type host struct {
	*netns.NS
	ctl    *wgctrl.Client
	key    wgtypes.Key
	inside netip.Prefix
}

// newHost makes a host whose device is down and has no peers.
func newHost(inside netip.Prefix, port *int) (*host, error) {
	h := &host{inside: inside}
	var err error
	if h.key, err = wgtypes.GeneratePrivateKey(); err != nil {
		return nil, err
	}
	if h.NS, err = netns.New(); err != nil {
		return nil, err
	}
	if err := h.Do(func() (err error) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = vm.Interface
		if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
			return err
		}
		h.ctl, err = wgctrl.New()
		return err
	}); err != nil {
		return nil, fmt.Errorf("make WireGuard device: %w", err)
	}
	return h, errors.Join(h.AddAddr(vm.Interface, inside), h.configure(wgtypes.Config{PrivateKey: &h.key, ListenPort: port}))
}

func (h *host) configure(c wgtypes.Config) error {
	if err := h.ctl.ConfigureDevice(vm.Interface, c); err != nil {
		return fmt.Errorf("configure WireGuard device: %w", err)
	}
	return nil
}

// setPeer adds or changes a peer.
func (h *host) setPeer(p wgtypes.PeerConfig) error {
	return h.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{p}})
}

// rekey gives the device another private key, with a link down in between: it ends the attempts to shake hands.
func (h *host) rekey(key wgtypes.Key) error {
	return errors.Join(h.SetLink(vm.Interface, false), h.configure(wgtypes.Config{PrivateKey: &key}), h.SetLink(vm.Interface, true))
}

// knock sends one packet into the tunnel, at nobody, which makes WireGuard shake hands.
func (h *host) knock() error {
	c, err := h.Dial("udp", netip.AddrPortFrom(hubInside.Addr(), 9).String()) // discard
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("knock"))
	return err
}

// join connects a client with the hub and makes each the other's peer. The hub's end of the link has the client's name.
func join(hub, client *host, name string, atHub, atClient netip.Prefix, psk *wgtypes.Key) error {
	return errors.Join(
		netns.Pair(hub.NS, name, client.NS, "eth0"),
		hub.AddAddr(name, atHub),
		client.AddAddr("eth0", atClient),
		hub.setPeer(wgtypes.PeerConfig{PublicKey: client.key.PublicKey(), PresharedKey: psk, AllowedIPs: allowed(netip.PrefixFrom(client.inside.Addr(), 32))}),
		client.setPeer(wgtypes.PeerConfig{
			PublicKey: hub.key.PublicKey(), AllowedIPs: allowed(hubInside.Masked()),
			Endpoint: net.UDPAddrFromAddrPort(netip.AddrPortFrom(atHub.Addr(), listenPort)),
		}),
	)
}

func allowed(p netip.Prefix) []net.IPNet {
	return []net.IPNet{{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
}
