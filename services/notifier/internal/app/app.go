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

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/admin"
	"github.com/wgherald/wgherald/services/notifier/internal/attempts"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/replay"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
	"github.com/wgherald/wgherald/services/notifier/internal/telemetry"
)

// Run delivers until ctx ends, and then returns nil. A broker that is away is waited for, unless it is the embedded one and cannot start. An error at the
// start leaves nothing running.
func Run(ctx context.Context, cfg config.Config, version string, log *slog.Logger) error {
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	if len(cfg.Hooks) == 0 {
		log.Warn("no hook is configured (WEBHOOK_URL or NOTIFIER_HOOKS), so nothing is delivered")
	}
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
			return err
		}
		verify = ring.verify
		tasks = append(tasks, ring.watch)
	} else {
		log.Warn("events are not verified (NOTIFIER_VERIFY=false): whoever may publish for one node may publish for all")
	}

	nc, err := broker.Connect(connect, log.With("component", "broker"))
	if err != nil {
		return err
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
	tasks = append(tasks, attemptLog.Run)
	var consumers []*consume.Consumer
	var wrong []error
	for _, h := range cfg.Hooks {
		c, err := newConsumer(js, h, version, verify, observers{metrics, attemptLog}, log)
		wrong = append(wrong, err)
		if err != nil {
			continue
		}
		consumers = append(consumers, c)
		config := c.Config
		config.Log = log // without the hook's name, which it adds
		again, err := replay.New(config)
		wrong = append(wrong, err)
		tasks = append(tasks, again.Run)
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	if cfg.Metrics != "" {
		l, err := telemetry.Listen(cfg.Metrics)
		if err != nil {
			return err
		}
		tasks = append(tasks, func(ctx context.Context) error { return metrics.Serve(ctx, l) })
	}
	for _, c := range consumers {
		tasks = append(tasks, c.Run)
	}
	tasks = append(tasks, func(ctx context.Context) error {
		if connected(ctx, nc) != nil {
			return nil
		}
		if err := broker.CheckVersion(nc.ConnectedServerVersion()); err != nil {
			return err
		}
		if ready(ctx, consumers) {
			log.Info("notifier is ready", "version", version, "hooks", len(consumers), "broker", nc.ConnectedAddr())
			leftovers(ctx, js, cfg, log)
		}
		return nil
	})
	g, gctx := errgroup.WithContext(ctx)
	for _, run := range tasks {
		g.Go(func() error { return run(gctx) })
	}
	err = g.Wait()
	log.Info("notifier stopped")
	return err
}

// ready waits until every hook has its place in the stream: from then on, no event passes a hook by. It returns false when ctx ends first.
func ready(ctx context.Context, consumers []*consume.Consumer) bool {
	for _, c := range consumers {
		select {
		case <-c.Ready():
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// leftovers says which hooks are no longer configured and still have a place in a stream. Nothing is deleted: a hook may be missing by mistake.
func leftovers(ctx context.Context, js jetstream.JetStream, cfg config.Config, log *slog.Logger) {
	list, err := admin.FindLeftovers(ctx, js, HookNames(cfg))
	if err != nil && ctx.Err() == nil {
		log.Warn("consumers of hooks that are not configured are not looked for", "error", err)
	}
	for _, l := range list {
		log.Warn("hook is not configured and still has a consumer (notifier prune removes it)",
			"hook", l.Hook, "stream", l.Stream, "backlog", l.Backlog, "in_use", l.InUse)
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

// newConsumer returns the task of a hook.
func newConsumer(js jetstream.JetStream, h config.Hook, version string, verify func([]byte, string) (*events.Event, error),
	observer consume.Observer, log *slog.Logger) (*consume.Consumer, error) {
	filter, err := route.Compile(h.Rules)
	if err != nil {
		return nil, fmt.Errorf("hook %s: %w", h.Name, err)
	}
	format, err := h.Render()
	if err != nil {
		return nil, fmt.Errorf("hook %s: %w", h.Name, err)
	}
	return consume.New(consume.Config{
		JetStream: js,
		Hook: consume.Hook{
			Name:   h.Name,
			Target: h.Target(),
			Filter: filter,
			Format: format,
			Retry:  h.Schedule(), RetryRejected: h.Other4xx, Policy: h.Policy,
		},
		Version: version, Verify: verify, Observer: observer, Log: log,
	})
}
