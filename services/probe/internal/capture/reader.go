package capture

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// reader receives packets from one socket. Everything that a packet needs is kept in it and used again, for a flood of packets should not become
// a flood of garbage. It is for one goroutine.
type reader struct {
	conn   *socket.Conn
	raw    syscall.RawConn
	layers layerSet
	decode decodeFunc

	receive func(fd uintptr) bool // reader.tryReceive, bound once, since each binding allocates
	buf     [maxAccepted]byte
	from    unix.RawSockaddrLinklayer
	n       int
	errno   syscall.Errno
}

func newReader(conn *socket.Conn, decode decodeFunc) (*reader, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &reader{conn: conn, raw: raw, decode: decode}
	r.receive = r.tryReceive
	return r, nil
}

// read waits for a packet and returns it, as much as the filter lets through, with where it came from. Both are valid until the next read.
//
// It takes the place of conn.Recvfrom, which starts a goroutine per call to watch the context and allocates the address.
func (r *reader) read() ([]byte, *unix.RawSockaddrLinklayer, error) {
	if err := r.raw.Read(r.receive); err != nil {
		return nil, nil, err
	}
	if r.errno != 0 {
		return nil, nil, r.errno
	}
	return r.buf[:r.n], &r.from, nil
}

// tryReceive makes one attempt. It returns false where there is nothing to receive, so that the poller waits for more.
func (r *reader) tryReceive(fd uintptr) bool {
	for {
		size := uint32(unsafe.Sizeof(r.from))
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&r.buf[0])), uintptr(len(r.buf)), 0,
			uintptr(unsafe.Pointer(&r.from)), uintptr(unsafe.Pointer(&size)))
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.n, r.errno = int(n), errno
		return true
	}
}

// outcome is what a read has come to.
type outcome int

const (
	gotPacket  outcome = iota
	gotNothing         // a passing failure: read again
	woken              // by a deadline
	broken             // nothing will come from this socket any more
)

// classify returns the outcome of a read that ended with err.
func classify(err error) outcome {
	switch {
	case err == nil:
		return gotPacket
	case errors.Is(err, os.ErrDeadlineExceeded):
		return woken
	case errors.Is(err, unix.ENETDOWN), // an interface went down; the socket is bound to none, others go on
		errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM): // the kernel is short of memory just now
		return gotNothing
	default:
		return broken
	}
}

// inbound reports whether a packet of this type (sll_pkttype, packet(7)) is on its way to this host's IP layer. Sockets bound to a protocol are given
// no outgoing packets; those for another host come where an interface is promiscuous for someone else's sake, and IP drops them.
func inbound(pkttype uint8) bool {
	return pkttype != unix.PACKET_OUTGOING && pkttype != unix.PACKET_OTHERHOST
}

// bigEndian returns n such that its bytes in memory are in network order, as the kernel wants a protocol.
func bigEndian(n uint16) uint16 {
	if cpu.IsBigEndian {
		return n
	}
	return n<<8 | n>>8
}
