package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
	"github.com/wgherald/wgherald/pkg/events"
)

// Client is a host of its own with a WireGuard tunnel to the hub. Set PresharedKey and Keepalive before Up; the hub learns the former by Configure.
type Client struct {
	Name         string
	Inside       netip.Addr // in the tunnel
	PresharedKey wgtypes.Key
	Keepalive    time.Duration

	lab     *Lab
	ns      *netns.NS
	key     wgtypes.Key
	outside netip.Prefix
	dev     *wgpeer.Device  // nil while down, or apart
	apart   *runner.Process // nil while down, or not apart

	impairment wgpeer.Impairment // from the client to the hub
}

func (l *Lab) newClient(network *netns.NS, i int) (*Client, error) {
	if i >= 200 {
		return nil, errors.New("the networks have no address for it")
	}
	c := &Client{lab: l, Name: fmt.Sprintf("client-%d", i), Inside: nth(hubInside, 2+i).Addr(), outside: nth(networks[0], 11+i)}
	if i < len(names) {
		c.Name = names[i]
	}
	if err := c.newKey(); err != nil {
		return nil, err
	}
	var err error
	if c.ns, err = l.newNS(); err != nil {
		return nil, err
	}
	if err := plug(network, fmt.Sprintf("client%d", i), c.ns); err != nil {
		return nil, err
	}
	l.onClose(c.Down)
	return c, c.ns.AddAddr("eth0", c.outside)
}

// nth is the address with the given number in an IPv4 network of 256, with the network's length.
func nth(network netip.Prefix, n int) netip.Prefix {
	a := network.Addr().As4()
	a[3] = byte(n)
	return netip.PrefixFrom(netip.AddrFrom4(a), network.Bits())
}

func (c *Client) newKey() (err error) {
	c.key, err = wgtypes.GeneratePrivateKey()
	return err
}

// Peer is the client as the hub knows it.
func (c *Client) Peer() wgpeer.Peer {
	return wgpeer.Peer{PublicKey: c.key.PublicKey(), PresharedKey: c.PresharedKey, AllowedIPs: []netip.Prefix{netip.PrefixFrom(c.Inside, 32)}}
}

// PublicKey is the client's key as events have it.
func (c *Client) PublicKey() events.Key { return events.Key(c.key.PublicKey()) }

// Outside is the client's address in the network.
func (c *Client) Outside() netip.Addr { return c.outside.Addr() }

// Up makes the tunnel. Without Keepalive no packet is sent until Ping.
func (c *Client) Up() error {
	if c.dev != nil || c.apart != nil {
		return fmt.Errorf("%s is up", c.Name)
	}
	cfg := wgpeer.Config{NS: c.ns, Name: "wg0", PrivateKey: c.key, Address: netip.PrefixFrom(c.Inside, hubInside.Bits())}
	if onSend := c.lab.opts.OnSend; onSend != nil {
		cfg.OnSend = func(s wgpeer.Sent) { onSend(c, s) }
	}
	dev, err := wgpeer.New(cfg)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	c.dev = dev
	dev.Impair(hubEndpoint.Addr(), c.impairment)
	return dev.SetPeer(c.hubPeer())
}

// hubPeer is the hub as the client knows it.
func (c *Client) hubPeer() wgpeer.Peer {
	return wgpeer.Peer{
		PublicKey: c.lab.hubKey.PublicKey(), PresharedKey: c.PresharedKey, Endpoint: hubEndpoint, Keepalive: c.Keepalive,
		AllowedIPs: []netip.Prefix{hubInside.Masked()},
	}
}

// Impair makes the path between the client, which must be down, and the hub worse, in both directions. It holds until the client roams or the hub is
// deleted.
func (c *Client) Impair(i wgpeer.Impairment) {
	c.impairment = i
	i.Seed = ^i.Seed // each direction has its own fates
	c.lab.Hub.Impair(c.Outside(), i)
}

// Ping sends one packet through the tunnel and waits for its answer until ctx ends.
func (c *Client) Ping(ctx context.Context) error {
	if err := wgpeer.Ping(ctx, c.ns, c.Inside, hubInside.Addr()); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return nil
}

// Connect is Up and one Ping, which makes a session. The hub takes no two initiations of one key within 20 ms (wireguard-go, HandshakeInitationRate): who
// comes back sooner waits for the next try, 5 s.
func (c *Client) Connect(ctx context.Context) error {
	if err := c.Up(); err != nil {
		return err
	}
	return c.Ping(ctx)
}

// Dial connects to a TCP port of the hub through the tunnel.
func (c *Client) Dial(ctx context.Context, port int) (conn net.Conn, err error) {
	err = c.ns.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(hubInside.Addr(), uint16(port)).String())
		return err
	})
	return conn, err
}

// Down takes the tunnel away without a word, as WireGuard does. A client that is down stays so.
func (c *Client) Down() error {
	if c.apart != nil {
		c.apart.Kill() // a frozen process hears nothing else
		c.apart = nil
	}
	if c.dev == nil {
		return nil
	}
	defer func() { c.dev = nil }()
	return c.dev.Close()
}

// Unplug takes the client off the network, and Plug brings it back. The hub is not told.
func (c *Client) Unplug() error { return c.ns.SetLink("eth0", false) }

// Plug undoes Unplug.
func (c *Client) Plug() error { return c.ns.SetLink("eth0", true) }

// Roam moves the client, which must be up, into the other network. The hub learns it by the next packet.
func (c *Client) Roam() error {
	away := networks[0]
	if away.Contains(c.outside.Addr()) {
		away = networks[1]
	}
	to := nth(away, int(c.outside.Addr().As4()[3]))
	if err := errors.Join(
		c.ns.DeleteAddr("eth0", c.outside),
		c.ns.AddAddr("eth0", to),
		c.ns.SetDefaultRoute("eth0", nth(away, 1).Addr()),
		c.dev.SetEndpoint(c.lab.hubKey.PublicKey(), hubEndpoint),
	); err != nil {
		return fmt.Errorf("%s: roam to %s: %w", c.Name, to, err)
	}
	c.outside = to
	return nil
}

// Rebind moves the client, which must be up, to another UDP port, as a NAT does. The hub learns it by the next packet.
func (c *Client) Rebind() error { return c.dev.SetListenPort(0) }

// DialEndpoint opens a UDP socket to the hub's WireGuard port, for packets that no WireGuard would send.
func (c *Client) DialEndpoint() (net.Conn, error) { return c.ns.Dial("udp", hubEndpoint.String()) }
