// Package attempts keeps a log of every attempt to deliver where an operator can read it: in the stream WG_ATTEMPTS, one subject for each hook, for 7 days or
// 64 MiB.
//
// A message holds what a hook was sent in a short time, a line of JSON for each attempt. It is best effort. A delivery never waits for it: what a broker that is
// slow or away does not take in time is dropped and counted. A record holds no URL, no header and no answer of a hook.
package attempts

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
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
	waiting    = 1024                   // records that wait for being sent
	gathering  = 50 * time.Millisecond  // how long records are gathered, so that many attempts are few messages
	together   = 512                    // records in one message at most: each has some hundred bytes, and the broker takes 1 MiB
	unanswered = 256                    // messages sent that the broker has not stored yet
	patience   = 5 * time.Second        // for its answer
	reportEach = time.Minute            // how often it is said that records were dropped
	lastWait   = 300 * time.Millisecond // for all that Flush does
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

// Parse reads the records of a message, one in a line. What is none is left out: whoever may read the stream can have the broker's answers stored in it.
func Parse(msg *jetstream.RawStreamMsg) []Record {
	var records []Record
	for line := range bytes.Lines(msg.Data) {
		var r Record
		if err := json.Unmarshal(line, &r); err == nil && r.Hook != "" && msg.Subject == broker.SubjectAttempt+r.Hook {
			records = append(records, r)
		}
	}
	return records
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
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, msg *nats.Msg, _ error) {
			l.dropped.Add(uint64(bytes.Count(msg.Data, []byte("\n"))))
		}))
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

// Run writes until ctx ends, and says at most once a minute that records were dropped. What waits then, and what comes after it, is for Flush.
func (l *Log) Run(ctx context.Context) error {
	report := time.NewTicker(reportEach)
	defer report.Stop()
	var told uint64
	for {
		select {
		case r := <-l.records:
			l.publish(l.gather(ctx, r))
		case <-report.C:
			if n := l.Dropped(); n > told {
				l.log.Warn("attempts are missing in the log of attempts: the broker is slow or away", "dropped", n-told, "dropped_in_all", n)
				told = n
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Flush sends what waits and gives the broker a moment to store it. It is for the end, when nobody attempts any more and Run has returned: attempts that were
// under way when all was stopped are made to their end.
func (l *Log) Flush() {
	ctx, cancel := context.WithTimeout(context.Background(), lastWait)
	defer cancel()
	for len(l.records) > 0 && ctx.Err() == nil {
		l.publish(l.gather(ctx, <-l.records))
	}
	select {
	case <-l.js.PublishAsyncComplete():
	case <-ctx.Done():
	}
}

// gather returns a record with those that follow soon.
func (l *Log) gather(ctx context.Context, first Record) []Record {
	records, enough := []Record{first}, time.After(gathering)
	for len(records) < together {
		select {
		case r := <-l.records:
			records = append(records, r)
		case <-enough:
			return records
		case <-ctx.Done():
			return records
		}
	}
	return records
}

// publish sends records, those of one hook in one message. The message with the newest record is the last, as Last expects. With too many unanswered it waits for up
// to 200 ms, and gives a message up.
func (l *Log) publish(records []Record) {
	lines, newest := map[string][]byte{}, map[string]int{}
	for i, r := range records {
		line, err := json.Marshal(r)
		if err != nil {
			l.dropped.Add(1)
			continue
		}
		lines[r.Hook], newest[r.Hook] = append(append(lines[r.Hook], line...), '\n'), i
	}
	hooks := slices.SortedFunc(maps.Keys(lines), func(a, b string) int { return cmp.Compare(newest[a], newest[b]) })
	for _, hook := range hooks {
		if _, err := l.js.PublishAsync(broker.SubjectAttempt+hook, lines[hook]); err != nil {
			l.dropped.Add(uint64(bytes.Count(lines[hook], []byte("\n"))))
		}
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
		records = append(records, Parse(msg)...)
	}
	slices.SortStableFunc(records, func(a, b Record) int { return a.Time.Compare(b.Time) })
	return records, next, nil
}
