package consume

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
)

// say stores an event about a peer and returns its id. The words are connected, added, and, for a disconnection, its reason.
func (b *broker) say(word, peer string) string {
	b.t.Helper()
	connected := b.event(peer)
	p, now := *connected.Peer(), connected.Time
	common := events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: now}
	var data events.Data
	switch word {
	case "connected":
		data = connected.Data
	case "added":
		data = &events.Added{Common: common, Peer: p}
	default:
		data = &events.Disconnected{Common: common, Peer: p, Session: events.Session{StartedAt: now, LastHandshakeAt: now}, Reason: events.Reason(word)}
	}
	e := events.New(data, now, connected.Sequence)
	body, err := e.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.store(string(e.Type), body, "")
	return e.ID
}

func TestFlaps(t *testing.T) {
	t.Parallel()
	const hold = 2 * time.Second
	for _, tt := range []struct {
		name string
		// words are those of say, "wait" lets the hold pass. One that is delivered has an asterisk, in the order of delivery.
		words    string
		types    []string // of the filter
		withheld int
	}{
		{name: "a peer that is back", words: "expired connected", withheld: 2},
		{name: "a peer that stays away", words: "expired*"},
		{name: "a peer that is back late", words: "silent* wait connected*"},
		{name: "back twice", words: "expired connected silent connected", withheld: 4},
		{name: "back, and away for good", words: "expired connected expired*", withheld: 2},
		{name: "away twice", words: "expired* unreachable connected", withheld: 2},
		{name: "what came in between is told", words: "expired added* connected added*", withheld: 2},
		{name: "what comes later waits", words: "expired* added*"},
		{name: "a peer that connects only", words: "connected* connected*"},
		{name: "a peer that was removed", words: "removed* connected*"},
		{name: "an interface that went down", words: "interface_down* connected*"},
		{name: "a hook for disconnections", words: "expired connected expired*", types: []string{"wg.peer.disconnected"}, withheld: 2},
		{name: "a hook for connections", words: "expired connected expired wait connected*", types: []string{"wg.peer.connected"}, withheld: 2},
		{name: "a hook for neither", words: "expired connected added*", types: []string{"wg.peer.added"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, s := newBroker(t), newSink(t, ok)
			// AckWait is over before the hold.
			n := run(t, b, s, withPolicy(Policy{Hold: hold}), withTiming(1500*time.Millisecond, 30*time.Second), withFilter(t, route.Rules{Types: tt.types}))
			var want []string
			for _, word := range strings.Fields(tt.words) {
				word, delivered := strings.CutSuffix(word, "*")
				if word == "wait" {
					time.Sleep(hold + 100*time.Millisecond)
					continue
				}
				if id := b.say(word, "alice"); delivered {
					want = append(want, id)
				}
			}
			b.finished("h")
			same(t, "delivered", want, s.accepted(""))
			if r := len(s.requests()); r != len(want) {
				t.Errorf("%d requests, want %d", r, len(want))
			}
			if have := read(n.observer, func(o *observer) int { return o.withheld }); have != tt.withheld {
				t.Errorf("%d withheld, want %d", have, tt.withheld)
			}
			if info := b.info("h"); info.Delivered.Consumer != info.Delivered.Stream {
				t.Errorf("the broker delivered %d messages %d times", info.Delivered.Stream, info.Delivered.Consumer)
			}
		})
	}
}

func TestAHoldTakesItsTimeAndHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	const hold = 2 * time.Second
	run(t, b, s, withPolicy(Policy{Hold: hold}))
	begin := time.Now()
	want := []string{b.say("expired", "alice")}
	bob := b.say("connected", "bob")
	same(t, "bob, meanwhile", []string{bob}, s.take(t, "bob", 1))
	if have := s.accepted("alice"); len(have) > 0 && time.Since(begin) < hold {
		t.Errorf("alice: accepted %v at once", have)
	}
	same(t, "alice", want, s.take(t, "alice", 1))
	if took := time.Since(begin); took < hold {
		t.Errorf("alice was told after %s, want %s", took, hold)
	}
}

func TestAHoldOutlastsItsOwner(t *testing.T) {
	t.Parallel()
	const hold = 4 * time.Second
	opts := []option{withPolicy(Policy{Hold: hold}), withTiming(time.Second, time.Second)}
	for _, tt := range []struct {
		name string
		end  func(*notifier)
	}{
		{"that is killed", (*notifier).kill},
		{"that stops", (*notifier).stop},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, s := newBroker(t), newSink(t, ok)
			owner := run(t, b, s, opts...)
			b.say("expired", "alice")
			bob := b.say("expired", "bob")
			eventually(t, "both are held", func() bool { held, _ := owner.observer.held(); return held == 2 })
			tt.end(owner)
			b.say("connected", "alice") // it comes before what was held does
			next := run(t, b, s, opts...)
			b.finished("h")
			if have := read(next.observer, func(o *observer) int { return o.withheld }); have != 2 {
				t.Errorf("%d withheld, want 2", have)
			}
			same(t, "delivered", []string{bob}, s.accepted(""))
		})
	}
}

// A disconnection that was sent is not taken back by the next owner, who cannot know it: nothing is sent before the stream has shown that there is no
// connection to take it back.
func TestADisconnectionInABacklogIsDecidedByTheStreamAlone(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	const hold = 5 * time.Second
	opts := []option{withPolicy(Policy{Hold: hold}), withTiming(2*time.Second, 3*time.Second)}
	run(t, b, s, opts...).stop()
	b.say("expired", "alice")
	b.publish(peers(100)...) // more than one request brings
	b.say("connected", "alice")
	last := b.say("expired", "alice")
	time.Sleep(hold) // every hold is over
	n := run(t, b, s, opts...)
	b.finished("h")
	same(t, "alice", []string{last}, s.accepted("alice"))
	if have := read(n.observer, func(o *observer) int { return o.withheld }); have != 2 {
		t.Errorf("%d withheld, want 2", have)
	}
}

func TestMoreDisconnectionsThanCanBeHeldGoOut(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	run(t, b, s, withPolicy(Policy{Hold: 5 * time.Second}))
	for _, peer := range peers(holdLimit + 50) {
		b.say("silent", peer)
	}
	b.publish("late")
	s.take(t, "late", 1)
	s.take(t, "", holdLimit+51)
}

func TestARetriedEventInFrontOfAFlap(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(_ http.ResponseWriter, _ string, nth int) int {
		if nth <= 2 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	run(t, b, s, withPolicy(Policy{Hold: time.Minute}))
	want := []string{b.say("added", "alice")}
	b.say("expired", "alice")
	b.say("connected", "alice")
	b.finished("h")
	same(t, "delivered", want, s.accepted(""))
}
