package render

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/wgherald/wgherald/pkg/events"
)

// maxForeign bounds, in characters, each text of an event that nothing else bounds.
const maxForeign = 128

// plain makes one short line of a text that somebody else chose.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), r == '\u2028', r == '\u2029':
			return ' '
		case unicode.Is(unicode.Bidi_Control, r):
			return -1 // would turn around what stands beside the name
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
	if runes := []rune(s); len(runes) > maxForeign {
		s = string(runes[:maxForeign-1]) + "…"
	}
	return s
}

// peerOf returns the peer that an event is about; of a rejected one only the key and the endpoint are known. Without a peer it is the zero value.
func peerOf(e *events.Event) events.Peer {
	if p := e.Peer(); p != nil {
		return *p
	}
	if d, ok := e.Data.(*events.Rejected); ok {
		return events.Peer{PublicKey: d.PublicKey, Endpoint: d.Endpoint}
	}
	return events.Peer{}
}

// displayName returns what people call whom the event is about: the peer's name or the start of its key, the interface, or the node.
func displayName(e *events.Event) string {
	p := peerOf(e)
	switch {
	case p.Name != "":
		return plain(p.Name)
	case !p.PublicKey.IsZero():
		return p.PublicKey.String()[:8] + "…"
	}
	return plain(e.Subject)
}

// text tells an event in one line of less than 1000 characters.
func text(e *events.Event) string {
	headline, detail := tell(e)
	c := e.Common()
	where := plain(c.Node)
	if c.Interface != "" {
		where = plain(c.Interface) + " on " + where
	}
	if c.Inferred {
		where += ", found afterwards"
	}
	return headline + detail + " (" + where + ")"
}

// tell returns who did what, and what more there is to say.
func tell(e *events.Event) (headline, detail string) {
	name := displayName(e)
	from := func(endpoint string) string {
		if endpoint == "" {
			return ""
		}
		return " from " + plain(endpoint) // the zone of an IPv6 address may be anything
	}
	switch d := e.Data.(type) {
	case *events.Connected:
		if d.Session.Resumed {
			return name + " is back", from(d.Peer.Endpoint)
		}
		return name + " connected", from(d.Peer.Endpoint)
	case *events.Disconnected:
		return name + " disconnected", fmt.Sprintf(": %s after %s, %s received, %s sent", because(d.Reason), seconds(d.Session.DurationSeconds),
			binaryBytes(d.Session.RxBytes), binaryBytes(d.Session.TxBytes))
	case *events.Roamed:
		if d.To != "" {
			detail = from(d.From) + " to " + plain(d.To)
		}
		return name + " roamed", detail
	case *events.Stalled:
		return name + " gets no session", fmt.Sprintf(": %d attempts since %s%s", d.Attempts, d.Since.UTC().Format(time.RFC3339), from(d.Peer.Endpoint))
	case *events.Rejected:
		return name + " was turned away", fmt.Sprintf("%s: its key is not configured here, attempts: %d", from(d.Endpoint), d.Count)
	case *events.Added:
		return name + " was added", ""
	case *events.Removed:
		return name + " was removed", ""
	case *events.Changed:
		return name + " was changed", ""
	case *events.Up:
		return name + " is up", fmt.Sprintf(": port %d, %d peers", d.Device.ListenPort, d.Peers)
	case *events.Down:
		return name + " is down", ": " + strings.ReplaceAll(string(d.Reason), "_", " ")
	case *events.DeviceChanged:
		return name + " was changed", ""
	case *events.Started:
		if d.BlindSeconds > 0 {
			detail = ", it was blind for " + seconds(d.BlindSeconds)
		}
		return "probe " + name + " started", detail
	case *events.Stopped:
		return "probe " + name + " stopped", " after " + seconds(d.UptimeSeconds)
	}
	return plain(string(e.Type)) + ": " + name, "" // of a newer probe
}

func because(r events.Reason) string {
	switch r {
	case events.Expired:
		return "session expired"
	case events.Silent:
		return "fell silent"
	case events.Unreachable:
		return "unreachable"
	case events.PeerWasRemoved:
		return "removed from the configuration"
	case events.InterfaceIsDown:
		return "interface down"
	}
	return plain(string(r))
}

// seconds writes a number of seconds as 1h2m3s.
func seconds(n int64) string {
	return (time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second).String()
}

// binaryBytes writes a number of bytes as 1.2 MiB.
func binaryBytes(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/(1<<10), 0
	for f >= 1023.95 { // what would be written as 1024.0
		f /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[unit])
}

// count reads a number that a template passed. The error shows no value.
func count(v any) (uint64, error) {
	switch r := reflect.ValueOf(v); {
	case r.IsValid() && r.CanUint():
		return r.Uint(), nil
	case r.IsValid() && r.CanInt() && r.Int() >= 0:
		return uint64(r.Int()), nil
	}
	return 0, errors.New("want a whole number of 0 or more")
}
