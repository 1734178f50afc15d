package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/pkg/events"
)

// Aims, in the words of the people who wait.
const (
	aimMedian = 5 * time.Millisecond
	aimLate   = 15 * time.Millisecond // for the 99th percentile; what takes longer is late
)

const (
	// Between two connects there is a pause, random so that they meet every phase of what goes on in the background.
	minPause, maxPause = 150 * time.Millisecond, 350 * time.Millisecond
	// giveUp is when an event that did not come is missing.
	giveUp = 5 * time.Second
	// pingTimeout is long enough for WireGuard's second try, after 5 s.
	pingTimeout = 12 * time.Second
)

// connect is one fresh connect and what came of it. A zero time is one that never came.
type connect struct {
	key        events.Key
	initiation time.Time // handed to the client's socket
	handshake  time.Time // as the hub's device reports it

	live    time.Time // at a subscriber
	stamped time.Time // by the broker, before it writes to the disk
	stored  time.Time // handed out by the stream, so after the disk has it
	hook    time.Time // at the sink, when the request's body was read
}

// latency measures fresh connects: peers that are configured and known to the probe, and never had a session. All clocks are this machine's.
//
// A probe learns of a new peer at its next look. Were that the look that finds it connected, too, its added event would go first, so a batch of
// peers is configured at once, and one that is not counted connects ahead of the others and causes that look.
func (b *bench) latency(ctx context.Context) error {
	stream, err := openStream(ctx, b.lab)
	if err != nil {
		return err
	}
	defer stream.close()
	before, err := b.busy()
	if err != nil {
		return err
	}
	began := time.Now()
	var connects []*connect
	var spent probeCounts
	for len(connects) < b.connects {
		n := min(batch, b.connects-len(connects))
		made, counts, err := b.connectBatch(ctx, b.lab.Clients[0], b.lab.Clients[1:1+n])
		if err != nil {
			return fmt.Errorf("after %d connects: %w", len(connects), err)
		}
		connects = append(connects, made...)
		spent.add(counts)
	}
	after, err := b.busy()
	if err != nil {
		return err
	}
	others := float64(after.machine-before.machine-(after.ours-before.ours)) / float64(time.Since(began))
	b.collect(ctx, connects, stream)
	b.printLatency(connects, spent, others)
	return nil
}

// connectBatch gives all clients new keys and connects them one after the other. The counts are those of the clients without the scout.
func (b *bench) connectBatch(ctx context.Context, scout *lab.Client, clients []*lab.Client) (made []*connect, counts probeCounts, err error) {
	from := b.lab.Events.Len()
	all := append([]*lab.Client{scout}, clients...)
	for _, c := range all {
		if err := errors.Join(c.Down(), b.lab.ReplaceKey(c)); err != nil {
			return nil, counts, err
		}
		c.Keepalive = 0
		if err := c.Up(); err != nil {
			return nil, counts, err
		}
		b.forget(c)
	}
	if err := b.ping(ctx, scout); err != nil {
		return nil, counts, err
	}
	wait, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	for _, c := range all {
		if _, err := b.lab.Published(wait, from, events.PeerAdded, c.PublicKey().String()); err != nil {
			return nil, counts, err
		}
	}
	if err := pause(ctx); err != nil {
		return nil, counts, err
	}
	before, err := readProbe(ctx, b.lab)
	if err != nil {
		return nil, counts, err
	}
	for _, c := range clients {
		if err := pause(ctx); err != nil {
			return nil, counts, err
		}
		if err := b.ping(ctx, c); err != nil {
			return nil, counts, err
		}
		made = append(made, &connect{key: c.PublicKey(), initiation: b.sendsOf(c).initiation.At})
	}
	if err := pause(ctx); err != nil {
		return nil, counts, err
	}
	after, err := readProbe(ctx, b.lab)
	return made, after.since(before), err
}

func (b *bench) ping(ctx context.Context, c *lab.Client) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return c.Ping(ctx)
}

func pause(ctx context.Context) error {
	select {
	case <-time.After(minPause + rand.N(maxPause-minPause)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// collect finds out what came of each connect. What is not there when the last one has had its time is missing.
func (b *bench) collect(ctx context.Context, connects []*connect, stream *stream) {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	for _, c := range connects {
		if m, err := b.lab.Published(ctx, 0, events.PeerConnected, c.key.String()); err == nil {
			c.live, c.handshake = m.At, m.Event.Data.(*events.Connected).Session.StartedAt
		}
		if d, err := b.lab.Delivered(ctx, 0, events.PeerConnected, c.key.String()); err == nil {
			c.hook = d.At
		}
		if s, err := stream.connected(ctx, c.key); err == nil {
			c.stamped, c.stored = s.stamped, s.at
		}
	}
}

// printLatency prints the tables. Others is how much of a core those took who have nothing to do with it, the kernel's own threads among them.
func (b *bench) printLatency(connects []*connect, spent probeCounts, others float64) {
	rows := []string{cells("ms", "p50", "p90", "p99", "max", "late", "missing", "aim: p50 ≤ 5, p99 ≤ 15, none late")}
	initiation := func(c *connect) time.Time { return c.initiation }
	handshake := func(c *connect) time.Time { return c.handshake }
	rows = append(rows, latencyRow("initiation sent → last handshake, which is WireGuard's own", connects, initiation, handshake, false))
	for _, from := range []struct {
		name string
		at   func(*connect) time.Time
	}{{"initiation sent", initiation}, {"last handshake", handshake}} {
		for _, to := range []struct {
			name  string
			at    func(*connect) time.Time
			aimed bool
		}{
			{"live subscriber", func(c *connect) time.Time { return c.live }, false},
			{"stream's time stamp", func(c *connect) time.Time { return c.stamped }, false},
			{"stored on disk", func(c *connect) time.Time { return c.stored }, true},
			{"webhook received", func(c *connect) time.Time { return c.hook }, true},
		} {
			rows = append(rows, latencyRow(from.name+" → "+to.name, connects, from.at, to.at, to.aimed))
		}
	}
	rows = append(rows, cells("for reference: the ancestor, nothing stored, nothing signed", "9.1", "", "14.2", "", "0.7 %", "", "its default mode: p50 1,023"))
	table(b.out, fmt.Sprintf("Latency of %d fresh connects; late: more than %s ms; meanwhile others took %.0f %% of a core",
		len(connects), ms(aimLate), 100*others), rows...)

	n := float64(len(connects))
	table(b.out, "What the probe did for it",
		cells("looks at the device per connect", fmt.Sprintf("%.1f", spent.looks/n)),
		cells("one look", fmt.Sprintf("%.2f ms mean", 1000*spent.lookSeconds/spent.looks)),
		cells("one transaction of the outbox", fmt.Sprintf("%.2f ms mean", 1000*spent.commitSeconds/spent.commits)),
		cells("one event, from send to the broker's ack", fmt.Sprintf("%.2f ms mean", 1000*spent.publishSeconds/spent.publishes)),
	)
}

func latencyRow(name string, connects []*connect, from, to func(*connect) time.Time, aimed bool) string {
	var took []time.Duration
	late, missing := 0, 0
	for _, c := range connects {
		if from(c).IsZero() || to(c).IsZero() {
			missing++
			continue
		}
		// Times that went through text or the broker have no monotonic reading, so none is used.
		d := to(c).Round(0).Sub(from(c).Round(0))
		took = append(took, d)
		if d > aimLate {
			late++
		}
	}
	if len(took) == 0 {
		return cells(name, "", "", "", "", 0, missing, "nothing came")
	}
	slices.Sort(took)
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	verdict := ""
	if aimed {
		verdict = met(p50 <= aimMedian && p99 <= aimLate && late+missing == 0)
	}
	return cells(name, ms(p50), ms(quantile(took, 0.9)), ms(p99), ms(took[len(took)-1]), late, missing, verdict)
}
