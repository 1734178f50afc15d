package e2e

import (
	"testing"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

// TestProbeRestart changes everything while nobody watches.
func TestProbeRestart(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]bool{"stopped": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, patience, lab.Options{Clients: 5})
			alice, bob, carol, dave, erin := s.Clients[0], s.Clients[1], s.Clients[2], s.Clients[3], s.Clients[4]
			s.must(s.Remove(erin), s.Start(s.ctx))
			s.connect(alice, bob, dave)

			if killed {
				s.KillProbe()
			} else {
				s.must(s.StopProbe())
			}
			stopped := time.Now()
			s.must(s.Remove(bob), carol.Connect(s.ctx), dave.Roam(), dave.Ping(s.ctx), s.Configure(erin))
			const blind = 2 * time.Second
			time.Sleep(time.Until(stopped.Add(blind)))
			from := s.Sink.Len()
			s.must(s.StartProbe())
			started := s.await(from, events.ProbeStarted, lab.Node).Data.(*events.Started)
			s.await(from, events.PeerRoamed, dave.PublicKey().String())

			// A probe that could say goodbye knows to the moment; one that was killed knows when it last wrote.
			since := stopped.Sub(started.BlindSince)
			if least := blind / time.Second; since < 0 || since > 30*time.Second || started.BlindSeconds < int64(least) {
				t.Errorf("blind since %v before the stop and for %d s, want for %v or more", since, started.BlindSeconds, blind)
			}
			if !killed && since > 3*time.Second {
				t.Errorf("blind since %v before the stop", since)
			}

			probe := []string{"started, packets", "stopped", "started, packets", "stopped"}
			if killed {
				probe = []string{"started, packets", "started, packets", "stopped"}
			}
			s.end(map[string][]string{
				"lab":           probe,
				"wg0":           {"up, 4 peers, inferred"},
				"alice-laptop":  {"connected from 203.0.113.11"},
				"bob-phone":     {"connected from 203.0.113.12", "disconnected: removed, inferred", "removed, inferred"},
				"carol-desktop": {"connected from 203.0.113.13, inferred"},
				"dave-tablet":   {"connected from 203.0.113.14", "roamed from 203.0.113.14 to 198.51.100.14, inferred"},
				"erin-router":   {"added, inferred"},
			})
		})
	}
}

// TestNotifierRestart ends the notifier, and the broker in it, while a request is under way and others wait behind it, and has more happen meanwhile.
// After a kill the broker gives out what was held only when the former owner's time is over: that is the time this test takes.
func TestNotifierRestart(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]bool{"stopped": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := told(t, 4*time.Minute, lab.Options{Clients: 4})
			alice, bob, carol, dave := s.Clients[0], s.Clients[1], s.Clients[2], s.Clients[3]
			s.Sink.Inject(sink.Fault{Match: about(alice), Hang: true})
			s.must(alice.Connect(s.ctx))
			s.awaitRequest("alice connected", about(alice))
			s.must(alice.Down(), s.Remove(alice))
			s.connect(bob) // each handshake has the device looked at
			s.must(s.Configure(alice))
			s.connect(carol)
			s.must(alice.Connect(s.ctx))
			_, err := s.Events.Wait(s.ctx, nth(2, events.PeerConnected, alice))
			s.must(err)

			if killed {
				s.KillNotifier()
			} else {
				s.must(s.StopNotifier())
			}
			s.Sink.Heal()
			s.must(dave.Connect(s.ctx), bob.Down(), bob.Connect(s.ctx))
			s.awaitMetric(probeMetrics, `wgherald_probe_events_total{type="wg.peer.roamed"} 1`)
			s.must(s.StartNotifier(s.ctx))

			s.end(map[string][]string{
				"lab":           {"started, packets", "stopped"},
				"wg0":           {"up, 4 peers, inferred"},
				"alice-laptop":  {"connected from 203.0.113.11", "disconnected: removed", "removed", "added", "connected from 203.0.113.11"},
				"bob-phone":     {"connected from 203.0.113.12", "roamed to another port of 203.0.113.12"},
				"carol-desktop": {"connected from 203.0.113.13"},
				"dave-tablet":   {"connected from 203.0.113.14"},
			})
		})
	}
}

// TestBrokerRestart has NATS go and come back under both services, which go on.
func TestBrokerRestart(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]bool{"stopped": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := told(t, 3*time.Minute, lab.Options{Clients: 3, Broker: true})
			alice, bob, carol := s.Clients[0], s.Clients[1], s.Clients[2]
			s.connect(alice)

			if killed {
				s.KillBroker()
			} else {
				s.must(s.StopBroker())
			}
			s.must(bob.Connect(s.ctx), alice.Down(), alice.Connect(s.ctx))
			s.awaitMetric(probeMetrics, `wgherald_probe_events_total{type="wg.peer.roamed"} 1`)
			s.must(s.StartBroker(s.ctx))
			s.await(0, events.PeerRoamed, alice.PublicKey().String())
			s.connect(carol)

			s.end(map[string][]string{
				"lab":           {"started, packets", "stopped"},
				"wg0":           {"up, 3 peers, inferred"},
				"alice-laptop":  {"connected from 203.0.113.11", "roamed to another port of 203.0.113.11"},
				"bob-phone":     {"connected from 203.0.113.12"},
				"carol-desktop": {"connected from 203.0.113.13"},
			})
		})
	}
}

// TestBrokerAbsentAtStart starts both services before NATS: once on a host that is new, where it has no stream either, and once on one that was rebooted.
func TestBrokerAbsentAtStart(t *testing.T) {
	t.Parallel()
	for name, rebooted := range map[string]bool{"new host": false, "rebooted host": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, patience, lab.Options{Clients: 2, Broker: true})
			alice, bob := s.Clients[0], s.Clients[1]
			probe := []string{"started, packets", "stopped"}
			if rebooted {
				s.must(s.Start(s.ctx), s.StopProbe(), s.StopNotifier(), s.StopBroker())
				probe = append(probe, probe...)
			}
			s.must(s.LaunchNotifier(), s.StartProbe())
			s.awaitMetric(probeMetrics, "wgherald_probe_peers_configured 2") // the first look is the baseline
			s.must(alice.Connect(s.ctx), bob.Connect(s.ctx))
			s.awaitMetric(probeMetrics, `wgherald_probe_events_total{type="wg.peer.connected"} 2`)

			s.must(s.StartBroker(s.ctx))
			if !rebooted {
				s.must(s.Provision(s.ctx))
			}
			s.must(s.AwaitNotifier(s.ctx))

			s.end(map[string][]string{
				"lab":          probe,
				"wg0":          {"up, 2 peers, inferred"},
				"alice-laptop": {"connected from 203.0.113.11"},
				"bob-phone":    {"connected from 203.0.113.12"},
			})
		})
	}
}
