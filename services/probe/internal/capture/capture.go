// Package capture hears the WireGuard messages that tell of a session coming about, wherever they arrive on this host: handshake messages and
// cookie replies whole, and of data messages the first under each key, cut to its header.
//
// It listens on AF_PACKET sockets of type SOCK_DGRAM, so the kernel takes the link header off and any kind of interface will do. A filter in the
// kernel drops everything else before it is copied; see filter.go for what passes. There are two sockets, one for IPv4 and one for IPv6: a
// socket that is bound to a protocol sees an inbound packet once, behind the bridge or bond that it came through, and no outbound one. A
// socket for all protocols would see both sides of a bridge.
//
// It is not libpcap: no cgo, no promiscuous mode, no buffering that would hold a packet back. It does not know which interfaces or ports WireGuard
// uses and does not need to, for mac1 tells (package wgmsg). It needs CAP_NET_RAW.
//
// It may miss packets: some are dropped under load, which [Listener.Stats] counts, and a message that receive offload (UDP GRO) has joined with
// others is not recognised, unless it is data and the first of them. It may also hear what WireGuard never gets, since the firewall and the check of the
// UDP checksum come later. So what it reports is a reason to look, not a fact.
package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/net/bpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// Packet is one message heard.
type Packet struct {
	Kind wgmsg.Kind

	// Src and Dst are the addresses of the UDP datagram. A link-local address has no zone: Ifindex tells the link.
	Src, Dst netip.AddrPort

	// Ifindex is the interface that the packet came in by as IP sees it: the bridge, not its port.
	Ifindex int

	// Payload is the UDP payload, of data only the first wgmsg.DataHeaderSize bytes. It is valid during the call that hands it over.
	Payload []byte

	// At is when the packet was read, with a monotonic reading. It is not the kernel's time stamp: to ask for that has the kernel take the time
	// of every packet of the host, not just of those that pass the filter.
	At time.Time
}

// Stats are counts since the listener was opened.
type Stats struct {
	Received  uint64 // passed the filter and were queued
	Dropped   uint64 // passed the filter, but the queue was full
	Malformed uint64 // passed the filter and turned out to be no message
}

// readBuffer is the most memory, in bytes, that packets waiting on one socket may take in the kernel, its own bookkeeping included (it allows the
// double of what it is asked for). It holds some thousand packets, so that a flood has to last longer than a pause of the scheduler to push out
// a peer's handshake. It is used only while packets wait.
const readBuffer = 4 << 20

// Listener hears messages on all interfaces of the network namespace it was opened in, those that appear later too.
type Listener struct {
	readers   [2]*reader
	malformed atomic.Uint64

	mu                sync.Mutex
	received, dropped uint64
}

// Open starts to listen: packets are queued from here on. The caller closes the listener.
//
// The error satisfies errors.Is(err, os.ErrPermission) where CAP_NET_RAW is missing.
func Open() (*Listener, error) {
	v4, err := open(unix.ETH_P_IP, filter4(), decode4)
	if err != nil {
		return nil, err
	}
	v6, err := open(unix.ETH_P_IPV6, filter6(), decode6)
	if err != nil {
		return nil, errors.Join(err, v4.conn.Close())
	}
	return &Listener{readers: [2]*reader{v4, v6}}, nil
}

// open returns a reader of the packets of one link-layer protocol that pass the filter.
func open(protocol uint16, filter []bpf.Instruction, decode decodeFunc) (*reader, error) {
	program, err := bpf.Assemble(filter)
	if err != nil {
		return nil, fmt.Errorf("assemble the packet filter: %v", err)
	}

	// A socket with protocol 0 receives nothing. Bind gives it its protocol, and by then the filter is in place.
	conn, err := socket.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0, "wgherald-capture", nil)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("open a packet socket: CAP_NET_RAW is missing: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %v", err)
	}
	if err := errors.Join(conn.SetBPF(program), conn.SetReadBuffer(readBuffer)); err != nil {
		return nil, errors.Join(fmt.Errorf("set up a packet socket: %v", err), conn.Close())
	}
	if err := conn.Bind(&unix.SockaddrLinklayer{Protocol: bigEndian(protocol)}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind a packet socket to protocol %#04x: %v", protocol, err), conn.Close())
	}
	r, err := newReader(conn, decode)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read from a packet socket: %v", err), conn.Close())
	}
	return r, nil
}

// Run calls handle for each message until ctx ends, and then returns nil. Any error is final. Calls come one at a time, in the order of arrival
// within each IP version. While handle runs, packets wait in the kernel's queue, so it should not block.
//
// Run is to be called once.
func (l *Listener) Run(ctx context.Context, handle func(Packet)) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		for _, r := range l.readers {
			// A deadline in the past wakes a blocked read. On a closed socket it fails, but there no read blocks.
			_ = r.conn.SetReadDeadline(time.Unix(0, 1))
		}
	})
	defer stop()

	var handling sync.Mutex
	for _, r := range l.readers {
		g.Go(func() error {
			for {
				b, from, err := r.read()
				switch classify(err) {
				case gotPacket:
				case gotNothing:
					continue
				case woken:
					if ctx.Err() != nil {
						return nil
					}
					return errors.New("read from a packet socket: woken without reason")
				case broken:
					return fmt.Errorf("read from a packet socket: %v", err)
				}
				if !inbound(from.Pkttype) {
					continue
				}
				p, ok := r.decode(&r.layers, b)
				if !ok {
					l.malformed.Add(1)
					continue
				}
				p.Ifindex = int(from.Ifindex)
				p.At = time.Now()
				handling.Lock()
				handle(p)
				handling.Unlock()
			}
		})
	}
	return g.Wait()
}

// Stats returns the counts up to now. It may be called while Run runs, and after it until Close.
func (l *Listener) Stats() (Stats, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.readers {
		// The kernel starts again from zero after each reading, and counts dropped packets among the packets (packet_getsockopt).
		s, err := r.conn.GetsockoptTpacketStats(unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			return Stats{}, fmt.Errorf("read packet socket statistics: %v", err)
		}
		l.received += uint64(s.Packets - s.Drops)
		l.dropped += uint64(s.Drops)
	}
	return Stats{Received: l.received, Dropped: l.dropped, Malformed: l.malformed.Load()}, nil
}

// Close closes the sockets. It is to be called after Run has returned, or without Run.
func (l *Listener) Close() error {
	var errs []error
	for _, r := range l.readers {
		errs = append(errs, r.conn.Close())
	}
	return errors.Join(errs...)
}
