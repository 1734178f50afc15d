package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

func TestAudit(t *testing.T) {
	t.Parallel()
	up := event(1, &events.Up{Common: common, Peers: 2})
	a := event(1, &events.Connected{Common: common, Peer: alice})
	c := event(2, &events.Connected{Common: common, Peer: carol})
	gone := event(3, &events.Disconnected{Common: common, Peer: carol, Reason: events.PeerWasRemoved})
	expected := map[string][]events.Type{
		"wg0":     {events.InterfaceUp},
		a.Subject: {events.PeerConnected},
		c.Subject: {events.PeerConnected, events.PeerDisconnected},
	}
	all := []*events.Event{up, a, c, gone}
	tests := map[string]struct {
		delivered []*events.Event
		published []*events.Event
		spoil     func([]sink.Delivery)
		want      string // part of the error, empty for none
	}{
		"as it has to be":            {all, all, nil, ""},
		"different peers permuted":   {[]*events.Event{c, up, gone, a}, all, nil, ""},
		"one twice":                  {[]*events.Event{up, a, a, c, gone}, all, nil, ""},
		"one missing":                {[]*events.Event{up, c, gone}, all, nil, "counted to 3, 2 events were delivered"},
		"the last missing":           {[]*events.Event{up, a, c}, all, nil, "wg.peer.disconnected of carol-desktop was published and not delivered"},
		"one that was not published": {all, []*events.Event{up, a, c}, nil, "was delivered and not published"},
		"out of order":               {[]*events.Event{up, a, gone, c}, all, nil, "wg.peer.connected of carol-desktop came out of order"},
		"one too many":               {append(slices.Clone(all), event(4, &events.Removed{Common: common, Peer: alice})), nil, nil, "expected was [wg.peer.connected]"},
		"of somebody else":           {append(slices.Clone(all), event(4, &events.Removed{Common: common, Peer: events.Peer{PublicKey: events.Key{9}}})), nil, nil, "expected was nothing"},
		"a bad signature":            {all, all, func(d []sink.Delivery) { d[1].Err, d[1].Status = errors.New("no matching signature found"), 400 }, "request 2 was answered 400: no matching signature found"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ledger []sink.Delivery
			for _, e := range tt.delivered {
				ledger = append(ledger, sink.Delivery{Event: e, Status: 204, Attempt: 1})
			}
			if tt.spoil != nil {
				tt.spoil(ledger)
			}
			err := audit(ledger, tt.published, expected)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBecause(t *testing.T) {
	t.Parallel()
	late, cancel := context.WithTimeoutCause(t.Context(), 0, errors.New("not within 17s"))
	defer cancel()
	interrupted, interrupt := context.WithCancel(t.Context())
	interrupt()
	missing := func(ctx context.Context) error {
		return fmt.Errorf("no wg.peer.roamed of bob-phone at the sink: %w", ctx.Err())
	}
	<-late.Done()
	if got := because(late, missing(late)).Error(); got != "no wg.peer.roamed of bob-phone at the sink: not within 17s" {
		t.Errorf("too late: %q", got)
	}
	if got := because(interrupted, missing(interrupted)); !errors.Is(got, context.Canceled) {
		t.Errorf("interrupted: %v", got)
	}
}

func TestCycleLeavesNothingOut(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	var said, done []string
	thing := func(text string) happening {
		return happening{text, func(context.Context) error { done = append(done, text); return nil }}
	}
	between := func(context.Context) (*happening, error) {
		switch len(done) {
		case 2, 3, 7:
			h := thing("erin is back")
			return &h, nil
		case 9:
			return nil, enough
		}
		return nil, nil
	}
	err := cycle(t.Context(), []happening{thing("add"), thing("home"), thing("remove"), thing("away")}, between,
		func(text string) { said = append(said, text) })
	if !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
	want := []string{"add", "home", "erin is back", "erin is back", "remove", "away", "add", "erin is back", "home"}
	if !slices.Equal(done, want) || !slices.Equal(said, want) {
		t.Errorf("said %q, did %q, want %q", said, done, want)
	}
}
