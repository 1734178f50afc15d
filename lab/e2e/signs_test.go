package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
	"github.com/wgherald/wgherald/pkg/events"
)

// TestRejected: who knocks with a key that is not configured is told of once, and is let in like anybody else once it is configured.
func TestRejected(t *testing.T) {
	t.Parallel()
	s := begin(t, patience, lab.Options{Clients: 2})
	alice, bob := s.Clients[0], s.Clients[1]
	bob.Keepalive = 25 * time.Second // so that it knocks
	s.must(s.Remove(bob), s.Start(s.ctx))

	e := s.expect(events.PeerRejected, bob.PublicKey().String(), bob.Up)
	if d := e.Data.(*events.Rejected); d.PublicKey != bob.PublicKey() || d.Count != 1 || d.Suppressed != 0 {
		t.Errorf("rejected: %+v", d)
	}
	s.awaitMetric(probeMetrics, `wgherald_probe_initiations_total{outcome="unknown"} 3`)
	s.expect(events.PeerConnected, bob.PublicKey().String(), func() error { return s.Configure(bob) })
	s.connect(alice)

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 1 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11"},
		"bob-phone":    {"rejected from 203.0.113.12", "added", "connected from 203.0.113.12"},
	})
}

// TestStalled: a peer whose preshared key differs from the hub's knocks in vain. When that is mended, it connects.
func TestStalled(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 1})
	alice := s.Clients[0]
	alice.Keepalive = 25 * time.Second
	s.must(setPresharedKey(alice))

	began := time.Now()
	e := s.expect(events.PeerStalled, alice.PublicKey().String(), alice.Up)
	d := e.Data.(*events.Stalled)
	if d.Attempts != 3 || d.Since.Before(began) || e.Time.Sub(d.Since) < 10*time.Second || e.Time.Sub(d.Since) > 20*time.Second {
		t.Errorf("stalled at %v: %+v, want 3 attempts since %v or shortly after, 5 s apart", e.Time, d, began)
	}
	s.expect(events.PeerConnected, alice.PublicKey().String(), func() error { return s.Configure(alice) })

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 1 peers, inferred"},
		"alice-laptop": {"stalled", "changed: preshared key set", "connected from 203.0.113.11"},
	})
}

// hubInside is the hub in the tunnel.
var hubInside = netip.MustParseAddr("10.9.0.1")

// TestUnreachable: the hub talks to a peer, and it answers until it is gone. It comes back before its keys are dead, so that is the same session.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 1})
	alice := s.Clients[0]
	s.connect(alice)
	talking := make(chan struct{})
	defer func() { <-talking }()
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	go func() {
		defer close(talking)
		for ctx.Err() == nil {
			ping, done := context.WithTimeout(ctx, time.Second)
			_ = wgpeer.Ping(ping, s.NS, hubInside, alice.Inside) // whether it answers is the probe's to find out
			<-ping.Done()
			done()
		}
	}()

	left := time.Now()
	e := s.expect(events.PeerDisconnected, alice.PublicKey().String(), alice.Down)
	d := e.Data.(*events.Disconnected)
	if d.Reason != events.Unreachable || d.DetectedAt.Sub(left) < 20*time.Second || d.DetectedAt.Sub(left) > 75*time.Second {
		t.Errorf("%s, known after %v, want unreachable, after half a minute", d.Reason, d.DetectedAt.Sub(left))
	}
	if seen := d.Session.LastSeen; seen.After.After(left) {
		t.Errorf("last seen between %v and %v, and it left at %v", seen.After, seen.Before, left)
	}
	s.connect(alice)
	e = s.await(0, events.PeerConnected, alice.PublicKey().String())
	first := e.Data.(*events.Connected).Session.StartedAt
	for _, delivery := range s.Sink.All() {
		if c, ok := delivery.Event.Data.(*events.Connected); ok && !c.Session.StartedAt.Equal(first) {
			t.Errorf("it began another session at %v, want that of %v resumed", c.Session.StartedAt, first)
		}
	}

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 1 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "disconnected: unreachable", "connected from 203.0.113.11, resumed"},
	})
}

// TestSilent: a peer that keeps its tunnel alive every 10 s goes. That shows long before its keys are dead; of another, without a keepalive, it does not.
func TestSilent(t *testing.T) {
	t.Parallel()
	s := begin(t, 10*time.Minute, lab.Options{Clients: 2})
	alice, bob := s.Clients[0], s.Clients[1]
	alice.Keepalive = 10 * time.Second
	s.must(s.Start(s.ctx))
	s.connect(alice, bob)
	// Its habit has to be learned, so long that a sign which a busy machine delays does not count as much loss. And it goes right after its keys were renewed,
	// as they are each 120 s: they must not run out before it is missed.
	began, tick := time.Now(), time.NewTicker(time.Second)
	defer tick.Stop()
	for time.Since(began) < 230*time.Second || time.Since(s.device(alice).LastHandshakeTime) > 20*time.Second {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			t.Fatal(s.ctx.Err())
		}
	}

	left := time.Now()
	e := s.expect(events.PeerDisconnected, alice.PublicKey().String(), alice.Down)
	d := e.Data.(*events.Disconnected)
	if d.Reason != events.Silent || d.DetectedAt.Sub(left) < 25*time.Second {
		t.Errorf("%s, known after %v, want silent, after about a minute and a half", d.Reason, d.DetectedAt.Sub(left))
	}
	t.Logf("known after %v", d.DetectedAt.Sub(left))
	s.await(0, events.PeerDisconnected, bob.PublicKey().String())

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 2 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "disconnected: silent"},
		"bob-phone":    {"connected from 203.0.113.12", "disconnected: expired"},
	})
}
