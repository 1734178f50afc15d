// Package app puts the probe together: it opens what the other packages need, runs them as tasks, and ends them in order.
//
// It sees no signal and no environment variable; main does. The rules are elsewhere: what is a fact (tracker), when to look (tracker.Schedule), how it
// lasts (outbox) and travels (publish).
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/capture"
	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/health"
	"github.com/wgherald/wgherald/services/probe/internal/names"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/privilege"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/wgstate"
)

// Misconfigured is an error that no waiting heals: somebody has to change how the probe is started.
type Misconfigured struct{ error }

// Unwrap returns what is wrong.
func (m Misconfigured) Unwrap() error { return m.error }

// lasting makes err Misconfigured, unless the next start may find it healed: another process, which may be about to end, has the file or the port, or the
// machine is short of something.
func lasting(err error) error {
	for _, passing := range []error{
		outbox.ErrInUse, syscall.EADDRINUSE, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE,
	} {
		if errors.Is(err, passing) {
			return err
		}
	}
	return Misconfigured{err}
}

// Run watches until ctx ends. An unreachable broker is no error; a state directory that cannot be written is, at once.
//
// It opens first what the rights of its start may be needed for, then gives up all that it does not need, and only then talks to anybody.
func Run(ctx context.Context, cfg config.Config, version string, log *slog.Logger) (err error) {
	if err := privilege.Check(); err != nil {
		return Misconfigured{err}
	}
	ob, err := outbox.Open(cfg.State, time.Now())
	if err != nil {
		return lasting(fmt.Errorf("%w (%s)", err, stateRemedy(cfg.State, err)))
	}
	defer func() { err = errors.Join(err, ob.Close()) }()
	saved, err := ob.Load()
	if err != nil {
		return lasting(fmt.Errorf("%w: use the probe that wrote it, or move it away", err))
	}

	identity, err := publish.LoadIdentity(cfg.SeedFile())
	if err != nil {
		return Misconfigured{err}
	}
	var scrapes net.Listener
	if cfg.Metrics.Network != "" {
		if scrapes, err = telemetry.Listen(cfg.Metrics.Network, cfg.Metrics.Addr); err != nil {
			return lasting(err)
		}
		defer scrapes.Close()
	}
	// What is wrong with what it is told is the first line of the log.
	log.Info("probe starts", "version", version, "node", cfg.Node, "public_key", identity.Public, "state", cfg.State)
	if identity.Made {
		log.Info("a new identity was made: readers verify this node's events with its public key",
			"keyring_line", cfg.Node+" "+identity.Public)
	}

	wg, err := wgstate.New(log.With("component", "wgstate"), cfg.Interfaces)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wg.Close()) }()

	metrics := telemetry.New()
	metrics.Gauge("events_waiting", "Events stored and not yet acked by the broker.", func() float64 { return float64(ob.Depth()) })

	trigger := events.TriggerPackets
	listener, err := capture.Open()
	if err != nil {
		// Better late than not at all: without packets, the probe asks.
		trigger = events.TriggerSampling
		log.Warn("cannot see packets, so devices are asked every second instead", "error", err)
	} else {
		defer func() { err = errors.Join(err, listener.Close()) }()
		metrics.Counter("capture_dropped_total", "Packets that passed the filter and found the queue full.", captured(listener, log, func(s capture.Stats) uint64 { return s.Dropped }))
		metrics.Counter("capture_malformed_total", "Packets that passed the filter and were no WireGuard message.", captured(listener, log, func(s capture.Stats) uint64 { return s.Malformed }))
	}

	questions, err := health.Listen(cfg.State)
	if err != nil {
		log.Warn("nobody can ask for the probe's health", "error", err)
	} else {
		defer questions.Close()
	}
	boot := bootID(log)

	held, err := privilege.Drop(files(cfg))
	if err != nil {
		return fmt.Errorf("give up what is not needed: %w", err)
	}
	log.Info("privileges are given up", "capabilities", held.Capabilities, "bounding", held.Bounding, "no_new_privs", true, "landlock", held.Landlock)

	var denied atomic.Int32 // what the broker refuses (publish.Denied), and has taken none of since
	nc, reconnected, err := publish.Connect(ctx, cfg.NATS, cfg.Node, identity, metrics.Clashed, func(d publish.Denied) {
		if d == publish.DeniesEvents || denied.Load() == 0 { // who may not tell events is not asked what node it is
			denied.Store(int32(d))
		}
	}, log)
	if err != nil {
		return Misconfigured{err}
	}
	defer nc.Close()
	metrics.Gauge("broker_connected", "1 while the broker is connected.", func() float64 {
		if nc.IsConnected() {
			return 1
		}
		return 0
	})
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("broker connection: %w", err)
	}
	publisher := publish.New(publish.JetStream(js), ob, identity.Key, reconnected, taken{metrics, &denied}, log.With("component", "publish"))

	e := newEngine(engineConfig{
		cfg: cfg, version: version, publicKey: identity.Public, bootID: boot, trigger: trigger,
		saved: saved, outbox: ob, devices: wg, names: names.New(cfg.Names), metrics: metrics, log: log,
	})

	if listener != nil {
		e.lost = listener.Lost()
	}

	g, gctx := errgroup.WithContext(ctx)
	// The publisher outlives the engine, whose last commit says that the probe stopped.
	publishCtx, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return publisher.Run(publishCtx) })
	g.Go(func() error {
		defer stopPublishing()
		return e.run(ctx, gctx)
	})
	g.Go(func() error { return wg.Watch(gctx, e.devicesChanged) })
	if listener != nil {
		g.Go(func() error { return listener.Run(gctx, e.ear.hear) })
	}
	if scrapes != nil {
		g.Go(func() error { return metrics.Serve(gctx, scrapes) })
	}
	if questions != nil {
		g.Go(func() error {
			return health.Serve(gctx, questions, func() health.Report {
				ctx, cancel := context.WithTimeout(gctx, answerIn)
				defer cancel()
				return report(ctx, e, nc.IsConnected(), publish.Denied(denied.Load()), ob.Depth())
			})
		})
	}
	err = g.Wait()
	log.Info("probe stopped", "events_waiting", ob.Depth())
	return err
}

// taken are metrics that tell when the broker takes again what it has refused.
type taken struct {
	*telemetry.Metrics
	denied *atomic.Int32
}

func (t taken) Published(took time.Duration, duplicate bool) {
	t.denied.CompareAndSwap(int32(publish.DeniesEvents), 0)
	t.Metrics.Published(took, duplicate)
}

func (t taken) StatePublished() {
	t.denied.Store(0)
	t.Metrics.StatePublished()
}

// bootID returns what identifies the host's current boot, or nothing where that is hidden.
func bootID(log *slog.Logger) string {
	const file = "/proc/sys/kernel/random/boot_id"
	id, err := os.ReadFile(file)
	if err != nil {
		log.Warn("cannot tell this boot of the host from another, so after a restart ages are reckoned by the wall clock", "error", err)
	}
	return strings.TrimSpace(string(id))
}

// captured returns a reader of one of the listener's counts. A count that cannot be read is zero in that scrape, and told in the log.
func captured(l *capture.Listener, log *slog.Logger, pick func(capture.Stats) uint64) func() float64 {
	return func() float64 {
		s, err := l.Stats()
		if err != nil {
			log.Warn("capture counts", "error", err)
		}
		return float64(pick(s))
	}
}
