package deliver

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// forbidden lists addresses that no hook can have and that an attacker who controls a name wants the notifier to talk to: link-local ones, among
// which most clouds have their metadata service, and the metadata services that are elsewhere.
var forbidden = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},               // RFC 3927; metadata of most clouds
	{netip.MustParsePrefix("fe80::/10"), "link-local"},                    // RFC 4291
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata service"},          // AWS: of machines, and what gives pods their credentials
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata service"},       // Google
	{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), "metadata service"}, // Oracle
	{netip.MustParsePrefix("192.0.0.192/32"), "metadata service"},         // Oracle, older shapes
	{netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"), "metadata service"},  // Akamai
	{netip.MustParsePrefix("fd00:42::42/128"), "metadata service"},        // Scaleway
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata service"},     // Alibaba
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata service"},       // Azure
}

// private lists what a hook with PublicOnly cannot have beside: addresses that are not of the public Internet.
var private = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("::/128"), // this host, as Linux dials it
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), // RFC 1918
	netip.MustParsePrefix("100.64.0.0/10"), // RFC 6598, of carriers
	netip.MustParsePrefix("192.0.0.0/24"),  // RFC 6890, of protocols
	netip.MustParsePrefix("198.18.0.0/15"), // RFC 2544, of measurements; proxies use them, too
	netip.MustParsePrefix("240.0.0.0/4"),   // RFC 1112, reserved; Linux routes them
	netip.MustParsePrefix("fc00::/7"),      // RFC 4193
	netip.MustParsePrefix("fec0::/10"),     // RFC 3879, no longer in use
	localNAT64,
}

// Prefixes of IPv6 addresses that stand for an IPv4 address, beside the mapped ones.
var (
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291, section 2.5.5.1
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215
	sixTo4     = netip.MustParsePrefix("2002::/16")       // RFC 3056
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
		for _, addr := range readings(ap.Addr()) {
			for _, f := range forbidden {
				if f.prefix.Contains(addr) {
					return &blockedError{f.what}
				}
			}
			if publicOnly && slices.ContainsFunc(private, func(p netip.Prefix) bool { return p.Contains(addr) }) {
				return &blockedError{"private"}
			}
		}
		return nil
	}
}

// readings returns an address without zone and, of an IPv6 address that stands for an IPv4 address, that one; of a translator of one's own, whose prefix may have
// any length, all that it may be (RFC 6052, section 2.2).
func readings(addr netip.Addr) []netip.Addr {
	addr = addr.Unmap().WithZone("")
	all := []netip.Addr{addr}
	b := addr.As16()
	v4 := func(i, j, k, l int) { all = append(all, netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]})) }
	switch {
	case addr.Is4(), addr == netip.IPv6Unspecified(), addr == netip.IPv6Loopback():
	case compatible.Contains(addr), translated.Contains(addr), nat64.Contains(addr):
		v4(12, 13, 14, 15)
	case sixTo4.Contains(addr):
		v4(2, 3, 4, 5)
	case localNAT64.Contains(addr):
		v4(12, 13, 14, 15)
		v4(9, 10, 11, 12)
		v4(7, 9, 10, 11)
		v4(6, 7, 9, 10)
	}
	return all
}

// guardHost is guard for a host that a proxy is asked for: an address, or a name, which is the proxy's to look up. What resolvers take for an IPv4 address
// beside its four numbers (2852039166, 0xa9fe.0xa9fe; inet_aton) is refused, and so is what net/http may make such a thing of: it asks for a name in the ASCII
// form of IDNA, which has plain digits and dots for those of other scripts.
func guardHost(host string, check func(network, address string, _ syscall.RawConn) error) error {
	host = strings.TrimSuffix(host, ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return check("tcp", netip.AddrPortFrom(addr, 0).String(), nil)
	}
	last := host[strings.LastIndexByte(host, '.')+1:] // no top-level domain is a number
	foreign := strings.ContainsFunc(host, func(r rune) bool { return r >= utf8.RuneSelf })
	mapped := strings.ContainsFunc(last, unicode.IsNumber) || !strings.ContainsFunc(last, unicode.IsLetter)
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || strings.Trim(last, "0123456789") == "" || foreign && mapped {
		return &blockedError{"malformed"}
	}
	return nil
}
