// Package app puts the notifier together: the broker it may embed, its connection, and one task for each hook (Run). For a broker that is a process of its
// own it makes the keys and the configuration (Keys) and the streams (Provision).
//
// It sees no signal and no environment variable; main does. How an event reaches a hook is in package consume.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/attempts"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/telemetry"
)

// Misconfigured is an error that no waiting heals: somebody has to change what the notifier is told, or a file that it is given.
type Misconfigured struct{ error }

// Unwrap returns what is wrong.
func (m Misconfigured) Unwrap() error { return m.error }

// lasting makes err Misconfigured, unless the next start may find it healed: another process, which may be about to end, has the port, the address is one of an
// interface that comes up later, as WireGuard's do, or the machine is short of something.
func lasting(err error) error {
	for _, passing := range []error{syscall.EADDRINUSE, syscall.EADDRNOTAVAIL, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, passing) {
			return err
		}
	}
	return Misconfigured{err}
}

// Run delivers until ctx ends, and then returns nil. A broker that is away, or too old, is waited for, unless it is the embedded one and cannot start. An error at the
// start leaves nothing running. What comes from reload has the hooks read again, as a change of their files has.
func Run(ctx context.Context, cfg config.Config, version string, reload <-chan struct{}, log *slog.Logger) error {
	connect := broker.ConnectOptions{
		URL: cfg.NATS.URL.Reveal(), Name: "wgherald-notifier", Role: broker.Notifier,
		NkeyFile: cfg.NATS.NkeyFile, CredsFile: cfg.NATS.CredsFile, CAFile: cfg.NATS.CAFile, CertFile: cfg.NATS.CertFile, KeyFile: cfg.NATS.KeyFile,
	}
	if cfg.NATS.Embedded() {
		embedded, err := broker.StartEmbedded(ctx, broker.EmbeddedOptions{StateDir: cfg.State, Listen: cfg.Listen, Log: log.With("component", "broker")})
		if err != nil {
			if ctx.Err() != nil {
				return nil // stopped while it started
			}
			if _, ok := errors.AsType[broker.Unusable](err); ok {
				return lasting(err)
			}
			return err
		}
		defer embedded.Shutdown()
		connect.URL, connect.NkeyFile = embedded.URL(), embedded.IdentityFile(broker.Notifier)
		log.Info("embedded broker listens", "url", embedded.URL(),
			"probe_nkey_file", embedded.IdentityFile(broker.Probe), "reader_nkey_file", embedded.IdentityFile(broker.Reader))
	}

	// Everything is made before the first task starts, so that nothing runs when something is wrong.
	var tasks []func(context.Context) error
	var known consume.Known
	verify := func(body []byte, _ string) (*events.Event, error) { return known.Read(body, "", nil) }
	if cfg.Verify {
		ring, err := openKeyring(cfg.Keyring, log)
		if err != nil {
			return Misconfigured{err}
		}
		verify = ring.verify
		tasks = append(tasks, ring.watch)
	}

	nc, err := broker.Connect(ctx, connect, log.With("component", "broker"))
	if err != nil {
		return Misconfigured{err}
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("broker connection: %w", err)
	}

	metrics := telemetry.New()
	metrics.Gauge("broker_connected", "1 while the broker is connected.", func() float64 {
		if nc.IsConnected() {
			return 1
		}
		return 0
	})
	attemptLog, err := attempts.New(nc, log)
	if err != nil {
		return fmt.Errorf("broker connection: %w", err)
	}
	metrics.Counter("attempts_unlogged_total", "Attempts that are missing in the log of attempts.", func() float64 { return float64(attemptLog.Dropped()) })
	tasks = append(tasks, attemptLog.Run, func(ctx context.Context) error { return (&clocks{log: log}).watch(ctx, js) })
	served := &hooks{
		source: cfg.Source, files: cfg.Files, services: map[string]*service{},
		js: js, version: version, verify: verify, metrics: metrics, observer: observers{metrics, attemptLog}, log: log,
	}
	initial, err := served.prepare(cfg.Hooks, false)
	if err != nil {
		return err
	}
	metrics.Reloaded(true)
	if cfg.Metrics != "" {
		l, err := telemetry.Listen(cfg.Metrics)
		if err != nil {
			return lasting(err)
		}
		tasks = append(tasks, func(ctx context.Context) error { return metrics.Serve(ctx, l) })
	}
	condition := &health{connected: nc.IsConnected, version: nc.ConnectedServerVersion}
	if l, err := listenHealth(cfg.State); err != nil {
		log.Info("notifier health cannot be asked: it needs a socket in the state directory (NOTIFIER_STATE)", "error", err)
	} else {
		tasks = append(tasks, func(ctx context.Context) error { return condition.serve(ctx, l) })
	}
	// What is doubtful is told after what is wrong, which is then the first line.
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	warnNone(cfg.Hooks, log)
	if !cfg.Verify {
		log.Warn("events are not verified (NOTIFIER_VERIFY=false): whoever may publish for one node may publish for all")
	}
	g, gctx := errgroup.WithContext(ctx)
	tasks = append(tasks, func(ctx context.Context) error {
		served.begin(ctx, g, initial)
		return served.watch(ctx, g, reload)
	}, func(ctx context.Context) error {
		if usable(ctx, nc, log) && ready(ctx, initial) {
			condition.ready.Store(true)
			log.Info("notifier is ready", "version", version, "hooks", len(initial), "broker", nc.ConnectedAddr())
			configured := HookNames(cfg)
			leftovers(ctx, js, func(hook string) bool { return !slices.Contains(configured, hook) }, log)
		}
		return nil
	})
	for _, run := range tasks {
		g.Go(func() error { return run(gctx) })
	}
	err = g.Wait()
	attemptLog.Flush()
	log.Info("notifier stopped")
	return err
}

// usable waits until the broker is connected and new enough, and says once why not. It returns false when ctx ends first.
func usable(ctx context.Context, nc *nats.Conn, log *slog.Logger) bool {
	status := nc.StatusChanged(nats.CONNECTED)
	defer nc.RemoveStatusListener(status)
	told := ""
	for {
		if v := nc.ConnectedServerVersion(); v != "" {
			err := broker.CheckVersion(v)
			if err == nil {
				return true
			}
			if v != told {
				told = v
				log.Warn("the broker is too old, nothing is delivered until it is upgraded", "error", err)
			}
		}
		select {
		case <-status:
		case <-ctx.Done():
			return false
		}
	}
}

// HookNames returns the names of the configured hooks.
func HookNames(cfg config.Config) []string {
	var names []string
	for _, h := range cfg.Hooks {
		names = append(names, h.Name)
	}
	return names
}
