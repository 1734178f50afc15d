package limit

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

// host returns one of 2^24 IPv4 addresses.
func host(n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|uint32(n))
	return netip.AddrFrom4(b)
}

func TestAllow(t *testing.T) {
	t.Parallel()
	// burst is messages that come at once, from so many hosts in turn or, with none, from one address.
	type burst struct {
		at      time.Duration
		from    string
		hosts   int
		count   int
		allowed int
	}
	for _, tt := range []struct {
		name   string
		bursts []burst
	}{
		{"one message", []burst{{from: "192.0.2.1", count: 1, allowed: 1}}},
		{"a source's burst", []burst{{from: "192.0.2.1", count: 1000, allowed: 100}}},
		{"a source's burst long after boot", []burst{{at: 1000 * time.Hour, from: "192.0.2.1", count: 1000, allowed: 100}}},
		{"a source gets a token every 20 ms", []burst{
			{from: "192.0.2.1", count: 100, allowed: 100},
			{at: 19 * time.Millisecond, from: "192.0.2.1", count: 5, allowed: 0},
			{at: 20 * time.Millisecond, from: "192.0.2.1", count: 5, allowed: 1},
			{at: 39 * time.Millisecond, from: "192.0.2.1", count: 5, allowed: 0},
			{at: time.Second, from: "192.0.2.1", count: 1000, allowed: 49},
		}},
		{"a source's bucket is full again after two seconds, and no fuller later", []burst{
			{from: "192.0.2.1", count: 100, allowed: 100},
			{at: 2 * time.Second, from: "192.0.2.1", count: 1000, allowed: 100},
			{at: time.Hour, from: "192.0.2.1", count: 1000, allowed: 100},
		}},
		{"a loud source leaves another its tokens", []burst{
			{from: "192.0.2.1", count: 100_000, allowed: 100},
			{from: "192.0.2.2", count: 100, allowed: 100},
		}},
		{"a loud source takes no more than its own from all", []burst{
			{from: "192.0.2.1", count: 100_000, allowed: 100},
			{hosts: 100_000, count: 100_000, allowed: 900},
		}},
		{"all sources' burst", []burst{{hosts: 10_000, count: 10_000, allowed: 1000}}},
		{"all sources get a token every millisecond", []burst{
			{hosts: 10_000, count: 10_000, allowed: 1000},
			{at: time.Millisecond - 1, hosts: 10_000, count: 10_000, allowed: 0},
			{at: time.Millisecond, hosts: 10_000, count: 10_000, allowed: 1},
			{at: 500 * time.Millisecond, hosts: 10_000, count: 10_000, allowed: 499},
			{at: time.Hour, hosts: 10_000, count: 10_000, allowed: 1000},
		}},
		{"a source refused for all sources' sake keeps its tokens", []burst{
			{hosts: 1000, count: 1000, allowed: 1000},
			{from: "192.0.2.1", count: 1000, allowed: 0},
			{at: time.Second, from: "192.0.2.1", count: 1000, allowed: 100},
		}},
		{"IPv4 in IPv6 is IPv4", []burst{
			{from: "192.0.2.1", count: 60, allowed: 60},
			{from: "::ffff:192.0.2.1", count: 60, allowed: 40},
		}},
		{"addresses of one IPv6 /64 are one source", []burst{
			{from: "2001:db8::1", count: 60, allowed: 60},
			{from: "2001:db8::ffff:ffff:ffff:ffff", count: 60, allowed: 40},
		}},
		{"addresses of two IPv6 /64 are two sources", []burst{
			{from: "2001:db8:0:1::1", count: 100, allowed: 100},
			{from: "2001:db8:0:2::1", count: 100, allowed: 100},
		}},
		{"a link-local source is one whatever its zone", []burst{
			{from: "fe80::1%eth0", count: 60, allowed: 60},
			{from: "fe80::1%eth1", count: 60, allowed: 40},
		}},
		{"a source is remembered while 900 others come", []burst{
			{from: "192.0.2.1", count: 100, allowed: 100},
			{at: time.Millisecond, hosts: 900, count: 900, allowed: 900},
			{at: 2 * time.Millisecond, from: "192.0.2.1", count: 1, allowed: 0},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := NewGate()
			for i, b := range tt.bursts {
				allowed := 0
				for n := range b.count {
					src := host(n % max(b.hosts, 1))
					if b.from != "" {
						src = netip.MustParseAddr(b.from)
					}
					if g.Allow(b.at, src) {
						allowed++
					}
				}
				if allowed != b.allowed {
					t.Errorf("burst %d, at %v: %d of %d were let through, want %d", i, b.at, allowed, b.count, b.allowed)
				}
			}
		})
	}
}

// TestWhoIsRemembered checks that a source is forgotten once maxSources others were let through after it, and that one which is refused meanwhile is not.
func TestWhoIsRemembered(t *testing.T) {
	t.Parallel()
	quiet, loud := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	g := NewGate()
	for range sourceBurst {
		if !g.Allow(0, quiet) || !g.Allow(0, loud) {
			t.Fatal("a burst was refused")
		}
	}
	// All in an instant as far as the two sources' tokens go: the gate's own bucket is filled up from outside.
	for n := range maxSources {
		g.global = 0
		if g.Allow(0, loud) {
			t.Fatalf("a loud source was let through again after %d others", n)
		}
		if !g.Allow(0, host(n)) {
			t.Fatalf("source %d was refused", n)
		}
	}
	if !g.Allow(0, quiet) {
		t.Error("a source is still remembered after so many others")
	}
}

// TestMemoryIsBounded checks that a million sources, all let through, leave no more behind than maxSources.
func TestMemoryIsBounded(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	g := NewGate()
	for n := range 1_000_000 {
		if !g.Allow(time.Duration(n)*globalEvery, host(n)) {
			t.Fatalf("source %d was refused", n)
		}
	}
	if after := heap(); after > before+2<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	if g.sources.Len() != maxSources {
		t.Errorf("%d sources are remembered, want %d", g.sources.Len(), maxSources)
	}
}

func TestRefusingAllocatesNothing(t *testing.T) {
	n := 0
	for name, src := range map[string]func() netip.Addr{
		"one IPv4 source": func() netip.Addr { return host(0) },
		"one IPv6 source": func() netip.Addr { return netip.MustParseAddr("2001:db8::1") },
		"forged sources":  func() netip.Addr { n++; return host(n) },
	} {
		g := NewGate()
		for g.Allow(0, src()) {
		}
		if got := testing.AllocsPerRun(1000, func() { g.Allow(0, src()) }); got != 0 {
			t.Errorf("%s: %v allocations, want none", name, got)
		}
	}
}

func BenchmarkAllow(b *testing.B) {
	for _, bb := range []struct {
		name  string
		hosts int
		every time.Duration
	}{
		{"one source, let through", 1, sourceEvery},
		{"one source, refused", 1, 0},
		{"forged sources, let through", 1 << 24, globalEvery},
		{"forged sources, refused", 1 << 24, 0},
	} {
		b.Run(bb.name, func(b *testing.B) {
			g := NewGate()
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				g.Allow(time.Duration(n)*bb.every, host(n%bb.hosts))
			}
		})
	}
}
