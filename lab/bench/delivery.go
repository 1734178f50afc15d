package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/pkg/events"
)

// Aims of delivering.
const (
	aimOfBare      = 0.5                     // deliveries a second, of the requests that a bare HTTP client makes
	aimOverBare    = 1500 * time.Microsecond // at p50 from the stream to the webhook, over a bare request
	aimOfAlone     = 1.3                     // time of the healthy hooks among broken ones, of the same hooks alone
	aimDeliveryRSS = 150 * mib
)

const (
	burst       = 20_000
	concurrency = 16 // of a hook, its default

	singles                        = 200
	minSinglePause, maxSinglePause = 20 * time.Millisecond, 60 * time.Millisecond

	healthyHooks, failingHooks, hangingHooks = 80, 10, 10
	eventsForAll                             = 1_000

	longBacklog  = 100_000
	backlogPeers = 1_000
	backlogRate  = 1_000 // deliveries a second
	aimFlat      = 1.2   // memory near the end, of that after a tenth

	sampleEvery    = 250 * time.Millisecond
	deliveryGiveUp = 5 * time.Minute // when deliveries that did not come are missing
)

// deliveries measures the notifier alone: the benchmark publishes in the probe's place, and receives.
func (b *bench) deliveries(ctx context.Context, bins *runner.Binaries, dir string) error {
	var errs []error
	for _, step := range []struct {
		name    string
		measure func(context.Context, *runner.Binaries, string) error
	}{
		{"throughput", b.throughput},
		{"latency", b.singles},
		{"hooks", b.manyHooks},
		{"backlog", b.backlog},
	} {
		if ctx.Err() != nil {
			break
		}
		if err := step.measure(ctx, bins, filepath.Join(dir, partDeliver+"-"+step.name)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.name, err))
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// throughput drains a backlog for one hook, between two rounds of a bare client with the same bodies: as it is by default, and with events taken as they come.
func (b *bench) throughput(ctx context.Context, bins *runner.Binaries, state string) error {
	var verified, trusted drainedOne
	for _, v := range []struct {
		into   *drainedOne
		verify string
	}{{&verified, "true"}, {&trusted, "false"}} {
		if err := b.withHooks(bins, state+"-verify-"+v.verify, "", []string{"/one"}, func(h *hooked) (err error) {
			*v.into, err = h.drainOne(ctx)
			return err
		}, "NOTIFIER_VERIFY="+v.verify); err != nil {
			return err
		}
	}
	row := func(name string, of func(drainedOne) string) string { return cells(name, of(verified), of(trusted)) }
	each := func(cpu time.Duration) string { return fmt.Sprintf("%.0f", 1e6*cpu.Seconds()/burst) }
	table(b.out, fmt.Sprintf("Throughput: %d events of %d bytes, each of another peer, wait for one hook; %d at a time", burst, verified.bytes, concurrency),
		cells("", "verified", "not verified"),
		row("bare client, in the receiver's process: before, after", func(d drainedOne) string { return fmt.Sprintf("%.0f/s, %.0f/s", d.before.rate, d.after.rate) }),
		row("hook", func(d drainedOne) string { return fmt.Sprintf("%.0f/s", d.rate()) }),
		row("hook, of the bare client", func(d drainedOne) string {
			return fmt.Sprintf("%.2f (aim: ≥ %.1f, %s)", d.ofBare(), aimOfBare, met(d.ofBare() >= aimOfBare))
		}),
		row("CPU of bare client and receiver, µs each: before, after", func(d drainedOne) string { return each(d.before.cpu) + ", " + each(d.after.cpu) }),
		row("CPU of notifier and broker, µs each", func(d drainedOne) string { return each(d.cpu) }),
		row("others meanwhile", func(d drainedOne) string { return fmt.Sprintf("%.0f %% of a core", 100*d.others) }),
		row("most resident", func(d drainedOne) string { return fmt.Sprintf("%.1f MiB", float64(d.resident)/mib) }),
	)
	return nil
}

// drainedOne tells how the backlog of one hook went, and the bare client before and after.
type drainedOne struct {
	drained
	before, after bareRound
	bytes         int // of an event
}

func (d drainedOne) rate() float64   { return burst / d.took.Seconds() }
func (d drainedOne) ofBare() float64 { return 2 * d.rate() / (d.before.rate + d.after.rate) }

func (h *hooked) drainOne(ctx context.Context) (d drainedOne, err error) {
	bodies, err := h.backlog(ctx, burst)
	if err != nil {
		return d, err
	}
	for _, body := range bodies {
		d.bytes += len(body)
	}
	d.bytes /= len(bodies)
	if d.before, err = h.bare(ctx, bodies); err != nil {
		return d, err
	}
	if d.drained, err = h.drain(ctx, h.expect("/one", burst)); err != nil {
		return d, err
	}
	d.after, err = h.bare(ctx, bodies)
	return d, err
}

// singles delivers events one at a time, each followed by a bare request with the same body.
func (b *bench) singles(ctx context.Context, bins *runner.Binaries, state string) error {
	return b.withHooks(bins, state, "", []string{"/one"}, func(h *hooked) error {
		if err := h.StartNotifier(ctx); err != nil {
			return err
		}
		stream, err := openStream(ctx, h.Lab)
		if err != nil {
			return err
		}
		defer stream.close()
		p, err := openPublisher(h.Lab)
		if err != nil {
			return err
		}
		var stamped, kept, bare []time.Duration
		for i := range singles {
			s, err := h.single(ctx, p, stream)
			if err != nil {
				return fmt.Errorf("after %d deliveries: %w", i, err)
			}
			stamped, kept, bare = append(stamped, s.stamped), append(kept, s.kept), append(bare, s.bare)
		}
		row := func(name string, took []time.Duration) string {
			slices.Sort(took)
			return cells(name, ms(quantile(took, 0.5)), ms(quantile(took, 0.9)), ms(quantile(took, 0.99)), ms(took[len(took)-1]))
		}
		rows := []string{
			cells("ms", "p50", "p90", "p99", "max"),
			row("stream's time stamp → webhook received", stamped),
			row("stored on disk → webhook received", kept),
			row("bare request begun → received", bare),
		}
		over := quantile(kept, 0.5) - quantile(bare, 0.5)
		rows = append(rows, cells("the second over the third", ms(over), "aim: ≤ "+ms(aimOverBare), met(over <= aimOverBare)))
		table(b.out, fmt.Sprintf("Latency of %d deliveries, one at a time", singles), rows...)
		return nil
	})
}

// single is how long one delivery took, and a bare request with the same body.
type single struct {
	stamped, kept time.Duration // from the broker's time stamp, and from when the stream handed the event out
	bare          time.Duration
}

func (h *hooked) single(ctx context.Context, p *publisher, stream *stream) (took single, err error) {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	if err := sleep(ctx, minSinglePause+rand.N(maxSinglePause-minSinglePause)); err != nil {
		return took, err
	}
	arrived := h.expect("/one", 1)
	e := h.event()
	body, err := p.publish(e)
	if err != nil {
		return took, err
	}
	if err := arrived.await(ctx); err != nil {
		return took, err
	}
	s, err := stream.connected(ctx, e.Peer().PublicKey)
	if err != nil {
		return took, err
	}
	at := arrived.last.Round(0) // the broker's time has no monotonic reading
	took.stamped, took.kept = at.Sub(s.stamped.Round(0)), at.Sub(s.at.Round(0))

	if err := sleep(ctx, minSinglePause+rand.N(maxSinglePause-minSinglePause)); err != nil {
		return took, err
	}
	arrived = h.expect("/bare", 1)
	began := time.Now()
	if err := h.post(ctx, e.ID, body); err != nil {
		return took, err
	}
	if err := arrived.await(ctx); err != nil {
		return took, err
	}
	took.bare = arrived.last.Sub(began)
	return took, nil
}

// manyHooks drains a backlog for healthy hooks, first alone and then among broken ones.
func (b *bench) manyHooks(ctx context.Context, bins *runner.Binaries, state string) error {
	var healthy, broken []string
	for i := range healthyHooks {
		healthy = append(healthy, fmt.Sprintf("/healthy-%d", i))
	}
	for i := range failingHooks {
		broken = append(broken, fmt.Sprintf("%s%d", failing, i))
	}
	for i := range hangingHooks {
		broken = append(broken, fmt.Sprintf("%s%d", hanging, i))
	}
	var results []drained
	for i, paths := range [][]string{healthy, slices.Concat(healthy, broken)} {
		err := b.withHooks(bins, fmt.Sprintf("%s-%d", state, i), "", paths, func(h *hooked) error {
			if _, err := h.backlog(ctx, eventsForAll); err != nil {
				return err
			}
			var expected []*arrivals
			for _, path := range healthy {
				expected = append(expected, h.expect(path, eventsForAll))
			}
			d, err := h.drain(ctx, expected...)
			results = append(results, d)
			return err
		})
		if err != nil {
			return err
		}
	}
	alone, among := results[0], results[1]
	row := func(name string, d drained) string {
		return cells(name, fmt.Sprintf("%.1f s", d.took.Seconds()), fmt.Sprintf("%.1f s", d.half.Seconds()), fmt.Sprintf("%.0f/s", healthyHooks*eventsForAll/d.took.Seconds()),
			fmt.Sprintf("%.1f s", d.cpu.Seconds()), fmt.Sprintf("%.0f %% of a core", 100*d.others), fmt.Sprintf("%.1f MiB", float64(d.resident)/mib))
	}
	// How long all of them take, and not half: a hook that is held up shows there.
	ratio := among.took.Seconds() / alone.took.Seconds()
	table(b.out, fmt.Sprintf("%d healthy hooks, %d events for each; among broken ones: %d that answer 500, %d that never answer",
		healthyHooks, eventsForAll, failingHooks, hangingHooks),
		cells("", "the healthy have all", "half of them", "their deliveries", "CPU of the notifier", "others meanwhile", "most resident"),
		row("alone", alone),
		row("among broken ones", among),
		cells("among, of alone", fmt.Sprintf("%.2f", ratio), fmt.Sprintf("aim: ≤ %.1f", aimOfAlone), met(ratio <= aimOfAlone)),
		cells("memory, among", "", fmt.Sprintf("aim: ≤ %d MiB", aimDeliveryRSS/mib), met(among.resident <= aimDeliveryRSS)),
	)
	return nil
}

// backlog drains a long one at a rate that the notifier can keep.
func (b *bench) backlog(ctx context.Context, bins *runner.Binaries, state string) error {
	return b.withHooks(bins, state, fmt.Sprintf(", rate: %d/s", backlogRate), []string{"/one"}, func(h *hooked) error {
		h.peers = backlogPeers
		if _, err := h.backlog(ctx, longBacklog); err != nil {
			return err
		}
		arrived := h.expect("/one", longBacklog)
		arrived.sequences = map[string]events.Sequence{}
		d, err := h.drain(ctx, arrived)
		if err != nil {
			return err
		}
		n := len(d.samples)
		early, late := median(d.samples[n/10:n/5+1]), median(d.samples[n*9/10:])
		mibs := func(v float64) string { return fmt.Sprintf("%.1f MiB", v/mib) }
		table(b.out, fmt.Sprintf("Backlog of %d events of %d peers, at most %d/s", longBacklog, backlogPeers, backlogRate),
			cells("delivered", fmt.Sprintf("%.0f/s", longBacklog/d.took.Seconds())),
			cells("after a newer one of the same peer", arrived.late, "aim: 0", met(arrived.late == 0)),
			cells("resident after a tenth", mibs(early)),
			cells("resident at the end", mibs(late), fmt.Sprintf("aim: ≤ %.1f of that", aimFlat), met(late <= aimFlat*early)),
			cells("most resident", mibs(float64(d.resident))),
			cells("others meanwhile", fmt.Sprintf("%.0f %% of a core", 100*d.others)),
		)
		return nil
	})
}

// hooked is a lab without a probe, whose notifier has hooks that lead here.
type hooked struct {
	*lab.Lab
	*receiver

	hooksFile string
	paths     []string // of the hooks
	settings  string   // of each hook, in addition
	peers     uint64   // that events are about, one after the other; 0 is another peer for each event
	client    http.Client
	last      events.Sequence
}

// withHooks makes such a lab; env is the notifier's, in addition. The notifier is not running.
func (b *bench) withHooks(bins *runner.Binaries, state, settings string, paths []string, measure func(*hooked) error, env ...string) (err error) {
	if err := os.Mkdir(state, 0o755); err != nil {
		return err
	}
	h := &hooked{hooksFile: filepath.Join(state, "hooks.yaml"), paths: paths, settings: settings, last: events.Sequence{Epoch: uint64(time.Now().UnixMilli())}}
	env = append(env, "WEBHOOK_URL=", "NOTIFIER_HOOKS="+h.hooksFile)
	if h.Lab, err = lab.New(bins, lab.Options{StateDir: state, Log: b.log, NotifierEnv: env}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	var l net.Listener
	if err := h.NS.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		return err
	}
	h.receiver = receive(l)
	defer h.receiver.close()
	transport := &http.Transport{
		MaxIdleConnsPerHost: concurrency,
		DialContext:         func(_ context.Context, network, address string) (net.Conn, error) { return h.NS.Dial(network, address) },
	}
	h.client.Transport = transport
	defer transport.CloseIdleConnections()
	if err := h.writeHooks(paths); err != nil {
		return err
	}
	return measure(h)
}

// writeHooks writes the hooks file. Requests are signed; the secret is none.
func (h *hooked) writeHooks(paths []string) error {
	var text bytes.Buffer
	text.WriteString("hooks:\n")
	for _, path := range paths {
		fmt.Fprintf(&text, "  - {name: %s, url: \"http://%s%s\", concurrency: %d, secret: whsec_%s%s}\n",
			path[1:], h.address, path, concurrency, base64.StdEncoding.EncodeToString(make([]byte, 32)), h.settings)
	}
	if len(paths) == 0 {
		text.WriteString("  []\n")
	}
	return os.WriteFile(h.hooksFile, text.Bytes(), 0o644)
}

// event makes the next event.
func (h *hooked) event() *events.Event {
	h.last.N++
	peer := h.last.N
	if h.peers > 0 {
		peer = 1 + peer%h.peers
	}
	var key events.Key
	binary.BigEndian.PutUint64(key[:], peer)
	now := time.Now()
	return events.New(&events.Connected{
		Common:  events.Common{Node: lab.Node, Interface: lab.Interface, DetectedAt: now},
		Peer:    events.Peer{PublicKey: key},
		Session: events.Session{StartedAt: now, LastHandshakeAt: now},
	}, now, h.last)
}

// backlog leaves events in the stream for hooks that have their place there, and the notifier stopped. It returns the bodies.
func (h *hooked) backlog(ctx context.Context, n int) (bodies [][]byte, err error) {
	// The broker is the notifier's own, so it is started three times: to make the hooks' consumers, to publish, and, by the caller, to deliver.
	for _, step := range []func() error{
		func() error { return h.StartNotifier(ctx) }, h.StopNotifier,
		func() error { return h.writeHooks(nil) }, func() error { return h.StartNotifier(ctx) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	p, err := openPublisher(h.Lab)
	if err != nil {
		return nil, err
	}
	for range n {
		body, err := p.publish(h.event())
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	if err := p.done(ctx); err != nil {
		return nil, err
	}
	if err := mirrored(ctx, h.Lab, uint64(n)); err != nil {
		return nil, err
	}
	return bodies, errors.Join(h.StopNotifier(), h.writeHooks(h.paths))
}

// drained tells how a backlog went.
type drained struct {
	took     time.Duration // from the first arrival to the last
	half     time.Duration // from the first arrival until half of the hooks had all
	cpu      time.Duration // of the notifier with its broker, from when it was ready
	others   float64       // how much of a core those took meanwhile who have nothing to do with it
	resident uint64        // most of the notifier's memory, in bytes
	samples  []float64     // its memory as it went, in bytes, every sampleEvery
}

// drain starts the notifier and waits until all of that has arrived.
func (h *hooked) drain(ctx context.Context, expected ...*arrivals) (d drained, err error) {
	if err := h.StartNotifier(ctx); err != nil {
		return d, err
	}
	clocks := (&bench{lab: h.Lab}).busy
	pid, began := h.Notifier.PID(), time.Now()
	before, errBefore := clocks()
	cpu, err := cpuTime(pid)
	if err := errors.Join(errBefore, err); err != nil {
		return d, err
	}
	wait, cancel := context.WithTimeout(ctx, deliveryGiveUp)
	defer cancel()
	var first time.Time
	var ends []time.Time
	for _, t := range expected {
		for waiting := true; waiting; {
			select {
			case <-t.full:
				waiting = false
			case <-time.After(sampleEvery):
				now, err := memoryOf(pid, "VmRSS")
				if err != nil {
					return d, err
				}
				d.samples = append(d.samples, float64(now))
			case <-wait.Done():
				return d, t.await(wait)
			}
		}
		if first.IsZero() || t.first.Before(first) {
			first = t.first
		}
		ends = append(ends, t.last)
	}
	slices.SortFunc(ends, time.Time.Compare)
	after, errAfter := clocks()
	d.cpu, err = cpuTime(pid)
	if err := errors.Join(errAfter, err); err != nil {
		return d, err
	}
	d.took, d.half, d.cpu = ends[len(ends)-1].Sub(first), quantile(ends, 0.5).Sub(first), d.cpu-cpu
	d.others = float64(after.machine-before.machine-(after.ours-before.ours)) / float64(time.Since(began))
	if d.resident, err = memoryOf(pid, "VmHWM"); err != nil {
		return d, err
	}
	h.letGo() // or the notifier waits for what hangs as long as it may
	return d, h.StopNotifier()
}

// memoryOf returns a field of a process's status, in bytes.
func memoryOf(pid int, field string) (uint64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	sizes, err := sizesIn(string(status), field)
	if err != nil {
		return 0, err
	}
	return sizes[0], nil
}

// bareRound is what a bare client did.
type bareRound struct {
	rate float64       // requests a second
	cpu  time.Duration // of this process, so with the receiver's
}

// bare posts the bodies without any notifier, as many at a time as the hook does.
func (h *hooked) bare(ctx context.Context, bodies [][]byte) (r bareRound, err error) {
	arrived := h.expect("/bare", len(bodies))
	before, err := cpuTime(os.Getpid())
	if err != nil {
		return r, err
	}
	errs := make([]error, concurrency)
	var next atomic.Int64
	var work sync.WaitGroup
	for w := range concurrency {
		work.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(bodies)) && errs[w] == nil; i = next.Add(1) - 1 {
				errs[w] = h.post(ctx, strconv.FormatInt(i, 10), bodies[i])
			}
		})
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return r, fmt.Errorf("bare client: %w", err)
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		return r, err
	}
	if err := arrived.await(ctx); err != nil {
		return r, err
	}
	return bareRound{float64(len(bodies)) / arrived.last.Sub(arrived.first).Seconds(), after - before}, nil
}

// post is one bare request.
func (h *hooked) post(ctx context.Context, id string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.address+"/bare", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", events.ContentType)
	req.Header.Set(idHeader, id)
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
