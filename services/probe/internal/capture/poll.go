package capture

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// poller waits for packets on sockets. It is an epoll of their own within the epoll of the Go runtime, from where it can be muted: a socket in the
// latter would wake the process for each packet that arrives, whether or not anything waits for it. It is for one goroutine.
type poller struct {
	*os.File
	raw   syscall.RawConn
	fd    int
	fds   []int
	muted bool

	receive func() bool
	try     func(fd uintptr) bool // poller.tryReceive, bound once, since each binding allocates
	err     error
}

// newPoller returns a poller of sockets from which receive reads, without blocking; it returns false where nothing waited.
func newPoller(receive func() bool, fds ...int) (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	p := &poller{fd: fd, fds: fds, receive: receive}
	p.try = p.tryReceive
	for _, s := range fds {
		err = errors.Join(err, unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, s, &unix.EpollEvent{Events: unix.EPOLLIN}))
	}
	if err := errors.Join(err, unix.SetNonblock(fd, true)); err != nil { // os polls no other files
		return nil, errors.Join(err, unix.Close(fd))
	}
	p.File = os.NewFile(uintptr(fd), "wgherald-capture")
	if p.raw, err = p.SyscallConn(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// read waits until receive has returned true.
func (p *poller) read() error {
	if err := p.raw.Read(p.try); err != nil {
		return err
	}
	return p.err
}

// tryReceive makes one attempt. It returns false where there is nothing to receive, so that the runtime waits for more.
func (p *poller) tryReceive(uintptr) bool {
	if p.receive() {
		return true
	}
	if p.muted {
		p.err = p.mute(false) // wakes us at once where a packet has come since
	}
	return p.err != nil
}

// mute has arrivals wake nobody. The next read that finds nothing takes it back.
func (p *poller) mute(muted bool) error {
	if p.muted == muted {
		return nil
	}
	p.muted = muted
	event := unix.EpollEvent{Events: unix.EPOLLIN}
	if muted {
		event.Events = 0
	}
	for _, fd := range p.fds {
		if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, fd, &event); err != nil {
			return err
		}
	}
	return nil
}
