// Package telemetry counts what the notifier does and serves the counts.
//
// Labels come from closed sets: the names of hooks, which the operator chose, the classes of packages deliver and deadletter, and the states
// of package consume. No key, address or URL is ever a label.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

// Metrics are the notifier's. It is a consume.Observer.
type Metrics struct {
	registry *prometheus.Registry

	attempts *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	age      *prometheus.HistogramVec
	buried   *prometheus.CounterVec
	pending  *prometheus.GaugeVec
	held     *prometheus.GaugeVec
	inFlight *prometheus.GaugeVec
	circuit  *prometheus.GaugeVec
	withheld *prometheus.CounterVec
	lost     *prometheus.CounterVec
	disabled *prometheus.GaugeVec

	reloaded   prometheus.Gauge
	reloadedAt prometheus.Gauge
}

// New returns metrics of a notifier that has done nothing yet.
func New() *Metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "wgherald", Subsystem: "notifier", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "wgherald", Subsystem: "notifier", Name: name, Help: help, Buckets: buckets}, []string{"hook"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts(opts(name, help)), []string{"hook"})
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		attempts: prometheus.NewCounterVec(opts("attempts_total", "Attempts to deliver, by how they went."), []string{"hook", "class"}),
		latency:  histogram("attempt_seconds", "Time of one attempt.", prometheus.ExponentialBuckets(0.0005, 2, 16)),
		age:      histogram("delivered_age_seconds", "Time from an event's storage in the stream to its delivery.", prometheus.ExponentialBuckets(0.001, 4, 16)),
		buried:   prometheus.NewCounterVec(opts("dead_letters_total", "Dead letters stored, by reason."), []string{"hook", "class"}),
		pending:  gauge("events_pending", "Events in the stream that the hook has not got yet, as of the last one it got."),
		held:     gauge("events_held", "Events that the hook has and that are not delivered yet."),
		inFlight: gauge("attempts_in_flight", "Attempts under way."),
		circuit: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("circuit", "1 for the state of the hook's circuit breaker: closed, open, or testing.")),
			[]string{"hook", "state"}),
		withheld: prometheus.NewCounterVec(opts("events_withheld_total", "Disconnections, and the connections that took them back within the hook's hold."),
			[]string{"hook"}),
		lost:     prometheus.NewCounterVec(opts("events_lost_total", "Events that the stream dropped by age or size before they were delivered."), []string{"hook"}),
		disabled: gauge("hook_disabled", "1 for a hook that answered 410 Gone: it gets nothing until it is enabled again."),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts(opts("config_last_reload_successful",
			"1 when the hooks were right as they were read last, 0 while they are wrong and those before are served."))),
		reloadedAt: prometheus.NewGauge(prometheus.GaugeOpts(opts("config_last_reload_success_timestamp_seconds",
			"When the hooks were read last and were right, in seconds since 1970."))),
	}
	m.registry.MustRegister(m.attempts, m.latency, m.age, m.buried, m.pending, m.held, m.inFlight, m.circuit, m.withheld, m.lost, m.disabled, m.reloaded, m.reloadedAt,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Gauge adds a value that is read when it is asked for.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "wgherald", Subsystem: "notifier", Name: name, Help: help}, read))
}

// Counter adds a count that is read when it is asked for.
func (m *Metrics) Counter(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "wgherald", Subsystem: "notifier", Name: name, Help: help}, read))
}

// Attempted implements consume.Observer.
func (m *Metrics) Attempted(a consume.Attempt) {
	m.attempts.WithLabelValues(a.Hook, string(a.Result.Class)).Inc()
	m.latency.WithLabelValues(a.Hook).Observe(a.Result.Latency.Seconds())
	if a.Result.Class.Verdict() == deliver.Done {
		m.age.WithLabelValues(a.Hook).Observe(a.SinceStored.Seconds())
	}
}

// Buried implements consume.Observer.
func (m *Metrics) Buried(hook string, class deadletter.Class) {
	m.buried.WithLabelValues(hook, string(class)).Inc()
}

// Loaded implements consume.Observer.
func (m *Metrics) Loaded(hook string, l consume.Load) {
	m.pending.WithLabelValues(hook).Set(float64(l.Pending))
	m.held.WithLabelValues(hook).Set(float64(l.Held))
	m.inFlight.WithLabelValues(hook).Set(float64(l.InFlight))
	for _, state := range []consume.Circuit{consume.Closed, consume.Open, consume.Testing} {
		value := 0.0
		if state == l.Circuit {
			value = 1
		}
		m.circuit.WithLabelValues(hook, string(state)).Set(value)
	}
}

// Withheld implements consume.Observer.
func (m *Metrics) Withheld(hook string, events int) {
	m.withheld.WithLabelValues(hook).Add(float64(events))
}

// Lost implements consume.Observer.
func (m *Metrics) Lost(hook string, events uint64) {
	m.lost.WithLabelValues(hook).Add(float64(events))
}

// Reloaded tells that the hooks were read, and whether they were right.
func (m *Metrics) Reloaded(ok bool) {
	m.reloaded.Set(0)
	if ok {
		m.reloaded.Set(1)
		m.reloadedAt.SetToCurrentTime()
	}
}

// Serving tells that a hook is served from now on. What it counts is there from the first, so that an increase shows.
func (m *Metrics) Serving(hook string) {
	m.disabled.WithLabelValues(hook).Set(0)
	m.withheld.WithLabelValues(hook)
	m.lost.WithLabelValues(hook)
}

// Ended tells that a hook is not served any more: what it has to do is not known from now on. What was counted stays.
func (m *Metrics) Ended(hook string) {
	for _, g := range []*prometheus.GaugeVec{m.pending, m.held, m.inFlight, m.circuit, m.disabled} {
		g.DeletePartialMatch(prometheus.Labels{"hook": hook})
	}
}

// Disabled tells that a hook has ended because it is gone.
func (m *Metrics) Disabled(hook string) { m.disabled.WithLabelValues(hook).Set(1) }

// Listen opens the address that Serve serves on: host:port or unix:/path. A socket that an earlier run left is replaced; any other file, and a socket that
// somebody serves, is not.
func Listen(addr string) (net.Listener, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
		if err := removeStale(path); err != nil {
			return nil, fmt.Errorf("metrics socket %s (NOTIFIER_METRICS): %w", path, err)
		}
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, fmt.Errorf("metrics address (NOTIFIER_METRICS): %w: name another, or end what has it", err)
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil // what is in the way, the caller's listen tells
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file of that name that is no socket: remove it, or name another path")
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil
	}
	return os.Remove(path)
}

// Serve answers GET /metrics until ctx ends.
func (m *Metrics) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // a scrape may be cut off
	defer stop()
	if err := server.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
