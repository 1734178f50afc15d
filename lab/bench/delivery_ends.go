package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/pkg/events"
)

// publisher stores events as the probe does.
type publisher struct {
	conn *nats.Conn
	js   jetstream.JetStream
	key  ed25519.PrivateKey
	acks []jetstream.PubAckFuture
}

// inFlight is how many events may wait for the broker's ack.
const inFlight = 256

// openPublisher needs a running broker.
func openPublisher(l *lab.Lab) (*publisher, error) {
	seed, err := l.Seed("probe")
	if err != nil {
		return nil, err
	}
	_, raw, err := nkeys.DecodeSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("nkey of the probe: %w", err)
	}
	p := &publisher{key: ed25519.NewKeyFromSeed(raw)}
	if p.conn, err = l.Connect("probe"); err != nil {
		return nil, err
	}
	p.js, err = jetstream.New(p.conn, jetstream.WithPublishAsyncMaxPending(inFlight))
	return p, err
}

// publish sends an event and returns its body. It does not wait for the broker's ack.
func (p *publisher) publish(e *events.Event) ([]byte, error) {
	body, err := e.Encode()
	if err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: string(e.Type), Data: body, Header: nats.Header{
		nats.MsgIdHdr: {e.ID}, events.HeaderSignature: {events.Sign(body, p.key)},
	}}
	ack, err := p.js.PublishMsgAsync(m, jetstream.WithStallWait(giveUp))
	if err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	p.acks = append(p.acks, ack)
	return body, nil
}

// done waits for all acks and logs out.
func (p *publisher) done(ctx context.Context) error {
	defer p.conn.Close()
	for _, ack := range p.acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("publish: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// mirrored waits until the stream that the hooks read has n events.
func mirrored(ctx context.Context, l *lab.Lab, n uint64) error {
	conn, err := l.Connect("notifier")
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	for {
		s, err := js.Stream(ctx, events.StreamEvents)
		if err != nil {
			return err
		}
		if s.CachedInfo().State.LastSeq >= n {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

const (
	// The paths of hooks that answer 500, and of those that never answer, begin so.
	failing, hanging = "/failing-", "/hanging-"

	idHeader = "Webhook-Id"
)

// receiver takes every request at once, and counts.
type receiver struct {
	address string
	server  http.Server
	letGo   func() // of the requests that hang; new ones do not
	gone    chan struct{}

	mu      sync.Mutex
	tallies map[string]*arrivals // by path
}

// arrivals are what came on a path. The times are to be read after await.
type arrivals struct {
	want        int
	ids         map[string]bool // a repetition does not count
	first, last time.Time       // when a body had been read
	full        chan struct{}   // closed when all that is wanted has come

	sequences map[string]events.Sequence // by peer, the newest; nil when nobody asks for the order
	late      int                        // came after a newer one of the same peer
}

func receive(l net.Listener) *receiver {
	r := &receiver{address: l.Addr().String(), gone: make(chan struct{}), tallies: map[string]*arrivals{}}
	r.letGo = sync.OnceFunc(func() { close(r.gone) })
	r.server.Handler = r
	r.server.ErrorLog = log.New(io.Discard, "", 0)
	go func() { _ = r.server.Serve(l) }()
	return r
}

func (r *receiver) close() {
	r.letGo()
	_ = r.server.Close()
}

// expect counts what comes on a path from now on.
func (r *receiver) expect(path string, n int) *arrivals {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &arrivals{want: n, ids: map[string]bool{}, full: make(chan struct{})}
	r.tallies[path] = t
	return t
}

// await waits until all has come.
func (t *arrivals) await(ctx context.Context) error {
	select {
	case <-t.full:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("not all of %d requests came: %w", t.want, ctx.Err())
	}
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender broke off
	}
	at := time.Now()
	switch {
	case strings.HasPrefix(req.URL.Path, failing):
		w.WriteHeader(http.StatusInternalServerError)
		return
	case strings.HasPrefix(req.URL.Path, hanging):
		select {
		case <-req.Context().Done():
		case <-r.gone:
		}
		panic(http.ErrAbortHandler)
	}
	r.count(req.URL.Path, req.Header.Get(idHeader), body, at)
	w.WriteHeader(http.StatusNoContent)
}

func (r *receiver) count(path, id string, body []byte, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tallies[path]
	if t == nil || t.ids[id] || len(t.ids) == t.want {
		return
	}
	if len(t.ids) == 0 {
		t.first = at
	}
	t.ids[id], t.last = true, at
	if t.sequences != nil {
		if e, err := events.Decode(body); err != nil || e.Sequence.Compare(t.sequences[e.Subject]) < 0 {
			t.late++
		} else {
			t.sequences[e.Subject] = e.Sequence
		}
	}
	if len(t.ids) == t.want {
		close(t.full)
	}
}
