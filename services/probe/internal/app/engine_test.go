package app

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/names"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
	"github.com/wgherald/wgherald/services/probe/internal/wgstate"
)

// newTestEngine returns an engine that watches no interface of this host, with its outbox in dir.
func newTestEngine(t *testing.T, dir string) (*engine, *outbox.Outbox) {
	t.Helper()
	ob, err := outbox.Open(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ob.Close() })
	saved, err := ob.Load()
	if err != nil {
		t.Fatal(err)
	}
	filter, err := wgstate.ParseGlobs("no-such-interface")
	if err != nil {
		t.Fatal(err)
	}
	devices, err := wgstate.New(slog.New(slog.DiscardHandler), filter)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = devices.Close() })
	id, err := publish.LoadIdentity(filepath.Join(dir, "probe.nk"), true)
	if err != nil {
		t.Fatal(err)
	}
	return newEngine(engineConfig{
		cfg: config.Config{
			Node: "vpn-1", Endpoint: tracker.EndpointFull, Globs: []string{"no-such-interface"}, Interfaces: filter, OfflineAfter: tracker.RejectAfterTime,
		},
		version: "test", publicKey: id.Public, trigger: events.TriggerPackets,
		saved: saved, outbox: ob, devices: devices, names: names.New(nil), metrics: telemetry.New(), log: slog.New(slog.DiscardHandler),
	}), ob
}

// TestLife: a run begins and ends with an event, and the next one tells how long nobody watched.
func TestLife(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var got []string
	for run := range 2 {
		e, ob := newTestEngine(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.run(ctx, ctx) }()
		select {
		case <-ob.Changed(): // it has started
		case err := <-ended:
			t.Fatal(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		records, err := ob.Queued(0, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records[2*run:] {
			ev, err := events.Decode(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf("%s %d", ev.Type, ev.Sequence.N)
			if s, ok := ev.Data.(*events.Started); ok {
				line += fmt.Sprintf(" blind since anything: %v, watches %v", !s.BlindSince.IsZero(), s.Interfaces)
				if z, offset := s.DetectedAt.Zone(); offset != 0 {
					t.Errorf("times are told in zone %s", z)
				}
			}
			got = append(got, line)
		}
		if err := ob.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"wg.probe.started 1 blind since anything: false, watches [no-such-interface]",
		"wg.probe.stopped 2",
		"wg.probe.started 3 blind since anything: true, watches [no-such-interface]",
		"wg.probe.stopped 4",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestNothingToWatch: that there is no interface is said once, with what is wanted.
func TestNothingToWatch(t *testing.T) {
	t.Parallel()
	e, _ := newTestEngine(t, t.TempDir())
	var log bytes.Buffer
	e.log = slog.New(slog.NewTextHandler(&log, nil))
	e.enumerate()
	e.enumerate()
	if n := strings.Count(log.String(), "waiting for one"); n != 1 || !strings.Contains(log.String(), "wanted=no-such-interface") {
		t.Errorf("it is said %d times:\n%s", n, &log)
	}
}

// TestReport: an engine that turns tells what it watches; one that does not is not well.
func TestReport(t *testing.T) {
	t.Parallel()
	e, ob := newTestEngine(t, t.TempDir())
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if r := report(over, e, true, 0, 0); r.Well || !strings.Contains(r.Text, "has taken in nothing for 2.5s") {
		t.Errorf("of an engine that stands still: %s", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.run(ctx, ctx) }()
	<-ob.Changed() // it has started
	for connected, want := range map[bool]string{
		true:  "watches no WireGuard interface yet; the broker is connected; 3 events wait for it",
		false: "watches no WireGuard interface yet; the broker is not connected, events are kept; 3 events wait for it",
	} {
		if r := report(t.Context(), e, connected, 0, 3); !r.Well || r.Text != want {
			t.Errorf("got %q, want %q", r, want)
		}
	}
	if r := report(t.Context(), e, true, publish.DeniesEvents, 3); r.Well || !strings.Contains(r.Text, "the key is not a probe's (NATS_NKEY_FILE); 3 events wait for it") {
		t.Errorf("events are refused: %+v", r)
	}
	if r := report(t.Context(), e, true, publish.DeniesStates, 0); r.Well || !strings.Contains(r.Text, "the key is another node's (PROBE_NODE)") {
		t.Errorf("of a key of another node: %s", r)
	}
	if r := report(t.Context(), e, false, publish.DeniesStates, 0); !r.Well {
		t.Errorf("a broker that refused something is away: %s", r)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	e.watched = map[string]*device{"wg0": {failing: true}, "wg1": {}}
	for other, well := range map[bool]bool{false: true, true: false} {
		e.watched["wg1"].failing = other
		go func() { (<-e.asked) <- e.condition() }()
		r := report(t.Context(), e, true, 0, 0)
		if r.Well != well || !strings.Contains(r.Text, "watches wg0, wg1; cannot read wg0") {
			t.Errorf("with wg1 unreadable %t: %s", other, r)
		}
	}
}

// TestFailedTaskIsNoStop: a run that ends because another task failed does not say that the probe stopped.
func TestFailedTaskIsNoStop(t *testing.T) {
	t.Parallel()
	e, ob := newTestEngine(t, t.TempDir())
	tasks, fail := context.WithCancel(t.Context())
	fail()
	if err := e.run(t.Context(), tasks); err != nil {
		t.Fatal(err)
	}
	records, err := ob.Queued(0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		ev, err := events.Decode(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Type == events.ProbeStopped {
			t.Error("it says that the probe stopped")
		}
	}
}

// TestLateAnswer: an answer of a device that went meanwhile is not taken for that of its successor.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	e, _ := newTestEngine(t, t.TempDir())
	old := &device{schedule: tracker.NewSchedule(0, true), asking: true}
	successor := &device{schedule: tracker.NewSchedule(0, true), asking: true}
	e.watched["wg0"] = successor
	found := wgstate.Device{Name: "wg0", Ifindex: 5, Up: true}
	e.take(answer{name: "wg0", from: old, found: found, asked: now(), answered: now()})
	if !successor.asking || e.tracker.Urgent() {
		t.Error("the old answer was taken")
	}
	e.take(answer{name: "wg0", from: successor, found: found, asked: now(), answered: now()})
	if successor.asking || !e.tracker.Urgent() {
		t.Error("the new answer was not taken")
	}
	delete(e.watched, "wg0")
	e.take(answer{name: "wg0", from: successor, found: found, asked: now(), answered: now()}) // must not panic
}

// TestVanishedDevice: what a look does not find is looked for in the list of interfaces, at once.
func TestVanishedDevice(t *testing.T) {
	t.Parallel()
	e, _ := newTestEngine(t, t.TempDir())
	d := &device{schedule: tracker.NewSchedule(0, true), asking: true}
	e.watched["wg0"] = d
	e.take(answer{name: "wg0", from: d, found: wgstate.Device{Name: "wg0", Ifindex: 5, Up: true}, asked: now(), answered: now()})
	e.tracker.Take(now())
	e.take(answer{name: "wg0", from: d, err: fmt.Errorf("gone: %w", os.ErrNotExist), asked: now(), answered: now()})
	select {
	case <-e.changed:
	default:
		t.Fatal("the list is not asked for")
	}
	e.enumerate()
	batch := e.tracker.Take(now())
	if len(e.watched) != 0 || len(batch.Facts) != 1 || events.TypeOf(batch.Facts[0].Data) != events.InterfaceDown {
		t.Errorf("watched: %v, facts: %v", e.watched, batch.Facts)
	}
}

// TestRenamed: latecomers find the name that a file has now, of a peer to whom nothing happens, and no event tells of it.
func TestRenamed(t *testing.T) {
	t.Parallel()
	e, _ := newTestEngine(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "names")
	e.names = names.New([]string{file})
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		e.loadNames()
	}
	alice, bob := events.Key{1}, events.Key{2}
	write(alice.String()+" alice", bob.String()+" bob")
	d := &device{schedule: tracker.NewSchedule(0, true)}
	e.watched["wg0"] = d
	found := wgstate.Device{Name: "wg0", Ifindex: 5, Up: true, Peers: []wgstate.Peer{{PublicKey: alice}, {PublicKey: bob}}}
	e.take(answer{name: "wg0", from: d, found: found, asked: now(), answered: now()})
	e.tracker.Take(now())
	for _, tt := range []struct{ line, want string }{
		{alice.String() + " alice", ""},
		{alice.String() + " alicia", "alicia []"},
		{alice.String() + " alicia #staff", "alicia [staff]"},
		{"", " []"},
	} {
		write(tt.line, bob.String()+" bob", events.Key{3}.String()+" somebody-else")
		batch := e.tracker.Take(now())
		var got []string
		for _, s := range batch.Announce {
			got = append(got, fmt.Sprint(s.Peer.Name, " ", s.Peer.Tags))
		}
		if text := strings.Join(got, "; "); text != tt.want || len(batch.Facts) > 0 {
			t.Errorf("%q: announced %q, want %q; %d events, want none", tt.line, text, tt.want, len(batch.Facts))
		}
	}
}

// TestLeftOut: latecomers do not find who was connected on an interface that is not watched any more.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	e, ob := newTestEngine(t, t.TempDir())
	key := events.Key{1}
	interfaces, peers := []tracker.InterfaceState{{Name: "wg0", Up: true}}, []tracker.PeerState{{Interface: "wg0", PublicKey: key, Connected: true}}
	if err := ob.Commit(tracker.Batch{Interfaces: interfaces, Peers: peers}, now()); err != nil {
		t.Fatal(err)
	}
	c := e.engineConfig
	var err error
	if c.saved, err = ob.Load(); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newEngine(c).run(over, over); err != nil {
		t.Fatal(err)
	}
	marks, err := ob.Dirty(10)
	if err != nil || len(marks) != 1 || marks[0].Key != events.StateKey("vpn-1", "wg0", key) || marks[0].Value != nil {
		t.Errorf("states to be told: %+v, %v; want that there is none of the peer", marks, err)
	}
	if saved, err := ob.Load(); err != nil || len(saved.Interfaces) != 1 || saved.Interfaces[0].GoneAt.IsZero() || len(saved.Peers) != 1 {
		t.Errorf("stored: %+v, %v; want that it may come back", saved, err)
	}
}

// TestMissEarlier: an interface that went while no probe ran is missed even when the interfaces cannot all be listed. One that is there, and was not listed, is not.
func TestMissEarlier(t *testing.T) {
	t.Parallel()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip(err)
	}
	e, _ := newTestEngine(t, t.TempDir())
	c := e.engineConfig
	if c.cfg.Interfaces, err = wgstate.ParseGlobs(""); err != nil {
		t.Fatal(err)
	}
	c.saved.Interfaces = []tracker.InterfaceState{
		{Name: "lo", Ifindex: lo.Index, Up: true}, {Name: "renamed", Ifindex: lo.Index, Up: true}, {Name: "gone", Ifindex: 1 << 30, Up: true}, {Name: "listed", Ifindex: 1 << 30, Up: true},
	}
	e = newEngine(c)
	e.tracker.Present(now(), []string{"listed"}, false)
	e.missEarlier(now(), []string{"listed"})
	var got []string
	for _, f := range e.tracker.Take(now()).Facts {
		got = append(got, fmt.Sprint(events.TypeOf(f.Data), " ", f.Data.(*events.Down).Interface))
	}
	if diff := cmp.Diff([]string{"wg.interface.down renamed", "wg.interface.down gone"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestObserved: what the tracker takes in is the snapshot, with times in UTC.
func TestObserved(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 11, 0, 0, 5, time.FixedZone("CET", 3600))
	ep := netip.MustParseAddrPort("203.0.113.7:1000")
	ips := []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}
	got := observed(wgstate.Device{
		Name: "wg0", Ifindex: 5, Up: true, PublicKey: events.Key{1}, ListenPort: 51820,
		Peers: []wgstate.Peer{
			{PublicKey: events.Key{2}, Endpoint: ep, LastHandshake: at, RxBytes: 1, TxBytes: 2, AllowedIPs: ips, Keepalive: time.Second, PresharedKey: wgstate.PSK{9}},
			{PublicKey: events.Key{3}},
		},
	})
	want := tracker.Device{
		Name: "wg0", Ifindex: 5, Up: true, PublicKey: events.Key{1}, ListenPort: 51820,
		Peers: []tracker.Peer{
			{PublicKey: events.Key{2}, Endpoint: ep, LastHandshake: at.UTC(), RxBytes: 1, TxBytes: 2, AllowedIPs: ips, Keepalive: time.Second, PresharedKey: tracker.PresharedKey{Set: true, Print: [16]byte{9}}},
			{PublicKey: events.Key{3}},
		},
	}
	if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestNote: what a message makes of the next look at its interface. The device has a peer that is connected and one that is not.
func TestNote(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	connected, other := netip.MustParseAddrPort("203.0.113.1:1"), netip.MustParseAddrPort("203.0.113.2:2")
	stranger := netip.MustParseAddrPort("203.0.113.3:3")
	began := now()
	stamp := func(n byte) (s wgmsg.Timestamp) {
		binary.BigEndian.PutUint64(s[:], 1<<62+10+uint64(began.Wall.Unix()))
		s[11] = n
		return s
	}
	for name, tt := range map[string]struct {
		heard []heard
		want  time.Duration // until the next look; 0 is at once, an hour none but the one without cause
	}{
		"nothing":                              {nil, time.Hour},
		"an initiation of who is disconnected": {[]heard{{noteInitiation, "wg0", other, events.Key{2}, stamp(1)}}, 64 * ms},
		"and its first data": {[]heard{
			{noteInitiation, "wg0", other, events.Key{2}, stamp(1)}, {note: noteFirstData, src: other},
		}, 0},
		"first data of somebody else":           {[]heard{{noteInitiation, "wg0", other, events.Key{2}, stamp(1)}, {note: noteFirstData, src: stranger}}, 64 * ms},
		"who is connected renews its keys":      {[]heard{{noteInitiation, "wg0", connected, events.Key{1}, stamp(1)}, {note: noteFirstData, src: connected}}, time.Hour},
		"who is connected comes from elsewhere": {[]heard{{noteInitiation, "wg0", other, events.Key{1}, stamp(1)}}, 64 * ms},
		"a key that is not known":               {[]heard{{noteInitiation, "wg0", stranger, events.Key{3}, stamp(1)}}, 0},
		"an initiation for one of several":      {[]heard{{note: noteUnopened, name: "wg0", src: stranger}}, 64 * ms},
		"one that was skipped":                  {[]heard{{note: noteUnopened, name: "wg0"}}, 500 * ms},
		"who is disconnected responds":          {[]heard{{note: noteResponse, name: "wg0", src: other}}, 0},
		"who is connected responds":             {[]heard{{note: noteResponse, name: "wg0", src: connected}}, time.Hour},
		"a response from where nobody is":       {[]heard{{note: noteResponse, name: "wg0", src: stranger}}, 0},
		"what is for an interface that is gone": {[]heard{{noteInitiation, "wg9", other, events.Key{2}, stamp(1)}}, time.Hour},
		"a recording of who is disconnected":    {[]heard{{noteInitiation, "wg0", connected, events.Key{1}, stamp(2)}, {noteInitiation, "wg0", other, events.Key{1}, stamp(1)}}, time.Hour},
	} {
		e, _ := newTestEngine(t, t.TempDir())
		d := &device{schedule: tracker.NewSchedule(began.Boot, true)}
		e.watched["wg0"] = d
		e.take(answer{name: "wg0", from: d, asked: began, answered: began, found: wgstate.Device{
			Name: "wg0", Ifindex: 5, Up: true, PublicKey: events.Key{9}, Peers: []wgstate.Peer{
				{PublicKey: events.Key{1}, Endpoint: connected, LastHandshake: began.Wall}, {PublicKey: events.Key{2}, Endpoint: other},
			},
		}})
		for _, h := range tt.heard {
			e.note(began, h)
		}
		got := d.schedule.Next() - began.Boot
		if got >= tracker.SampleInterval {
			got = time.Hour
		}
		if got != tt.want {
			t.Errorf("%s: the next look is %v away, want %v", name, got, tt.want)
		}
	}
}

// TestResponseOfANewPeer: a hub calls a peer that was just configured there. The look that its response causes finds the peer and may come before its session,
// which is found soon after.
func TestResponseOfANewPeer(t *testing.T) {
	t.Parallel()
	e, _ := newTestEngine(t, t.TempDir())
	began := now()
	d := &device{schedule: tracker.NewSchedule(began.Boot, true)}
	e.watched["wg0"] = d
	found := wgstate.Device{Name: "wg0", Ifindex: 5, Up: true, PublicKey: events.Key{9}}
	e.take(answer{name: "wg0", from: d, asked: began, answered: began, found: found})
	e.note(began, heard{note: noteResponse, name: "wg0", src: alice})
	if wait := d.schedule.Next() - began.Boot; wait > 0 {
		t.Errorf("the next look is %v away, want one at once", wait)
	}
	d.schedule.Asked(began.Boot)
	found.Peers = []wgstate.Peer{{PublicKey: events.Key{1}, Endpoint: alice}}
	e.take(answer{name: "wg0", from: d, asked: began, answered: began, found: found})
	if wait := d.schedule.Next() - began.Boot; wait > 500*time.Millisecond {
		t.Errorf("after it has found the peer, the next look is %v away", wait)
	}
}

// TestNewKeyLooksAgain: before a look has found an interface's key, its handshakes are nobody's, and a session may come about while that look is under
// way. So there is another one soon, whoever is connected, and none because of a key that is known.
func TestNewKeyLooksAgain(t *testing.T) {
	t.Parallel()
	e, _ := newTestEngine(t, t.TempDir())
	began := now()
	d := &device{schedule: tracker.NewSchedule(began.Boot, true)}
	e.watched["wg0"] = d
	first, second := responder(t, 1), responder(t, 2)
	for _, tt := range []struct {
		name      string
		up        bool
		responder *wgmsg.Responder
		soon      bool
	}{
		{"the first look", true, first, true},
		{"the same key", true, first, false},
		{"set down", false, first, false},
		{"set up again", true, first, true},
		{"another key", true, second, true},
		{"no key", true, nil, false},
	} {
		for d.schedule.Next() < began.Boot+10*time.Second { // what earlier looks wished for
			began.Boot = d.schedule.Next()
			d.schedule.Asked(began.Boot)
			d.schedule.Looked(began.Boot, began.Boot, 0, tracker.Seen{})
		}
		began.Boot = d.schedule.Next()
		d.schedule.Asked(began.Boot)
		e.take(answer{name: "wg0", from: d, asked: began, answered: began, found: wgstate.Device{
			Name: "wg0", Ifindex: 5, Up: tt.up, PublicKey: events.Key{9}, Responder: tt.responder,
		}})
		if wait := d.schedule.Next() - began.Boot; (wait <= 500*time.Millisecond) != tt.soon {
			t.Errorf("%s: the next look is %v away", tt.name, wait)
		}
	}
}

// TestLostPackets: whatever was lost, on the way to the engine or before, a look makes up for it within half a second.
func TestLostPackets(t *testing.T) {
	t.Parallel()
	e, _ := newTestEngine(t, t.TempDir())
	began := now()
	d := &device{schedule: tracker.NewSchedule(began.Boot, true)}
	d.schedule.Looked(began.Boot, began.Boot, 0, tracker.Seen{})
	e.watched["wg0"] = d
	e.lookAtAll()
	if wait := d.schedule.Next() - began.Boot; wait > time.Second {
		t.Errorf("the next look is %v away", wait)
	}

	lost := make(chan struct{}, 1)
	e.lost = lost
	lost <- struct{}{}
	e.ear.missed <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.run(ctx, ctx) }()
	for len(lost)+len(e.ear.missed) > 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond) // until the engine has heard of both
	}
	if ctx.Err() != nil {
		t.Error("the engine does not hear of it")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
