package consume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
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
	msg    *nats.Msg
	meta   *nats.MsgMetadata
	event  *events.Event      // nil when the message is no acceptable event
	letter *deadletter.Letter // then why

	key      string    // of its place in the queue
	until    time.Time // of a held disconnection, by the broker's clock: a connection stored by then makes neither of them news
	wake     time.Time // of a held disconnection, by our clock: it is not decided before
	unwanted bool      // by the filter; it has a place all the same, because it may end, or begin, a hold
}

func (w work) seq() uint64 { return w.meta.Sequence.Stream }

// pulled tells that a pull request has ended.
type pulled struct {
	credit bool  // it was one for messages, not one for the pin
	err    error // ErrPinIDMismatch, errGone, or nil: any other failure has been waited out
}

// arrival is what a puller hands on: a message, or the end of a request after what it brought.
type arrival struct {
	work
	end   *pulled   // nil for a message
	heard time.Time // when the server said it, or something last: what waits here is older than when it is taken
}

// request is a pull request as the server reads it (ADR-13; ADR-42 for group and pin).
type request struct {
	Batch     int           `json:"batch"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat,omitempty"`
	MaxBytes  int           `json:"max_bytes,omitempty"`
	Group     string        `json:"group"`
	Pin       string        `json:"id,omitempty"`
}

// reading is a message that is being read.
type reading struct {
	msg   *nats.Msg
	heard time.Time
	work  chan work
}

// puller asks the server for messages, one request at a time. One request at a time keeps the deliveries in the order of the consumer's numbering,
// which is what shows a lost one.
//
// All answers come to one inbox that lives as long as the puller. What the server sends counts as delivered there, and comes again only when its AckWait is
// over: so a message that comes late, for a request that has long been given up, is taken in as any other. The Fetch of the library has an inbox for each
// request and drops those.
type puller struct {
	c    *Consumer
	cons jetstream.Consumer
	sub  *nats.Subscription
	in   chan *nats.Msg // what comes to the inbox
	over chan struct{}  // closed when nobody takes it any more

	credit chan int // how many messages may come; one end in out for each
	// out is one channel, so that the end of a request cannot overtake what it brought, and has room, so that the session takes many at a time. It is closed when
	// no more comes.
	out chan arrival

	inbox   string // each request has a subject of its own in it
	subject string // of the requests
	request int    // number of the last one
	asking  bool   // it is under way
	asked   pulled // what its end will tell
	left    int    // messages that it may still bring
	silence *time.Timer
	heard   time.Time // when the server said something last

	pin     string    // who owns the consumer, as the last message said; empty when it is not we
	reading []reading // messages whose signatures are being checked, side by side, and which are handed on in their order
	readers *pool[reading]
}

func newPuller(c *Consumer, cons jetstream.Consumer) (*puller, error) {
	p := &puller{
		c: c, cons: cons,
		in: make(chan *nats.Msg, recoverBatch), over: make(chan struct{}),
		credit:  make(chan int, 1), // never more than one
		out:     make(chan arrival, handOut),
		inbox:   c.JetStream.Conn().NewInbox() + ".",
		subject: fmt.Sprintf("$JS.API.CONSUMER.MSG.NEXT.%s.%s", c.Source.Stream, Durable(c.Hook.Name)),
		silence: time.NewTimer(0),
	}
	p.readers = newPool(func(r reading) { r.work <- p.read(r.msg) })
	var err error
	p.sub, err = c.JetStream.Conn().Subscribe(p.inbox+"*", func(msg *nats.Msg) {
		select {
		case p.in <- msg:
		case <-p.over:
		}
	})
	return p, err
}

// wait is how long a request waits at the server. The server counts PinnedTTL from the last request, so there must be several within it. Without the pin
// it is short: a server (2.15) that finds the request of a notifier that has gone gives it the pin, and nobody gets anything for PinnedTTL.
func (p *puller) wait() time.Duration {
	if p.pin == "" {
		return min(standbyWait, p.c.pinnedTTL/3)
	}
	return p.c.pinnedTTL / 3
}

// heartbeat is how often the server says that a request waits.
func (p *puller) heartbeat() time.Duration { return p.wait() / 5 }

// run serves until ctx ends, and then until everything that the server has sent is handed on.
func (p *puller) run(ctx context.Context) {
	defer close(p.out)
	defer close(p.over)
	defer close(p.readers.jobs)
	defer p.silence.Stop()
	nc := p.c.JetStream.Conn()
	status := nc.StatusChanged(nats.CONNECTED)
	defer nc.RemoveStatusListener(status)
	for {
		credit := p.credit
		if p.asking || !nc.IsConnected() {
			credit = nil
		}
		in := p.in
		if len(p.reading) >= 2*runtime.GOMAXPROCS(0) {
			in = nil
		}
		select {
		case <-ctx.Done():
			p.drain(context.WithoutCancel(ctx))
			return
		case msg := <-in:
			p.take(ctx, msg)
		case w := <-p.first():
			p.handOn(w)
		case n := <-credit:
			for len(status) > 0 {
				<-status // of earlier connections
			}
			p.ask(ctx, pulled{credit: true}, request{Batch: n, Expires: p.wait(), Heartbeat: p.heartbeat()})
		case <-status:
			if p.asking { // the server forgot the request with the connection it came by
				p.end(nil)
			}
		case <-p.silence.C:
			switch {
			case p.asking:
				// The server may still know the request: until that expires, up to twice as many messages may come.
				p.c.Log.Debug("pull request is given up, the server is silent")
				p.end(nil)
			case p.pin != "" && nc.IsConnected():
				// A message smaller than any can be: the request renews the pin, and nothing comes.
				p.ask(ctx, pulled{}, request{Batch: 1, Expires: 50 * time.Millisecond, MaxBytes: 1})
			default:
				p.silence.Reset(p.wait())
			}
		}
	}
}

// ask sends a request.
func (p *puller) ask(ctx context.Context, asked pulled, r request) {
	r.Group, r.Pin = group, p.pin
	p.request++
	p.asking, p.asked, p.left = true, asked, r.Batch
	p.silence.Reset(2 * p.heartbeat())
	body, err := json.Marshal(r)
	if err == nil {
		err = p.c.JetStream.Conn().PublishRequest(p.subject, p.inbox+strconv.Itoa(p.request), body)
	}
	if err != nil {
		p.failed(ctx, err)
	}
}

// end tells that the request is over, after what it brought.
func (p *puller) end(err error) {
	for len(p.reading) > 0 {
		p.handOn(<-p.first())
	}
	p.asking = false
	p.silence.Reset(p.wait())
	end := p.asked
	end.err = err
	p.out <- arrival{end: &end, heard: p.heard}
}

// failed ends a request where the next one would fail too.
func (p *puller) failed(ctx context.Context, err error) {
	p.c.Log.Debug("pull failed", "error", err)
	sleep(ctx, tryAgain)
	p.end(nil)
}

// take reads what came to the inbox.
func (p *puller) take(ctx context.Context, msg *nats.Msg) {
	p.heard = time.Now()
	if msg.Reply == "" { // nothing to acknowledge: the state of a request
		if p.asking && msg.Subject == p.inbox+strconv.Itoa(p.request) {
			p.state(ctx, msg.Header.Get("Status"), msg.Header.Get("Description"))
		}
		return
	}
	p.pin = msg.Header.Get(headerPin)
	r := reading{msg, p.heard, make(chan work, 1)}
	p.reading = append(p.reading, r)
	p.readers.start(r)
	if !p.asking {
		return
	}
	p.silence.Reset(2 * p.heartbeat())
	if p.left--; p.left == 0 {
		p.end(nil)
	}
}

// state reads what the server says of the request that is under way.
func (p *puller) state(ctx context.Context, status, description string) {
	switch status {
	case "100": // it waits
		p.silence.Reset(2 * p.heartbeat())
	case "404", "408": // it has expired
		p.end(nil)
	case "423":
		p.pin = ""
		p.end(jetstream.ErrPinIDMismatch)
	case "503":
		// Nobody listens for this consumer's requests: it is gone, or the server is not ready.
		ictx, cancel := context.WithTimeout(ctx, requestWait)
		defer cancel()
		if _, err := p.cons.Info(ictx); errors.Is(err, jetstream.ErrConsumerNotFound) {
			p.end(errGone)
			return
		}
		p.failed(ctx, nats.ErrNoResponders)
	case "409":
		switch {
		case strings.EqualFold(description, "Consumer Deleted"):
			p.end(errGone)
			return
		case !p.asked.credit: // a message was there, and too large
			p.end(nil)
			return
		}
		fallthrough
	default:
		p.failed(ctx, fmt.Errorf("the server answered %s %s", status, description))
	}
}

// first returns where the first message comes from that is not handed on.
func (p *puller) first() chan work {
	if len(p.reading) == 0 {
		return nil
	}
	return p.reading[0].work
}

// handOn gives the session, which takes it as long as the puller runs, the first message.
func (p *puller) handOn(w work) {
	heard := p.reading[0].heard
	p.reading = p.reading[1:]
	if w.msg != nil {
		p.out <- arrival{work: w, heard: heard}
	}
}

// drain ends the inbox and hands on what the server has sent until then. The first nudge waits for it; without the inbox it would be dropped on its way.
// The second has the server forget a request that still waits there: it would give it the pin, and nobody would get anything for PinnedTTL.
// Only what the server has chosen an inbox for in the very moment that it learns of its end, it drops itself.
func (p *puller) drain(ctx context.Context) {
	p.asking = false
	ctx, cancel := context.WithTimeout(ctx, tryAgain)
	defer cancel()
	if p.c.JetStream.Conn().IsConnected() {
		p.nudge(ctx)
		closed := make(chan struct{})
		p.sub.SetClosedHandler(func(string) { close(closed) })
		if err := p.sub.Drain(); err == nil {
			p.last(ctx, closed)
		}
		p.nudge(ctx)
	}
	_ = p.sub.Unsubscribe() // fails when it is drained
}

// last takes what comes to the inbox until it is closed.
func (p *puller) last(ctx context.Context, closed chan struct{}) {
	for open := true; open || len(p.in) > 0 || len(p.reading) > 0; {
		select {
		case msg := <-p.in:
			p.take(ctx, msg)
		case w := <-p.first():
			p.handOn(w)
		case <-closed:
			open, closed = false, nil
		case <-ctx.Done():
			open, ctx = false, context.Background()
		}
	}
}

// nudge sends a request that brings nothing and expires at once. Its answer comes after what the server has sent for earlier ones, and with it the server
// looks for those whose inbox is gone.
func (p *puller) nudge(ctx context.Context) {
	body, err := json.Marshal(request{Batch: 1, Expires: time.Millisecond, MaxBytes: 1, Group: group})
	if err == nil {
		_, err = p.c.JetStream.Conn().RequestWithContext(ctx, p.subject, body)
	}
	if err != nil {
		p.c.Log.Debug("the last pull request may still wait at the server", "error", err)
	}
}

// read decodes a message and proves its origin. What it says about an unacceptable one goes into the dead letter. It returns no message when there is
// none of the stream.
func (p *puller) read(msg *nats.Msg) work {
	meta, err := msg.Metadata()
	if err != nil {
		p.c.Log.Warn("message without a place in the stream is left alone", "error", err)
		return work{}
	}
	w := work{msg: msg, meta: meta}
	e, err := p.c.Verify(msg.Data, msg.Header.Get(events.HeaderSignature))
	switch {
	case errors.Is(err, events.ErrUnverified):
		w.letter = &deadletter.Letter{Class: deadletter.Unverified, Reason: err.Error()}
	case err != nil:
		w.letter = &deadletter.Letter{Class: deadletter.Undecodable, Reason: err.Error()}
	case p.c.Source.Subject == "" && string(e.Type) != msg.Subject:
		reason := fmt.Sprintf("an event of type %s was published to %s", e.Type, msg.Subject)
		w.letter = &deadletter.Letter{Class: deadletter.SubjectMismatch, Reason: reason, EventID: e.ID}
	default:
		w.event = e
	}
	return w
}
