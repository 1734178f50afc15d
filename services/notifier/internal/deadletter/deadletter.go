// Package deadletter keeps what could not be delivered, whole and with the reason, where an operator can look at it and send it again: in the stream
// WG_DEAD, one subject for each hook.
//
// A letter is stored before the message it came from is terminated, so a crash between the two leaves both, and the letter's message id then drops
// the second copy. The other way it is the same: a letter is sent to its hook again before it is removed. The package decides nothing: what is dead, the
// consumer says, and what is sent again or thrown away, an operator.
package deadletter

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

// Stream holds the dead letters of all hooks. Its MaxMsgSize must leave room for the headers beside an event of events.MaxSize.
const Stream = broker.StreamDead

// Subject returns where the dead letters of a hook are published.
func Subject(hook string) string { return broker.SubjectDead + hook }

// RetrySubject returns where messages are published that a hook is to get once more, outside of the order of its events.
func RetrySubject(hook string) string { return broker.SubjectRetry + hook }

// The headers of a letter. Its body is the message's, byte by byte, and events.HeaderSignature is kept beside them.
const (
	HeaderClass        = "Wg-Dead-Class"      // a Class
	HeaderReason       = "Wg-Dead-Reason"     // in plain words
	HeaderAttempts     = "Wg-Attempts"        // number of attempts to deliver
	HeaderLastStatus   = "Wg-Last-Status"     // HTTP status of the last answer; missing without one
	HeaderFirstAttempt = "Wg-First-Attempt"   // RFC 3339; missing without attempts
	HeaderLastAttempt  = "Wg-Last-Attempt"    // RFC 3339; missing without attempts
	HeaderEventID      = "Wg-Event-Id"        // missing where the event could not be read
	HeaderSubject      = "Wg-Subject"         // the message's subject
	HeaderSequence     = "Wg-Stream-Sequence" // the message's place in the stream of events
	HeaderStored       = "Wg-Stored"          // RFC 3339, when the message was stored there
)

// origin are the headers that tell where the message came from.
var origin = []string{HeaderSubject, HeaderSequence, HeaderStored}

// Class says why a message is dead: one of those below, or the deliver.Class of the last attempt. It is a metric label: the set is closed.
type Class string

// The classes of messages that no attempt was made for.
const (
	Undecodable     Class = "undecodable"      // no valid event
	SubjectMismatch Class = "subject_mismatch" // the event's type is not the subject it was published to
	Unverified      Class = "unverified"       // no proof that it comes from its node
	Unrenderable    Class = "unrenderable"     // the hook's format cannot express it
)

// OfAttempt returns the class of a message whose last attempt went so.
func OfAttempt(c deliver.Class) Class { return Class(c) }

// Letter says why a message could not be delivered.
type Letter struct {
	Class       Class
	Reason      string
	EventID     string // empty where the event could not be read
	Attempts    int
	LastStatus  int // 0 for none
	First, Last time.Time
}

const (
	maxReason    = 1 << 10 // bytes
	maxSignature = 1 << 10 // bytes; a real one has 88
)

// Bury stores a letter with msg's bytes for a hook, waits until the stream has it, terminates msg and waits until the server knows. After an error
// it may be called again: the letter is not stored twice within the stream's duplicate window.
func Bury(ctx context.Context, js jetstream.JetStream, hook string, msg *nats.Msg, l Letter) error {
	meta, err := msg.Metadata()
	if err != nil {
		return fmt.Errorf("dead letter: %w", err)
	}
	h := nats.Header{}
	set := func(name, value string) {
		if value != "" {
			h.Set(name, value)
		}
	}
	set("Content-Type", events.ContentType)
	set(events.HeaderSignature, truncate(msg.Header.Get(events.HeaderSignature), maxSignature))
	set(HeaderClass, string(l.Class))
	set(HeaderReason, truncate(l.Reason, maxReason))
	set(HeaderAttempts, strconv.Itoa(l.Attempts))
	if l.LastStatus != 0 {
		set(HeaderLastStatus, strconv.Itoa(l.LastStatus))
	}
	set(HeaderFirstAttempt, stamp(l.First))
	set(HeaderLastAttempt, stamp(l.Last))
	set(HeaderEventID, l.EventID)
	if strings.HasPrefix(msg.Subject, broker.SubjectRetry) {
		// It was a letter before, which told where the message came from.
		for _, name := range origin {
			set(name, msg.Header.Get(name))
		}
	} else {
		set(HeaderSubject, msg.Subject)
		set(HeaderSequence, strconv.FormatUint(meta.Sequence.Stream, 10))
		set(HeaderStored, stamp(meta.Timestamp))
	}

	letter := &nats.Msg{Subject: Subject(hook), Header: h, Data: msg.Data}
	// The time tells the message from one at the same place of a stream made anew.
	id := fmt.Sprintf("%s.%d.%d", hook, meta.Sequence.Stream, meta.Timestamp.UnixNano())
	if _, err := js.PublishMsg(ctx, letter, jetstream.WithMsgID(id)); err != nil {
		return fmt.Errorf("dead letter: publish to %s: %w", letter.Subject, err)
	}
	// TermWithReason does not wait for the server. A termination lost on the way would bring the message back and deliver it after its funeral.
	term := []byte("+TERM " + string(l.Class))
	if _, err := js.Conn().RequestWithContext(ctx, msg.Reply, term); err != nil {
		return fmt.Errorf("dead letter: terminate message %d: %w", meta.Sequence.Stream, err)
	}
	return nil
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func truncate(s string, n int) string { return s[:min(len(s), n)] }
