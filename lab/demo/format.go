package main

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/watch"
	"github.com/wgherald/wgherald/pkg/events"
)

// hook is the name that the notifier gives the hook of WEBHOOK_URL.
const hook = "default"

const (
	clock      = "15:04:05.000"
	typeWidth  = len(events.PeerDisconnected)
	aboutWidth = len("carol-desktop")
)

// eventLine tells of an event on NATS: time of arrival, type, whom it is about, what it says.
func eventLine(t *terminal, m watch.Message) string {
	if m.Err != nil {
		return fmt.Sprintf("%s %s", m.At.Format(clock), t.paint(red, m.Err.Error()))
	}
	line := fmt.Sprintf("%s %s  %s  %s", m.At.Format(clock), t.paint(colourOf(m.Event.Type), pad(string(m.Event.Type), typeWidth)),
		pad(subject(m.Event), aboutWidth), detail(m.Event))
	return strings.TrimRight(line, " ")
}

// deliveryLine tells of a request to the webhook receiver: time of arrival, type, whom it is about, hook, answer, attempt, whether its signature was
// right, and the time since the probe knew.
func deliveryLine(t *terminal, d sink.Delivery) string {
	answer := "no answer"
	if d.Status != 0 {
		answer = fmt.Sprint(d.Status)
	}
	answer = fmt.Sprintf("%s %s, try %d, ", hook, t.paint(statusColour(d.Status), answer), d.Attempt)
	if d.Err != nil {
		return d.At.Format(clock) + " " + answer + t.paint(red, d.Err.Error())
	}
	return fmt.Sprintf("%s %s  %s  %s%s, %s", d.At.Format(clock), pad(string(d.Event.Type), typeWidth), pad(subject(d.Event), aboutWidth), answer,
		t.paint(green, "signature ok"), ms(d.At.Sub(d.Event.Common().DetectedAt)))
}

func statusColour(status int) string {
	if status/100 == http.StatusOK/100 {
		return green
	}
	return red
}

func colourOf(t events.Type) string {
	switch t {
	case events.PeerConnected, events.InterfaceUp, events.ProbeStarted:
		return green
	case events.PeerDisconnected, events.PeerRemoved, events.PeerRejected, events.InterfaceDown, events.ProbeStopped:
		return red
	default:
		return yellow
	}
}

// subject is the name of what an event is about.
func subject(e *events.Event) string {
	if p := e.Peer(); p != nil {
		return cmp.Or(p.Name, shortKey(p.PublicKey))
	}
	if d, ok := e.Data.(*events.Rejected); ok {
		return shortKey(d.PublicKey)
	}
	return e.Subject
}

// detail is what an event says beyond its type and subject.
func detail(e *events.Event) string {
	var text string
	switch d := e.Data.(type) {
	case *events.Connected:
		text = "from " + d.Peer.Endpoint
		if d.Session.Resumed {
			text += ", resumed"
		}
	case *events.Disconnected:
		text = fmt.Sprintf("%s, %v, rx %s, tx %s", d.Reason, time.Duration(d.Session.DurationSeconds)*time.Second, size(d.Session.RxBytes), size(d.Session.TxBytes))
	case *events.Roamed:
		text = d.From + " -> " + d.To
	case *events.Rejected:
		text = "from " + d.Endpoint + ", no such peer"
	case *events.Stalled:
		text = fmt.Sprintf("%d attempts and no session", d.Attempts)
	case *events.Added:
		text = fmt.Sprint(d.Peer.AllowedIPs)
	case *events.Up:
		text = fmt.Sprintf("UDP port %d, %d peers", d.Device.ListenPort, d.Peers)
	case *events.Down:
		text = string(d.Reason)
	case *events.Started:
		text = fmt.Sprintf("learns of handshakes by %s", d.Trigger)
	}
	if e.Common().Inferred {
		text = strings.TrimPrefix(text+", inferred", ", ")
	}
	return text
}

// shortKey is enough of a key to recognise it.
func shortKey(k events.Key) string { return k.String()[:8] + "…" }

// size writes a number of bytes.
func size(n uint64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	default:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
}

// ago writes how long something is past, to the second.
func ago(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	return now.Sub(then).Truncate(time.Second).String()
}

// row is a peer in the table: what the events said about it, and what the device counts.
type row struct {
	name      string
	key       events.Key
	state     string
	endpoint  string
	since     time.Time // of the state
	handshake time.Time
	rx, tx    int64
}

// The states of a row. A disconnected peer's state is the reason.
const (
	stateWaiting   = "waiting"
	stateConnected = "connected"
	stateRemoved   = "removed"
)

func newRows(l *lab.Lab) []row {
	var rows []row
	for _, c := range l.Clients {
		rows = append(rows, row{name: c.Name, key: c.PublicKey(), state: stateWaiting})
	}
	return rows
}

// tell changes a row as an event about the peer says.
func (r *row) tell(e *events.Event) {
	if e.Subject != r.key.String() {
		return
	}
	switch d := e.Data.(type) {
	case *events.Connected:
		r.state, r.since = stateConnected, e.Time
	case *events.Disconnected:
		r.state, r.since = string(d.Reason), e.Time
	case *events.Removed:
		r.state, r.since = stateRemoved, e.Time
	case *events.Added:
		r.state, r.since = stateWaiting, e.Time
	}
}

// count changes a row as the device shows the peer.
func (r *row) count(peers []wgtypes.Peer) {
	r.endpoint, r.handshake, r.rx, r.tx = "", time.Time{}, 0, 0
	for _, p := range peers {
		if events.Key(p.PublicKey) != r.key {
			continue
		}
		r.handshake, r.rx, r.tx = p.LastHandshakeTime, p.ReceiveBytes, p.TransmitBytes
		if p.Endpoint != nil {
			r.endpoint = p.Endpoint.String()
		}
	}
}

// table is the peers, one to a line, under a headline.
func table(t *terminal, rows []row, now time.Time) []string {
	lines := []string{t.paint(dim, fmt.Sprintf("%-13s  %-9s  %-14s  %-19s %7s %9s %8s %8s", "PEER", "KEY", "STATE", "ENDPOINT", "SINCE", "HANDSHAKE", "RX", "TX"))}
	for _, r := range rows {
		colour := red
		switch r.state {
		case stateConnected:
			colour = green
		case stateWaiting:
			colour = dim
		}
		lines = append(lines, fmt.Sprintf("%s  %s  %s  %-19s %7s %9s %8s %8s", pad(r.name, 13), shortKey(r.key), t.paint(colour, pad(r.state, 14)),
			cmp.Or(r.endpoint, "-"), ago(now, r.since), ago(now, r.handshake), size(uint64(r.rx)), size(uint64(r.tx))))
	}
	return lines
}
