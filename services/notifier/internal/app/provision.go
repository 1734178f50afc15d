package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/pkg/events"
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
	if o.Node != events.AnyNode {
		if err := events.ValidateName(o.Node); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
	// Before the closed directories below it, which would close it too.
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return err
	}
	public := map[string]string{}
	for _, reader := range []struct {
		dir   string
		names []string
	}{
		{keysProbe, []string{broker.Probe}},
		{keysNotifier, []string{broker.Notifier}},
		{keysOperator, []string{broker.Operator}},
		{keysProvision, []string{broker.WGProvisioner, broker.HooksProvisioner}},
		{keysReader, []string{broker.Reader}},
	} {
		dir := filepath.Join(o.Dir, reader.dir)
		if err := closeDir(dir); err != nil {
			return err
		}
		made, err := broker.EnsureIdentities(dir, reader.names...)
		if err != nil {
			return err
		}
		maps.Copy(public, made)
	}
	probe := broker.ProbeUser{Key: public[broker.Probe]}
	if o.Node != events.AnyNode {
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
	confFile := filepath.Join(brokerDir, "nats.conf")
	if old, err := os.ReadFile(confFile); err != nil || !bytes.Equal(old, conf) {
		if err := os.WriteFile(confFile, conf, 0o644); err != nil {
			return err
		}
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
	URL      string // one or several, separated by commas
	WGKey    string // seed file; empty logs in as nobody
	HooksKey string // seed file; empty for a broker with a single account
	CAFile   string // PEM, instead of the system's roots
	CertFile string // PEM, with KeyFile
	KeyFile  string
	Wait     time.Duration // for a broker that is just starting, and for all answers
}

// Provision makes the streams and returns what it changed.
func Provision(ctx context.Context, o ProvisionOptions, log *slog.Logger) ([]broker.Change, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Wait, fmt.Errorf("the broker was not ready within %s", o.Wait))
	defer cancel()
	wg, err := provisioner(ctx, o, o.WGKey, broker.WGProvisioner, log)
	if err != nil {
		return nil, err
	}
	defer wg.Close()
	if o.HooksKey == "" {
		return broker.Provision(ctx, wg, nil, log)
	}
	hooks, err := provisioner(ctx, o, o.HooksKey, broker.HooksProvisioner, log)
	if err != nil {
		return nil, err
	}
	defer hooks.Close()
	return broker.Provision(ctx, wg, hooks, log)
}

// provisioner returns a connection that is up.
func provisioner(ctx context.Context, o ProvisionOptions, key, role string, log *slog.Logger) (*nats.Conn, error) {
	nc, err := broker.Connect(ctx, broker.ConnectOptions{
		URL: o.URL, Name: "wgherald-" + role, Role: role, NkeyFile: key, CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile,
	}, log)
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
