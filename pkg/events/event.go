package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxSize bounds an encoded event, in bytes. Encode makes no larger one and Decode reads none.
	MaxSize = 64 << 10
	// ContentType is the media type of an encoded event.
	ContentType = "application/cloudevents+json"
	// Schema is the CloudEvents dataschema of every event.
	Schema = "https://wgherald.dev/schema/wg.peer.v1.json"

	specVersion     = "1.0"
	dataContentType = "application/json"
	maxNameBytes    = 128
)

// Event is a CloudEvents 1.0 event of the catalogue. New makes one; Decode and Verify read one. Everything but Type, Time, Sequence and Data is
// derived from these, and Validate checks that it fits.
type Event struct {
	// ID is unique for each event and the same in every copy of it: deduplicate on it.
	ID string
	// Source is "/nodes/N/interfaces/I" for peer events, and "/nodes/N" for interface and probe events.
	Source string
	Type   Type
	// Subject is what the event is about: the peer's public key, the interface's name, or the node.
	Subject string
	// Time is when it happened, as far as the protocol lets anyone know.
	Time time.Time
	// Sequence is the event's place in its source.
	Sequence Sequence
	// PartitionKey is the same for all events whose order matters to each other: those of one peer, of one interface, of one probe.
	PartitionKey string
	Data         Data
}

// New makes the event that says data happened at the given time, with the given place in the source that SourceOf names.
func New(data Data, at time.Time, seq Sequence) *Event {
	source := SourceOf(data)
	return &Event{
		ID:           id(source, seq),
		Source:       source,
		Type:         data.eventType(),
		Subject:      subjectOf(data),
		Time:         at,
		Sequence:     seq,
		PartitionKey: partitionKeyOf(data),
		Data:         data,
	}
}

// TypeOf returns the type that carries data.
func TypeOf(data Data) Type { return data.eventType() }

// SourceOf returns the source that data's event belongs to, hence the counter that numbers it.
func SourceOf(data Data) string {
	c := data.base()
	source := "/nodes/" + url.PathEscape(c.Node)
	if s, _ := data.eventType().scope(); s == scopePeer {
		source += "/interfaces/" + url.PathEscape(c.Interface)
	}
	return source
}

func subjectOf(data Data) string {
	switch s, _ := data.eventType().scope(); s {
	case scopePeer:
		return data.about().String()
	case scopeInterface:
		return data.base().Interface
	default:
		return data.base().Node
	}
}

func partitionKeyOf(data Data) string {
	c := data.base()
	switch s, _ := data.eventType().scope(); s {
	case scopePeer:
		return StateKey(c.Node, c.Interface, data.about())
	case scopeInterface:
		return escapeToken(c.Node) + "." + escapeToken(c.Interface)
	default:
		return escapeToken(c.Node)
	}
}

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// id returns the first 16 bytes of SHA-256 over the epoch, a line feed, the source, a line feed and the counter, in lower-case base32 (RFC 4648)
// without padding: 26 characters. It is no function of the content, because the same fact may happen twice.
func id(source string, seq Sequence) string {
	var room [256]byte
	text := append(appendDigits(room[:0], seq.Epoch, epochDigits), '\n')
	text = append(append(text, source...), '\n')
	sum := sha256.Sum256(appendDigits(text, seq.N, counterDigits))
	return lowerBase32.EncodeToString(sum[:16])
}

// Common returns the part that every event has.
func (e *Event) Common() *Common { return e.Data.base() }

// Peer returns the configured peer that the event is about, or nil where there is none: interface and probe events, and PeerRejected.
func (e *Event) Peer() *Peer {
	switch d := e.Data.(type) {
	case *Connected:
		return &d.Peer
	case *Disconnected:
		return &d.Peer
	case *Roamed:
		return &d.Peer
	case *Stalled:
		return &d.Peer
	case *Added:
		return &d.Peer
	case *Removed:
		return &d.Peer
	case *Changed:
		return &d.Peer
	case *Unknown:
		return d.Peer
	default:
		return nil
	}
}

// envelope is the structured JSON form but for the data, with the CloudEvents extension attributes sequence and partitionkey.
type envelope struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            Type      `json:"type"`
	Subject         string    `json:"subject"`
	Time            time.Time `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	DataSchema      string    `json:"dataschema"`
	Sequence        Sequence  `json:"sequence"`
	PartitionKey    string    `json:"partitionkey"`
}

// wire is the structured JSON form.
type wire struct {
	envelope
	Data json.RawMessage `json:"data"`
}

func (w envelope) event(data Data) *Event {
	return &Event{
		ID:           w.ID,
		Source:       w.Source,
		Type:         w.Type,
		Subject:      w.Subject,
		Time:         w.Time,
		Sequence:     w.Sequence,
		PartitionKey: w.PartitionKey,
		Data:         data,
	}
}

// Encode returns the event in structured JSON. It fails when the event does not validate or is larger than MaxSize. Equal events encode to equal
// bytes.
func (e *Event) Encode() ([]byte, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	data, err := marshal(e.Data)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Type, err)
	}
	body, err := marshal(wire{envelope{
		SpecVersion:     specVersion,
		ID:              e.ID,
		Source:          e.Source,
		Type:            e.Type,
		Subject:         e.Subject,
		Time:            e.Time.UTC(),
		DataContentType: dataContentType,
		DataSchema:      Schema,
		Sequence:        e.Sequence,
		PartitionKey:    e.PartitionKey,
	}, data})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Type, err)
	}
	if len(body) > MaxSize {
		return nil, fmt.Errorf("encode %s: %w: %d bytes", e.Type, ErrTooLarge, len(body))
	}
	return body, nil
}

// marshal is json.Marshal without the escaping meant for HTML, which would make names hard to read.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// Errors that callers branch on.
var (
	// ErrTooLarge reports an event of more than MaxSize bytes.
	ErrTooLarge = fmt.Errorf("event is larger than %d bytes", MaxSize)
	// ErrUnverified reports an event whose signature does not prove that it comes from its node.
	ErrUnverified = errors.New("event is not verified")
)

// Decode reads an event in structured JSON and validates it. Unknown fields are ignored, and a type that is not in this version's catalogue
// decodes with Unknown data, so that a reader outlives newer probes. No object may have a key twice, in the same or another case, because readers
// differ in which of them they take; none may have more than 256. Decode does not prove where the event comes from: Verify does.
func Decode(body []byte) (*Event, error) {
	if len(body) > MaxSize {
		return nil, fmt.Errorf("decode event: %w: %d bytes", ErrTooLarge, len(body))
	}
	if e, ok := decodeAtOnce(body); ok {
		return e, nil
	}
	return decodeInSteps(body)
}

func decodeInSteps(body []byte) (*Event, error) {
	var w wire
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, fmt.Errorf("decode event: %w", err)
	}
	if err := checkKeys(body); err != nil {
		return nil, fmt.Errorf("decode event: %w", err)
	}
	if w.SpecVersion != specVersion {
		return nil, fmt.Errorf("decode event: specversion is %.20q, want %q", w.SpecVersion, specVersion)
	}
	if w.DataContentType != dataContentType {
		return nil, fmt.Errorf("decode event: datacontenttype is %.80q, want %q", w.DataContentType, dataContentType)
	}
	if _, ok := w.Type.scope(); !ok {
		return nil, fmt.Errorf("decode event: type is %.80q, want wg.peer.*, wg.interface.* or wg.probe.*", w.Type)
	}
	if len(w.Data) == 0 || w.Data[0] != '{' {
		return nil, fmt.Errorf("decode event %s: data is missing or no object", w.Type)
	}
	data := newData(w.Type)
	if err := json.Unmarshal(w.Data, data); err != nil {
		return nil, fmt.Errorf("decode event %s: data: %w", w.Type, err)
	}
	e := w.event(data)
	if err := e.Validate(); err != nil {
		return nil, err
	}
	return e, nil
}

// decodeAtOnce reads an event whose type it finds before it reads the rest, as Encode writes it, so that package json goes through the data once and not three times.
// It returns false when there is anything to be said against the event, which decodeInSteps says, and when that is not how it is written.
func decodeAtOnce(body []byte) (*Event, bool) {
	_, rest, _ := bytes.Cut(body, []byte(`"type":"`))
	found, _, _ := bytes.Cut(rest, []byte(`"`))
	data := newData(Type(found))
	w := struct {
		envelope
		Data Data `json:"data"`
	}{Data: data}
	if err := json.Unmarshal(body, &w); err != nil || checkKeys(body) != nil {
		return nil, false
	}
	// Null as data leaves none, and where there is no data, it has no node.
	if w.SpecVersion != specVersion || w.DataContentType != dataContentType || w.Type != data.eventType() || w.Data == nil {
		return nil, false
	}
	e := w.event(data)
	return e, e.Validate() == nil
}

// Validate checks that the event is whole and that its parts fit together. The error names every field that is wrong.
func (e *Event) Validate() error {
	if e.Data == nil {
		return fmt.Errorf("event %.80s: data is missing", e.Type)
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	sc, ok := e.Type.scope()
	if !ok || e.Type != e.Data.eventType() {
		return fmt.Errorf("event %.80q: type does not fit data of %q", e.Type, e.Data.eventType())
	}
	c := e.Data.base()
	if err := ValidateName(c.Node); err != nil {
		fail("data.node: %w", err)
	}
	switch {
	case sc == scopeProbe && c.Interface != "":
		fail("data.interface is %.40q, want none", c.Interface)
	case sc != scopeProbe:
		if err := ValidateName(c.Interface); err != nil {
			fail("data.interface: %w", err)
		}
	}
	if c.DetectedAt.IsZero() {
		fail("data.detectedAt is missing")
	}
	if e.Time.IsZero() {
		fail("time is missing")
	}
	if e.Sequence.Epoch == 0 || e.Sequence.Epoch > maxEpoch || e.Sequence.N == 0 {
		fail("sequence is %s, want an epoch and a counter from 1", e.Sequence)
	}
	for _, f := range []struct{ name, have, want string }{
		{"source", e.Source, SourceOf(e.Data)},
		{"subject", e.Subject, subjectOf(e.Data)},
		{"partitionkey", e.PartitionKey, partitionKeyOf(e.Data)},
		{"id", e.ID, id(e.Source, e.Sequence)},
	} {
		if f.have != f.want {
			fail("%s is %.200q, want %.200q", f.name, f.have, f.want)
		}
	}
	if err := e.Data.validate(); err != nil {
		fail("data: %w", err)
	}
	if len(errs) > 0 {
		return fmt.Errorf("event %s: %w", e.Type, errors.Join(errs...))
	}
	return nil
}

// ValidateName checks the name of a node or an interface: it fits into a URI, a subject token and a log line.
func ValidateName(s string) error {
	switch {
	case s == "":
		return errors.New("name is missing")
	case len(s) > maxNameBytes:
		return fmt.Errorf("name has %d bytes, want at most %d", len(s), maxNameBytes)
	case !utf8.ValidString(s):
		return fmt.Errorf("name %.80q is no valid UTF-8", s)
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }):
		return fmt.Errorf("name %.80q has white space or control characters", s)
	}
	return nil
}
