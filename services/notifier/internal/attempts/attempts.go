// Package attempts keeps a log of every attempt to deliver where an operator can read it: in the stream WG_ATTEMPTS, one subject for each hook, for 7 days or
// 64 MiB.
//
// It is best effort. A delivery never waits for it: what a broker that is slow or away does not take in time is dropped and counted. A record holds no URL,
// no header and no answer of a hook.
package attempts

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

const (
	waiting    = 1024            // records that wait for being sent
	unanswered = 256             // records sent that the broker has not stored yet
	patience   = 5 * time.Second // for its answer
	reportEach = time.Minute     // how often it is said that records were dropped
)

// Record is one attempt.
type Record struct {
	Time           time.Time     `json:"time"` // when it ended
	Hook           string        `json:"hook"`
	EventID        string        `json:"eventId"`
	Type           events.Type   `json:"type"`
	Subject        string        `json:"subject"`        // of the event: the peer's public key, where it is about a peer
	Name           string        `json:"name,omitempty"` // of the peer
	Number         int           `json:"number"`         // 1 is the first attempt
	Status         int           `json:"status"`         // HTTP status, 0 without an answer
	LatencySeconds float64       `json:"latencySeconds"`
	Class          deliver.Class `json:"class"`
}

// Parse reads a record. It returns false for what is none: whoever may read the stream can have the broker's answers stored in it.
func Parse(msg *jetstream.RawStreamMsg) (Record, bool) {
	var r Record
	err := json.Unmarshal(msg.Data, &r)
	return r, err == nil && r.Hook != "" && msg.Subject == broker.SubjectAttempt+r.Hook
}

// Log is a consume.Observer that writes the log.
type Log struct {
	js      jetstream.JetStream
	log     *slog.Logger
	records chan Record
	dropped atomic.Uint64
}

// New returns a log that is written while Run runs.
func New(nc *nats.Conn, log *slog.Logger) (*Log, error) {
	l := &Log{log: log, records: make(chan Record, waiting)}
	js, err := jetstream.New(nc,
		jetstream.WithPublishAsyncMaxPending(unanswered),
		jetstream.WithPublishAsyncTimeout(patience),
		jetstream.WithPublishAsyncErrHandler(func(jetstream.JetStream, *nats.Msg, error) { l.dropped.Add(1) }))
	l.js = js
	return l, err
}

// Dropped returns how many records were not stored.
func (l *Log) Dropped() uint64 { return l.dropped.Load() }

// Attempted implements consume.Observer. It does not block.
func (l *Log) Attempted(a consume.Attempt) {
	r := Record{
		Time: time.Now().UTC(), Hook: a.Hook, EventID: a.Event.ID, Type: a.Event.Type, Subject: a.Event.Subject,
		Number: a.Number, Status: a.Result.Status, LatencySeconds: a.Result.Latency.Seconds(), Class: a.Result.Class,
	}
	if p := a.Event.Peer(); p != nil {
		r.Name = p.Name
	}
	select {
	case l.records <- r:
	default:
		l.dropped.Add(1)
	}
}

// Buried implements consume.Observer.
func (l *Log) Buried(string, deadletter.Class) {}

// Loaded implements consume.Observer.
func (l *Log) Loaded(string, consume.Load) {}

// Withheld implements consume.Observer.
func (l *Log) Withheld(string, int) {}

// Lost implements consume.Observer.
func (l *Log) Lost(string, uint64) {}

// Run writes until ctx ends, and says at most once a minute that records were dropped. What waits then is still sent.
func (l *Log) Run(ctx context.Context) error {
	report := time.NewTicker(reportEach)
	defer report.Stop()
	var told uint64
	for {
		select {
		case r := <-l.records:
			l.publish(r)
		case <-report.C:
			if n := l.Dropped(); n > told {
				l.log.Warn("attempts are missing in the log of attempts: the broker is slow or away", "dropped", n-told, "dropped_in_all", n)
				told = n
			}
		case <-ctx.Done():
			for {
				select {
				case r := <-l.records:
					l.publish(r)
				default:
					return nil
				}
			}
		}
	}
}

// publish sends a record. With too many unanswered it waits for up to 200 ms, and gives the record up.
func (l *Log) publish(r Record) {
	body, err := json.Marshal(r)
	if err == nil {
		_, err = l.js.PublishAsync(broker.SubjectAttempt+r.Hook, body)
	}
	if err != nil {
		l.dropped.Add(1)
	}
}

// Last returns the last n records of a hook, or of all where hook is empty, the oldest first, and the place in the stream behind them.
func Last(ctx context.Context, stream jetstream.Stream, hook string, n int) ([]Record, uint64, error) {
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, 0, err
	}
	first, next := max(info.State.FirstSeq, 1), info.State.LastSeq+1
	// How far back they are nobody knows, so the span doubles until there are enough.
	for span := uint64(n); ; span *= 2 {
		from := first
		if next > first+span {
			from = next - span
		}
		records, after, err := Since(ctx, stream, hook, from)
		if err != nil {
			return nil, 0, err
		}
		if len(records) >= n || from == first {
			return records[max(0, len(records)-n):], max(after, next), nil
		}
	}
}

// Since returns the records of a hook, or of all where hook is empty, from a place in the stream on, and the place behind them.
func Since(ctx context.Context, stream jetstream.Stream, hook string, from uint64) (records []Record, next uint64, err error) {
	next = from
	if hook == "" {
		hook = "*"
	}
	for msg, err := range broker.Messages(ctx, stream, broker.SubjectAttempt+hook, from) {
		if err != nil {
			return nil, 0, err
		}
		next = msg.Sequence + 1
		if r, ok := Parse(msg); ok {
			records = append(records, r)
		}
	}
	return records, next, nil
}
