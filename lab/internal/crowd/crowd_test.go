package crowd_test

import (
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/crowd"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/testreq"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// read asks the device as the probe does.
func read(t *testing.T, ns *netns.NS) (dev *wgtypes.Device) {
	t.Helper()
	must(t, ns.Do(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		dev, err = c.Device("wg0")
		return err
	}))
	return dev
}

// eventually waits for what goes through a network.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

func TestDevice(t *testing.T) {
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(ns.Close)
	const peers = 1000
	c, err := crowd.New(ns, "wg0", peers)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })

	dev := read(t, ns)
	if len(dev.Peers) != peers || dev.ListenPort != 51820 || dev.PrivateKey == (wgtypes.Key{}) {
		t.Fatalf("%d peers, port %d", len(dev.Peers), dev.ListenPort)
	}
	allowed := map[string]bool{}
	for i, p := range dev.Peers {
		if p.PublicKey != c.Key(i) || p.Endpoint != nil || !p.LastHandshakeTime.IsZero() || len(p.AllowedIPs) != 1 {
			t.Fatalf("peer %d is not what was made: %+v", i, p)
		}
		allowed[p.AllowedIPs[0].String()] = true
	}
	if len(allowed) != peers {
		t.Errorf("%d different allowed addresses", len(allowed))
	}

	sent, err := c.Connect(peers - 1)
	must(t, err)
	eventually(t, "the handshake", func() bool { return !c.LastHandshake(peers - 1).IsZero() })
	must(t, c.Keepalive(peers-1))
	eventually(t, "the keepalive", func() bool { return read(t, ns).Peers[peers-1].ReceiveBytes == 148+32+32 })
	p := read(t, ns).Peers[peers-1]
	if took := p.LastHandshakeTime.Sub(sent.Round(0)); took < 0 || took > 10*time.Second {
		t.Errorf("the handshake was %v after the packet", took)
	}
	if got, want := p.Endpoint.String(), "198.18.4.231:41641"; got != want || p.TransmitBytes != 92 {
		t.Errorf("endpoint %s, want %s; sent %d bytes", got, want, p.TransmitBytes)
	}
}

func TestFlood(t *testing.T) {
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(ns.Close)
	c, err := crowd.New(ns, "wg0", 1)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	received := func() (n uint64) {
		must(t, ns.Do(func() error {
			l, err := netlink.LinkByName("crowd0")
			if err == nil {
				n = l.Attrs().Statistics.RxPackets
			}
			return err
		}))
		return n
	}
	before := received()
	rate, err := c.Flood(t.Context(), crowd.Flood{Rate: 1000, For: 300 * time.Millisecond, Sources: 100, MAC1: true})
	must(t, err)
	if rate <= 0 || rate > 1000 {
		t.Errorf("%.0f packets a second", rate)
	}
	eventually(t, "all packets of the flood", func() bool { return received() >= before+300 })
	if p := read(t, ns).Peers[0]; p.ReceiveBytes != 0 || p.Endpoint != nil {
		t.Errorf("a flood moved the peer: %+v", p)
	}
}

func TestTooLargeACrowd(t *testing.T) {
	t.Parallel()
	for _, peers := range []int{-1, 0, crowd.MaxPeers + 1} {
		if c, err := crowd.New(nil, "wg0", peers); err == nil {
			c.Close()
			t.Errorf("%d peers are taken", peers)
		}
	}
}
