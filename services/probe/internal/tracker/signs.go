package tracker

import (
	"math"
	"slices"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// Timers of WireGuard (whitepaper §6.1; messages.h, timers.c).
const (
	keepaliveTimeout = 10 * time.Second // whoever got data and sent nothing since answers with a keepalive after it
	rekeyTimeout     = 5 * time.Second  // between two initiations
)

// What makes a cadence.
const (
	minGaps      = 4  // before it is believed
	maxGaps      = 32 // that are remembered
	goodGaps     = 16 // before minMisses are enough
	slackSeconds = 2  // by which a timer may be late: the kernel rounds one of 25 s up by as much (calc_wheel_index in kernel/time/timer.c)
	maxOdd       = 4  // gaps out of step in a row mean that it is another cadence

	// answered is how soon data is answered, by either side. A keepalive within it after data of ours may be the answer; and as long as our side sends
	// nothing for it, what came before was no data. Gaps that are shorter are taken together.
	answered = keepaliveTimeout + slackSeconds*time.Second
)

// What makes a silence.
const (
	minMisses     = 3
	falseCall     = 1e-6 // how probable it may be that every one of the missing signs was only lost
	lossMemory    = 256  // gaps, after which what is known of loss counts half
	maxLoss       = 0.5  // beyond it, there is no cadence to speak of
	outage        = 1e-3 // two in a row are lost less often than that: the link was down, or the peer away
	patienceStep  = 2    // misses more after a false call
	maxPatience   = 20
	patienceBeats = 100 // kept, after which patience is one miss less, or else one return is forgotten
	// trialBeats signs that come in step after a return, none of them missing, show that the peer was away: neither its cadence nor its link is another one.
	trialBeats = 4
	// maxReturns such returns are believed. Who comes back so again and again has the habit of sleeping, and is given time like one that was wrongly called.
	maxReturns = 2
	// minSilence stands where gaps are hardly longer than the time between looks: a lost sign is not seen there, so nor is loss.
	minSilence = time.Minute
)

// What makes a peer unreachable.
const (
	minSlot       = 5 * time.Second // shorter windows are taken together
	minDemanded   = 3               // slots in which we wanted an answer
	minPleas      = 2               // slots among them in which we sent initiations
	minUnheard    = 30 * time.Second
	minUnanswered = 20 * time.Second // since the first such slot: data is answered in 10 s, and then there are initiations, some of which may be lost
)

// signs is what is learned of how a peer speaks. It tells when a peer went silent or unreachable before its session expires. Its zero value has
// learned nothing; begin or blind comes before the first look. All times are readings of the boot clock. What looks find between them are sums of
// bytes; no packet is seen.
//
// Silent rests on persistent keepalives. A peer that has them on sends 32 bytes when it neither sent nor got anything authentic for that long
// (wg_timers_any_authenticated_packet_traversal in timers.c), so where nobody else speaks, they come like a clock, and several that are missing in a row
// mean that the peer is gone. Without them a healthy peer may say nothing for ever, and so it may where our own keepalives reset its timer. Passive
// keepalives answer data and are no clock: nothing is learned near data of ours. Nor is data of the peer mistaken for them: our own side answers it with
// a passive keepalive, which shows as sent.
//
// Unreachable rests on our own side's data. A peer that gets some sends something within 10 s; if nothing comes for 15 s, our side sends an initiation
// every 5 s for 90 s, which a peer would answer at once. These show in the sum of sent bytes: data messages are multiples of 16 long, initiations are
// not. (Nor are data messages as long as the MTU, which is why initiations alone are not taken for proof.)
type signs struct {
	// Gaps are the latest gaps between windows that held a sign, in seconds. It is replaced, not written to: copies of the peer's state share it.
	Gaps     []byte `json:"gaps,omitempty"`
	Look     uint8  `json:"look,omitempty"`     // the longest such window of late, in seconds
	Kept     uint16 `json:"kept,omitempty"`     // gaps, of lossMemory
	Missed   uint16 `json:"missed,omitempty"`   // those of them in which a sign is missing
	Odd      uint8  `json:"odd,omitempty"`      // latest gaps in a row that are out of step
	Patience uint8  `json:"patience,omitempty"` // misses that are waited for beyond the rule
	Calm     uint8  `json:"calm,omitempty"`     // signs that came since it was called, or since patience changed
	Trial    uint8  `json:"trial,omitempty"`    // signs that have yet to come in step until its latest return is one from an absence
	Returns  uint8  `json:"returns,omitempty"`  // from absences, of late
	// Doubt is whether the cadence, which was learned in an earlier session, is still to be heard in this one: it may have been switched off.
	Doubt bool `json:"doubt,omitempty"`

	within time.Duration // a silence is of use only before that: the session is over then anyway

	gap  time.Duration // on average, as learned from Gaps; 0 is not learned
	hush bool          // our own keepalives are on: silence means nothing

	heard time.Duration // the peer, at the latest
	sent  time.Duration // anything but responses, at the latest
	beat  time.Duration // end of the latest sign that the next one makes a gap with; 0 is none

	slot     time.Duration // when the current slot began, since life
	slotTx   uint64        // sent in it
	demanded uint8         // slots with demand since life
	pleas    uint8         // slots with initiations of ours since life
	since    time.Duration // end of the first slot with demand
}

// window is what two looks in a row found of a peer.
type window struct {
	From, To  time.Duration // the earlier look was asked for … the later was answered
	Rx, Tx    uint64        // growth of the counters, to which a message adds its own length (receive.c, send.c)
	Handshake bool          // the last handshake moved
	Keepalive time.Duration // our own persistent keepalive towards the peer; 0 is off
}

func (w window) length() time.Duration { return w.To - w.From }

// alive reports whether the peer gave a sign of life: a handshake, or bytes that are more than initiations.
func (w window) alive() bool { return w.Handshake || !w.knocks() }

// knocks reports whether what was received may be initiations alone, which anyone may send who once heard one. There is at most one in rekeyTimeout, but
// for one on each edge of the window.
func (w window) knocks() bool {
	return w.Rx%wgmsg.InitiationSize == 0 && w.Rx/wgmsg.InitiationSize <= uint64(w.length()/rekeyTimeout)+2
}

// responds reports whether what was sent may be responses alone.
func (w window) responds() bool { return w.Tx%wgmsg.ResponseSize == 0 && w.Tx <= 3*wgmsg.ResponseSize }

// chimes reports whether what was received may be keepalives alone, with the initiations of a rekey, which may be in the window before that in which
// the last handshake moves. All but initiations are multiples of 16, so the remainder counts these.
func (w window) chimes() bool {
	initiations := w.Rx % 16 / 4 * wgmsg.InitiationSize
	return w.Rx > initiations && (w.Rx-initiations)%wgmsg.MinDataSize == 0
}

// begin tells that a new session began. What was learned stays, but nobody is called silent before one gap of this session was as learned.
func (s *signs) begin(now time.Duration) {
	s.blind(now)
	s.Doubt = true
}

// blind tells that nobody watched for a while: nothing that was missed meanwhile counts. What was learned stays.
func (s *signs) blind(now time.Duration) {
	s.measure() // a state that was stored holds the gaps only
	s.heard, s.sent, s.beat = now, now, 0
	s.quiet(now)
}

// resumed tells that the peer came back in the session that was said to be over. By what was known of the link it was away, so that is put on trial: what
// was learned stays, and the next signs tell. A call that comes before they have was wrong, and so is one too many. Without a cadence it was called
// unreachable, which says nothing of how long its keepalives may be missing.
func (s *signs) resumed(now time.Duration) {
	switch {
	case s.gap == 0:
	case s.Trial > 0 || s.Returns >= maxReturns:
		s.Calm = 0
		s.wrong()
	default:
		s.Calm = 0
		s.Trial, s.Doubt = trialBeats, true
	}
	s.blind(now)
}

// wrong takes in that the peer was there when it was called. It is given more time from now on, and its cadence is learned anew: it may have changed.
func (s *signs) wrong() {
	s.Patience = min(s.Patience+patienceStep, maxPatience)
	s.Gaps, s.Odd, s.Trial = nil, 0, 0
}

// look takes in what a look found.
func (s *signs) look(w window) {
	alive := w.alive()
	s.hush = w.Keepalive > 0
	chime := alive && !s.hush && w.chimes() && w.responds() && w.From >= s.sent+answered
	if !w.responds() {
		s.sent, s.beat = w.To, 0
	}
	if !alive {
		s.demand(w)
		return
	}
	s.heard = w.To
	s.quiet(w.To)
	switch {
	case !chime:
		s.beat = 0
	case s.beat == 0:
		s.beat = w.To
	case w.To-s.beat >= answered:
		s.learn(seconds(w.To.Round(time.Second))-seconds(s.beat.Round(time.Second)), seconds(w.length()+time.Second-1))
		s.beat = w.To
	}
}

// learn takes in a gap between two signs, and the length of the window that held the second, both in seconds.
func (s *signs) learn(gap, look int) {
	if gap > math.MaxUint8 || look > math.MaxUint8 {
		return
	}
	s.Look = max(uint8(look), s.Look-min(s.Look, 1))
	if s.gap > 0 {
		n := s.spans(float64(gap), s.gap.Seconds())
		if n == 1 {
			s.Odd, s.Doubt = 0, false
			if s.Trial == 1 {
				s.Returns++
			}
			s.Trial -= min(s.Trial, 1)
		} else {
			s.Odd++
		}
		switch {
		case n > 1 && s.Trial > 0:
			s.count(n)
			s.wrong()
		case s.Odd >= maxOdd:
			s.Gaps, s.Odd, s.Kept, s.Missed = nil, 0, 0, 0
		case n == 0:
			return // a rekey that had to be tried again
		default:
			s.count(n)
		}
	}
	s.Gaps = slices.Concat(s.Gaps[max(0, len(s.Gaps)+1-maxGaps):], []byte{byte(gap)})
	for s.measure(); s.gap == 0 && len(s.Gaps) > minGaps; s.measure() {
		s.Gaps = s.Gaps[1:]
	}
}

// count takes in that the last of n signs came. Whether the next one comes is one trial of the link, however long the gap: what follows a sign that was
// lost is no other trial. Several that are missing in a row, where hardly a single one is, are an outage, and say nothing of loss.
func (s *signs) count(n float64) {
	s.Kept++
	if loss := s.loss(); n == 2 || n > 2 && loss*loss >= outage {
		s.Missed++
	}
	if s.Kept > lossMemory {
		s.Kept, s.Missed = s.Kept/2, s.Missed/2
	}
	if s.Calm++; s.Calm >= patienceBeats {
		s.Calm = 0
		if s.Patience > 0 {
			s.Patience--
		} else {
			s.Returns -= min(s.Returns, 1)
		}
	}
}

// loss returns how many of the signs are lost, 0 to 1.
func (s *signs) loss() float64 { return float64(s.Missed) / float64(max(1, s.Kept)) }

// spans returns how many signs a gap stands for, when one comes in the given time: 1 for as long as it may be one, 0 when it is too short. A window does
// not tell when in it the sign came, so each gap may be too long or too short by one.
func (s *signs) spans(gap, every float64) float64 {
	tolerance := float64(s.Look) + slackSeconds
	switch {
	case gap < every-tolerance:
		return 0
	case gap <= every+tolerance:
		return 1
	default:
		return max(2, math.Round(gap/every))
	}
}

// measure learns the gap from Gaps. The median tells which of them are single; their sum, in which all but the first and the last window cancel out,
// tells how long one is.
func (s *signs) measure() {
	s.gap = 0
	if len(s.Gaps) < minGaps {
		return
	}
	every := float64(slices.Sorted(slices.Values(s.Gaps))[len(s.Gaps)/2])
	var short, single int
	for range 2 { // from the median to the mean, and once more with that
		var sum, n float64
		short, single = 0, 0
		for _, g := range s.Gaps {
			spans := s.spans(float64(g), every)
			switch spans {
			case 0:
				short++
			case 1:
				single++
			}
			sum += float64(g)
			n += max(1, spans)
		}
		every = sum / n
	}
	if short == 0 && single >= minGaps {
		s.gap = time.Duration(every * float64(time.Second))
	}
}

// patience returns for how long a silence means nothing, or never.
func (s *signs) patience() time.Duration {
	if s.gap == 0 || s.hush || s.Doubt {
		return never
	}
	misses := float64(minMisses)
	if len(s.Gaps) < goodGaps {
		misses++
	}
	if loss := s.loss(); loss > maxLoss {
		return never
	} else if loss > 0 {
		misses = max(misses, math.Ceil(math.Log(falseCall)/math.Log(loss)))
	}
	misses += float64(s.Patience)
	blur := misses * float64(s.Look) / float64(len(s.Gaps)) // of the gap: what the first and the last window leave open
	return max(minSilence, time.Duration(misses*float64(s.gap)+(slackSeconds+blur)*float64(time.Second)))
}

// silence returns when the peer will be silent, or never. The latest sign may have come at the very end of its window; and whatever we sent since has
// set back the timer of the next.
func (s *signs) silence() time.Duration {
	if p := s.patience(); p < max(s.within, RejectAfterTime) {
		return max(s.heard, s.sent) + p
	}
	return never
}

// quiet begins to wait for answers: there was life up to now.
func (s *signs) quiet(now time.Duration) {
	s.slot, s.slotTx, s.demanded, s.pleas = now, 0, 0, 0
}

// demand takes in a window without life. A peer that knocks makes us send responses; these are no demand of ours.
func (s *signs) demand(w window) {
	s.slotTx += w.Tx - min(w.Tx, w.Rx/wgmsg.InitiationSize*wgmsg.ResponseSize)
	length := w.To - s.slot
	if length < minSlot {
		return
	}
	// Keepalives want no answer: a passive one, and our persistent ones.
	idle := uint64(wgmsg.MinDataSize)
	if w.Keepalive > 0 {
		idle += wgmsg.MinDataSize * uint64(length/w.Keepalive+1)
	}
	if s.slotTx > idle {
		if s.demanded == 0 {
			s.since = w.To
		}
		s.demanded = min(s.demanded+1, minDemanded)
		// Four initiations, which take 20 s, are a multiple of 16 again.
		if s.slotTx%16 != 0 || length >= 4*rekeyTimeout && s.slotTx >= 4*wgmsg.InitiationSize {
			s.pleas = min(s.pleas+1, minPleas)
		}
	}
	s.slot, s.slotTx = w.To, 0
}

// unanswered returns when the peer will be unreachable, or never as long as too little was asked of it.
func (s *signs) unanswered() time.Duration {
	if s.demanded < minDemanded || s.pleas < minPleas {
		return never
	}
	return max(s.heard+minUnheard, s.since+minUnanswered)
}

// verdict reports whether the peer is gone, and how that is known. It is for peers with a session, right after look; now is when that look was asked
// for, because what came later may not be in it.
func (s *signs) verdict(now time.Duration) (events.Reason, bool) {
	switch {
	case now >= s.unanswered():
		return events.Unreachable, true
	case now >= s.silence():
		return events.Silent, true
	default:
		return "", false
	}
}

// deadline returns when the peer will be gone if nothing is heard of it until then, or never when that is not known.
func (s *signs) deadline() time.Duration { return min(s.silence(), s.unanswered()) }
