package consume

import (
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
)

func withPolicy(p Policy) option { return func(c *Config, _ *timing) { c.Hook.Policy = p } }

func withAudit(d time.Duration) option { return func(_ *Config, tm *timing) { tm.audit = d } }

func withFilter(t *testing.T, rules route.Rules) option {
	t.Helper()
	filter, err := route.Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config, _ *timing) { c.Hook.Filter = filter }
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		policy Policy
		want   string // in the error; empty for none
	}{
		{"default", Policy{}, ""},
		{"everything", Policy{Order: PerPeer, Rate: 2.5, Hold: 30 * time.Second, From: From{Ago: time.Hour}}, ""},
		{"unknown order", Policy{Order: "random"}, "order is"},
		{"negative rate", Policy{Rate: -1}, "rate is -1"},
		{"rate that is none", Policy{Rate: math.NaN()}, "rate is NaN"},
		{"rate that never comes", Policy{Rate: 1e-9}, "rate is 1e-09"},
		{"unbounded rate", Policy{Rate: math.Inf(1)}, "rate is +Inf"},
		{"longest hold", Policy{Hold: 10 * time.Minute}, ""},
		{"too long a hold", Policy{Hold: 10*time.Minute + 1}, "hold is"},
		{"negative hold", Policy{Hold: -1}, "hold is"},
		{"hold without order", Policy{Order: Unordered, Hold: time.Second}, "hold needs order"},
		{"negative from", Policy{From: From{Ago: -time.Hour}}, "from is"},
		{"two froms", Policy{From: From{All: true, Ago: time.Hour}}, "everything and"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := tt.policy.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	_, err := New(Config{Hook: Hook{Name: "h", Target: deliver.Target{URL: "http://hook"}, Retry: quick, Policy: Policy{Hold: -1}}, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "hold is") {
		t.Errorf("New takes a policy that is none: %v", err)
	}
}

// gate is a sink's answer that can be switched.
type gate struct{ broken atomic.Bool }

func (g *gate) answer(http.ResponseWriter, string, int) int {
	if g.broken.Load() {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

// peers returns n different names.
func peers(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("peer-%03d", i))
	}
	return names
}

func TestABrokenHookLeavesItsBacklogInTheStream(t *testing.T) {
	t.Parallel()
	b, g := newBroker(t), &gate{}
	g.broken.Store(true)
	s, healthy := newSink(t, g.answer), newSink(t, ok)
	slow := quick
	slow.Initial, slow.Factor = 300*time.Millisecond, 1
	n := run(t, b, s, withRetry(slow), withTiming(1500*time.Millisecond, 30*time.Second))
	other := run(t, b, healthy, func(c *Config, _ *timing) { c.Hook.Name = "other" })
	eventually(t, "the other consumer exists", func() bool {
		_, err := b.js.Consumer(t.Context(), events.StreamEvents, Durable("other"))
		return err == nil
	})
	const backlog = 200
	want := b.publish(peers(maxAckPending + backlog)...)
	slices.Sort(want)
	sorted := func(ids []string) []string { slices.Sort(ids); return ids }
	same(t, "another hook, meanwhile", want, sorted(healthy.take(t, "", len(want))))
	eventually(t, "the circuit is open", func() bool { return n.observer.circuit() != Closed })

	before := len(s.requests())
	begin := time.Now()
	time.Sleep(2 * time.Second)
	// One trial in 300 ms, less or more 20 %, and the head that is due; on a slow machine fewer.
	if trials, most := len(s.requests())-before, int(time.Since(begin)/(240*time.Millisecond))+deliver.DefaultConcurrency; trials > most {
		t.Errorf("%d requests in %s while the circuit is open, want at most %d", trials, time.Since(begin), most)
	}
	// What was pulled before, and one for each trial; AckWait is over.
	if info := b.info("h"); info.NumPending < backlog || info.NumAckPending > 300 || info.NumRedelivered > 0 {
		t.Errorf("%d pending, %d un-acked and %d redelivered, want the backlog in the stream and nothing redelivered", info.NumPending, info.NumAckPending,
			info.NumRedelivered)
	}
	if got := other.observer.circuit(); got != Closed {
		t.Errorf("the other hook's circuit is %s", got)
	}

	g.broken.Store(false)
	same(t, "delivered after all", want, sorted(s.take(t, "", len(want))))
	b.finished("h")
	eventually(t, "the circuit is closed", func() bool { return n.observer.circuit() == Closed })
	for _, line := range []string{"hook is broken", "hook works again"} {
		if count := strings.Count(n.log.String(), line); count != 1 {
			t.Errorf("%q is logged %d times, want once", line, count)
		}
	}
	if text := other.log.String(); strings.Contains(text, "broken") {
		t.Errorf("the other hook's log: %s", text)
	}
}

func TestALostDeliveryDoesNotBringTheBacklogOfABrokenHook(t *testing.T) {
	t.Parallel()
	b, g := newBroker(t), &gate{}
	g.broken.Store(true)
	s := newSink(t, g.answer)
	late := quick
	late.Initial = time.Minute
	n := run(t, b, s, withRetry(late), withTiming(time.Second, 30*time.Second))
	b.publish(peers(20)...)
	eventually(t, "the circuit is open", func() bool { return n.observer.circuit() != Closed })
	stolen := 0
	steal(t, b, func() { b.publish(fmt.Sprintf("stolen-%d", stolen)); stolen++ })
	const backlog = maxAckPending
	b.publish(peers(backlog)...)
	var most int
	eventually(t, "what was lost is back", func() bool {
		info := b.info("h")
		most = max(most, info.NumAckPending)
		held, _ := n.observer.held()
		return held == info.NumAckPending && info.NumRedelivered > 0
	})
	// As many as are missing, in each look at the consumer.
	if most > 300 {
		t.Errorf("up to %d were pulled, want the backlog in the stream", most)
	}
}

func TestWhatGrowsTooOldInFrontOfABrokenHookIsBuriedAfterOneAttempt(t *testing.T) {
	t.Parallel()
	b, g := newBroker(t), &gate{}
	g.broken.Store(true)
	s := newSink(t, g.answer)
	old := quick
	old.Initial, old.Factor, old.GiveUp = 500*time.Millisecond, 100, 2*time.Second
	n := run(t, b, s, withRetry(old))
	b.publish(peers(200)...)
	eventually(t, "the circuit is open", func() bool { return n.observer.circuit() != Closed })
	eventually(t, "everything is buried", func() bool { return len(b.letters()) == 200 })
	b.finished("h")
	attempts := map[string]int{}
	for _, r := range s.requests() {
		attempts[r.ID]++
	}
	if len(attempts) != 200 {
		t.Errorf("%d events had an attempt, want all 200", len(attempts))
	}
}

func TestAnEventThatAlwaysFailsDoesNotHoldUpOtherPeers(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(_ http.ResponseWriter, peer string, _ int) int {
		if peer == "poison" {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	slow := quick
	slow.Initial, slow.Factor = 200*time.Millisecond, 1
	n := run(t, b, s, withRetry(slow))
	b.publish("poison", "poison")
	eventually(t, "the circuit is open", func() bool { return n.observer.circuit() != Closed })
	want := b.publish(peers(50)...)
	have := s.take(t, "", 50)
	slices.Sort(want)
	slices.Sort(have)
	same(t, "other peers", want, have)
}

// Everything that there is has failed, or belongs behind what failed: the trials are made with that, by their own interval and not by the retries'.
func TestABrokenHookIsTriedAlsoWithoutAnythingUntried(t *testing.T) {
	t.Parallel()
	b, g := newBroker(t), &gate{}
	g.broken.Store(true)
	s := newSink(t, g.answer)
	steep := quick
	steep.Factor, steep.Jitter = 8, 0 // 20 ms, 160 ms, 1.28 s, 10.24 s, 82 s
	n := run(t, b, s, withRetry(steep))
	want := b.publish("alice", "alice", "alice")
	eventually(t, "the circuit is open", func() bool { return n.observer.circuit() != Closed })
	if r := s.requests(); len(r) < 5 { // the first trials may have been made by now
		t.Fatalf("%d requests, want 5 at least", len(r))
	}
	g.broken.Store(false)
	begin := time.Now()
	same(t, "delivered", want, s.take(t, "alice", len(want)))
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s, want the 20 ms until the first trial", took)
	}
	b.finished("h")
}

func TestARateIsKeptAndNothingExpiresMeanwhile(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	const rate, count = 10, 30
	run(t, b, s, withPolicy(Policy{Rate: rate}), withTiming(1500*time.Millisecond, 30*time.Second))
	b.publish(peers(count)...)
	s.take(t, "", count)
	b.finished("h")
	r := s.requests()
	if took := r[count-1].at.Sub(r[0].at); took < (count-1-1)*time.Second/rate {
		t.Errorf("%d requests took %s, which is faster than %d a second", count, took, rate)
	}
	if info := b.info("h"); len(r) != count || info.Delivered.Consumer != count {
		t.Errorf("%d requests and %d deliveries by the broker, want %d", len(r), info.Delivered.Consumer, count)
	}
}

func TestConcurrencyIsKept(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	var now, most atomic.Int64
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(20 * time.Millisecond)
		return http.StatusOK
	})
	run(t, b, s, func(c *Config, _ *timing) { c.Hook.Target.Concurrency = 3 })
	b.publish(peers(30)...)
	s.take(t, "", 30)
	if n := most.Load(); n != 3 {
		t.Errorf("up to %d attempts at a time, want 3", n)
	}
}

func TestWithoutOrderAFailedEventHoldsUpNothing(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	release := make(chan struct{})
	var once sync.Once
	t.Cleanup(func() { once.Do(func() { close(release) }) })
	s := newSink(t, func(_ http.ResponseWriter, peer string, nth int) int {
		if nth == 1 && peer == "alice" {
			select {
			case <-release:
			default:
				return http.StatusServiceUnavailable
			}
		}
		return http.StatusOK
	})
	late := quick
	late.Initial = 3 * time.Second
	run(t, b, s, withPolicy(Policy{Order: Unordered}), withRetry(late), withTiming(1500*time.Millisecond, 30*time.Second))
	first := b.publish("alice")
	eventually(t, "the first attempt", func() bool { return len(s.requests()) == 1 })
	once.Do(func() { close(release) })
	rest := b.publish("alice", "alice")
	have := s.take(t, "alice", 3)
	slices.Sort(rest)
	slices.Sort(have[:2])
	same(t, "what follows goes first, and the failed one is kept", append(rest, first...), have)
	b.finished("h")
	if n := b.info("h").Delivered.Consumer; n != 3 {
		t.Errorf("the broker delivered %d times, want 3", n)
	}
}

func TestWithoutOrderATakeoverWaitsForNothing(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	run(t, b, s, withPolicy(Policy{Order: Unordered}))
	b.publish("alice")
	s.take(t, "", 1)
	steal(t, b, func() { b.publish("alice") }) // it comes back when AckWait is over, in a minute
	before := len(s.accepted(""))
	b.publish("alice")
	s.take(t, "", before+1)
}

func TestWhereANewHookBegins(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		from From
		want func(old, young, new []string) []string
	}{
		{"new", From{}, func(_, _, fresh []string) []string { return fresh }},
		{"all", From{All: true}, func(old, young, fresh []string) []string { return slices.Concat(old, young, fresh) }},
		{"some time ago", From{Ago: time.Second}, func(_, young, fresh []string) []string { return slices.Concat(young, fresh) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// A machine may be too slow to make the consumer in that time; then it gets twice the time.
			b, s, n, want := newBroker(t), newSink(t, ok), (*notifier)(nil), []string(nil)
			for ago := time.Second; n == nil; ago *= 2 {
				old := b.publish("alice")
				time.Sleep(ago * 3 / 2)
				begin := time.Now()
				young := b.publish("alice")
				from := tt.from
				if from.Ago > 0 {
					from.Ago = ago
				}
				n = run(t, b, s, withPolicy(Policy{From: from}))
				if from.Ago > 0 && time.Since(begin) > ago*9/10 {
					n.stop()
					b, s, n = newBroker(t), newSink(t, ok), nil
					continue
				}
				want = tt.want(old, young, b.publish("alice"))
			}
			same(t, "delivered", want, s.take(t, "", len(want)))
			b.finished("h")
			n.stop()
			// A hook that has its consumer goes on where it was.
			run(t, b, s, withPolicy(Policy{From: From{All: true}}))
			want = append(want, b.publish("alice")...)
			same(t, "after a restart", want, s.take(t, "", len(want)))
			b.finished("h")
			if r := s.requests(); len(r) != len(want) {
				t.Errorf("%d requests, want %d", len(r), len(want))
			}
		})
	}
}

func TestAChangedFilterLeavesTheConsumerAsItIs(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	n := run(t, b, s, withFilter(t, route.Rules{Peers: []string{"alice"}}))
	ids := b.publish("alice", "bob")
	same(t, "alice only", ids[:1], s.take(t, "", 1))
	b.finished("h")
	before := b.info("h")
	n.stop()
	run(t, b, s, withFilter(t, route.Rules{Peers: []string{"bob"}}))
	same(t, "then bob only", []string{ids[0], b.publish("alice", "bob")[1]}, s.take(t, "", 2))
	b.finished("h")
	after := b.info("h")
	if !after.Created.Equal(before.Created) || after.Config.FilterSubject != "" || len(after.Config.FilterSubjects) > 0 {
		t.Errorf("the consumer was made at %s, and now at %s, with filter %v", before.Created, after.Created, after.Config.FilterSubjects)
	}
}

// keepOnly has the stream drop all but its newest events.
func keepOnly(t *testing.T, b *broker, n int64) {
	t.Helper()
	stream, err := b.js.Stream(t.Context(), events.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	for _, most := range []int64{n, -1} {
		cfg := stream.CachedInfo().Config
		cfg.MaxMsgs = most
		if _, err := b.js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEventsThatTheStreamDroppedAreReported(t *testing.T) {
	t.Parallel()
	lost := func(n *notifier) uint64 { return read(n.observer, func(o *observer) uint64 { return o.lost }) }
	said := func(t *testing.T, n *notifier, count int) {
		t.Helper()
		if line := fmt.Sprintf("before they were delivered\" hook=h count=%d ", count); strings.Count(n.log.String(), line) != 1 {
			t.Errorf("not said once: %s", line)
		}
	}
	t.Run("while no notifier ran", func(t *testing.T) {
		t.Parallel()
		b, s := newBroker(t), newSink(t, ok)
		n := run(t, b, s)
		b.publish("alice")
		s.take(t, "", 1)
		b.finished("h")
		n.stop()
		want := b.publish("alice", "alice", "alice", "alice", "alice")
		keepOnly(t, b, 2)
		n = run(t, b, s)
		eventually(t, "the rest is delivered", func() bool { return len(s.accepted("")) == 3 })
		same(t, "the rest", want[3:], s.accepted("")[1:])
		eventually(t, "the loss is counted", func() bool { return lost(n) == 3 })
		said(t, n, 3)
	})
	t.Run("and the server's answer about it overtakes what it delivers", func(t *testing.T) {
		t.Parallel()
		b, s := newBroker(t), newSink(t, ok)
		n := run(t, b, s)
		b.publish("alice")
		s.take(t, "", 1)
		b.finished("h")
		n.stop()
		b.publish("alice", "alice", "alice", "alice", "alice")
		keepOnly(t, b, 2)
		n = run(t, b, s, func(c *Config, _ *timing) {
			verify := c.Verify
			c.Verify = func(body []byte, signature string) (*events.Event, error) {
				time.Sleep(300 * time.Millisecond) // long enough for the answer, which nobody outside sees
				return verify(body, signature)
			}
		})
		eventually(t, "the loss is counted", func() bool { return lost(n) == 3 })
		said(t, n, 3)
	})
	t.Run("before there was a hook", func(t *testing.T) {
		t.Parallel()
		b, s := newBroker(t), newSink(t, ok)
		want := b.publish("alice", "alice", "alice")[1:]
		keepOnly(t, b, 2)
		n := run(t, b, s, withPolicy(Policy{From: From{All: true}}), withAudit(50*time.Millisecond))
		same(t, "what there is", want, s.take(t, "", 2))
		time.Sleep(200 * time.Millisecond) // some looks
		if have := lost(n); have != 0 {
			t.Errorf("%d are counted, want none", have)
		}
	})
	t.Run("in front of a broken hook", func(t *testing.T) {
		t.Parallel()
		b, g := newBroker(t), &gate{}
		g.broken.Store(true)
		s := newSink(t, g.answer)
		late := quick
		late.Initial = time.Minute
		n := run(t, b, s, withRetry(late), withAudit(100*time.Millisecond))
		const published = maxAckPending + 400 // even a recovery leaves some in the stream
		b.publish(peers(published)...)
		eventually(t, "the circuit is open", func() bool { return n.observer.circuit() != Closed })
		var at uint64
		calm := 0
		eventually(t, "no more is pulled", func() bool {
			info := b.info("h")
			if calm++; at != info.Delivered.Stream || info.NumWaiting > 0 {
				at, calm = info.Delivered.Stream, 0
			}
			return calm == 30
		})
		keepOnly(t, b, 10)
		eventually(t, "the loss is counted", func() bool { return lost(n) == published-10-at })
		time.Sleep(300 * time.Millisecond) // three more looks
		if have := lost(n); have != published-10-at {
			t.Errorf("%d are counted, want %d, each once", have, published-10-at)
		}
	})
}
