package publish_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
)

var testKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// counts is what the metrics were told.
type counts struct{ published, duplicates, states, failed int }

func (c *counts) Published(_ time.Duration, duplicate bool) {
	c.published++
	if duplicate {
		c.duplicates++
	}
}
func (c *counts) StatePublished() { c.states++ }
func (c *counts) Failed()         { c.failed++ }

// fakeBroker stores messages in memory. What must never happen is noted in wrong.
type fakeBroker struct {
	// answer is asked before a message is stored, and may wait; when it returns an error, the message is not stored, unless the error is errLostAck.
	answer func(context.Context, *nats.Msg) error

	mu        sync.Mutex
	away      bool
	connected uint64 // number of the connection
	stored    []*nats.Msg
	ids       map[string]bool
	active    map[string]bool // partitions
	wrong     []string

	asked     atomic.Int64 // how often somebody asked whether the broker is connected: once each time the publisher turns round
	sent      atomic.Int64
	mostAtOne atomic.Int64
}

var errLostAck = errors.New("the ack is lost")

func newFakeBroker(answer func(context.Context, *nats.Msg) error) *fakeBroker {
	return &fakeBroker{answer: answer, connected: 1, ids: map[string]bool{}, active: map[string]bool{}}
}

func (b *fakeBroker) Connection() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked.Add(1)
	if b.away {
		return 0
	}
	return b.connected
}

func (b *fakeBroker) set(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away = away; !away {
		b.connected++
	}
}

// partition returns whose order a message belongs to.
func partition(m *nats.Msg) string {
	if strings.HasPrefix(m.Subject, events.StateSubject("")) {
		return m.Subject
	}
	e, err := events.Decode(m.Data)
	if err != nil {
		return err.Error()
	}
	return e.PartitionKey
}

func (b *fakeBroker) Send(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	key := partition(m)
	b.mu.Lock()
	b.sent.Add(1)
	if b.active[key] {
		b.wrong = append(b.wrong, "two of one partition at once: "+key)
	}
	b.active[key] = true
	b.mostAtOne.Store(max(b.mostAtOne.Load(), int64(len(b.active))))
	b.mu.Unlock()

	err := b.answer(ctx, m)

	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.active, key)
	if err != nil && !errors.Is(err, errLostAck) {
		return nil, err
	}
	id := m.Header.Get(nats.MsgIdHdr)
	duplicate := id != "" && b.ids[id]
	if b.ids[id] = true; !duplicate {
		b.stored = append(b.stored, m)
	}
	if err != nil {
		return nil, err
	}
	return &jetstream.PubAck{Duplicate: duplicate}, nil
}

// order tells what is stored: events as "peer number", states as "state peer number".
func (b *fakeBroker) order() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, m := range b.stored {
		out = append(out, tell(m))
	}
	return out
}

func tell(m *nats.Msg) string {
	if strings.HasPrefix(m.Subject, events.StateSubject("")) {
		if len(m.Data) == 0 {
			return "state deleted"
		}
		s, err := events.DecodeState(m.Data)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("state %s %d", s.Peer.Name, s.Sequence.N)
	}
	e, err := events.Decode(m.Data)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %d", e.Peer().Name, e.Sequence.N)
}

// bench is a publisher at work on an outbox of its own.
type bench struct {
	t           *testing.T
	outbox      *outbox.Outbox
	broker      *fakeBroker
	counts      counts
	denied      atomic.Int32 // what a real broker refused last
	reconnected chan struct{}
	stop        func() // ends Run's context
	ended       chan error
}

var start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// newBench makes a bench; call run to start it. All of it lives in a synctest bubble.
func newBench(t *testing.T, answer func(context.Context, *nats.Msg) error) *bench {
	t.Helper()
	ob, err := outbox.Open(t.TempDir(), start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ob.Close() })
	return &bench{t: t, outbox: ob, broker: newFakeBroker(answer), reconnected: make(chan struct{}, 1), ended: make(chan error, 1)}
}

func (b *bench) run() {
	ctx, cancel := context.WithCancel(b.t.Context())
	b.stop = cancel
	p := publish.New(b.broker, b.outbox, testKey, b.reconnected, &b.counts, slog.New(slog.NewTextHandler(io.Discard, nil)))
	go func() { b.ended <- p.Run(ctx) }()
}

// finish ends the publisher and returns how long it took to end.
func (b *bench) finish() time.Duration {
	b.t.Helper()
	began := time.Now()
	b.stop()
	if err := <-b.ended; err != nil {
		b.t.Errorf("run: %v", err)
	}
	b.broker.mu.Lock()
	defer b.broker.mu.Unlock()
	for _, w := range b.broker.wrong {
		b.t.Error(w)
	}
	return time.Since(began)
}

// commit stores one event for each name, and, where states is set, the states with them.
func (b *bench) commit(states bool, names ...string) {
	b.t.Helper()
	var batch tracker.Batch
	for _, name := range names {
		p := events.Peer{PublicKey: sha256.Sum256([]byte(name)), Name: name}
		batch.Facts = append(batch.Facts, tracker.Fact{
			Time: start, Data: &events.Added{Common: events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: start}, Peer: p},
		})
		if states {
			batch.Announce = append(batch.Announce, events.State{Node: "vpn-1", Interface: "wg0", Peer: p, UpdatedAt: start})
		}
	}
	if err := b.outbox.Commit(batch, tracker.Now{Wall: start}); err != nil {
		b.t.Error(err)
	}
}

func at(d time.Duration) func(context.Context, *nats.Msg) error {
	return func(ctx context.Context, _ *nats.Msg) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TestOrder: whatever fails, however late acks come and wherever they are lost, each peer's events are stored in their order, and all of them.
func TestOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			var mu sync.Mutex
			b := newBench(t, func(ctx context.Context, _ *nats.Msg) error {
				mu.Lock()
				wait, fate := time.Duration(r.Int64N(int64(50*time.Millisecond))), r.IntN(60)
				mu.Unlock()
				if err := at(wait)(ctx, nil); err != nil {
					return err
				}
				switch fate {
				case 0:
					return errors.New("not taken")
				case 1:
					return errLostAck
				}
				return nil
			})
			b.run()
			q := rand.New(rand.NewPCG(seed, 1))
			for range 30 {
				var names []string
				for range 20 {
					names = append(names, fmt.Sprintf("peer%d", q.IntN(100)))
				}
				b.commit(false, names...)
				time.Sleep(time.Duration(q.Int64N(int64(time.Second))))
			}
			time.Sleep(10 * time.Minute)
			b.finish()
			last := map[string]int{}
			for _, line := range b.broker.order() {
				var name string
				var n int
				if _, err := fmt.Sscan(line, &name, &n); err != nil {
					t.Fatal(err)
				}
				if n < last[name] {
					t.Errorf("seed %d: of %s, event %d is stored after %d", seed, name, n, last[name])
				}
				last[name] = n
			}
			if got := len(b.broker.order()); got != 600 || b.outbox.Depth() != 0 || b.counts.published != 600 {
				t.Errorf("seed %d: stored %d, published %d, left %d; want 600, 600, 0", seed, got, b.counts.published, b.outbox.Depth())
			}
			if b.counts.failed == 0 || b.counts.duplicates == 0 || b.broker.mostAtOne.Load() < 10 {
				t.Errorf("seed %d: %+v, at once %d: this story proves nothing", seed, b.counts, b.broker.mostAtOne.Load())
			}
		})
	}
}

// TestCauseBeforeEffect: an interface's event comes after what its peers did before it and before what they do after it, and the probe's own events
// enclose everything.
func TestCauseBeforeEffect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		b := newBench(t, func(ctx context.Context, _ *nats.Msg) error {
			mu.Lock()
			wait := time.Duration(r.Int64N(int64(time.Second)))
			mu.Unlock()
			return at(wait)(ctx, nil)
		})
		common := func(iface string) events.Common {
			return events.Common{Node: "vpn-1", Interface: iface, DetectedAt: start}
		}
		var batch tracker.Batch
		say := func(data events.Data) { batch.Facts = append(batch.Facts, tracker.Fact{Time: start, Data: data}) }
		peers := func(iface string) {
			for n := range byte(20) {
				say(&events.Added{Common: common(iface), Peer: events.Peer{PublicKey: events.Key{1, n}}})
			}
		}
		say(&events.Stopped{Common: common("")})
		peers("wg0")
		say(&events.Down{Common: common("wg0"), Reason: events.SetDown})
		peers("wg0")
		peers("wg1")
		say(&events.Stopped{Common: common("")})
		if err := b.outbox.Commit(batch, tracker.Now{Wall: start}); err != nil {
			t.Fatal(err)
		}
		b.run()
		time.Sleep(time.Hour)
		b.finish()

		var story []string
		for _, m := range b.broker.stored {
			e, err := events.Decode(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			word := string(e.Type)
			if e.Peer() != nil {
				word = "peers of " + e.Common().Interface
			}
			if e.Common().Interface != "wg1" && !slices.Equal(story[max(0, len(story)-1):], []string{word}) {
				story = append(story, word)
			}
		}
		want := []string{"wg.probe.stopped", "peers of wg0", "wg.interface.down", "peers of wg0", "wg.probe.stopped"}
		if diff := cmp.Diff(want, story); diff != "" {
			t.Error(diff)
		}
	})
}

// TestWindow: at most 64 events are under way, of different peers.
func TestWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, at(time.Second))
		var names []string
		for n := range 200 {
			names = append(names, fmt.Sprint("peer", n))
		}
		b.commit(true, names...)
		b.run()
		time.Sleep(4*time.Second + time.Millisecond)
		synctest.Wait()
		// 200 events by 64 at a time
		if got := len(b.broker.order()); got != 200 || b.broker.mostAtOne.Load() != publish.MaxInFlight {
			t.Errorf("after 4 s: %d stored, %d at once; want 200 and 64", got, b.broker.mostAtOne.Load())
		}
		time.Sleep(14 * time.Second) // 200 states by 16 at a time
		b.finish()
		if b.counts != (counts{published: 200, states: 200}) || b.broker.mostAtOne.Load() != publish.MaxInFlight {
			t.Errorf("in the end: %+v, %d at once", b.counts, b.broker.mostAtOne.Load())
		}
	})
}

// TestDrainedAfterError: after an error nothing is started until all that is under way has ended, and then the oldest comes first.
func TestDrainedAfterError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var began []string
		var mu sync.Mutex
		failed := false
		b := newBench(t, func(ctx context.Context, m *nats.Msg) error {
			mu.Lock()
			began = append(began, fmt.Sprintf("%v %s", time.Since(synctestStart).Truncate(time.Second), tell(m)))
			fails := !failed && strings.HasPrefix(tell(m), "B")
			failed = failed || fails
			mu.Unlock()
			if fails {
				return errors.New("not taken")
			}
			return at(3*time.Second)(ctx, m)
		})
		b.commit(false, "A", "B", "C", "A")
		b.run()
		time.Sleep(time.Second)
		b.commit(false, "D", "B")
		time.Sleep(time.Minute)
		b.finish()
		slices.Sort(began) // those of one second may begin in any order
		want := []string{"0s A 1", "0s B 2", "0s C 3", "3s A 4", "3s B 2", "3s D 5", "6s B 6"}
		if diff := cmp.Diff(want, began); diff != "" {
			t.Errorf("begun (-want +got):\n%s", diff)
		}
		if b.counts != (counts{published: 6, failed: 1}) {
			t.Errorf("counted: %+v", b.counts)
		}
	})
}

// synctestStart is when every bubble begins.
var synctestStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// TestStates: a peer's state follows its last event, and only the newest is sent.
func TestStates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, at(time.Second))
		b.run()
		b.commit(true, "A", "B")
		time.Sleep(500 * time.Millisecond) // the events are under way
		b.commit(true, "A")
		time.Sleep(1200 * time.Millisecond) // B's state could be, but A's second event is
		b.commit(true, "B")
		time.Sleep(time.Minute)
		want := []string{"A 1", "B 2", "A 3", "B 4", "state A 3", "state B 4"}
		got := b.broker.order()
		if len(got) != len(want) {
			t.Fatalf("stored %v, want %v", got, want)
		}
		slices.Sort(got[:2]) // those of two peers go together
		slices.Sort(got[4:])
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("stored (-want +got):\n%s", diff)
		}
		// States that wait behind others are replaced, not sent twice.
		var names []string
		for n := range 100 {
			names = append(names, fmt.Sprint("peer", n))
		}
		b.commit(true, names...)
		time.Sleep(2500 * time.Millisecond) // all events are stored, 64 states are under way
		b.commit(true, names...)
		time.Sleep(time.Minute)
		b.finish()
		states := map[string]int{}
		for _, line := range b.broker.order() {
			if rest, ok := strings.CutPrefix(line, "state peer"); ok {
				states[rest]++
			}
		}
		for n := range 100 {
			if last := fmt.Sprintf("%d %d", n, 105+n); states[last] != 1 {
				t.Errorf("state %s was sent %d times", last, states[last])
			}
		}
		if len(states) > 100+publish.MaxInFlight {
			t.Errorf("%d states were sent for 100 peers with two events each", len(states))
		}
	})
}

// TestNoStateBeforeItsEvent commits while states are read, over and over.
func TestNoStateBeforeItsEvent(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(context.Context, *nats.Msg) error { return nil })
	b.run()
	for n := range 300 {
		b.commit(true, fmt.Sprint("peer", n%7))
		time.Sleep(time.Duration(rand.Int64N(int64(time.Millisecond)))) // real time: this is about a race
	}
	b.finish()
	seen := map[string]bool{}
	for _, line := range b.broker.order() {
		if rest, ok := strings.CutPrefix(line, "state "); ok && !seen[rest] {
			t.Errorf("the state of %s was stored before its event", rest)
		}
		seen[line] = true
	}
}

// TestRemovedPeer: latecomers find for a day that a peer was removed. The bucket is no ordinary one, so the deletion is a message with a life of its own.
func TestRemovedPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, at(0))
		key := events.Key(sha256.Sum256([]byte("A")))
		err := b.outbox.Commit(tracker.Batch{
			Node: "vpn 1.a",
			Facts: []tracker.Fact{{Time: start, Data: &events.Removed{
				Common: events.Common{Node: "vpn 1.a", Interface: "wg0", DetectedAt: start}, Peer: events.Peer{PublicKey: key},
			}}},
			Removed: []tracker.PeerID{{Interface: "wg0", Key: key}},
		}, tracker.Now{Wall: start})
		if err == nil {
			t.Fatal("a node with a space was stored")
		}
		err = b.outbox.Commit(tracker.Batch{
			Node: "vpn.1",
			Facts: []tracker.Fact{{Time: start, Data: &events.Removed{
				Common: events.Common{Node: "vpn.1", Interface: "wg0", DetectedAt: start}, Peer: events.Peer{PublicKey: key},
			}}},
			Removed: []tracker.PeerID{{Interface: "wg0", Key: key}},
		}, tracker.Now{Wall: start})
		if err != nil {
			t.Fatal(err)
		}
		b.run()
		time.Sleep(time.Second)
		b.finish()
		m := b.broker.stored[1]
		want := nats.Header{"KV-Operation": {"DEL"}, "Nats-TTL": {"24h"}, "Nats-Expected-Stream": {"KV_WG_PEERS"}}
		if diff := cmp.Diff(want, m.Header); diff != "" || len(m.Data) > 0 {
			t.Errorf("deletion %q (-want +got):\n%s", m.Data, diff)
		}
		if want := "$KV.WG_PEERS." + events.StateKey("vpn.1", "wg0", key); m.Subject != want {
			t.Errorf("subject %s, want %s", m.Subject, want)
		}
	})
}

// TestBrokerAway: nothing is tried while the broker is away, and everything at once when it is back.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, at(0))
		b.broker.set(true)
		b.run()
		for range 24 {
			b.commit(true, "A")
			time.Sleep(time.Hour)
		}
		synctest.Wait()
		if b.broker.sent.Load() != 0 || b.broker.asked.Load() > 60 {
			t.Errorf("in a day: %d sent, %d turns", b.broker.sent.Load(), b.broker.asked.Load())
		}
		b.broker.set(false)
		b.reconnected <- struct{}{}
		synctest.Wait()
		if got := len(b.broker.order()); got != 24 {
			t.Errorf("as soon as it is back: %d stored, want the 24 events and no state yet", got)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		b.finish()
		if b.counts.published != 24 || b.counts.states != 1 {
			t.Errorf("soon after: %+v, want 24 events and a state", b.counts)
		}
	})
}

// TestRefusedStates: a broker that refuses states, or has no bucket, gets every event without delay and is asked to take the states ever less often.
func TestRefusedStates(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]func(context.Context) error{
		"at once":       func(context.Context) error { return jetstream.ErrNoStreamResponse },
		"by a time-out": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var refused atomic.Int64
				var taken atomic.Bool
				b := newBench(t, func(ctx context.Context, m *nats.Msg) error {
					if strings.HasPrefix(m.Subject, events.StateSubject("")) && !taken.Load() {
						refused.Add(1)
						return refuse(ctx)
					}
					return nil
				})
				b.run()
				for n := range 100 {
					b.commit(true, fmt.Sprint("peer", n%7))
					time.Sleep(time.Millisecond)
					synctest.Wait()
					if got := len(b.broker.order()); got != n+1 {
						t.Fatalf("event %d waits for a state: %d stored", n+1, got)
					}
					time.Sleep(9999 * time.Millisecond)
				}
				if got := refused.Load(); got == 0 || got > 7*30 {
					t.Errorf("%d states were tried in 1,000 s, want some and few", got)
				}
				taken.Store(true)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				b.finish()
				if b.counts.states != 7 {
					t.Errorf("%d states after the bucket came, want 7", b.counts.states)
				}
			})
		})
	}
}

// TestFailingBroker: one that is there and takes nothing is tried ever less often, and at once when it reconnects.
func TestFailingBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var works atomic.Bool
		b := newBench(t, func(context.Context, *nats.Msg) error {
			if works.Load() {
				return nil
			}
			return nats.ErrNoResponders
		})
		b.commit(false, "A")
		b.run()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := b.counts.failed; n < 3600/8 || n > 3600/2 {
			t.Errorf("%d tries in an hour, want one in about 5 s", n)
		}
		works.Store(true)
		b.reconnected <- struct{}{}
		synctest.Wait()
		if b.counts.published != 1 {
			t.Error("not sent at once after a reconnect")
		}
		b.finish()
	})
}

// TestReconnected: acks that were under way when the connection broke never come, so after a reconnect they are not waited for.
func TestReconnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var works atomic.Bool
		b := newBench(t, func(ctx context.Context, _ *nats.Msg) error {
			if works.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		})
		b.commit(false, "A", "B", "A")
		b.run()
		time.Sleep(time.Second)
		works.Store(true)
		b.broker.set(false)
		b.reconnected <- struct{}{}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if b.counts.published != 3 {
			t.Errorf("0.2 s after the reconnect: %+v, want 3 published", b.counts)
		}
		b.finish()
	})
}

// TestIdle: with nothing to do, nothing is done; what was acked leaves the file soon.
func TestIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, at(0))
		b.commit(true, "A")
		b.run()
		time.Sleep(time.Second)
		synctest.Wait()
		if b.outbox.Depth() != 0 || b.outbox.Unflushed() {
			t.Errorf("after a second: %d events, unflushed: %v", b.outbox.Depth(), b.outbox.Unflushed())
		}
		before := b.broker.asked.Load()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := b.broker.asked.Load() - before; n > 0 {
			t.Errorf("%d turns in an idle day", n)
		}
		b.finish()
	})
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	hangs := func(ctx context.Context, _ *nats.Msg) error {
		<-ctx.Done()
		return ctx.Err()
	}
	fails := func(context.Context, *nats.Msg) error { return errors.New("not taken") }
	for name, tt := range map[string]struct {
		answer    func(context.Context, *nats.Msg) error
		away      bool
		took      [2]time.Duration
		published int
	}{
		"the last commit is sent":                  {at(100 * time.Millisecond), false, [2]time.Duration{100 * time.Millisecond, 100 * time.Millisecond}, 2},
		"a broker that is away is not waited for":  {at(0), true, [2]time.Duration{}, 0},
		"one that does not answer is, for 2 s":     {hangs, false, [2]time.Duration{2 * time.Second, 2 * time.Second}, 0},
		"one that takes nothing is, for 2 s":       {fails, false, [2]time.Duration{2 * time.Second, 2 * time.Second}, 0},
		"one that is slow is, as long as it takes": {at(1900 * time.Millisecond), false, [2]time.Duration{1900 * time.Millisecond, 1900 * time.Millisecond}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, tt.answer)
				b.broker.set(tt.away)
				b.run()
				synctest.Wait()
				b.commit(false, "A", "B")
				took := b.finish()
				if took < tt.took[0] || took > tt.took[1] || b.counts.published != tt.published {
					t.Errorf("ended after %v with %d events published, want %v and %d", took, b.counts.published, tt.took[1], tt.published)
				}
				if left := b.outbox.Depth(); left != 2-tt.published {
					t.Errorf("%d events are left, want %d", left, 2-tt.published)
				}
			})
		})
	}
}

// TestOutboxError: without its file, a publisher cannot go on.
func TestOutboxError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, at(0))
		b.commit(false, "A")
		if err := b.outbox.Close(); err != nil {
			t.Fatal(err)
		}
		b.run()
		if err := <-b.ended; err == nil {
			t.Error("no error of a closed outbox")
		}
		b.stop()
	})
}
