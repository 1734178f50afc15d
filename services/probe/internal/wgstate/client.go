// Package wgstate reads WireGuard devices, in the kernel and in userspace, and tells when the set of them may have changed.
//
// It is the only package that talks to wgctrl and rtnetlink, and the only one that ever sees a private or preshared key. The keys themselves stop
// here. What it returns are plain values made of public facts; of a preshared key, whether there is one and whether it is still the same; and of a
// private key a [wgmsg.Responder], which opens handshakes with it and gives it to nobody.
//
// It keeps no history, compares nothing and knows no peer's state; that is the tracker's. It also never asks wgctrl for all devices at once,
// because there one stale socket fails the whole call: interfaces are enumerated by rtnetlink and the directory of sockets, and each device is
// read, and fails, alone.
package wgstate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

const (
	// SocketDir is where userspace implementations listen; wgctrl and wg(8) have it built in, too.
	SocketDir = "/var/run/wireguard"

	// answerTimeout bounds a reading. A dump of 10,000 peers takes 0.2 s; a device that needs this long does not answer at all.
	answerTimeout = 5 * time.Second

	// maxReads bounds how often one Snapshot reads a device whose number of peers keeps falling.
	maxReads = 5
)

// Client reads the WireGuard devices of the network namespace in which it was made. It may be used by several goroutines.
type Client struct {
	log         *slog.Logger
	filter      Filter
	dir         string
	fingerprint func(wgtypes.Key) PSK

	// device reads the device called name, and may block for ever on a userspace one.
	device func(kind Kind, name string) (*wgtypes.Device, error)
	links  func() ([]rtLink, []error)
	link   func(ifindex int) (Link, error)
	close  func() error

	mu      sync.Mutex
	reading map[string]*reading // by device name
	known   map[int]*known      // by ifindex
	listed  []socket            // what Devices found last
}

// known is what is kept of a device between two readings, until Devices misses it. Client.mu guards it.
type known struct {
	read      bool // before
	peers     int  // number of them in the last reading
	keyless   bool // it was told that a peer is left out
	responder *wgmsg.Responder
}

// reading is one call of Client.device under way.
type reading struct {
	done chan struct{}
	cost time.Duration // of CPU; set before done is closed
	hung bool          // somebody has waited answerTimeout for it; guarded by Client.mu
}

// New returns a Client for the interfaces that filter takes. It needs no privilege yet; reading a kernel device takes CAP_NET_ADMIN, and
// a userspace one the right to connect to its socket.
func New(log *slog.Logger, filter Filter) (*Client, error) {
	user, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("open netlink for WireGuard: %w", err)
	}
	links, err := openLinkSocket()
	if err != nil {
		_ = user.Close()
		return nil, fmt.Errorf("open a socket to ask about interfaces: %w", err)
	}
	kernel := &kernelReader{}
	return &Client{
		log:         log,
		filter:      filter,
		dir:         SocketDir,
		fingerprint: newFingerprint(),
		device: func(kind Kind, name string) (*wgtypes.Device, error) {
			if kind == Kernel {
				return kernel.device(name)
			}
			return user.Device(name)
		},
		links:   listLinks,
		link:    links.get,
		close:   func() error { return errors.Join(kernel.close(), user.Close(), links.f.Close()) },
		reading: make(map[string]*reading),
		known:   make(map[int]*known),
	}, nil
}

// Close frees the sockets. A reading of a userspace device that hangs stays until the device's process answers or ends.
func (c *Client) Close() error { return c.close() }

// Devices lists the WireGuard interfaces that the filter takes, by name, without asking the devices anything. What cannot be listed is
// an error each, beside the rest.
//
// A socket counts only when a TUN interface of the same name is in this network namespace: the sockets of all namespaces share one
// directory, and a process that was killed leaves its own behind.
func (c *Client) Devices() ([]Link, []error) {
	found, errs := c.links()
	sockets, err := listSockets(c.dir)
	if err != nil {
		errs = append(errs, fmt.Errorf("list sockets of userspace devices: %w", err))
	}

	var links []Link
	tuns := make(map[string]Link)
	for _, l := range found {
		if l.kind == kindWireGuard {
			l.Kind = Kernel
			links = append(links, l.Link)
		} else {
			l.Kind = Userspace
			tuns[l.Name] = l.Link
		}
	}
	for _, s := range sockets {
		l, ok := tuns[s.name]
		if !ok {
			c.log.Debug("socket skipped: no TUN interface of its name in this network namespace", "interface", s.name, "path", s.path(c.dir))
			continue
		}
		links = append(links, l)
	}
	links = slices.DeleteFunc(links, func(l Link) bool { return !c.filter.Match(l.Name) })
	slices.SortFunc(links, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })

	c.mu.Lock()
	defer c.mu.Unlock()
	c.listed = sockets
	maps.DeleteFunc(c.known, func(ifindex int, _ *known) bool {
		return !slices.ContainsFunc(links, func(l Link) bool { return l.Ifindex == ifindex })
	})
	return links, errs
}

// Link returns the interface with the given index as it is, without its Kind, or an error that is os.ErrNotExist.
func (c *Client) Link(ifindex int) (Link, error) { return c.link(ifindex) }

// of returns what is kept of link's device. It is called with c.mu held.
func (c *Client) of(link Link) *known {
	k, ok := c.known[link.Ifindex]
	if !ok {
		k = new(known)
		c.known[link.Ifindex] = k
	}
	return k
}

// Snapshot reads the device behind link, with its name and its up flag as they are after that. The error is
//
//   - os.ErrNotExist when the interface is gone, was renamed, or was made again;
//   - os.ErrPermission when the probe may not read it, and names the remedy;
//   - os.ErrDeadlineExceeded when a userspace device does not answer. It comes after 5 s, and at once as long as that device still
//     owes the same answer, so that it does not slow down its neighbours;
//   - syscall.ECONNREFUSED when nobody listens on a userspace device's socket;
//   - the context's when that ends first.
func (c *Client) Snapshot(ctx context.Context, link Link) (Device, error) {
	d, cost, err := c.readWhole(ctx, link)
	if err != nil {
		return Device{}, c.explain(link, err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	now, err := c.link(link.Ifindex)
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil && now.Name != link.Name:
		return Device{}, gone(link)
	case err != nil:
		return Device{}, fmt.Errorf("read device %s: %w", link.Name, err)
	}
	link.Up = now.Up
	out := convert(d, link, c.fingerprint)
	if len(out.Peers) < len(d.Peers) {
		c.tellKeyless(link)
	}
	if out.Responder, err = c.responder(link, d.PrivateKey); err != nil {
		return Device{}, fmt.Errorf("read device %s: %v", link.Name, err)
	}
	if out.Responder != nil {
		out.Responder.Keep(func(yield func([32]byte) bool) {
			for i := range out.Peers {
				if !yield(out.Peers[i].PublicKey) {
					return
				}
			}
		})
	}
	out.Cost = cost + threadTime() - began
	return out, nil
}

// threadTime returns the CPU time of the calling thread, which the goroutine should be locked to.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // Linux has had this clock since 2.6.12
	}
	return time.Duration(t.Nano())
}

// responder returns the Responder of link's device, the same one as long as its private key is; nil when it has none.
func (c *Client) responder(link Link, private wgtypes.Key) (*wgmsg.Responder, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.of(link)
	switch {
	case private == wgtypes.Key{}:
		k.responder = nil
	case k.responder == nil || !k.responder.HasKey(private):
		r, err := wgmsg.NewResponder(private)
		if err != nil {
			return nil, err
		}
		k.responder = r
	}
	return k.responder, nil
}

// tellKeyless logs, once for a device, that a peer is left out.
func (c *Client) tellKeyless(link Link) {
	c.mu.Lock()
	k := c.of(link)
	told := k.keyless
	k.keyless = true
	c.mu.Unlock()
	if !told {
		c.log.Warn("peer is not watched: its public key is all zeros, nobody can connect with it", "interface", link.Name)
	}
}

// readWhole reads the device until fewer peers than before are believable.
//
// The kernel cuts a dump short when the peer it would go on with is removed meanwhile, and marks it as interrupted
// (wg_get_device_dump in drivers/net/wireguard/netlink.c); wgctrl does not look at that mark, nor whether a userspace answer was complete.
// Peers that only fell off would be reported as removed, so a smaller number, and the very first, counts when the next reading does not
// show more.
func (c *Client) readWhole(ctx context.Context, link Link) (d *wgtypes.Device, cost time.Duration, err error) {
	c.mu.Lock()
	last := *c.of(link)
	c.mu.Unlock()

	d, cost, err = c.read(ctx, link)
	for n := 1; err == nil && n < maxReads && (!last.read || len(d.Peers) < last.peers); n++ {
		last.read, last.peers = true, len(d.Peers)
		var more time.Duration
		d, more, err = c.read(ctx, link)
		cost += more
	}
	if err != nil {
		return nil, 0, err
	}

	c.mu.Lock()
	k := c.of(link)
	k.read, k.peers = true, len(d.Peers)
	c.mu.Unlock()
	return d, cost, nil
}

// read reads the device once, waiting no longer than answerTimeout, and tells what CPU time that took here.
//
// wgctrl dials a userspace device's socket without any deadline, so the call runs in a goroutine of its own, the only one in the probe
// that may outlive its task. There is never more than one for a device: while it hangs, no other is started.
func (c *Client) read(ctx context.Context, link Link) (*wgtypes.Device, time.Duration, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		c.mu.Lock()
		r, busy := c.reading[link.Name]
		if busy && r.hung {
			c.mu.Unlock()
			return nil, 0, os.ErrDeadlineExceeded
		}
		var d *wgtypes.Device
		var err error
		if !busy {
			r = &reading{done: make(chan struct{})}
			c.reading[link.Name] = r
			go func() {
				// The kernel makes its answer on the thread that asks, so the thread's clock tells what a reading costs, however long it waits.
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				began := threadTime()
				d, err = c.device(link.Kind, link.Name)
				r.cost = threadTime() - began
				c.mu.Lock()
				delete(c.reading, link.Name)
				c.mu.Unlock()
				close(r.done)
			}()
		}
		c.mu.Unlock()

		timeout := time.After(answerTimeout)
		select {
		case <-r.done:
			if !busy {
				return d, r.cost, err
			}
			// That was somebody else's, and begun before this was asked.
		case <-timeout:
			c.mu.Lock()
			r.hung = true
			c.mu.Unlock()
			return nil, 0, os.ErrDeadlineExceeded
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// explain says what failed and what to do about it.
func (c *Client) explain(link Link, err error) error {
	path := socket{name: link.Name}.path(c.dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return gone(link)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("read device %s: %w", link.Name, err)
	case errors.Is(err, os.ErrPermission) && link.Kind == Kernel:
		return fmt.Errorf("read device %s: %w: give the probe CAP_NET_ADMIN", link.Name, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("read device %s: %w: the probe runs as user %d, who has to own %s (start it again if the directory was made anew since)",
			link.Name, err, os.Geteuid(), path)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("read device %s: no answer in %v: %w", link.Name, answerTimeout, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("read device %s: nobody listens on %s, start its process again or remove the interface: %w", link.Name, path, err)
	}
	// wgctrl quotes the line of a userspace answer that it does not understand, and that may be the private key: of what came over the socket
	// only errors of the system are passed on.
	var op *net.OpError
	var sys *os.SyscallError
	if link.Kind == Userspace && !errors.As(err, &op) && !errors.As(err, &sys) {
		return fmt.Errorf("read device %s: what answers on %s does not speak WireGuard's configuration protocol", link.Name, path)
	}
	return fmt.Errorf("read device %s: %w", link.Name, err)
}

func gone(link Link) error {
	return fmt.Errorf("interface %s (index %d) is gone: %w", link.Name, link.Ifindex, os.ErrNotExist)
}

// kernelReader reads devices of the kernel module.
type kernelReader struct {
	mu sync.Mutex
	c  *wgctrl.Client // nil before the first reading
}

// device reads a device over a fresh client when the one at hand fails: wgctrl looks for the module once, when dialed, and never finds one
// that is loaded, or loaded again, later.
func (k *kernelReader) device(name string) (*wgtypes.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.c != nil {
		if d, err := k.c.Device(name); err == nil {
			return d, nil
		}
		_ = k.c.Close()
		k.c = nil
	}
	c, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	k.c = c
	return c.Device(name)
}

func (k *kernelReader) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.c == nil {
		return nil
	}
	return k.c.Close()
}

// socket is a userspace device's socket.
type socket struct {
	name  string // of the interface
	inode uint64 // tells a socket from its successor
}

func (s socket) path(dir string) string { return filepath.Join(dir, s.name+".sock") }

// listSockets returns the sockets in dir, by name; a missing directory is an empty one.
func listSockets(dir string) ([]socket, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []socket
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if !ok || e.Type()&fs.ModeSocket == 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
			continue // gone since
		}
		out = append(out, socket{name: name, inode: st.Ino})
	}
	return out, nil
}
