package capture

import (
	"encoding/binary"
	"slices"
)

// message returns n bytes that start with the four bytes t and are 0xaa after them.
func message(t [4]byte, n int) []byte {
	b := slices.Repeat([]byte{0xaa}, n)
	copy(b, t[:])
	return b
}

func initiation() []byte  { return message([4]byte{1}, 148) }
func response() []byte    { return message([4]byte{2}, 92) }
func cookieReply() []byte { return message([4]byte{3}, 64) }

// data returns a data message of n bytes with a counter.
func data(counter uint64, n int) []byte {
	b := message([4]byte{4}, max(n, 16))
	binary.LittleEndian.PutUint64(b[8:], counter)
	return b[:n]
}

// datagram returns a UDP datagram from port 1000 to port 2000.
func datagram(payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, 1000)
	b = binary.BigEndian.AppendUint16(b, 2000)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	return append(b, payload...)
}

// ip4 returns an IPv4 packet from 192.0.2.1 to 192.0.2.2, with options as many bytes long as given.
func ip4(protocol byte, content []byte, options ...byte) []byte {
	h := make([]byte, 20, 20+len(options)+len(content))
	h[0] = 4<<4 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(cap(h)))
	h[8], h[9] = 64, protocol
	copy(h[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	return append(append(h, options...), content...)
}

// ip6 returns an IPv6 packet from 2001:db8::1 to 2001:db8::2.
func ip6(nextHeader byte, content []byte) []byte {
	h := make([]byte, 40, 40+len(content))
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(len(content)))
	h[6], h[7] = nextHeader, 64
	copy(h[8:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
	copy(h[24:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 2})
	return append(h, content...)
}

// udp4 and udp6 return a UDP datagram in an IP packet.
func udp4(payload []byte, options ...byte) []byte { return ip4(17, datagram(payload), options...) }
func udp6(payload []byte) []byte                  { return ip6(17, datagram(payload)) }

// with returns frame with the bytes from offset on replaced.
func with(frame []byte, offset int, b ...byte) []byte {
	copy(frame[offset:], b)
	return frame
}
