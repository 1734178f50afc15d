// Package telemetry counts what the probe does and serves the counts to a scraper on the same host.
//
// Labels come from closed sets: no key, address or interface name is ever a label. It is not a log: the normal path is counted, and only the
// exceptional one is logged, by its owner.
package telemetry

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// Metrics are the probe's. Its methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	messages    *prometheus.CounterVec
	initiations *prometheus.CounterVec
	foreign     prometheus.Counter
	overflow    prometheus.Counter
	looks       prometheus.Histogram
	lookErrors  prometheus.Counter
	connected   prometheus.Gauge
	configured  prometheus.Gauge
	facts       *prometheus.CounterVec
	commits     prometheus.Histogram
	published   prometheus.Histogram
	duplicates  prometheus.Counter
	states      prometheus.Counter
	failures    prometheus.Counter
	clashes     prometheus.Counter
}

// Outcome is what an initiation with a right mac1 came to.
type Outcome string

// The outcomes of an initiation.
const (
	Known     Outcome = "known"     // from a configured peer
	Unknown   Outcome = "unknown"   // from the proven holder of another key
	Replayed  Outcome = "replayed"  // its timestamp, or a later one, was seen before
	ClockOff  Outcome = "clock_off" // from another key, and more than ten minutes off our clock
	Unproven  Outcome = "unproven"  // it claims a key, and its sender does not hold it
	Unopened  Outcome = "unopened"  // not sealed for this interface
	Skipped   Outcome = "skipped"   // too many: not opened, and made up for by a look
	Ambiguous Outcome = "ambiguous" // it may be for several interfaces with one key
	Crowded   Outcome = "crowded"   // from another key, while too many of them waited for a look
)

// fast are the buckets of what takes from a tenth of a millisecond to seconds.
var fast = prometheus.ExponentialBuckets(0.0001, 2, 16)

// New returns metrics that start at zero.
func New() *Metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "wgherald", Subsystem: "probe", Name: name, Help: help}
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "wgherald", Subsystem: "probe", Name: name, Help: help, Buckets: fast})
	}
	m := &Metrics{
		registry:    prometheus.NewRegistry(),
		messages:    prometheus.NewCounterVec(opts("messages_total", "WireGuard messages that concern a watched interface."), []string{"kind"}),
		initiations: prometheus.NewCounterVec(opts("initiations_total", "Handshake initiations for a watched interface, by what they came to."), []string{"outcome"}),
		foreign:     prometheus.NewCounter(opts("foreign_messages_total", "Handshake messages whose mac1 fits no watched interface.")),
		overflow:    prometheus.NewCounter(opts("message_overflow_total", "Messages dropped because the probe was busy; a look makes up for them.")),
		looks:       histogram("look_seconds", "Time to read one device."),
		lookErrors:  prometheus.NewCounter(opts("look_errors_total", "Devices that could not be read.")),
		connected:   prometheus.NewGauge(prometheus.GaugeOpts(opts("peers_connected", "Peers with a session."))),
		configured:  prometheus.NewGauge(prometheus.GaugeOpts(opts("peers_configured", "Configured peers."))),
		facts:       prometheus.NewCounterVec(opts("events_total", "Events stored."), []string{"type"}),
		commits:     histogram("commit_seconds", "Time to store a change on disk."),
		published:   histogram("publish_seconds", "Time from sending an event to the broker's ack."),
		duplicates:  prometheus.NewCounter(opts("publish_duplicates_total", "Events that the broker already had: re-sends after a crash or a lost ack.")),
		states:      prometheus.NewCounter(opts("states_published_total", "Peer states put for latecomers.")),
		failures:    prometheus.NewCounter(opts("publish_failures_total", "Sends that the broker did not take.")),
		clashes:     prometheus.NewCounter(opts("node_clashes_total", "Acks for another probe that publishes as the same node.")),
	}
	for _, t := range events.Types() {
		m.facts.WithLabelValues(string(t)) // every type shows from the start, at zero
	}
	for _, o := range []Outcome{Known, Unknown, Replayed, ClockOff, Unproven, Unopened, Skipped, Ambiguous, Crowded} {
		m.initiations.WithLabelValues(string(o))
	}
	m.registry.MustRegister(
		m.messages, m.initiations, m.foreign, m.overflow, m.looks, m.lookErrors, m.connected, m.configured, m.facts, m.commits, m.published,
		m.duplicates, m.states, m.failures, m.clashes,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Gauge adds a value that is read when it is asked for.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "wgherald", Subsystem: "probe", Name: name, Help: help}, read))
}

// Counter adds a count that somebody else keeps.
func (m *Metrics) Counter(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "wgherald", Subsystem: "probe", Name: name, Help: help}, read))
}

// Message counts a message for a watched interface.
func (m *Metrics) Message(kind wgmsg.Kind) { m.messages.WithLabelValues(kind.String()).Inc() }

// Initiation counts an initiation with a right mac1.
func (m *Metrics) Initiation(o Outcome) { m.initiations.WithLabelValues(string(o)).Inc() }

// Foreign counts a handshake message for nobody here.
func (m *Metrics) Foreign() { m.foreign.Inc() }

// Overflow counts a message that was dropped.
func (m *Metrics) Overflow() { m.overflow.Inc() }

// Looked counts a reading of a device.
func (m *Metrics) Looked(took time.Duration) { m.looks.Observe(took.Seconds()) }

// LookFailed counts a device that could not be read.
func (m *Metrics) LookFailed() { m.lookErrors.Inc() }

// Peers sets how many peers there are on all interfaces.
func (m *Metrics) Peers(connected, configured int) {
	m.connected.Set(float64(connected))
	m.configured.Set(float64(configured))
}

// Stored counts an event.
func (m *Metrics) Stored(t events.Type) { m.facts.WithLabelValues(string(t)).Inc() }

// Committed counts a transaction.
func (m *Metrics) Committed(took time.Duration) { m.commits.Observe(took.Seconds()) }

// Published counts an event that the broker has.
func (m *Metrics) Published(took time.Duration, duplicate bool) {
	m.published.Observe(took.Seconds())
	if duplicate {
		m.duplicates.Inc()
	}
}

// StatePublished counts a state that the broker has.
func (m *Metrics) StatePublished() { m.states.Inc() }

// Failed counts what the broker did not take.
func (m *Metrics) Failed() { m.failures.Inc() }

// Clashed counts an ack for another probe that publishes as the same node.
func (m *Metrics) Clashed() { m.clashes.Inc() }

// Listen opens the address that Serve serves on. A socket file that an earlier run left is replaced.
func Listen(network, addr string) (net.Listener, error) {
	if info, err := os.Lstat(addr); network == "unix" && err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("metrics socket %s (PROBE_METRICS): there is a file of that name that is no socket: remove it, or name another path", addr)
		}
		if err := os.Remove(addr); err != nil {
			return nil, fmt.Errorf("metrics socket %s (PROBE_METRICS): %w", addr, err)
		}
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, fmt.Errorf("metrics address (PROBE_METRICS): %w: name another, or end what has it", err)
	}
	return l, nil
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
