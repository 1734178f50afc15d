// Package render turns an event into the body and the headers of a webhook request: one of the formats that Names lists, or a template of the hook's owner.
//
// It is pure. It does not sign, because the signature covers the time of the attempt, and it does not know URLs or credentials. What an event says is
// hostile here: names come from files and from networks, so every format quotes them as its receiver wants it.
package render

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/wgherald/wgherald/pkg/events"
)

// Request is what a format decides about a request.
type Request struct {
	Body   []byte            // not to be changed: it may be the event's own bytes
	Header map[string]string // Content-Type at least
}

// Format renders an event. raw is the event as it was stored and signed by its probe. An error means that no attempt can ever succeed; it repeats nothing
// of a template's text but names, because receivers want tokens in bodies, too.
type Format func(e *events.Event, raw []byte) (Request, error)

// Names are the formats that Named knows; the first is the default.
var Names = []string{"cloudevents", "binary", "slack", "discord", "ntfy"}

// Chat reports whether the format is one of the chats', whose receivers verify no signature.
func Chat(name string) bool { return name == "slack" || name == "discord" || name == "ntfy" }

// Named returns the format of a name.
func Named(name string) (Format, error) {
	switch name {
	case "cloudevents":
		return CloudEvents, nil
	case "binary":
		return Binary, nil
	case "slack":
		return Slack, nil
	case "discord":
		return Discord, nil
	case "ntfy":
		return Ntfy, nil
	}
	return nil, fmt.Errorf("%.40q is none of %s", name, strings.Join(Names, ", "))
}

var structured = map[string]string{"Content-Type": events.ContentType}

// CloudEvents is the structured mode of the CloudEvents HTTP binding (1.0, section 3.2): the stored bytes unchanged.
func CloudEvents(_ *events.Event, raw []byte) (Request, error) {
	return Request{Body: raw, Header: structured}, nil
}

// Binary is the binary mode of the CloudEvents HTTP binding (1.0, section 3.1): attributes in ce- headers, the data as body. Attributes that this version
// does not know are sent like the others, as the structured mode does.
func Binary(_ *events.Event, raw []byte) (Request, error) {
	var attributes map[string]json.RawMessage
	if err := json.Unmarshal(raw, &attributes); err != nil {
		return Request{}, fmt.Errorf("event is no JSON object: %v", err)
	}
	r := Request{Body: attributes["data"], Header: map[string]string{}}
	for name, value := range attributes {
		var text string
		switch {
		case name == "data" || !isAttribute(name) || string(value) == "null":
			continue
		case value[0] == '"':
			if err := json.Unmarshal(value, &text); err != nil {
				return Request{}, fmt.Errorf("attribute %.20s is no text: %v", name, err)
			}
		case value[0] == '{' || value[0] == '[':
			continue // no type of CloudEvents
		default:
			text = string(value)
		}
		if name == "datacontenttype" {
			r.Header["Content-Type"] = text // the only one that is not percent-encoded; Decode pins its value
			continue
		}
		r.Header["Ce-"+strings.ToUpper(name[:1])+name[1:]] = percentEncode(text)
	}
	return r, nil
}

// isAttribute reports whether name is that of a CloudEvents attribute: lower-case letters and digits.
func isAttribute(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}

// percentEncode encodes what section 3.1.3.2 of the HTTP binding says: space, double quote, percent, and all outside of U+0021 to U+007E.
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// marshal is json.Marshal without the escaping meant for HTML, which would make names hard to read.
func marshal(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}
