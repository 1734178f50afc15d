package replay

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
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

type observer struct {
	t      *testing.T
	mu     sync.Mutex
	buried []deadletter.Class
}

func (*observer) Attempted(consume.Attempt) {}

func (o *observer) Buried(_ string, c deadletter.Class) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buried = append(o.buried, c)
}

func (o *observer) Withheld(string, int) { o.t.Error("a replay is withheld") }

func (o *observer) Lost(_ string, n uint64) { o.t.Errorf("%d replays are said to be lost", n) }

func (o *observer) Loaded(string, consume.Load) {
	o.t.Error("the load of replays is told as that of the hook's events")
}

// bench is a broker, a receiver that answers as told, and what a hook needs.
type bench struct {
	t                         *testing.T
	notifier, operator, probe jetstream.JetStream
	config                    consume.Config
	observer                  *observer
	n                         uint64

	mu     sync.Mutex
	status []int // of the next answers; 200 when there are none
	ids    []string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	e, err := broker.StartEmbedded(t.Context(), broker.EmbeddedOptions{StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	login := func(role string) jetstream.JetStream {
		nc, err := broker.Connect(t.Context(), broker.ConnectOptions{URL: e.URL(), Role: role, NkeyFile: e.IdentityFile(role), Once: true}, log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		return js
	}
	b := &bench{t: t, notifier: login(broker.Notifier), operator: login(broker.Operator), probe: login(broker.Probe), observer: &observer{t: t}}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.ids = append(b.ids, r.Header.Get("webhook-id"))
		if len(b.status) > 0 {
			w.WriteHeader(b.status[0])
			b.status = b.status[1:]
		}
	}))
	t.Cleanup(receiver.Close)
	nobody, err := route.Compile(route.Rules{Peers: []string{"nobody"}})
	if err != nil {
		t.Fatal(err)
	}
	b.config = consume.Config{
		JetStream: b.notifier,
		Hook: consume.Hook{
			Name: "chat", Target: deliver.Target{URL: receiver.URL}, Filter: nobody, Format: render.CloudEvents,
			Retry: retry.Policy{Initial: 20 * time.Millisecond, Factor: 1, Max: time.Second, GiveUp: time.Hour},
		},
		Version: "1.2.3", Observer: b.observer, Log: log,
		Verify: func(body []byte, signature string) (*events.Event, error) {
			if signature != "good" {
				return nil, events.ErrUnverified
			}
			return events.Decode(body)
		},
	}
	return b
}

// run serves replays until the test ends.
func (b *bench) run() {
	b.t.Helper()
	c, err := New(b.config)
	if err != nil {
		b.t.Fatal(err)
	}
	b.serve(c)
}

func (b *bench) serve(c *consume.Consumer) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	b.t.Cleanup(func() { cancel(); wg.Wait() })
}

func (b *bench) answer(status ...int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = status
}

func (b *bench) got() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.ids)
}

func (b *bench) event(peer byte) (id string, body []byte) {
	b.t.Helper()
	b.n++
	e := events.New(&events.Connected{
		Common: events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: time.Now()}, Peer: events.Peer{PublicKey: events.Key{peer}},
		Session: events.Session{StartedAt: time.Now(), LastHandshakeAt: time.Now()},
	}, time.Now(), events.Sequence{Epoch: 1795342000123, N: b.n})
	body, err := e.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	return e.ID, body
}

// ask has an event sent to a hook once more.
func (b *bench) ask(hook, signature string, peer byte) string {
	b.t.Helper()
	id, body := b.event(peer)
	msg := nats.NewMsg(deadletter.RetrySubject(hook))
	msg.Data = body
	msg.Header.Set(events.HeaderSignature, signature)
	msg.Header.Set(deadletter.HeaderSubject, string(events.PeerConnected))
	if _, err := b.operator.PublishMsg(b.t.Context(), msg); err != nil {
		b.t.Fatal(err)
	}
	return id
}

func (b *bench) waiting() uint64 {
	b.t.Helper()
	s, err := b.notifier.Stream(b.t.Context(), broker.StreamRetry)
	if err != nil {
		b.t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

func (b *bench) letters() []deadletter.Stored {
	b.t.Helper()
	s, err := b.operator.Stream(b.t.Context(), deadletter.Stream)
	if err != nil {
		b.t.Fatal(err)
	}
	var list []deadletter.Stored
	for l, err := range deadletter.Letters(b.t.Context(), s, deadletter.Selection{}) {
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

func same(t *testing.T, what string, want, have []string) {
	t.Helper()
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("%s (-want +have):\n%s", what, diff)
	}
}

func TestAReplayIsDeliveredToItsHookAloneWhateverItsFilter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	before := b.ask("chat", "good", 1) // while no notifier runs
	b.ask("pager", "good", 1)
	b.run()
	after := ""
	eventually(t, "the first is delivered", func() bool { return len(b.got()) == 1 })
	after = b.ask("chat", "good", 2)
	eventually(t, "both are delivered and taken out of the stream", func() bool { return len(b.got()) == 2 && b.waiting() == 1 })
	same(t, "delivered", []string{before, after}, b.got())
}

// deaf is for the hook itself, whose load is told.
type deaf struct{ consume.Observer }

func (deaf) Loaded(string, consume.Load) {}

func TestEventsAndReplaysTogetherKeepTheRate(t *testing.T) {
	t.Parallel()
	const rate, each = 10, 10
	b := newBench(t)
	hook := b.config
	hook.Hook.Policy.Rate, hook.Hook.Filter, hook.Observer = rate, route.Filter{}, deaf{b.observer}
	c, err := consume.New(hook)
	if err != nil {
		t.Fatal(err)
	}
	b.config = c.Config
	b.config.Observer = b.observer
	b.run()
	b.serve(c)
	<-c.Ready()
	begin := time.Now()
	for range each {
		b.ask("chat", "good", 1)
		_, body := b.event(2)
		msg := nats.NewMsg(string(events.PeerConnected))
		msg.Data = body
		msg.Header.Set(events.HeaderSignature, "good")
		if _, err := b.probe.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is delivered", func() bool { return len(b.got()) == 2*each })
	if took, least := time.Since(begin), (2*each-1)*time.Second/rate; took < least {
		t.Errorf("%d deliveries took %s, want %s at least", 2*each, took, least)
	}
}

func TestAReplayIsRetriedAndBuriedLikeAnyOther(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.answer(503, 503, 200, 404)
	b.run()
	id := b.ask("chat", "good", 1)
	eventually(t, "the third attempt", func() bool { return b.waiting() == 0 })
	same(t, "attempts", []string{id, id, id}, b.got())
	refused := b.ask("chat", "good", 1)
	forged := b.ask("chat", "bad", 1)
	eventually(t, "two are buried and taken out of the stream", func() bool { return len(b.letters()) == 2 && b.waiting() == 0 })
	classes := map[deadletter.Class]string{}
	for _, l := range b.letters() {
		classes[l.Class] = l.EventID + " " + l.Subject
	}
	want := map[deadletter.Class]string{"rejected": refused + " wg.peer.connected", deadletter.Unverified: forged + " wg.peer.connected"}
	if diff := cmp.Diff(want, classes); diff != "" {
		t.Errorf("letters (-want +have):\n%s", diff)
	}
	b.observer.mu.Lock()
	defer b.observer.mu.Unlock()
	if len(b.observer.buried) != 2 {
		t.Errorf("told of %v", b.observer.buried)
	}
}

func TestNoMoreReplaysAtATimeThanTheHookAllows(t *testing.T) {
	t.Parallel()
	for allowed, want := range map[int]int{0: 4, 1: 1, 3: 3, 16: 4} {
		b := newBench(t)
		b.config.Hook.Target.Concurrency = allowed
		c, err := New(b.config)
		if err != nil {
			t.Fatal(err)
		}
		if have := c.Hook.Target.Concurrency; have != want {
			t.Errorf("%d replays at a time where the hook allows %d, want %d", have, allowed, want)
		}
	}
}

// Replays of all hooks are in one stream: those of others leave holes in a hook's numbering.
func TestReplaysOfOtherHooksAreNotLost(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run()
	var want []string
	for n := range byte(4) {
		b.ask("pager", "good", n+1)
		want = append(want, b.ask("chat", "good", n+1))
	}
	eventually(t, "the replays are delivered", func() bool { return len(b.got()) == len(want) })
	got := b.got()
	slices.Sort(got)
	slices.Sort(want)
	same(t, "delivered", want, got)
}

// A disconnect that an operator has sent again is sent, though the peer connected right after it.
func TestAReplayIsNotHeldBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.config.Hook.Policy.Hold = 5 * time.Second
	b.run()
	e := events.New(&events.Disconnected{
		Common: events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: time.Now()}, Peer: events.Peer{PublicKey: events.Key{1}},
		Session: events.Session{StartedAt: time.Now(), LastHandshakeAt: time.Now()}, Reason: events.Expired,
	}, time.Now(), events.Sequence{Epoch: 1795342000123, N: 99})
	body, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	msg := nats.NewMsg(deadletter.RetrySubject("chat"))
	msg.Data = body
	msg.Header.Set(events.HeaderSignature, "good")
	msg.Header.Set(deadletter.HeaderSubject, string(e.Type))
	if _, err := b.operator.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	want := []string{e.ID, b.ask("chat", "good", 1)}
	eventually(t, "both are delivered", func() bool { return len(b.got()) == 2 })
	same(t, "delivered", want, b.got())
}

// An event of the same peer is being retried by the hook's own consumer; a replay does not wait for it.
func TestAReplayDoesNotWaitForTheHooksEvents(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	main := b.config
	main.Hook.Filter = route.Filter{}
	main.Hook.Retry = retry.Policy{Initial: time.Hour, Factor: 1, Max: time.Hour, GiveUp: 2 * time.Hour}
	main.Observer = quiet{}
	c, err := consume.New(main)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	<-c.Ready()

	b.answer(503)
	held, body := b.event(1)
	msg := nats.NewMsg(string(events.PeerConnected))
	msg.Data = body
	msg.Header.Set(events.HeaderSignature, "good")
	if _, err := b.probe.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event is refused", func() bool { return len(b.got()) == 1 })
	b.run()
	replayed := b.ask("chat", "good", 1)
	eventually(t, "the replay is delivered", func() bool { return b.waiting() == 0 })
	same(t, "attempts", []string{held, replayed}, b.got())
}

type quiet struct{}

func (quiet) Attempted(consume.Attempt)       {}
func (quiet) Buried(string, deadletter.Class) {}
func (quiet) Loaded(string, consume.Load)     {}
func (quiet) Withheld(string, int)            {}
func (quiet) Lost(string, uint64)             {}
