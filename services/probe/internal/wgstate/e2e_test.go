package wgstate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/pkg/events"
)

// patience bounds what a test waits for; nothing passes by waiting it out.
const patience = 10 * time.Second

// startDevice runs a userspace WireGuard device with the given configuration (UAPI set) on a TUN interface, without its socket.
func startDevice(tb testing.TB, name, config string) *device.Device {
	tb.Helper()
	t, err := tun.CreateTUN(name, device.DefaultMTU)
	if err != nil {
		tb.Fatal(err)
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	tb.Cleanup(d.Close)
	if err := d.IpcSet(config); err != nil {
		tb.Fatal(err)
	}
	return d
}

// openSocket lets d answer on its socket until close is called, or the test ends.
func openSocket(tb testing.TB, name string, d *device.Device) (close func()) {
	tb.Helper()
	f, err := ipc.UAPIOpen(name)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		tb.Fatal(err)
	}
	f.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(true)
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go d.IpcHandle(c)
		}
	}()
	return func() { l.Close() }
}

// setUp sets the interface's up flag, as "ip link set" does.
func setUp(tb testing.TB, name string, up bool) {
	tb.Helper()
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := rtnetlink.Dial(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	msg := rtnetlink.LinkMessage{Index: uint32(ifi.Index), Change: unix.IFF_UP}
	if up {
		msg.Flags = unix.IFF_UP
	}
	if err := c.Link.Set(&msg); err != nil {
		tb.Fatal(err)
	}
}

func newClient(tb testing.TB) *Client {
	tb.Helper()
	c, err := New(slog.New(slog.DiscardHandler), Filter{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// one lists the devices and returns the only one.
func one(tb testing.TB, c *Client) Link {
	tb.Helper()
	links, errs := c.Devices()
	if len(errs) > 0 || len(links) != 1 {
		tb.Fatalf("devices = %v, errors %v, want one", links, errs)
	}
	return links[0]
}

func TestUserspaceDevice(t *testing.T) {
	requireDevices(t)
	private, preshared, peer := filled(1), filled(4), filled(3)
	d := startDevice(t, "wg0", fmt.Sprintf("private_key=%x\nlisten_port=51820\npublic_key=%x\npreshared_key=%x\nendpoint=203.0.113.7:41641\n"+
		"persistent_keepalive_interval=25\nallowed_ip=fd00::2/128\nallowed_ip=10.9.0.2/32\n", private[:], peer[:], preshared[:]))

	c := newClient(t)
	if links, errs := c.Devices(); len(links) > 0 || len(errs) > 0 {
		t.Fatalf("before the socket: devices %v, errors %v", links, errs)
	}
	openSocket(t, "wg0", d)
	listen(t, SocketDir, "wg9.sock", true) // without an interface
	t.Cleanup(func() { os.Remove(SocketDir + "/wg9.sock") })

	link := one(t, c)
	ifi, err := net.InterfaceByName("wg0")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Link{Name: "wg0", Ifindex: ifi.Index, Kind: Userspace}, link); diff != "" {
		t.Errorf("link (-want +got):\n%s", diff)
	}

	got, err := c.Snapshot(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	want := Device{
		Name: "wg0", Ifindex: ifi.Index, Kind: Userspace,
		PublicKey: events.Key(private.PublicKey()), ListenPort: 51820,
		Peers: []Peer{{
			PublicKey:    events.Key(peer),
			Endpoint:     netip.MustParseAddrPort("203.0.113.7:41641"),
			AllowedIPs:   []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32"), netip.MustParsePrefix("fd00::2/128")},
			Keepalive:    25 * time.Second,
			PresharedKey: c.fingerprint(preshared),
		}},
	}
	equal := cmp.Options{
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	if got.Responder == nil || got.Responder.PublicKey() != private.PublicKey() || !got.Responder.Keeps(peer) {
		t.Error("its Responder has not the device's key and peer")
	}
	if got.Cost <= 0 {
		t.Errorf("it is said to have cost %v", got.Cost)
	}
	got.Responder, got.Cost = nil, 0
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}

	for _, up := range []bool{true, false} {
		setUp(t, "wg0", up)
		if got, err := c.Snapshot(t.Context(), link); err != nil || got.Up != up {
			t.Errorf("up = %v, want %v (error %v)", got.Up, up, err)
		}
		if got := one(t, c); got.Up != up {
			t.Errorf("listed up = %v, want %v", got.Up, up)
		}
	}

	d.Close()
	if _, err := c.Snapshot(t.Context(), link); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("device gone: %v", err)
	}
}

// TestLinkSocket follows an interface through its life by its index.
func TestLinkSocket(t *testing.T) {
	requireDevices(t)
	s, err := openLinkSocket()
	if err != nil {
		t.Fatal(err)
	}
	d := startDevice(t, "wg0", "")
	ifi, err := net.InterfaceByName("wg0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := rtnetlink.Dial(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const longest = "wg-0123456789ab" // 15 bytes
	for _, step := range []struct {
		name string
		do   func() error
		want Link
	}{
		{"down", func() error { return nil }, Link{Name: "wg0", Ifindex: ifi.Index}},
		{"renamed", func() error {
			return c.Link.Set(&rtnetlink.LinkMessage{Index: uint32(ifi.Index), Attributes: &rtnetlink.LinkAttributes{Name: longest}})
		}, Link{Name: longest, Ifindex: ifi.Index}},
		{"up", func() error { setUp(t, longest, true); return nil }, Link{Name: longest, Ifindex: ifi.Index, Up: true}},
		{"down again", func() error { setUp(t, longest, false); return nil }, Link{Name: longest, Ifindex: ifi.Index}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		got, err := s.get(ifi.Index)
		if err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
	d.Close()
	if _, err := s.get(ifi.Index); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("interface gone: %v", err)
	}
	s.f.Close()
	if got, err := s.get(ifi.Index); err == nil {
		t.Errorf("socket closed: %v", got)
	}
}

func TestBrokenDeviceDoesNotHideItsNeighbour(t *testing.T) {
	requireDevices(t)
	private := filled(1)
	openSocket(t, "wg0", startDevice(t, "wg0", fmt.Sprintf("private_key=%x\n", private[:])))

	startDevice(t, "wg1", "") // its process "died" but the interface stayed
	listen(t, SocketDir, "wg1.sock", true)
	t.Cleanup(func() { os.Remove(SocketDir + "/wg1.sock") })

	startDevice(t, "wg2", "") // its process says nonsense
	nonsense, err := net.Listen("unix", SocketDir+"/wg2.sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nonsense.Close() })
	go func() {
		for {
			s, err := nonsense.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(s, "private_key=%s=\n", hex.EncodeToString(private[:]))
			s.Close()
		}
	}()

	c := newClient(t)
	links, errs := c.Devices()
	if len(errs) > 0 {
		t.Errorf("errors = %v", errs)
	}
	got := make(map[string]error)
	for _, l := range links {
		_, got[l.Name] = c.Snapshot(t.Context(), l)
	}
	if len(got) != 3 {
		t.Errorf("devices = %v, want wg0, wg1 and wg2", links)
	}
	if err := got["wg0"]; err != nil {
		t.Errorf("wg0: %v", err)
	}
	if err := got["wg1"]; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("wg1: %v", err)
	}
	if err := got["wg2"]; err == nil || strings.Contains(err.Error(), hex.EncodeToString(private[:])) {
		t.Errorf("wg2: %v", err)
	}
}

func TestDeviceThatHangs(t *testing.T) {
	requireDevices(t)
	startDevice(t, "wg0", "")
	l, err := net.Listen("unix", SocketDir+"/wg0.sock") // connections wait in its queue, and nobody takes them
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })

	c := newClient(t)
	link := one(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Snapshot(ctx, link); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v", err)
	}

	// The call that hangs ends with the device's process, and leaves nothing behind.
	l.Close()
	if _, err := c.Snapshot(t.Context(), link); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket gone: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reading) > 0 {
		t.Errorf("%d readings under way", len(c.reading))
	}
}

func TestWatch(t *testing.T) {
	requireDevices(t)
	c := newClient(t)
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- c.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()

	// await lists the devices after every call, until they are as wanted.
	await := func(what string, want func([]Link) bool) {
		t.Helper()
		late := time.After(patience)
		for {
			select {
			case <-changed:
			case <-late:
				t.Fatalf("not noticed: %s", what)
			}
			if links, errs := c.Devices(); len(errs) == 0 && want(links) {
				return
			}
		}
	}
	await("the start", func(l []Link) bool { return len(l) == 0 })

	d := startDevice(t, "wg0", "")
	closeSocket := openSocket(t, "wg0", d)
	await("device appears", func(l []Link) bool { return len(l) == 1 && !l[0].Up })
	setUp(t, "wg0", true)
	await("link up", func(l []Link) bool { return len(l) == 1 && l[0].Up })
	setUp(t, "wg0", false)
	await("link down", func(l []Link) bool { return len(l) == 1 && !l[0].Up })
	closeSocket()
	await("socket vanishes", func(l []Link) bool { return len(l) == 0 })
	openSocket(t, "wg0", d)
	await("socket is back", func(l []Link) bool { return len(l) == 1 })
	d.Close()
	await("device vanishes", func(l []Link) bool { return len(l) == 0 })

	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Watch = %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Watch does not end with its context")
	}
}

func BenchmarkSnapshot(b *testing.B) {
	requireDevices(b)
	for _, n := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			private := filled(1)
			d := startDevice(b, "wg0", fmt.Sprintf("private_key=%x\n", private[:]))
			defer d.Close()
			r, w := io.Pipe()
			go func() {
				for i := range n {
					key := wgtypes.Key{0: byte(i), 1: byte(i >> 8), 31: 1}
					fmt.Fprintf(w, "public_key=%x\nallowed_ip=10.%d.%d.%d/32\n", key[:], i>>16, i>>8&255, i&255)
				}
				w.Close()
			}()
			if err := d.IpcSetOperation(r); err != nil {
				b.Fatal(err)
			}
			defer openSocket(b, "wg0", d)()
			c := newClient(b)
			link := one(b, c)
			b.ReportAllocs()
			for b.Loop() {
				if got, err := c.Snapshot(b.Context(), link); err != nil || len(got.Peers) != n {
					b.Fatal(len(got.Peers), err)
				}
			}
		})
	}
}

func BenchmarkDevices(b *testing.B) {
	requireDevices(b)
	openSocket(b, "wg0", startDevice(b, "wg0", ""))
	c := newClient(b)
	b.ReportAllocs()
	for b.Loop() {
		one(b, c)
	}
}

// BenchmarkIdle is what Watch costs once a second.
func BenchmarkIdle(b *testing.B) {
	requireDevices(b)
	openSocket(b, "wg0", startDevice(b, "wg0", ""))
	b.ReportAllocs()
	for b.Loop() {
		if s, err := listSockets(SocketDir); err != nil || len(s) != 1 {
			b.Fatal(s, err)
		}
	}
}
