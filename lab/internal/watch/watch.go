// Package watch follows the events on NATS as any other service would: with the credential of a reader, and believing only what is signed.
package watch

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/pkg/events"
)

// Message is what came on a subject, or an error that the connection reported.
type Message struct {
	At      time.Time // of arrival
	Subject string
	Header  nats.Header
	Event   *events.Event // nil unless verified
	Err     error         // why it is not a verified event of its subject
}

// Watcher is a subscription to all events. Its ledger holds the messages in order of arrival. It is a live subscription: what is published while
// it is disconnected it never sees.
type Watcher struct {
	ledger.Ledger[Message]

	conn *nats.Conn
	done chan struct{}
}

// backlog is how many messages may wait to be read, far more than a laboratory makes at once: beyond it, the client drops them and says so.
const backlog = 1 << 16

// subjects are all events: each has three tokens.
var subjects = []string{"wg.peer.*", "wg.interface.*", "wg.probe.*"}

// Start subscribes at the server with the given URL, as seen from ns, and returns when the server has confirmed it. The seed is that of the reader's
// nkey. A lost connection is made again, for as long as it takes.
func Start(ns *netns.NS, url string, seed []byte, ring events.Keyring) (*Watcher, error) {
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("nkey of the reader: %w", err)
	}
	public, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("nkey of the reader: %w", err)
	}
	w := &Watcher{done: make(chan struct{})}
	w.conn, err = nats.Connect(url,
		nats.Name("wgherald-lab"),
		nats.Nkey(public, key.Sign),
		nats.SetCustomDialer(ns),
		nats.CustomInboxPrefix("_INBOX_reader"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond),
		nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			w.Add(Message{At: time.Now(), Err: err})
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", url, err)
	}
	// One channel for all: subscriptions with a callback each would be read by a goroutine each, in any order.
	messages := make(chan *nats.Msg, backlog)
	for _, s := range subjects {
		if _, err := w.conn.ChanSubscribe(s, messages); err != nil {
			w.conn.Close()
			return nil, fmt.Errorf("subscribe to %s: %w", s, err)
		}
	}
	go func() {
		for {
			select {
			case m := <-messages:
				w.Add(read(m, ring))
			case <-w.done:
				return
			}
		}
	}()
	if err := w.conn.FlushTimeout(5 * time.Second); err != nil {
		w.Close()
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return w, nil
}

// Connected reports whether the subscription is live right now.
func (w *Watcher) Connected() bool { return w.conn.IsConnected() }

// Close ends the subscription. It is to be called once.
func (w *Watcher) Close() {
	w.conn.Close()
	close(w.done)
}

func read(m *nats.Msg, ring events.Keyring) Message {
	got := Message{At: time.Now(), Subject: m.Subject, Header: m.Header}
	e, err := events.Verify(m.Data, m.Header.Get(events.HeaderSignature), ring)
	switch {
	case err != nil:
		got.Err = err
	case string(e.Type) != m.Subject:
		got.Err = fmt.Errorf("an event of type %s on subject %s", e.Type, m.Subject)
	case m.Header.Get(nats.MsgIdHdr) != e.ID:
		got.Err = errors.New("the message id is not the event's id")
	default:
		got.Event = e
	}
	return got
}
