package consume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/wgherald/wgherald/pkg/events"
	natsserver "github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
)

// Hook is one configured webhook.
type Hook struct {
	Name   string // [a-z0-9_-]{1,32}: it is part of subjects and of the consumer's name
	Target deliver.Target
	Filter route.Filter
	Format render.Format
	Retry  retry.Policy
	// RetryRejected has answers of class deliver.Rejected tried again, too.
	RetryRejected bool
	Policy        Policy
}

// Attempt is what an Observer learns of each attempt to deliver.
type Attempt struct {
	Hook        string
	Event       *events.Event // not to be changed
	Number      int           // 1 is the first
	Result      deliver.Result
	SinceStored time.Duration // from the event's storage in the stream to the end of the attempt
}

// Load is how much a hook has to do.
type Load struct {
	Pending  uint64 // messages in the stream that the hook has not got yet, as of the last message it got
	Held     int    // messages it has and has not acknowledged
	InFlight int    // attempts under way
	Circuit  Circuit
}

// Circuit says whether a hook is served. It is a metric label: the set is closed.
type Circuit string

// The states of a circuit.
const (
	Closed  Circuit = "closed"  // it is
	Open    Circuit = "open"    // it failed too often in a row: its events wait in the stream
	Testing Circuit = "testing" // as open, and one event is being tried
)

// Observer is told what happens. Its methods are called from the goroutine that serves the hook and must not block; several hooks call at a time.
type Observer interface {
	Attempted(Attempt)
	Buried(hook string, class deadletter.Class) // a dead letter was stored
	Loaded(hook string, load Load)
	Withheld(hook string, events int) // a disconnection and the connection that followed it within Policy.Hold
	Lost(hook string, events uint64)  // the stream dropped them by age or size before they were delivered
}

// Source is a stream that a hook takes its messages from. The zero Source is the stream of events.
type Source struct {
	Stream string
	// Subject is the only one whose messages are taken, from the first on; it says nothing about their type. Empty is every subject, from where Policy.From says,
	// each the type of its events.
	Subject string
}

// Config is what a Consumer needs. Every field but Source is required.
type Config struct {
	JetStream jetstream.JetStream
	Source    Source
	Hook      Hook
	Version   string // of the notifier, for the User-Agent
	// Verify reads an event and proves its origin, as events.Verify does. An error that matches events.ErrUnverified says that it is an event of
	// unproven origin, any other that it is no event. Several hooks may be given the same event: nobody changes it.
	Verify   func(body []byte, signature string) (*events.Event, error)
	Observer Observer
	Log      *slog.Logger

	// limiter keeps Policy.Rate; nil for no bound. Who is made with the Config of a Consumer shares it.
	limiter *rate.Limiter
}

const (
	group     = "hook" // of the pinned client
	prefetch  = 2      // messages ready for each attempt at a time; they are kept un-acked like all that is held
	holdLimit = 750    // un-acked messages at which a hook stops pulling; the rest up to MaxAckPending is for recovery
	// maxAckPending bounds what a consumer may have delivered and not acknowledged. At the bound it stands still.
	maxAckPending = 1000
	handOut       = 16              // messages that a puller has ready for the session
	atOnce        = 16              // events that a session takes one after the other before it draws the consequences
	stopGrace     = 3 * time.Second // for attempts under way when the hook stops
	requestWait   = 5 * time.Second // for one request to the server
	tryAgain      = time.Second     // after a failed request to the server
	standbyWait   = 5 * time.Second // for the pin, in one request
	recoverPoll   = 250 * time.Millisecond
	recoverBatch  = 100             // messages, in one request
	recoverMargin = 5 * time.Second // over AckWait, for the server to send what has expired
	mirrorLag     = time.Second     // after which what was stored is in the mirror, too; it takes milliseconds
)

// errNotConnected stands for what the library says then: it speaks of a buffer, and it has none.
var errNotConnected = errors.New("the broker is not connected")

// ErrHookGone reports that the hook answered 410 Gone: it wants no more requests.
var ErrHookGone = errors.New("the hook answered 410 Gone")

// timing holds the intervals that tests shorten.
type timing struct {
	ackWait   time.Duration // after which an un-acked message comes back
	pinnedTTL time.Duration // after which an owner that does not pull loses the hook
	audit     time.Duration // between two looks at what the stream has dropped
}

// Consumer delivers to one hook.
type Consumer struct {
	Config
	timing
	sender *deliver.Sender
	ready  chan struct{}

	// attempts remembers, by stream sequence, how the delivery of un-acked messages went so far. It outlives a session: a lost connection must not
	// make every waiting retry start from the beginning.
	attempts map[uint64]*history
	// resume is the first stream sequence that a consumer deleted behind our back would have had to deliver next, 0 while there was none.
	resume uint64
	// created is when the stream was made in which resume and attempts count.
	created time.Time
	// stream is the one that was found last.
	stream  jetstream.Stream
	breaker retry.Breaker
	// dropped is the last stream sequence that is known to have been dropped by the stream undelivered, and was reported.
	dropped uint64
	// waiting is since when the hook waits for its consumer, zero while it does not: what is stored meanwhile is for it.
	waiting time.Time
}

// New checks the hook's target and schedule and returns a consumer for it.
func New(c Config) (*Consumer, error) {
	sender, err := deliver.New(c.Hook.Target, c.Version)
	if err = errors.Join(err, c.Hook.Retry.Validate(), c.Hook.Policy.Validate()); err != nil {
		return nil, fmt.Errorf("hook %s: %w", c.Hook.Name, err)
	}
	c.Log = c.Log.With("hook", c.Hook.Name)
	c.Source.Stream = cmp.Or(c.Source.Stream, events.StreamEvents)
	switch p := c.Hook.Policy; {
	case p.Rate == 0:
		c.limiter = nil
	case c.limiter == nil || c.limiter.Limit() != rate.Limit(p.Rate):
		c.limiter = rate.NewLimiter(rate.Limit(p.Rate), p.burst())
	}
	return &Consumer{
		Config:   c,
		timing:   timing{ackWait: time.Minute, pinnedTTL: 30 * time.Second, audit: time.Minute},
		sender:   sender,
		ready:    make(chan struct{}),
		attempts: map[uint64]*history{},
	}, nil
}

// Durable returns the name of a hook's consumer on its stream.
func Durable(hook string) string { return "hook-" + hook }

// Ready is closed once the hook has its consumer, and with it its place in the stream.
func (c *Consumer) Ready() <-chan struct{} { return c.ready }

// Run serves the hook until ctx ends, and then returns nil, or until the hook answers 410 Gone, and then returns ErrHookGone. It outlasts an absent broker,
// stream or consumer, saying so once. When it ends, attempts under way get up to 3 s, what is held is handed back, and the next owner can start at once.
func (c *Consumer) Run(ctx context.Context) error {
	defer c.sender.Close()
	var last string
	for ctx.Err() == nil {
		began := time.Now()
		cons, err := c.open(ctx)
		if err != nil {
			if c.waiting.IsZero() {
				c.waiting = began
			}
			if ctx.Err() == nil && err.Error() != last {
				last = err.Error()
				if !errors.Is(err, natsserver.ErrTooOld) { // which is said once for all hooks
					c.Log.Warn("hook waits for its consumer", "error", err)
				}
			}
			sleep(ctx, tryAgain)
			continue
		}
		select {
		case <-c.ready:
		default:
			close(c.ready)
		}
		if last != "" {
			last = ""
			c.Log.Info("hook has its consumer")
		}
		c.waiting = time.Time{}
		s := newSession(c, cons)
		c.resume = s.run(ctx)
		if s.hookGone {
			return ErrHookGone
		}
	}
	return nil
}

// open returns the hook's durable consumer with the settings of this version, making it when there is none. A new hook starts where its policy says, and
// with those that were stored while it waited for the broker or the stream; a consumer that was deleted behind our back starts where it was. In a stream
// that was made anew, as after the loss of the broker's disk, that place means nothing: all that is in it is new.
func (c *Consumer) open(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	name := Durable(c.Hook.Name)
	if v := c.JetStream.Conn().ConnectedServerVersion(); v != "" {
		// It would make a consumer that it gives nobody the pin of.
		if err := natsserver.CheckVersion(v); err != nil {
			return nil, err
		}
	}
	stream, err := c.JetStream.Stream(ctx, c.Source.Stream)
	if errors.Is(err, nats.ErrReconnectBufExceeded) {
		return nil, errNotConnected
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("the broker has no stream %s: `notifier provision` makes it", c.Source.Stream)
	}
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", c.Source.Stream, err)
	}
	c.stream = stream
	info := stream.CachedInfo()
	if !c.created.Equal(info.Created) {
		clear(c.attempts)
		c.dropped = 0
	}
	cons, err := stream.Consumer(ctx, name)
	var have jetstream.ConsumerConfig
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		have = jetstream.ConsumerConfig{Durable: name, FilterSubject: c.Source.Subject, DeliverPolicy: jetstream.DeliverNewPolicy}
		switch {
		case c.Source.Subject != "":
			have.DeliverPolicy = jetstream.DeliverAllPolicy
		case c.resume > 0 && (!c.created.Equal(info.Created) || c.resume > info.State.LastSeq+1):
			have.DeliverPolicy = jetstream.DeliverAllPolicy
			c.Log.Warn("stream was made anew, the consumer starts with its first event", "would_resume", c.resume, "last_sequence", info.State.LastSeq)
		case c.resume > 0:
			have.DeliverPolicy, have.OptStartSeq = jetstream.DeliverByStartSequencePolicy, c.resume
			c.Log.Warn("consumer was deleted, it is made again", "from_sequence", c.resume)
		case c.Hook.Policy.From.All:
			have.DeliverPolicy = jetstream.DeliverAllPolicy
		case c.Hook.Policy.From.Ago > 0 || !c.waiting.IsZero():
			// By the broker's clock, which need not be ours.
			start := info.TimeStamp.Add(-c.Hook.Policy.From.Ago)
			if !c.waiting.IsZero() {
				start = start.Add(-time.Since(c.waiting))
			}
			have.DeliverPolicy, have.OptStartTime = jetstream.DeliverByStartTimePolicy, &start
		}
	case errors.Is(err, nats.ErrReconnectBufExceeded):
		return nil, errNotConnected
	case err != nil:
		return nil, fmt.Errorf("read consumer %s: %w", name, err)
	default:
		ahead, err := c.ahead(ctx, stream, cons)
		if err != nil {
			return nil, err
		}
		if ahead {
			if err := stream.DeleteConsumer(ctx, name); err != nil {
				return nil, fmt.Errorf("delete consumer %s: %w", name, err)
			}
			clear(c.attempts)
			have = jetstream.ConsumerConfig{Durable: name, FilterSubject: c.Source.Subject, DeliverPolicy: jetstream.DeliverAllPolicy}
			break
		}
		have = cons.CachedInfo().Config
		if have.AckPolicy == jetstream.AckExplicitPolicy && have.AckWait == c.ackWait && have.MaxDeliver == -1 && have.MaxAckPending == maxAckPending &&
			have.BackOff == nil && have.PriorityPolicy == jetstream.PriorityPolicyPinned && have.PinnedTTL == c.pinnedTTL {
			c.created = info.Created
			return cons, nil
		}
	}
	have.AckPolicy = jetstream.AckExplicitPolicy
	have.AckWait = c.ackWait
	have.MaxDeliver = -1 // who gives up is decided here
	have.MaxAckPending = maxAckPending
	have.BackOff = nil // it would shorten AckWait
	have.PriorityPolicy = jetstream.PriorityPolicyPinned
	have.PriorityGroups = []string{group}
	have.PinnedTTL = c.pinnedTTL
	cons, err = c.JetStream.CreateOrUpdateConsumer(ctx, c.Source.Stream, have)
	if err != nil {
		return nil, fmt.Errorf("make consumer %s: %w", name, err)
	}
	c.created = info.Created
	return cons, nil
}

// ahead reports whether the consumer is beyond the end of its stream, and says so: it outlived a stream that was lost or set back, and would skip
// what is stored until the stream has caught up.
func (c *Consumer) ahead(ctx context.Context, stream jetstream.Stream, cons jetstream.Consumer) (bool, error) {
	at := cons.CachedInfo().Delivered.Stream
	if at <= stream.CachedInfo().State.LastSeq {
		return false, nil
	}
	info, err := stream.Info(ctx) // the one at hand is older than the consumer's
	if err != nil {
		return false, fmt.Errorf("read stream %s: %w", c.Source.Stream, err)
	}
	if at <= info.State.LastSeq {
		return false, nil
	}
	c.Log.Warn("consumer is ahead of its stream, it is made again and starts with the first event", "delivered", at, "last_sequence", info.State.LastSeq)
	return true, nil
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
