package crowd

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.zx2c4.com/wireguard/device"

	"github.com/wgherald/wgherald/lab/internal/netns"
)

const (
	headers = 20 + 8 // IPv4 without options, UDP

	// maxBatch is how many packets go to the kernel at once: a tenth of what it queues for a veth's other end (net.core.netdev_max_backlog).
	maxBatch = 100

	// floodTick is how often a flood sends what is due.
	floodTick = 2 * time.Millisecond
)

// packet is a UDP payload and who says that he sent it.
type packet struct {
	from    netip.AddrPort
	payload []byte
}

// sender sends from any address, over one raw socket, many packets with one system call. Answers reach nobody.
type sender struct {
	mu       sync.Mutex
	conn     *ipv4.RawConn
	messages []ipv4.Message // each with a buffer of its own
}

func newSender(ns *netns.NS) (*sender, error) {
	s := &sender{messages: make([]ipv4.Message, maxBatch)}
	for i := range s.messages {
		s.messages[i].Addr = &net.IPAddr{IP: hub.Addr().AsSlice()}
		s.messages[i].Buffers = [][]byte{make([]byte, 0, headers+device.MessageInitiationSize)}
	}
	if err := ns.Do(func() error {
		c, err := net.ListenPacket("ip4:255", "0.0.0.0") // IPPROTO_RAW, which receives nothing
		if err != nil {
			return err
		}
		s.conn, err = ipv4.NewRawConn(c)
		return err
	}); err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	return s, nil
}

func (s *sender) close() error { return s.conn.Close() }

// send hands packets to the kernel, in order.
func (s *sender) send(packets ...packet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(packets) > 0 {
		n := min(len(packets), maxBatch)
		for i, p := range packets[:n] {
			b := &s.messages[i].Buffers[0]
			*b = appendPacket((*b)[:0], p)
		}
		for batch := s.messages[:n]; len(batch) > 0; {
			sent, err := s.conn.WriteBatch(batch, 0)
			if err != nil {
				return fmt.Errorf("send packets: %w", err)
			}
			batch = batch[sent:]
		}
		packets = packets[n:]
	}
	return nil
}

// appendPacket appends an IPv4 packet to the device (RFC 791, RFC 768). The kernel adds the header's checksum; UDP does without (RFC 768: zero).
func appendPacket(b []byte, p packet) []byte {
	from, to := p.from.Addr().As4(), hub.Addr().As4()
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(headers+len(p.payload)))
	b = append(b, 0, 0, 0, 0, 64, 17, 0, 0) // identification, fragment, hops, UDP, checksum
	b = append(append(b, from[:]...), to[:]...)
	b = binary.BigEndian.AppendUint16(b, p.from.Port())
	b = binary.BigEndian.AppendUint16(b, hub.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(p.payload)))
	return append(append(b, 0, 0), p.payload...)
}

// Handshake is a peer's initiation with the data packet that follows it, ready to be sent.
type Handshake struct {
	peer       int
	initiation []byte
}

// Prepare writes a peer's initiation, as of now: that is what costs time.
func (c *Crowd) Prepare(peer int) (Handshake, error) {
	msg, err := c.hub.write(c.private[peer], uint32(peer))
	return Handshake{peer, msg}, err
}

// Send sends an initiation and the first data packet, which a real peer would send as soon as it has the response. It returns the time just before.
func (c *Crowd) Send(h Handshake) (time.Time, error) {
	c.mu.Lock()
	c.counters[h.peer] = 0
	c.mu.Unlock()
	at := time.Now()
	from := c.address(h.peer)
	return at, c.sender.send(packet{from, h.initiation}, packet{from, dataMessage(uint32(h.peer), 0)})
}

// Connect is Prepare and Send.
func (c *Crowd) Connect(peer int) (time.Time, error) {
	h, err := c.Prepare(peer)
	if err != nil {
		return time.Time{}, err
	}
	return c.Send(h)
}

// Keepalive sends an empty data packet of a peer that has connected.
func (c *Crowd) Keepalive(peer int) error {
	c.mu.Lock()
	c.counters[peer]++
	counter := c.counters[peer]
	c.mu.Unlock()
	return c.sender.send(packet{c.address(peer), dataMessage(uint32(peer), counter)})
}

// address is where a peer's packets come from.
func (c *Crowd) address(peer int) netip.AddrPort {
	return netip.AddrPortFrom(nth(hub.Addr(), 255+peer), peerPort)
}

// Flood is a stream of packets that look like initiations and are none.
type Flood struct {
	Rate    int // per second
	For     time.Duration
	Sources int  // as many addresses, each with a port of its own
	MAC1    bool // mac1 is right, which anyone can make who knows the device's public key; all else is random
}

// Flood sends a flood and returns how many packets a second it was, which is less than was asked for where the machine cannot do more.
func (c *Crowd) Flood(ctx context.Context, f Flood) (rate float64, err error) {
	random := rand.NewChaCha8([32]byte{}) // nobody guards against one who guesses
	packets := make([]packet, maxBatch)
	for i := range packets {
		packets[i].payload = make([]byte, device.MessageInitiationSize)
	}
	tick := time.NewTicker(floodTick)
	defer tick.Stop()
	sent, began := 0, time.Now()
	for {
		took := min(time.Since(began), f.For)
		due := int(float64(f.Rate)*took.Seconds()) - sent
		for due > 0 {
			n := min(due, maxBatch)
			for i := range packets[:n] {
				p := &packets[i]
				p.from = netip.AddrPortFrom(nth(floodFrom, (sent+i)%f.Sources), uint16(1024+(sent+i)%f.Sources))
				_, _ = random.Read(p.payload) // never fails
				clear(p.payload[1:4])
				p.payload[0] = device.MessageInitiationType
				if f.MAC1 {
					c.hub.macs.AddMacs(p.payload)
				}
			}
			if err := c.sender.send(packets[:n]...); err != nil {
				return 0, err
			}
			sent, due = sent+n, due-n
		}
		if took == f.For {
			return float64(sent) / time.Since(began).Seconds(), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
