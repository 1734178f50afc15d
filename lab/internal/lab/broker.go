package lab

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
)

// brokerReady is in the line that nats-server logs once it serves.
const brokerReady = "Server is ready"

// identities are those that can log in, and the directory below keys/ that each one's seed is in when the broker is a process of its own.
var identities = map[string]string{
	"wg-provisioner":      "provision",
	"hooks-provisioner":   "provision",
	"readers-provisioner": "provision",
	"probe":               "probe",
	"notifier":            "notifier",
	"operator":            "operator",
	"reader":              "reader",
}

func keysDir(identity string) string { return filepath.Join(netns.Dir, "keys", identities[identity]) }

// run runs a command of the notifier's binary to its end.
func (l *Lab) run(ctx context.Context, args ...string) error {
	p, err := runner.Start(runner.Spec{
		Name: "notifier " + args[0], NS: l.NS, Path: runner.Binary("notifier"), Args: args, Log: l.opts.Log,
		Env: []string{"NATS_URL=nats://" + NATS},
	})
	if err != nil {
		return err
	}
	defer p.Kill()
	return p.Wait(ctx)
}

// makeKeys makes the identities and the configuration of the broker.
func (l *Lab) makeKeys() error {
	dir := filepath.Join(netns.Dir, "keys")
	// The directories in it belong to several users.
	if err := l.NS.Do(func() error { return os.Mkdir(dir, 0o755) }); err != nil {
		return err
	}
	return l.run(context.Background(), "keys", "-dir", dir, "-node", Node, "-listen", NATS, "-store", l.stateDir("broker"), "-notifier-uid", fmt.Sprint(nobody))
}

// StartBroker starts NATS and returns when it serves. Before the first Provision it has no stream.
func (l *Lab) StartBroker(ctx context.Context) (err error) {
	l.Broker, err = runner.Start(runner.Spec{
		Name: "broker", NS: l.NS, Path: runner.Binary(runner.NATSServer.Name), User: nobody, Log: l.opts.Log,
		Args: []string{"-c", filepath.Join(netns.Dir, "keys", "broker", "nats.conf")},
	})
	if err != nil {
		return err
	}
	started := l.Broker
	l.onClose(func() error { return l.closeService(&l.Broker, started) })
	_, err = l.Broker.WaitLine(ctx, brokerReady)
	return err
}

// Provision makes the streams.
func (l *Lab) Provision(ctx context.Context) error {
	return l.run(ctx, "provision", "-wg-key", l.identity("wg-provisioner"), "-hooks-key", l.identity("hooks-provisioner"))
}

// StopBroker stops NATS.
func (l *Lab) StopBroker() error { return l.closeService(&l.Broker, l.Broker) }

// KillBroker ends NATS without a chance to tidy up.
func (l *Lab) KillBroker() { kill(&l.Broker) }

// Connect logs in at the broker as one of the identities. The connection is closed with the lab.
func (l *Lab) Connect(identity string) (*nats.Conn, error) {
	seed, err := l.Seed(identity)
	if err != nil {
		return nil, err
	}
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", identity, err)
	}
	public, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", identity, err)
	}
	nc, err := nats.Connect("nats://"+NATS, nats.Name("wgherald-lab "+identity), nats.Nkey(public, key.Sign), nats.SetCustomDialer(l.NS),
		nats.CustomInboxPrefix("_INBOX_"+identity))
	if err != nil {
		return nil, fmt.Errorf("log in as %s: %w", identity, err)
	}
	l.onClose(func() error { nc.Close(); return nil })
	return nc, nil
}

// Secrets are the texts that no service may ever tell: private and preshared keys in both of their notations, seeds, and the hook's secret and path.
func (l *Lab) Secrets() (map[string]string, error) {
	secrets := map[string]string{"the hook's secret": strings.TrimPrefix(l.Sink.Secret(), "whsec_")}
	u, err := url.Parse(l.hookURL)
	if err != nil {
		return nil, err
	}
	secrets["the hook's path"] = strings.TrimPrefix(u.Path, "/hook/")
	key := func(what string, k wgtypes.Key) {
		if k != (wgtypes.Key{}) {
			secrets[what] = strings.TrimSuffix(k.String(), "=")
			secrets[what+", as the device's socket writes it"] = hex.EncodeToString(k[:])
		}
	}
	key("the hub's private key", l.hubKey)
	for _, c := range l.Clients {
		key(c.Name+"'s private key", c.key)
		key(c.Name+"'s preshared key", c.PresharedKey)
	}
	for name := range identities {
		seed, err := l.Seed(name)
		if err != nil {
			return nil, err
		}
		secrets["the seed of "+name] = strings.TrimSpace(string(seed))
	}
	return secrets, nil
}
