package consume

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

// headerPin is set by the server on each message for a pinned client: who owns the consumer.
const headerPin = "Nats-Pin-Id"

// errGone reports that the consumer does not exist any more.
var errGone = errors.New("consumer is gone")

// work is one message and what it says.
type work struct {
	msg    jetstream.Msg
	meta   *jetstream.MsgMetadata
	event  *events.Event      // nil when the message is no acceptable event
	letter *deadletter.Letter // then why

	key      string    // of its place in the queue
	until    time.Time // of a held disconnection, by the broker's clock: a connection stored by then makes neither of them news
	unwanted bool      // by the filter; it has a place all the same, because it may end, or begin, a hold
}

func (w work) seq() uint64 { return w.meta.Sequence.Stream }

// reading is a message that is being read.
type reading struct {
	msg  jetstream.Msg
	work chan work
}

// pulled tells that a pull request has ended.
type pulled struct {
	credit bool  // it was one for messages, not one for the pin
	err    error // ErrPinIDMismatch, errGone, or nil: any other failure has been waited out
}

// puller asks the server for messages, one request at a time. One request at a time keeps the deliveries in the order of the consumer's numbering,
// which is what shows a lost one.
type puller struct {
	c      *Consumer
	cons   jetstream.Consumer
	status chan nats.Status // of the connection: CONNECTED again

	credit chan int // how many messages may come; one answer in ended for each
	out    chan work
	ended  chan pulled

	pinned bool
}

// wait is how long a request waits at the server. The server counts PinnedTTL from the last request, so there must be several within it. Without the pin
// it is short: a server (2.15) that finds the request of a notifier that has gone gives it the pin, and nobody gets anything for PinnedTTL.
func (p *puller) wait() time.Duration {
	if !p.pinned {
		return min(standbyWait, p.c.pinnedTTL/3)
	}
	return p.c.pinnedTTL / 3
}

func (p *puller) run(ctx context.Context) {
	nc := p.c.JetStream.Conn()
	p.status = nc.StatusChanged(nats.CONNECTED)
	defer nc.RemoveStatusListener(p.status)
	for {
		var done pulled
		select {
		case <-ctx.Done():
			return
		case n := <-p.credit:
			done = pulled{credit: true, err: p.fetch(ctx, n)}
		case <-time.After(p.wait()):
			if !p.pinned {
				continue
			}
			done = pulled{err: p.keepPin(ctx)}
		}
		if errors.Is(done.err, jetstream.ErrPinIDMismatch) {
			p.pinned = false
		}
		select {
		case p.ended <- done:
		case <-ctx.Done():
			return
		}
	}
}

// fetch takes up to n messages and returns when they have come, when the request has expired, or when it failed.
func (p *puller) fetch(ctx context.Context, n int) error {
	if err := p.connected(ctx); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.wait()*10/9) // FetchContext leaves a tenth, at most 1 s, to the way back
	defer cancel()
	batch, err := p.cons.Fetch(n, jetstream.FetchContext(ctx), jetstream.FetchPriorityGroup(group), jetstream.FetchHeartbeat(p.wait()/5))
	if err != nil {
		return p.failed(ctx, err)
	}
	msgs, status := batch.Messages(), p.status
	// Signatures are checked side by side, and what they are on is handed on in its order.
	toRead, inOrder := make(chan reading, n), make(chan reading, n)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer close(inOrder)
	defer close(toRead)
	for range min(n, runtime.GOMAXPROCS(0)) {
		helpers.Go(func() {
			for r := range toRead {
				r.work <- p.read(r.msg)
			}
		})
	}
	helpers.Go(func() {
		for r := range inOrder {
			if w := <-r.work; w.msg != nil {
				p.out <- w // the session takes it as long as the puller runs
			}
		}
	})
	for {
		select {
		case <-status:
			// The server forgot the request with the connection it came by. What it sent meanwhile shows as a hole in the numbering.
			cancel()
			status = nil
		case msg, ok := <-msgs:
			if !ok {
				return p.failed(ctx, batch.Error())
			}
			p.pinned = true
			r := reading{msg, make(chan work, 1)}
			toRead <- r
			inOrder <- r
		}
	}
}

// keepPin asks for a message smaller than any can be: the request renews the pin, and nothing comes.
func (p *puller) keepPin(ctx context.Context) error {
	if !p.c.JetStream.Conn().IsConnected() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	batch, err := p.cons.Fetch(1, jetstream.FetchContext(ctx), jetstream.FetchPriorityGroup(group), jetstream.FetchMaxBytes(1))
	if err != nil {
		return p.failed(ctx, err)
	}
	for msg := range batch.Messages() {
		_ = msg.Nak() // cannot be; whatever happens, it comes back
	}
	return p.failed(ctx, batch.Error())
}

// connected waits until there is a connection, and drops what is known about earlier ones. Fetch is not called without: each failed publish leaves
// a subscription behind.
func (p *puller) connected(ctx context.Context) error {
	for {
		select {
		case <-p.status:
			continue
		default:
		}
		if p.c.JetStream.Conn().IsConnected() {
			return nil
		}
		select {
		case <-p.status:
		case <-time.After(tryAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failed returns what the session must know of a request that ended with err, and waits where the next one would fail too.
func (p *puller) failed(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, jetstream.ErrPinIDMismatch):
		return jetstream.ErrPinIDMismatch
	case errors.Is(err, jetstream.ErrConsumerDeleted):
		return errGone
	case errors.Is(err, nats.ErrNoResponders):
		// Nobody listens for this consumer's requests: it is gone, or the server is not ready.
		ictx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestWait)
		defer cancel()
		if _, err := p.cons.Info(ictx); errors.Is(err, jetstream.ErrConsumerNotFound) {
			return errGone
		}
	}
	p.c.Log.Debug("pull failed", "error", err)
	sleep(ctx, tryAgain)
	return nil
}

// read decodes a message and proves its origin. What it says about an unacceptable one goes into the dead letter. It returns no message when there is
// none of the stream.
func (p *puller) read(msg jetstream.Msg) work {
	meta, err := msg.Metadata()
	if err != nil {
		p.c.Log.Warn("message without a place in the stream is left alone", "error", err)
		return work{}
	}
	w := work{msg: msg, meta: meta}
	e, err := p.c.Verify(msg.Data(), msg.Headers().Get(events.HeaderSignature))
	switch {
	case errors.Is(err, events.ErrUnverified):
		w.letter = &deadletter.Letter{Class: deadletter.Unverified, Reason: err.Error()}
	case err != nil:
		w.letter = &deadletter.Letter{Class: deadletter.Undecodable, Reason: err.Error()}
	case p.c.Source.Subject == "" && string(e.Type) != msg.Subject():
		reason := fmt.Sprintf("an event of type %s was published to %s", e.Type, msg.Subject())
		w.letter = &deadletter.Letter{Class: deadletter.SubjectMismatch, Reason: reason, EventID: e.ID}
	default:
		w.event = e
	}
	return w
}
