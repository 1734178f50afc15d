// Package netns makes network namespaces that have no name, each with a private mount namespace, and runs functions inside them.
//
// A namespace is held by nothing but one operating system thread, which a goroutine locks and never gives back: when the thread ends, by Close or
// because the process dies in any way, the kernel takes the namespace, its links and its mounts with it. So there is nothing to clean up after a
// crash, as there would be with `ip netns add`.
//
// Sockets, TUN devices and child processes belong to the namespace of the thread that makes them; what is made inside Do stays usable outside.
package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned by Do after Close.
var ErrClosed = errors.New("network namespace is closed")

// Dir is a directory for the namespace's own files. It is in memory and visible in this namespace only, and so gone with it.
const Dir = "/run/wgherald"

// memory is the most that the files in Dir (and the rest of the private /run) may take. It is a limit, not a reservation: the file stores that are
// put there look at the free space before they agree to start.
const memory = "8g"

// NS is one network and mount namespace. Its methods are safe for concurrent use. A nil *NS is the one that the process was started in.
type NS struct {
	tid   int
	calls chan call

	closeOnce sync.Once
	closed    chan struct{} // closed by Close
	ended     chan struct{} // closed when the thread takes no more calls
}

type call struct {
	f    func() error
	done chan<- error
}

// Available says why no namespace and no TUN device can be made here, nil when they can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("userspace WireGuard needs a TUN device: %w", err)
	}
	tun.Close()
	ns, err := New()
	if err != nil {
		return err
	}
	ns.Close()
	return nil
}

// New makes a namespace. Its loopback link is up, mounts made inside stay inside, and /run is an empty file system of its own with the directories Dir
// and /run/wireguard, where userspace WireGuard devices keep their sockets. It needs root.
func New() (*NS, error) {
	n := &NS{calls: make(chan call), closed: make(chan struct{}), ended: make(chan struct{})}
	ready := make(chan error)
	go n.lock(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return n, nil
}

// lock finds a thread for the namespace. The main thread will not do: it is only parked when its goroutine ends, and would keep the namespace. While it
// is locked here the next goroutine has to run on another one.
func (n *NS) lock(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		n.serve(ready)
		return // without UnlockOSThread, so that the thread ends
	}
	elsewhere := make(chan error)
	go n.lock(elsewhere)
	err := <-elsewhere
	runtime.UnlockOSThread()
	ready <- err
}

func (n *NS) serve(ready chan<- error) {
	defer close(n.ended)
	n.tid = unix.Gettid()
	if err := enter(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case <-n.closed:
			return
		case c := <-n.calls:
			c.done <- c.f()
		}
	}
}

// enter gives the calling thread its own namespaces.
func enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	run, err := filepath.EvalSymlinks("/var/run") // a link to /run nearly everywhere
	if err != nil {
		return err
	}
	mounts := []string{"/run"}
	if run != "/run" {
		mounts = append(mounts, run)
	}
	for _, dir := range mounts {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size="+memory); err != nil {
			return fmt.Errorf("mount a private %s: %w", dir, err)
		}
	}
	for _, dir := range []string{Dir, "/var/run/wireguard"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return setLink("lo", true)
}

// Do runs f on the namespace's thread, one at a time, and returns its error, or ErrClosed. Do inside Do is allowed. f must not wait for another
// goroutine that needs Do of the same namespace, and must not end its goroutine (runtime.Goexit, t.FailNow).
func (n *NS) Do(f func() error) error {
	if n == nil {
		return f()
	}
	select {
	case <-n.closed:
		return ErrClosed
	default:
	}
	if unix.Gettid() == n.tid { // the thread is locked, so this is the goroutine that runs an outer Do
		return f()
	}
	done := make(chan error, 1)
	select {
	case n.calls <- call{f, done}:
		return <-done
	case <-n.closed:
		return ErrClosed
	}
}

// Close ends the namespace once the Do that is running, if any, returns: its thread goes, the processes started on it with a parent death signal get
// that signal, and the kernel removes links and mounts as soon as the last socket that was opened inside is closed.
func (n *NS) Close() {
	n.closeOnce.Do(func() { close(n.closed) })
	<-n.ended
}

// ReadFile reads a file as the namespace sees it.
func (n *NS) ReadFile(name string) (data []byte, err error) {
	err = n.Do(func() error {
		data, err = os.ReadFile(name)
		return err
	})
	return data, err
}

// dialTimeout bounds Dial, during which nothing else can be done in the namespace.
const dialTimeout = 2 * time.Second

// Dial connects to an address inside the namespace. With it a namespace is a nats.CustomDialer.
func (n *NS) Dial(network, address string) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = net.DialTimeout(network, address, dialTimeout)
		return err
	})
	return c, err
}

// DropCapability takes a capability (unix.CAP_…) for good from the bounding set of the namespace's thread: programs started there from now on do not have
// it, not even as root. Functions run by Do keep it.
func (n *NS) DropCapability(capability uintptr) error {
	return n.Do(func() error {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
		return nil
	})
}

// SetLink brings a link up or down.
func (n *NS) SetLink(name string, up bool) error {
	return n.Do(func() error { return setLink(name, up) })
}

func setLink(name string, up bool) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	set := netlink.LinkSetDown
	if up {
		set = netlink.LinkSetUp
	}
	if err := set(l); err != nil {
		return fmt.Errorf("set link %s up=%t: %w", name, up, err)
	}
	return nil
}
