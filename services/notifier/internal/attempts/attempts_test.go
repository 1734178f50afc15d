package attempts

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

const limit = 30 * time.Second // a test that waits longer has failed

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within %s: %s", limit, what)
}

func startBroker(t *testing.T) *broker.Embedded {
	t.Helper()
	e, err := broker.StartEmbedded(t.Context(), broker.EmbeddedOptions{
		StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// login connects as the daemon does.
func login(t *testing.T, e *broker.Embedded, role string) *nats.Conn {
	t.Helper()
	nc, err := broker.Connect(t.Context(), broker.ConnectOptions{URL: e.URL(), Role: role, NkeyFile: e.IdentityFile(role), Once: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// start returns a log that is being written.
func start(t *testing.T, nc *nats.Conn) *Log {
	t.Helper()
	l, err := New(nc, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l
}

var alice = events.New(&events.Connected{
	Common: events.Common{Node: "vpn-1", Interface: "wg0"}, Peer: events.Peer{PublicKey: events.Key{1}, Name: "alice", Endpoint: "203.0.113.7:41641"},
}, time.Now(), events.Sequence{Epoch: 1795342000123, N: 1})

func attempt(hook string, n int) consume.Attempt {
	return consume.Attempt{Hook: hook, Event: alice, Number: n, Result: deliver.Result{
		Class: deliver.Unavailable, Reason: "a reason", Status: 503, Latency: 12 * time.Millisecond, Answer: "an answer",
	}}
}

func operated(t *testing.T, e *broker.Embedded) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(login(t, e, broker.Operator))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), broker.StreamAttempt)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestWhatIsWrittenIsReadByTheOperator(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	t.Cleanup(e.Shutdown)
	l, stream := start(t, login(t, e, broker.Notifier)), operated(t, e)
	if records, next, err := Last(t.Context(), stream, "", 10); err != nil || len(records) != 0 || next != 1 {
		t.Errorf("of an empty log: %v, next %d, %v", records, next, err)
	}
	for n := range 100 { // chat's are rare
		hook := "pager"
		if n%20 == 0 {
			hook = "chat"
		}
		l.Attempted(attempt(hook, n+1))
	}
	var records []Record
	var next uint64
	eventually(t, "100 records", func() bool {
		var err error
		if records, next, err = Last(t.Context(), stream, "", 1000); err != nil {
			t.Fatal(err)
		}
		return len(records) == 100
	})
	want := Record{
		Time: records[0].Time, Hook: "chat", EventID: alice.ID, Type: events.PeerConnected, Subject: events.Key{1}.String(), Name: "alice",
		Number: 1, Status: 503, LatencySeconds: 0.012, Class: deliver.Unavailable,
	}
	if diff := cmp.Diff(want, records[0]); diff != "" || time.Since(records[0].Time) > limit {
		t.Errorf("the first record (-want +have):\n%s", diff)
	}
	if n := l.Dropped(); n != 0 {
		t.Errorf("%d dropped", n)
	}
	for _, tt := range []struct {
		name, hook string
		n          int
		want       []int
	}{
		{"the last of all", "", 3, []int{98, 99, 100}},
		{"the last of one hook, far back", "chat", 3, []int{41, 61, 81}},
		{"more than one hook has", "chat", 50, []int{1, 21, 41, 61, 81}},
		{"a hook that has none", "other", 5, nil},
		{"none", "", 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			records, after, err := Last(t.Context(), stream, tt.hook, tt.n)
			if err != nil {
				t.Fatal(err)
			}
			var numbers []int
			for _, r := range records {
				numbers = append(numbers, r.Number)
			}
			if diff := cmp.Diff(tt.want, numbers); diff != "" || after != next {
				t.Errorf("next %d, want %d, numbers (-want +have):\n%s", after, next, diff)
			}
		})
	}
	l.Attempted(attempt("chat", 101))
	l.Attempted(attempt("pager", 102))
	eventually(t, "what follows", func() bool {
		records, after, err := Since(t.Context(), stream, "chat", next)
		return err == nil && len(records) == 1 && records[0].Number == 101 && after == next+1
	})
}

func TestManyAttemptsAreFewMessages(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	t.Cleanup(e.Shutdown)
	l, err := New(login(t, e, broker.Notifier), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stream := operated(t, e)
	begin := time.Now()
	var gathered []Record
	for n := range 99 {
		gathered = append(gathered, Record{Hook: []string{"chat", "pager", "mail"}[n%3], Number: n + 1, Time: begin.Add(time.Duration(n))})
	}
	l.publish(gathered)
	<-l.js.PublishAsyncComplete()
	for _, n := range []int{1, 2, 50, 99} {
		records, next, err := Last(t.Context(), stream, "", n)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) != n || records[0].Number != 100-n || records[n-1].Number != 99 || next != 4 {
			t.Errorf("the last %d of 99 in 3 messages: %d, next %d: %v", n, len(records), next, records)
		}
	}
}

func TestABrokerThatIsAwayCostsRecordsAndNoTime(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	nc := login(t, e, broker.Notifier)
	l := start(t, nc)
	e.Shutdown()
	eventually(t, "the connection is lost", func() bool { return !nc.IsConnected() })
	const n = 3 * waiting
	for i := range n {
		l.Attempted(attempt("chat", i+1))
	}
	eventually(t, "every record is counted as dropped", func() bool { return l.Dropped() == n })
}

func TestAttemptedDoesNotBlock(t *testing.T) {
	t.Parallel()
	l := &Log{records: make(chan Record, waiting)} // nobody takes them
	for i := range waiting + 5 {
		l.Attempted(attempt("chat", i+1))
	}
	if n := l.Dropped(); n != 5 {
		t.Errorf("%d dropped, want 5", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("wg.attempt.chat", []byte(`{"hook":"chat","number":1}`))
	f.Add("wg.attempt.chat", []byte(`{"type":"io.nats.jetstream.api.v1.stream_info_response"}`))
	f.Fuzz(func(t *testing.T, subject string, body []byte) {
		for _, r := range Parse(&jetstream.RawStreamMsg{Subject: subject, Data: body}) {
			if broker.SubjectAttempt+r.Hook != subject {
				t.Errorf("hook %q of subject %q", r.Hook, subject)
			}
		}
	})
}
