package main

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
)

var at = time.Date(2026, 11, 22, 10, 14, 25, 673_000_000, time.UTC)

func connected(n uint64) *events.Event {
	return events.New(&events.Connected{
		Common:  events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: at},
		Peer:    events.Peer{PublicKey: events.Key{1}, Name: "alice-laptop", Endpoint: "203.0.113.7:41641"},
		Session: events.Session{StartedAt: at, LastHandshakeAt: at},
	}, at, events.Sequence{Epoch: 1795342000123, N: n})
}

func encode(t *testing.T, e *events.Event) []byte {
	t.Helper()
	body, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestRead(t *testing.T) {
	t.Parallel()
	probe := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	ring := events.Keyring{"vpn-1": {probe.Public().(ed25519.PublicKey)}}
	body := encode(t, connected(1))
	signature := events.Sign(body, probe)
	tests := map[string]struct {
		ring      events.Keyring
		subject   string
		body      []byte
		signature string
		err       string // part of the error, empty for none
	}{
		"signed":                   {ring, "wg.peer.connected", body, signature, ""},
		"without keyring":          {nil, "wg.peer.connected", body, "", ""},
		"not signed":               {ring, "wg.peer.connected", body, "", "not verified"},
		"signed for other bytes":   {ring, "wg.peer.connected", encode(t, connected(2)), signature, "not verified"},
		"on another subject":       {ring, "wg.peer.roamed", body, signature, "was published to wg.peer.roamed"},
		"no event":                 {nil, "wg.peer.connected", []byte("{}"), "", "decode event"},
		"no event, with a keyring": {ring, "wg.peer.connected", []byte("{}"), signature, "decode event"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReader()
			r.ring = tt.ring
			e, err := r.read(tt.subject, tt.body, tt.signature)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if (e == nil) != (err != nil) {
				t.Errorf("event %v", e)
			}
		})
	}
}

func TestReadReturnsEachEventOnce(t *testing.T) {
	t.Parallel()
	r := newReader()
	var got []uint64
	for _, n := range []uint64{1, 2, 1, 3, 3} {
		e, err := r.read("wg.peer.connected", encode(t, connected(n)), "")
		if err != nil {
			t.Fatal(err)
		}
		if e != nil {
			got = append(got, e.Sequence.N)
		}
	}
	if diff := cmp.Diff([]uint64{1, 2, 3}, got); diff != "" {
		t.Error(diff)
	}
}

func TestState(t *testing.T) {
	t.Parallel()
	e := connected(7)
	alice := events.State{
		Node: "vpn-1", Interface: "wg0", Peer: *e.Peer(), Connected: true, Session: &events.Session{StartedAt: at, LastHandshakeAt: at},
		Sequence: e.Sequence, EventID: e.ID, EventType: e.Type, UpdatedAt: at,
	}
	value, err := alice.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r := newReader()
	key := events.StateKey("vpn-1", "wg0", events.Key{1})
	s, err := r.state(key, value)
	if err != nil {
		t.Fatal(err)
	}
	want := at.Local().Format("2006-01-02 15:04:05.000") + "  vpn-1/wg0  is connected          alice-laptop at 203.0.113.7:41641"
	if diff := cmp.Diff(want, stateLine(s)); diff != "" {
		t.Error(diff)
	}
	// The event that made it so is no news.
	if e, err := r.read("wg.peer.connected", encode(t, e), ""); e != nil || err != nil {
		t.Errorf("event %v, %v", e, err)
	}
	for name, tt := range map[string]struct{ key, value, want string }{
		"of another node":   {events.StateKey("vpn-2", "wg0", events.Key{1}), string(value), "was written to vpn-2.wg0."},
		"an ack of a probe": {key, `{"stream":"WG_EVENTS","seq":1}`, "state of"},
		"no JSON":           {key, "true", "decode state"},
	} {
		if _, err := r.state(tt.key, []byte(tt.value)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

func TestRecentForgetsTheOldest(t *testing.T) {
	t.Parallel()
	r := recent{known: map[string]bool{}, ring: make([]string, 2)}
	var got []string
	for _, id := range strings.Fields("a b a c b a") { // c pushes a out, and a comes back
		if !r.before(id) {
			got = append(got, id)
		}
	}
	if diff := cmp.Diff(strings.Fields("a b c a"), got); diff != "" {
		t.Error(diff)
	}
	if len(r.known) != 2 {
		t.Errorf("remembers %d ids, want 2", len(r.known))
	}
}

func TestHoles(t *testing.T) {
	t.Parallel()
	upTo := func(from, to uint64) (n []uint64) {
		for ; from <= to; from++ {
			n = append(n, from)
		}
		return n
	}
	tests := map[string]struct {
		arrivals []uint64
		want     uint64
	}{
		"all in order":                       {upTo(1, 200), 0},
		"begins in the middle":               {upTo(50, 200), 0},
		"one overtakes others":               {append([]uint64{1, 5, 2, 3, 4}, upTo(6, 200)...), 0},
		"what is late by a window is no gap": {append(append([]uint64{1}, upTo(3, 2+window)...), 2), 0},
		"two are missing":                    {append([]uint64{1}, upTo(4, 200)...), 2},
		"two gaps":                           {append(append([]uint64{1}, upTo(3, 50)...), upTo(60, 200)...), 1 + 9},
		"a huge gap costs nothing":           {append([]uint64{1}, upTo(1<<40, 1<<40+200)...), 1<<40 - 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := holes{}
			var got uint64
			for _, n := range tt.arrivals {
				got += h.note("/nodes/vpn-1/interfaces/wg0", events.Sequence{Epoch: 1, N: n})
			}
			if got != tt.want {
				t.Errorf("%d missing, want %d", got, tt.want)
			}
		})
	}
}

func TestHolesOfSourcesAndEpochsAreApart(t *testing.T) {
	t.Parallel()
	h := holes{}
	for _, source := range []string{"/nodes/a/interfaces/wg0", "/nodes/b/interfaces/wg0"} {
		for epoch := range uint64(2) {
			for n := range uint64(2 * window) {
				if missing := h.note(source, events.Sequence{Epoch: 1 + epoch, N: 1000*epoch + n}); missing != 0 {
					t.Fatalf("%s, epoch %d, %d: %d missing", source, epoch, n, missing)
				}
			}
		}
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	common := events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: at}
	alice := events.Peer{PublicKey: events.Key{1}, Name: "alice-laptop", Endpoint: "203.0.113.7:41641"}
	session := events.Session{StartedAt: at, LastHandshakeAt: at, DurationSeconds: 90}
	blind := common
	blind.Inferred = true
	tests := map[string]struct {
		data events.Data
		want string
	}{
		"connected":       {&events.Connected{Common: common, Peer: alice, Session: session}, "vpn-1/wg0  wg.peer.connected     alice-laptop from 203.0.113.7:41641"},
		"disconnected":    {&events.Disconnected{Common: common, Peer: alice, Session: session, Reason: events.Expired}, "vpn-1/wg0  wg.peer.disconnected  alice-laptop: expired, after 1m30s"},
		"roamed":          {&events.Roamed{Common: common, Peer: alice, Session: session, From: "203.0.113.7:1", To: "203.0.113.8:2"}, "vpn-1/wg0  wg.peer.roamed        alice-laptop from 203.0.113.7:1 to 203.0.113.8:2"},
		"without a name":  {&events.Removed{Common: common, Peer: events.Peer{PublicKey: events.Key{1}}}, "vpn-1/wg0  wg.peer.removed       AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
		"found afterward": {&events.Removed{Common: blind, Peer: alice}, "vpn-1/wg0  wg.peer.removed       alice-laptop (found afterwards)"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := at.Local().Format("2006-01-02 15:04:05.000") + "  " + tt.want
			if diff := cmp.Diff(want, line(events.New(tt.data, at, events.Sequence{Epoch: 1, N: 1}))); diff != "" {
				t.Error(diff)
			}
		})
	}
}
