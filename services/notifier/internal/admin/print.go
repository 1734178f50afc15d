package admin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/attempts"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

// letter is a dead letter as -json prints it.
type letter struct {
	Sequence      uint64           `json:"sequence"` // in WG_DEAD: what the commands take
	Buried        time.Time        `json:"buried"`
	Hook          string           `json:"hook"`
	Type          string           `json:"type"` // of the event, or the subject of what is none
	EventID       string           `json:"eventId,omitempty"`
	Subject       string           `json:"subject,omitempty"` // of the event: the peer's public key, where it is about a peer
	Name          string           `json:"name,omitempty"`    // of the peer
	Class         deadletter.Class `json:"class"`
	Reason        string           `json:"reason"`
	Attempts      int              `json:"attempts"`
	LastStatus    int              `json:"lastStatus,omitempty"`
	FirstAttempt  time.Time        `json:"firstAttempt,omitzero"`
	LastAttempt   time.Time        `json:"lastAttempt,omitzero"`
	EventSequence uint64           `json:"eventSequence,omitempty"` // in WG_EVENTS
	EventStored   time.Time        `json:"eventStored,omitzero"`

	// Only of a letter that is shown whole.
	Signature string          `json:"signature,omitempty"`
	Event     json.RawMessage `json:"event,omitempty"`
	Body      []byte          `json:"body,omitempty"` // base64, where it is no JSON
}

func describe(l deadletter.Stored) letter {
	d := letter{
		Sequence: l.Sequence, Buried: l.Buried.UTC(), Hook: l.Hook, Type: l.Subject, EventID: l.EventID, Class: l.Class, Reason: l.Reason,
		Attempts: l.Attempts, LastStatus: l.LastStatus, FirstAttempt: l.First, LastAttempt: l.Last,
		EventSequence: l.EventSequence, EventStored: l.EventStored,
	}
	if e := l.Event; e != nil {
		d.Type, d.Subject = string(e.Type), e.Subject
		if p := e.Peer(); p != nil {
			d.Name = p.Name
		}
	}
	return d
}

// Letters prints a table of dead letters, or nothing where there is none. Of each it keeps the row alone, for the widths of the columns.
func Letters(w io.Writer, letters iter.Seq[deadletter.Stored]) error {
	var t table
	for l := range letters {
		if t.Writer == nil {
			t = newTable(w, "SEQ", "BURIED", "HOOK", "TYPE", "PEER", "REASON", "ATTEMPTS", "STATUS")
		}
		d := describe(l)
		t.row(strconv.FormatUint(d.Sequence, 10), stamp(d.Buried), d.Hook, d.Type, who(d.Name, d.Subject), string(d.Class), strconv.Itoa(d.Attempts), status(d.LastStatus))
	}
	if t.Writer == nil {
		return nil
	}
	return t.Flush()
}

// LettersJSON prints a line for each dead letter, as it comes.
func LettersJSON(w io.Writer, letters iter.Seq[deadletter.Stored]) error {
	for l := range letters {
		if err := line(w, describe(l)); err != nil {
			return err
		}
	}
	return nil
}

// Letter prints one dead letter whole.
func Letter(w io.Writer, l deadletter.Stored) error {
	d := describe(l)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, printable(value))
		}
	}
	field("sequence", strconv.FormatUint(d.Sequence, 10))
	field("buried", stamp(d.Buried))
	field("hook", d.Hook)
	field("type", d.Type)
	field("event", d.EventID)
	field("subject", d.Subject)
	field("name", d.Name)
	field("class", string(d.Class))
	field("reason", d.Reason)
	field("attempts", strconv.Itoa(d.Attempts))
	field("last status", status(d.LastStatus))
	field("first attempt", stamp(d.FirstAttempt))
	field("last attempt", stamp(d.LastAttempt))
	field("stored", stamp(d.EventStored))
	if d.EventSequence > 0 {
		field("place", fmt.Sprintf("%d in %s", d.EventSequence, events.StreamEvents))
	}
	field("signature", cmp.Or(l.Signature, "none"))
	if err := t.Flush(); err != nil {
		return err
	}
	var body bytes.Buffer
	if json.Indent(&body, l.Body, "", "  ") != nil {
		body.Reset()
		body.WriteString(strconv.QuoteToASCII(string(l.Body))) // no JSON
	}
	for text := range strings.SplitSeq("\n"+body.String(), "\n") {
		if _, err := fmt.Fprintln(w, printable(text)); err != nil {
			return err
		}
	}
	return nil
}

// LetterJSON prints one dead letter whole in a line.
func LetterJSON(w io.Writer, l deadletter.Stored) error {
	d := describe(l)
	d.Signature = l.Signature
	if json.Valid(l.Body) {
		d.Event = l.Body
	} else {
		d.Body = l.Body
	}
	return line(w, d)
}

// Attempts prints attempts, one in a line of fixed columns, so that what follows later stands under it.
func Attempts(w io.Writer, records []attempts.Record) error {
	for _, r := range records {
		latency := time.Duration(r.LatencySeconds * float64(time.Second)).Round(10 * time.Microsecond)
		_, err := fmt.Fprintf(w, "%s  %-16s  %-20s  %-44s  %2d  %-11s  %3s  %s\n", stamp(r.Time), printable(r.Hook), printable(string(r.Type)),
			printable(who(r.Name, r.Subject)), r.Number, printable(string(r.Class)), status(r.Status), latency)
		if err != nil {
			return err
		}
	}
	return nil
}

// AttemptsJSON prints a line for each attempt.
func AttemptsJSON(w io.Writer, records []attempts.Record) error {
	for _, r := range records {
		if err := line(w, r); err != nil {
			return err
		}
	}
	return nil
}

// Leftovers prints a table of consumers that hooks have left behind.
func Leftovers(w io.Writer, list []Leftover) error {
	t := newTable(w, "STREAM", "HOOK", "BACKLOG", "IN USE")
	for _, l := range list {
		inUse := "no"
		if l.InUse {
			inUse = "yes"
		}
		t.row(l.Stream, l.Hook, strconv.FormatUint(l.Backlog, 10), inUse)
	}
	return t.Flush()
}

// table aligns its columns.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer, columns ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(columns...)
	return t
}

func (t table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = cmp.Or(printable(c), "-")
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
}

// printable replaces what a terminal would act upon.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

func line(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// who is a peer's name where it has one.
func who(name, subject string) string { return cmp.Or(name, subject, "-") }

func status(code int) string {
	if code == 0 {
		return "-"
	}
	return strconv.Itoa(code)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
