package wgstate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

var wg1 = Link{Name: "wg1", Ifindex: 8, Up: true, Kind: Userspace}

// fake returns a Client over a device that answers as given, with the interfaces wg0 and wg1 present.
func fake(device func(Kind, string) (*wgtypes.Device, error)) *Client {
	return &Client{
		log:         slog.New(slog.DiscardHandler),
		dir:         "/nonexistent",
		fingerprint: noKeys,
		device:      device,
		links:       func() ([]rtLink, []error) { return nil, nil },
		link: func(ifindex int) (Link, error) {
			for _, l := range []Link{wg0, wg1} {
				if l.Ifindex == ifindex {
					return l, nil
				}
			}
			return Link{}, os.ErrNotExist
		},
		reading: make(map[string]*reading),
		known:   make(map[int]*known),
	}
}

func withPeers(n int) *wgtypes.Device {
	d := &wgtypes.Device{PrivateKey: filled(1)}
	for i := range n {
		d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: filled(byte(i + 1))})
	}
	return d
}

func TestSnapshotBelievesFewerPeersOnlyTwice(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		dumps []int // number of peers in each reading of the device, in order; all must be asked for
		want  []int // number of peers in each Snapshot
	}{
		{name: "first reading is checked by a second", dumps: []int{5, 5}, want: []int{5}},
		{name: "steady", dumps: []int{5, 5, 5, 5}, want: []int{5, 5, 5}},
		{name: "first reading cut short", dumps: []int{2, 5}, want: []int{5}},
		{name: "check of the first reading cut short", dumps: []int{5, 2, 5}, want: []int{5}},
		{name: "later reading cut short", dumps: []int{5, 5, 1, 5}, want: []int{5, 5}},
		{name: "peer removed while it was read", dumps: []int{5, 5, 1, 4, 4}, want: []int{5, 4, 4}},
		{name: "peer removed", dumps: []int{5, 5, 4, 4}, want: []int{5, 4}},
		{name: "all peers removed", dumps: []int{3, 3, 0, 0}, want: []int{3, 0}},
		{name: "peer added", dumps: []int{5, 5, 6}, want: []int{5, 6}},
		{name: "peers removed one after the other", dumps: []int{9, 9, 8, 7, 6, 5, 4}, want: []int{9, 4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rest := tt.dumps
			c := fake(func(Kind, string) (*wgtypes.Device, error) {
				if len(rest) == 0 {
					return nil, errors.New("read more often than expected")
				}
				n := rest[0]
				rest = rest[1:]
				return withPeers(n), nil
			})
			var got []int
			for range tt.want {
				d, err := c.Snapshot(t.Context(), wg0)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, len(d.Peers))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
			if len(rest) > 0 {
				t.Errorf("readings not asked for: %v", rest)
			}
		})
	}
}

// TestSnapshotLeavesOutKeylessPeers: wireguard-go takes a peer with the all-zero public key. It is left out, and the log says so once for a device.
func TestSnapshotLeavesOutKeylessPeers(t *testing.T) {
	t.Parallel()
	c := fake(func(Kind, string) (*wgtypes.Device, error) {
		d := withPeers(2)
		d.Peers = append([]wgtypes.Peer{{}}, d.Peers...)
		return d, nil
	})
	var out bytes.Buffer
	c.log = slog.New(slog.NewTextHandler(&out, nil))
	for range 3 {
		for _, link := range []Link{wg0, wg1} {
			d, err := c.Snapshot(t.Context(), link)
			if err != nil {
				t.Fatal(err)
			}
			var keys []events.Key
			for _, p := range d.Peers {
				keys = append(keys, p.PublicKey)
			}
			if diff := cmp.Diff([]events.Key{events.Key(filled(1)), events.Key(filled(2))}, keys); diff != "" {
				t.Errorf("peers of %s (-want +got):\n%s", link.Name, diff)
			}
		}
	}
	for _, link := range []Link{wg0, wg1} {
		if n := strings.Count(out.String(), "interface="+link.Name); n != 1 {
			t.Errorf("%d lines about %s, want 1:\n%s", n, link.Name, out.String())
		}
	}
}

// TestSnapshotHandsOutOneResponder: it stays the same object, and keeps what it has computed, as long as the device's private key does.
func TestSnapshotHandsOutOneResponder(t *testing.T) {
	t.Parallel()
	present := []rtLink{{Link: wg0, kind: kindWireGuard}}
	var d wgtypes.Device
	c := fake(func(Kind, string) (*wgtypes.Device, error) { return &d, nil })
	c.links = func() ([]rtLink, []error) { return present, nil }
	one, two := filled(1), filled(2)
	var last *wgmsg.Responder
	for _, s := range []struct {
		name    string
		private wgtypes.Key
		peers   []byte // first bytes of their keys
		gone    bool   // Devices misses the interface before
		same    bool   // as before
	}{
		{name: "no private key", peers: []byte{3}, same: true},
		{name: "private key set", private: one, peers: []byte{3}},
		{name: "nothing changed", private: one, peers: []byte{3}, same: true},
		{name: "peers changed", private: one, peers: []byte{4, 5}, same: true},
		{name: "private key replaced", private: two, peers: []byte{4, 5}},
		{name: "interface gone and back", private: two, peers: []byte{4, 5}, gone: true},
		{name: "private key and peers removed"},
		{name: "private key set again", private: two},
	} {
		if s.gone {
			was := present
			present = nil
			c.Devices()
			if len(c.known) > 0 {
				t.Errorf("%s: what was known of it stays: %v", s.name, c.known)
			}
			present = was
		}
		c.Devices()
		d = wgtypes.Device{PrivateKey: s.private}
		for _, b := range s.peers {
			d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: filled(b)})
		}
		got, err := c.Snapshot(t.Context(), wg0)
		if err != nil {
			t.Fatal(err)
		}
		if same := got.Responder == last; same != s.same {
			t.Errorf("%s: the same as before: %v", s.name, same)
		}
		last = got.Responder
		if s.private == (wgtypes.Key{}) {
			if last != nil {
				t.Errorf("%s: there is a Responder", s.name)
			}
			continue
		}
		if last.PublicKey() != s.private.PublicKey() {
			t.Errorf("%s: public key %x", s.name, last.PublicKey())
		}
		for _, b := range []byte{3, 4, 5} {
			if got, want := last.Keeps(filled(b)), bytes.IndexByte(s.peers, b) >= 0; got != want {
				t.Errorf("%s: keeps peer %d: %v", s.name, b, got)
			}
		}
	}
}

func TestSnapshotErrors(t *testing.T) {
	t.Parallel()
	connect := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", errno)}
	}
	const secret = "private_key=UEJJVkFURQ=="
	tests := []struct {
		name string
		link Link
		err  error
		is   error
		says string
	}{
		{name: "kernel device gone", link: wg0, err: os.ErrNotExist, is: os.ErrNotExist, says: "interface wg0 (index 7) is gone"},
		{name: "socket gone", link: wg1, err: connect(syscall.ENOENT), is: os.ErrNotExist, says: "interface wg1 (index 8) is gone"},
		{name: "no capability", link: wg0, err: syscall.EPERM, is: os.ErrPermission, says: "CAP_NET_ADMIN"},
		{name: "socket of another user", link: wg1, err: connect(syscall.EACCES), is: os.ErrPermission, says: "/nonexistent/wg1.sock"},
		{name: "stale socket", link: wg1, err: connect(syscall.ECONNREFUSED), is: syscall.ECONNREFUSED, says: "nobody listens on /nonexistent/wg1.sock"},
		{name: "kernel error", link: wg0, err: syscall.ENOBUFS, is: syscall.ENOBUFS, says: "read device wg0"},
		{name: "userspace device reports an error", link: wg1, err: os.NewSyscallError("read", errors.New("wguser: errno=5")), says: "errno=5"},
		{
			name: "answer that wgctrl quotes", link: wg1,
			err:  fmt.Errorf("wguser: invalid key=value pair: %q", secret),
			says: "does not speak WireGuard's configuration protocol",
		},
		{name: "interface made again while it was read", link: Link{Name: "wg0", Ifindex: 6, Kind: Kernel}, is: os.ErrNotExist, says: "is gone"},
		{name: "interface renamed while it was read", link: Link{Name: "old0", Ifindex: 7, Kind: Kernel}, is: os.ErrNotExist, says: "is gone"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fake(func(Kind, string) (*wgtypes.Device, error) { return withPeers(1), tt.err })
			_, err := c.Snapshot(t.Context(), tt.link)
			if err == nil {
				t.Fatal("no error")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error is not %v: %v", tt.is, err)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error does not say %q: %v", tt.says, err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("error repeats the answer: %v", err)
			}
		})
	}
}

func TestSnapshotOfADeviceThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		c := fake(func(_ Kind, name string) (*wgtypes.Device, error) {
			if name == wg1.Name {
				calls.Add(1)
				<-release
			}
			return withPeers(1), nil
		})

		start := time.Now()
		_, err := c.Snapshot(t.Context(), wg1)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != answerTimeout {
			t.Errorf("first reading: %v after %v", err, time.Since(start))
		}

		start = time.Now()
		_, err = c.Snapshot(t.Context(), wg1)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 0 {
			t.Errorf("reading while it hangs: %v after %v", err, time.Since(start))
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls hang at once", n)
		}
		if _, err := c.Snapshot(t.Context(), wg0); err != nil {
			t.Errorf("another device: %v", err)
		}

		close(release)
		synctest.Wait()
		if _, err := c.Snapshot(t.Context(), wg1); err != nil {
			t.Errorf("reading after it has answered: %v", err)
		}
	})
}

func TestSnapshotEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c := fake(func(Kind, string) (*wgtypes.Device, error) {
			<-release
			return withPeers(1), nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Snapshot(ctx, wg1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}

		// That nobody wants the answer any more does not make the device one that hangs: the next reading waits for it, and then asks anew.
		time.AfterFunc(time.Second, func() { close(release) })
		if _, err := c.Snapshot(t.Context(), wg1); err != nil {
			t.Error(err)
		}
	})
}

// listen makes a socket in dir, and leaves the file behind when it is stale.
func listen(t *testing.T, dir, name string, stale bool) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if stale {
		l.SetUnlinkOnClose(false)
		l.Close()
		return
	}
	t.Cleanup(func() { l.Close() })
}

func TestDevices(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "wgstate") // a socket's path is short: t.TempDir would not do
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listen(t, dir, "wg1.sock", false)
	listen(t, dir, "wg2.sock", true)   // its interface is in another network namespace, or nowhere
	listen(t, dir, "wg0.sock", true)   // wg0 is a kernel device now
	listen(t, dir, "other.ctl", false) // not a WireGuard socket
	if err := os.WriteFile(filepath.Join(dir, "tun5.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	broken := errors.New("one link message cannot be decoded")
	c := fake(nil)
	c.dir = dir
	c.filter = Filter{exclude: []string{"wg-test*"}}
	c.links = func() ([]rtLink, []error) {
		return []rtLink{
			{Link: Link{Name: "wg1", Ifindex: 8}, kind: kindTUN},
			{Link: Link{Name: "tun5", Ifindex: 5, Up: true}, kind: kindTUN}, // some other VPN
			{Link: Link{Name: "wg0", Ifindex: 7, Up: true}, kind: kindWireGuard},
			{Link: Link{Name: "wg-test1", Ifindex: 9}, kind: kindWireGuard},
		}, []error{broken}
	}
	got, errs := c.Devices()
	want := []Link{
		{Name: "wg0", Ifindex: 7, Up: true, Kind: Kernel},
		{Name: "wg1", Ifindex: 8, Kind: Userspace},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if len(errs) != 1 || errs[0] != broken {
		t.Errorf("errors = %v", errs)
	}
}

func TestDevicesWithoutSocketDirectory(t *testing.T) {
	t.Parallel()
	c := fake(nil)
	c.links = func() ([]rtLink, []error) { return []rtLink{{Link: wg0, kind: kindWireGuard}}, nil }
	got, errs := c.Devices()
	if diff := cmp.Diff([]Link{wg0}, got); diff != "" || len(errs) > 0 {
		t.Errorf("errors %v, devices (-want +got):\n%s", errs, diff)
	}
}

func TestDevicesWithUnreadableSocketDirectory(t *testing.T) {
	t.Parallel()
	c := fake(nil)
	c.dir = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(c.dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.links = func() ([]rtLink, []error) { return []rtLink{{Link: wg0, kind: kindWireGuard}}, nil }
	got, errs := c.Devices()
	if diff := cmp.Diff([]Link{wg0}, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), c.dir) {
		t.Errorf("errors = %v", errs)
	}
}

func TestWatchSockets(t *testing.T) {
	t.Parallel()
	parent, err := os.MkdirTemp("", "wgstate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	dir := filepath.Join(parent, "wireguard")

	synctest.Test(t, func(t *testing.T) {
		c := fake(nil)
		c.dir = dir
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int32
		ended := make(chan error)
		go func() { ended <- c.watchSockets(ctx, func() { calls.Add(1); c.Devices() }) }()

		steps := []struct {
			name string
			do   func() error
			want int32
		}{
			{"nothing, not even the directory", func() error { return nil }, 0},
			{"empty directory appears", func() error { return os.Mkdir(dir, 0o700) }, 0},
			{"socket appears", func() error { listen(t, dir, "wg0.sock", true); return nil }, 1},
			{"nothing changes", func() error { return nil }, 1},
			{"socket of a new process in its place", func() error {
				listen(t, dir, "new.sock", true)
				return os.Rename(filepath.Join(dir, "new.sock"), filepath.Join(dir, "wg0.sock"))
			}, 2},
			{"socket vanishes", func() error { return os.Remove(filepath.Join(dir, "wg0.sock")) }, 3},
			{"directory made again with a socket", func() error {
				if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o700)); err != nil {
					return err
				}
				listen(t, dir, "wg0.sock", true)
				return nil
			}, 4},
			{"directory vanishes", func() error { return os.RemoveAll(dir) }, 5},
			{"socket comes, is listed for another reason, and goes between two looks", func() error {
				if err := os.Mkdir(dir, 0o700); err != nil {
					return err
				}
				listen(t, dir, "wg0.sock", true)
				c.Devices()
				return os.RemoveAll(dir)
			}, 6},
		}
		for _, s := range steps {
			if err := s.do(); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			time.Sleep(socketPoll)
			synctest.Wait()
			if n := calls.Load(); n != s.want {
				t.Errorf("%s: %d calls, want %d", s.name, n, s.want)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
