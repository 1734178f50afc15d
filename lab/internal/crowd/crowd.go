// Package crowd stands in for a WireGuard device with thousands of peers, and for these peers, as far as a watcher beside the device can see: what the device
// says of itself, and the packets that come to its port. There are no tunnels, so 10,000 peers cost a few megabytes.
//
//	namespace of the device                         namespace of the peers
//	wg0 (TUN, nobody reads it)
//	/var/run/wireguard/wg0.sock ◄─ table ◄─ UDP 198.18.0.1:51820 ═ veth ═ raw socket: peers at 198.18.1.0 and up, floods from 198.19.0.0 and up
//
// The packets are real: an initiation opens as WireGuard's responder opens it, and passes a real network on its way. What is emulated is the device. It answers
// no initiation, believes any data packet, by the index in it, and moves the peer's last handshake when the one with counter 0 comes, as the kernel does
// (wg_packet_consume_data_done in drivers/net/wireguard/receive.c). Addresses are those for benchmarks (RFC 2544).
package crowd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/netns"
)

const (
	// MaxPeers have addresses of their own below those that floods come from.
	MaxPeers = 60_000

	link = "crowd0" // of the veth pair, in the device's namespace

	peerPort = 41641

	// answerTimeout bounds how long the device waits for whoever asks it.
	answerTimeout = 5 * time.Second

	// backlog is how much the device's UDP socket holds, in bytes: all packets of 10,000 handshakes.
	backlog = 16 << 20
)

var (
	hub       = netip.MustParseAddrPort("198.18.0.1:51820")
	outside   = netip.MustParsePrefix("198.18.0.2/15")
	inside    = netip.MustParsePrefix("10.128.0.1/9")
	floodFrom = netip.MustParseAddr("198.19.0.0")
)

// Crowd is a device and its peers. Peers are numbered from 0. Its methods are safe for concurrent use, but must not be called inside Do of a namespace.
type Crowd struct {
	keys    []wgtypes.Key // public
	hub     *initiator
	private []wgtypes.Key // of the peers
	sender  *sender

	mu       sync.Mutex
	table    *table
	counters []uint64 // of the peers' last data packets
	closers  []func() error
	serving  sync.WaitGroup
}

// New makes the device, with the given name, in a namespace, and as many peers in one of their own. No peer has said anything.
func New(ns *netns.NS, name string, peers int) (*Crowd, error) {
	if peers < 1 || peers > MaxPeers {
		return nil, fmt.Errorf("make crowd: %d peers, want 1 to %d", peers, MaxPeers)
	}
	c := &Crowd{counters: make([]uint64, peers)}
	if err := c.build(ns, name, peers); err != nil {
		return nil, errors.Join(fmt.Errorf("make crowd: %w", err), c.Close())
	}
	return c, nil
}

func (c *Crowd) build(ns *netns.NS, name string, peers int) error {
	hubKey, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	c.hub = newInitiator(hubKey.PublicKey())
	for range peers {
		k, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return err
		}
		c.private = append(c.private, k)
		c.keys = append(c.keys, k.PublicKey())
	}
	c.table = newTable(hubKey, int(hub.Port()), c.keys)

	away, err := netns.New()
	if err != nil {
		return err
	}
	c.onClose(func() error { away.Close(); return nil })
	if err := errors.Join(
		netns.Pair(away, "eth0", ns, link),
		ns.AddAddr(link, netip.PrefixFrom(hub.Addr(), outside.Bits())),
		away.AddAddr("eth0", outside),
	); err != nil {
		return err
	}
	if c.sender, err = newSender(away); err != nil {
		return err
	}
	c.onClose(c.sender.close)

	if err := errors.Join(c.listen(ns), c.addTUN(ns, name)); err != nil {
		return err
	}
	return c.serve(ns, name)
}

func (c *Crowd) onClose(f func() error) { c.closers = append(c.closers, f) }

// Close removes the device and the peers. It waits for whoever reads the device, 5 s at most.
func (c *Crowd) Close() error {
	var errs []error
	for len(c.closers) > 0 {
		last := len(c.closers) - 1
		errs = append(errs, c.closers[last]())
		c.closers = c.closers[:last]
	}
	c.serving.Wait()
	return errors.Join(errs...)
}

// Key is a peer's public key.
func (c *Crowd) Key(peer int) wgtypes.Key { return c.keys[peer] }

// LastHandshake is what the device says of a peer. It is zero as long as there was none.
func (c *Crowd) LastHandshake(peer int) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table.peers[peer].handshake
}

// addTUN makes the interface that the device is known by.
func (c *Crowd) addTUN(ns *netns.NS, name string) error {
	var dev tun.Device
	if err := ns.Do(func() (err error) {
		dev, err = tun.CreateTUN(name, device.DefaultMTU)
		return err
	}); err != nil {
		return fmt.Errorf("create TUN device %s: %w", name, err)
	}
	c.onClose(dev.Close)
	c.serving.Go(func() {
		for range dev.Events() { // nobody else takes them; closed with the device
		}
	})
	return errors.Join(ns.AddAddr(name, inside), ns.SetLink(name, true))
}

// onlyData lets a UDP socket take data messages and nothing else: what a flood costs the emulated device should not be measured. The kernel drops the rest as if
// it had been read. The program sees packets from the UDP header on.
var onlyData = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 8, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: device.MessageTransportType << 24, SkipTrue: 1}, // little-endian on the wire
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 1 << 16},
}

// listen opens the device's port.
func (c *Crowd) listen(ns *netns.NS) error {
	filter, err := bpf.Assemble(onlyData)
	if err != nil {
		return err
	}
	var conn *net.UDPConn
	if err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(hub))
		return err
	}); err != nil {
		return fmt.Errorf("listen on the device's port: %w", err)
	}
	c.onClose(conn.Close)
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var forced error
	err = raw.Control(func(fd uintptr) { forced = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, backlog) })
	if err := errors.Join(err, forced, ipv4.NewPacketConn(conn).SetBPF(filter)); err != nil {
		return fmt.Errorf("prepare the device's port: %w", err)
	}
	c.serving.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			c.mu.Lock()
			c.table.receive(buf[:n], from, time.Now())
			c.mu.Unlock()
		}
	})
	return nil
}

// serve answers on the device's socket, one program after the other and one question of each.
func (c *Crowd) serve(ns *netns.NS, name string) error {
	path := "/var/run/wireguard/" + name + ".sock"
	var listener net.Listener
	if err := ns.Do(func() (err error) {
		if listener, err = net.Listen("unix", path); err != nil {
			return err
		}
		return os.Chmod(path, 0o600)
	}); err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	c.onClose(func() error { return ns.Do(listener.Close) }) // closing removes the file, which only the namespace sees
	c.serving.Go(func() {
		var text []byte
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			_ = conn.SetDeadline(time.Now().Add(answerTimeout)) // a failed one shows at the read
			if asked(conn) {
				c.mu.Lock()
				text = c.table.appendText(text[:0])
				c.mu.Unlock()
				_, _ = conn.Write(text) // whoever hung up does not want it
			}
			conn.Close()
		}
	})
	return nil
}
