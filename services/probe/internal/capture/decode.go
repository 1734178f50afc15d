package capture

import (
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// layerSet is what packets are decoded into, one after the other, so that decoding does not allocate.
//
// The layers are decoded by hand and not by a gopacket.DecodingLayerParser: that takes the first fragment of a datagram, whose UDP header is all
// we need, for something that cannot be decoded.
type layerSet struct {
	ip4 layers.IPv4
	ip6 layers.IPv6
	udp layers.UDP
}

// decodeFunc decodes a packet that starts at its IP header. It returns false where the packet holds no WireGuard message. The packet returned points
// into b and lacks what b does not tell: Ifindex and At.
type decodeFunc func(l *layerSet, b []byte) (Packet, bool)

// decode4 is a decodeFunc for IPv4.
func decode4(l *layerSet, b []byte) (Packet, bool) {
	ip := &l.ip4
	if err := ip.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return Packet{}, false
	}
	if ip.Version != 4 || ip.Protocol != layers.IPProtocolUDP || ip.FragOffset != 0 {
		return Packet{}, false
	}
	return decodeUDP(&l.udp, ip.Payload, netip.AddrFrom4([4]byte(ip.SrcIP)), netip.AddrFrom4([4]byte(ip.DstIP)))
}

// decode6 is a decodeFunc for IPv6 without extension headers.
func decode6(l *layerSet, b []byte) (Packet, bool) {
	ip := &l.ip6
	if err := ip.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return Packet{}, false
	}
	if ip.Version != 6 || ip.NextHeader != layers.IPProtocolUDP {
		return Packet{}, false
	}
	return decodeUDP(&l.udp, ip.Payload, netip.AddrFrom16([16]byte(ip.SrcIP)), netip.AddrFrom16([16]byte(ip.DstIP)))
}

// decodeUDP decodes the datagram b, which may be cut short, between two addresses.
func decodeUDP(udp *layers.UDP, b []byte, src, dst netip.Addr) (Packet, bool) {
	if err := udp.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return Packet{}, false
	}
	kind, ok := wgmsg.Classify(udp.Payload, int(udp.Length)-udpHeaderSize)
	if !ok {
		return Packet{}, false
	}
	payload := udp.Payload
	if kind == wgmsg.Data {
		payload = payload[:wgmsg.DataHeaderSize]
	}
	return Packet{
		Kind:    kind,
		Src:     netip.AddrPortFrom(src, uint16(udp.SrcPort)),
		Dst:     netip.AddrPortFrom(dst, uint16(udp.DstPort)),
		Payload: payload,
	}, true
}
