package wgpeer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/wgherald/wgherald/lab/internal/netns"
)

// Ping sends one ICMP echo request from one IPv4 address to another in ns, and waits for its answer until ctx ends. It does not send a second one: a
// packet into a tunnel without a session is kept by WireGuard until the handshake is done.
func Ping(ctx context.Context, ns *netns.NS, from, to netip.Addr) error {
	var c *icmp.PacketConn
	if err := ns.Do(func() (err error) {
		c, err = icmp.ListenPacket("ip4:icmp", from.String())
		return err
	}); err != nil {
		return fmt.Errorf("open icmp socket on %s: %w", from, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	// Raw sockets hear every answer to their address; the time makes this one known.
	want := fmt.Sprintf("wgherald lab %d", time.Now().UnixNano())
	request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{Seq: 1, Data: []byte(want)}}
	packet, err := request.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(packet, &net.IPAddr{IP: net.IP(to.AsSlice())}); err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("ping %s: no answer: %w", to, ctx.Err())
		}
		if err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		m, err := icmp.ParseMessage(ipv4.ICMPTypeEchoReply.Protocol(), buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && string(echo.Data) == want {
			return nil
		}
	}
}
