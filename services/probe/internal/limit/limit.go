// Package limit bounds how many messages a second are let through to costly work, whoever sends them: an elliptic curve operation takes about 90 µs, and
// mac1 keeps nobody out who knows a public key.
//
// There is one token bucket for each source and one for all. The first keeps a loud source from crowding out the others. The second holds where
// sources are forged, each of them new.
package limit

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	globalEvery = time.Second / 1000
	globalBurst = 1000
	sourceEvery = time.Second / 50
	sourceBurst = 100

	// maxSources is how many sources are remembered, those heard last.
	maxSources = 4096

	// sourceBits is the length of the IPv6 prefix that counts as one source: what one link has, and so one host may use all of.
	sourceBits = 64
)

// Gate lets messages through. It takes bounded memory. It is for one goroutine.
type Gate struct {
	global  bucket
	sources *simplelru.LRU[netip.Addr, bucket] // one that is not in it has a full bucket
}

// NewGate returns a gate with full buckets.
func NewGate() *Gate {
	sources, err := simplelru.NewLRU[netip.Addr, bucket](maxSources, nil)
	if err != nil {
		panic(fmt.Sprintf("limit: %d sources were refused: %v", maxSources, err))
	}
	return &Gate{sources: sources}
}

// Allow reports whether a message from src that came at now is let through. Now is the reading of a clock that does not go back, such as the time since
// boot. A message that one bucket refuses takes nothing from the other, and to refuse it allocates nothing.
func (g *Gate) Allow(now time.Duration, src netip.Addr) bool {
	src = sourceOf(src)
	source, _ := g.sources.Get(src)
	if !source.take(now, sourceEvery, sourceBurst) || !g.global.take(now, globalEvery, globalBurst) {
		return false
	}
	g.sources.Add(src, source)
	return true
}

// sourceOf returns what is counted as one source: an IPv4 address, also one mapped into IPv6, or the first address of an IPv6 prefix.
func sourceOf(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap(); !addr.Is6() {
		return addr
	}
	return netip.PrefixFrom(addr, sourceBits).Masked().Addr()
}

// bucket is a token bucket, kept as the time at which it will be full again. The zero value is full.
type bucket time.Duration

// take takes a token and returns true, or returns false where there is none. One comes back after each interval, up to burst of them.
func (b *bucket) take(now, every time.Duration, burst int) bool {
	full := max(time.Duration(*b), now) + every
	if full-now > time.Duration(burst)*every {
		return false
	}
	*b = bucket(full)
	return true
}
