package consume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

const (
	patience  = 30 * time.Second // a test that waits longer has failed
	forged    = "forged"         // a signature that the tests' Verify refuses
	secret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	urlSecret = "MARKED0secret"
)

// broker is a NATS server with the two streams, which can be restarted.
type broker struct {
	t    testing.TB
	opts server.Options
	srv  *server.Server
	js   jetstream.JetStream // of the test itself
	seq  atomic.Uint64
}

func newBroker(t testing.TB) *broker {
	t.Helper()
	b := &broker{t: t, opts: brokerOptions(t)}
	b.begin()
	return b
}

func brokerOptions(t testing.TB) server.Options {
	return server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
}

// begin starts the broker for the first time and makes its streams.
func (b *broker) begin() {
	t := b.t
	t.Helper()
	b.start()
	t.Cleanup(func() { b.stop() })
	b.js = b.connect()
	for _, cfg := range []jetstream.StreamConfig{
		{Name: events.StreamEvents, Subjects: []string{"wg.peer.*", "wg.interface.*", "wg.probe.*"}},
		{Name: deadletter.Stream, Subjects: []string{"wg.dead.*"}, Duplicates: time.Minute},
	} {
		if _, err := b.js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *broker) start() {
	b.t.Helper()
	opts := b.opts // the server writes into it
	srv, err := server.NewServer(&opts)
	if err != nil {
		b.t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(patience) {
		b.t.Fatal("the broker does not start")
	}
	b.srv, b.opts.Port = srv, opts.Port
}

func (b *broker) stop() {
	b.srv.Shutdown()
	b.srv.WaitForShutdown()
}

// connect returns a connection of its own, as each notifier has.
func (b *broker) connect() jetstream.JetStream {
	b.t.Helper()
	nc, err := nats.Connect(b.srv.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectBufSize(-1))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		b.t.Fatal(err)
	}
	return js
}

// event makes the next event, about a peer of this name.
func (b *broker) event(peer string) *events.Event {
	now := time.Now()
	var key events.Key
	copy(key[:], peer)
	return events.New(&events.Connected{
		Common:  events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: now},
		Peer:    events.Peer{PublicKey: key, Name: peer},
		Session: events.Session{StartedAt: now, LastHandshakeAt: now},
	}, now, events.Sequence{Epoch: 1795342000123, N: b.seq.Add(1)})
}

// publish stores one event for each peer named and returns their ids.
func (b *broker) publish(peers ...string) []string {
	b.t.Helper()
	var ids []string
	for _, peer := range peers {
		e := b.event(peer)
		body, err := e.Encode()
		if err != nil {
			b.t.Fatal(err)
		}
		b.store(string(e.Type), body, "")
		ids = append(ids, e.ID)
	}
	return ids
}

func (b *broker) store(subject string, body []byte, signature string) {
	b.t.Helper()
	msg := nats.NewMsg(subject)
	msg.Data = body
	if signature != "" {
		msg.Header.Set(events.HeaderSignature, signature)
	}
	if _, err := b.js.PublishMsg(b.t.Context(), msg); err != nil {
		b.t.Fatal(err)
	}
}

func (b *broker) info(hook string) *jetstream.ConsumerInfo {
	b.t.Helper()
	cons, err := b.js.Consumer(b.t.Context(), events.StreamEvents, Durable(hook))
	if err != nil {
		b.t.Fatal(err)
	}
	return cons.CachedInfo()
}

// pin returns who owns the hook.
func (b *broker) pin(hook string) string {
	for _, g := range b.info(hook).PriorityGroups {
		return g.PinnedClientID
	}
	return ""
}

// finished waits until everything is delivered to the hook and acknowledged.
func (b *broker) finished(hook string) {
	b.t.Helper()
	stream, err := b.js.Stream(b.t.Context(), events.StreamEvents)
	if err != nil {
		b.t.Fatal(err)
	}
	eventually(b.t, "everything is acknowledged", func() bool {
		info := b.info(hook) // a consumer may not count yet what was stored a moment ago
		return info.NumPending == 0 && info.NumAckPending == 0 && info.Delivered.Stream >= stream.CachedInfo().State.LastSeq
	})
}

// letters returns the dead letters.
func (b *broker) letters() []*jetstream.RawStreamMsg {
	b.t.Helper()
	stream, err := b.js.Stream(b.t.Context(), deadletter.Stream)
	if err != nil {
		b.t.Fatal(err)
	}
	var letters []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		msg, err := stream.GetMsg(b.t.Context(), seq)
		if err != nil {
			b.t.Fatal(err)
		}
		letters = append(letters, msg)
	}
	return letters
}

// eventually polls a condition on what runs beside the test.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within %s: %s", patience, what)
}

// got is one request that a sink received.
type got struct {
	Peer, ID string
	Status   int // that it answered
	at       time.Time
}

// sink is a webhook receiver with a ledger.
type sink struct {
	*httptest.Server
	mu     sync.Mutex
	ledger []got
}

// newSink starts a sink that answers as told. nth counts the requests for this event from 1.
func newSink(t testing.TB, answer func(w http.ResponseWriter, peer string, nth int) int) *sink {
	t.Helper()
	s := &sink{}
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // cut off
		}
		if err := verifier.Verify(body, r.Header); err != nil {
			t.Errorf("the sink refuses a signature: %v", err)
		}
		e, err := events.Decode(body)
		if err != nil {
			t.Errorf("the sink got no event: %v", err)
			return
		}
		s.mu.Lock()
		nth := 1
		for _, g := range s.ledger {
			if g.ID == e.ID {
				nth++
			}
		}
		i := len(s.ledger)
		s.ledger = append(s.ledger, got{Peer: e.Peer().Name, ID: e.ID, at: time.Now()})
		s.mu.Unlock()
		status := answer(w, e.Peer().Name, nth)
		s.mu.Lock()
		s.ledger[i].Status = status
		s.mu.Unlock()
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s
}

// requests returns the ledger.
func (s *sink) requests() []got {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ledger)
}

// accepted returns the ids that the sink took, for one peer or for all, in order, each once.
func (s *sink) accepted(peer string) []string {
	var ids []string
	for _, g := range s.requests() {
		if g.Status == http.StatusOK && (peer == "" || g.Peer == peer) && !slices.Contains(ids, g.ID) {
			ids = append(ids, g.ID)
		}
	}
	return ids
}

// take waits until the sink accepted n events of a peer, or of all.
func (s *sink) take(t testing.TB, peer string, n int) []string {
	t.Helper()
	eventually(t, fmt.Sprintf("%d events of %q accepted", n, peer), func() bool { return len(s.accepted(peer)) >= n })
	return s.accepted(peer)
}

func same(t testing.TB, what string, want, have []string) {
	t.Helper()
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("%s (-want +have):\n%s", what, diff)
	}
}

func ok(http.ResponseWriter, string, int) int { return http.StatusOK }

// observer keeps what it is told.
type observer struct {
	mu       sync.Mutex
	attempts []Attempt
	buried   []deadletter.Class
	maxHeld  int
	loads    int
	load     Load
	withheld int
	lost     uint64
}

func (o *observer) Attempted(a Attempt) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attempts = append(o.attempts, a)
}

func (o *observer) Buried(_ string, c deadletter.Class) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buried = append(o.buried, c)
}

func (o *observer) Loaded(_ string, l Load) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.load, o.maxHeld = l, max(o.maxHeld, l.Held)
	o.loads++
}

func (o *observer) Withheld(_ string, events int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.withheld += events
}

func (o *observer) Lost(_ string, events uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lost += events
}

// read returns a value that f takes from the observer.
func read[T any](o *observer, f func(*observer) T) T {
	o.mu.Lock()
	defer o.mu.Unlock()
	return f(o)
}

func (o *observer) circuit() Circuit {
	return read(o, func(o *observer) Circuit { return o.load.Circuit })
}

func (o *observer) held() (now, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.load.Held, o.maxHeld
}

// notifier is a consumer that runs.
type notifier struct {
	t        testing.TB
	js       jetstream.JetStream
	observer *observer
	log      *lockedBuffer
	cancel   context.CancelFunc
	done     chan struct{}
	err      error // of Run, once done
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

type option func(*Config, *timing)

func withRetry(p retry.Policy) option { return func(c *Config, _ *timing) { c.Hook.Retry = p } }

func withTiming(ackWait, pinnedTTL time.Duration) option {
	return func(_ *Config, tm *timing) { tm.ackWait, tm.pinnedTTL = ackWait, pinnedTTL }
}

// quick retries soon and gives up late.
var quick = retry.Policy{Initial: 20 * time.Millisecond, Factor: 1.5, Max: time.Minute, Jitter: 0.2, GiveUp: time.Hour}

// run starts a notifier for the hook "h" with a connection of its own. It is stopped after the test.
func run(t testing.TB, b *broker, s *sink, opts ...option) *notifier {
	t.Helper()
	key, err := sign.ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	n := &notifier{t: t, js: b.connect(), observer: &observer{}, log: &lockedBuffer{}, done: make(chan struct{})}
	cfg := Config{
		JetStream: n.js,
		Hook: Hook{
			Name:   "h",
			Target: deliver.Target{URL: s.URL + "/" + urlSecret, Secrets: []sign.Secret{key}},
			Format: render.CloudEvents,
			Retry:  quick,
		},
		Version: "test",
		Verify: func(body []byte, signature string) (*events.Event, error) {
			e, err := events.Decode(body)
			if err == nil && signature == forged {
				return nil, fmt.Errorf("%w: %s", events.ErrUnverified, e.Type)
			}
			return e, err
		},
		Observer: n.observer,
		Log:      slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	tm := timing{ackWait: time.Minute, pinnedTTL: 30 * time.Second, audit: time.Minute}
	for _, o := range opts {
		o(&cfg, &tm)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.timing = tm
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() {
		defer close(n.done)
		if n.err = c.Run(ctx); n.err != nil && !errors.Is(n.err, ErrHookGone) {
			t.Errorf("run: %v", n.err)
		}
	}()
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("log:\n%s", n.log)
		}
		if strings.Contains(n.log.String(), urlSecret) {
			t.Error("the log holds a part of the hook's URL")
		}
	})
	eventually(t, "the consumer exists", func() bool {
		_, err := b.js.Consumer(t.Context(), events.StreamEvents, Durable("h"))
		return err == nil
	})
	return n
}

// stop ends the notifier in order and waits for it.
func (n *notifier) stop() {
	n.cancel()
	select {
	case <-n.done:
	case <-time.After(patience):
		n.t.Error("a stopped notifier goes on")
	}
}

// kill cuts the notifier off from the broker, so that it can acknowledge and hand back nothing.
func (n *notifier) kill() {
	n.js.Conn().Close()
	n.cancel()
	<-n.done
}

func TestEventsAreDeliveredInOrderAndAcknowledged(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.publish("alice") // before the hook exists
	s := newSink(t, ok)
	n := run(t, b, s)
	want := b.publish("alice", "alice", "alice")
	same(t, "a new hook starts with new events", want, s.take(t, "", 3))
	b.finished("h")

	info := b.info("h").Config
	if info.AckPolicy != jetstream.AckExplicitPolicy || info.AckWait != time.Minute || info.MaxDeliver != -1 || info.MaxAckPending != 1000 ||
		info.BackOff != nil || info.PriorityPolicy != jetstream.PriorityPolicyPinned || info.PinnedTTL != 30*time.Second {
		t.Errorf("consumer is %+v", info)
	}
	n.observer.mu.Lock()
	defer n.observer.mu.Unlock()
	if len(n.observer.attempts) != 3 {
		t.Fatalf("%d attempts observed, want 3", len(n.observer.attempts))
	}
	if a := n.observer.attempts[0]; a.Hook != "h" || a.Event.ID != want[0] || a.Number != 1 || a.Result.Class != deliver.OK {
		t.Errorf("observed %+v", a)
	}
}

func TestEventsThatTheHookDoesNotWantAreAcknowledgedUnsent(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	filter, err := route.Compile(route.Rules{Peers: []string{"alice"}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, b, s, func(c *Config, _ *timing) { c.Hook.Filter = filter })
	ids := b.publish("bob", "alice", "bob", "alice")
	same(t, "delivered", []string{ids[1], ids[3]}, s.take(t, "", 2))
	b.finished("h")
	if n := len(s.requests()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

func TestAFailingHeadHoldsItsPeerAndNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	bob := make(chan struct{})
	s := newSink(t, func(_ http.ResponseWriter, peer string, nth int) int {
		if peer == "alice" && nth <= 3 {
			<-bob // so that bob's events have passed by then
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	run(t, b, s)
	ids := b.publish("alice", "alice", "bob", "bob")
	same(t, "bob, meanwhile", ids[2:], s.take(t, "bob", 2))
	if have := s.accepted("alice"); len(have) > 0 {
		t.Errorf("alice: accepted %v before bob", have)
	}
	close(bob)
	same(t, "alice", ids[:2], s.take(t, "alice", 2))
	b.finished("h")
	for _, g := range s.requests() {
		if g.ID == ids[1] {
			break
		}
		if g.ID == ids[0] && g.Status == http.StatusOK {
			return
		}
	}
	t.Error("a follower was sent before its head was accepted")
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	status := func(code int) func(http.ResponseWriter, string, int) int {
		return func(http.ResponseWriter, string, int) int { return code }
	}
	never := quick
	never.GiveUp = time.Nanosecond
	for _, tt := range []struct {
		name     string
		answer   func(http.ResponseWriter, string, int) int
		subject  string // to publish to; empty is the event's type
		body     []byte // to publish; nil is an event
		sig      string
		opts     []option
		class    deadletter.Class
		reason   string
		attempts string
		status   string
	}{
		{name: "redirect", answer: status(302), class: "redirected", reason: "redirect refused", attempts: "1", status: "302"},
		{name: "gone", answer: status(410), class: "gone", reason: "410 Gone", attempts: "1", status: "410"},
		{name: "rejected", answer: status(400), class: "rejected", reason: "400 Bad Request", attempts: "1", status: "400"},
		{
			name: "given up", answer: status(500), opts: []option{withRetry(never)},
			class: "unavailable", reason: "given up 1ns after the event was stored: the hook answered 500", attempts: "1", status: "500",
		},
		{
			name: "rejected again and again", answer: status(404),
			opts:  []option{withRetry(never), func(c *Config, _ *timing) { c.Hook.RetryRejected = true }},
			class: "rejected", reason: "given up 1ns after the event was stored: the hook answered 404", attempts: "1", status: "404",
		},
		{
			name: "gone, whatever is tried again", answer: status(410),
			opts:  []option{func(c *Config, _ *timing) { c.Hook.RetryRejected = true }},
			class: "gone", reason: "410 Gone", attempts: "1", status: "410",
		},
		{name: "undecodable", answer: ok, subject: "wg.peer.connected", body: []byte("{\x00"), class: "undecodable", reason: "decode event", attempts: "0"},
		{name: "empty", answer: ok, subject: "wg.peer.connected", body: []byte{}, class: "undecodable", reason: "decode event", attempts: "0"},
		{
			name: "subject is not the type", answer: ok, subject: "wg.peer.roamed",
			class: "subject_mismatch", reason: "an event of type wg.peer.connected was published to wg.peer.roamed", attempts: "0",
		},
		{name: "unverified", answer: ok, sig: forged, class: "unverified", reason: "not verified", attempts: "0"},
		{
			name: "unrenderable", answer: ok,
			opts: []option{func(c *Config, _ *timing) {
				c.Hook.Format = func(*events.Event, []byte) (render.Request, error) {
					return render.Request{}, errors.New("no such field")
				}
			}},
			class: "unrenderable", reason: "no such field", attempts: "0",
		},
		{
			name: "a template that makes no JSON of this event", answer: ok,
			opts: []option{func(c *Config, _ *timing) {
				var err error
				if c.Hook.Format, err = render.NewTemplate(`{"peer": {{if eq .Node "vpn-1"}}nothing{{else}}1{{end}}}`, "application/json"); err != nil {
					t.Error(err)
				}
			}},
			class: "unrenderable", reason: "the output is not JSON", attempts: "0",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, s := newBroker(t), newSink(t, tt.answer)
			n := run(t, b, s, tt.opts...)
			e := b.event("alice")
			body, subject := tt.body, tt.subject
			if body == nil {
				var err error
				if body, err = e.Encode(); err != nil {
					t.Fatal(err)
				}
			}
			if subject == "" {
				subject = string(e.Type)
			}
			b.store(subject, body, tt.sig)
			eventually(t, "a dead letter", func() bool { return len(b.letters()) == 1 })
			b.finished("h")

			letter := b.letters()[0]
			if letter.Subject != "wg.dead.h" || !bytes.Equal(letter.Data, body) {
				t.Errorf("letter on %s: %q, want the bytes %q", letter.Subject, letter.Data, body)
			}
			for name, want := range map[string]string{
				deadletter.HeaderClass: string(tt.class), deadletter.HeaderAttempts: tt.attempts, deadletter.HeaderLastStatus: tt.status,
				deadletter.HeaderSubject: subject, deadletter.HeaderSequence: "1", events.HeaderSignature: tt.sig,
			} {
				if have := letter.Header.Get(name); have != want {
					t.Errorf("%s is %q, want %q", name, have, want)
				}
			}
			if have := letter.Header.Get(deadletter.HeaderReason); !strings.Contains(have, tt.reason) {
				t.Errorf("reason is %q, want %q", have, tt.reason)
			}
			attempted := tt.attempts != "0"
			for _, name := range []string{deadletter.HeaderFirstAttempt, deadletter.HeaderLastAttempt} {
				if _, err := time.Parse(time.RFC3339Nano, letter.Header.Get(name)); (err == nil) != attempted {
					t.Errorf("%s is %q, attempted: %t", name, letter.Header.Get(name), attempted)
				}
			}
			if !attempted && len(s.requests()) > 0 {
				t.Error("it was sent all the same")
			}
			if raw, err := json.Marshal(letter); err != nil || strings.Contains(string(raw), urlSecret) {
				t.Errorf("the letter holds a part of the hook's URL: %s %v", raw, err)
			}
			eventually(t, "the burial is observed", func() bool {
				n.observer.mu.Lock()
				defer n.observer.mu.Unlock()
				return slices.Equal(n.observer.buried, []deadletter.Class{tt.class})
			})
		})
	}
}

func TestARejectionIsTriedAgainWhereTheHookSaysSo(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(_ http.ResponseWriter, _ string, nth int) int {
		if nth < 3 {
			return http.StatusNotFound
		}
		return http.StatusOK
	})
	run(t, b, s, withRetry(quick), func(c *Config, _ *timing) { c.Hook.RetryRejected = true })
	ids := b.publish("alice")
	same(t, "accepted", ids, s.take(t, "alice", 1))
	b.finished("h")
	if n := len(b.letters()); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestAttemptsKeepTheHooksRate(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(_ http.ResponseWriter, _ string, nth int) int {
		if nth == 1 {
			return http.StatusServiceUnavailable // attempts count, whatever comes of them
		}
		return http.StatusOK
	})
	policy := Policy{Rate: 20}
	n := run(t, b, s, func(c *Config, _ *timing) { c.Hook.Policy = policy })
	begin := time.Now()
	for _, peer := range []string{"alice", "bob", "carol", "dave", "erin"} {
		b.publish(peer, peer)
	}
	b.finished("h")
	requests := s.requests()
	if took, least := time.Since(begin), time.Duration(len(requests)-policy.burst())*50*time.Millisecond; took < least || len(requests) < 15 {
		t.Errorf("%d attempts took %s, want %s or more", len(requests), took, least)
	}
	// A session that does not sleep while it waits for its time goes round thousands of times.
	n.observer.mu.Lock()
	defer n.observer.mu.Unlock()
	if n.observer.loads > 100*len(requests) {
		t.Errorf("the session went round %d times for %d attempts", n.observer.loads, len(requests))
	}
}

func TestNoMoreAttemptsAtATimeThanTheHookAllows(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	var now, most atomic.Int32
	both := make(chan struct{})
	var once sync.Once
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		n := now.Add(1)
		defer now.Add(-1)
		if n > most.Load() {
			most.Store(n)
		}
		if n == 2 {
			once.Do(func() { close(both) })
		}
		<-both
		return http.StatusOK
	})
	run(t, b, s, func(c *Config, _ *timing) { c.Hook.Target.Concurrency = 2 })
	b.publish("alice", "bob", "carol", "dave", "erin", "frank")
	b.finished("h")
	if n := most.Load(); n != 2 {
		t.Errorf("%d attempts at a time", n)
	}
}

func TestADeadEventFreesItsPeer(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	var first atomic.Bool
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		if first.CompareAndSwap(false, true) {
			return http.StatusBadRequest
		}
		return http.StatusOK
	})
	run(t, b, s)
	ids := b.publish("alice", "alice")
	same(t, "delivered", ids[1:], s.take(t, "alice", 1))
}

func TestADeadLetterThatCannotBeStoredIsHeldAndNotSentAgain(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(http.ResponseWriter, string, int) int { return http.StatusBadRequest })
	dead, err := b.js.Stream(t.Context(), deadletter.Stream)
	if err != nil {
		t.Fatal(err)
	}
	cfg := dead.CachedInfo().Config
	if err := b.js.DeleteStream(t.Context(), deadletter.Stream); err != nil {
		t.Fatal(err)
	}
	n := run(t, b, s, withTiming(time.Second, 30*time.Second))
	b.publish("alice")
	eventually(t, "the attempt", func() bool { return len(s.requests()) == 1 })
	eventually(t, "the failure is logged", func() bool { return strings.Contains(n.log.String(), "cannot be acknowledged") })
	if _, err := b.js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	b.finished("h")
	if l, r := len(b.letters()), len(s.requests()); l != 1 || r != 1 {
		t.Errorf("%d letters and %d requests, want 1 and 1", l, r)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(w http.ResponseWriter, _ string, nth int) int {
		if nth == 1 {
			w.Header().Set("Retry-After", "1")
			return http.StatusTooManyRequests
		}
		return http.StatusOK
	})
	run(t, b, s)
	b.publish("alice")
	s.take(t, "", 1)
	if r := s.requests(); len(r) != 2 || r[1].at.Sub(r[0].at) < time.Second {
		t.Errorf("requests %+v, want two, a second apart", r)
	}
}

func TestAKilledOwnerLosesNothingAndOrderStays(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(_ http.ResponseWriter, peer string, nth int) int {
		if nth == 1 && peer < "c" { // a part of them is retried, with followers behind
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	tm := withTiming(2*time.Second, time.Second)
	owner := run(t, b, s, tm)
	peers := []string{"a", "b", "c", "d", "e"}
	want := map[string][]string{}
	total := 0
	more := func(n int) {
		for i := range n {
			peer := peers[i%len(peers)]
			want[peer] = append(want[peer], b.publish(peer)...)
			total++
		}
	}
	for range 4 {
		more(100)
		s.take(t, "", total-60) // in the middle of it
		owner.kill()
		owner = run(t, b, s, tm)
		more(20)
	}
	s.take(t, "", total)
	b.finished("h")
	for _, peer := range peers {
		same(t, "order of "+peer, want[peer], s.accepted(peer))
	}
}

func TestAfterAnOrderlyStopTheNextOwnerStartsAtOnce(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*broker){
		"of a notifier alone":          func(*broker) {},
		"of a notifier and its broker": func(b *broker) { b.stop(); b.start() },
	}
	for name, restart := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t)
			var broken atomic.Bool
			broken.Store(true)
			s := newSink(t, func(http.ResponseWriter, string, int) int {
				if broken.Load() {
					return http.StatusServiceUnavailable
				}
				return http.StatusOK
			})
			late := quick
			late.Initial, late.Max, late.GiveUp = time.Hour, time.Hour, 72*time.Hour
			owner := run(t, b, s, withRetry(late)) // AckWait of a minute, PinnedTTL of 30 s
			ids := b.publish("alice", "alice", "bob", "alice", "bob")
			eventually(t, "all are held", func() bool { held, _ := owner.observer.held(); return held == 5 && len(s.requests()) == 2 })

			owner.stop()
			restart(b)
			broken.Store(false)
			begin := time.Now()
			run(t, b, s)
			s.take(t, "", 5)
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("the next owner took %s", took)
			}
			same(t, "order of alice", []string{ids[0], ids[1], ids[3]}, s.accepted("alice"))
			same(t, "order of bob", []string{ids[2], ids[4]}, s.accepted("bob"))
		})
	}
}

func TestAStopLetsAttemptsUnderWayFinish(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		close(arrived)
		<-release
		return http.StatusOK
	})
	owner := run(t, b, s)
	b.publish("alice")
	<-arrived
	owner.cancel()
	time.AfterFunc(200*time.Millisecond, func() { close(release) })
	owner.stop()
	b.finished("h")
	if n := len(s.requests()); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// What the stop cuts off is no attempt and no fault of the hook: not even an event that a failure would give up is dead by it.
func TestAnAttemptThatAStopCutsOffIsNone(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	release := make(chan struct{})
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		<-release
		return http.StatusOK
	})
	t.Cleanup(func() { close(release) })
	last := quick
	last.GiveUp = time.Nanosecond
	n := run(t, b, s, withRetry(last))
	b.publish("alice")
	eventually(t, "the request is under way", func() bool { return len(s.requests()) == 1 })
	n.stop()
	if a := read(n.observer, func(o *observer) int { return len(o.attempts) }); a != 0 {
		t.Errorf("%d attempts observed", a)
	}
	if l := len(b.letters()); l != 0 {
		t.Errorf("%d dead letters", l)
	}
}

// A message that makes the notifier the owner may arrive when it has already been asked to stop.
func TestANotifierThatBecomesOwnerWhileItStopsLeavesNobodyWaiting(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	reading, release := make(chan struct{}), make(chan struct{})
	slow := func(c *Config, _ *timing) {
		verify := c.Verify
		c.Verify = func(body []byte, signature string) (*events.Event, error) {
			close(reading)
			<-release
			return verify(body, signature)
		}
	}
	owner := run(t, b, s, slow) // AckWait of a minute, PinnedTTL of 30 s
	want := b.publish("alice")
	<-reading
	owner.cancel()
	time.AfterFunc(200*time.Millisecond, func() { close(release) })
	owner.stop()
	begin := time.Now()
	run(t, b, s)
	same(t, "delivered", want, s.take(t, "", 1))
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the next owner took %s, as if it had waited for PinnedTTL", took)
	}
}

// The server may give the pin to the last request of a notifier that is gone. It must not be there.
func TestANotifierThatNeverOwnedLeavesNobodyWaiting(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	leaving := run(t, b, s) // PinnedTTL of 30 s
	eventually(t, "it asks for messages", func() bool { return b.info("h").NumWaiting == 1 })
	leaving.stop()
	want := b.publish("alice")
	begin := time.Now()
	run(t, b, s)
	same(t, "delivered", want, s.take(t, "", 1))
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the next owner took %s, as if it had waited for PinnedTTL", took)
	}
}

// A stopping notifier that did not own the hook may get it with a message that comes just then.
func TestWhoeverGetsTheHookWhileItStopsReleasesIt(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	leaving := run(t, b, s)            // PinnedTTL of 30 s
	time.Sleep(100 * time.Millisecond) // it asks for messages
	leaving.cancel()
	want := b.publish("alice")
	leaving.stop()
	begin := time.Now()
	run(t, b, s)
	same(t, "delivered", want, s.take(t, "", 1))
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the next owner took %s, as if it had waited for PinnedTTL", took)
	}
}

func TestAStandbyTakesOverAndOnlyThen(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	const ttl = 4 * time.Second
	tm := withTiming(10*time.Second, ttl)
	owner := run(t, b, s, tm)
	b.publish("alice")
	s.take(t, "", 1)
	standby := run(t, b, s, tm)
	n := 1
	for end := time.Now().Add(ttl + time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		b.publish("alice")
		n++
		s.take(t, "", n)
	}
	standby.observer.mu.Lock()
	if n := len(standby.observer.attempts); n > 0 {
		t.Errorf("the standby made %d attempts", n)
	}
	standby.observer.mu.Unlock()
	owner.stop()
	begin := time.Now()
	b.publish("alice")
	s.take(t, "", n+1)
	if took := time.Since(begin); took > ttl*3/4 {
		t.Errorf("the standby took %s after an orderly stop, as if it had waited for PinnedTTL", took)
	}
}

func TestABrokenHookStopsPullingAndStaysOwner(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	var broken atomic.Bool
	broken.Store(true)
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		if broken.Load() {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	slow := quick
	slow.Initial, slow.Factor = 500*time.Millisecond, 1
	n := run(t, b, s, withRetry(slow), withTiming(1500*time.Millisecond, 3*time.Second))
	var want []string
	for range maxAckPending + 150 {
		want = append(want, b.publish("alice")...)
	}
	eventually(t, "as many are held as may be", func() bool { held, _ := n.observer.held(); return held >= holdLimit })
	pin := b.pin("h")
	time.Sleep(4 * time.Second) // AckWait and PinnedTTL are over
	if now := b.pin("h"); now != pin || pin == "" {
		t.Errorf("owner was %q and is %q", pin, now)
	}
	info := b.info("h")
	// holdLimit of them, but for a recovery, which a slow machine may cause: that takes as many as there may be.
	if info.NumPending < 150 || info.NumAckPending < holdLimit || info.NumRedelivered != 0 {
		t.Errorf("%d pending, %d un-acked, %d redelivered, want the backlog in the stream and nothing redelivered", info.NumPending, info.NumAckPending, info.NumRedelivered)
	}
	broken.Store(false)
	same(t, "order", want, s.take(t, "", len(want)))
	b.finished("h")
}

func TestASlowHookGetsNothingTwice(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		time.Sleep(2500 * time.Millisecond)
		return http.StatusOK
	})
	run(t, b, s, withTiming(time.Second, 30*time.Second))
	ids := b.publish("alice", "alice")
	same(t, "delivered", ids, s.take(t, "", 2))
	b.finished("h")
	if n := len(s.requests()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	if n := b.info("h").Delivered.Consumer; n != 2 {
		t.Errorf("the broker delivered %d times, want 2", n)
	}
}

// steal takes the next message of the hook in its owner's name and drops it, as a connection does that breaks on the way.
func steal(t *testing.T, b *broker, publish func()) {
	t.Helper()
	nc := b.js.Conn()
	sub, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	request := fmt.Sprintf(`{"batch":1,"expires":%d,"group":%q,"id":%q}`, 5*time.Second, group, b.pin("h"))
	// The owner's own requests wait before this one: as many as there are workers must go first.
	if err := nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+events.StreamEvents+"."+Durable("h"), sub.Subject, []byte(request)); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		publish()
		msg, err := sub.NextMsg(20 * time.Millisecond)
		if errors.Is(err, nats.ErrTimeout) {
			continue
		}
		if err != nil || len(msg.Data) == 0 {
			t.Fatalf("nothing was stolen: %v %v", msg, err)
		}
		return
	}
}

func TestALostDeliveryIsWaitedFor(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	run(t, b, s, withTiming(time.Second, 30*time.Second))
	want := b.publish("alice")
	s.take(t, "", 1)
	steal(t, b, func() { want = append(want, b.publish("alice")...) })
	want = append(want, b.publish("alice", "alice")...)
	same(t, "order", want, s.take(t, "", len(want)))
}

func TestABrokerThatRestartsIsOutlasted(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(_ http.ResponseWriter, _ string, nth int) int {
		if nth == 1 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	run(t, b, s, withTiming(2*time.Second, 2*time.Second))
	var want []string
	for range 3 {
		for range 50 {
			want = append(want, b.publish("alice")...)
		}
		s.take(t, "", len(want)-40)
		b.stop()
		b.start()
		eventually(t, "the test is connected again", func() bool {
			_, err := b.js.AccountInfo(t.Context())
			return err == nil
		})
	}
	same(t, "order", want, s.take(t, "", len(want)))
	b.finished("h")
}

func TestADeletedConsumerIsMadeAgainWhereItWas(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	b.publish("alice") // before the hook
	n := run(t, b, s, withTiming(time.Minute, time.Second))
	deleteConsumer := func() {
		t.Helper()
		if err := b.js.DeleteConsumer(t.Context(), events.StreamEvents, Durable("h")); err != nil {
			t.Fatal(err)
		}
	}
	var alice, bob []string
	for range 2 { // before the first message, and after one
		deleteConsumer()
		ids := b.publish("alice", "bob")
		alice, bob = append(alice, ids[0]), append(bob, ids[1])
		same(t, "alice", alice, s.take(t, "alice", len(alice)))
		same(t, "bob", bob, s.take(t, "bob", len(bob)))
		b.finished("h")
	}
	if !strings.Contains(n.log.String(), "consumer was deleted, it is made again") {
		t.Error("nothing is said about it")
	}
}

func TestAStreamThatIsMadeAnewIsDeliveredFromItsStart(t *testing.T) {
	t.Parallel()
	for name, count := range map[string]int{"shorter than before": 1, "longer than before": 5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, s := newBroker(t), newSink(t, ok)
			n := run(t, b, s, withTiming(time.Minute, time.Second))
			want := b.publish("alice", "alice", "alice")
			s.take(t, "", len(want))
			b.finished("h")
			stream, err := b.js.Stream(t.Context(), events.StreamEvents)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.js.DeleteStream(t.Context(), events.StreamEvents); err != nil {
				t.Fatal(err)
			}
			if _, err := b.js.CreateStream(t.Context(), stream.CachedInfo().Config); err != nil {
				t.Fatal(err)
			}
			for range count {
				want = append(want, b.publish("alice")...)
			}
			same(t, "delivered", want, s.take(t, "", len(want)))
			if !strings.Contains(n.log.String(), "stream was made anew") {
				t.Error("nothing is said about it")
			}
		})
	}
}

func TestAConsumerAheadOfItsStreamIsMadeAgain(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	want := b.publish("alice")
	if _, err := b.js.CreateConsumer(t.Context(), events.StreamEvents, jetstream.ConsumerConfig{
		Durable: Durable("h"), AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Minute, MaxDeliver: -1, MaxAckPending: maxAckPending,
		PriorityPolicy: jetstream.PriorityPolicyPinned, PriorityGroups: []string{group}, PinnedTTL: 30 * time.Second,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: 100,
	}); err != nil {
		t.Fatal(err)
	}
	if at := b.info("h").Delivered.Stream; at != 99 {
		t.Fatalf("the consumer is at %d, want 99", at)
	}
	n := run(t, b, s)
	want = append(want, b.publish("alice")...)
	same(t, "delivered", want, s.take(t, "", len(want)))
	if !strings.Contains(n.log.String(), "consumer is ahead of its stream") {
		t.Error("nothing is said about it")
	}
}

func TestANotifierThatStartsWithoutStreamMissesNothingOfIt(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	stream, err := b.js.Stream(t.Context(), events.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	if err := b.js.DeleteStream(t.Context(), events.StreamEvents); err != nil {
		t.Fatal(err)
	}
	early := b.event("alice")
	body, err := early.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// A probe that has waited for the broker, too, does not wait for the hook.
	time.AfterFunc(tryAgain/2, func() {
		if _, err := b.js.CreateStream(t.Context(), cfg); err != nil {
			t.Error(err)
		}
		if _, err := b.js.Publish(t.Context(), string(early.Type), body); err != nil {
			t.Error(err)
		}
	})
	run(t, b, s)
	same(t, "delivered", append([]string{early.ID}, b.publish("alice")...), s.take(t, "", 2))
}

func TestNewRefusesWhatCannotRun(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Hook: Hook{Name: "ops", Target: deliver.Target{URL: "gopher://" + urlSecret}}, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		t.Fatal("nothing is refused")
	}
	for _, want := range []string{"hook ops", "http://", "initial"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), urlSecret) {
		t.Errorf("the error holds a part of the URL: %v", err)
	}
}

// TestPurePackagesDoNoIO keeps time, network and broker out of the packages that decide.
func TestPurePackagesDoNoIO(t *testing.T) {
	t.Parallel()
	const module = "github.com/wgherald/wgherald/services/notifier/internal/"
	for _, pkg := range []string{"sign", "retry", "render", "route", "order"} {
		out, err := exec.Command("go", "list", "-deps", module+pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("go list: %v\n%s", err, out)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if slices.Contains([]string{"net", "net/http", "os/exec", "log/slog"}, dep) || strings.Contains(dep, "nats-io") {
				t.Errorf("%s depends on %s", pkg, dep)
			}
		}
		files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		parsed := 0
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed++
			for _, what := range impurities(t, file, nil) {
				t.Error(what)
			}
		}
		if parsed == 0 {
			t.Errorf("package %s has no files", pkg)
		}
	}
}

// impurities returns what a pure file must not have: clocks, randomness, and the packages for input and output. Dependencies do not show it: nearly
// everything depends on time and os. src is as for parser.ParseFile.
func impurities(t *testing.T, name string, src any) []string {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	report := func(n ast.Node, what string) {
		found = append(found, fmt.Sprintf("%s: %s", fset.Position(n.Pos()), what))
	}
	clock := "" // what the file calls package time
	for _, imp := range file.Imports {
		path := strings.Trim(imp.Path.Value, `"`)
		switch path {
		case "crypto/rand", "io/fs", "io/ioutil", "log", "log/slog", "math/rand", "math/rand/v2", "net", "net/http", "os", "os/exec", "os/signal",
			"syscall":
			report(imp, "imports "+path)
		case "time":
			clock = "time"
			if imp.Name != nil {
				clock = imp.Name.Name
			}
			if clock == "." {
				report(imp, "imports time without its name")
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if pkg, ok := sel.X.(*ast.Ident); ok && clock != "" && pkg.Name == clock {
			switch sel.Sel.Name {
			case "Now", "Since", "Until", "After", "AfterFunc", "Sleep", "NewTimer", "NewTicker", "Tick":
				report(sel, "uses time."+sel.Sel.Name)
			}
		}
		return true
	})
	return found
}

func TestImpuritiesAreFound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ src, want string }{
		{`import "time"; var now = time.Now`, "uses time.Now"},
		{`import clock "time"; func f() { <-clock.After(clock.Second) }`, "uses time.After"},
		{`import . "time"; var now = Now()`, "imports time without its name"},
		{`import "math/rand/v2"; var r = rand.Float64()`, "imports math/rand/v2"},
		{`import _ "os"`, "imports os"},
		{`import "time"; func f(at time.Time) time.Time { return at.Add(time.Second) }`, ""},
		{`func f(time interface{ Now() int }) int { return time.Now() }`, ""},
	} {
		have := strings.Join(impurities(t, "a.go", "package a; "+tt.src), "\n")
		if (have == "") != (tt.want == "") || !strings.HasSuffix(have, tt.want) {
			t.Errorf("%s: found %q, want %q", tt.src, have, tt.want)
		}
	}
}
