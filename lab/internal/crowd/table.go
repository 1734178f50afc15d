package crowd

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// table is what the device says of itself, in the configuration protocol (https://www.wireguard.com/xplatform/). The text of each peer is kept ready: a
// reading copies it, and is dear only for who reads.
type table struct {
	head  []byte
	peers []peer
}

// peer is a configured peer as the device knows it.
type peer struct {
	endpoint  netip.AddrPort
	handshake time.Time
	rx, tx    uint64

	text   []byte
	config int // the length of what never changes in text, its beginning
}

func newTable(private wgtypes.Key, port int, keys []wgtypes.Key) *table {
	t := &table{head: fmt.Appendf(nil, "private_key=%s\nlisten_port=%d\n", hex.EncodeToString(private[:]), port), peers: make([]peer, len(keys))}
	for i, k := range keys {
		p := &t.peers[i]
		p.text = fmt.Appendf(nil, "public_key=%s\npreshared_key=%064x\nprotocol_version=1\npersistent_keepalive_interval=0\nallowed_ip=%s/32\n",
			hex.EncodeToString(k[:]), 0, nth(inside.Addr(), i+1))
		p.config = len(p.text)
		p.render()
	}
	return t
}

// render writes what changes.
func (p *peer) render() {
	b := p.text[:p.config]
	if p.endpoint.IsValid() {
		b = p.endpoint.AppendTo(append(b, "endpoint="...))
		b = append(b, '\n')
	}
	number := func(name string, v uint64) {
		b = strconv.AppendUint(append(b, name...), v, 10)
		b = append(b, '\n')
	}
	var sec, nsec uint64
	if !p.handshake.IsZero() {
		sec, nsec = uint64(p.handshake.Unix()), uint64(p.handshake.Nanosecond())
	}
	number("last_handshake_time_sec=", sec)
	number("last_handshake_time_nsec=", nsec)
	number("tx_bytes=", p.tx)
	number("rx_bytes=", p.rx)
	p.text = b
}

// receive takes in what came to the device's port. Only data moves anything: the first packet under new keys completes a handshake, whose messages are
// counted with it. The index in it, which a real device has told the peer in its response, is the peer's number.
func (t *table) receive(msg []byte, from netip.AddrPort, at time.Time) {
	if len(msg) < device.MessageTransportSize || binary.LittleEndian.Uint32(msg) != device.MessageTransportType {
		return
	}
	n := binary.LittleEndian.Uint32(msg[device.MessageTransportOffsetReceiver:])
	if uint64(n) >= uint64(len(t.peers)) {
		return
	}
	p := &t.peers[n]
	if binary.LittleEndian.Uint64(msg[device.MessageTransportOffsetCounter:]) == 0 {
		p.handshake = at
		p.rx += device.MessageInitiationSize
		p.tx += device.MessageResponseSize
	}
	p.rx += uint64(len(msg))
	p.endpoint = from
	p.render()
}

// appendText appends the answer to get=1.
func (t *table) appendText(b []byte) []byte {
	b = append(b, t.head...)
	for i := range t.peers {
		b = append(b, t.peers[i].text...)
	}
	return append(b, "errno=0\n\n"...)
}

// asked reports whether a program asks what the device says of itself. Nobody may configure it.
func asked(r io.Reader) bool {
	get := false
	for lines := bufio.NewScanner(r); lines.Scan(); {
		switch lines.Text() {
		case "get=1":
			get = true
		case "":
			return get
		default:
			return false
		}
	}
	return false
}

// nth is the address n after a, an IPv4 one.
func nth(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}
