package render

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"mime"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
)

// MaxOutput bounds what a template makes, in bytes.
const MaxOutput = 64 << 10

// View is what a template sees: the event, with the parts that most have in a place of their own. They are zero where an event has none, so that one
// template serves all types. Data is the typed data of package events; its fields differ, so they stand behind {{if eq .Type "…"}}.
type View struct {
	Type       events.Type
	ID         string
	Source     string
	Subject    string
	Sequence   string
	Time       time.Time
	DetectedAt time.Time
	Inferred   bool
	Node       string
	Interface  string
	Name       string // whom it is about: the peer's name or the start of its key, the interface, the node
	Text       string // all of it in one line
	Peer       events.Peer
	Session    events.Session
	Reason     string // of a disconnection or an interface that went
	Data       events.Data
}

func view(e *events.Event) View {
	c := e.Common()
	v := View{
		Type: e.Type, ID: e.ID, Source: e.Source, Subject: e.Subject, Sequence: e.Sequence.String(), Time: e.Time,
		DetectedAt: c.DetectedAt, Inferred: c.Inferred, Node: c.Node, Interface: c.Interface,
		Name: displayName(e), Text: text(e), Peer: peerOf(e), Data: e.Data,
	}
	switch d := e.Data.(type) {
	case *events.Connected:
		v.Session = d.Session
	case *events.Disconnected:
		v.Session, v.Reason = d.Session, string(d.Reason)
	case *events.Roamed:
		v.Session = d.Session
	case *events.Down:
		v.Reason = string(d.Reason)
	}
	return v
}

// functions are all that a template can call beside the built-in ones, which reach nothing but their arguments.
var functions = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := marshal(v)
		return string(b), err
	},
	"bytes": func(v any) (string, error) {
		n, err := count(v)
		return binaryBytes(n), err
	},
	"duration": func(v any) (string, error) {
		n, err := count(v)
		return seconds(int64(min(n, math.MaxInt64))), err
	},
}

// NewTemplate returns the format of a template (package text/template, over a View). It has been executed against sample events of every type, with and
// without what may be missing; with a JSON content type its output must be JSON. The error tells the line and the type that failed.
func NewTemplate(source, contentType string) (Format, error) {
	media, err := MediaType(contentType)
	if err != nil {
		return nil, err
	}
	t, err := template.New("t").Funcs(functions).Parse(source)
	if err != nil {
		return nil, templateError(err)
	}
	isJSON := media == "application/json" || strings.HasSuffix(media, "+json")
	format := func(e *events.Event, _ []byte) (Request, error) {
		body, err := execute(t, view(e))
		if err != nil {
			return Request{}, err
		}
		if isJSON && !json.Valid(body) {
			return Request{}, errors.New("the output is not JSON: does every text go through {{json …}}?")
		}
		return Request{Body: body, Header: map[string]string{"Content-Type": contentType}}, nil
	}
	for _, s := range samples() {
		if _, err := format(s.event, nil); err != nil {
			return nil, fmt.Errorf("on %s%s: %w", s.event.Type, s.note, err)
		}
	}
	return format, nil
}

// MediaType returns the media type that a Content-Type names, without its parameters. The error repeats nothing of it.
func MediaType(contentType string) (string, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil || !strings.Contains(media, "/") || strings.ContainsFunc(contentType, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", errors.New("not a media type, such as application/json")
	}
	return media, nil
}

// execute runs a template within bounds.
func execute(t *template.Template, v View) (body []byte, err error) {
	defer func() {
		if r := recover(); r != nil { // package template passes run-time errors on
			err = errors.New("the template failed")
		}
	}()
	var out bounded
	if err := t.Execute(&out, v); err != nil {
		if errors.Is(err, errTooLong) {
			return nil, errTooLong
		}
		return nil, templateError(err)
	}
	return out.text, nil
}

var errTooLong = fmt.Errorf("the output is larger than %d bytes", MaxOutput)

type bounded struct{ text []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.text)+len(p) > MaxOutput {
		return 0, errTooLong
	}
	b.text = append(b.text, p...)
	return len(p), nil
}

var (
	position = regexp.MustCompile(`^template: t:(\d+):`)
	// told are the messages of package template that repeat nothing but names of the template.
	told = regexp.MustCompile(`can't evaluate field \w+|nil pointer evaluating|range can't iterate|exceeded maximum template depth|` +
		`error calling \w+(: want a whole number of 0 or more)?|wrong number of args for \w+: want [a-z0-9 ]+ got \d+|` +
		`function "\w{1,40}" not defined|undefined variable "\$\w{1,40}"|unexpected EOF|unexpected {{\w+}}|unterminated [a-z ]+|unclosed \w+|` +
		`can't give argument to non-function|missing value for \w+`)
)

// templateError says where a template fails and, of the message, what repeats nothing of the template's text but names: a text may hold a token of the
// receiver, and messages repeat it in many ways.
func templateError(err error) error {
	line, text := "?", err.Error()
	if m := position.FindStringSubmatch(text); m != nil {
		line = m[1]
	}
	what := "malformed"
	if all := told.FindAllString(text, -1); all != nil {
		what = all[len(all)-1] // the message comes last
	}
	return fmt.Errorf("line %s of the template: %s", line, what)
}
