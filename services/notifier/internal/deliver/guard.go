package deliver

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// forbidden lists addresses that no hook can have and that an attacker who controls a name wants the notifier to talk to: link-local ones, among
// which most clouds have their metadata service, and the metadata services that are elsewhere.
var forbidden = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},           // RFC 3927; metadata of most clouds
	{netip.MustParsePrefix("fe80::/10"), "link-local"},                // RFC 4291
	{netip.MustParsePrefix("fd00:ec2::254/128"), "metadata service"},  // AWS
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata service"},   // Google
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata service"}, // Alibaba
	{netip.MustParsePrefix("192.0.0.192/32"), "metadata service"},     // Oracle, older shapes
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata service"},   // Azure
}

// private lists what a hook with PublicOnly cannot have beside: addresses that are not of the public Internet.
var private = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("::/128"), // this host, as Linux dials it
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), // RFC 1918
	netip.MustParsePrefix("100.64.0.0/10"), // RFC 6598, of carriers
	netip.MustParsePrefix("fc00::/7"),      // RFC 4193
	netip.MustParsePrefix("fec0::/10"),     // RFC 3879, no longer in use
}

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixTo4 = netip.MustParsePrefix("2002::/16")    // RFC 3056
)

// blockedError reports an address that is never dialled.
type blockedError struct{ what string }

func (e *blockedError) Error() string {
	return fmt.Sprintf("the host's name leads to a %s address, which is not dialled", e.what)
}

// guard returns a net.Dialer.Control that refuses forbidden addresses, and private ones where only public ones are allowed. It sees the address itself, after
// resolution, so that no name leads around it.
func guard(publicOnly bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return &blockedError{"malformed"}
		}
		addr := innermost(ap.Addr())
		for _, f := range forbidden {
			if f.prefix.Contains(addr) {
				return &blockedError{f.what}
			}
		}
		if publicOnly && slices.ContainsFunc(private, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return &blockedError{"private"}
		}
		return nil
	}
}

// innermost returns the IPv4 address that an IPv6 address stands for (mapped, NAT64, 6to4), or the address itself without zone.
func innermost(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixTo4.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}
