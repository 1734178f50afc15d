package admin

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/attempts"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func connected(name string) *events.Event {
	return events.New(&events.Connected{Common: events.Common{Node: "vpn-1", Interface: "wg0"}, Peer: events.Peer{PublicKey: events.Key{1}, Name: name}},
		noon, events.Sequence{Epoch: 1795342000123, N: 1})
}

func letters() []deadletter.Stored {
	return []deadletter.Stored{
		{
			Letter:   deadletter.Letter{Class: "rejected", Reason: "the hook answered 404 Not Found", EventID: "e1", Attempts: 3, LastStatus: 404, First: noon, Last: noon},
			Sequence: 7, Buried: noon, Hook: "chat", Body: []byte(`{"a":"b"}`), Event: connected("alice"), Signature: "sig",
			Subject: "wg.peer.connected", EventSequence: 42, EventStored: noon,
		},
		{
			Letter:   deadletter.Letter{Class: deadletter.Unrenderable, Reason: "no such field"},
			Sequence: 10, Buried: noon.Add(time.Hour), Hook: "pager", Body: []byte(`{}`), Event: connected(""), Subject: "wg.peer.connected",
		},
		{
			Letter:   deadletter.Letter{Class: deadletter.Undecodable, Reason: "event is \x1b[2J\nnot JSON"},
			Sequence: 11, Buried: noon.Add(time.Hour), Hook: "pager", Body: []byte("no \x1b[2J event \xff"), Subject: "wg.peer.connected",
		},
	}
}

func printed(t *testing.T, f func(w *strings.Builder) error) string {
	t.Helper()
	var b strings.Builder
	if err := f(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPrinting(t *testing.T) {
	t.Parallel()
	all := letters()
	hostile := letters()[0]
	hostile.Event = connected("a\x1b[2Jb\u202ec\nd")
	records := []attempts.Record{
		{Time: noon, Hook: "chat", EventID: "e1", Type: events.PeerConnected, Subject: events.Key{1}.String(), Name: "alice", Number: 1, Status: 503, LatencySeconds: 0.01234, Class: "unavailable"},
		{Time: noon, Hook: "chat", EventID: "e1", Type: events.InterfaceUp, Subject: "wg0", Number: 12, LatencySeconds: 15, Class: "timeout"},
	}
	for _, tt := range []struct{ name, want, have string }{
		{
			"a table of letters",
			`
SEQ  BURIED                HOOK   TYPE               PEER                                          REASON        ATTEMPTS  STATUS
7    2026-11-22T12:00:00Z  chat   wg.peer.connected  alice                                         rejected      3         404
10   2026-11-22T13:00:00Z  pager  wg.peer.connected  AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=  unrenderable  0         -
11   2026-11-22T13:00:00Z  pager  wg.peer.connected  -                                             undecodable   0         -
`,
			printed(t, func(w *strings.Builder) error { return Letters(w, slices.Values(all)) }),
		},
		{
			"a name that would move the cursor",
			`
SEQ  BURIED                HOOK  TYPE               PEER        REASON    ATTEMPTS  STATUS
7    2026-11-22T12:00:00Z  chat  wg.peer.connected  a�[2Jb�c�d  rejected  3         404
`,
			printed(t, func(w *strings.Builder) error { return Letters(w, slices.Values([]deadletter.Stored{hostile})) }),
		},
		{
			"letters in JSON",
			`
{"sequence":7,"buried":"2026-11-22T12:00:00Z","hook":"chat","type":"wg.peer.connected","eventId":"e1","subject":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","name":"alice","class":"rejected","reason":"the hook answered 404 Not Found","attempts":3,"lastStatus":404,"firstAttempt":"2026-11-22T12:00:00Z","lastAttempt":"2026-11-22T12:00:00Z","eventSequence":42,"eventStored":"2026-11-22T12:00:00Z"}
{"sequence":11,"buried":"2026-11-22T13:00:00Z","hook":"pager","type":"wg.peer.connected","class":"undecodable","reason":"event is \u001b[2J\nnot JSON","attempts":0}
`,
			printed(t, func(w *strings.Builder) error {
				return LettersJSON(w, slices.Values([]deadletter.Stored{all[0], all[2]}))
			}),
		},
		{
			"one letter whole",
			`
sequence       7
buried         2026-11-22T12:00:00Z
hook           chat
type           wg.peer.connected
event          e1
subject        AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
name           alice
class          rejected
reason         the hook answered 404 Not Found
attempts       3
last status    404
first attempt  2026-11-22T12:00:00Z
last attempt   2026-11-22T12:00:00Z
stored         2026-11-22T12:00:00Z
place          42 in WG_EVENTS
signature      sig

{
  "a": "b"
}
`,
			printed(t, func(w *strings.Builder) error { return Letter(w, all[0]) }),
		},
		{
			"what is no event, whole",
			`
sequence     11
buried       2026-11-22T13:00:00Z
hook         pager
type         wg.peer.connected
class        undecodable
reason       event is �[2J�not JSON
attempts     0
last status  -
signature    none

"no \x1b[2J event \xff"
`,
			printed(t, func(w *strings.Builder) error { return Letter(w, all[2]) }),
		},
		{
			"what is no event, in JSON",
			`
{"sequence":11,"buried":"2026-11-22T13:00:00Z","hook":"pager","type":"wg.peer.connected","class":"undecodable","reason":"event is \u001b[2J\nnot JSON","attempts":0,"body":"bm8gG1sySiBldmVudCD/"}
`,
			printed(t, func(w *strings.Builder) error { return LetterJSON(w, all[2]) }),
		},
		{
			"attempts",
			`
2026-11-22T12:00:00Z  chat              wg.peer.connected     alice                                          1  unavailable  503  12.34ms
2026-11-22T12:00:00Z  chat              wg.interface.up       wg0                                           12  timeout        -  15s
`,
			printed(t, func(w *strings.Builder) error { return Attempts(w, records) }),
		},
		{
			"attempts in JSON",
			`
{"time":"2026-11-22T12:00:00Z","hook":"chat","eventId":"e1","type":"wg.interface.up","subject":"wg0","number":12,"status":0,"latencySeconds":15,"class":"timeout"}
`,
			printed(t, func(w *strings.Builder) error { return AttemptsJSON(w, records[1:]) }),
		},
		{
			"leftovers",
			`
STREAM     HOOK  BACKLOG  IN USE
WG_EVENTS  gone  12       no
WG_RETRY   gone  0        yes
`,
			printed(t, func(w *strings.Builder) error {
				return Leftovers(w, []Leftover{{"WG_EVENTS", "gone", 12, false}, {"WG_RETRY", "gone", 0, true}})
			}),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), tt.have); diff != "" {
				t.Errorf("(-want +have):\n%s", diff)
			}
			if strings.ContainsAny(tt.have, "\x1b\u202e") {
				t.Error("it has what a terminal acts upon")
			}
		})
	}
}
