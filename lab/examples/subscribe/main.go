// Command subscribe is an example to copy from: a service that follows WireGuard peers coming and going, with nats.go and pkg/events alone.
//
//	go run ./lab/examples/subscribe -url nats://127.0.0.1:4222 -nkey reader.nk -keyring keyring
//
// It prints a line for each peer that is connected, and from then on one for each event. On the way it does what every subscriber should:
//
//   - it subscribes before it reads the peers' state from the bucket (events.StateBucket), so that nothing is missed in between.
//   - it verifies. Whoever may publish on wg.peer.* can claim anything; only the probe's signature tells whose event it is (events.Verify).
//   - it deduplicates on the event's id, because delivery is at least once.
//   - it notices holes in the numbering of each source. A subscription like this one sees what is published while it is connected, and only that:
//     for what was missed there is the stream (events.StreamEvents), which a reader may follow with a durable consumer of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "subscribe:", err)
		os.Exit(1)
	}
}

// run prints events to out, and what is wrong with them to problems, until ctx ends.
func run(ctx context.Context, args []string, out, problems io.Writer) error {
	flags := flag.NewFlagSet("subscribe", flag.ContinueOnError)
	url := flags.String("url", nats.DefaultURL, "the broker")
	nkey := flags.String("nkey", "", "file with the seed of a reader's nkey")
	keyring := flags.String("keyring", "", "file that tells which key may sign for which node; without it nothing is verified")
	if err := flags.Parse(args); err != nil {
		return err
	}

	r := newReader()
	if *keyring != "" {
		text, err := os.ReadFile(*keyring)
		if err != nil {
			return err
		}
		if r.ring, err = events.ParseKeyring(string(text)); err != nil {
			return err
		}
	}

	failed := make(chan error, 1)
	options := []nats.Option{
		nats.Name("wgherald-example"),
		nats.CustomInboxPrefix("_INBOX_reader"), // a reader may subscribe to no other inbox
		nats.MaxReconnects(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { // a refused subscription is told here, and nowhere else
			select {
			case failed <- err:
			default:
			}
		}),
	}
	if *nkey != "" {
		login, err := nats.NkeyOptionFromSeed(*nkey)
		if err != nil {
			return fmt.Errorf("nkey file %s: %w", *nkey, err)
		}
		options = append(options, login)
	}
	nc, err := nats.Connect(*url, options...)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", *url, err)
	}
	defer nc.Close()

	live := make(chan *nats.Msg, 1024)
	if _, err := nc.ChanSubscribe("wg.peer.*", live); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	fmt.Fprintln(problems, "subscribed to wg.peer.* at", nc.ConnectedUrlRedacted())
	if err := present(ctx, nc, r, out, problems); err != nil {
		fmt.Fprintln(problems, "the peers' present state is not known:", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case m := <-live:
			e, err := r.read(m.Subject, m.Data, m.Header.Get(events.HeaderSignature))
			if err != nil {
				fmt.Fprintln(problems, "ignored:", err)
				continue
			}
			if e == nil {
				continue // a repetition
			}
			if missing := r.holes.note(e.Source, e.Sequence); missing > 0 {
				fmt.Fprintf(problems, "%d events of %s were missed\n", missing, e.Source)
			}
			fmt.Fprintln(out, line(e))
		}
	}
}

// present prints who is connected. What made a peer's state so is remembered as read: it may come as an event, too.
func present(ctx context.Context, nc *nats.Conn, r *reader, out, problems io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	bucket, err := js.KeyValue(ctx, events.StateBucket)
	if err != nil {
		return err
	}
	states, err := bucket.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return err
	}
	defer func() { _ = states.Stop() }() // the connection may be gone, and the watch with it
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case entry := <-states.Updates():
			if entry == nil {
				return nil // that was all there is
			}
			s, err := r.state(entry.Key(), entry.Value())
			if err != nil {
				fmt.Fprintln(problems, "ignored:", err)
				continue
			}
			if s.Connected {
				fmt.Fprintln(out, stateLine(s))
			}
		}
	}
}

// stateLine is what a human wants to know of a connected peer.
func stateLine(s *events.State) string {
	who := s.Peer.Name
	if who == "" {
		who = s.Peer.PublicKey.String()
	}
	return fmt.Sprintf("%s  %s/%s  %-20s  %s at %s", s.Session.StartedAt.Local().Format(time.DateTime+".000"), s.Node, s.Interface, "is connected", who, s.Peer.Endpoint)
}

// line is what a human wants to know of an event.
func line(e *events.Event) string {
	who := e.Subject
	if p := e.Peer(); p != nil && p.Name != "" {
		who = p.Name
	}
	c := e.Common()
	text := fmt.Sprintf("%s  %s/%s  %-20s  %s", e.Time.Local().Format(time.DateTime+".000"), c.Node, c.Interface, e.Type, who)
	switch d := e.Data.(type) {
	case *events.Connected:
		text += " from " + d.Peer.Endpoint
	case *events.Disconnected:
		text += fmt.Sprintf(": %s, after %v", d.Reason, time.Duration(d.Session.DurationSeconds)*time.Second)
	case *events.Roamed:
		text += fmt.Sprintf(" from %s to %s", d.From, d.To)
	}
	if c.Inferred {
		text += " (found afterwards)"
	}
	return text
}
