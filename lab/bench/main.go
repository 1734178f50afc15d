// Command bench measures what wgherald costs and how fast it is, on real WireGuard peers and a real disk, and prints it beside what is aimed at.
//
//	go run ./lab/bench                       # a few peers, as root, in less than five minutes
//	go run ./lab/bench -only latency,memory -connects 50
//	go run ./lab/bench -only scale,storm,flood   # thousands of peers, in ten more
//	go run ./lab/bench -only delivery            # the notifier alone: how fast it delivers, and to how many
//	go run ./lab/bench -soak 30m             # peers that come and go: how fast and how truly that is known
//
// It judges nothing: a machine may be busy or slow, and it says which machine it was. It exits with 1 when something could not be measured, and with 2 when
// it was called wrongly. What it makes (namespaces, devices, processes, a directory for the services' state) is gone when it ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
)

// The choices of -only.
const (
	partLatency = "latency"
	partCPU     = "cpu"
	partMemory  = "memory"
	partScale   = "scale"
	partStorm   = "storm"
	partFlood   = "flood"
	partDeliver = "delivery"
	partSoak    = "soak" // by -soak, and alone
)

var (
	defaultParts = []string{partLatency, partCPU, partMemory}
	allParts     = append(slices.Clone(defaultParts), partScale, partStorm, partFlood, partDeliver)
)

func main() {
	lab.Apart()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", strings.Join(defaultParts, ","), "what to measure, comma separated, out of "+strings.Join(allParts, ","))
	connects := flags.Int("connects", 200, "fresh connects for the latency")
	dir := flags.String("dir", "/var/tmp", "where the services keep their state meanwhile; a disk, open to every user")
	soak := flags.Duration("soak", 0, "nothing but this: let peers come and go for so long, 3m or more")
	seed := flags.Uint64("seed", 1, "of the randomness of -soak")
	verbose := flags.Bool("v", false, "show what the services log, on standard error")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	parts := strings.Split(*only, ",")
	for _, p := range parts {
		if !slices.Contains(allParts, p) {
			fmt.Fprintf(stderr, "bench: -only has %q, it takes a choice of %s\n", p, strings.Join(allParts, ","))
			return 2
		}
	}
	if *connects < 1 || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "bench: -connects must be positive, and there are no other arguments")
		return 2
	}
	if *soak != 0 {
		if *soak < minSoak {
			fmt.Fprintf(stderr, "bench: -soak takes %v or more\n", minSoak)
			return 2
		}
		parts = []string{partSoak}
	}
	if err := netns.Available(); err != nil {
		fmt.Fprintf(stderr, "bench: nothing can be measured here: %v\n", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	b := &bench{out: stdout, connects: *connects, sends: map[*lab.Client]sends{}, progress: stderr, soakFor: *soak, seed: *seed}
	if *verbose {
		b.log = stderr
	}
	if err := b.run(ctx, parts, *dir); err != nil {
		fmt.Fprintf(stderr, "bench: could not be measured:\n%v\n", err)
		return 1
	}
	return 0
}

const (
	// configured is how many peers there are while the probe's idle CPU is measured.
	configured = 5
	// batch is how many peers connect after each other before all get new keys; one more goes ahead, see latency.
	batch = 10

	probeMetrics = "127.0.0.1:9100" // in the hub's namespace
)

// bench measures on one lab, one part after the other.
type bench struct {
	out      io.Writer
	log      io.Writer // of the services; nil for none
	connects int
	lab      *lab.Lab

	progress io.Writer // of the soak
	soakFor  time.Duration
	seed     uint64

	mu    sync.Mutex
	sends map[*lab.Client]sends
}

func (b *bench) run(ctx context.Context, parts []string, dir string) (err error) {
	state, err := os.MkdirTemp(dir, "wgherald-bench-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	if err := os.Chmod(state, 0o755); err != nil { // the notifier is not root
		return err
	}
	m, err := describe(state)
	if err != nil {
		return err
	}
	fmt.Fprintln(b.out, m)

	bins, err := runner.Build(ctx)
	if err != nil {
		return err
	}
	defer bins.Close()
	if err := b.crowds(ctx, bins, parts, state); err != nil {
		return err
	}
	if slices.Contains(parts, partDeliver) {
		if err := b.deliveries(ctx, bins, state); err != nil {
			return fmt.Errorf("%s: %w", partDeliver, err)
		}
	}
	if !slices.ContainsFunc(parts, func(p string) bool { return p == partSoak || slices.Contains(defaultParts, p) }) {
		return nil
	}
	clients := batch + 1
	if slices.Contains(parts, partSoak) {
		clients = soakPeers
	}
	b.lab, err = lab.New(bins, lab.Options{
		Clients: clients, StateDir: state, Log: b.log, ProbeEnv: []string{"PROBE_METRICS=" + probeMetrics}, OnSend: b.sent,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.Close()) }()
	for _, c := range b.lab.Clients[configured:] {
		if err := b.lab.Remove(c); err != nil {
			return err
		}
	}
	if err := b.lab.Start(ctx); err != nil {
		return err
	}

	// The order matters: at first nobody is connected, and the last measurement starts the probe again and again.
	var errs []error
	for _, step := range []struct {
		part, name string
		measure    func(context.Context) error
	}{
		{partSoak, "soak", b.soak},
		{partCPU, "CPU of the probe while idle", b.idle},
		{partLatency, "latency", b.latency},
		{partMemory, "memory", b.memory},
		{partCPU, "CPU for a stream", b.stream},
	} {
		if !slices.Contains(parts, step.part) || ctx.Err() != nil {
			continue
		}
		if err := step.measure(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.name, err))
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// sends are the times at which a client sent the packets of its first handshake.
type sends struct{ initiation, data wgpeer.Sent }

// sent is called by WireGuard's goroutines.
func (b *bench) sent(c *lab.Client, s wgpeer.Sent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.sends[c]
	switch {
	case s.Kind == wgpeer.Initiation && was.initiation.At.IsZero():
		was.initiation = s
	case s.Kind == wgpeer.FirstData && was.data.At.IsZero():
		was.data = s
	}
	b.sends[c] = was
}

// forget makes the client's next handshake its first.
func (b *bench) forget(c *lab.Client) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.sends, c)
}

func (b *bench) sendsOf(c *lab.Client) sends {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sends[c]
}
