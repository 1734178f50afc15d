package wgpeer

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Impairment is what packets suffer on their way to one address. It is made where WireGuard hands them to the socket and not by tc-netem(8), which is a
// kernel module that machines lack. Only WireGuard's packets suffer, in one direction: the other end's Impairment makes the other.
type Impairment struct {
	Loss   float64       // share of the packets that are lost, 0 to 1
	Delay  time.Duration // of each packet that is not
	Jitter time.Duration // Delay is up to so much more or less, evenly, so packets may overtake each other
	Seed   uint64        // of the randomness; the same one brings the same fates
}

// path applies an impairment. Its methods are safe for concurrent use.
type path struct {
	Impairment

	mu     sync.Mutex
	random *rand.Rand
}

func newPath(i Impairment) *path {
	return &path{Impairment: i, random: rand.New(rand.NewPCG(i.Seed, 0))}
}

// fate says how late the next packet is, or that it is lost.
func (p *path) fate() (delay time.Duration, lost bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost = p.random.Float64() < p.Loss
	return max(0, p.Delay+time.Duration((2*p.random.Float64()-1)*float64(p.Jitter))), lost
}

func (b *bind) impair(to netip.Addr, i Impairment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i == (Impairment{}) {
		delete(b.paths, to)
		return
	}
	b.paths[to] = newPath(i)
}

func (b *bind) path(to netip.Addr) *path {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.paths[to.Unmap()]
}

// sendOn sends each packet in its time. As on a real path, the sender does not learn what became of it.
func (b *bind) sendOn(p *path, bufs [][]byte, ep conn.Endpoint) error {
	to, err := b.ParseEndpoint(ep.DstToString()) // the device changes its own endpoint meanwhile
	if err != nil {
		return err
	}
	for _, buf := range bufs {
		delay, lost := p.fate()
		if lost {
			continue
		}
		packet := [][]byte{slices.Clone(buf)} // the device uses its buffers again
		time.AfterFunc(delay, func() { _ = b.Bind.Send(packet, to) })
	}
	return nil
}
