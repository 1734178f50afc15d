// Package capture hears the WireGuard messages that tell of a session coming about, wherever they arrive on this host: handshake messages and
// cookie replies whole, and of data messages the first under each key, cut to its header.
//
// It listens on AF_PACKET sockets of type SOCK_DGRAM, so the kernel takes the link header off and any kind of interface will do. A filter in the
// kernel drops everything else before it is copied; see filter.go for what passes. There are two sockets, one for IPv4 and one for IPv6: a
// socket that is bound to a protocol sees an inbound packet once, behind the bridge or bond that it came through, and no outbound one. A
// socket for all protocols would see both sides of a bridge.
//
// It is not libpcap: no cgo, no promiscuous mode, no buffering that would hold a lone packet back. Under a flood it lets packets gather for up to
// maxPause; see pacer. It does not know which interfaces or ports WireGuard uses and does not need to, for mac1 tells (package wgmsg). It needs
// CAP_NET_RAW.
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
	"unsafe"

	"golang.org/x/net/bpf"
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
	poll      *poller
	malformed atomic.Uint64
	lost      chan struct{}

	mu                sync.Mutex // guards the sockets against Close, too
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
		return nil, errors.Join(err, unix.Close(v4.fd))
	}
	l := &Listener{readers: [2]*reader{v4, v6}, lost: make(chan struct{}, 1)}
	if l.poll, err = newPoller(l.receive, v4.fd, v6.fd); err != nil {
		return nil, errors.Join(fmt.Errorf("poll packet sockets: %v", err), unix.Close(v4.fd), unix.Close(v6.fd))
	}
	return l, nil
}

// open returns a reader of the packets of one link-layer protocol that pass the filter.
func open(protocol uint16, filter []bpf.Instruction, decode decodeFunc) (*reader, error) {
	program, err := bpf.Assemble(filter)
	if err != nil {
		return nil, fmt.Errorf("assemble the packet filter: %v", err)
	}

	// A socket with protocol 0 receives nothing. Bind gives it its protocol, and by then the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("open a packet socket: CAP_NET_RAW is missing, or counts in a user namespace that does not own the network: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %v", err)
	}
	attached := unix.SockFprog{Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if err := errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &attached),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1), // nobody in this process can widen what it sees, or take it off
		setReadBuffer(fd),
	); err != nil {
		return nil, errors.Join(fmt.Errorf("set up a packet socket: %v", err), unix.Close(fd))
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(protocol)}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind a packet socket to protocol %#04x: %v", protocol, err), unix.Close(fd))
	}
	return newReader(fd, decode), nil
}

// setReadBuffer makes room for readBuffer bytes, or without CAP_NET_ADMIN for as many as the system allows anyone.
func setReadBuffer(fd int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, readBuffer)
}

// Run calls handle for each message until ctx ends, and then returns nil. Any error is final. Calls come one at a time, in the order of arrival
// within each IP version. While handle runs, packets wait in the kernel's queue, so it should not block.
//
// Run is to be called once.
func (l *Listener) Run(ctx context.Context, handle func(Packet)) error {
	// A deadline in the past wakes a blocked read. On a closed file it fails, but there no read blocks.
	defer context.AfterFunc(ctx, func() { _ = l.poll.SetReadDeadline(time.Unix(0, 1)) })()
	var pace pacer
	packets := 0 // since the queues were last empty
	for {
		if err := l.poll.read(); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("wait for packets: %v", err)
		}
		more := false
		for _, r := range l.readers {
			if classify(r.err) == broken {
				return fmt.Errorf("read from a packet socket: %v", r.err)
			}
			l.handle(r, handle)
			packets += r.n
			if r.n < batchSize {
				continue
			}
			more = true
			// A queue that was full takes several full batches to read, so packets were dropped only where one is.
			if err := l.count(r); err != nil {
				return err
			}
		}
		if more {
			continue
		}
		if d := pace.pause(time.Now(), packets); d > 0 {
			if err := l.poll.mute(true); err != nil {
				return fmt.Errorf("stop waiting for packets: %v", err)
			}
			time.Sleep(d)
		}
		packets = 0
	}
}

// receive has each reader take what waits. It returns false where nothing did.
func (l *Listener) receive() bool {
	got := false
	for _, r := range l.readers {
		got = r.receive() || got
	}
	return got
}

// handle hands on the messages among the packets that r has just read.
func (l *Listener) handle(r *reader, handle func(Packet)) {
	at := time.Now()
	for i := range r.n {
		b, from := r.packet(i)
		if !inbound(from.Pkttype) {
			continue
		}
		p, ok := r.decode(&r.layers, b)
		if !ok {
			l.malformed.Add(1)
			continue
		}
		p.Ifindex = int(from.Ifindex)
		p.At = at
		handle(p)
	}
}

// Lost returns a channel on which a value waits after packets were dropped, one for all drops since the last was taken. Run notices as soon as it
// has read what was queued before.
func (l *Listener) Lost() <-chan struct{} { return l.lost }

// Stats returns the counts up to now. It may be called while Run runs, and after it until Close.
func (l *Listener) Stats() (Stats, error) {
	for _, r := range l.readers {
		if err := l.count(r); err != nil {
			return Stats{}, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Received: l.received, Dropped: l.dropped, Malformed: l.malformed.Load()}, nil
}

// count adds up what the kernel has counted for a socket.
func (l *Listener) count(r *reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The kernel starts again from zero after each reading, and counts dropped packets among the packets (packet_getsockopt).
	s, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("read packet socket statistics: %v", err)
	}
	l.received += uint64(s.Packets - s.Drops)
	l.dropped += uint64(s.Drops)
	if s.Drops > 0 {
		select {
		case l.lost <- struct{}{}:
		default: // a value that says the same waits there
		}
	}
	return nil
}

// Close closes the sockets. It is to be called after Run has returned, or without Run.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	errs := []error{l.poll.Close()}
	for _, r := range l.readers {
		errs = append(errs, unix.Close(r.fd))
		r.fd = -1 // the number may soon be another file's
	}
	return errors.Join(errs...)
}
