package tracker_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/services/probe/internal/tracker"
)

const ms = time.Millisecond

// src returns the n-th address.
func src(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)}), 51820)
}

// began is when schedules of these tests begin, on the boot clock.
const began = 1000 * time.Second

// rested returns the schedule of a device that was looked at once, at began.
func rested(packets bool, seen tracker.Seen) *tracker.Schedule {
	s := tracker.NewSchedule(began, packets)
	s.Looked(began, began, 0, seen)
	return s
}

// looks follows a schedule until the given time, with looks that cost nothing and see the given, and returns when they were, after began.
func looks(s *tracker.Schedule, until time.Duration, seen tracker.Seen) []time.Duration {
	var at []time.Duration
	for next := s.Next(); next <= began+until; next = s.Next() {
		at = append(at, next-began)
		s.Asked(next)
		s.Looked(next, next, 0, seen)
	}
	return at
}

func TestFirstLookIsDueAtOnce(t *testing.T) {
	t.Parallel()
	if got := tracker.NewSchedule(began, true).Next(); got != began {
		t.Errorf("next look at %v, want %v", got, began)
	}
}

// TestLadder: after a packet that promises a session, questions come at once and then at doubling distances, for about 2 s.
func TestLadder(t *testing.T) {
	t.Parallel()
	confirm := []time.Duration{0, 1 * ms, 3 * ms, 7 * ms, 15 * ms, 31 * ms, 63 * ms, 127 * ms, 255 * ms, 511 * ms, 1023 * ms, 2047 * ms}
	fallback := []time.Duration{64 * ms, 128 * ms, 256 * ms, 512 * ms, 1024 * ms, 2048 * ms}
	for name, tt := range map[string]struct {
		hear func(*tracker.Schedule)
		want []time.Duration
	}{
		"nothing":                   {func(*tracker.Schedule) {}, nil},
		"an initiation":             {func(s *tracker.Schedule) { s.Initiation(began, src(1)) }, fallback},
		"first data out of nowhere": {func(s *tracker.Schedule) { s.FirstData(began, src(1)) }, nil},
		"an initiation and first data": {func(s *tracker.Schedule) {
			s.Initiation(began-50*ms, src(1))
			s.FirstData(began, src(1))
		}, confirm},
		"an initiation, and first data of somebody else": {func(s *tracker.Schedule) {
			s.Initiation(began, src(1))
			s.FirstData(began, src(2))
		}, fallback},
		"a response": {func(s *tracker.Schedule) { s.Response(began, src(1)) }, confirm},
		"several at once are asked for together": {func(s *tracker.Schedule) {
			for n := range 100 {
				s.Response(began, src(n))
			}
		}, confirm},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := rested(true, tracker.Seen{})
			tt.hear(s)
			if diff := cmp.Diff(tt.want, looks(s, 50*time.Second, tracker.Seen{})); diff != "" {
				t.Errorf("looks (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNobodyPutsALookOff: packets with the address of a peer that connects, sent again and again, do not delay the look that finds it.
func TestNobodyPutsALookOff(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		every time.Duration
		cost  time.Duration
		send  func(*tracker.Schedule, time.Duration)
	}{
		"responses, where looks are dear": {3 * ms, 12 * ms, func(s *tracker.Schedule, at time.Duration) { s.Response(at, src(1)) }},
		"initiations":                     {50 * ms, ms, func(s *tracker.Schedule, at time.Duration) { s.Initiation(at, src(1)) }},
		"first data":                      {3 * ms, 12 * ms, func(s *tracker.Schedule, at time.Duration) { s.FirstData(at, src(1)) }},
	} {
		s := rested(true, tracker.Seen{})
		s.Looked(began-tt.cost, began, tt.cost, tracker.Seen{})
		s.Initiation(began, src(1))
		for at := began; at < began+200*ms; at += tt.every {
			tt.send(s, at)
		}
		if got := s.Next() - began; got > 64*ms {
			t.Errorf("%s: the look is %v after the initiation, want 64ms at most", name, got)
		}
	}
}

// TestRecordingCausesNoLook: anybody may send one, from anywhere and again and again.
func TestRecordingCausesNoLook(t *testing.T) {
	t.Parallel()
	tr := tracker.New(plain(), nil, nil, nil)
	at := tracker.Now{Wall: origin, Boot: began}
	tr.Observe(at, at, tracker.Device{Name: "wg0", Ifindex: 1, Up: true, Peers: []tracker.Peer{{PublicKey: keyOf("A")}}})
	s := rested(true, tracker.Seen{})
	for n, age := range []time.Duration{time.Minute, time.Minute, time.Hour, time.Minute} {
		k := tracker.Knock{Interface: "wg0", Key: keyOf("A"), Src: src(n + 1), Timestamp: tai64n(origin.Add(-age))}
		s.Knocked(began, k.Src, tr.Knock(at, k))
		if got := s.Next() - began; n == 0 {
			if got != 64*ms {
				t.Errorf("next look after %v, want one because of the initiation that is recorded", got)
			}
			s = rested(true, tracker.Seen{})
		} else if got != time.Minute {
			t.Errorf("recording %d, %v old: next look after %v, want one without cause", n, age, got)
		}
	}
}

// TestWishDuringALook: a look answers no wish that came after it was asked for, however soon after.
func TestWishDuringALook(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		wish func(*tracker.Schedule, time.Duration)
		want time.Duration // after the wish
	}{
		"a message was skipped": {func(s *tracker.Schedule, at time.Duration) { s.Skipped(at) }, 500 * ms},
		"a key is not known":    {func(s *tracker.Schedule, at time.Duration) { s.Doubt(at) }, 499 * ms},
		"a link changed":        {func(s *tracker.Schedule, at time.Duration) { s.Soon(at) }, 0},
	} {
		s := rested(true, tracker.Seen{})
		tt.wish(s, began)
		at := s.Next()
		s.Asked(at)
		tt.wish(s, at+ms)
		s.Looked(at, at+5*ms, 5*ms, tracker.Seen{})
		if got := s.Next() - at - ms; got != tt.want {
			t.Errorf("%s during a look: the next is %v after that, want %v", name, got, tt.want)
		}
	}
}

// TestSkippedLooksTwice: the path to a peer may be longer than the first look waits.
func TestSkippedLooksTwice(t *testing.T) {
	t.Parallel()
	s := rested(true, tracker.Seen{})
	s.Skipped(began)
	s.Skipped(began + 250*ms)
	if diff := cmp.Diff([]time.Duration{500 * ms, 2250 * ms}, looks(s, 50*time.Second, tracker.Seen{})); diff != "" {
		t.Errorf("looks (-want +got):\n%s", diff)
	}
}

// TestUnplacedLooksTwice: the device may get to a response only after the first look, whose answer tells that a peer is there at all. More of them cost no more
// looks than any other doubt.
func TestUnplacedLooksTwice(t *testing.T) {
	t.Parallel()
	s := rested(true, tracker.Seen{})
	s.Unplaced(began)
	if diff := cmp.Diff([]time.Duration{0, 500 * ms}, looks(s, 50*time.Second, tracker.Seen{})); diff != "" {
		t.Errorf("looks (-want +got):\n%s", diff)
	}

	s = rested(true, tracker.Seen{})
	var at []time.Duration
	for n := range 2000 { // one each millisecond
		s.Unplaced(began + time.Duration(n)*ms)
		at = append(at, looks(s, time.Duration(n)*ms, tracker.Seen{})...)
	}
	at = append(at, looks(s, 50*time.Second, tracker.Seen{})...)
	if diff := cmp.Diff([]time.Duration{0, 500 * ms, 1000 * ms, 1500 * ms, 2000 * ms, 2500 * ms}, at); diff != "" {
		t.Errorf("looks under a flood (-want +got):\n%s", diff)
	}
}

// TestDearLook: where a look takes long, the first one leaves the device the time to deal with the packet.
func TestDearLook(t *testing.T) {
	t.Parallel()
	for cost, want := range map[time.Duration]time.Duration{9 * ms: 0, 10 * ms: 4 * ms, 150 * ms: 4 * ms} {
		s := rested(true, tracker.Seen{})
		s.Looked(began-cost, began, cost, tracker.Seen{})
		s.Initiation(began, src(1))
		s.FirstData(began+30*ms, src(1))
		if got := s.Next() - began - 30*ms; got != want {
			t.Errorf("looks of %v: the first is %v after the packet, want %v", cost, got, want)
		}
	}
}

// TestHandshakeEndsLadder: what was waited for came, of one; the other is still waited for.
func TestHandshakeEndsLadder(t *testing.T) {
	t.Parallel()
	s := rested(true, tracker.Seen{})
	s.Response(began, src(1))
	s.Initiation(began, src(2))
	s.Looked(began, began, 0, tracker.Seen{Handshakes: []netip.AddrPort{src(1)}})
	if got := s.Next() - began; got != 64*ms {
		t.Errorf("next look after %v, want 64ms", got)
	}
	s.Looked(began+64*ms, began+64*ms, 0, tracker.Seen{Handshakes: []netip.AddrPort{src(2)}})
	if got := s.Next() - began; got != time.Minute+64*ms {
		t.Errorf("next look after %v, want one without cause", got)
	}
}

// TestLookAnswersOnlyWhatCameBefore: a look that takes long says nothing of what happened since it was asked for.
func TestLookAnswersOnlyWhatCameBefore(t *testing.T) {
	t.Parallel()
	for name, hear := range map[string]func(*tracker.Schedule, time.Duration){
		"a response": func(s *tracker.Schedule, at time.Duration) { s.Response(at, src(1)) },
		"a wish":     func(s *tracker.Schedule, at time.Duration) { s.Soon(at) },
	} {
		s := rested(true, tracker.Seen{})
		hear(s, began+20*ms)
		s.Looked(began+10*ms, began+100*ms, 90*ms, tracker.Seen{})
		if got := s.Next() - began; got != 20*ms {
			t.Errorf("%s during a look: next look after %v, want 20ms, hence at once", name, got)
		}
	}
	s := rested(true, tracker.Seen{})
	s.Soon(began + 20*ms)
	s.Failed(began+10*ms, began+100*ms)
	if got := s.Next() - began; got != 20*ms {
		t.Errorf("a wish during a look that failed: next look after %v, want 20ms, hence at once", got)
	}
	s.Asked(began + 100*ms)
	s.Failed(began+100*ms, began+100*ms)
	if got := s.Next() - began; got != 100*ms+tracker.SampleInterval {
		t.Errorf("after another that failed: %v, want 10.1s", got)
	}
}

// TestWaitingIsBounded: anyone may send initiations. Beyond the bound, one look serves all.
func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	s := rested(true, tracker.Seen{})
	for n := range 4096 {
		s.Initiation(began, src(n))
	}
	s.Initiation(began+1*ms, src(5000))
	s.FirstData(began+2*ms, src(5000)) // it is not waited for
	s.Looked(began+64*ms, began+64*ms, 0, tracker.Seen{})
	var known []netip.AddrPort
	for n := range 4096 {
		known = append(known, src(n))
	}
	if got := s.Next() - began; got != 65*ms {
		t.Errorf("next look after %v, want 65ms: one for all beyond the bound", got)
	}
	s.Asked(began + 65*ms)
	s.Looked(began+65*ms, began+65*ms, 0, tracker.Seen{Handshakes: known})
	if got := s.Next() - began; got != time.Minute+65*ms {
		t.Errorf("next look after %v, want one without cause: nobody is waited for", got)
	}
	// One that is known may come again, full or not.
	for n := range 4096 {
		s.Initiation(began+time.Second, src(n))
	}
	s.Response(began+time.Second, src(7))
	if got := s.Next() - began; got != time.Second {
		t.Errorf("next look after %v, want 1s", got)
	}
}

func TestSampling(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		packets bool
		seen    tracker.Seen
		want    []time.Duration
	}{
		"nobody is connected":        {true, tracker.Seen{Configured: 5}, []time.Duration{time.Minute, 2 * time.Minute}},
		"somebody is connected":      {true, tracker.Seen{Live: 1, Deadline: began + time.Hour}, times(10*time.Second, 12)},
		"until the end of a session": {true, tracker.Seen{Live: 1, Deadline: began + 25*time.Second}, nil},
		"packets cannot be seen":     {false, tracker.Seen{}, times(time.Second, 120)},
		"the device has no key yet":  {true, tracker.Seen{Keyless: true}, times(time.Second, 120)},
	} {
		s := rested(tt.packets, tt.seen)
		if tt.want == nil {
			got := looks(s, 24*time.Second, tt.seen)
			if next := s.Next() - began; !slices.Equal(got, times(10*time.Second, 2)) || next != 25*time.Second {
				t.Errorf("%s: looks at %v and %v, want 10s, 20s and 25s", name, got, next)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, looks(s, 2*time.Minute, tt.seen)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func times(step time.Duration, n int) []time.Duration {
	var out []time.Duration
	for i := range n {
		out = append(out, time.Duration(i+1)*step)
	}
	return out
}

// TestBudget: whatever is heard and whatever looks cost, those of up to 100 ms take 1 % of a core on average and not more than a burst of 2 s and
// one look beyond it. A dearer one counts as one of 100 ms: there is one in 10 s, beyond the burst. And no look puts the next one off for longer.
func TestBudget(t *testing.T) {
	t.Parallel()
	const counts = tracker.SampleInterval / 100 // what a look counts at most
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		most := time.Duration(1+r.Int64N([]int64{100, 400, 20000}[seed%3])) * ms // what a look of this device may cost
		s := tracker.NewSchedule(began, r.IntN(2) == 0)
		now, spent, counted := began, time.Duration(0), time.Duration(0)
		for now < began+time.Hour {
			switch n := src(r.IntN(10000)); r.IntN(5) {
			case 0:
				s.Initiation(now, n)
			case 1:
				s.FirstData(now, n)
			case 2:
				s.Response(now, n)
			case 3:
				s.Soon(now)
			}
			if next := s.Next(); r.IntN(3) > 0 {
				now = max(now, next)
				cost := time.Duration(r.Int64N(int64(most)))
				s.Asked(now)
				if r.IntN(10) > 0 {
					s.Looked(now, now+cost, cost, tracker.Seen{Live: 1, Deadline: now + time.Minute})
				} else {
					s.Failed(now, now+cost)
				}
				now += cost
				spent += cost
				counted += min(cost, counts)
				if allowed := (now-began)/100 + 2000*ms + counts + time.Microsecond; counted > allowed || most <= counts && spent > allowed {
					t.Fatalf("seed %d: looks took %v in %v, and count %v; want at most %v", seed, spent, now-began, counted, allowed)
				}
				if wait := s.Next() - now; wait > 2*tracker.SampleInterval {
					t.Fatalf("seed %d: the next look is %v away, want 20s at most", seed, wait)
				}
				if s.Soon(now); s.Next()-now > tracker.SampleInterval {
					t.Fatalf("seed %d: the next look is %v away though somebody wishes one, want 10s at most", seed, s.Next()-now)
				}
				continue
			}
			now += time.Duration(r.Int64N(int64(50 * ms)))
		}
	}
}

// TestSlowLook: how long a look takes says little of what it costs where the device's process was stopped, or the host asleep, meanwhile.
func TestSlowLook(t *testing.T) {
	t.Parallel()
	for _, cost := range []time.Duration{time.Second, 4 * time.Second, time.Hour, 30 * 24 * time.Hour} {
		s := tracker.NewSchedule(began, true)
		at := began
		for range 20 {
			s.Looked(at, at+cost, cost, tracker.Seen{Live: 1, Deadline: never})
			at += cost
			if wait := s.Next() - at; wait > 2*tracker.SampleInterval {
				t.Fatalf("after looks of %v, the next is %v away, want 20s at most", cost, wait)
			}
			at = s.Next()
		}
		// Nor is it remembered for long: cheap looks have their budget again.
		at += 2 * tracker.SampleInterval
		s.Looked(at, at+ms, ms, tracker.Seen{Live: 1, Deadline: never})
		s.Response(at+ms, src(1))
		if wait := s.Next() - at; wait != ms {
			t.Errorf("after looks of %v and a rest, the next is %v away, want 1ms", cost, wait)
		}
	}
}

// never is later than any reading of a clock.
const never = time.Duration(math.MaxInt64)

// TestFailedAnswersOnlyWhatCameBefore: a look that failed says nothing of what was due after it was asked for.
func TestFailedAnswersOnlyWhatCameBefore(t *testing.T) {
	t.Parallel()
	s := rested(true, tracker.Seen{})
	s.Response(began, src(1))
	s.Response(began+20*ms, src(2))
	s.Failed(began+10*ms, began+100*ms)
	if got := s.Next() - began; got != 20*ms {
		t.Errorf("next look after %v, want 20ms, hence at once", got)
	}
	s.Failed(began+100*ms, began+100*ms)
	if got := s.Next() - began; got != 100*ms+tracker.SampleInterval {
		t.Errorf("next look after %v, want 10.1s: nobody is waited for", got)
	}
}

// BenchmarkMessage measures an initiation from an address that is waited for first, while as many are waited for as may be.
func BenchmarkMessage(b *testing.B) {
	s := tracker.NewSchedule(0, true)
	s.Looked(0, 0, 0, tracker.Seen{})
	const waiting = 4096
	for n := range waiting {
		s.Initiation(time.Duration(n), src(n))
	}
	n := waiting
	for b.Loop() {
		s.Initiation(time.Duration(n), src(n%waiting))
		s.Next()
		n++
	}
}

// ExampleSchedule shows how questions follow packets.
func ExampleSchedule() {
	peer := netip.MustParseAddrPort("203.0.113.7:41641")
	s := tracker.NewSchedule(0, true)
	s.Looked(0, 0, 0, tracker.Seen{})
	fmt.Println("nothing heard:", s.Next())

	s.Initiation(5*time.Second, peer)
	fmt.Println("an initiation:", s.Next())
	s.FirstData(5*time.Second+20*ms, peer)
	fmt.Println("first data:   ", s.Next())
	s.Looked(s.Next(), s.Next(), 0, tracker.Seen{Handshakes: []netip.AddrPort{peer}, Live: 1, Deadline: 185 * time.Second})
	fmt.Println("connected:    ", s.Next())
	// Output:
	// nothing heard: 1m0s
	// an initiation: 5.064s
	// first data:    5.02s
	// connected:     15.02s
}
