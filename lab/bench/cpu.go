package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/watch"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	aimIdle   = 0.001 // of a core
	aimStream = 1.03  // CPU per GB with the probe, against none

	idleFor = 25 * time.Second
	// settleFor is how long things may calm down before they are measured.
	settleFor = 2 * time.Second
	keepalive = 25 * time.Second // of the connected peers, as most people have it

	// Rounds are short and many: what else the machine does changes from minute to minute, and hits both rounds of a pair alike.
	streamFor    = 2500 * time.Millisecond
	streamPairs  = 17
	streamSettle = 700 * time.Millisecond
)

// idle measures the probe while nothing happens: first with nobody connected, then with everybody.
func (b *bench) idle(ctx context.Context) error {
	alone, err := b.probeShare(ctx)
	if err != nil {
		return err
	}
	for _, c := range b.lab.Clients[:configured] {
		c.Keepalive = keepalive
		if err := c.Connect(ctx); err != nil {
			return err
		}
	}
	connected, err := b.probeShare(ctx)
	if err != nil {
		return err
	}
	share := func(name string, v float64) string {
		return cells(name, fmt.Sprintf("%.3f %%", 100*v), fmt.Sprintf("aim: ≤ %.1f %%", 100*aimIdle), met(v <= aimIdle))
	}
	table(b.out, fmt.Sprintf("CPU of the probe over %v while idle, of one core", idleFor),
		share(fmt.Sprintf("%d peers configured, none connected", configured), alone),
		share(fmt.Sprintf("%d peers connected, keepalive %v", configured, keepalive), connected),
	)
	return nil
}

// probeShare is how much of a core the probe takes from now on.
func (b *bench) probeShare(ctx context.Context) (float64, error) {
	if err := sleep(ctx, settleFor); err != nil {
		return 0, err
	}
	before, err := cpuTime(b.lab.Probe.PID())
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := sleep(ctx, idleFor); err != nil {
		return 0, err
	}
	after, err := cpuTime(b.lab.Probe.PID())
	return float64(after-before) / float64(time.Since(began)), err
}

// cpuTime is the CPU time of a process and all its threads, those that ended too. It is the clock of clock_getcpuclockid(3), which counts nanoseconds;
// /proc/PID/stat counts hundredths of a second, and the aim is two of those in 20 s.
func cpuTime(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED in the kernel's include/linux/posix-timers_types.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// busy is CPU time: since the machine started, or what a round of the stream cost per GB.
type busy struct {
	machine time.Duration // all that was not idle, whoever's it was
	ours    time.Duration // this process (both ends of the tunnel and of the stream) and the services
	probe   time.Duration
	speed   float64 // bytes per second
}

// stream measures the cost of the probe to others: a TCP stream through a tunnel, with the probe and without it, in turn.
func (b *bench) stream(ctx context.Context) (err error) {
	// One tunnel is enough, and others would only send keepalives.
	for _, c := range b.lab.Clients {
		if err := c.Down(); err != nil {
			return err
		}
	}
	c := b.lab.Clients[0]
	if err := errors.Join(b.lab.ReplaceKey(c), c.Connect(ctx)); err != nil {
		return err
	}
	if _, err := b.round(ctx, c, time.Second); err != nil { // warms up
		return err
	}
	var with, without []busy
	for i := range streamPairs {
		for _, probed := range []bool{i%2 == 0, i%2 != 0} { // whoever is first in a pair takes turns
			if err := b.setProbe(ctx, probed); err != nil {
				return err
			}
			r, err := b.round(ctx, c, streamFor)
			if err != nil {
				return err
			}
			if probed {
				with = append(with, r)
			} else {
				without = append(without, r)
			}
		}
	}
	b.printStream(with, without)
	return b.setProbe(ctx, true)
}

// setProbe starts or stops the probe and waits until that is done.
func (b *bench) setProbe(ctx context.Context, on bool) error {
	switch {
	case on && b.lab.Probe == nil:
		from := b.lab.Events.Len()
		if err := b.lab.StartProbe(); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, giveUp)
		defer cancel()
		if _, err := b.lab.Events.WaitFrom(wait, from, func(m watch.Message) bool {
			return m.Event != nil && m.Event.Type == events.ProbeStarted
		}); err != nil {
			return fmt.Errorf("the probe does not start: %w", err)
		}
	case !on && b.lab.Probe != nil:
		if err := b.lab.StopProbe(); err != nil {
			return err
		}
	}
	return sleep(ctx, streamSettle)
}

// round streams for a while and returns what that cost per GB.
func (b *bench) round(ctx context.Context, c *lab.Client, d time.Duration) (busy, error) {
	var listener net.Listener
	if err := b.lab.NS.Do(func() (err error) {
		listener, err = net.Listen("tcp", ":0")
		return err
	}); err != nil {
		return busy{}, err
	}
	defer listener.Close()
	received := make(chan int64, 1)
	go func() {
		var n int64
		if conn, err := listener.Accept(); err == nil {
			n, _ = io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}) // what came before it broke was transferred, too
			conn.Close()
		}
		received <- n
	}()
	conn, err := c.Dial(ctx, listener.Addr().(*net.TCPAddr).Port)
	if err != nil {
		listener.Close()
		<-received
		return busy{}, err
	}
	before, errBefore := b.busy()
	began := time.Now()
	_ = conn.SetWriteDeadline(began.Add(d)) // a failed one shows at the write
	chunk := make([]byte, 1<<20)
	for err == nil && ctx.Err() == nil {
		_, err = conn.Write(chunk)
	}
	took := time.Since(began)
	conn.Close()
	n := <-received
	after, errAfter := b.busy()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	if err := errors.Join(err, errBefore, errAfter, ctx.Err()); err != nil {
		return busy{}, fmt.Errorf("stream: %w", err)
	}
	perGB := func(d time.Duration) time.Duration { return time.Duration(float64(d) * 1e9 / float64(n)) }
	return busy{
		machine: perGB(after.machine - before.machine), ours: perGB(after.ours - before.ours), probe: perGB(after.probe - before.probe),
		speed: float64(n) / took.Seconds(),
	}, nil
}

// busy reads the clocks.
func (b *bench) busy() (now busy, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return now, err
	}
	if now.machine, err = busyTime(string(stat)); err != nil {
		return now, err
	}
	pids := []int{os.Getpid(), b.lab.Notifier.PID()}
	if b.lab.Probe != nil {
		if now.probe, err = cpuTime(b.lab.Probe.PID()); err != nil {
			return now, err
		}
	}
	now.ours = now.probe
	for _, pid := range pids {
		t, err := cpuTime(pid)
		if err != nil {
			return now, err
		}
		now.ours += t
	}
	return now, nil
}

// busyTime is the time that all CPUs together were neither idle nor waiting for a disk nor taken away by the host, by the first line of /proc/stat
// (proc_stat(5)), in hundredths of a second.
func busyTime(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

func (b *bench) printStream(with, without []busy) {
	row := func(name string, of func(busy) float64, format string) string {
		return cells(name, fmt.Sprintf(format, median(values(without, of))), fmt.Sprintf(format, median(values(with, of))))
	}
	ratio := func(name string, of func(busy) float64) string {
		var ratios []float64
		for i := range with {
			ratios = append(ratios, of(with[i])/of(without[i]))
		}
		slices.Sort(ratios)
		m := median(ratios)
		return cells(name, fmt.Sprintf("%.3f", m), fmt.Sprintf("half of the pairs %.3f to %.3f", quantile(ratios, 0.25), quantile(ratios, 0.75)),
			fmt.Sprintf("aim: ≤ %.2f  %s", aimStream, met(m <= aimStream)))
	}
	machine := func(r busy) float64 { return r.machine.Seconds() }
	ours := func(r busy) float64 { return r.ours.Seconds() }
	table(b.out, fmt.Sprintf("CPU for a TCP stream through the tunnel, %d pairs of %v, medians", streamPairs, streamFor),
		cells("", "no probe", "probe"),
		row("busy CPU of the machine, s per GB", machine, "%.2f"),
		row("of it this process and the services, s per GB", ours, "%.2f"),
		row("of it the probe, ms per GB", func(r busy) float64 { return r.probe.Seconds() * 1000 }, "%.1f"),
		row("speed, Gbit/s", func(r busy) float64 { return 8 * r.speed / 1e9 }, "%.2f"),
	)
	table(b.out, "The same, with the probe over without, pair by pair",
		ratio("busy CPU of the machine", machine),
		ratio("this process and the services, where others' work does not show", ours),
		cells("for reference: the ancestor", "1.37 to 1.40"),
	)
}

func values[T any](rounds []T, of func(T) float64) []float64 {
	var list []float64
	for _, r := range rounds {
		list = append(list, of(r))
	}
	return list
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
