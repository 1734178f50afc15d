package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/wgpeer"
)

const (
	link = "wgdemo0"
	// socket is where the device is found by others. It outlives a device that is killed.
	socket = "/var/run/wireguard/" + link + ".sock"

	// The time after a step that a packet tells, and after one that is seen at a sample: the probe takes one every 10 s.
	prompt, sampled = 3 * time.Second, 12 * time.Second
)

var hubInside = netip.MustParsePrefix("192.0.2.1/32")

// peer is a WireGuard device without any interface: what comes out of its tunnel is thrown away.
type peer struct {
	name   string
	key    wgtypes.Key
	inside netip.Addr
	dev    *device.Device // nil while down
}

// stage is the hub and its peers.
type stage struct {
	hub    *wgpeer.Device
	hubKey wgtypes.Key // public
	port   int
	out    io.Writer
}

// peers acts out how peers come, go, and knock, and then how they move and are configured, again and again until ctx ends.
func peers(ctx context.Context, out io.Writer) (err error) {
	alice, bob, carol := newPeer("alice-laptop", 2), newPeer("bob-phone", 3), newPeer("carol-desktop", 4)
	dave, mallory := newPeer("dave-tablet", 5), newPeer("mallory", 66)
	s := &stage{out: out}
	if err := s.open(alice, bob, carol, dave); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.hub.Close()) }()
	for _, p := range []*peer{alice, bob, carol, dave, mallory} {
		defer p.down()
	}

	type step struct {
		do    func() error
		after time.Duration
	}
	steps := []step{
		{func() error { return s.connect(alice, "comes up") }, prompt},
		{func() error { return s.connect(bob, "comes up") }, prompt},
		{func() error { return s.connect(carol, "comes up") }, prompt},
		{func() error { return s.connect(dave, "comes up") }, prompt},
		{func() error { return s.leave(dave) }, 0},
		{func() error { return s.connect(mallory, "knocks, whom nobody has configured: told once an hour") }, prompt},
		{func() error { mallory.down(); return nil }, 0},
	}
	for {
		for _, step := range steps {
			if err := step.do(); err != nil {
				return err
			}
			select {
			case <-time.After(step.after):
			case <-ctx.Done():
				return nil
			}
		}
		steps = nil
		for _, p := range []*peer{alice, bob, carol} {
			steps = append(steps,
				step{func() error { return s.roam(p) }, sampled},
				step{func() error { return s.remove(p) }, sampled},
				step{func() error { return s.restore(p) }, prompt},
			)
		}
	}
}

func newPeer(name string, number byte) *peer {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		panic(err) // the system has no randomness
	}
	a := hubInside.Addr().As4()
	a[3] = number
	return &peer{name: name, key: key, inside: netip.AddrFrom4(a)}
}

// open makes the hub.
func (s *stage) open(peers ...*peer) error {
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		return fmt.Errorf("%s is in use: another demo runs on this machine", socket)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(socket); err != nil {
			return err
		}
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	cfg := wgpeer.Config{Name: link, PrivateKey: key, Address: hubInside, UAPI: true}
	for _, p := range peers {
		cfg.Peers = append(cfg.Peers, p.config())
	}
	if s.hub, err = wgpeer.New(cfg); err != nil {
		return err
	}
	observed, err := s.hub.Observe()
	if err != nil {
		return errors.Join(err, s.hub.Close())
	}
	s.hubKey, s.port = key.PublicKey(), observed.ListenPort
	fmt.Fprintf(s.out, "%s is up, with %d peers\n", link, len(peers))
	return nil
}

// config is the peer as the hub knows it.
func (p *peer) config() wgpeer.Peer {
	return wgpeer.Peer{PublicKey: p.key.PublicKey(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(p.inside, 32)}}
}

func (s *stage) say(p *peer, text string) {
	fmt.Fprintf(s.out, "%s (%.8s…) %s\n", p.name, p.key.PublicKey(), text)
}

// connect makes the peer's device, whose first keepalive makes a session.
func (s *stage) connect(p *peer, text string) error {
	s.say(p, text)
	p.down()
	tunnel := tuntest.NewChannelTUN()
	dev := device.NewDevice(tunnel.TUN(), conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	go func() {
		for {
			select {
			case <-tunnel.Inbound:
			case <-dev.Wait():
				return
			}
		}
	}()
	p.dev = dev
	hub := s.hubKey
	return errors.Join(
		p.dev.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=127.0.0.1:%d\nallowed_ip=%s\npersistent_keepalive_interval=2\n",
			hex.EncodeToString(p.key[:]), hex.EncodeToString(hub[:]), s.port, hubInside)),
		p.dev.Up())
}

func (p *peer) down() {
	if p.dev != nil {
		p.dev.Close()
		p.dev = nil
	}
}

func (s *stage) roam(p *peer) error {
	s.say(p, "moves to another port, without a handshake: seen at a sample")
	return p.dev.IpcSet("listen_port=0\n")
}

func (s *stage) remove(p *peer) error {
	s.say(p, "is taken out of the configuration: seen at a sample")
	p.down()
	return s.hub.RemovePeer(p.key.PublicKey())
}

func (s *stage) restore(p *peer) error {
	if err := s.hub.SetPeer(p.config()); err != nil {
		return err
	}
	return s.connect(p, "is configured again, and comes up")
}

func (s *stage) leave(p *peer) error {
	s.say(p, "goes, without a word as ever: its keys are dead 180 s after its handshake")
	p.down()
	return nil
}
