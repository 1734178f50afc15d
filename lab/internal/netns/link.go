package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pair joins two namespaces by a veth pair, both ends up.
func Pair(a *NS, aName string, b *NS, bName string) error {
	var peer *os.File
	if err := b.Do(func() (err error) {
		peer, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer peer.Close()

	if err := a.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(peer.Fd())})
	}); err != nil {
		return fmt.Errorf("add veth pair %s, %s: %w", aName, bName, err)
	}
	if err := a.SetLink(aName, true); err != nil {
		return err
	}
	return b.SetLink(bName, true)
}

// AddBridge makes a bridge, up and without ports.
func (n *NS) AddBridge(name string) error {
	if err := n.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return n.SetLink(name, true)
}

// AddPort makes a link a port of a bridge.
func (n *NS) AddPort(bridge, link string) error {
	return n.withLink(link, func(l netlink.Link) error {
		b, err := netlink.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", bridge, err)
		}
		if err := netlink.LinkSetMaster(l, b); err != nil {
			return fmt.Errorf("add %s to bridge %s: %w", link, bridge, err)
		}
		return nil
	})
}

// DeleteLink removes a link.
func (n *NS) DeleteLink(name string) error {
	return n.withLink(name, func(l netlink.Link) error {
		if err := netlink.LinkDel(l); err != nil {
			return fmt.Errorf("delete link %s: %w", name, err)
		}
		return nil
	})
}

// AddAddr gives a link an address, and with it the route to the prefix that the address is in.
func (n *NS) AddAddr(link string, addr netip.Prefix) error {
	return n.withLink(link, func(l netlink.Link) error {
		a := &netlink.Addr{IPNet: ipNet(addr)}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // usable at once: nobody else can have it
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add %s to %s: %w", addr, link, err)
		}
		return nil
	})
}

// DeleteAddr takes an address from a link, and with it the routes that depend on it.
func (n *NS) DeleteAddr(link string, addr netip.Prefix) error {
	return n.withLink(link, func(l netlink.Link) error {
		if err := netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
			return fmt.Errorf("delete %s from %s: %w", addr, link, err)
		}
		return nil
	})
}

// SetDefaultRoute sends what no other route knows to the gateway via, which must be on the link.
func (n *NS) SetDefaultRoute(link string, via netip.Addr) error {
	return n.withLink(link, func(l netlink.Link) error {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IP(via.AsSlice())}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("default route via %s on %s: %w", via, link, err)
		}
		return nil
	})
}

func (n *NS) withLink(name string, f func(netlink.Link) error) error {
	return n.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		return f(l)
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
