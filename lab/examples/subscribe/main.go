// Command subscribe is an example to copy from: a service that follows WireGuard peers coming and going, with nats.go and pkg/events alone.
//
//	go run ./lab/examples/subscribe -url nats://127.0.0.1:4222 -nkey reader.nk -keyring keyring
//
// It prints a line for each peer that is connected, and from then on one for each event. On the way it does what every subscriber should:
//
//   - it subscribes before it reads the peers' state from the bucket (events.StateBucket), so that nothing is missed in between.
//   - it verifies. Whoever may publish on wg.peer.* can claim anything; only the probe's signature tells whose event it is (events.Verify).
//   - it deduplicates on the event's id, because delivery is at least once.
//   - it notices holes in the numbering of each source. A subscription sees what is published while it is connected, and only that.
//
// With -durable NAME it misses nothing: it reads the stream (events.StreamEvents) by a consumer of that name, from the oldest event that is stored, and goes on
// where it was when it is started again. docs/subscribing.md tells the same for other languages.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
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
	ca := flags.String("ca", "", "PEM `file` of the authorities that the broker's certificate must lead to; the system's when empty")
	cert := flags.String("cert", "", "PEM `file` of a client certificate, with -key")
	key := flags.String("key", "", "PEM `file` of the client certificate's key")
	durable := flags.String("durable", "", "`name` of a consumer that remembers what was read; without it only what is published from now on")
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

	if (*cert == "") != (*key == "") {
		return errors.New("-cert and -key go together")
	}

	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default: // the first says enough
		}
	}
	options := []nats.Option{
		nats.Name("wgherald-example"),
		nats.CustomInboxPrefix("_INBOX_reader"), // a reader may subscribe to no other inbox
		nats.MaxReconnects(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { fail(err) }), // what is refused is told here, and nowhere else
	}
	if *nkey != "" {
		login, err := nats.NkeyOptionFromSeed(*nkey)
		if err != nil {
			return fmt.Errorf("nkey file %s: %w", *nkey, err)
		}
		options = append(options, login)
	}
	if *ca != "" {
		options = append(options, nats.RootCAs(*ca))
	}
	if *cert != "" {
		options = append(options, nats.ClientCert(*cert, *key))
	}
	nc, err := nats.Connect(*url, options...)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", *url, explain(err))
	}
	defer nc.Close()

	messages := make(chan message, 1024)
	put := func(m message) {
		select {
		case messages <- m:
		case <-ctx.Done():
		}
	}
	if *durable == "" {
		err = live(nc, put)
	} else {
		err = stored(ctx, nc, *durable, put, fail)
	}
	if err != nil {
		return explain(cmp.Or(nc.LastError(), err)) // a refusal says more than the time-out that it leads to
	}
	fmt.Fprintln(problems, "subscribed to wg.peer.* at", nc.ConnectedUrlRedacted())
	if *durable == "" {
		if err := present(ctx, nc, r, out, problems); err != nil {
			fmt.Fprintln(problems, "the peers' present state is not known:", err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return explain(err)
		case m := <-messages:
			e, err := r.read(m.subject, m.body, m.signature)
			switch {
			case err != nil:
				fmt.Fprintln(problems, "ignored:", err)
			case e != nil: // and not a repetition
				if missing := r.holes.note(e.Source, e.Sequence); missing > 0 {
					fmt.Fprintf(problems, "%d events of %s were missed\n", missing, e.Source)
				}
				fmt.Fprintln(out, line(e))
			}
			if err := m.done(); err != nil {
				fmt.Fprintln(problems, "comes again, as its ack was not taken:", err)
			}
		}
	}
}

// explain adds to the broker's words what they mean here.
func explain(err error) error {
	op, _ := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return fmt.Errorf("%w: the broker wants a key (-nkey), or does not know this one: a reader's is reader.nk", err)
	case errors.Is(err, nats.ErrPermissionViolation):
		return fmt.Errorf("%w: this is no reader's key: the one that may read is reader.nk", err)
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("%w: name the CA of the broker's certificate with -ca", err)
	case errors.As(err, new(*tls.CertificateVerificationError)): // says itself what is wrong
	case errors.Is(err, nats.ErrTLS), op != nil && op.Op == "remote error": // with TLS 1.3 a broker refuses after the handshake, or just closes
		return fmt.Errorf("%w: if the broker wants a certificate, name yours with -cert and -key", err)
	}
	return err
}

// message is what was published to a subject. done says that it was dealt with.
type message struct {
	subject, signature string
	body               []byte
	done               func() error
}

// live puts what is published from now on.
func live(nc *nats.Conn, put func(message)) error {
	_, err := nc.Subscribe("wg.peer.*", func(m *nats.Msg) {
		put(message{m.Subject, m.Header.Get(events.HeaderSignature), m.Data, func() error { return nil }})
	})
	if err != nil {
		return err
	}
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		return err
	}
	return nc.LastError() // the broker has answered: what it refused is known
}

// stored puts what is in the stream, and what comes into it, by a durable consumer that is made if there is none. What is not acked within 30 s comes again, so no
// more is pulled at a time than can be dealt with by then.
func stored(ctx context.Context, nc *nats.Conn, name string, put func(message), fail func(error)) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, events.StreamEvents, jetstream.ConsumerConfig{
		Durable:       name,
		FilterSubject: "wg.peer.*",
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       30 * time.Second,
	})
	if err != nil {
		return err
	}
	_, err = consumer.Consume(func(m jetstream.Msg) {
		put(message{m.Subject(), m.Headers().Get(events.HeaderSignature), m.Data(), m.Ack})
	}, jetstream.PullMaxMessages(64), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if errors.Is(err, jetstream.ErrConsumerDeleted) { // all else passes, as a broker that is away does
			fail(err)
		}
	}))
	return err
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
