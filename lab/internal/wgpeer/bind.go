package wgpeer

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/wgherald/wgherald/lab/internal/netns"
)

// Kind is a kind of packet that OnSend is told of.
type Kind int

const (
	Initiation Kind = iota // asks for a session
	FirstData              // the first data packet under new keys: it confirms them to a responder
)

// Sent is a packet about to be handed to the socket.
type Sent struct {
	Kind Kind
	To   netip.AddrPort
	At   time.Time
}

// bind opens its sockets in a namespace, whichever goroutine asks: wireguard-go does so from the one that learns that the link is up.
type bind struct {
	conn.Bind
	ns     *netns.NS
	onSend func(Sent)

	mu    sync.RWMutex
	paths map[netip.Addr]*path // those that are impaired
}

func newBind(ns *netns.NS, onSend func(Sent)) *bind {
	return &bind{Bind: conn.NewStdNetBind(), ns: ns, onSend: onSend, paths: map[netip.Addr]*path{}}
}

func (b *bind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = b.ns.Do(func() error {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if b.onSend != nil {
		for _, p := range bufs {
			if kind, ok := classify(p); ok {
				to, err := netip.ParseAddrPort(ep.DstToString())
				if err != nil {
					return err
				}
				b.onSend(Sent{kind, to, time.Now()})
			}
		}
	}
	if p := b.path(ep.DstIP()); p != nil {
		return b.sendOn(p, bufs, ep)
	}
	return b.Bind.Send(bufs, ep)
}

// classify tells what OnSend wants to know of a WireGuard message (whitepaper, section 5.4).
func classify(p []byte) (Kind, bool) {
	switch {
	case len(p) == device.MessageInitiationSize && binary.LittleEndian.Uint32(p) == device.MessageInitiationType:
		return Initiation, true
	case len(p) >= device.MessageTransportHeaderSize && binary.LittleEndian.Uint32(p) == device.MessageTransportType &&
		binary.LittleEndian.Uint64(p[device.MessageTransportOffsetCounter:]) == 0:
		return FirstData, true
	}
	return 0, false
}
