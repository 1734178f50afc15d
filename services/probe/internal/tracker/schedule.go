package tracker

import (
	"container/heap"
	"math"
	"net/netip"
	"time"
)

// Timings of the questions to a device.
const (
	// SampleInterval is how often a device is looked at while somebody is connected: roaming and missed packets are seen here.
	SampleInterval = 10 * time.Second
	// SafetyInterval is how often it is looked at while nobody is.
	SafetyInterval = time.Minute
	// BlindInterval is how often it is looked at where packets cannot be seen.
	BlindInterval = time.Second

	// confirmStep and confirmLimit bound the ladder of questions after the packet that should have moved the device's last handshake: at once,
	// then after 1, 2, 4 … ms, because the packet filter sees a packet before the device has dealt with it.
	confirmStep  = time.Millisecond
	confirmLimit = 2 * time.Second
	// dearLook is what a look takes from which on the first question waits for dearPause: one that comes too early costs more than the wait.
	dearLook  = 10 * time.Millisecond
	dearPause = 4 * time.Millisecond
	// fallbackStep begins the ladder after an initiation whose first data packet was not seen.
	fallbackStep = 64 * time.Millisecond

	// budgetShare of a core on average, and budgetBurst of it at once, is what looks may cost. Debts beyond budgetDebt are forgiven: that much is
	// paid back in one SampleInterval.
	budgetShare = 0.01
	budgetBurst = 2 * time.Second
	budgetDebt  = SampleInterval / 100
	// maxCost is the most that one look counts.
	maxCost = 500 * time.Millisecond
	// budgetReserve is what looks without cause leave for those with one: that a session comes about is not found late because all was sampled away.
	// maxStretch is the longest that a look without cause waits for it.
	budgetReserve = budgetBurst / 2
	maxStretch    = 2 * SampleInterval

	// doubtInterval is the least time between two looks because of initiations that name no configured peer or were not opened.
	doubtInterval = 500 * time.Millisecond
	// deadlineInterval is the least time from a look to the next one because of a deadline: of many that are close together, one look finds all.
	deadlineInterval = time.Second

	// maxWaiting bounds the addresses that an answer is awaited for: anyone may send an initiation.
	maxWaiting = 4096
)

// Schedule decides when a device is looked at next: on a ladder after packets that promise a session, at a session's deadline, and now and then. It
// is pure: times are readings of the boot clock.
type Schedule struct {
	packets   bool // whether packets are seen at all
	waiting   map[netip.AddrPort]*wait
	queue     queue         // what is in waiting, the next question first
	sample    time.Duration // the next look without cause
	deadline  time.Duration // a look may find something out then, or never
	soon      time.Duration // somebody wishes a look, or never
	again     time.Duration // the second look after what was skipped or unplaced, or never
	doubted   time.Duration // the latest look that was wished because of a doubt
	notBefore time.Duration // the budget allows none earlier
	cost      time.Duration // of the last look
	balance   time.Duration // of the budget
	credited  time.Duration // up to when
}

// never is later than any reading of a clock.
const never = time.Duration(math.MaxInt64)

// wait is a ladder of questions about one address.
type wait struct {
	next   time.Duration
	step   time.Duration
	urgent bool // it began with a packet that moves the last handshake
	index  int  // in the queue
}

// queue is a heap of ladders: anyone may send a message, so none may cost a walk over all that is waited for.
type queue []*wait

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next < q[j].next }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(w any) {
	w.(*wait).index = len(*q)
	*q = append(*q, w.(*wait))
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return w
}

// NewSchedule returns the schedule of a device that was never looked at: its first look is due now.
func NewSchedule(now time.Duration, packets bool) *Schedule {
	return &Schedule{
		packets: packets, waiting: map[netip.AddrPort]*wait{},
		sample: now, deadline: never, soon: never, again: never, doubted: now - doubtInterval,
		balance: budgetBurst, credited: now,
	}
}

// Initiation tells that src sent this device an initiation. The session begins with the first data packet, so the first question is late.
func (s *Schedule) Initiation(now time.Duration, src netip.AddrPort) {
	s.await(src, now+fallbackStep, fallbackStep, false)
}

// FirstData tells that src sent the first data packet under a new key: the one that makes a responder's last handshake move.
func (s *Schedule) FirstData(now time.Duration, src netip.AddrPort) {
	if _, ok := s.waiting[src]; ok {
		s.await(src, now+s.pause(), confirmStep, true)
	}
}

// Response tells that src answered this device's initiation: an initiator's last handshake moves.
func (s *Schedule) Response(now time.Duration, src netip.AddrPort) {
	s.await(src, now+s.pause(), confirmStep, true)
}

// pause is how long the device is left alone with a packet before it is asked what came of it.
func (s *Schedule) pause() time.Duration {
	if s.cost >= dearLook {
		return dearPause
	}
	return 0
}

// await begins a ladder for src. One that is under way goes on as it is, but for the first urgent packet, which brings its next question forward: no
// packet, whoever sends it, puts a question off. Beyond the bound, one look serves all.
func (s *Schedule) await(src netip.AddrPort, next, step time.Duration, urgent bool) {
	w, ok := s.waiting[src]
	switch {
	case ok && (w.urgent || !urgent):
	case ok:
		w.next, w.step, w.urgent = min(w.next, next), step, true
		heap.Fix(&s.queue, w.index)
	case len(s.waiting) < maxWaiting:
		w = &wait{next: next, step: step, urgent: urgent}
		s.waiting[src] = w
		heap.Push(&s.queue, w)
	default:
		s.Soon(next)
	}
}

// forget ends the ladder for src.
func (s *Schedule) forget(src netip.AddrPort) {
	if w, ok := s.waiting[src]; ok {
		delete(s.waiting, src)
		heap.Remove(&s.queue, w.index)
	}
}

// Knocked takes in what the tracker answered to an initiation that src sent this device.
func (s *Schedule) Knocked(now time.Duration, src netip.AddrPort, a Answer) {
	switch {
	case a.Awaited:
		s.Initiation(now, src)
		if a.LookAt > 0 {
			s.Soon(a.LookAt)
		}
	case a.Pending:
		s.Doubt(now)
	}
}

// Soon asks for a look at the given time at the latest.
func (s *Schedule) Soon(at time.Duration) { s.soon = min(s.soon, at) }

// Skipped tells that this device was sent a message that nobody had the time for: what comes of it, a look will tell, or, where the path is long, a second
// one after the last of them.
func (s *Schedule) Skipped(now time.Duration) {
	s.Soon(now + doubtInterval)
	s.again = now + confirmLimit
}

// Doubt asks for a look because of an initiation whose key is not configured as far as is known. However many there are, they cause no more than one
// look per doubtInterval.
func (s *Schedule) Doubt(now time.Duration) {
	if s.doubted <= now {
		s.doubted = max(now, s.doubted+doubtInterval)
	}
	s.Soon(s.doubted)
}

// Unplaced tells that a response came from where no peer is, as far as is known: its endpoint may be new, and so may the peer. What is looked for at once
// may find that, and come before the device has dealt with the response, so there is a second look.
func (s *Schedule) Unplaced(now time.Duration) {
	s.Doubt(now)
	if s.again == never {
		s.again = s.doubted + doubtInterval
	}
}

// Next returns when the device is to be looked at.
func (s *Schedule) Next() time.Duration {
	next := min(s.deadline, s.soon, s.again)
	if len(s.queue) > 0 {
		next = min(next, s.queue[0].next)
	}
	return min(max(next, s.notBefore), s.sample)
}

// Asked takes in that a look is asked for now: it answers the wishes up to now, and none that comes while it lasts.
func (s *Schedule) Asked(now time.Duration) {
	if s.soon <= now {
		s.soon = never
	}
	if s.again <= now {
		s.again = never
	}
}

// Looked takes in what a look saw, which was asked for at one time, answered by another, and took so much CPU time. It answers only what was due when it was
// asked for.
func (s *Schedule) Looked(asked, answered, cost time.Duration, seen Seen) {
	for _, src := range seen.Handshakes {
		s.forget(src)
	}
	for _, src := range seen.Late {
		s.Initiation(answered, src)
	}
	for src, w := range s.waiting {
		for w.next <= asked && w.step <= confirmLimit {
			w.next += w.step
			w.step *= 2
		}
		heap.Fix(&s.queue, w.index)
		if w.next <= asked {
			s.forget(src)
		}
	}
	switch {
	case !s.packets, seen.Keyless:
		// Without a key, nobody can tell whether a handshake is for this device; and it is about to be set up.
		s.sample = answered + BlindInterval
	case seen.Live > 0:
		s.sample = answered + SampleInterval
	default:
		s.sample = answered + SafetyInterval
	}
	s.deadline = never
	if seen.Deadline != 0 {
		s.deadline = max(seen.Deadline, answered+deadlineInterval)
	}
	s.spend(answered, cost)
}

// Failed takes in that a look ended with an error. What was due when it was asked for waits for the next one without cause.
func (s *Schedule) Failed(asked, answered time.Duration) {
	for src, w := range s.waiting {
		if w.next <= asked {
			s.forget(src)
		}
	}
	s.sample, s.deadline = answered+SampleInterval, never
	s.spend(answered, answered-asked) // nobody knows what it cost
}

// spend takes the cost of a look from the budget. An overdrawn budget puts the next look off until it is even again, which is after SampleInterval
// at the latest.
//
// One look counts maxCost at most, and debts beyond budgetDebt are forgiven. Looks of up to 200 ms hence take budgetShare on average when there is no
// cause for them, and those of up to budgetDebt (100 ms) always; where looks are dearer, there is one in maxStretch, and with a cause one in 10 s.
func (s *Schedule) spend(now, cost time.Duration) {
	earned := time.Duration(math.Round(float64(now-s.credited) * budgetShare))
	s.balance = max(-budgetDebt, min(budgetBurst, s.balance+earned)-min(maxCost, cost))
	s.credited, s.cost = now, cost
	s.notBefore = 0
	if s.balance < 0 {
		s.notBefore = s.solvent(0)
	}
	s.sample = max(s.sample, min(s.solvent(budgetReserve), now+maxStretch))
}

// solvent returns when the balance will have reached an amount.
func (s *Schedule) solvent(amount time.Duration) time.Duration {
	return s.credited + time.Duration(float64(max(0, amount-s.balance))/budgetShare)
}
