package capture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/services/probe/internal/testreq"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// patience bounds every wait for a packet.
const patience = 10 * time.Second

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		want outcome
	}{
		{"a packet", nil, gotPacket},
		{"nothing waits", unix.EAGAIN, gotNothing},
		{"interrupted by a signal", unix.EINTR, gotNothing},
		{"interface went down", unix.ENETDOWN, gotNothing},
		{"no buffer space", unix.ENOBUFS, gotNothing},
		{"no memory", unix.ENOMEM, gotNothing},
		{"socket closed", unix.EBADF, broken},
		{"no socket", unix.ENOTSOCK, broken},
		{"unknown", errors.New("unknown"), broken},
	} {
		if got := classify(tt.err); got != tt.want {
			t.Errorf("%s: outcome %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestInbound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		pkttype uint8
		want    bool
	}{
		{"to this host", unix.PACKET_HOST, true},
		{"broadcast", unix.PACKET_BROADCAST, true},
		{"multicast", unix.PACKET_MULTICAST, true},
		{"to another host", unix.PACKET_OTHERHOST, false},
		{"sent by this host", unix.PACKET_OUTGOING, false},
	} {
		if got := inbound(tt.pkttype); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOpenNamesTheMissingCapability(t *testing.T) {
	t.Parallel()
	err := onThread(func() error {
		// Capabilities belong to the thread, which ends with the function. Giving one up needs no privilege.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&header, &caps[0]); err != nil {
			return err
		}
		caps[0].Effective &^= 1 << unix.CAP_NET_RAW
		if err := unix.Capset(&header, &caps[0]); err != nil {
			return err
		}
		l, err := Open()
		if err == nil {
			return errors.Join(errors.New("opened without CAP_NET_RAW"), l.Close())
		}
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_RAW") {
			return fmt.Errorf("%v: no permission error that names CAP_NET_RAW", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// topologies are ways for a peer's packets to come in. Each returns the local and the remote namespace and the interface that packets are seen on.
var topologies = []struct {
	name  string
	build func(t *testing.T) (local, remote netns.NsHandle, ifindex int)
}{
	{"by an interface", func(t *testing.T) (netns.NsHandle, netns.NsHandle, int) {
		local, remote := newNamespace(t), newNamespace(t)
		nl := connect(t, local, remote)
		return local, remote, address(t, nl, "near", 1)
	}},
	{"over a bridge", func(t *testing.T) (netns.NsHandle, netns.NsHandle, int) {
		local, remote := newNamespace(t), newNamespace(t)
		nl := connect(t, local, remote)
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}}
		if err := nl.LinkAdd(bridge); errors.Is(err, unix.EOPNOTSUPP) {
			testreq.Skip(t, testreq.E2E, "this kernel has no bridges")
		} else if err != nil {
			t.Fatalf("add a bridge: %v", err)
		}
		port, err := nl.LinkByName("near")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(nl.LinkSetMaster(port, bridge), nl.LinkSetUp(port)); err != nil {
			t.Fatalf("put an interface into the bridge: %v", err)
		}
		return local, remote, address(t, nl, "bridge", 1)
	}},
	{"by loopback", func(t *testing.T) (netns.NsHandle, netns.NsHandle, int) {
		local := newNamespace(t)
		return local, local, address(t, handle(t, local), "lo", 1, 2)
	}},
}

// TestListener sends real datagrams and checks that each message is heard once, and nothing else.
func TestListener(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	for _, tt := range topologies {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			local, remote, ifindex := tt.build(t)
			l := listen(t, local)
			heard := run(t, l)
			for _, ip := range []struct {
				name          string
				local, remote netip.Addr
			}{
				{"IPv4", ip4Of(1), ip4Of(2)},
				{"IPv6", ip6Of(1), ip6Of(2)},
			} {
				near, far := udpSocket(t, local, ip.local), udpSocket(t, remote, ip.remote)
				awaitPath(t, far, near)

				// First what must not be heard, then what must: the last message heard proves that the others have passed.
				if local != remote {
					for _, sent := range [][]byte{initiation(), response(), cookieReply(), data(0, 32)} {
						send(t, near, far, sent)
					}
				}
				for _, junk := range [][]byte{
					nil, {1, 0, 0, 0}, message([4]byte{1}, 147), message([4]byte{1}, 149), message([4]byte{2}, 148), message([4]byte{3}, 65),
					data(1, 32), data(1<<32, 1400), data(0, 31), message([4]byte{1, 0, 0, 1}, 148), message([4]byte{9}, 148),
				} {
					send(t, far, near, junk)
				}
				var want []Packet
				for _, m := range []struct {
					kind wgmsg.Kind
					msg  []byte
				}{
					{wgmsg.Initiation, initiation()}, {wgmsg.Response, response()}, {wgmsg.CookieReply, cookieReply()},
					{wgmsg.Data, data(0, 32)}, {wgmsg.Data, data(0, 1400)},
					{wgmsg.Data, data(0, 4000)}, // in fragments
					{wgmsg.Initiation, initiation()},
				} {
					send(t, far, near, m.msg)
					payload := m.msg
					if m.kind == wgmsg.Data {
						payload = payload[:16]
					}
					want = append(want, Packet{Kind: m.kind, Src: addrOf(far), Dst: addrOf(near), Ifindex: ifindex, Payload: payload})
				}
				if ip.name == "IPv6" && ifindex != loopback {
					// A fragment of IPv6 has an extension header, which the filter does not follow.
					want = append(want[:5], want[6])
				}

				var got []Packet
				for range want {
					p := next(t, heard)
					if age := time.Since(p.At); age < 0 || age > 2*patience {
						t.Errorf("%s: a packet is dated %v ago", ip.name, age)
					}
					p.At = time.Time{}
					got = append(got, p)
				}
				if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
					t.Errorf("%s: packets (-want +got):\n%s", ip.name, diff)
				}
			}
			stats, err := l.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if stats.Received == 0 || stats.Dropped != 0 || stats.Malformed != 0 {
				t.Errorf("stats are %+v, want packets received, none dropped, none malformed", stats)
			}
		})
	}
}

// TestFilterIsLocked: not even the process itself can see more than the filter lets through.
func TestFilterIsLocked(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	l := listen(t, newNamespace(t))
	for i, r := range l.readers {
		if err := unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("socket %d: taking the filter off: %v, want %v", i, err, unix.EPERM)
		}
	}
}

// TestStatsCountDrops fills the queue of a listener that nobody reads.
func TestStatsCountDrops(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ns := newNamespace(t)
	address(t, handle(t, ns), "lo", 1)
	l := listen(t, ns)
	conn := udpSocket(t, ns, ip4Of(1))

	var last Stats
	for deadline := time.Now().Add(patience); last.Dropped == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("no packet was dropped within %v; stats are %+v", patience, last)
		}
		for range 1000 {
			send(t, conn, conn, initiation())
		}
		stats, err := l.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if stats.Received < last.Received || stats.Dropped < last.Dropped {
			t.Fatalf("stats went back from %+v to %+v", last, stats)
		}
		last = stats
	}
	again, err := l.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if again.Received < last.Received || again.Dropped < last.Dropped {
		t.Errorf("stats went back from %+v to %+v", last, again)
	}
	if last.Received < 1000 {
		t.Errorf("only %d messages found room in the queue", last.Received)
	}
}

// TestRunTellsOfDrops checks that nobody has to ask for the statistics to learn of drops.
func TestRunTellsOfDrops(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ns := newNamespace(t)
	address(t, handle(t, ns), "lo", 1)
	l := listen(t, ns)
	conn := udpSocket(t, ns, ip4Of(1))
	for range 2 * readBuffer / len(initiation()) { // more than any kernel holds in twice readBuffer
		send(t, conn, conn, initiation())
	}
	select {
	case <-l.Lost():
		t.Fatal("drops were told of before anybody looked")
	default:
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx, func(Packet) {}) }()
	select {
	case <-l.Lost():
	case <-time.After(patience):
		t.Errorf("drops were not told of within %v", patience)
	}
	cancel()
	if err := await(t, ended); err != nil {
		t.Error(err)
	}
}

// TestRunEnds checks that Run returns nil at the end of its context while both sockets are silent, and an error when one fails.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ns := newNamespace(t)
	t.Run("context ends", func(t *testing.T) {
		l := listen(t, ns)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx, func(Packet) {}) }()
		cancel()
		if err := await(t, ended); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	})
	t.Run("socket fails", func(t *testing.T) {
		l := listen(t, ns)
		// In the place of the socket comes a file that cannot be received from.
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		if err := unix.Dup3(int(null.Fd()), l.readers[1].fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- l.Run(context.Background(), func(Packet) {}) }()
		if err := await(t, ended); err == nil {
			t.Error("Run returned nil though a socket was closed")
		}
	})
}

// BenchmarkTraffic is the price of a UDP datagram's way through the host, data that the filter drops, with and without a listener.
func BenchmarkTraffic(b *testing.B) {
	requireRoot(b)
	for _, listening := range []bool{false, true} {
		b.Run(fmt.Sprintf("listening=%v", listening), func(b *testing.B) {
			ns := newNamespace(b)
			address(b, handle(b, ns), "lo", 1)
			conn := udpSocket(b, ns, ip4Of(1))
			if listening {
				listen(b, ns)
			}
			msg, buf := data(1, 1400), make([]byte, 1500)
			for b.Loop() {
				send(b, conn, conn, msg)
				if _, _, err := conn.ReadFromUDPAddrPort(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// loopback is the index of lo in every namespace.
const loopback = 1

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		testreq.Skip(t, testreq.E2E, "network namespaces and packet sockets need root")
	}
}

// onThread runs f on a thread of its own, which ends with it, so that what f changes about the thread stays with f.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime then ends the thread together with the goroutine
		done <- f()
	}()
	return <-done
}

// within runs f in a network namespace.
func within(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter a network namespace: %v", err)
		}
		return f()
	})
}

// newNamespace returns a network namespace without a name. It lasts until the test ends.
func newNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	err := onThread(func() (err error) {
		ns, err = netns.New()
		return err
	})
	if err != nil {
		testreq.Skip(t, testreq.E2E, fmt.Sprintf("cannot make a network namespace: %v", err))
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// handle returns a netlink handle in a namespace.
func handle(t testing.TB, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	nl, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatalf("open netlink in a namespace: %v", err)
	}
	t.Cleanup(nl.Close)
	return nl
}

// connect joins two namespaces by a veth pair: "near" in the local one, still down, and "far" in the remote one, up and with the second addresses. It
// returns a handle in the local one.
func connect(t testing.TB, local, remote netns.NsHandle) *netlink.Handle {
	t.Helper()
	nl := handle(t, local)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far", PeerNamespace: netlink.NsFd(remote)}
	if err := nl.LinkAdd(veth); errors.Is(err, unix.EOPNOTSUPP) {
		testreq.Skip(t, testreq.E2E, "this kernel has no veth")
	} else if err != nil {
		t.Fatalf("add a veth pair: %v", err)
	}
	address(t, handle(t, remote), "far", 2)
	return nl
}

// address gives an interface the addresses of these hosts, brings it up and returns its index.
func address(t testing.TB, nl *netlink.Handle, name string, hosts ...byte) (ifindex int) {
	t.Helper()
	link, err := nl.LinkByName(name)
	if err != nil {
		t.Fatalf("find interface %s: %v", name, err)
	}
	errs := []error{nl.LinkSetUp(link)}
	for _, host := range hosts {
		for _, ip := range []netip.Addr{ip4Of(host), ip6Of(host)} {
			bits := ip.BitLen() / 2
			errs = append(errs, nl.AddrAdd(link, &netlink.Addr{
				IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, ip.BitLen())},
				Flags: unix.IFA_F_NODAD, // usable at once
			}))
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("bring up %s: %v", name, err)
	}
	return link.Attrs().Index
}

func ip4Of(host byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, host}) }
func ip6Of(host byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 15: host}) }

// listen opens a listener in a namespace.
func listen(t testing.TB, ns netns.NsHandle) *Listener {
	t.Helper()
	var l *Listener
	err := within(ns, func() (err error) {
		l, err = Open()
		return err
	})
	if errors.Is(err, fs.ErrPermission) {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// run runs l until the test ends, and returns what it hears.
func run(t testing.TB, l *Listener) <-chan Packet {
	t.Helper()
	heard, ended := make(chan Packet, 64), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- l.Run(ctx, func(p Packet) {
			p.Payload = append([]byte(nil), p.Payload...)
			heard <- p
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := await(t, ended); err != nil {
			t.Errorf("Run: %v", err)
		}
		if n := len(heard); n != 0 {
			t.Errorf("%d more packets were heard than expected; the next: %+v", n, <-heard)
		}
	})
	return heard
}

// next returns the next packet heard.
func next(t testing.TB, heard <-chan Packet) Packet {
	t.Helper()
	select {
	case p := <-heard:
		return p
	case <-time.After(patience):
		t.Fatalf("nothing was heard for %v", patience)
		return Packet{}
	}
}

// await returns what comes from c.
func await(t testing.TB, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		t.Fatalf("Run has not ended within %v", patience)
		return nil
	}
}

// udpSocket opens a UDP socket on a free port in a namespace. It stays open until the test ends, so that nothing sent to it is answered by ICMP.
func udpSocket(t testing.TB, ns netns.NsHandle, addr netip.Addr) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := within(ns, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func addrOf(conn *net.UDPConn) netip.AddrPort {
	a := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// send sends a datagram.
func send(t testing.TB, from, to *net.UDPConn, payload []byte) {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort(payload, addrOf(to)); err != nil {
		t.Fatal(err)
	}
}

// awaitPath sends datagrams until one arrives: a new link takes its time, and for that long sending may fail.
func awaitPath(t testing.TB, from, to *net.UDPConn) {
	t.Helper()
	const every = 20 * time.Millisecond
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		_, writeErr := from.WriteToUDPAddrPort([]byte("is the path up?"), addrOf(to))
		if err := to.SetReadDeadline(time.Now().Add(every)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := to.ReadFromUDPAddrPort(make([]byte, 64)); err == nil && writeErr == nil {
			return
		}
	}
	t.Fatalf("no path from %v to %v within %v", addrOf(from), addrOf(to), patience)
}
