package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	// stopPromise is within what a service that is asked to stop ends, whatever state it is in.
	stopPromise = 5 * time.Second
	// stopAllowance is what a loaded machine may add: these tests share two cores with each other and with whatever else runs there, and a process that is
	// not given the processor cannot end.
	stopAllowance = 5 * time.Second

	// namedBroker is an address that only a resolver knows.
	namedBroker = "nats://broker.test:4222"
)

var hooksFile = filepath.Join(netns.Dir, "hooks.yaml")

// ask signals a service and waits for its end, which must come in time, with exit code 0, and because all in it has ended.
func (s *story) ask(running **runner.Process, signals ...syscall.Signal) {
	s.t.Helper()
	if s.askRoughly(running, signals...) {
		s.t.Error("not all of it ended in time")
	}
}

// askRoughly is ask, and tells whether the service was left to cut something off.
func (s *story) askRoughly(running **runner.Process, signals ...syscall.Signal) (cut bool) {
	s.t.Helper()
	p := *running
	began := time.Now()
	for _, sig := range signals {
		s.must(syscall.Kill(p.PID(), sig))
	}
	select {
	case <-p.Done():
		s.t.Logf("ended %v after %v", time.Since(began).Round(time.Millisecond), signals)
	case <-time.After(stopPromise + stopAllowance):
		_ = syscall.Kill(p.PID(), syscall.SIGQUIT) // Go tells what each goroutine waits for
		<-p.Done()
		s.t.Fatalf("still running %v after %v", time.Since(began), signals)
	}
	*running = nil
	s.must(p.Wait(s.ctx))
	for _, broken := range []string{"panic:", "fatal error:", "goroutine "} {
		if strings.Contains(p.Output(), broken) {
			s.t.Errorf("it said %q", broken)
		}
	}
	return strings.Contains(p.Output(), "the rest is cut off")
}

// freeze stops the broker as a machine that hangs does: its connections stay open, and new ones are taken by the kernel and never answered.
func (s *story) freeze() {
	s.t.Helper()
	p := s.Broker
	s.must(syscall.Kill(p.PID(), syscall.SIGSTOP))
	s.t.Cleanup(func() { _ = syscall.Kill(p.PID(), syscall.SIGCONT) }) // a frozen process hears no SIGTERM
	s.eventually(func() error {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
		for _, stat := range stats {
			if text, err := os.ReadFile(stat); err == nil && !bytes.Contains(text, []byte(") T")) {
				return fmt.Errorf("%s still runs", stat)
			}
		}
		return err
	})
}

func (s *story) thaw() { s.must(syscall.Kill(s.Broker.PID(), syscall.SIGCONT)) }

// silenceResolver leaves the laboratory with a resolver that takes every question and answers none. known says whether the broker's name stands in the hosts
// file meanwhile.
func (s *story) silenceResolver() (known func(bool)) {
	s.t.Helper()
	hosts, resolv := filepath.Join(netns.Dir, "hosts"), filepath.Join(netns.Dir, "resolv.conf")
	known = func(is bool) {
		s.t.Helper()
		text := "127.0.0.1 localhost\n"
		if is {
			text += "127.0.0.1 broker.test\n"
		}
		s.must(s.NS.Do(func() error { return os.WriteFile(hosts, []byte(text), 0o644) }))
	}
	known(false)
	s.must(s.NS.Do(func() error {
		silent, err := net.ListenPacket("udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { silent.Close() })
		return errors.Join(
			os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644),
			unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""),
			unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""),
		)
	}))
	return known
}

// awaitStored waits until the probe has stored so many events of a type.
func (s *story) awaitStored(t events.Type, n int) {
	s.t.Helper()
	s.awaitMetric(probeMetrics, fmt.Sprintf("wgherald_probe_events_total{type=%q} %d", t, n))
}

// tells ends the story of so many runs of the probe, in which clients have connected.
func (s *story) tells(runs int, connected ...*lab.Client) {
	s.t.Helper()
	want := map[string][]string{"wg0": {fmt.Sprintf("up, %d peers, inferred", len(s.Clients))}}
	for range runs {
		want["lab"] = append(want["lab"], "started, packets", "stopped")
	}
	for _, c := range connected {
		want[c.Name] = append(want[c.Name], "connected from "+c.Outside().String())
	}
	s.endOnce(want)
}

// endOnce is end, and counts what was delivered more than once.
func (s *story) endOnce(want map[string][]string) {
	s.t.Helper()
	s.end(want)
	taken := map[string]int{}
	repeated := 0
	for _, d := range s.Sink.All() {
		if d.OK() {
			if taken[d.Event.ID]++; taken[d.Event.ID] > 1 {
				repeated++
			}
		}
	}
	if s.t.Logf("%d events delivered, %d of them again", len(taken), repeated); repeated > 0 {
		s.t.Errorf("%d events were taken and sent again", repeated)
	}
}

// TestProbeStops asks the probe to stop in every state that it can be in, and starts it again: all that happened is told, once and in order.
func TestProbeStops(t *testing.T) {
	t.Parallel()
	broker := lab.Options{Clients: 2, Broker: true}
	named := broker
	named.ProbeEnv = []string{"NATS_URL=" + namedBroker}
	for name, row := range map[string]struct {
		opts lab.Options
		tell func(s *story, alice, bob *lab.Client)
	}{
		"at rest": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.ask(&s.Probe, syscall.SIGTERM)
			s.must(s.StartProbe())
			s.tells(2, alice)
		}},
		"interrupted at rest": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.ask(&s.Probe, syscall.SIGINT)
			s.must(s.StartProbe())
			s.tells(2, alice)
		}},
		"asked twice": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.ask(&s.Probe, syscall.SIGTERM, syscall.SIGTERM, syscall.SIGINT)
			s.must(s.StartProbe())
			s.tells(2, alice)
		}},
		"while it starts": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.StartBroker(s.ctx), s.Provision(s.ctx), s.StartNotifier(s.ctx), s.StartProbe())
			_, err := s.Probe.WaitLine(s.ctx, "probe starts")
			s.must(err)
			s.ask(&s.Probe, syscall.SIGTERM)
			s.must(s.StartProbe())
			s.awaitUp()
			s.connect(alice)
			s.tells(2, alice)
		}},
		"the broker was never there": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.StartProbe())
			s.awaitStored(events.InterfaceUp, 1)
			s.must(alice.Connect(s.ctx))
			s.awaitStored(events.PeerConnected, 1)
			s.ask(&s.Probe, syscall.SIGTERM)
			s.must(s.StartBroker(s.ctx), s.Provision(s.ctx), s.StartNotifier(s.ctx), s.StartProbe())
			s.tells(2, alice)
		}},
		"the broker hangs": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.must(s.StopNotifier())
			s.freeze()
			s.must(bob.Connect(s.ctx))
			s.awaitStored(events.PeerConnected, 2)
			s.ask(&s.Probe, syscall.SIGTERM)
			s.thaw()
			s.must(s.StartNotifier(s.ctx), s.StartProbe())
			s.tells(2, alice, bob)
		}},
		"the broker hung before the first login": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.StartBroker(s.ctx), s.Provision(s.ctx))
			s.freeze()
			s.must(s.StartProbe())
			s.awaitStored(events.InterfaceUp, 1)
			s.must(alice.Connect(s.ctx))
			s.awaitStored(events.PeerConnected, 1)
			s.ask(&s.Probe, syscall.SIGTERM)
			s.thaw()
			s.must(s.StartNotifier(s.ctx), s.StartProbe())
			s.tells(2, alice)
		}},
		"the broker was killed with events unsent": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.settle()
			s.KillBroker()
			s.must(bob.Connect(s.ctx))
			s.awaitStored(events.PeerConnected, 2)
			s.ask(&s.Probe, syscall.SIGTERM)
			s.must(s.StartBroker(s.ctx), s.StartProbe())
			s.tells(2, alice, bob)
		}},
		"the broker's name is not resolved": {named, func(s *story, alice, bob *lab.Client) {
			known := s.silenceResolver()
			s.must(s.StartBroker(s.ctx), s.Provision(s.ctx), s.StartNotifier(s.ctx), s.StartProbe())
			_, err := s.Probe.WaitLine(s.ctx, "probe starts")
			s.must(err)
			time.Sleep(time.Second)
			s.ask(&s.Probe, syscall.SIGTERM)
			known(true)
			s.must(s.StartProbe())
			s.awaitUp()
			s.connect(alice)
			s.tells(2, alice)
		}},
		"the broker's name is not resolved any more": {named, func(s *story, alice, bob *lab.Client) {
			known := s.silenceResolver()
			known(true)
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.settle()
			known(false)
			s.KillBroker()
			s.must(bob.Connect(s.ctx))
			time.Sleep(time.Second)
			s.ask(&s.Probe, syscall.SIGTERM)
			known(true)
			s.must(s.StartBroker(s.ctx), s.StartProbe())
			s.tells(2, alice, bob)
		}},
		"the broker hangs and takes nothing more": {broker, func(s *story, alice, bob *lab.Client) {
			// The library waits for room with its connection locked, so that nothing that is asked of it returns.
			s.must(s.NS.Do(func() error {
				least := []byte("4096 4096 4096")
				return errors.Join(os.WriteFile("/proc/sys/net/ipv4/tcp_wmem", least, 0), os.WriteFile("/proc/sys/net/ipv4/tcp_rmem", least, 0))
			}), s.Start(s.ctx))
			s.awaitUp()
			s.must(s.StopNotifier())
			s.freeze()
			want := s.guests(100)
			s.must(alice.Connect(s.ctx)) // each handshake has the device looked at
			s.eventually(func() error {
				if _, err := s.scrape(probeMetrics); err == nil { // among the metrics is whether the broker is connected
					return errors.New("the connection takes all that is sent")
				}
				return nil
			})
			if !s.askRoughly(&s.Probe, syscall.SIGTERM) {
				s.t.Error("the connection was not locked")
			}
			s.thaw()
			s.must(s.StartNotifier(s.ctx), s.StartProbe())
			want["lab"] = []string{"started, packets", "stopped", "started, packets", "stopped"}
			want["wg0"] = []string{"up, 2 peers, inferred"}
			want[alice.Name] = []string{"connected from 203.0.113.11"}
			s.endOnce(want)
		}},
		"under 5,000 initiations a second": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			stop := s.flood(bob)
			defer stop()
			s.connect(alice)
			s.ask(&s.Probe, syscall.SIGTERM)
			stop()
			s.must(s.StartProbe())
			s.tells(2, alice)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, patience, row.opts)
			row.tell(s, s.Clients[0], s.Clients[1])
		})
	}
}

// TestProbeKilled kills the probe while it has events that no broker has taken.
func TestProbeKilled(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 2, Broker: true})
	alice, bob := s.Clients[0], s.Clients[1]
	s.connect(alice)
	s.settle()
	s.KillBroker()
	s.must(bob.Connect(s.ctx))
	s.awaitStored(events.PeerConnected, 2)
	s.KillProbe()
	s.must(s.StartBroker(s.ctx), s.StartProbe())
	s.endOnce(map[string][]string{
		"lab":      {"started, packets", "started, packets", "stopped"},
		"wg0":      {"up, 2 peers, inferred"},
		alice.Name: {"connected from 203.0.113.11"},
		bob.Name:   {"connected from 203.0.113.12"},
	})
}

// flood sends 5,000 initiations a second to the hub, which are for it as far as anybody can tell who does not open them, until it is stopped.
func (s *story) flood(from *lab.Client) (stop func()) {
	s.t.Helper()
	hub, err := s.Hub.Observe()
	s.must(err)
	conn, err := from.DialEndpoint()
	s.must(err)
	packet := make([]byte, 148)
	rand.Read(packet)
	copy(packet, []byte{1, 0, 0, 0})
	mac1(packet, hub.PublicKey[:])
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				for range 50 {
					_, _ = conn.Write(packet) // what does not fit is lost, as on any network
				}
			}
		}
	}()
	once := false
	return func() {
		if !once {
			once = true
			close(done)
			<-ended
			conn.Close()
		}
	}
}

// addHooks configures two hooks beside the one of the laboratory, each with a receiver of its own.
func (s *story) addHooks(first, second string) (a, b *sink.Sink) {
	s.t.Helper()
	text := "hooks:\n"
	var sinks []*sink.Sink
	for _, name := range []string{first, second} {
		l := s.listen()
		receiver, err := sink.Start(l)
		s.must(err)
		s.t.Cleanup(func() { receiver.Close() })
		sinks = append(sinks, receiver)
		text += fmt.Sprintf("  - name: %s\n    url: http://%s/hook\n    secret: %s\n", name, l.Addr(), receiver.Secret())
	}
	s.must(s.NS.Do(func() error {
		return errors.Join(os.WriteFile(hooksFile, []byte(text), 0o600), os.Chown(hooksFile, unprivileged, unprivileged))
	}))
	return sinks[0], sinks[1]
}

// guests are peers of the hub that never speak. That they are configured is told of each: so many events that need not wait for each other.
func (s *story) guests(n int) (want map[string][]string) {
	s.t.Helper()
	want = map[string][]string{}
	for i := range n {
		key, err := wgtypes.GeneratePrivateKey()
		s.must(err)
		public := key.PublicKey()
		name := fmt.Sprintf("guest %d", i)
		s.names[events.Key(public).String()] = name
		s.must(s.Hub.SetPeer(wgpeer.Peer{PublicKey: public}))
		want[name] = []string{"added"}
	}
	return want
}

// busy has the notifier deliver guests until the receiver has got so many requests.
func (s *story) busy(guests, requests int, alice *lab.Client) (want map[string][]string) {
	s.t.Helper()
	from := s.Sink.Len()
	want = s.guests(guests)
	s.must(alice.Connect(s.ctx)) // each handshake has the device looked at
	_, err := s.Sink.WaitFrom(s.ctx, from, func(sink.Delivery) bool { requests--; return requests == 0 })
	s.must(err)
	want["lab"] = []string{"started, packets", "stopped"}
	want["wg0"] = []string{fmt.Sprintf("up, %d peers, inferred", len(s.Clients))}
	want[alice.Name] = []string{"connected from 203.0.113.11"}
	return want
}

// TestNotifierStops asks the notifier to stop in every state that it can be in, and starts it again: all that happened is delivered, once and in order.
func TestNotifierStops(t *testing.T) {
	t.Parallel()
	embedded, broker := lab.Options{Clients: 2}, lab.Options{Clients: 2, Broker: true}
	named := broker
	named.NotifierEnv = []string{"NATS_URL=" + namedBroker}
	hooked, pair := embedded, broker
	hooked.NotifierEnv = []string{"NOTIFIER_HOOKS=" + hooksFile}
	pair.NotifierEnv = []string{"NOTIFIER_METRICS="} // two cannot serve them on one port
	// restart starts the notifier again and tells of bob, so that what comes late is seen, too.
	restart := func(s *story, alice, bob *lab.Client) {
		s.t.Helper()
		s.must(s.StartNotifier(s.ctx))
		if s.Probe == nil {
			s.must(s.StartProbe())
			s.awaitUp()
		}
		s.connect(bob)
	}
	for name, row := range map[string]struct {
		opts lab.Options
		tell func(s *story, alice, bob *lab.Client)
	}{
		"at rest, with its own broker and a probe at it": {embedded, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.must(alice.Connect(s.ctx))
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"at rest": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.must(alice.Connect(s.ctx))
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"interrupted at rest": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.ask(&s.Notifier, syscall.SIGINT)
			s.must(alice.Connect(s.ctx))
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"asked twice": {embedded, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.ask(&s.Notifier, syscall.SIGTERM, syscall.SIGTERM, syscall.SIGINT)
			s.must(alice.Connect(s.ctx))
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"while it starts its own broker": {embedded, func(s *story, alice, bob *lab.Client) {
			s.must(s.LaunchNotifier())
			s.eventually(func() error {
				_, err := s.NS.ReadFile(filepath.Join(netns.Dir, "notifier-state", "lock"))
				return err
			})
			s.ask(&s.Notifier, syscall.SIGTERM)
			restart(s, alice, bob)
			s.tells(1, bob)
		}},
		"the broker was never there": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.LaunchNotifier())
			_, err := s.Notifier.WaitLine(s.ctx, "hook waits")
			s.must(err)
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.must(s.StartBroker(s.ctx), s.Provision(s.ctx))
			restart(s, alice, bob)
			s.tells(1, bob)
		}},
		"the broker hangs": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.settle()
			s.freeze()
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.thaw()
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"the broker hung before the first login": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.freeze()
			s.must(s.LaunchNotifier())
			time.Sleep(time.Second)
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.thaw()
			s.must(alice.Connect(s.ctx))
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"the broker was killed": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.settle()
			s.KillBroker()
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.must(s.StartBroker(s.ctx))
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"the broker's name is not resolved": {named, func(s *story, alice, bob *lab.Client) {
			known := s.silenceResolver()
			s.must(s.StartBroker(s.ctx), s.Provision(s.ctx), s.LaunchNotifier())
			time.Sleep(time.Second)
			s.ask(&s.Notifier, syscall.SIGTERM)
			known(true)
			restart(s, alice, bob)
			s.tells(1, bob)
		}},
		"the broker's name is not resolved any more": {named, func(s *story, alice, bob *lab.Client) {
			known := s.silenceResolver()
			known(true)
			s.must(s.Start(s.ctx))
			s.connect(alice)
			s.settle()
			known(false)
			s.KillBroker()
			time.Sleep(time.Second)
			s.ask(&s.Notifier, syscall.SIGTERM)
			known(true)
			s.must(s.StartBroker(s.ctx))
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
		"16 requests that hang": {embedded, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.awaitUp()
			s.Sink.Inject(sink.Fault{Hang: true})
			want := s.busy(30, 16, alice)
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.Sink.Heal()
			restart(s, alice, bob)
			want[bob.Name] = []string{"connected from 203.0.113.12"}
			s.endOnce(want)
		}},
		"16 requests that hang, and so does the broker": {broker, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.awaitUp()
			s.Sink.Inject(sink.Fault{Hang: true})
			want := s.busy(30, 16, alice)
			s.freeze()
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.Sink.Heal()
			s.thaw()
			restart(s, alice, bob)
			want[bob.Name] = []string{"connected from 203.0.113.12"}
			s.endOnce(want)
		}},
		"a receiver that refuses, and a backlog": {embedded, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.awaitUp()
			s.Sink.Inject(sink.Fault{Status: http.StatusServiceUnavailable, RetryAfter: "600"})
			want := s.busy(100, 5, alice)
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.Sink.Heal()
			restart(s, alice, bob)
			want[bob.Name] = []string{"connected from 203.0.113.12"}
			s.endOnce(want)
		}},
		"several hooks, one that hangs and one that refuses": {hooked, func(s *story, alice, bob *lab.Client) {
			hanging, refusing := s.addHooks("hanging", "refusing")
			s.must(s.Start(s.ctx))
			s.awaitUp()
			hanging.Inject(sink.Fault{Hang: true})
			refusing.Inject(sink.Fault{Status: http.StatusServiceUnavailable, RetryAfter: "600"})
			s.connect(alice)
			for _, other := range []*sink.Sink{hanging, refusing} {
				_, err := other.Wait(s.ctx, about(alice))
				s.must(err)
			}
			s.ask(&s.Notifier, syscall.SIGTERM)
			hanging.Heal()
			refusing.Heal()
			restart(s, alice, bob)
			for _, other := range []*sink.Sink{s.Sink, hanging, refusing} {
				for _, c := range []*lab.Client{alice, bob} {
					_, err := other.Wait(s.ctx, func(d sink.Delivery) bool { return d.OK() && about(c)(d) })
					s.must(err)
				}
			}
			s.tells(1, alice, bob)
		}},
		"the owner of two": {pair, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.awaitUp()
			owner := s.Notifier
			s.must(s.StartNotifier(s.ctx)) // stands by
			s.connect(alice)
			s.ask(&owner, syscall.SIGTERM)
			began := time.Now()
			s.connect(bob)
			// PinnedTTL, after which the other would take over in any case, is 30 s; it asks every 5 s.
			took := time.Since(began)
			if s.t.Logf("the other told of bob after %v", took.Round(time.Millisecond)); took > 15*time.Second {
				s.t.Errorf("the other took over after %v", took)
			}
			s.tells(1, alice, bob)
		}},
		"the one of two that stands by": {pair, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.awaitUp()
			owner := s.Notifier
			s.must(s.StartNotifier(s.ctx))
			s.connect(alice)
			s.ask(&s.Notifier, syscall.SIGTERM)
			s.Notifier = owner
			s.connect(bob)
			s.tells(1, alice, bob)
		}},
		"a request that is answered in time": {embedded, func(s *story, alice, bob *lab.Client) {
			s.must(s.Start(s.ctx))
			s.Sink.Inject(sink.Fault{Match: about(alice), Delay: 1500 * time.Millisecond})
			s.must(alice.Connect(s.ctx))
			s.awaitRequest("alice connected", about(alice))
			s.ask(&s.Notifier, syscall.SIGTERM)
			restart(s, alice, bob)
			s.tells(1, alice, bob)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, patience, row.opts)
			row.tell(s, s.Clients[0], s.Clients[1])
		})
	}
}

// awaitUp waits until the receiver has all that is told when the probe starts.
func (s *story) awaitUp() {
	s.t.Helper()
	s.await(0, events.InterfaceUp, lab.Interface)
}

// settle waits until the broker knows what was delivered.
func (s *story) settle() {
	s.t.Helper()
	s.awaitMetric(notifierMetrics, `wgherald_notifier_events_held{hook="default"} 0`)
	time.Sleep(500 * time.Millisecond) // it is told at once, and is on its disk a moment later
}
