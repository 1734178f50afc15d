// Package wgpeer runs real WireGuard in userspace inside a network namespace: the protocol of golang.zx2c4.com/wireguard, a real TUN device and real
// UDP sockets, so that what is seen from outside is what any WireGuard does. It takes no part in what the services know.
//
// A device is configured directly. Only one that asks for it also has the socket in /var/run/wireguard through which other programs see it: the
// directory is private to the namespace, so a program started there finds exactly the devices of its own namespace.
package wgpeer

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/netns"
)

// socketDir is where userspace devices keep their sockets (wireguard-tools, ipc-uapi-unix.h).
const socketDir = "/var/run/wireguard"

// mtu leaves room for WireGuard's 80 bytes around a packet over IPv6.
const mtu = 1420

// Config describes a device.
type Config struct {
	NS         *netns.NS // nil: that of the process
	Name       string    // of the TUN device
	PrivateKey wgtypes.Key
	ListenPort int          // UDP; 0 lets the kernel choose
	Address    netip.Prefix // in the tunnel, with the prefix that is reached through it
	Peers      []Peer       // configured before the device is up
	UAPI       bool         // visible to other programs in the namespace
	OnSend     func(Sent)   // if not nil, called just before each initiation and each first data packet, by WireGuard's goroutines

	// Logf takes what wireguard-go has to say; nil discards it.
	Logf func(format string, args ...any)
}

// Peer is the configuration of one peer.
type Peer struct {
	PublicKey    wgtypes.Key
	PresharedKey wgtypes.Key    // zero: none
	Endpoint     netip.AddrPort // zero: learnt from the peer's packets
	AllowedIPs   []netip.Prefix
	Keepalive    time.Duration // whole seconds, 0 sends none
}

// Device is a WireGuard device that is up. Its methods are safe for concurrent use, but must not be called inside Do of its namespace.
type Device struct {
	ns   *netns.NS
	name string
	bind *bind
	dev  *device.Device

	closeOnce sync.Once
	closeErr  error
	listener  net.Listener // nil without UAPI
	serving   sync.WaitGroup
}

// New makes a device and brings it up.
func New(cfg Config) (*Device, error) {
	d := &Device{ns: cfg.NS, name: cfg.Name, bind: newBind(cfg.NS, cfg.OnSend)}
	var link tun.Device
	if err := cfg.NS.Do(func() (err error) {
		link, err = tun.CreateTUN(cfg.Name, mtu)
		return err
	}); err != nil {
		return nil, fmt.Errorf("create TUN device %s: %w", cfg.Name, err)
	}
	logf := cfg.Logf
	if logf == nil {
		logf = device.DiscardLogf
	}
	d.dev = device.NewDevice(&tunDevice{link, cfg.NS}, d.bind, &device.Logger{Verbosef: logf, Errorf: logf})

	err := d.set(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(cfg.PrivateKey[:]), cfg.ListenPort))
	for _, p := range cfg.Peers {
		err = errors.Join(err, d.SetPeer(p))
	}
	if err == nil {
		err = cfg.NS.AddAddr(cfg.Name, cfg.Address)
	}
	if err == nil {
		err = d.SetLink(true)
	}
	if err == nil && cfg.UAPI {
		err = d.serve()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: %w", cfg.Name, err), d.Close())
	}
	return d, nil
}

// Close removes the device. Packets and timers stop, nobody is told: WireGuard has no goodbye.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		if d.listener != nil {
			// Closing removes the socket file, which only the namespace's own mounts lead to.
			d.closeErr = d.ns.Do(d.listener.Close)
			d.serving.Wait()
		}
		d.dev.Close()
	})
	return d.closeErr
}

// SetLink brings the link, and with it WireGuard's sockets, up or down.
func (d *Device) SetLink(up bool) error {
	if err := d.ns.SetLink(d.name, up); err != nil {
		return err
	}
	if up {
		return d.dev.Up()
	}
	return d.dev.Down()
}

// SetPrivateKey gives the device another key. Peers keep their configuration, sessions end.
func (d *Device) SetPrivateKey(key wgtypes.Key) error {
	return d.set("private_key=" + hex.EncodeToString(key[:]) + "\n")
}

// SetListenPort opens new sockets on another UDP port, 0 for one that the kernel chooses. Sessions go on.
func (d *Device) SetListenPort(port int) error {
	return d.set(fmt.Sprintf("listen_port=%d\n", port))
}

// SetPeer adds a peer, or changes everything about one that exists; its session goes on.
func (d *Device) SetPeer(p Peer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\nreplace_allowed_ips=true\n", hex.EncodeToString(p.PublicKey[:]))
	fmt.Fprintf(&b, "preshared_key=%s\n", hex.EncodeToString(p.PresharedKey[:]))
	fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", int(p.Keepalive.Seconds()))
	if p.Endpoint.IsValid() {
		fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
	}
	for _, a := range p.AllowedIPs {
		fmt.Fprintf(&b, "allowed_ip=%s\n", a)
	}
	return d.set(b.String())
}

// SetEndpoint points a configured peer to another address. The source address kept from its last packets is forgotten, too.
func (d *Device) SetEndpoint(key wgtypes.Key, to netip.AddrPort) error {
	return d.set(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hex.EncodeToString(key[:]), to))
}

// Impair makes the path from here to an address worse than it is, or with the zero Impairment as good again.
func (d *Device) Impair(to netip.Addr, i Impairment) { d.bind.impair(to, i) }

// RemovePeer removes a peer with its session; one that is not there is no error.
func (d *Device) RemovePeer(key wgtypes.Key) error {
	return d.set(fmt.Sprintf("public_key=%s\nremove=true\n", hex.EncodeToString(key[:])))
}

// set configures the device (https://www.wireguard.com/xplatform/).
func (d *Device) set(config string) error {
	if err := d.dev.IpcSet(config); err != nil {
		return fmt.Errorf("configure %s: %w", d.name, err)
	}
	return nil
}

// Observe reads the device as any other program in its namespace does, through wgctrl. The device needs UAPI.
func (d *Device) Observe() (dev *wgtypes.Device, err error) {
	err = d.ns.Do(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		dev, err = c.Device(d.name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read device %s: %w", d.name, err)
	}
	return dev, nil
}

// serve answers on the device's socket. The listener of wireguard-go does not fit: it looks for its socket file from any thread, and only ours sees it.
func (d *Device) serve() error {
	path := socketDir + "/" + d.name + ".sock"
	if err := d.ns.Do(func() (err error) {
		if d.listener, err = net.Listen("unix", path); err != nil {
			return err
		}
		return os.Chmod(path, 0o600)
	}); err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	d.serving.Go(func() {
		for {
			c, err := d.listener.Accept()
			if err != nil {
				return // closed
			}
			go d.dev.IpcHandle(c) // ends when the other side hangs up
		}
	})
	return nil
}

// tunDevice asks for the MTU, which is read by name, in the namespace that has the name.
type tunDevice struct {
	tun.Device
	ns *netns.NS
}

func (t *tunDevice) MTU() (mtu int, err error) {
	err = t.ns.Do(func() error {
		mtu, err = t.Device.MTU()
		return err
	})
	return mtu, err
}
