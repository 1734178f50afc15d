package wgstate

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// Kind says which implementation runs a device.
type Kind string

// The implementations that exist on Linux.
const (
	Kernel    Kind = "kernel"    // the wireguard module
	Userspace Kind = "userspace" // a process behind a TUN interface and a socket in /var/run/wireguard
)

// Link is a WireGuard interface as the kernel lists it, before anything is asked of the device behind it.
type Link struct {
	Name    string
	Ifindex int // unique in the network namespace as long as the interface lives
	Up      bool
	Kind    Kind
}

// Device is one reading of a WireGuard device.
type Device struct {
	Name       string
	Ifindex    int
	Up         bool // IFF_UP, of the TUN for a userspace device; not whether anybody is connected
	Kind       Kind
	PublicKey  events.Key // zero while the device has no private key
	ListenPort int        // UDP
	Peers      []Peer     // in no particular order

	// Responder opens handshakes to the device, and keeps Peers. It is the same object as long as the device has the same private key, nil while it
	// has none.
	Responder *wgmsg.Responder
	Cost      time.Duration // CPU time that the reading took here; what a userspace device's own process took is not in it
}

// Peer is one configured peer in a reading of its device.
type Peer struct {
	PublicKey     events.Key
	Endpoint      netip.AddrPort // where the peer was heard last, or is configured; zero when neither, IPv4-in-IPv6 unmapped
	LastHandshake time.Time      // wall clock of the host; zero when there was none
	RxBytes       uint64         // received, with handshake messages; falls to zero when the device is made again
	TxBytes       uint64         // sent, with handshake messages
	AllowedIPs    []netip.Prefix // sorted
	Keepalive     time.Duration  // whole seconds, zero when off
	PresharedKey  PSK
}

// convert takes what may be known out of a reading; the keys stay behind.
//
// A peer with the all-zero public key, which can be configured, is left out: no event can name it, and it never has a session, because every shared
// secret with that point is zero, and handshakes refuse that.
func convert(d *wgtypes.Device, link Link, fingerprint func(wgtypes.Key) PSK) Device {
	out := Device{
		Name:       link.Name,
		Ifindex:    link.Ifindex,
		Up:         link.Up,
		Kind:       link.Kind,
		PublicKey:  events.Key(d.PublicKey),
		ListenPort: d.ListenPort,
		Peers:      make([]Peer, 0, len(d.Peers)),
	}
	if d.PrivateKey == (wgtypes.Key{}) {
		// wgctrl computes a userspace device's public key itself, and computes one of no private key too.
		out.PublicKey = events.Key{}
	}
	for i := range d.Peers {
		if d.Peers[i].PublicKey == (wgtypes.Key{}) {
			continue
		}
		out.Peers = append(out.Peers, convertPeer(&d.Peers[i], fingerprint))
	}
	return out
}

func convertPeer(p *wgtypes.Peer, fingerprint func(wgtypes.Key) PSK) Peer {
	out := Peer{
		PublicKey:    events.Key(p.PublicKey),
		RxBytes:      uint64(p.ReceiveBytes), // unsigned in the kernel (WGPEER_A_RX_BYTES)
		TxBytes:      uint64(p.TransmitBytes),
		AllowedIPs:   make([]netip.Prefix, 0, len(p.AllowedIPs)),
		Keepalive:    p.PersistentKeepaliveInterval,
		PresharedKey: fingerprint(p.PresharedKey),
	}
	if p.Endpoint != nil {
		ap := p.Endpoint.AddrPort()
		out.Endpoint = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	// "Never" is the zero time or the Unix epoch, depending on who answers.
	if p.LastHandshakeTime.Unix() > 0 {
		out.LastHandshake = p.LastHandshakeTime
	}
	for _, n := range p.AllowedIPs {
		if prefix, ok := convertPrefix(n); ok {
			out.AllowedIPs = append(out.AllowedIPs, prefix)
		}
	}
	slices.SortFunc(out.AllowedIPs, netip.Prefix.Compare)
	return out
}

// convertPrefix reports false for what is no prefix, such as an address family that is not IP.
func convertPrefix(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if bits == 32 {
		addr = addr.Unmap()
	}
	if bits != addr.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones), true
}
