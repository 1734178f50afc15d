package tracker_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
)

// TestManyAllowedIPs: a peer may have any number of allowed IPs, and an event holds the first 256 of each list.
func TestManyAllowedIPs(t *testing.T) {
	t.Parallel()
	prefixes := func(n int, last byte) []netip.Prefix {
		var out []netip.Prefix
		for i := range n {
			a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, byte(i >> 8), byte(i), last}
			out = append(out, netip.PrefixFrom(netip.AddrFrom16(a), 128))
		}
		return out
	}
	tr := tracker.New(tracker.Config{
		Node:     strings.Repeat("n", 128),
		Endpoint: tracker.EndpointFull.Render,
		Name: func(events.Key) (string, []string) {
			return strings.Repeat("ß", 64), slices.Repeat([]string{strings.Repeat("t", 64)}, 16) // the most that the names package lets through
		},
	}, nil, nil, nil)
	now := tracker.Now{Wall: origin, Boot: time.Hour}
	look := func(ips []netip.Prefix) tracker.Batch {
		tr.Observe(now, now, tracker.Device{Name: "wg0", Ifindex: 1, Up: true, Peers: []tracker.Peer{{PublicKey: keyOf("A"), AllowedIPs: ips}}})
		return tr.Take(now)
	}
	look(prefixes(256, 1))
	batch := look(prefixes(3000, 2))
	if len(batch.Facts) != 1 || len(batch.Announce) != 1 {
		t.Fatalf("facts: %v, states: %v", batch.Facts, batch.Announce)
	}
	if _, err := events.New(batch.Facts[0].Data, batch.Facts[0].Time, events.Sequence{Epoch: 1, N: 1}).Encode(); err != nil {
		t.Error(err)
	}
	if body, err := batch.Announce[0].Encode(); err != nil || len(body) > events.MaxSize {
		t.Errorf("state: %d bytes, %v", len(body), err)
	}
	changed := batch.Facts[0].Data.(*events.Changed)
	got := fmt.Sprint(len(changed.Peer.AllowedIPs), changed.Peer.MoreAllowedIPs, len(changed.Changes.AllowedIPs.From), len(changed.Changes.AllowedIPs.To))
	if want := "256 2744 256 256"; got != want {
		t.Errorf("allowed IPs told, left out, from, to: %s, want %s", got, want)
	}
}

// TestLeftOut: of an interface that is watched no longer nobody can say who is connected. It is forgotten after a week, and its peers are told as they are when
// it is watched again before that.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	now := tracker.Now{Wall: origin, Boot: time.Hour}
	wg0, wg1 := tracker.InterfaceState{Name: "wg0", Ifindex: 1, Up: true}, tracker.InterfaceState{Name: "wg1", Ifindex: 2, Up: true}
	peers := []tracker.PeerState{{Interface: "wg0", PublicKey: keyOf("A"), Connected: true}, {Interface: "wg1", PublicKey: keyOf("A"), Connected: true}}
	ids := []tracker.PeerID{{Interface: "wg0", Key: keyOf("A")}}
	watched := func(name string) bool { return name == "wg1" }
	check := func(when string, got, want tracker.Batch) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	left := wg0
	left.GoneAt = now.Wall
	check("now", tracker.LeaveOut(now, node, watched, []tracker.InterfaceState{wg0, wg1}, peers),
		tracker.Batch{Node: node, Interfaces: []tracker.InterfaceState{left}, Withdrawn: ids})
	now.Wall = now.Wall.Add(7*24*time.Hour - 1)
	check("still", tracker.LeaveOut(now, node, watched, []tracker.InterfaceState{left, wg1}, peers), tracker.Batch{Node: node})
	now.Wall = now.Wall.Add(1)
	check("for a week", tracker.LeaveOut(now, node, watched, []tracker.InterfaceState{left, wg1}, peers),
		tracker.Batch{Node: node, Gone: []string{"wg0"}, Removed: ids})

	tr := tracker.New(plain(), []tracker.InterfaceState{left, wg1}, peers, nil)
	tr.Present(now, []string{"wg0", "wg1"}, true)
	batch := tr.Take(now)
	if len(batch.Announce) != 1 || batch.Announce[0].Interface != "wg0" || len(batch.Facts) > 0 {
		t.Errorf("watched again: announced %+v, facts %v; want A on wg0, none", batch.Announce, batch.Facts)
	}
	check("watched again", tracker.Batch{Interfaces: batch.Interfaces}, tracker.Batch{Interfaces: []tracker.InterfaceState{wg0}})
}

// plain is a configuration in which nothing is particular.
func plain() tracker.Config {
	return tracker.Config{
		Node: node, Endpoint: tracker.EndpointFull.Render, Name: func(events.Key) (string, []string) { return "", nil },
		OfflineAfter: tracker.RejectAfterTime,
	}
}

// TestLastMomentIsAwaited: who renews its keys causes no look, except shortly before the session runs out: by the time that the first data packet comes, a
// look may have told the end.
func TestLastMomentIsAwaited(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort("203.0.113.7:1000")
	for _, tt := range []struct {
		offlineAfter, age time.Duration
		want              bool
	}{
		{tracker.RejectAfterTime, 120 * time.Second, false},
		{tracker.RejectAfterTime, 165 * time.Second, false},
		{tracker.RejectAfterTime, 174 * time.Second, false},
		{tracker.RejectAfterTime, 176 * time.Second, true},
		{5 * time.Minute, 176 * time.Second, false},
		{5 * time.Minute, 296 * time.Second, true},
	} {
		cfg := plain()
		cfg.OfflineAfter = tt.offlineAfter
		tr := tracker.New(cfg, nil, nil, nil)
		now := tracker.Now{Wall: origin, Boot: time.Hour, Awake: time.Hour}
		tr.Observe(now, now, tracker.Device{Name: "wg0", Ifindex: 1, Up: true, Peers: []tracker.Peer{{PublicKey: keyOf("A"), Endpoint: at, LastHandshake: origin}}})
		now = tracker.Now{Wall: origin.Add(tt.age), Boot: time.Hour + tt.age, Awake: time.Hour + tt.age}
		a := tr.Knock(now, tracker.Knock{Interface: "wg0", Key: keyOf("A"), Src: at, Timestamp: tai64n(now.Wall)})
		if known, answer := tr.At(now, "wg0", at); a.Awaited != tt.want || answer != tt.want || !known {
			t.Errorf("of %v at %v, initiation and response are awaited: %t and %t, want %t", tt.offlineAfter, tt.age, a.Awaited, answer, tt.want)
		}
	}
}

// TestLateKnock: who knocked before a look has found the peer that was just added is waited for, unless that look finds its session, too.
func TestLateKnock(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort("203.0.113.7:1000")
	for name, tt := range map[string]struct {
		found tracker.Peer
		want  []netip.AddrPort
	}{
		"no session yet": {tracker.Peer{PublicKey: keyOf("A")}, []netip.AddrPort{at}},
		"a session":      {tracker.Peer{PublicKey: keyOf("A"), Endpoint: at, LastHandshake: origin}, nil},
	} {
		tr := tracker.New(plain(), nil, nil, nil)
		now := tracker.Now{Wall: origin, Boot: time.Hour, Awake: time.Hour}
		d := tracker.Device{Name: "wg0", Ifindex: 1, Up: true}
		tr.Observe(now, now, d)
		if a := tr.Knock(now, tracker.Knock{Interface: "wg0", Key: keyOf("A"), Src: at, Timestamp: tai64n(origin)}); !a.Pending {
			t.Errorf("%s: the knock is %+v, want one that waits for a look", name, a)
		}
		d.Peers = []tracker.Peer{tt.found}
		if seen := tr.Observe(now, now, d); !slices.Equal(seen.Late, tt.want) {
			t.Errorf("%s: waited for are %v, want %v", name, seen.Late, tt.want)
		}
	}
}

// TestKnocksAreBounded: who makes keys, or sends with one from anywhere, faster than looks settle them finds room for 1,024, and room again after a look.
func TestKnocksAreBounded(t *testing.T) {
	t.Parallel()
	tr := tracker.New(plain(), nil, nil, nil)
	now := tracker.Now{Wall: origin, Boot: time.Hour, Awake: time.Hour}
	d := tracker.Device{Name: "wg0", Ifindex: 1, Up: true}
	tr.Observe(now, now, d)
	knock := func(n int, key string, from netip.AddrPort) tracker.Answer {
		return tr.Knock(now, tracker.Knock{Interface: "wg0", Key: keyOf(key), Src: from, Timestamp: tai64n(origin.Add(time.Duration(n)))})
	}
	for n := range 512 {
		if !knock(n, fmt.Sprint("K", n), src(1)).Pending || !knock(n, "X", src(n)).Pending {
			t.Fatalf("pair %d finds no room", n)
		}
	}
	if a := knock(512, "Y", src(1)); !a.Heard || a.Pending {
		t.Errorf("the first too many is %+v", a)
	}
	if a := knock(512, "X", src(0)); !a.Pending {
		t.Errorf("one of those who wait is %+v when it knocks again", a)
	}
	tr.Observe(now, now, d)
	if a := knock(513, "Y", src(1)); !a.Pending {
		t.Errorf("after a look it is %+v", a)
	}
}

func TestEndpointForm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ endpoint, prefix string }{
		{"203.0.113.7:51820", "203.0.113.0/24"},
		{"[2001:db8:1:2:3::7]:51820", "2001:db8:1::/48"},
		{"[fe80::1%eth0]:51820", "fe80::/48"},
	} {
		ap := netip.MustParseAddrPort(tt.endpoint)
		if got := tracker.EndpointFull.Render(ap); got != tt.endpoint {
			t.Errorf("full: %s, want %s", got, tt.endpoint)
		}
		if got := tracker.EndpointPrefix.Render(ap); got != tt.prefix {
			t.Errorf("prefix: %s, want %s", got, tt.prefix)
		}
		if got := tracker.EndpointNone.Render(ap); got != "" {
			t.Errorf("none: %s, want nothing", got)
		}
	}
}

// TestSeen: what a look tells about when to look again.
func TestSeen(t *testing.T) {
	t.Parallel()
	tr := tracker.New(plain(), nil, nil, nil)
	look := func(at time.Duration, d tracker.Device) tracker.Seen {
		now := tracker.Now{Wall: origin.Add(at), Boot: time.Hour + at}
		return tr.Observe(now, now, d)
	}
	a, b := netip.MustParseAddrPort("203.0.113.1:1"), netip.MustParseAddrPort("203.0.113.2:2")
	d := tracker.Device{Name: "wg0", Ifindex: 1, Up: true, Peers: []tracker.Peer{{PublicKey: keyOf("A"), Endpoint: a}, {PublicKey: keyOf("B"), Endpoint: b}}}
	if s := look(0, d); !s.Keyless || s.Configured != 2 || s.Connected != 0 || len(s.Handshakes) != 0 {
		t.Errorf("nobody connected, no key: %+v", s)
	}
	d.PublicKey = keyOf("key")
	d.Peers[0].LastHandshake = origin.Add(10 * time.Second)
	d.Peers[1].LastHandshake = origin.Add(20 * time.Second)
	s := look(30*time.Second, d)
	if s.Keyless || s.Connected != 2 || !slices.Equal(s.Handshakes, []netip.AddrPort{a, b}) || s.Deadline != time.Hour+190*time.Second {
		t.Errorf("two connected: %+v", s)
	}
	d.Peers[0].LastHandshake = origin.Add(130 * time.Second)
	if s = look(130*time.Second, d); !slices.Equal(s.Handshakes, []netip.AddrPort{a}) || s.Deadline != time.Hour+200*time.Second {
		t.Errorf("one made a new handshake: %+v", s)
	}
	d.Peers[1].LastHandshake = origin.Add(135 * time.Second)
	d.Peers[1].Endpoint = netip.MustParseAddrPort("[fe80::2%eth0]:2")
	if s = look(135*time.Second, d); !slices.Equal(s.Handshakes, []netip.AddrPort{netip.MustParseAddrPort("[fe80::2]:2")}) {
		t.Errorf("from a link-local address: %+v, want it as packets have it, without zone", s)
	}
	d.Up = false
	if s = look(140*time.Second, d); s.Configured != 2 || s.Connected != 0 {
		t.Errorf("down: %+v", s)
	}
}

// TestLookTakesTime: what a look finds happened at any time until it was answered, so nothing is detected before it happened.
func TestLookTakesTime(t *testing.T) {
	t.Parallel()
	tr := tracker.New(plain(), nil, nil, nil)
	at := func(d time.Duration) tracker.Now { return tracker.Now{Wall: origin.Add(d), Boot: time.Hour + d} }
	d := tracker.Device{Name: "wg0", Ifindex: 1, Up: true, Peers: []tracker.Peer{{PublicKey: keyOf("A"), Endpoint: netip.MustParseAddrPort("203.0.113.1:1")}}}
	tr.Observe(at(0), at(0), d)
	tr.Take(at(0))
	d.Peers[0].LastHandshake, d.Peers[0].RxBytes = at(1005*time.Millisecond).Wall, 180
	tr.Observe(at(1000*time.Millisecond), at(1010*time.Millisecond), d)
	batch := tr.Take(at(2 * time.Second))
	c := batch.Facts[0].Data.(*events.Connected)
	want := events.Interval{After: at(1005 * time.Millisecond).Wall, Before: at(1010 * time.Millisecond).Wall}
	if c.Session.LastSeen != want || c.DetectedAt != want.Before {
		t.Errorf("last seen %v, detected at %v; want %v and its end", c.Session.LastSeen, c.DetectedAt, want)
	}
	tr.Observe(at(10*time.Second), at(11*time.Second), d)
	d.Peers[0].RxBytes++
	tr.Observe(at(20*time.Second), at(21*time.Second), d)
	d.Up = false
	tr.Observe(at(30*time.Second), at(31*time.Second), d)
	batch = tr.Take(at(31 * time.Second))
	want = events.Interval{After: at(10 * time.Second).Wall, Before: at(21 * time.Second).Wall}
	if got := batch.Facts[1].Data.(*events.Disconnected).Session.LastSeen; got != want {
		t.Errorf("last seen %v, want %v: from when the look before was asked for until this one was answered", got, want)
	}
}

// TestPackageStaysPure keeps I/O and clocks out: nothing below the package may reach the network or a device, and the package itself, which may
// reckon with times, may not ask what time it is.
func TestPackageStaysPure(t *testing.T) {
	t.Parallel()
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
		}
		return strings.Fields(string(out))
	}
	deps := list("-deps", ".")
	for _, forbidden := range []string{"net", "net/http", "os/exec", "log", "log/slog", "golang.org/x/sys/unix"} {
		if slices.Contains(deps, forbidden) {
			t.Errorf("the package depends on %s", forbidden)
		}
	}
	for _, forbidden := range []string{"os", "syscall", "sync", "context", "math/rand", "math/rand/v2", "crypto/rand"} {
		if slices.Contains(list("-f", `{{join .Imports "\n"}}`, "."), forbidden) {
			t.Errorf("the package imports %s", forbidden)
		}
	}
	for _, reading := range clockReadings(t) {
		t.Errorf("the package reads a clock: %s", reading)
	}
}

// clockReadings returns what this package uses of time that depends on a clock, and where.
func clockReadings(t *testing.T) []string {
	t.Helper()
	clock := []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "NewTimer", "NewTicker", "Tick"}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	fset := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range file.Imports {
			if i.Path.Value == `"time"` && i.Name != nil {
				found = append(found, fset.Position(i.Pos()).String()+": time under another name")
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(clock, sel.Sel.Name) {
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
					found = append(found, fset.Position(sel.Pos()).String()+": time."+sel.Sel.Name)
				}
			}
			return true
		})
	}
	return found
}
