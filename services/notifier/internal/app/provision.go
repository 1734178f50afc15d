package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

// KeysOptions says what Keys makes and for whom.
type KeysOptions struct {
	Dir         string
	Node        string // whose events the probe's key signs; "*" is any
	Listen      string // of the broker
	Store       string // of the broker, as it sees it
	NotifierUID int    // owner of what the notifier and the provisioner read; negative leaves it
}

// The directories that Keys makes. Each one is for a single reader.
const (
	keysBroker    = "broker"
	keysProbe     = "probe"
	keysNotifier  = "notifier"
	keysProvision = "provision"
	keysOperator  = "operator"
	keysReader    = "reader"
)

// Keys makes every identity's key and the configuration of a nats-server that knows them. Keys that exist are kept, so it may run again and again.
func Keys(o KeysOptions) error {
	public := map[string]string{}
	for dir, names := range map[string][]string{
		keysProbe:     {broker.Probe},
		keysNotifier:  {broker.Notifier},
		keysOperator:  {broker.Operator},
		keysProvision: {broker.WGProvisioner, broker.HooksProvisioner},
		keysReader:    {broker.Reader},
	} {
		dir = filepath.Join(o.Dir, dir)
		if err := closeDir(dir); err != nil {
			return err
		}
		made, err := broker.EnsureIdentities(dir, names...)
		if err != nil {
			return err
		}
		for name, key := range made {
			public[name] = key
		}
	}
	probe := broker.ProbeUser{Key: public[broker.Probe]}
	if o.Node != "*" {
		probe.Node = o.Node
	}
	conf, err := broker.ServerConfig{
		Listen: o.Listen, StoreDir: o.Store,
		WGProvisioner: public[broker.WGProvisioner], HooksProvisioner: public[broker.HooksProvisioner],
		Probes: []broker.ProbeUser{probe}, Notifiers: []string{public[broker.Notifier]},
		Operators: []string{public[broker.Operator]}, Readers: []string{public[broker.Reader]},
	}.Render()
	if err != nil {
		return err
	}
	brokerDir := filepath.Join(o.Dir, keysBroker)
	if err := os.MkdirAll(brokerDir, 0o755); err != nil {
		return err
	}
	// It holds public keys only, and the broker may run as anybody.
	if err := os.WriteFile(filepath.Join(brokerDir, "nats.conf"), conf, 0o644); err != nil {
		return err
	}
	keyring := filepath.Join(o.Dir, keysNotifier, "keyring")
	if err := broker.WriteKeyring(keyring, []broker.KeyringEntry{{Node: o.Node, Key: public[broker.Probe]}}); err != nil {
		return err
	}
	if o.NotifierUID < 0 {
		return nil
	}
	return errors.Join(
		chown(filepath.Join(o.Dir, keysNotifier), o.NotifierUID),
		chown(filepath.Join(o.Dir, keysProvision), o.NotifierUID),
	)
}

// closeDir closes a directory to others: a volume of a container engine begins open.
func closeDir(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm() == 0o700 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// chown gives a directory and the files in it to a user and the group of the same number.
func chown(dir string, uid int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Lchown(filepath.Join(dir, e.Name()), uid, uid); err != nil {
			return err
		}
	}
	return os.Lchown(dir, uid, uid)
}

// ProvisionOptions says where the streams are to be made, and as whom.
type ProvisionOptions struct {
	URL      string
	WGKey    string // seed file; empty logs in as nobody
	HooksKey string // seed file; empty for a broker with a single account
	Wait     time.Duration
}

// DefaultProvisionWait is how long a broker that is just starting is waited for.
const DefaultProvisionWait = 30 * time.Second

// Provision makes the streams and returns what it changed.
func Provision(ctx context.Context, o ProvisionOptions, log *slog.Logger) ([]broker.Change, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Wait, fmt.Errorf("the broker was not ready within %s", o.Wait))
	defer cancel()
	wg, err := provisioner(ctx, o.URL, o.WGKey, broker.WGProvisioner, log)
	if err != nil {
		return nil, err
	}
	defer wg.Close()
	if o.HooksKey == "" {
		return broker.Provision(ctx, wg, nil, log)
	}
	hooks, err := provisioner(ctx, o.URL, o.HooksKey, broker.HooksProvisioner, log)
	if err != nil {
		return nil, err
	}
	defer hooks.Close()
	return broker.Provision(ctx, wg, hooks, log)
}

// provisioner returns a connection that is up.
func provisioner(ctx context.Context, url, key, role string, log *slog.Logger) (*nats.Conn, error) {
	nc, err := broker.Connect(broker.ConnectOptions{URL: url, Name: "wgherald " + role, Role: role, NkeyFile: key}, log)
	if err != nil {
		return nil, err
	}
	if err := connected(ctx, nc); err != nil {
		nc.Close()
		return nil, err
	}
	return nc, nil
}

// connected waits until nc is up.
func connected(ctx context.Context, nc *nats.Conn) error {
	status := nc.StatusChanged(nats.CONNECTED)
	defer nc.RemoveStatusListener(status)
	if nc.IsConnected() {
		return nil
	}
	select {
	case <-status:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
