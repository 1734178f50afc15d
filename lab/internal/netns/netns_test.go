package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/testreq"
)

func newNS(t *testing.T) *netns.NS {
	t.Helper()
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

// eventually asks again and again, for what the kernel does in its own time and announces to nobody.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		}
	}
}

func TestPairCarriesTraffic(t *testing.T) {
	t.Parallel()
	a, b := newNS(t), newNS(t)
	for _, err := range []error{
		netns.Pair(a, "eth0", b, "eth0"),
		a.AddAddr("eth0", netip.MustParsePrefix("192.0.2.1/24")),
		b.AddAddr("eth0", netip.MustParsePrefix("192.0.2.2/24")),
		a.AddAddr("eth0", netip.MustParsePrefix("2001:db8::1/64")),
		b.AddAddr("eth0", netip.MustParsePrefix("2001:db8::2/64")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, server := range []string{"192.0.2.1", "2001:db8::1"} {
		var (
			l net.Listener
			c net.Conn
		)
		if err := a.Do(func() (err error) {
			l, err = net.Listen("tcp", net.JoinHostPort(server, "0"))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := b.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestNamespaceSeesNothingOfTheHost(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	if err := ns.Do(func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Name == "lo" && l.Flags&net.FlagUp != 0 {
				continue
			}
			// Some kernels put tunnel devices that are down into every new namespace.
			if l.Flags&net.FlagUp != 0 {
				return fmt.Errorf("link %s is up, flags %v", l.Name, l.Flags)
			}
		}
		return os.WriteFile(netns.Dir+"/file", nil, 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(netns.Dir + "/file"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file made in the private %s is visible outside: %v", netns.Dir, err)
	}
	if _, err := ns.ReadFile(netns.Dir + "/file"); err != nil {
		t.Error(err)
	}
}

func TestDoInsideDo(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	want := errors.New("from within")
	got := ns.Do(func() error { return ns.Do(func() error { return want }) })
	if got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	a, b := newNS(t), newNS(t)
	if err := netns.Pair(a, "eth0", b, "eth0"); err != nil {
		t.Fatal(err)
	}
	var (
		task  string
		child *exec.Cmd
	)
	if err := b.Do(func() error {
		task = fmt.Sprintf("/proc/self/task/%d", unix.Gettid())
		child = exec.Command("sleep", "600")
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return child.Start()
	}); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := b.Do(func() error { return nil }); !errors.Is(err, netns.ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}

	var exit *exec.ExitError
	if err := child.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("child ended with %v, want killed with its thread", err)
	}
	eventually(t, "the thread ends", func() bool {
		_, err := os.Stat(task)
		return errors.Is(err, os.ErrNotExist)
	})
	// A veth end goes when the namespace of the other end does.
	eventually(t, "the namespace ends", func() bool {
		var gone netlink.LinkNotFoundError
		return errors.As(a.Do(func() error {
			_, err := netlink.LinkByName("eth0")
			return err
		}), &gone)
	})
}

// TestManyNamespaces makes so many that one of their goroutines starts on the main thread now and then.
func TestManyNamespaces(t *testing.T) {
	newNS(t)
	for range 50 {
		ns, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		if err := ns.Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("namespace is on the main thread, which never ends")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		ns.Close()
	}
}
