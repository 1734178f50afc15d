package main

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/watch"
	"github.com/wgherald/wgherald/pkg/events"
)

var (
	at     = time.Date(2026, 11, 22, 10, 14, 25, 673_000_000, time.UTC)
	common = events.Common{Node: "lab", Interface: "wg0", DetectedAt: at}
	alice  = events.Peer{PublicKey: events.Key{1}, Name: "alice-laptop", Endpoint: "203.0.113.11:41641"}
	carol  = events.Peer{PublicKey: events.Key{3}, Name: "carol-desktop", Endpoint: "203.0.113.13:41643"}
	plain  = &terminal{}
)

func event(n uint64, data events.Data) *events.Event {
	return events.New(data, at, events.Sequence{Epoch: 1, N: n})
}

func session(seconds int64) events.Session {
	return events.Session{StartedAt: at, LastHandshakeAt: at, RxBytes: 276, TxBytes: 12_345, DurationSeconds: seconds}
}

func TestEventLine(t *testing.T) {
	t.Parallel()
	inferred := common
	inferred.Inferred = true
	tests := map[string]struct {
		data events.Data
		want string
	}{
		"connected":     {&events.Connected{Common: common, Peer: alice}, "wg.peer.connected     alice-laptop   from 203.0.113.11:41641"},
		"resumed":       {&events.Connected{Common: common, Peer: alice, Session: events.Session{Resumed: true}}, "wg.peer.connected     alice-laptop   from 203.0.113.11:41641, resumed"},
		"rejected":      {&events.Rejected{Common: common, PublicKey: events.Key{1}, Endpoint: "203.0.113.66:1", Count: 1}, "wg.peer.rejected      AQAAAAAA…      from 203.0.113.66:1, no such peer"},
		"stalled":       {&events.Stalled{Common: common, Peer: alice, Attempts: 3}, "wg.peer.stalled       alice-laptop   3 attempts and no session"},
		"disconnected":  {&events.Disconnected{Common: common, Peer: carol, Session: session(90), Reason: events.Expired}, "wg.peer.disconnected  carol-desktop  expired, 1m30s, rx 276 B, tx 12.3 kB"},
		"roamed":        {&events.Roamed{Common: common, Peer: alice, From: "203.0.113.11:1", To: "198.51.100.11:2"}, "wg.peer.roamed        alice-laptop   203.0.113.11:1 -> 198.51.100.11:2"},
		"removed":       {&events.Removed{Common: common, Peer: carol}, "wg.peer.removed       carol-desktop"},
		"found later":   {&events.Removed{Common: inferred, Peer: carol}, "wg.peer.removed       carol-desktop  inferred"},
		"interface up":  {&events.Up{Common: inferred, Device: events.Device{ListenPort: 51820}, Peers: 5}, "wg.interface.up       wg0            UDP port 51820, 5 peers, inferred"},
		"interface":     {&events.Down{Common: common, Reason: events.SetDown}, "wg.interface.down     wg0            set_down"},
		"without name":  {&events.Removed{Common: common, Peer: events.Peer{PublicKey: events.Key{1}}}, "wg.peer.removed       AQAAAAAA…"},
		"probe started": {&events.Started{Common: events.Common{Node: "lab"}, Trigger: events.TriggerPackets}, "wg.probe.started      lab            learns of handshakes by packets"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff("10:14:25.673 "+tt.want, eventLine(plain, watch.Message{At: at, Event: event(1, tt.data)})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := eventLine(plain, watch.Message{At: at, Err: errors.New("event is not verified")}); got != "10:14:25.673 event is not verified" {
		t.Errorf("not verified: %q", got)
	}
}

func TestDeliveryLine(t *testing.T) {
	t.Parallel()
	e := event(1, &events.Connected{Common: common, Peer: alice})
	arrived := at.Add(2345 * time.Microsecond)
	tests := map[string]struct {
		d    sink.Delivery
		want string
	}{
		"taken":         {sink.Delivery{At: arrived, Attempt: 1, Event: e, Status: 204}, "wg.peer.connected     alice-laptop   default 204, try 1, signature ok, 2.3 ms"},
		"refused":       {sink.Delivery{At: arrived, Attempt: 2, Event: e, Status: 503}, "wg.peer.connected     alice-laptop   default 503, try 2, signature ok, 2.3 ms"},
		"left hanging":  {sink.Delivery{At: arrived, Attempt: 1, Event: e}, "wg.peer.connected     alice-laptop   default no answer, try 1, signature ok, 2.3 ms"},
		"bad signature": {sink.Delivery{At: arrived, Attempt: 1, Event: e, Status: 400, Err: errors.New("no matching signature found")}, "default 400, try 1, no matching signature found"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff("10:14:25.675 "+tt.want, deliveryLine(plain, tt.d)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	rows := []row{{name: "alice-laptop", key: alice.PublicKey, state: stateWaiting}, {name: "carol-desktop", key: carol.PublicKey, state: stateWaiting}}
	for _, e := range []*events.Event{
		event(1, &events.Connected{Common: common, Peer: alice}),
		event(2, &events.Connected{Common: common, Peer: carol}),
		event(3, &events.Disconnected{Common: common, Peer: carol, Reason: events.PeerWasRemoved}),
		event(4, &events.Removed{Common: common, Peer: carol}),
	} {
		for i := range rows {
			rows[i].tell(e)
		}
	}
	for i := range rows {
		rows[i].count([]wgtypes.Peer{{
			PublicKey: wgtypes.Key(alice.PublicKey), Endpoint: &net.UDPAddr{IP: net.IPv4(203, 0, 113, 11), Port: 41641},
			LastHandshakeTime: at, ReceiveBytes: 276, TransmitBytes: 1240,
		}})
	}
	want := []string{
		"PEER           KEY        STATE           ENDPOINT              SINCE HANDSHAKE       RX       TX",
		"alice-laptop   AQAAAAAA…  connected       203.0.113.11:41641     1m5s      1m5s    276 B   1240 B",
		"carol-desktop  AwAAAAAA…  removed         -                      1m5s         -      0 B      0 B",
	}
	if diff := cmp.Diff(want, table(plain, rows, at.Add(65*time.Second))); diff != "" {
		t.Error(diff)
	}
	rows[0].tell(event(5, &events.Disconnected{Common: common, Peer: alice, Reason: events.InterfaceIsDown}))
	rows[1].tell(event(6, &events.Added{Common: common, Peer: carol}))
	if rows[0].state != "interface_down" || rows[1].state != stateWaiting {
		t.Errorf("states %q and %q", rows[0].state, rows[1].state)
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{0: "0 B", 9999: "9999 B", 10_000: "10.0 kB", 12_345_678: "12.3 MB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		line  string
		width int
		want  string
	}{
		"fits":                    {"abc", 3, "abc"},
		"too long":                {"abcd", 3, "abc"},
		"counts characters":       {"ab…d", 3, "ab…"},
		"colours take no room":    {"\x1b[32mabc\x1b[0m", 3, "\x1b[32mabc\x1b[0m"},
		"a colour cut off ends":   {"a\x1b[32mbcd\x1b[0m", 3, "a\x1b[32mbc\x1b[0m"},
		"nothing":                 {"", 3, ""},
		"text after a colour":     {"\x1b[1ma\x1b[0mbcd", 3, "\x1b[1ma\x1b[0mbc"},
		"a colour without an end": {"ab\x1b[", 3, "ab"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := cut(tt.line, tt.width); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestColourOnlyOnATerminal(t *testing.T) {
	t.Parallel()
	_, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if term := openTerminal(w, os.Getenv); term.colour || term.redraws {
		t.Errorf("a pipe is taken for %+v", term)
	}
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer pty.Close()
	tests := map[string]struct {
		env             map[string]string
		colour, redraws bool
	}{
		"a terminal":      {map[string]string{"TERM": "xterm-256color"}, true, true},
		"NO_COLOR":        {map[string]string{"TERM": "xterm-256color", "NO_COLOR": "1"}, false, true},
		"a dumb terminal": {map[string]string{"TERM": "dumb"}, false, false},
		"no TERM":         {nil, false, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			term := openTerminal(pty, func(k string) string { return tt.env[k] })
			if term.colour != tt.colour || term.redraws != tt.redraws {
				t.Errorf("colour %t, redraws %t", term.colour, term.redraws)
			}
		})
	}
}

// TestComposeFillsTheScreen checks that a frame has as many lines as the screen, whatever there is to show, and keeps what matters in sight.
func TestComposeFillsTheScreen(t *testing.T) {
	t.Parallel()
	e := event(1, &events.Connected{Common: common, Peer: alice})
	full := frame{peers: make([]string, 6), story: []string{"one", "two", "three", "four"}, commands: []string{"go run this \\", "  -with that"}}
	for range 50 {
		full.published = append(full.published, watch.Message{At: at, Event: e})
		full.delivered = append(full.delivered, sink.Delivery{At: at, Event: e, Status: 204, Attempt: 1})
	}
	for name, f := range map[string]frame{"full": full, "empty": {peers: make([]string, 6), commands: full.commands}} {
		for _, height := range []int{24, 30, 61} {
			lines := compose(plain, f, height)
			if len(lines) != height {
				t.Errorf("%s, height %d: %d lines", name, height, len(lines))
			}
			if lines[len(lines)-1] != "  -with that" {
				t.Errorf("%s, height %d: the last line is %q", name, height, lines[len(lines)-1])
			}
		}
	}
	if lines := compose(plain, full, 10); len(lines) != 10 {
		t.Errorf("a low screen gets %d lines, want 10", len(lines))
	}
	text := strings.Join(compose(plain, full, 30), "\n")
	if strings.Contains(text, "  one") || !strings.Contains(text, "  two\n  three\n> four\n") {
		t.Errorf("the story is not in sight:\n%s", text)
	}
}

func TestLatencies(t *testing.T) {
	t.Parallel()
	var connects []connect
	for _, d := range []int{3, 1, 5, 2, 4} {
		later := func(n int) time.Time { return at.Add(time.Duration(n) * time.Millisecond) }
		connects = append(connects, connect{initiation: at, handshake: later(1), event: later(10 + d), webhook: later(20 + d)})
	}
	want := `  latency of 5 connections                  to the event         to the webhook
                                           p50       max          p50       max
  from the initiation on the wire      13.0 ms   15.0 ms      23.0 ms   25.0 ms
  from last_handshake                  12.0 ms   14.0 ms      22.0 ms   24.0 ms
`
	if diff := cmp.Diff(want, latencies(connects)); diff != "" {
		t.Error(diff)
	}
}
