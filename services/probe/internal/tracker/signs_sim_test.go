package tracker

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// model is a tunnel as far as its counters go: two ends with the timers of WireGuard, and a link that loses messages.
type model struct {
	r         *rand.Rand
	now       time.Duration
	ours      end
	theirs    end
	loss      float64
	unplugged time.Duration
	flight    []flight // in order of arrival
	session   int      // the latest that was offered
}

// end is one side of the tunnel.
type end struct {
	keepalive time.Duration // persistent
	tick      time.Duration // what its persistent keepalive is rounded up to, as the kernel's timer wheel does; 0 is exact
	rx, tx    uint64
	session   int
	born      time.Duration // of the session
	initiator bool

	persistent, passive, renew, retry time.Duration // timers
	another                           bool          // passive keepalive
	asked                             time.Duration // latest initiation
	attempts                          int
}

type kind int

const (
	keepalive kind = iota
	data
	initiation
	response
)

type flight struct {
	at      time.Duration
	to      *end
	kind    kind
	size    uint64
	session int
}

// delay of the link, one way.
const delay = 40 * time.Millisecond

func newModel(seed uint64, theirs, ours time.Duration, loss float64) *model {
	m := &model{r: rand.New(rand.NewPCG(seed, 0)), loss: loss, unplugged: never, now: time.Hour}
	for _, e := range []*end{&m.ours, &m.theirs} {
		e.persistent, e.passive, e.renew, e.retry = never, never, never, never
	}
	m.ours.keepalive, m.theirs.keepalive = ours, theirs
	m.initiate(&m.theirs)
	return m
}

func (m *model) jitter(most time.Duration) time.Duration {
	return time.Duration(m.r.Int64N(int64(most)))
}

func (m *model) put(from *end, k kind, size uint64, session int) {
	from.tx += size
	from.passive = never
	m.traversed(from)
	to := &m.ours
	if from == to {
		to = &m.theirs
	}
	if m.now < m.unplugged && m.r.Float64() >= m.loss {
		m.flight = append(m.flight, flight{m.now + delay, to, k, size, session})
	}
}

func (m *model) traversed(e *end) {
	if e.keepalive > 0 {
		e.persistent = m.now + e.keepalive
		if e.tick > 0 {
			e.persistent += e.tick - e.persistent%e.tick
		}
	}
}

func (m *model) initiate(e *end) {
	if e.asked != 0 && m.now-e.asked < rekeyTimeout {
		return
	}
	e.asked, e.retry = m.now, m.now+rekeyTimeout+m.jitter(time.Second/3)
	m.put(e, initiation, wgmsg.InitiationSize, 0)
}

// say sends data, or a keepalive, of the given size.
func (m *model) say(e *end, k kind, size uint64) {
	age := m.now - e.born
	if e.session == 0 || age >= RejectAfterTime {
		e.attempts = 0
		m.initiate(e)
		return
	}
	m.put(e, k, size, e.session)
	if k == data && e.renew == never {
		e.renew = m.now + keepaliveTimeout + rekeyTimeout + m.jitter(time.Second/3)
	}
	if e.initiator && age >= 120*time.Second {
		e.attempts = 0
		m.initiate(e)
	}
}

// hear takes in a message and reports whether our last handshake moved.
func (m *model) hear(f flight) (handshake bool) {
	e := f.to
	e.rx += f.size
	e.renew = never
	m.traversed(e)
	switch f.kind {
	case initiation:
		m.session++
		m.put(e, response, wgmsg.ResponseSize, m.session)
	case response:
		e.session, e.born, e.initiator, e.retry, e.attempts = f.session, m.now, true, never, 0
		m.say(e, keepalive, wgmsg.MinDataSize)
		return true
	case keepalive, data:
		if f.session > e.session { // the first under a new key
			e.session, e.born, e.initiator, e.retry, handshake = f.session, m.now, false, never, true
		}
		if f.kind == data {
			if e.passive == never {
				e.passive = m.now + keepaliveTimeout
			} else {
				e.another = true
			}
		}
		if e.initiator && m.now-e.born >= 165*time.Second {
			m.initiate(e)
		}
	}
	return handshake
}

// fire runs the timers that are due.
func (m *model) fire(e *end) {
	if e.persistent <= m.now {
		m.say(e, keepalive, wgmsg.MinDataSize)
	}
	if e.passive <= m.now {
		m.say(e, keepalive, wgmsg.MinDataSize)
		if e.another {
			e.another, e.passive = false, m.now+keepaliveTimeout
		}
	}
	if e.renew <= m.now {
		e.renew, e.attempts = never, 0
		m.initiate(e)
	}
	if e.retry <= m.now {
		e.retry = never
		if e.attempts++; e.attempts <= 18 {
			m.initiate(e)
		} else {
			e.attempts = 0
		}
	}
}

func (e *end) next() time.Duration { return min(e.persistent, e.passive, e.renew, e.retry) }

// step goes on to the next thing that happens, or until the given time.
func (m *model) step(until time.Duration) (handshake bool) {
	m.now = min(until, m.ours.next(), m.theirs.next())
	if len(m.flight) > 0 && m.flight[0].at <= m.now {
		f := m.flight[0]
		m.flight, m.now = m.flight[1:], f.at
		return m.hear(f) && f.to == &m.ours
	}
	m.fire(&m.ours)
	m.fire(&m.theirs)
	return false
}

// talk is traffic: messages of ours and theirs, a time apart, in phases.
type talk struct {
	ours, theirs time.Duration // between messages; 0 is none
	on, off      time.Duration // length of phases, on average; 0 is always on, or never
	size         uint64
}

// watcher looks at our end as a probe does.
type watcher struct {
	m         *model
	every     time.Duration
	jitter    time.Duration
	extra     float64 // probability of one more look after a look, a random while later
	signs     signs
	seen      end
	asked     time.Duration
	handshake bool
	next      time.Duration
	lasting   bool // sessions that do not expire, to see what is said without
	gone      bool // as it was told
	learned   bool // all that is to be learned

	calls map[events.Reason]int
	first time.Duration // call
}

func watch(m *model, every time.Duration) *watcher {
	w := &watcher{m: m, every: every, jitter: time.Second, calls: map[events.Reason]int{}, asked: m.now}
	w.next = m.now + m.jitter(every)
	w.signs.begin(m.now)
	return w
}

func (w *watcher) look() {
	m := w.m
	found := window{
		From: w.asked, To: m.now, Rx: m.ours.rx - w.seen.rx, Tx: m.ours.tx - w.seen.tx, Handshake: w.handshake, Keepalive: m.ours.keepalive,
	}
	w.signs.look(found)
	expired := !w.lasting && m.now >= w.seen.born+RejectAfterTime
	w.seen, w.asked = m.ours, m.now
	switch {
	case w.handshake && expired:
		w.gone = false
		w.signs.begin(m.now)
	case w.gone && found.alive():
		w.gone = false
		w.signs.resumed(m.now)
	}
	w.handshake = false
	connected := !w.gone && (w.lasting || m.now < m.ours.born+RejectAfterTime)
	if reason, gone := w.signs.verdict(m.now); gone && connected {
		w.gone = true
		w.calls[reason]++
		if w.first == 0 {
			w.first = m.now
		}
	}
	w.next = m.now + w.every + m.jitter(w.jitter)
	if m.r.Float64() < w.extra {
		w.next = m.now + 1 + m.jitter(w.every)
	}
	if connected {
		w.next = min(w.next, w.signs.deadline())
	}
	w.learned = len(w.signs.Gaps) >= goodGaps
}

// run lets things happen for a time, or until done.
func (w *watcher) run(lasts time.Duration, t talk, done func() bool) {
	m := w.m
	end, ours, theirs := m.now+lasts, never, never
	speak := func(on bool) {
		ours, theirs = never, never
		if on && t.ours > 0 {
			ours = m.now + m.jitter(t.ours)
		}
		if on && t.theirs > 0 {
			theirs = m.now + m.jitter(t.theirs)
		}
	}
	on, turn := t.off == 0, never
	if t.off > 0 {
		turn = m.now + m.jitter(2*t.off)
	}
	speak(on)
	for m.now < end && (done == nil || !done()) {
		offered := m.session
		if m.step(min(end, w.next, ours, theirs, turn)) {
			w.handshake = true
			w.next = m.now // the capture saw the packet
		}
		if m.session > offered {
			w.next = min(w.next, m.now+fallbackStep)
		}
		if m.now >= turn {
			on = !on
			turn = m.now + m.jitter(2*map[bool]time.Duration{true: t.on, false: t.off}[on])
			speak(on)
		}
		if m.now >= ours {
			m.say(&m.ours, data, t.size)
			ours = m.now + t.ours/2 + m.jitter(t.ours)
		}
		if m.now >= theirs {
			m.say(&m.theirs, data, t.size)
			theirs = m.now + t.theirs/2 + m.jitter(t.theirs)
		}
		if m.now >= w.next {
			w.look()
		}
	}
}

// talks are the kinds of traffic.
var talks = map[string]talk{
	"idle":                        {},
	"both ways, now and then":     {ours: time.Second, theirs: time.Second, on: 3 * time.Minute, off: 20 * time.Minute, size: 32 + 1408},
	"a datagram now and then":     {theirs: 2 * time.Second, on: 5 * time.Second, off: 2 * time.Minute, size: 64},
	"a stream to it":              {ours: 1100 * time.Millisecond, size: 32 + 1420},
	"a slow stream to it":         {ours: 9 * time.Second, size: 96},
	"a stream to it now and then": {ours: 4 * time.Second, on: 30 * time.Second, off: 90 * time.Second, size: 96},
	"a slow stream from it":       {theirs: 11 * time.Second, size: 64},
}

// everyKind runs all kinds of peers for so many hours each, and returns the false calls and the hours.
func everyKind(t *testing.T, hours int, loss float64) (calls map[events.Reason]int, peerHours int, worst string) {
	t.Helper()
	calls = map[events.Reason]int{}
	seed, most := uint64(0), 0
	for _, theirs := range []time.Duration{0, 10, 15, 20, 25, 60} {
		for _, ours := range []time.Duration{0, 25} {
			for _, every := range []time.Duration{10, 15} {
				for _, name := range slices.Sorted(maps.Keys(talks)) {
					seed++
					m := newModel(seed, theirs*time.Second, ours*time.Second, loss)
					if seed%2 == 0 {
						m.theirs.tick = 2048 * time.Millisecond
					}
					w := watch(m, every*time.Second)
					w.extra = float64(seed%3) / 10
					w.run(time.Duration(hours)*time.Hour, talks[name], nil)
					peerHours += hours
					if loss == 0 && name == "idle" && ours == 0 && (10 <= theirs && theirs <= 25) != (w.signs.deadline() != never) {
						t.Errorf("keepalive %d s, looks %d s apart: learned %v, deadline %v", theirs, every, w.signs.gap, w.signs.deadline())
					}
					sum := 0
					for reason, n := range w.calls {
						calls[reason] += n
						sum += n
					}
					if sum > most {
						most, worst = sum, fmt.Sprintf("keepalive %d s, ours %d s, looks %d s apart, %s: %v", theirs, ours, every, name, w.calls)
					}
				}
			}
		}
	}
	return calls, peerHours, worst
}

// TestNoFalseCalls: where nothing is lost, nobody is ever called gone who is there.
func TestNoFalseCalls(t *testing.T) {
	t.Parallel()
	hours := 8
	if testing.Short() {
		hours = 1
	}
	calls, peerHours, worst := everyKind(t, hours, 0)
	if len(calls) > 0 {
		t.Errorf("%v false calls in %d hours; the most: %s", calls, peerHours, worst)
	}
	t.Logf("%d hours", peerHours)
}

// TestFalseCallsWithLoss prints what loss does, and holds it to one false call in so many hours of a peer.
func TestFalseCallsWithLoss(t *testing.T) {
	t.Parallel()
	hours := 20
	if testing.Short() {
		hours = 1
	}
	for loss, want := range map[float64]int{0.05: 500, 0.10: 25} {
		calls, peerHours, worst := everyKind(t, hours, loss)
		t.Logf("loss %.0f %%: %v false calls in %d hours; the most: %s", 100*loss, calls, peerHours, worst)
		if sum := calls[events.Silent] + calls[events.Unreachable]; sum*want > peerHours {
			t.Errorf("loss %.0f %%: more than one in %d hours", 100*loss, want)
		}
	}
}

// quantiles returns the given ones.
func quantiles(took []time.Duration, at ...float64) []time.Duration {
	slices.Sort(took)
	var q []time.Duration
	for _, p := range at {
		q = append(q, took[int(p*float64(len(took)-1))].Round(time.Second/10))
	}
	return q
}

// TestHowSoon unplugs peers at random times, and holds the time until that is known.
func TestHowSoon(t *testing.T) {
	t.Parallel()
	trials := 1000
	if testing.Short() {
		trials = 200
	}
	for name, tt := range map[string]struct {
		every     time.Duration
		keepalive time.Duration
		tick      time.Duration
		loss      float64
		talk      talk
		want      events.Reason
		p50, p99  time.Duration // 0 is only told
	}{
		"a keepalive of 25 s":                       {every: 10, keepalive: 25, want: events.Silent, p50: 75, p99: 95},
		"a keepalive of 25 s, looks stretched":      {every: 15, keepalive: 25, want: events.Silent, p50: 80, p99: 105},
		"a keepalive of 25 s of a kernel at 250 Hz": {every: 10, keepalive: 25, tick: 2048 * time.Millisecond, want: events.Silent, p50: 80, p99: 100},
		"a keepalive of 25 s, 5 % loss":             {every: 10, keepalive: 25, loss: 0.05, want: events.Silent},
		"a keepalive of 10 s":                       {every: 10, keepalive: 10, want: events.Silent, p50: 75, p99: 95},
		"traffic both ways each second":             {every: 10, talk: talk{ours: time.Second, theirs: time.Second, size: 1056}, want: events.Unreachable, p50: 40, p99: 50},
		"traffic of full size both ways":            {every: 10, talk: talk{ours: time.Second, theirs: time.Second, size: 32 + 1420}, want: events.Unreachable, p50: 40, p99: 80},
		"a stream to it":                            {every: 10, talk: talk{ours: time.Second, size: 96}, want: events.Unreachable, p50: 50, p99: 60},
		"traffic both ways, looks stretched":        {every: 15, talk: talk{ours: time.Second, theirs: time.Second, size: 96}, want: events.Unreachable, p50: 60, p99: 75},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var took []time.Duration
			early, expired := 0, 0
			for seed := range uint64(trials) {
				m := newModel(1000+seed, tt.keepalive*time.Second, 0, tt.loss)
				m.theirs.tick = tt.tick
				w := watch(m, tt.every*time.Second)
				w.lasting = true
				if tt.want == events.Silent {
					w.run(12*time.Hour, tt.talk, func() bool { return w.learned })
				}
				w.run(m.jitter(20*time.Minute), tt.talk, nil)
				if w.first != 0 {
					early++ // a false call
					continue
				}
				m.unplugged = m.now
				w.run(10*time.Minute, tt.talk, func() bool { return w.first != 0 })
				if w.calls[tt.want] == 0 && tt.p50 == 0 {
					expired++ // more misses are waited for than fit into a session's time
					continue
				}
				if w.calls[tt.want] != 1 {
					t.Fatalf("trial %d: called %v, want %s; %+v", seed, w.calls, tt.want, w.signs)
				}
				took = append(took, w.first-m.unplugged)
			}
			q := quantiles(took, 0, 0.5, 0.99, 1)
			t.Logf("%s: least, p50, p99, most: %v; called before: %d, left to expire: %d of %d", name, q, early, expired, trials)
			if tt.p50 == 0 {
				return
			}
			if early > 0 || q[1] > tt.p50*time.Second || q[2] > tt.p99*time.Second {
				t.Errorf("p50 %v, p99 %v, %d called before; want at most %d s, %d s, none", q[1], q[2], early, tt.p50, tt.p99)
			}
		})
	}
}

// TestComeAndGo lets peers with a keepalive of 25 s leave and come back for days. It holds how soon it is known that one left for longer than its session, how
// often one is called that is there, and how often one that sleeps for less than that is told as gone.
func TestComeAndGo(t *testing.T) {
	t.Parallel()
	type span [2]time.Duration // in seconds
	short, long := span{40, 100}, span{200, 300}
	for name, tt := range map[string]struct {
		loss        float64
		stays       span
		short, long span    // absences
		often       float64 // is an absence long
		peers       int
		hours       float64       // of each
		p50, p99    time.Duration // of those long ones that are called; 0 is only told
		wrong       float64       // calls of peers that are there, an hour, at most
		told        float64       // short ones that are told, an hour, at most
	}{
		"as in half an hour of the soak":           {stays: span{150, 300}, short: short, long: long, often: 0.5, peers: 1000, hours: 0.5, p50: 75, p99: 135, told: 2},
		"as in half an hour of the soak, 5 % loss": {loss: 0.05, stays: span{150, 300}, short: short, long: long, often: 0.5, peers: 1000, hours: 0.5, wrong: 0.03, told: 2},
		"a few times a day":                        {stays: span{1800, 7200}, short: span{40, 160}, long: span{200, 3000}, often: 0.5, peers: 100, hours: 24, p50: 75, p99: 95, told: 1},
		"a few times a day, 5 % loss":              {loss: 0.05, stays: span{1800, 7200}, short: span{40, 160}, long: span{200, 3000}, often: 0.5, peers: 100, hours: 24, wrong: 0.01, told: 1},
		"asleep each 10 min":                       {stays: span{300, 900}, short: span{80, 150}, peers: 100, hours: 24, told: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peers := tt.peers
			if testing.Short() {
				peers /= 5
			}
			var took []time.Duration
			longs, shorts, told, wrong := 0, 0, 0, 0
			for seed := range uint64(peers) {
				m := newModel(9000+seed, 25*time.Second, 0, tt.loss)
				w := watch(m, 10*time.Second)
				within := func(s span) time.Duration { return s[0]*time.Second + m.jitter((s[1]-s[0])*time.Second) }
				calls := func(lasts time.Duration, done func() bool) int {
					before := w.calls[events.Silent]
					w.run(lasts, talk{}, done)
					return w.calls[events.Silent] - before
				}
				end := m.now + time.Duration(tt.hours*float64(time.Hour))
				for stays := within(span{480, 600}); m.now < end; stays = within(tt.stays) {
					wrong += calls(stays, nil)
					lasts, leaves := within(tt.short), m.now
					isLong := m.r.Float64() < tt.often
					if isLong {
						lasts = within(tt.long)
					}
					m.unplugged, w.first = m.now, 0
					switch called := calls(lasts, nil); {
					case isLong:
						longs++
						if called > 0 {
							took = append(took, w.first-leaves)
						}
					default:
						shorts++
						told += called
					}
					m.unplugged = never
					heard := m.ours.rx
					calls(time.Minute, func() bool { return m.ours.rx > heard }) // until then, nobody can know
					calls(w.next-m.now+time.Second, nil)
				}
			}
			hours := float64(peers) * tt.hours
			t.Logf("in %.0f hours %d short absences, %d of them told; %d calls of peers that were there", hours, shorts, told, wrong)
			if len(took) > 0 {
				q := quantiles(took, 0.5, 0.9, 0.99, 1)
				t.Logf("%d long absences, %d called before the session was over: p50, p90, p99, most: %v", longs, len(took), q)
				if tt.p50 > 0 && (q[0] > tt.p50*time.Second || q[2] > tt.p99*time.Second) {
					t.Errorf("p50 %v, p99 %v; want at most %d s, %d s", q[0], q[2], tt.p50, tt.p99)
				}
			}
			if float64(wrong) > tt.wrong*hours || float64(told) > tt.told*hours {
				t.Errorf("%d calls of peers that were there, %d short absences told in %.0f hours; want at most %.2f, %.2f an hour", wrong, told, hours, tt.wrong, tt.told)
			}
		})
	}
}

// TestIntervalOfLooksChanges: what was learned under one load holds under another.
func TestIntervalOfLooksChanges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		m := newModel(seed, 25*time.Second, 0, 0)
		w := watch(m, 10*time.Second)
		for _, every := range []time.Duration{10, 15, 10, 25, 10} {
			w.every = every * time.Second
			w.run(15*time.Minute, talk{}, nil)
			if w.signs.gap < 23*time.Second || w.signs.gap > 27*time.Second {
				t.Errorf("seed %d, looks %d s apart: learned %v", seed, every, w.signs.gap)
			}
		}
		if len(w.calls) > 0 {
			t.Errorf("seed %d: called %v", seed, w.calls)
		}
	}
}

// TestKeepaliveChanges: it is learned anew, after one false call at most, and the peer is called no more.
func TestKeepaliveChanges(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ from, to time.Duration }{
		"from 25 s to 10 s": {25, 10},
		"from 10 s to 25 s": {10, 25},
		"from 25 s to 60 s": {25, 60},
		"from 60 s to 25 s": {60, 25},
		"from 20 s to 55 s": {20, 55},
		"switched off":      {25, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(30) {
				m := newModel(seed, tt.from*time.Second, 0, 0)
				w := watch(m, 10*time.Second)
				w.run(30*time.Minute, talk{}, nil)
				m.theirs.keepalive = tt.to * time.Second
				if tt.to == 0 {
					m.theirs.persistent = never
				}
				sometimes := talk{theirs: time.Second, on: time.Second, off: 30 * time.Minute, size: 96}
				w.run(90*time.Minute, sometimes, nil)
				want := tt.to * time.Second
				if want < answered {
					want *= 2 // two are taken together
				}
				if diff := (w.signs.gap - want).Abs(); want > 0 && diff > 3*time.Second {
					t.Errorf("seed %d: learned %v, want %v", seed, w.signs.gap, want)
				}
				w.run(6*time.Hour, sometimes, nil)
				if w.calls[events.Silent] > 1 || w.calls[events.Unreachable] > 0 {
					t.Errorf("seed %d: called %v", seed, w.calls)
				}
				if want == 0 && w.signs.deadline() != never {
					t.Errorf("seed %d: deadline %v without a keepalive", seed, w.signs.deadline())
				}
			}
		})
	}
}

// TestRestart: a probe that starts again knows what it knew. What it did not watch is no silence, and what it watches is.
func TestRestart(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		m := newModel(seed, 25*time.Second, 0, 0)
		w := watch(m, 10*time.Second)
		w.lasting = true
		w.run(30*time.Minute, talk{}, nil)
		stored, err := json.Marshal(&w.signs)
		if err != nil {
			t.Fatal(err)
		}
		w.signs = signs{}
		if err := json.Unmarshal(stored, &w.signs); err != nil {
			t.Fatal(err)
		}
		w.next = m.now + 20*time.Minute
		w.run(20*time.Minute-1, talk{}, nil)
		w.seen, w.asked, w.handshake = m.ours, m.now, false
		w.signs.blind(m.now)
		w.run(m.jitter(30*time.Minute), talk{}, nil)
		if len(w.calls) > 0 {
			t.Fatalf("seed %d: called %v", seed, w.calls)
		}
		m.unplugged = m.now
		w.run(5*time.Minute, talk{}, nil)
		if took := w.first - m.unplugged; w.calls[events.Silent] != 1 || took > 95*time.Second {
			t.Errorf("seed %d: called %v, after %v", seed, w.calls, took)
		}
	}
}
