package deadletter

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func event(t testing.TB, name string, key events.Key) *events.Event {
	t.Helper()
	return events.New(&events.Connected{
		Common:  events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: noon},
		Peer:    events.Peer{PublicKey: key, Name: name},
		Session: events.Session{StartedAt: noon, LastHandshakeAt: noon},
	}, noon, events.Sequence{Epoch: 1795342000123, N: 1})
}

func TestSelection(t *testing.T) {
	t.Parallel()
	key := events.Key{0xfb, 0xff, 1}
	rejected := Stored{
		Letter:   Letter{Class: "rejected", Reason: "the hook answered 404 Not Found"},
		Sequence: 7, Hook: "chat", Buried: noon, Event: event(t, "alice", key),
	}
	junk := Stored{Letter: Letter{Class: Undecodable, Reason: "event is not JSON"}, Sequence: 8, Hook: "pager", Buried: noon.Add(time.Hour)}
	for _, tt := range []struct {
		name           string
		sel            Selection
		rejected, junk bool
	}{
		{"nothing selected", Selection{}, true, true},
		{"a hook", Selection{Hook: "chat"}, true, false},
		{"the start of a hook's name", Selection{Hook: "cha"}, false, false},
		{"a number", Selection{Sequences: []uint64{8, 9}}, false, true},
		{"a number of another hook", Selection{Sequences: []uint64{8}, Hook: "chat"}, false, false},
		{"a type", Selection{Types: []string{"wg.peer.connected"}}, true, false},
		{"types by pattern", Selection{Types: []string{"wg.interface.*", "wg.peer.*"}}, true, false},
		{"another type", Selection{Types: []string{"wg.peer.roamed"}}, false, false},
		{"a peer by name", Selection{Peers: []string{"alice"}}, true, false},
		{"a peer by key", Selection{Peers: []string{key.String()}}, true, false},
		{"peers by pattern", Selection{Peers: []string{"bob", "al*"}}, true, false},
		{"another peer", Selection{Peers: []string{"bob"}}, false, false},
		{"a class", Selection{Reason: "undecodable"}, false, true},
		{"words of the reason", Selection{Reason: "404 not"}, true, false},
		{"a status", Selection{Reason: "404"}, true, false},
		{"since a moment, which is in it", Selection{Since: noon}, true, true},
		{"since later", Selection{Since: noon.Add(time.Second)}, false, true},
		{"until a moment, which is not in it", Selection{Until: noon.Add(time.Hour)}, true, false},
		{"until earlier", Selection{Until: noon}, false, false},
		{"an hour", Selection{Since: noon.Add(time.Minute), Until: noon.Add(2 * time.Hour)}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wants, err := tt.sel.Compile()
			if err != nil {
				t.Fatal(err)
			}
			if wants(rejected) != tt.rejected || wants(junk) != tt.junk {
				t.Errorf("rejected %v, junk %v, want %v, %v", wants(rejected), wants(junk), tt.rejected, tt.junk)
			}
			if tt.sel.All() != (tt.name == "nothing selected") {
				t.Errorf("All is %v", tt.sel.All())
			}
		})
	}
	for _, s := range []Selection{{Types: []string{"wg.peer.conected"}}, {Peers: []string{"[a"}}, {Peers: []string{""}}} {
		if _, err := s.Compile(); err == nil {
			t.Errorf("%+v is no error", s)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	body, err := event(t, "alice", events.Key{1}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	e, err := events.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	letter := func(headers ...string) *jetstream.RawStreamMsg {
		h := nats.Header{}
		for i := 0; i < len(headers); i += 2 {
			h.Set(headers[i], headers[i+1])
		}
		return &jetstream.RawStreamMsg{Subject: "wg.dead.chat", Sequence: 7, Header: h, Data: body, Time: noon}
	}
	whole := letter(HeaderClass, "rejected", HeaderReason, "no", HeaderAttempts, "3", HeaderLastStatus, "404", HeaderFirstAttempt, "2026-11-22T11:00:00Z",
		HeaderLastAttempt, "2026-11-22T11:30:00Z", HeaderSubject, "wg.peer.connected", HeaderSequence, "42", HeaderStored, "2026-11-22T10:00:00Z",
		events.HeaderSignature, "sig")
	want := Stored{
		Letter: Letter{Class: "rejected", Reason: "no", EventID: e.ID, Attempts: 3, LastStatus: 404,
			First: noon.Add(-time.Hour), Last: noon.Add(-30 * time.Minute)},
		Sequence: 7, Buried: noon, Hook: "chat", Body: body, Event: e, Signature: "sig",
		Subject: "wg.peer.connected", EventSequence: 42, EventStored: noon.Add(-2 * time.Hour),
	}
	have, ok := Parse(whole)
	if diff := cmp.Diff(want, have); !ok || diff != "" {
		t.Errorf("%v (-want +have):\n%s", ok, diff)
	}
	bad := letter(HeaderClass, "undecodable", HeaderAttempts, "many", HeaderLastAttempt, "yesterday")
	bad.Data = []byte("no event")
	if l, ok := Parse(bad); !ok || l.Event != nil || l.Attempts != 0 || !l.Last.IsZero() || string(l.Body) != "no event" {
		t.Errorf("a letter with unreadable headers: %v %+v", ok, l)
	}
	for name, msg := range map[string]*jetstream.RawStreamMsg{
		"no header":                {Subject: "wg.dead.chat", Data: body},
		"another stream's subject": {Subject: "wg.retry.chat", Data: body, Header: whole.Header},
	} {
		if _, ok := Parse(msg); ok {
			t.Errorf("%s: it is a letter", name)
		}
	}
}

// FuzzParse reads letters with any header and body: whoever may write to the stream wrote them.
func FuzzParse(f *testing.F) {
	f.Add("wg.dead.chat", HeaderAttempts, "-1", []byte("{}"))
	f.Fuzz(func(t *testing.T, subject, name, value string, body []byte) {
		msg := &jetstream.RawStreamMsg{Subject: subject, Header: nats.Header{HeaderClass: {"rejected"}, name: {value}}, Data: body}
		if l, ok := Parse(msg); ok && Subject(l.Hook) != subject {
			t.Errorf("hook %q of subject %q", l.Hook, subject)
		}
	})
}
