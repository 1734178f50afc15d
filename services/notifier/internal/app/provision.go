package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

// ProvisionOptions says where the streams are to be made, and as whom.
type ProvisionOptions struct {
	URL        string // one or several, separated by commas
	WGKey      string // seed file; empty logs in as nobody
	HooksKey   string // seed file; empty for a broker with a single account
	ReadersKey string // seed file; empty takes the one beside HooksKey, where it is
	CAFile     string // PEM, instead of the system's roots
	CertFile   string // PEM, with KeyFile
	KeyFile    string
	Wait       time.Duration // for a broker that is just starting, and for all answers
	DryRun     bool          // change nothing, and tell what would be done to each stream
}

// Provision makes the streams, waits until the mirrors among them run, and returns what it changed.
func Provision(ctx context.Context, o ProvisionOptions, log *slog.Logger) ([]broker.Change, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Wait, fmt.Errorf("the broker was not ready within %s", o.Wait))
	defer cancel()
	if beside := broker.IdentityFile(filepath.Dir(o.HooksKey), broker.ReadersProvisioner); o.HooksKey != "" && o.ReadersKey == "" && exists(beside) {
		o.ReadersKey = beside
	}
	var p broker.Provisioners
	logins := []struct {
		nc        **nats.Conn
		key, role string
	}{{&p.WG, o.WGKey, broker.WGProvisioner}, {&p.Hooks, o.HooksKey, broker.HooksProvisioner}, {&p.Readers, o.ReadersKey, broker.ReadersProvisioner}}
	for _, login := range logins { // all files before the first login
		if login.key == "" {
			continue
		}
		if _, err := broker.PublicKey(login.key); err != nil {
			return nil, fmt.Errorf("login as %s: %w", login.role, err)
		}
	}
	for _, login := range logins {
		if login.key == "" && login.nc != &p.WG {
			continue
		}
		nc, err := provisioner(ctx, o, login.key, login.role, log)
		if err != nil {
			return nil, err
		}
		defer nc.Close()
		*login.nc = nc
	}
	changes, err := broker.Provision(ctx, p, o.DryRun, log)
	if err != nil || o.DryRun {
		return changes, err
	}
	return changes, broker.AwaitMirrors(ctx, p)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// provisioner returns a connection that is up.
func provisioner(ctx context.Context, o ProvisionOptions, key, role string, log *slog.Logger) (*nats.Conn, error) {
	nc, err := broker.Connect(ctx, broker.ConnectOptions{
		URL: o.URL, Name: "wgherald-" + role, Role: role, NkeyFile: key, CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile,
	}, log.With("identity", role))
	if err != nil {
		return nil, err
	}
	if err := connected(ctx, nc); err != nil {
		defer nc.Close()
		if why := broker.WhyDown(nc); why != nil {
			err = fmt.Errorf("%w: login as %s: %w", err, role, why)
		}
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
