package tracker

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
)

// watched is what these tests tell of a window, by default one of 10 s.
type watched struct {
	rx, tx    uint64
	handshake bool
	long      time.Duration
}

// take takes in windows one after another, and returns when the last ended and whether there was life in it.
func (s *signs) take(now, keepalive time.Duration, windows ...watched) (end time.Duration, alive bool) {
	for _, w := range windows {
		if w.long == 0 {
			w.long = 10 * time.Second
		}
		found := window{From: now, To: now + w.long, Rx: w.rx, Tx: w.tx, Handshake: w.handshake, Keepalive: keepalive}
		s.look(found)
		now, alive = found.To, found.alive()
	}
	return now, alive
}

// sizes of messages with data.
const (
	tiny = 32 + 32
	ping = 32 + 96
)

func TestAlive(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		window watched
		want   bool
	}{
		"nothing":                             {watched{}, false},
		"only we send":                        {watched{tx: ping}, false},
		"a keepalive":                         {watched{rx: 32}, true},
		"data":                                {watched{rx: ping}, true},
		"an initiation":                       {watched{rx: 148}, false},
		"initiations as often as they come":   {watched{rx: 3 * 148}, false},
		"more than that is data":              {watched{rx: 8 * 148}, true},
		"an initiation and a keepalive":       {watched{rx: 148 + 32}, true},
		"an initiation that led to a session": {watched{rx: 148, handshake: true}, true},
		"a response":                          {watched{rx: 92, tx: 148 + 32, handshake: true}, true},
		"a handshake and nothing counted":     {watched{handshake: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s signs
			s.begin(time.Hour)
			if _, got := s.take(time.Hour, 0, tt.window); got != tt.want {
				t.Errorf("alive is %v, want %v", got, tt.want)
			}
		})
	}
}

// TestCadence tells what of a peer's ways is learned, from what happens again and again.
func TestCadence(t *testing.T) {
	t.Parallel()
	var (
		none      = watched{}
		beat      = watched{rx: 32}
		twoMisses = []watched{none, none, none, none, none}
		every25   = []watched{none, none, beat, none, beat}
	)
	for name, tt := range map[string]struct {
		again     []watched
		keepalive time.Duration
		want      time.Duration // 0 is nothing
	}{
		"nothing":                 {again: []watched{none}},
		"a keepalive each 25 s":   {again: every25, want: 25 * time.Second},
		"each 20 s":               {again: []watched{none, beat}, want: 20 * time.Second},
		"each 60 s":               {again: []watched{none, none, none, none, none, beat}, want: 60 * time.Second},
		"each 5 s":                {again: []watched{{rx: 64}}, want: 20 * time.Second}, // windows nearer than 12 s are taken together
		"some of them lost":       {again: slices.Concat(every25, every25, twoMisses, every25), want: 25 * time.Second},
		"our own side sends them": {again: every25, keepalive: 25 * time.Second},
		"with a rekey":            {again: append(slices.Repeat(every25, 2), none, none, watched{rx: 32 + 148 + 32, tx: 92, handshake: true}, none, beat), want: 25 * time.Second},
		"with a rekey seen in two parts": {
			again: append(slices.Repeat(every25, 2), none, none, watched{rx: 32 + 148, tx: 92, long: 9900 * time.Millisecond},
				watched{rx: 32, handshake: true, long: 100 * time.Millisecond}, none, beat),
			want: 25 * time.Second,
		},
		"with a rekey of ours":                                {again: append(slices.Repeat(every25, 3), none, none, watched{rx: 92 + 32, tx: 148 + 32, handshake: true}, none, beat), want: 25 * time.Second},
		"handshakes of ours only":                             {again: []watched{none, none, {rx: 92 + 32, tx: 148 + 32, handshake: true}}},
		"with a ping of ours now and then":                    {again: append(slices.Repeat(every25, 3), watched{rx: ping, tx: ping}, none), want: 25 * time.Second},
		"passive keepalives that answer a stream of ours":     {again: []watched{{rx: 32, tx: ping}}},
		"a passive keepalive that answers a datagram of ours": {again: []watched{{tx: ping}, beat, none, none, none, none}},
		"and another that answers what came meanwhile": {
			again: []watched{{tx: ping}, beat, {long: 4 * time.Second}, {rx: 32, long: 8 * time.Second}, none, none, none},
		},
		"data as long as keepalives, which our side answers":   {again: []watched{none, none, {rx: tiny}, {tx: 32}}},
		"data as long as keepalives, just before and after it": {again: []watched{{rx: tiny, long: 6 * time.Second}, {rx: tiny, long: 3 * time.Second}, {tx: 32}, none, none}},
		"data of other lengths":                                {again: []watched{none, {rx: 48}, none}},
		"initiations that lead nowhere":                        {again: []watched{{rx: 2 * 148, tx: 2 * 92}, none}},
		"most keepalives after 50 s, some after 20 s":          {again: []watched{none, none, none, none, beat, none, none, none, none, beat, none, none, none, none, beat, none, beat}},
		"keepalives at odd times": {again: slices.Concat(
			[]watched{beat}, slices.Repeat([]watched{none}, 10), []watched{beat, none, beat}, slices.Repeat([]watched{none}, 20), []watched{beat, none, none, none, none, none, beat, none, none},
		)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s signs
			s.begin(time.Hour)
			s.take(time.Hour, tt.keepalive, slices.Repeat(tt.again, 40)...)
			if (s.gap - tt.want).Abs() > time.Second {
				t.Errorf("learned %v, want %v; gaps %v", s.gap, tt.want, s.Gaps)
			}
		})
	}
}

// TestPatience: for how long a silence means nothing, by what is known.
func TestPatience(t *testing.T) {
	t.Parallel()
	gaps := func(n int, s byte) []byte { return bytes.Repeat([]byte{s}, n) }
	for name, tt := range map[string]struct {
		known signs
		want  time.Duration
	}{
		"nothing":                           {signs{}, never},
		"three gaps":                        {signs{Gaps: gaps(3, 25), Look: 10}, never},
		"three, and one that spans losses":  {signs{Gaps: []byte{25, 25, 25, 75}, Look: 10}, never},
		"four gaps: four misses":            {signs{Gaps: gaps(4, 25), Look: 10}, 100*time.Second + 2*time.Second + 10*time.Second},
		"sixteen gaps: three misses":        {signs{Gaps: gaps(16, 25), Look: 10}, 75*time.Second + 2*time.Second + 1875*time.Millisecond},
		"dear looks":                        {signs{Gaps: gaps(16, 25), Look: 16}, 75*time.Second + 2*time.Second + 3*time.Second},
		"a short cadence":                   {signs{Gaps: gaps(16, 13), Look: 10}, time.Minute},
		"a cadence too long to be of use":   {signs{Gaps: gaps(32, 60), Look: 10}, never},
		"1 % lost: three misses":            {signs{Gaps: gaps(32, 25), Kept: 200, Missed: 2, Look: 16}, 75*time.Second + 2*time.Second + 1500*time.Millisecond},
		"5 % lost: five misses":             {signs{Gaps: gaps(32, 25), Kept: 200, Missed: 10, Look: 16}, 125*time.Second + 2*time.Second + 2500*time.Millisecond},
		"10 % lost: six misses":             {signs{Gaps: gaps(32, 25), Kept: 200, Missed: 19, Look: 16}, 150*time.Second + 2*time.Second + 3*time.Second},
		"20 % lost: a session ends earlier": {signs{Gaps: gaps(32, 25), Kept: 200, Missed: 40}, never},
		"most are lost":                     {signs{Gaps: gaps(32, 10), Kept: 50, Missed: 40}, never},
		"all are lost":                      {signs{Gaps: gaps(32, 10), Missed: 40}, never},
		"one false call: two misses more":   {signs{Gaps: gaps(16, 25), Patience: 2, Look: 16}, 125*time.Second + 2*time.Second + 5*time.Second},
		"a state that makes no sense":       {signs{Gaps: gaps(32, 0)}, never},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := tt.known
			s.blind(time.Hour)
			want := tt.want
			if want != never {
				want += time.Hour
			}
			if got := s.deadline(); got != want {
				t.Fatalf("deadline %v, want %v", got, want)
			}
			if want == never {
				return
			}
			if reason, gone := s.verdict(want - 1); gone {
				t.Errorf("%s before the deadline", reason)
			}
			if reason, gone := s.verdict(want); !gone || reason != events.Silent {
				t.Errorf("%q at the deadline, want silent", reason)
			}
			s.look(window{From: want - time.Second, To: want, Keepalive: 25 * time.Second})
			if reason, gone := s.verdict(want); gone {
				t.Errorf("%s where our own side keeps the tunnel alive", reason)
			}
		})
	}
}

// TestSilenceBegins: what sets the clock back.
func TestSilenceBegins(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		window watched
		want   bool
	}{
		"nothing":                        {watched{}, false},
		"a keepalive":                    {watched{rx: 32}, true},
		"data":                           {watched{rx: ping}, true},
		"a handshake":                    {watched{rx: 148, tx: 92, handshake: true}, true},
		"a keepalive of ours":            {watched{tx: 32}, true}, // at which the peer's timer starts anew
		"an initiation and our response": {watched{rx: 148, tx: 92}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := signs{Gaps: bytes.Repeat([]byte{25}, 16), Look: 10}
			s.blind(time.Hour)
			was := s.deadline()
			end, _ := s.take(time.Hour, 0, tt.window)
			if got := s.deadline()-was == end-time.Hour; got != tt.want {
				t.Errorf("deadline moved by %v, want moved to be %v", s.deadline()-was, tt.want)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	const second = time.Second
	data := watched{tx: 10 * ping}
	pleading := watched{tx: 10*ping + 2*148}
	for name, tt := range map[string]struct {
		keepalive time.Duration
		windows   []watched // since life
		want      bool
	}{
		"nothing sent":                                                      {windows: slices.Repeat([]watched{{}}, 12)},
		"data, then initiations too":                                        {windows: []watched{data, pleading, pleading}, want: true},
		"so for two windows":                                                {windows: []watched{data, pleading}},
		"initiations alone":                                                 {windows: []watched{{}, {tx: 2 * 148}, {tx: 2 * 148}, {tx: 2 * 148}}, want: true},
		"one datagram, and the initiations it leads to":                     {windows: []watched{{tx: ping}, {}, {tx: 2 * 148}, {tx: 2 * 148}}, want: true},
		"behind our persistent keepalives":                                  {keepalive: 25 * second, windows: []watched{data, pleading, pleading}, want: true},
		"our persistent keepalives alone":                                   {keepalive: 25 * second, windows: slices.Repeat([]watched{{tx: 32}, {}, {tx: 32}, {}, {}}, 5)},
		"our frequent persistent keepalives":                                {keepalive: second, windows: slices.Repeat([]watched{{tx: 10 * 32}}, 20)},
		"a passive keepalive of ours now and then":                          {windows: slices.Repeat([]watched{{tx: 32}}, 20)},
		"data, and our side does not plead: what answers it is not counted": {windows: slices.Repeat([]watched{data}, 20)},
		"an answer in between":                                              {windows: []watched{data, pleading, {rx: 32, tx: 10 * ping}, data, pleading}},
		"initiations of the peer in between are no answer":                  {windows: []watched{data, {rx: 148, tx: 10*ping + 92 + 2*148}, pleading}, want: true},
		"it knocks, and we send nothing but responses":                      {windows: slices.Repeat([]watched{{rx: 2 * 148, tx: 2 * 92}}, 20)},
		"many quick looks":                                                  {windows: slices.Repeat([]watched{{tx: ping + 148, long: second}}, 25)},
		"a burst, seen by quick looks":                                      {windows: append(slices.Repeat([]watched{{tx: ping + 148, long: second}}, 3), watched{long: 30 * second})},
		"quick looks for long enough":                                       {windows: slices.Repeat([]watched{{tx: ping + 148, long: second}}, 30), want: true},
		"stretched looks":                                                   {windows: slices.Repeat([]watched{{tx: 10*ping + 3*148, long: 15 * second}}, 2)},
		"three of them":                                                     {windows: slices.Repeat([]watched{{tx: 10*ping + 3*148, long: 15 * second}}, 3), want: true},
		"looks so far apart that initiations add up to a multiple of 16":    {windows: slices.Repeat([]watched{{tx: 10*ping + 4*148, long: 20 * second}}, 3), want: true},
		"the first data is younger than an answer takes":                    {windows: []watched{{long: 20 * second}, {tx: ping + 148, long: 5 * second}, {tx: ping + 148, long: 5 * second}, {tx: ping + 148, long: 5 * second}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s signs
			s.begin(time.Hour)
			now, _ := s.take(time.Hour, tt.keepalive, append([]watched{{rx: ping, tx: ping}}, tt.windows...)...)
			reason, gone := s.verdict(now)
			if gone != tt.want || gone && reason != events.Unreachable {
				t.Errorf("%q is %v, want %v", reason, gone, tt.want)
			}
			s.blind(now)
			if reason, gone := s.verdict(now); gone {
				t.Errorf("%s although nobody watched", reason)
			}
		})
	}
}

// TestResumed: whether a call was right is told by the signs after the return. A wrong one makes for patience, which a hundred signs each take back by one.
func TestResumed(t *testing.T) {
	t.Parallel()
	again := []watched{{}, {}, {rx: 32}, {}, {rx: 32}}
	learned := func() (s signs, now time.Duration) {
		s.begin(time.Hour)
		s.take(time.Hour, 0, slices.Repeat(again, 20)...)
		now = s.deadline()
		if _, gone := s.verdict(now); !gone {
			t.Fatal("not silent at the deadline")
		}
		s.resumed(now)
		if s.deadline() != never {
			t.Fatal("it may be called again before its cadence was heard")
		}
		return s, now
	}
	misses := func(s signs) int { return int((s.patience() - slackSeconds*time.Second) / s.gap) }
	var (
		missing = slices.Concat([]watched{{}, {}, {}}, again) // the first sign is
		slower  = []watched{{}, {}, {}, {}, {}, {rx: 32}}
	)
	for name, tt := range map[string]struct {
		after    []watched
		patience uint8
		misses   int
	}{
		"in step: it was away":                            {slices.Repeat(again, 10), 0, 3},
		"in step, and one is missing later: that is loss": {slices.Concat(slices.Repeat(again, 3), missing), 0, 4},
		"one is missing soon: it was there":               {slices.Concat(again, missing, slices.Repeat(again, 10)), patienceStep, 6},
		"another cadence: it was there":                   {slices.Repeat(slower, 20), patienceStep, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, now := learned()
			s.take(now, 0, tt.after...)
			if s.Patience != tt.patience || misses(s) != tt.misses {
				t.Errorf("%d misses, %d of them of patience; want %d, %d; %+v", misses(s), s.Patience, tt.misses, tt.patience, s)
			}
		})
	}
	t.Run("called once more before that is told", func(t *testing.T) {
		t.Parallel()
		s, now := learned()
		now, _ = s.take(now, 0, again...)
		s.resumed(now)
		now, _ = s.take(now, 0, slices.Repeat(again, 20)...)
		if got := misses(s); got != minMisses+patienceStep {
			t.Errorf("%d misses, want %d", got, minMisses+patienceStep)
		}
		s.take(now, 0, slices.Repeat(again, 100)...)
		if s.Patience != 0 {
			t.Errorf("patience of %d misses after 200 signs, want 0", s.Patience)
		}
	})
	t.Run("it sleeps now and then", func(t *testing.T) {
		t.Parallel()
		s, now := learned()
		for range maxReturns {
			if s.Patience != 0 {
				t.Errorf("patience of %d misses after %d returns, want 0", s.Patience, s.Returns)
			}
			now, _ = s.take(now, 0, slices.Repeat(again, 10)...)
			s.resumed(now)
		}
		if s.Patience != patienceStep {
			t.Errorf("patience of %d misses after one return too many, want %d", s.Patience, patienceStep)
		}
		s.take(now, 0, slices.Repeat(again, 250)...)
		if s.Patience != 0 || s.Returns != 0 {
			t.Errorf("patience of %d misses, %d returns after 500 signs; want both forgotten", s.Patience, s.Returns)
		}
	})
	t.Run("called unreachable while no cadence is known", func(t *testing.T) {
		t.Parallel()
		var s signs
		s.begin(time.Hour)
		now, _ := s.take(time.Hour, 0, slices.Concat(again, slices.Repeat([]watched{{tx: 10 * ping}, {tx: 148 + 148}}, 3))...)
		if reason, gone := s.verdict(now); !gone || reason != events.Unreachable {
			t.Fatalf("%q %v", reason, gone)
		}
		gaps := len(s.Gaps)
		s.take(now, 0, watched{rx: ping})
		s.resumed(now)
		if s.Patience != 0 || len(s.Gaps) != gaps || gaps == 0 {
			t.Errorf("patience of %d misses, %d gaps, want 0 and %d: nobody judged its silence", s.Patience, len(s.Gaps), gaps)
		}
	})
	t.Run("called wrongly for ever", func(t *testing.T) {
		t.Parallel()
		s, now := learned()
		for range 50 {
			now, _ = s.take(now, 0, slices.Repeat(again, 5)...)
			s.resumed(now)
		}
		if s.Patience != maxPatience {
			t.Errorf("patience of %d misses after 50 false calls, want %d", s.Patience, maxPatience)
		}
	})
}

// TestOutageIsNoLoss: a peer that was away for a while, and was not called so, is on no worse a link for that.
func TestOutageIsNoLoss(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		gaps []int // after twenty of 25 s
		want uint16
	}{
		"a sign that is lost":                      {[]int{50}, 1},
		"three in a row: the peer was away":        {[]int{100}, 0},
		"again and again":                          {[]int{100, 25, 75, 25, 100}, 0},
		"on a link that loses many, they are lost": {[]int{50, 25, 50, 25, 75}, 3},
	} {
		var s signs
		for range 20 {
			s.learn(25, 10)
		}
		for _, gap := range tt.gaps {
			s.learn(gap, 10)
		}
		if s.Missed != tt.want {
			t.Errorf("%s: %d are missing, want %d", name, s.Missed, tt.want)
		}
	}
}

// TestLossFades: what was lost long ago does not count for ever.
func TestLossFades(t *testing.T) {
	t.Parallel()
	s := signs{Kept: 100, Missed: 100}
	for range 3000 {
		s.count(1)
	}
	if s.Missed > 0 || s.Kept > lossMemory {
		t.Errorf("missed %d, kept %d after 3,000 signs that came", s.Missed, s.Kept)
	}
}

// TestNewSession: what was learned in one session holds in the next, as soon as that begins alike.
func TestNewSession(t *testing.T) {
	t.Parallel()
	again := []watched{{}, {}, {rx: 32}, {}, {rx: 32}}
	var s signs
	s.begin(time.Hour)
	s.take(time.Hour, 0, slices.Repeat(again, 20)...)
	s.begin(10 * time.Hour)
	now, _ := s.take(10*time.Hour, 0, again[:3]...)
	if got := s.deadline(); got != never {
		t.Errorf("deadline %v after the first sign that counts, want never", got)
	}
	now, _ = s.take(now, 0, again[3:]...)
	if got := s.deadline() - now; (got - 78*time.Second).Abs() > 2*time.Second {
		t.Errorf("deadline %v after a gap as learned, want about 78s", got)
	}
}

// TestCopiesStay: a peer's state is copied to be stored, while its signs go on learning.
func TestCopiesStay(t *testing.T) {
	t.Parallel()
	again := []watched{{}, {}, {rx: 32}, {}, {rx: 32}}
	var s signs
	s.begin(time.Hour)
	now, _ := s.take(time.Hour, 0, slices.Repeat(again, 20)...)
	stored := s
	want := slices.Clone(stored.Gaps)
	s.take(now, 0, slices.Repeat(again, 20)...)
	if diff := cmp.Diff(want, stored.Gaps); diff != "" {
		t.Errorf("a copy changed (-want +got):\n%s", diff)
	}
}

// TestSize: ten thousand peers are stored and kept in memory.
func TestSize(t *testing.T) {
	t.Parallel()
	s := signs{
		Gaps: bytes.Repeat([]byte{255}, maxGaps), Look: 255, Kept: lossMemory, Missed: lossMemory, Odd: maxOdd, Patience: maxPatience, Calm: patienceBeats, Trial: trialBeats,
		Returns: maxReturns, Doubt: true,
	}
	stored, err := json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	memory := int(unsafe.Sizeof(s)) + maxGaps
	t.Logf("%d bytes of memory, at most %d stored: %s", memory, len(stored), stored)
	if memory > 600 || len(stored) > 200 {
		t.Error("too large")
	}
	if stored, _ := json.Marshal(&signs{}); string(stored) != "{}" {
		t.Errorf("nothing learned is stored as %s", stored)
	}
}
