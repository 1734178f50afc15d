// Package render turns an event into the body of a webhook request.
//
// It is pure. It does not sign, because the signature covers the time of the attempt, and it does not know URLs or credentials. A format is a
// function, so that presets and templates join as further values of Format and nothing else changes.
package render

import "github.com/wgherald/wgherald/pkg/events"

// Request is what a format decides about a request.
type Request struct {
	Body   []byte            // not to be changed: it may be the event's own bytes
	Header map[string]string // Content-Type at least
}

// Format renders an event. raw is the event as it was stored and signed by its probe. An error means that no attempt can ever succeed.
type Format func(e *events.Event, raw []byte) (Request, error)

var structured = map[string]string{"Content-Type": events.ContentType}

// CloudEvents is the structured mode of the CloudEvents HTTP binding (1.0, section 3.2): the stored bytes unchanged.
func CloudEvents(_ *events.Event, raw []byte) (Request, error) {
	return Request{Body: raw, Header: structured}, nil
}
