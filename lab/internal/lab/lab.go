// Package lab puts the pieces together: a hub with WireGuard that the probe watches, clients around it, the two services in processes of their own
// beside the hub, a webhook sink, and a reader of the events. One call makes it, Close takes it down in reverse order.
//
//	                      namespace "hub"                                   namespace per client
//	probe ─ NATS ─ notifier ─ sink      wg0 10.9.0.1 ─ eth0 203.0.113.1  ═ bridge ═  eth0 203.0.113.11 ─ wg0 10.9.0.2
//	  (own processes)     (in here)                         198.51.100.1           (or 198.51.100.11, after roaming)
//
// It is no mock of anything: packets, devices, sockets, files and processes are real. Addresses are those for documentation (RFC 5737).
package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/watch"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	Node      = "lab" // of the probe
	Interface = "wg0" // on the hub

	// NATS is where the broker listens, in the hub's namespace.
	NATS = "127.0.0.1:4222"

	nobody = 65534 // the notifier's user and group

	// notifierReady is in the line that the notifier logs once its broker listens and each hook has its consumer: from here on no event is missed.
	notifierReady = "ready"
)

var (
	// hubEndpoint is where clients find the hub, wherever they are.
	hubEndpoint = netip.MustParseAddrPort("203.0.113.1:51820")
	// networks are those that clients may be in. The hub has the first address of each.
	networks  = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("198.51.100.0/24")}
	hubInside = netip.MustParsePrefix("10.9.0.1/24")
)

// names are those of the first clients.
var names = []string{"alice-laptop", "bob-phone", "carol-desktop", "dave-tablet", "erin-router"}

// Options describe a lab. The zero value is a hub without clients.
type Options struct {
	Clients     int
	Broker      bool                       // NATS is a process of its own, which needs runner.NATSServer, instead of the one that the notifier brings
	StateDir    string                     // where the services keep their state; it must be open to every user. Empty means memory.
	Log         io.Writer                  // gets what the services say; nil for none. Lab keeps it anyway.
	ProbeEnv    []string                   // more variables, "NAME=value"
	ProbeAttr   func(*syscall.SysProcAttr) // see runner.Spec
	NotifierEnv []string
	OnSend      func(c *Client, s wgpeer.Sent) // see wgpeer.Config, which tells who calls; nil for none
}

// Lab is a running lab. Its fields are for reading. One goroutine at a time may use its methods, and those of its clients.
type Lab struct {
	NS       *netns.NS      // of the hub, the services and the sink
	Hub      *wgpeer.Device // nil while it is deleted
	Clients  []*Client
	Sink     *sink.Sink
	Events   *watch.Watcher  // nil until the notifier's first start
	Probe    *runner.Process // nil while it is stopped
	Notifier *runner.Process // nil while it is stopped
	Broker   *runner.Process // nil while it is stopped, and without Options.Broker

	opts    Options
	hubKey  wgtypes.Key
	hookURL string
	closers []func() error
}

// New makes the network, the hub with its clients configured, and the sink. No client is up and no service is running.
func New(bins *runner.Binaries, opts Options) (*Lab, error) {
	l := &Lab{opts: opts}
	if err := l.build(bins); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(bins *runner.Binaries) (err error) {
	network, err := l.newNS()
	if err != nil {
		return err
	}
	if err := network.AddBridge("br0"); err != nil {
		return err
	}
	if l.NS, err = l.newNS(); err != nil {
		return err
	}
	if err := plug(network, "hub", l.NS); err != nil {
		return err
	}
	for _, n := range networks {
		if err := l.NS.AddAddr("eth0", netip.PrefixFrom(n.Addr().Next(), n.Bits())); err != nil {
			return err
		}
	}
	if l.hubKey, err = wgtypes.GeneratePrivateKey(); err != nil {
		return err
	}
	if err := l.CreateHub(); err != nil {
		return err
	}
	l.onClose(l.DeleteHub)

	for i := range l.opts.Clients {
		c, err := l.newClient(network, i)
		if err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
		l.Clients = append(l.Clients, c)
		if err := l.Configure(c); err != nil {
			return err
		}
	}

	var listener net.Listener
	if err := l.NS.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		return err
	}
	l.hookURL = "http://" + listener.Addr().String() + "/hook/" + rand.Text() // the path of a hook is a secret
	if l.Sink, err = sink.Start(listener); err != nil {
		return err
	}
	l.onClose(l.Sink.Close)

	if err := bins.Install(l.NS); err != nil {
		return err
	}
	if err := l.makeStateDirs(); err != nil {
		return err
	}
	if l.opts.Broker {
		return l.makeKeys()
	}
	return nil
}

func (l *Lab) newNS() (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	l.onClose(func() error { ns.Close(); return nil })
	return ns, nil
}

// plug joins a namespace, as eth0, to the bridge of the network.
func plug(network *netns.NS, port string, ns *netns.NS) error {
	if err := netns.Pair(network, port, ns, "eth0"); err != nil {
		return err
	}
	return network.AddPort("br0", port)
}

func (l *Lab) onClose(f func() error) { l.closers = append(l.closers, f) }

// Close stops everything, newest first, and returns what went wrong. It is bounded: 5 s for each service, and nothing else waits for anybody.
func (l *Lab) Close() error {
	var errs []error
	for len(l.closers) > 0 {
		last := len(l.closers) - 1
		errs = append(errs, l.closers[last]())
		l.closers = l.closers[:last]
	}
	return errors.Join(errs...)
}

// CreateHub makes the hub's WireGuard interface with these clients configured. New has done so; it is for bringing it back after DeleteHub.
func (l *Lab) CreateHub(clients ...*Client) (err error) {
	cfg := wgpeer.Config{
		NS: l.NS, Name: Interface, PrivateKey: l.hubKey, ListenPort: int(hubEndpoint.Port()), Address: hubInside, UAPI: true,
	}
	for _, c := range clients {
		cfg.Peers = append(cfg.Peers, c.Peer())
	}
	l.Hub, err = wgpeer.New(cfg)
	return err
}

// DeleteHub removes the hub's WireGuard interface with all its peers.
func (l *Lab) DeleteHub() error {
	if l.Hub == nil {
		return nil
	}
	defer func() { l.Hub = nil }()
	return l.Hub.Close()
}

// Configure adds a client to the hub's peers, or renews what the hub knows of it.
func (l *Lab) Configure(c *Client) error { return l.Hub.SetPeer(c.Peer()) }

// Remove takes a client out of the hub's peers.
func (l *Lab) Remove(c *Client) error { return l.Hub.RemovePeer(c.key.PublicKey()) }

// ReplaceKey gives a client another key and the hub's peer likewise. The client must be down.
func (l *Lab) ReplaceKey(c *Client) error {
	if err := l.Remove(c); err != nil {
		return err
	}
	if err := c.newKey(); err != nil {
		return err
	}
	return l.Configure(c)
}

// Paths of the services, as their namespace sees them.

func (l *Lab) stateDir(service string) string {
	base := l.opts.StateDir
	if base == "" {
		base = netns.Dir
	}
	return filepath.Join(base, service+"-state")
}

// Seed is what an identity logs in to the broker with. There is one once the notifier has been started.
func (l *Lab) Seed(identity string) ([]byte, error) { return l.NS.ReadFile(l.identity(identity)) }

func (l *Lab) identity(name string) string {
	dir := filepath.Join(l.stateDir("notifier"), "identities")
	if l.opts.Broker {
		dir = keysDir(name)
	}
	return filepath.Join(dir, name+".nk")
}

// Keyring is the text by which readers verify events. There is one once the notifier has been started.
func (l *Lab) Keyring() ([]byte, error) { return l.NS.ReadFile(l.keyring()) }

func (l *Lab) keyring() string {
	dir := l.stateDir("notifier")
	if l.opts.Broker {
		dir = keysDir("notifier")
	}
	return filepath.Join(dir, "keyring")
}

func namesFile() string { return filepath.Join(netns.Dir, "names") }

func (l *Lab) makeStateDirs() error {
	var list strings.Builder
	for _, c := range l.Clients {
		fmt.Fprintf(&list, "%s %s #lab\n", c.PublicKey(), c.Name)
	}
	return l.NS.Do(func() error {
		for service, user := range map[string]int{"probe": 0, "notifier": nobody, "broker": nobody} {
			dir := l.stateDir(service)
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			if err := os.Chown(dir, user, user); err != nil {
				return err
			}
		}
		return os.WriteFile(namesFile(), []byte(list.String()), 0o644)
	})
}

// Start starts the notifier, a reader of the events, and the probe, and returns when the probe has said what it watches. A broker of its own comes first.
func (l *Lab) Start(ctx context.Context) error {
	if l.opts.Broker {
		if err := l.StartBroker(ctx); err != nil {
			return err
		}
		if err := l.Provision(ctx); err != nil {
			return err
		}
	}
	if err := l.StartNotifier(ctx); err != nil {
		return err
	}
	if err := l.StartProbe(); err != nil {
		return err
	}
	_, err := l.Published(ctx, 0, events.InterfaceUp, Interface)
	return err
}

// StartNotifier starts the notifier, which brings the broker, and returns when both serve. Its first start makes the identities.
func (l *Lab) StartNotifier(ctx context.Context) error {
	if err := l.LaunchNotifier(); err != nil {
		return err
	}
	return l.AwaitNotifier(ctx)
}

// LaunchNotifier starts the notifier and does not wait for it.
func (l *Lab) LaunchNotifier() (err error) {
	env := []string{"NOTIFIER_STATE=" + l.stateDir("notifier"), "WEBHOOK_URL=" + l.hookURL, "WEBHOOK_SECRET=" + l.Sink.Secret()}
	if l.opts.Broker {
		env = append(env, "NATS_URL=nats://"+NATS, "NATS_NKEY_FILE="+l.identity("notifier"), "NOTIFIER_KEYRING="+l.keyring())
	} else {
		env = append(env, "NOTIFIER_LISTEN="+NATS)
	}
	l.Notifier, err = runner.Start(runner.Spec{
		Name: "notifier", NS: l.NS, Path: runner.Binary("notifier"), User: nobody, Log: l.opts.Log, Env: append(env, l.opts.NotifierEnv...),
	})
	if err != nil {
		return err
	}
	started := l.Notifier
	l.onClose(func() error { return l.closeService(&l.Notifier, started) })
	return nil
}

// AwaitNotifier returns when the notifier serves. The first time it also starts the reader of the events.
func (l *Lab) AwaitNotifier(ctx context.Context) error {
	if _, err := l.Notifier.WaitLine(ctx, notifierReady); err != nil {
		return err
	}
	if l.Events != nil {
		return nil // it connects again by itself
	}
	seed, err := l.NS.ReadFile(l.identity("reader"))
	if err != nil {
		return err
	}
	text, err := l.Keyring()
	if err != nil {
		return err
	}
	ring, err := events.ParseKeyring(string(text))
	if err != nil {
		return err
	}
	if l.Events, err = watch.Start(l.NS, "nats://"+NATS, seed, ring); err != nil {
		return err
	}
	l.onClose(func() error { l.Events.Close(); return nil })
	return nil
}

// StartProbe starts the probe and does not wait for it. The notifier must have been started once, for the probe's identity.
func (l *Lab) StartProbe() (err error) {
	l.Probe, err = runner.Start(runner.Spec{
		Name: "probe", NS: l.NS, Path: runner.Binary("probe"), Log: l.opts.Log, Attr: l.opts.ProbeAttr,
		Env: append([]string{
			"NATS_URL=nats://" + NATS,
			"NATS_NKEY_FILE=" + l.identity("probe"),
			"PROBE_STATE=" + l.stateDir("probe"),
			"PROBE_NODE=" + Node,
			"PROBE_NAMES=" + namesFile(),
		}, l.opts.ProbeEnv...),
	})
	if err != nil {
		return err
	}
	started := l.Probe
	l.onClose(func() error { return l.closeService(&l.Probe, started) })
	return nil
}

// closeService stops a service at the end, unless it was stopped before.
func (l *Lab) closeService(running **runner.Process, p *runner.Process) error {
	if *running != p {
		return nil
	}
	*running = nil
	return p.Stop()
}

// StopNotifier stops the notifier, and NATS with it.
func (l *Lab) StopNotifier() error { return l.closeService(&l.Notifier, l.Notifier) }

// StopProbe stops the probe.
func (l *Lab) StopProbe() error { return l.closeService(&l.Probe, l.Probe) }

// KillNotifier ends the notifier, and NATS with it, without a chance to tidy up.
func (l *Lab) KillNotifier() { kill(&l.Notifier) }

// KillProbe ends the probe without a chance to tidy up.
func (l *Lab) KillProbe() { kill(&l.Probe) }

func kill(running **runner.Process) {
	(*running).Kill()
	*running = nil
}

// Published waits for an event on NATS, not looking at the first from messages. The subject is what the event is about: a public key, an interface.
func (l *Lab) Published(ctx context.Context, from int, t events.Type, subject string) (watch.Message, error) {
	m, err := l.Events.WaitFrom(ctx, from, func(m watch.Message) bool {
		return m.Event != nil && m.Event.Type == t && m.Event.Subject == subject
	})
	if err != nil {
		return m, fmt.Errorf("no %s of %s on NATS: %w", t, l.name(subject), err)
	}
	return m, nil
}

// Delivered waits for a verified and accepted delivery to the sink, not looking at the first from requests.
func (l *Lab) Delivered(ctx context.Context, from int, t events.Type, subject string) (sink.Delivery, error) {
	d, err := l.Sink.WaitFrom(ctx, from, func(d sink.Delivery) bool {
		return d.OK() && d.Event.Type == t && d.Event.Subject == subject
	})
	if err != nil {
		return d, fmt.Errorf("no %s of %s at the sink: %w", t, l.name(subject), err)
	}
	return d, nil
}

// name is the name of the client with that public key, or the subject itself.
func (l *Lab) name(subject string) string {
	for _, c := range l.Clients {
		if c.PublicKey().String() == subject {
			return c.Name
		}
	}
	return subject
}
