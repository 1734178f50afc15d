package capture

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// batchSize is the most packets that one system call reads. A full queue of readBuffer bytes holds many times as many.
const batchSize = 64

// reader receives packets from one socket. Everything that a packet needs is kept in it and used again, for a flood of packets should not become
// a flood of garbage. It is for one goroutine.
type reader struct {
	fd     int
	layers layerSet
	decode decodeFunc

	n   int
	err error
	// The headers point to the rest.
	headers [batchSize]unix.Mmsghdr
	vectors [batchSize]unix.Iovec
	from    [batchSize]unix.RawSockaddrLinklayer
	buf     [batchSize][maxAccepted]byte
}

func newReader(fd int, decode decodeFunc) *reader {
	r := &reader{fd: fd, decode: decode}
	for i := range r.headers {
		h, v := &r.headers[i].Hdr, &r.vectors[i]
		v.Base = &r.buf[i][0]
		v.SetLen(maxAccepted)
		h.Name = (*byte)(unsafe.Pointer(&r.from[i]))
		h.Iov = v
		h.SetIovlen(1)
	}
	return r
}

// receive takes up to batchSize packets that wait and leaves in n how many and in err why none. With fewer than batchSize, the queue was empty after them.
// It returns false where nothing waited.
func (r *reader) receive() bool {
	for i := range r.headers {
		r.headers[i].Hdr.Namelen = unix.SizeofSockaddrLinklayer // the kernel leaves the length of the last packet's address there
	}
	// It does not block, so the scheduler, which would prepare for that, need not know.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(r.fd), uintptr(unsafe.Pointer(&r.headers[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		r.n, r.err = 0, errno
		return errno != unix.EAGAIN
	}
	r.n, r.err = int(n), nil
	return true
}

// packet returns the packet with index i of those just read, as much as the filter lets through, and where it came from. Both are valid until the
// next read.
func (r *reader) packet(i int) ([]byte, *unix.RawSockaddrLinklayer) {
	return r.buf[i][:r.headers[i].Len], &r.from[i]
}

// outcome is what a read has come to.
type outcome int

const (
	gotPacket  outcome = iota
	gotNothing         // a passing failure: read again
	broken             // nothing will come from this socket any more
)

// classify returns the outcome of a read that ended with err.
func classify(err error) outcome {
	switch {
	case err == nil:
		return gotPacket
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR),
		errors.Is(err, unix.ENETDOWN),                             // an interface went down; the socket is bound to none, others go on
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
