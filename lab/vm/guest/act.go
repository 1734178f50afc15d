package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
	"github.com/wgherald/wgherald/lab/vm"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	broker = "127.0.0.1:4222" // in the hub's namespace
	nobody = 65534            // the notifier's user and group
)

// Directories of the services, in memory.
var (
	notifierState = filepath.Join(netns.Dir, "notifier")
	probeState    = filepath.Join(netns.Dir, "probe")
)

// stage is where the story is acted out. Nothing of it is ever taken down but by the end of the machine.
type stage struct {
	hub, alice, bob *host
	stranger        wgtypes.Key // of nobody that the hub knows
	psk             wgtypes.Key // of bob
	notifier, probe *runner.Process
	events          ledger.Ledger[message]
	names           map[string]string // of public keys
	printed         int               // events
}

// message is an event as it was received, and what it tells, unless it is none. The test verifies it.
type message struct {
	*nats.Msg
	told vm.Told
}

// act acts out the story. It stops at the first step that goes wrong.
func act(ctx context.Context) (err error) {
	began := time.Now()
	s := &stage{}
	if err := s.build(ctx); err != nil {
		return fmt.Errorf("build the stage: %w", err)
	}
	defer func() { err = errors.Join(err, s.print()) }()
	steps := map[string]func(context.Context) error{
		"start":                           s.start,
		"alice connects":                  s.aliceConnects,
		"alice roams":                     s.aliceRoams,
		"alice has another key":           s.aliceHasAnotherKey,
		"bob has another preshared key":   s.bobHasAnotherKey,
		"bob has the right preshared key": s.bobHasTheRightKey,
		"alice is removed":                s.aliceIsRemoved,
		"the interface goes down":         func(context.Context) error { return s.hub.SetLink(vm.Interface, false) },
		"the interface comes up":          func(context.Context) error { return s.hub.SetLink(vm.Interface, true) },
		"stop":                            func(context.Context) error { return errors.Join(s.measure(), s.probe.Stop()) },
	}
	for _, step := range vm.Story {
		fmt.Println("guest:", step.Name)
		from := s.events.Len()
		do, ok := steps[step.Name]
		if !ok {
			return fmt.Errorf("nobody knows how to act %q", step.Name)
		}
		if err := do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		for _, want := range step.Told {
			if _, err := s.events.WaitFrom(ctx, from, func(m message) bool { return m.told == want }); err != nil {
				return fmt.Errorf("%s: nobody tells %+v: %w", step.Name, want, err)
			}
		}
		if err := s.print(); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
	}
	if err := s.figure("story: %.1f s", time.Since(began).Seconds()); err != nil {
		return err
	}
	return errors.Join(s.notifier.Stop(), vm.Print(os.Stdout, vm.Line{End: true}))
}

// build makes the network, with the hub's device up and the clients' down, starts the notifier with its broker, and subscribes to its events.
func (s *stage) build(ctx context.Context) (err error) {
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	if err := s.figure("kernel, modules: %.5s s", uptime); err != nil {
		return err
	}
	if s.stranger, err = wgtypes.GeneratePrivateKey(); err != nil {
		return err
	}
	if s.psk, err = wgtypes.GenerateKey(); err != nil {
		return err
	}
	port := listenPort
	if s.hub, err = newHost(hubInside, &port); err != nil {
		return err
	}
	if s.alice, err = newHost(aliceInside, nil); err != nil {
		return err
	}
	if s.bob, err = newHost(bobInside, nil); err != nil {
		return err
	}
	s.names = map[string]string{
		s.alice.key.PublicKey().String(): "alice", s.bob.key.PublicKey().String(): "bob", s.stranger.PublicKey().String(): "stranger",
	}
	if err := errors.Join(
		vm.Print(os.Stdout, vm.Line{Names: s.names}),
		join(s.hub, s.alice, "alice", hubForAlice, aliceHome, nil),
		s.hub.AddAddr("alice", hubForAliceAway),
		join(s.hub, s.bob, "bob", hubForBob, bobHome, &s.psk),
		s.hub.SetLink(vm.Interface, true),
		s.hub.Do(func() error {
			return errors.Join(os.Mkdir(notifierState, 0o700), os.Chown(notifierState, nobody, nobody))
		}),
	); err != nil {
		return err
	}

	s.notifier, err = runner.Start(runner.Spec{
		Name: "notifier", NS: s.hub.NS, Path: "/notifier", User: nobody, Log: os.Stdout,
		Env: []string{"NOTIFIER_STATE=" + notifierState, "NOTIFIER_LISTEN=" + broker},
	})
	if err != nil {
		return err
	}
	if _, err := s.notifier.WaitLine(ctx, "ready"); err != nil {
		return err
	}
	seed, err := s.hub.ReadFile(filepath.Join(notifierState, "identities", "reader.nk"))
	if err != nil {
		return err
	}
	keyring, err := s.hub.ReadFile(filepath.Join(notifierState, "keyring"))
	if err != nil {
		return err
	}
	return errors.Join(vm.Print(os.Stdout, vm.Line{Keyring: string(keyring)}), s.subscribe(seed))
}

// subscribe reads all events with the credential of a reader, in one order: every subscription that has a function is served by a goroutine of its own.
func (s *stage) subscribe(seed []byte) error {
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return err
	}
	public, err := key.PublicKey()
	if err != nil {
		return err
	}
	conn, err := nats.Connect("nats://"+broker, nats.Nkey(public, key.Sign), nats.CustomInboxPrefix("_INBOX_reader"), nats.SetCustomDialer(s.hub))
	if err != nil {
		return err
	}
	messages := make(chan *nats.Msg, 100) // more than the story has
	for _, subject := range []string{"wg.peer.*", "wg.interface.*", "wg.probe.*"} {
		if _, err := conn.ChanSubscribe(subject, messages); err != nil {
			return err
		}
	}
	go func() {
		for m := range messages {
			got := message{Msg: m}
			if e, err := events.Decode(m.Data); err == nil {
				got.told = vm.Tell(e, s.names)
			}
			s.events.Add(got)
		}
	}()
	return conn.Flush()
}

func (s *stage) start(context.Context) (err error) {
	s.probe, err = runner.Start(runner.Spec{
		Name: "probe", NS: s.hub.NS, Path: "/probe", Log: os.Stdout,
		Env: []string{
			"NATS_URL=nats://" + broker, "NATS_NKEY_FILE=" + filepath.Join(notifierState, "identities", "probe.nk"),
			"PROBE_STATE=" + probeState, "PROBE_NODE=" + vm.Node,
		},
	})
	return err
}

func (s *stage) aliceConnects(ctx context.Context) error {
	if err := s.alice.SetLink(vm.Interface, true); err != nil {
		return err
	}
	return s.ping(ctx, s.alice)
}

func (s *stage) aliceRoams(ctx context.Context) error {
	if err := errors.Join(
		s.alice.DeleteAddr("eth0", aliceHome),
		s.alice.AddAddr("eth0", aliceAway),
		s.alice.SetDefaultRoute("eth0", hubForAliceAway.Addr()),
	); err != nil {
		return err
	}
	return s.ping(ctx, s.alice)
}

// aliceHasAnotherKey leaves alice as she was, in good health: whatever the hub still has for her must not go unanswered.
func (s *stage) aliceHasAnotherKey(ctx context.Context) error {
	from := s.events.Len()
	if err := errors.Join(s.alice.rekey(s.stranger), s.alice.knock()); err != nil {
		return err
	}
	if _, err := s.events.WaitFrom(ctx, from, func(m message) bool { return m.told.Type == events.PeerRejected }); err != nil {
		return err
	}
	if err := s.alice.rekey(s.alice.key); err != nil {
		return err
	}
	return s.ping(ctx, s.alice)
}

func (s *stage) bobHasAnotherKey(context.Context) error {
	other, err := wgtypes.GenerateKey()
	if err != nil {
		return err
	}
	return errors.Join(s.setBobsKey(other), s.bob.SetLink(vm.Interface, true), s.bob.knock())
}

func (s *stage) bobHasTheRightKey(ctx context.Context) error {
	if err := errors.Join(s.setBobsKey(s.psk), s.bob.SetLink(vm.Interface, true)); err != nil {
		return err
	}
	return s.ping(ctx, s.bob)
}

func (s *stage) setBobsKey(psk wgtypes.Key) error {
	return s.bob.setPeer(wgtypes.PeerConfig{PublicKey: s.hub.key.PublicKey(), UpdateOnly: true, PresharedKey: &psk})
}

func (s *stage) aliceIsRemoved(context.Context) error {
	return s.hub.setPeer(wgtypes.PeerConfig{PublicKey: s.alice.key.PublicKey(), Remove: true})
}

// ping waits for an answer through the tunnel. WireGuard keeps the packet until hands are shaken.
func (s *stage) ping(ctx context.Context, client *host) error {
	return wgpeer.Ping(ctx, client.NS, client.inside.Addr(), hubInside.Addr())
}

// print hands the events that have arrived to the test.
func (s *stage) print() error {
	for _, m := range s.events.All()[s.printed:] {
		s.printed++
		if err := vm.Print(os.Stdout, vm.Line{Event: m.Data, Signature: m.Header.Get(events.HeaderSignature)}); err != nil {
			return err
		}
	}
	return nil
}

// measure tells how long the kernel's device takes to be read, and how much memory the probe does.
func (s *stage) measure() error {
	took := make([]time.Duration, 21)
	for i := range took {
		began := time.Now()
		if _, err := s.hub.ctl.Device(vm.Interface); err != nil {
			return err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.probe.PID()))
	if err != nil {
		return err
	}
	return errors.Join(
		s.figure("one read of the device, median of %d: %v", len(took), took[len(took)/2].Round(time.Microsecond)),
		s.figure("probe: %s", regexp.MustCompile(`VmRSS:.*`).Find(status)),
	)
}

func (s *stage) figure(format string, args ...any) error {
	return vm.Print(os.Stdout, vm.Line{Figure: fmt.Sprintf(format, args...)})
}
