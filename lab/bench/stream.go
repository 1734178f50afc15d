package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/pkg/events"
)

// stream follows the stream itself, where package watch follows the subjects: what comes here has been stored, with every write synced as the broker
// is configured. It does so as the provisioner of the probes' account, the only one there who may make a consumer; that one keeps nothing on the disk.
type stream struct {
	ledger.Ledger[stored]

	conn    *nats.Conn
	consume jetstream.ConsumeContext
}

// stored is an event that the stream handed out.
type stored struct {
	event   *events.Event
	stamped time.Time // by the server, just before it writes
	at      time.Time // of arrival here
}

const (
	provisioner      = "wg-provisioner"
	provisionerInbox = "_INBOX_" + provisioner
)

// inHub makes connections in the hub's namespace.
type inHub struct{ lab *lab.Lab }

func (d inHub) Dial(network, address string) (c net.Conn, err error) {
	err = d.lab.NS.Do(func() error {
		c, err = net.DialTimeout(network, address, 2*time.Second)
		return err
	})
	return c, err
}

func openStream(ctx context.Context, l *lab.Lab) (*stream, error) {
	seed, err := l.Seed(provisioner)
	if err != nil {
		return nil, err
	}
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("nkey of the provisioner: %w", err)
	}
	public, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("nkey of the provisioner: %w", err)
	}
	s := &stream{}
	s.conn, err = nats.Connect("nats://"+lab.NATS, nats.Name("wgherald-bench"), nats.Nkey(public, key.Sign), nats.SetCustomDialer(inHub{l}),
		nats.CustomInboxPrefix(provisionerInbox))
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	if err := s.follow(ctx); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("follow the stream %s: %w", events.StreamEvents, err)
	}
	return s, nil
}

func (s *stream) follow(ctx context.Context) error {
	js, err := jetstream.New(s.conn)
	if err != nil {
		return err
	}
	cons, err := js.CreatePushConsumer(ctx, events.StreamEvents, jetstream.ConsumerConfig{
		Name: "bench", DeliverSubject: provisionerInbox + ".bench", DeliverPolicy: jetstream.DeliverNewPolicy,
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return err
	}
	s.consume, err = cons.Consume(func(m jetstream.Msg) {
		at := time.Now()
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		if e, err := events.Decode(m.Data()); err == nil {
			s.Add(stored{e, meta.Timestamp, at})
		}
	})
	return err
}

// connected waits for the event that tells of a peer's connect.
func (s *stream) connected(ctx context.Context, key events.Key) (stored, error) {
	return s.Wait(ctx, func(st stored) bool { return st.event.Type == events.PeerConnected && st.event.Subject == key.String() })
}

func (s *stream) close() {
	s.consume.Stop()
	s.conn.Close()
}
