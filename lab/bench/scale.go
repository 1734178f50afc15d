package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/wgherald/wgherald/lab/internal/crowd"
	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/pkg/events"
)

// Aims with thousands of peers.
const (
	aimScaleCPU  = 0.02 // of a core
	aimScaleRSS  = 96 * mib
	aimScaleLate = 500 * time.Millisecond // for the 99th percentile
	aimStorm     = 15 * time.Second
)

const (
	scalePeers  = 10_000
	scaleOnline = 1_000
	scaleFor    = 120 * time.Second
	rekey       = 120 * time.Second // of a peer that is online: REKEY_AFTER_TIME of the protocol
	gatherFor   = 30 * time.Second  // that those online take to connect

	rareConnects                 = 60
	rareMinPause, rareMaxPause   = 3 * time.Second, 6 * time.Second
	scaleGiveUp                  = 30 * time.Second // when an event that did not come is missing
	stormFor, stormGiveUp        = 5 * time.Second, 2 * time.Minute
	calm, calmShare, calmTimeout = 3 * time.Second, 0.02, 3 * time.Minute
)

// lookNote goes under the tables whose figures a look at the device decides.
const lookNote = "The device is emulated: a look parses the text of the userspace protocol, where the kernel's is decoded from netlink."

// crowded is a lab whose hub is a crowd, and whose notifier has no hook: it is the broker.
type crowded struct {
	*bench
	crowd  *crowd.Crowd
	stream *stream
}

// crowds measures the parts that need thousands of peers, each in a lab of its own.
func (b *bench) crowds(ctx context.Context, bins *runner.Binaries, parts []string, dir string) error {
	var errs []error
	for _, p := range []struct {
		part    string
		peers   int
		measure func(*crowded, context.Context) error
	}{
		{partScale, scalePeers, (*crowded).scale},
		{partStorm, scalePeers, (*crowded).storm},
		{partFlood, floodPeers, (*crowded).flood},
	} {
		if !slices.Contains(parts, p.part) || ctx.Err() != nil {
			continue
		}
		if err := b.withCrowd(ctx, bins, filepath.Join(dir, p.part), p.peers, p.measure); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.part, err))
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// withCrowd makes such a lab, waits until the probe has nothing left to do, and measures.
func (b *bench) withCrowd(
	ctx context.Context, bins *runner.Binaries, state string, peers int, measure func(*crowded, context.Context) error,
) (err error) {
	if err := os.Mkdir(state, 0o755); err != nil {
		return err
	}
	l, err := lab.New(bins, lab.Options{
		StateDir: state, Log: b.log, ProbeEnv: []string{"PROBE_METRICS=" + probeMetrics}, NotifierEnv: []string{"WEBHOOK_URL="},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.DeleteHub(); err != nil {
		return err
	}
	c := &crowded{bench: &bench{out: b.out, lab: l}}
	if c.crowd, err = crowd.New(l.NS, lab.Interface, peers); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.crowd.Close()) }()
	starting, cancel := context.WithTimeout(ctx, calmTimeout)
	defer cancel()
	if err := l.Start(starting); err != nil {
		return err
	}
	if c.stream, err = openStream(ctx, l); err != nil {
		return err
	}
	defer c.stream.close()
	if err := c.settle(ctx); err != nil {
		return err
	}
	return measure(c, ctx)
}

// settle waits until the probe has published what it found at its start.
func (c *crowded) settle(ctx context.Context) error {
	for end := time.Now().Add(calmTimeout); time.Now().Before(end); {
		used, err := c.account(ctx, func() error { return sleep(ctx, calm) })
		if err != nil {
			return err
		}
		if used.share(used.probe) < calmShare {
			return nil
		}
	}
	return fmt.Errorf("the probe is still busy after %v, with nobody connected", calmTimeout)
}

// used is what a span of time took.
type used struct {
	busy
	took     time.Duration
	resident uint64 // most of the probe, in bytes, once a second
	counts   probeCounts
}

func (u used) share(d time.Duration) float64 { return float64(d) / float64(u.took) }

// meanwhile says who else was busy, for a title.
func (u used) meanwhile() string {
	return fmt.Sprintf("meanwhile the probe took %.1f %% of a core, the broker and the crowd %.0f %%, others %.0f %%",
		100*u.share(u.probe), 100*u.share(u.ours-u.probe), 100*u.share(u.machine-u.ours))
}

// account runs f and returns what that took.
func (c *crowded) account(ctx context.Context, f func() error) (u used, err error) {
	before, errBefore := c.busy()
	counts, errCounts := c.counts(ctx)
	began := time.Now()
	stop, watched := make(chan struct{}), make(chan error, 1)
	go func() { watched <- c.watchSize(&u.resident, stop) }()
	err = f()
	close(stop)
	errSize := <-watched
	u.took = time.Since(began)
	after, errAfter := c.busy()
	now, errNow := c.counts(ctx)
	u.busy = busy{machine: after.machine - before.machine, ours: after.ours - before.ours, probe: after.probe - before.probe}
	u.counts = now.since(counts)
	return u, errors.Join(err, errBefore, errCounts, errSize, errAfter, errNow)
}

// counts asks the probe, which may be busy.
func (c *crowded) counts(ctx context.Context) (probeCounts, error) {
	ctx, cancel := context.WithTimeout(ctx, scaleGiveUp)
	defer cancel()
	return readProbe(ctx, c.lab)
}

// watchSize keeps the largest resident size of the probe until stop is closed.
func (c *crowded) watchSize(most *uint64, stop <-chan struct{}) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		sizes, err := c.probeSizes("VmRSS")
		if err != nil {
			return err
		}
		*most = max(*most, sizes[0])
		select {
		case <-tick.C:
		case <-stop:
			return nil
		}
	}
}

// probeSizes returns fields of the probe's /proc/PID/status, in bytes.
func (c *crowded) probeSizes(names ...string) ([]uint64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.lab.Probe.PID()))
	if err != nil {
		return nil, err
	}
	return sizesIn(string(status), names...)
}

// every calls do for 0, 1, 2 … evenly, each an interval after the one before and at once when it is late, n times or, when n is negative, until ctx ends.
func every(ctx context.Context, interval time.Duration, n int, do func(i int) error) error {
	for i, began := 0, time.Now(); i != n; i++ {
		if wait := time.Until(began.Add(time.Duration(i) * interval)); wait > 0 || i%64 == 0 {
			if err := sleep(ctx, wait); err != nil {
				if n < 0 {
					return nil
				}
				return err
			}
		}
		if err := do(i); err != nil {
			return err
		}
	}
	return nil
}

// rareConnect is one peer's connect and what came of it. A zero time is one that never came.
type rareConnect struct {
	key      events.Key
	sent     time.Time // the packet that makes the session
	detected time.Time // by the probe
	stored   time.Time // handed out by the stream, so after the disk has it
}

// connect lets a peer connect.
func (c *crowded) connect(peer int) (*rareConnect, error) {
	sent, err := c.crowd.Connect(peer)
	return &rareConnect{key: events.Key(c.crowd.Key(peer)), sent: sent}, err
}

// await waits for a connect's event. What does not come before ctx ends stays zero.
func (c *crowded) await(ctx context.Context, r *rareConnect) {
	if s, err := c.stream.connected(ctx, r.key); err == nil {
		r.detected, r.stored = s.event.Data.(*events.Connected).DetectedAt, s.at
	}
}

// scale measures the probe with thousands of peers, a tenth of them online, while they live their life, and how fast it tells of others that come.
func (c *crowded) scale(ctx context.Context) error {
	if err := every(ctx, gatherFor/scaleOnline, scaleOnline, func(i int) error {
		_, err := c.crowd.Connect(i)
		return err
	}); err != nil {
		return err
	}
	living, stop := context.WithCancel(ctx)
	var life sync.WaitGroup
	errs := make(chan error, 2)
	life.Go(func() {
		errs <- every(living, rekey/scaleOnline, -1, func(i int) error {
			_, err := c.crowd.Connect(i % scaleOnline)
			return err
		})
	})
	life.Go(func() {
		errs <- every(living, keepalive/scaleOnline, -1, func(i int) error { return c.crowd.Keepalive(i % scaleOnline) })
	})
	err := c.measureScale(ctx)
	stop()
	life.Wait()
	return errors.Join(err, <-errs, <-errs)
}

func (c *crowded) measureScale(ctx context.Context) error {
	if err := c.settleOnline(ctx); err != nil {
		return err
	}
	alone, err := c.account(ctx, func() error { return sleep(ctx, scaleFor) })
	if err != nil {
		return err
	}
	var connects []*rareConnect
	rare, err := c.account(ctx, func() error {
		for i := range rareConnects {
			if err := sleep(ctx, rareMinPause+rand.N(rareMaxPause-rareMinPause)); err != nil {
				return err
			}
			r, err := c.connect(scaleOnline + i)
			if err != nil {
				return err
			}
			connects = append(connects, r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, scaleGiveUp)
	defer cancel()
	for _, r := range connects {
		c.await(wait, r)
	}
	sizes, err := c.probeSizes("VmHWM")
	if err != nil {
		return err
	}
	share := alone.share(alone.probe)
	table(c.out, fmt.Sprintf("%d peers configured, %d online, over %v; %s\n%s", scalePeers, scaleOnline, scaleFor, alone.meanwhile(), lookNote),
		cells("CPU of the probe, of one core", fmt.Sprintf("%.2f %%", 100*share), fmt.Sprintf("aim: ≤ %.0f %%", 100*aimScaleCPU), met(share <= aimScaleCPU)),
		cells("resident, most", inMiB(alone.resident), fmt.Sprintf("aim: ≤ %d MiB", aimScaleRSS/mib), met(alone.resident <= aimScaleRSS)),
		cells("resident, most since its start", inMiB(sizes[0])),
		cells("looks at the device", fmt.Sprintf("%.0f", alone.counts.looks), lookTime(alone.counts)),
	)
	table(c.out, fmt.Sprintf("%d of the others connect, one in %v to %v; %s", rareConnects, rareMinPause, rareMaxPause, rare.meanwhile()),
		cells("ms", "p50", "p99", "max", "missing", "aim: p99 ≤ 500, none missing"),
		rareRow("first data packet sent → detected by the probe", connects, func(r *rareConnect) time.Time { return r.detected }),
		rareRow("first data packet sent → stored on disk", connects, func(r *rareConnect) time.Time { return r.stored }),
		cells("looks at the device", fmt.Sprintf("%.0f", rare.counts.looks), lookTime(rare.counts)),
	)
	return nil
}

// settleOnline waits until all who are online have been told of.
func (c *crowded) settleOnline(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, scaleGiveUp)
	defer cancel()
	for i := range scaleOnline {
		if _, err := c.stream.connected(wait, events.Key(c.crowd.Key(i))); err != nil {
			return fmt.Errorf("no event tells that peer %d of %d is connected: %w", i, scaleOnline, err)
		}
	}
	return sleep(ctx, settleFor)
}

func lookTime(p probeCounts) string {
	if p.looks == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f ms mean", 1000*p.lookSeconds/p.looks)
}

func inMiB(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/mib) }

func rareRow(name string, connects []*rareConnect, to func(*rareConnect) time.Time) string {
	var took []time.Duration
	for _, r := range connects {
		if at := to(r); !at.IsZero() {
			took = append(took, at.Round(0).Sub(r.sent.Round(0))) // by the wall clock: one of the two went through text
		}
	}
	missing := len(connects) - len(took)
	if len(took) == 0 {
		return cells(name, "", "", "", missing, "nothing came")
	}
	slices.Sort(took)
	p99 := quantile(took, 0.99)
	return cells(name, ms(quantile(took, 0.5)), ms(p99), ms(took[len(took)-1]), missing, met(p99 <= aimScaleLate && missing == 0))
}

// storm measures how the probe takes it that all peers come at once, as after the outage of a network.
func (c *crowded) storm(ctx context.Context) error {
	ready := make([]crowd.Handshake, scalePeers) // before: who sends has no time for it
	for i := range ready {
		var err error
		if ready[i], err = c.crowd.Prepare(i); err != nil {
			return err
		}
	}
	var first, last time.Time
	var t outcome
	u, err := c.account(ctx, func() error {
		first = time.Now()
		if err := every(ctx, stormFor/scalePeers, scalePeers, func(i int) (err error) {
			last, err = c.crowd.Send(ready[i])
			return err
		}); err != nil {
			return err
		}
		for end := last.Add(stormGiveUp); ; {
			if t = outcomeOf(c.stream.All()); len(t.connected) == scalePeers || time.Now().After(end) {
				return nil
			}
			if err := sleep(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return err
	}
	for i := range scalePeers {
		if c.crowd.LastHandshake(i).IsZero() {
			return fmt.Errorf("the packets of peer %d did not reach the device", i)
		}
	}
	if err := sleep(ctx, settleFor); err != nil { // what comes twice may come late
		return err
	}
	t = outcomeOf(c.stream.All())
	lost, after := scalePeers-len(t.connected), t.last.Sub(last)
	table(c.out, fmt.Sprintf("%d peers connect within %v; %s\n%s", scalePeers, last.Sub(first).Round(time.Millisecond), u.meanwhile(), lookNote),
		cells("peers without a connected event", lost, "aim: none", met(lost == 0)),
		cells("connected events beyond one a peer", t.again, "aim: none", met(t.again == 0)),
		cells("holes in the sequence", t.holes, "aim: none", met(t.holes == 0)),
		cells("last packet → last event stored", after.Round(time.Millisecond), fmt.Sprintf("aim: ≤ %v", aimStorm), met(lost == 0 && after <= aimStorm)),
		cells("CPU time of the probe", u.probe.Round(time.Millisecond)),
		cells("resident, most", inMiB(u.resident)),
		cells("looks at the device", fmt.Sprintf("%.0f", u.counts.looks), lookTime(u.counts)),
	)
	return nil
}

// outcome is what a stream says of a storm.
type outcome struct {
	connected map[string]bool // peers of whom it tells that they came
	again     int             // such events beyond the first of a peer
	holes     int             // numbers that are missing in the sequences of their sources
	last      time.Time       // when the last of these events was stored
}

func outcomeOf(all []stored) outcome {
	t := outcome{connected: map[string]bool{}}
	type span struct {
		first, last uint64
		seen        map[uint64]bool
	}
	sources := map[string]*span{}
	for _, s := range all {
		n := s.event.Sequence.N
		of := sources[s.event.Source]
		if of == nil {
			of = &span{first: n, last: n, seen: map[uint64]bool{}}
			sources[s.event.Source] = of
		}
		of.first, of.last, of.seen[n] = min(of.first, n), max(of.last, n), true
		if s.event.Type != events.PeerConnected {
			continue
		}
		if t.connected[s.event.Subject] {
			t.again++
		}
		t.connected[s.event.Subject] = true
		t.last = s.at
	}
	for _, of := range sources {
		t.holes += int(of.last-of.first) + 1 - len(of.seen)
	}
	return t
}
