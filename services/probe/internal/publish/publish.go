// Package publish moves stored events to the broker: the bytes as they are stored, signed, each until the broker's ack.
//
// At most MaxInFlight events are under way at once and never two of one partition key, nor one of an interface beside one of its peers, so the order that
// matters is the order in the stream. After any error everything under way is awaited and sending begins again at the oldest event without ack: the
// broker drops what it already has by its Nats-Msg-Id. Nothing here decides what an event is (tracker) or keeps it (outbox).
package publish

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
)

const (
	// MaxInFlight bounds the events that are sent and not yet acked.
	MaxInFlight = 64
	// readAhead is how many stored events are held in memory at once: among them, one that may be sent now is looked for.
	readAhead = 256
	// ackTimeout is how long one ack is awaited. A denied publish shows as this time-out.
	ackTimeout = 5 * time.Second
	// flushAfter is how long the publisher is idle before it takes acked events out of the outbox itself; while it is busy, commits do that.
	flushAfter = 200 * time.Millisecond
	// drainFor bounds how long Run goes on sending after its context ended.
	drainFor = 2 * time.Second
	// calm is how long states wait after an event's ack: nobody waits for them, and their writes would slow down the event on its way to the webhooks.
	calm = 50 * time.Millisecond
	// maxStatesInFlight leaves events their room beside states that wait for a time-out.
	maxStatesInFlight = MaxInFlight / 4
	// statePauseMin and statePauseMax bound the pause after a state that the broker did not take. Events go on meanwhile.
	statePauseMin = time.Second
	statePauseMax = time.Minute
	// removedTTL is how long latecomers find that a peer was removed.
	removedTTL = "24h"
)

// Metrics is told what happens. Its methods are called by one goroutine.
type Metrics interface {
	Published(d time.Duration, duplicate bool)
	StatePublished()
	Failed()
}

// Publisher is a task: call Run once.
type Publisher struct {
	outbox  *outbox.Outbox
	key     ed25519.PrivateKey
	log     *slog.Logger
	metrics Metrics
	broker  Broker
	// reconnected receives a value after the broker came back.
	reconnected <-chan struct{}

	queue      []item    // events read ahead, in order, without those under way
	read       uint64    // number of the last event read
	moreEvents bool      // there may be events after it
	states     []item    // states read and not under way
	moreStates bool      // there may be states beyond them
	statesAt   time.Time // states wait until then

	stateFailures int // in a row

	connection uint64                        // on which what is in flight was sent
	inFlight   map[string]context.CancelFunc // by partition key
	lanes      lanes                         // of what is in flight
	results    chan result
	sending    sync.WaitGroup

	failure  error // of this pass; nothing is started until all that is under way has ended
	failures int   // in a row
}

// Broker is what a publisher sends to; JetStream makes one of a connection.
type Broker interface {
	// Connection returns the number of the current connection, 0 while there is none: then, sending is not worth trying.
	Connection() uint64
	// Send sends one message and returns when the broker has it on disk.
	Send(context.Context, *nats.Msg) (*jetstream.PubAck, error)
}

// JetStream returns the broker behind a connection.
func JetStream(js jetstream.JetStream) Broker { return jetStream{js} }

type jetStream struct{ js jetstream.JetStream }

func (b jetStream) Connection() uint64 {
	if !b.js.Conn().IsConnected() {
		return 0
	}
	return 1 + b.js.Conn().Stats().Reconnects
}

func (b jetStream) Send(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	return b.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
}

// New returns a publisher of what is in the outbox. The channel must receive a value each time after the broker has become connected.
func New(b Broker, ob *outbox.Outbox, key ed25519.PrivateKey, reconnected <-chan struct{}, m Metrics, log *slog.Logger) *Publisher {
	return &Publisher{
		outbox: ob, key: key, log: log, metrics: m, broker: b, reconnected: reconnected,
		moreEvents: true,
		moreStates: true,
		inFlight:   map[string]context.CancelFunc{},
		lanes:      newLanes(),
		results:    make(chan result, MaxInFlight),
	}
}

// item is something to be sent: an event, or the state of a peer for latecomers.
type item struct {
	partition string
	msg       *nats.Msg
	number    uint64       // of the event in the outbox
	mark      *outbox.Mark // of the state; nil for an event
}

// result is the end of one sending.
type result struct {
	item
	took      time.Duration
	duplicate bool
	err       error
}

// Run sends until ctx ends, and then for a bounded time what is left. An error is the outbox's: a broker that is away is waited for.
func (p *Publisher) Run(ctx context.Context) error {
	// What is under way outlives ctx: its acks are worth waiting for.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer p.sending.Wait()
	defer cancel()

	pauses := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second),
		backoff.WithMaxElapsedTime(0),
	)
	var (
		pause    <-chan time.Time // set while sending pauses after a failure
		done     = ctx.Done()
		deadline <-chan time.Time // set once ctx has ended
	)
	for {
		connection := p.broker.Connection()
		if connection != 0 && connection != p.connection {
			p.connection = connection
			p.statesAt = time.Time{}
			p.abort()
		}
		if connection != 0 && p.failure == nil && pause == nil {
			if err := p.start(sending, deadline != nil); err != nil {
				return err
			}
		}
		var states <-chan time.Time
		if wait := time.Until(p.statesAt); wait > 0 && (p.moreStates || len(p.states) > 0) {
			states = time.After(wait)
		}
		var idle <-chan time.Time
		if len(p.inFlight) == 0 {
			switch {
			case p.failure != nil:
				if err := p.rewind(); err != nil {
					return err
				}
				pause = time.After(pauses.NextBackOff())
				continue
			case deadline != nil && (connection == 0 || pause == nil):
				return p.finish() // all is sent, or nobody takes it
			case p.outbox.Unflushed():
				idle = time.After(flushAfter)
			}
		}
		select {
		case r := <-p.results:
			if p.settle(r) {
				pauses.Reset()
			}
		case <-p.outbox.Changed():
			p.moreEvents, p.moreStates = true, true
		case <-states:
		case <-pause:
			pause = nil
		case <-p.reconnected:
			pauses.Reset()
			pause = nil
		case <-idle:
			if err := p.outbox.Flush(); err != nil {
				return err
			}
		case <-done:
			// The last commit may have come with the end of ctx, and one more try is worth it even after a failure.
			done, deadline, pause = nil, time.After(drainFor), nil
			p.moreEvents, p.moreStates = true, true
		case <-deadline:
			return p.finish()
		}
	}
}

// abort ends the waiting for acks of an earlier connection: they never come.
func (p *Publisher) abort() {
	for _, cancel := range p.inFlight {
		cancel()
	}
}

// finish takes out what was acked and tells of what was not.
func (p *Publisher) finish() error {
	err := p.outbox.Flush()
	if n := p.outbox.Depth(); n > 0 {
		p.log.Info("the rest is left for the next run", "stored", n)
	}
	return err
}

// start sends what may be sent now: events first, and states when no event waits. At the end nothing is put off but what was refused.
func (p *Publisher) start(ctx context.Context, ending bool) error {
	if p.moreEvents && len(p.queue) < readAhead/2 {
		if err := p.readEvents(); err != nil {
			return err
		}
	}
	p.queue = p.startFrom(ctx, p.queue, MaxInFlight)
	if due := ending && p.stateFailures == 0 || time.Until(p.statesAt) <= 0; due && len(p.queue) == 0 && !p.moreEvents {
		if p.moreStates && len(p.states) == 0 && len(p.inFlight) == 0 {
			if err := p.readStates(); err != nil {
				return err
			}
			p.queue = p.startFrom(ctx, p.queue, MaxInFlight)
		}
		p.states = p.startFrom(ctx, p.states, maxStatesInFlight)
	}
	return nil
}

// startFrom starts what the window and the order allow, and returns the rest in order.
func (p *Publisher) startFrom(ctx context.Context, items []item, window int) []item {
	rest := items[:0]
	held := newLanes() // of the items before
	for _, it := range items {
		if len(p.inFlight) >= window || p.lanes.block(it.partition) || held.block(it.partition) {
			held.add(it.partition, 1)
			rest = append(rest, it)
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, ackTimeout)
		p.inFlight[it.partition] = cancel
		p.lanes.add(it.partition, 1)
		p.sending.Go(func() {
			began := time.Now()
			defer cancel()
			ack, err := p.broker.Send(ctx, it.msg)
			p.results <- result{item: it, took: time.Since(began), duplicate: err == nil && ack.Duplicate, err: err}
		})
	}
	clear(items[len(rest):])
	return rest
}

// settle takes in the end of one sending and reports whether the broker has it.
func (p *Publisher) settle(r result) bool {
	delete(p.inFlight, r.partition)
	p.lanes.add(r.partition, -1)
	if r.mark != nil {
		p.settleState(r)
		return r.err == nil
	}
	if r.err != nil {
		p.metrics.Failed()
		if p.failure == nil {
			p.failure = r.err
			p.failures++
			if p.failures == 1 {
				p.log.Warn("the broker does not take what is sent, it is kept", "subject", r.msg.Subject, "stored", p.outbox.Depth(), "error", explain(r.err))
			}
		}
		return false
	}
	p.outbox.Ack(r.number)
	p.metrics.Published(r.took, r.duplicate)
	if now := time.Now(); !p.statesAt.After(now) {
		p.statesAt = now.Add(calm)
	}
	if p.failure == nil && p.failures > 0 {
		p.log.Info("the broker takes what is sent again", "failures", p.failures)
		p.failures = 0
	}
	return true
}

// settleState takes in the end of sending a state. A refused one is read again after a pause, and holds up no event: it may be that this broker has no
// bucket, or denies it to this node.
func (p *Publisher) settleState(r result) {
	if r.err == nil {
		p.outbox.Clean(*r.mark)
		p.metrics.StatePublished()
		if p.stateFailures > 0 {
			p.stateFailures = 0
			p.log.Info("the broker takes peers' states again")
		}
		return
	}
	p.metrics.Failed()
	p.states, p.moreStates = nil, true
	if now := time.Now(); p.stateFailures == 0 || !p.statesAt.After(now) { // one pause for all that were under way
		pause := min(statePauseMin<<min(p.stateFailures, 10), statePauseMax)
		p.statesAt = now.Add(pause)
		p.stateFailures++
		if p.stateFailures == 1 {
			p.log.Warn("the broker does not take a peer's state, events go on", "subject", r.msg.Subject, "error", explain(r.err))
		}
	}
}

// rewind begins anew at the oldest event without ack. Acked ones leave the outbox first, or they would be sent again.
func (p *Publisher) rewind() error {
	p.failure = nil
	p.queue, p.read, p.moreEvents = nil, 0, true
	p.states, p.moreStates = nil, true
	return p.outbox.Flush()
}

// readEvents reads ahead.
func (p *Publisher) readEvents() error {
	records, err := p.outbox.Queued(p.read, readAhead)
	if err != nil {
		return err
	}
	p.moreEvents = len(records) == readAhead
	for _, r := range records {
		e, err := events.Decode(r.Body)
		if err != nil {
			return fmt.Errorf("stored event %d: %w", r.Number, err) // it was encoded here: the file was changed by somebody else
		}
		p.read = r.Number
		p.queue = append(p.queue, item{partition: e.PartitionKey, number: r.Number, msg: &nats.Msg{
			Subject: string(e.Type),
			Header: nats.Header{
				"Content-Type":         {events.ContentType},
				nats.MsgIdHdr:          {e.ID},
				nats.ExpectedStreamHdr: {events.StreamEvents},
				events.HeaderSignature: {events.Sign(r.Body, p.key)},
			},
			Data: r.Body,
		}})
	}
	return nil
}

// readStates reads the states that latecomers do not find yet. Those that were sent leave the outbox first. An event that was stored since the events were
// read, and whose state may be among these, is sent before any of them.
func (p *Publisher) readStates() error {
	if err := p.outbox.Flush(); err != nil {
		return err
	}
	marks, err := p.outbox.Dirty(MaxInFlight)
	if err != nil {
		return err
	}
	if err := p.readEvents(); err != nil || len(p.queue) > 0 {
		return err
	}
	p.moreStates = len(marks) == MaxInFlight
	for _, m := range marks {
		msg := &nats.Msg{Subject: events.StateSubject(m.Key), Header: nats.Header{nats.ExpectedStreamHdr: {events.StreamState}}, Data: m.Value}
		if m.Value == nil {
			msg.Header.Set("KV-Operation", "DEL")
			msg.Header.Set("Nats-TTL", removedTTL)
		}
		// Its lane is its own: an event does not wait for a state that is under way, because readers go by the sequence.
		p.states = append(p.states, item{partition: "state:" + m.Key, msg: msg, mark: &m})
	}
	return nil
}

// explain adds to an error what the reader should look at.
func explain(err error) error {
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("no stream takes this subject (make the streams with `notifier provision`): %w", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("no ack within %s (the broker is away, overloaded, denies this identity the subject, or has to read its configuration once more, where this probe is new to it): %w", ackTimeout, err)
	case errors.Is(err, context.Canceled):
		return errors.New("the connection broke before the ack")
	default:
		return err
	}
}
