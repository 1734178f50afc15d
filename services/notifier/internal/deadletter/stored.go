package deadletter

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
)

// Stored is a letter as it lies in the stream.
type Stored struct {
	Letter
	Sequence uint64 // its own place in Stream
	Buried   time.Time
	Hook     string

	Body      []byte        // of the message, byte by byte
	Event     *events.Event // that Body holds; nil where it is none. Nothing proves its origin
	Signature string
	// Where the message was in the stream of events, also where it was sent again since.
	Subject       string
	EventSequence uint64
	EventStored   time.Time
}

// Parse reads a letter. It returns false for what is none: whoever may read the stream can have the broker's answers stored in it. A header that cannot be
// read counts as missing.
func Parse(msg *jetstream.RawStreamMsg) (Stored, bool) {
	h := msg.Header
	hook, ok := strings.CutPrefix(msg.Subject, broker.SubjectDead)
	if !ok || h.Get(HeaderClass) == "" {
		return Stored{}, false
	}
	number := func(name string) uint64 {
		n, _ := strconv.ParseUint(h.Get(name), 10, 64)
		return n
	}
	at := func(name string) time.Time {
		t, _ := time.Parse(time.RFC3339Nano, h.Get(name))
		return t
	}
	l := Stored{
		Letter: Letter{
			Class: Class(h.Get(HeaderClass)), Reason: h.Get(HeaderReason), EventID: h.Get(HeaderEventID),
			Attempts: int(number(HeaderAttempts)), LastStatus: int(number(HeaderLastStatus)), First: at(HeaderFirstAttempt), Last: at(HeaderLastAttempt),
		},
		Sequence: msg.Sequence, Buried: msg.Time, Hook: hook,
		Body: msg.Data, Signature: h.Get(events.HeaderSignature),
		Subject: h.Get(HeaderSubject), EventSequence: number(HeaderSequence), EventStored: at(HeaderStored),
	}
	if e, err := events.Decode(msg.Data); err == nil {
		l.Event = e
		l.EventID = cmp.Or(l.EventID, e.ID)
	}
	return l, true
}

// Selection says which letters are meant. The zero Selection means all.
type Selection struct {
	Sequences []uint64 // of the letters themselves
	Hook      string
	Types     []string  // patterns of package route, as are Peers
	Peers     []string  // names or public keys
	Reason    string    // a Class, or a part of the reason in words, whatever the case
	Since     time.Time // buried then or later
	Until     time.Time // buried earlier than then
}

// All reports whether the selection leaves nothing out.
func (s Selection) All() bool {
	return len(s.Sequences)+len(s.Types)+len(s.Peers) == 0 && s.Hook == "" && s.Reason == "" && s.Since.IsZero() && s.Until.IsZero()
}

// Compile checks the selection's patterns and returns what decides. A letter without a readable event has neither type nor peer.
func (s Selection) Compile() (func(Stored) bool, error) {
	filter, err := route.Compile(route.Rules{Types: s.Types, Peers: s.Peers})
	if err != nil {
		return nil, err
	}
	reason := strings.ToLower(s.Reason)
	return func(l Stored) bool {
		switch {
		case len(s.Sequences) > 0 && !slices.Contains(s.Sequences, l.Sequence),
			s.Hook != "" && l.Hook != s.Hook,
			reason != "" && string(l.Class) != reason && !strings.Contains(strings.ToLower(l.Reason), reason),
			!s.Since.IsZero() && l.Buried.Before(s.Since),
			!s.Until.IsZero() && !l.Buried.Before(s.Until):
			return false
		case len(s.Types)+len(s.Peers) > 0:
			return l.Event != nil && filter.Wants(l.Event)
		}
		return true
	}, nil
}

// Letters returns the selected letters of the stream, the oldest first. Each is read when it is asked for; what is buried meanwhile may be among them.
func Letters(ctx context.Context, stream jetstream.Stream, s Selection) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		wants, err := s.Compile()
		if err != nil {
			yield(Stored{}, err)
			return
		}
		from := uint64(1)
		if len(s.Sequences) > 0 {
			from = slices.Min(s.Sequences)
		}
		for msg, err := range broker.Messages(ctx, stream, Subject(cmp.Or(s.Hook, "*")), from) {
			if err != nil {
				yield(Stored{}, err)
				return
			}
			if len(s.Sequences) > 0 && msg.Sequence > slices.Max(s.Sequences) {
				return
			}
			if l, ok := Parse(msg); ok && wants(l) && !yield(l, nil) {
				return
			}
		}
	}
}

// Get returns the letter with a number.
func Get(ctx context.Context, stream jetstream.Stream, number uint64) (Stored, error) {
	msg, err := stream.GetMsg(ctx, number)
	if err != nil {
		return Stored{}, fmt.Errorf("dead letter %d: read: %w", number, err)
	}
	l, ok := Parse(msg)
	if !ok {
		return Stored{}, fmt.Errorf("message %d is no dead letter", number)
	}
	return l, nil
}

// Replay has a letter's message delivered to its hook once more, with the same id, and removes the letter. It is removed only when the broker has stored the
// message, so after an error it is still there; called again within two minutes, Replay does not have it delivered twice.
func Replay(ctx context.Context, js jetstream.JetStream, stream jetstream.Stream, l Stored) error {
	msg := &nats.Msg{Subject: RetrySubject(l.Hook), Header: nats.Header{}, Data: l.Body}
	for name, value := range map[string]string{
		"Content-Type": events.ContentType, events.HeaderSignature: l.Signature,
		HeaderSubject: l.Subject, HeaderSequence: strconv.FormatUint(l.EventSequence, 10), HeaderStored: stamp(l.EventStored),
	} {
		if value != "" {
			msg.Header.Set(name, value)
		}
	}
	// The time tells the letter from one at the same place of a stream made anew.
	id := fmt.Sprintf("%s.%d.%d", l.Hook, l.Sequence, l.Buried.UnixNano())
	if _, err := js.PublishMsg(ctx, msg, jetstream.WithMsgID(id)); err != nil {
		return fmt.Errorf("dead letter %d: publish to %s: %w", l.Sequence, msg.Subject, err)
	}
	if err := Discard(ctx, stream, l.Sequence); err != nil {
		return fmt.Errorf("%w: it is on its way to its hook all the same", err)
	}
	return nil
}

// Discard removes a letter.
func Discard(ctx context.Context, stream jetstream.Stream, number uint64) error {
	if err := stream.DeleteMsg(ctx, number); err != nil {
		return fmt.Errorf("dead letter %d: remove: %w", number, err)
	}
	return nil
}
