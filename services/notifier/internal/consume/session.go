package consume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/order"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
)

// history is how the delivery of one message went so far.
type history struct {
	attempts    int
	lastStatus  int
	first, last time.Time
	at          time.Time // of the next attempt
}

// outcome is the end of an attempt.
type outcome struct {
	work         work
	result       deliver.Result
	unrenderable error // why the hook's format cannot express the event; then there was no attempt
}

// closing is a message whose fate is decided and which the server has yet to confirm.
type closing struct {
	work          work      // buried when it has a letter, acknowledged otherwise
	busy          bool      // a request is under way
	by            time.Time // when an acknowledgement counts as lost
	after, before uint64    // stream sequences of closings that must be confirmed first, and only then; 0 for none
}

// confirmation is the end of such a request.
type confirmation struct {
	seq uint64
	err error
}

// answer is the consumer's state at the server.
type answer struct {
	first uint64 // sequence that the stream holds, read before the consumer's state; 0 when it never held any
	info  *jetstream.ConsumerInfo
	err   error
}

// session serves a hook on one consumer, as long as that exists. All fields belong to the goroutine of run.
//
//	              message under a new pin           nothing missing, or time is up
//	(standing by) ──────────────────────► recovering ─────────────────────────────► delivering
//	      ▲                                 │    ▲        hole in the numbering          │
//	      │                                 │    └───────────────────────────────────────┤
//	      └──────── pin lost: hand back ◄───┴────────────────────────────────────────────┘
type session struct {
	c           *Consumer
	cons        jetstream.Consumer
	concurrency int

	queue    *order.Queue[work]
	closing  map[uint64]*closing // by stream sequence
	closeAt  time.Time           // when to ask again for failed closings; zero for none
	failing  bool                // closings fail, and it was said
	expireAt time.Time           // when to look next for acknowledgements that were not confirmed; zero for none
	hookGone bool                // the hook answered 410, and the event of that answer is being buried

	pin      string    // who owns the consumer, as the last message said; empty when it is not we
	heard    time.Time // when the server said something last, as far as it is known
	numbered uint64    // consumer sequence of the last message
	start    uint64    // first stream sequence that was not delivered when the session began, or when the hook was lost last
	next     uint64    // first stream sequence that was not received yet
	pending  uint64    // messages at the server, as the last message said
	pulling  bool      // a request for messages is under way

	stuck bool      // nothing moves but by retries, and it was said
	trial uint64    // stream sequence in work while the hook counts as broken, 0 for none
	late  time.Time // when what dispatch left may go
	// seen is a time of the broker: everything that it stored until then has arrived.
	seen time.Time
	// tail is the last delivery that is known of, by the numbers of the stream and of the consumer: from it, a hole in the stream's shows.
	tail jetstream.SequenceInfo
	// overtaken is tail before an answer moved it: what the server delivered in between may be for us and not here yet, and have the hole before it.
	overtaken jetstream.SequenceInfo
	auditAt   time.Time // when to look next at what the stream has dropped

	handedBack string // where the message that was handed back last is acknowledged

	recovering bool
	recoverBy  time.Time
	askAt      time.Time // when to ask for the consumer's state
	asking     bool      // a request for it is under way
	stale      bool      // its answer is from before recovery began anew
	missing    int       // messages that recovery may ask for, as the last answer said

	credit        chan int
	arrivals      chan arrival
	attempts      *pool[work]
	outcomes      chan outcome
	confirmations chan confirmation
	answers       chan answer
	// acked is where the server confirms acknowledgements, each on a subject of its own: acks and the stream sequence.
	acked chan *nats.Msg
	acks  string
}

func newSession(c *Consumer, cons jetstream.Consumer) *session {
	n := cmp.Or(c.Hook.Target.Concurrency, deliver.DefaultConcurrency)
	return &session{
		c:             c,
		cons:          cons,
		concurrency:   n,
		queue:         order.New[work](),
		closing:       map[uint64]*closing{},
		start:         cons.CachedInfo().AckFloor.Stream + 1,
		next:          cons.CachedInfo().Delivered.Stream + 1,
		tail:          sequences(cons.CachedInfo()),
		overtaken:     sequences(cons.CachedInfo()),
		outcomes:      make(chan outcome, n), // never more than n
		confirmations: make(chan confirmation),
		answers:       make(chan answer),
		acked:         make(chan *nats.Msg, maxAckPending), // one that finds no room is asked for again
		acks:          c.JetStream.Conn().NewInbox() + ".",
	}
}

// run serves the hook until ctx ends, or the hook or its consumer is gone. It returns the first stream sequence that was not delivered.
func (s *session) run(ctx context.Context) (resume uint64) {
	// What is under way when ctx ends may go on for a while.
	late, cancelLate := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelLate()
	pullCtx, cancelPull := context.WithCancel(late)
	defer cancelPull()

	sub, err := s.c.JetStream.Conn().ChanSubscribe(s.acks+"*", s.acked)
	if err != nil {
		s.c.Log.Debug("subscribe failed", "error", err)
		sleep(ctx, tryAgain)
		return s.c.resume
	}
	defer func() { _ = sub.Unsubscribe() }()

	p, err := newPuller(s.c, s.cons)
	if err != nil {
		s.c.Log.Debug("subscribe failed", "error", err)
		sleep(ctx, tryAgain)
		return s.c.resume
	}
	s.credit, s.arrivals = p.credit, p.out
	go p.run(pullCtx)

	s.attempts = newPool(func(w work) { s.attempt(late, w) })
	defer close(s.attempts.jobs)

	gone := s.serve(ctx, late)
	grace := time.NewTimer(stopGrace) // for all that follows but flush
	defer grace.Stop()
	released, answers := s.pin, true
	if gone {
		cancelLate() // without a consumer nothing can be acknowledged
	} else {
		answers = s.unpin(late)
		s.surrender()
	}
	s.stop(late, released, grace.C, cancelLate, cancelPull)
	resume = s.undelivered()
	if released == "" || s.recovering {
		resume = min(resume, s.start)
	}
	s.surrender()
	if answers {
		s.flush(ctx)
	}
	if gone && released == "" {
		// The owner knows better where the consumer was, and makes it again.
		sleep(ctx, s.c.pinnedTTL)
	}
	return resume
}

// serve runs the session until ctx ends or the hook is gone, or returns true when the consumer is gone.
func (s *session) serve(ctx, late context.Context) (gone bool) {
	progress := time.NewTicker(s.c.ackWait / 3)
	defer progress.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for taken := 0; ; taken++ {
		// What follows from one event follows from several at once, and costs more than to take them.
		if taken == atOnce || len(s.arrivals)+len(s.outcomes)+len(s.acked) == 0 {
			taken = 0
			now := time.Now()
			s.tick(late, now)
			s.dispatch(late, now)
			s.pull()
			s.c.Observer.Loaded(s.c.Hook.Name, Load{Pending: s.pending, Held: s.held(), InFlight: s.queue.Working(), Circuit: s.circuit()})
			timer.Reset(s.idle(now))
		}

		select {
		case <-ctx.Done():
			return false
		case a := <-s.arrivals:
			s.hear(a.heard)
			if a.end == nil {
				s.arrive(late, a.work)
				continue
			}
			s.pulling = s.pulling && !a.end.credit
			switch {
			case errors.Is(a.end.err, errGone):
				return true
			case errors.Is(a.end.err, jetstream.ErrPinIDMismatch):
				s.c.Log.Info("hook is handed back", "held", s.held())
				s.lose()
			}
		case o := <-s.outcomes:
			s.conclude(late, o)
			if s.hookGone {
				return false
			}
		case c := <-s.confirmations:
			s.confirm(late, c)
		case msg := <-s.acked:
			s.confirm(late, s.confirmationIn(msg))
		case a := <-s.answers:
			s.compare(a)
		case <-progress.C:
			s.keep()
		case <-timer.C:
		}
	}
}

// stop ends what is under way, with force when grace is over. released is the pin that was given up.
func (s *session) stop(late context.Context, released string, grace <-chan time.Time, cancelLate, cancelPull context.CancelFunc) {
	// Messages sent before the pin was released are still on their way. Whatever is not caught here is missing until AckWait is over.
	quiet := time.NewTimer(50 * time.Millisecond)
	defer quiet.Stop()
	gone := late.Done()
	for s.arrivals != nil || s.queue.Working() > 0 || s.asking || s.busy() {
		select {
		case <-gone:
			gone = nil // no confirmation is waited for any more
			s.expire(late, time.Now().Add(requestWait))
		case <-quiet.C:
			cancelPull()
		case <-grace:
			cancelLate()
		case a, ok := <-s.arrivals:
			if !ok {
				s.arrivals = nil // the puller has ended
				continue
			}
			if a.end != nil {
				continue
			}
			w := a.work
			if pin := w.msg.Header.Get(headerPin); pin != released {
				s.pin, released = pin, pin // by this message, which was on its way
				s.unpin(late)
				s.pin = ""
			}
			if s.queue.Has(w.seq()) || s.closing[w.seq()] != nil {
				continue
			}
			s.next = max(s.next, w.seq()+1)
			s.handBack(w.msg)
		case o := <-s.outcomes:
			s.conclude(late, o)
		case c := <-s.confirmations:
			s.confirm(late, c)
		case msg := <-s.acked:
			s.confirm(late, s.confirmationIn(msg))
		case <-s.answers:
			s.asking = false
		}
	}
}

// undelivered returns the first stream sequence that was not delivered, as far as it came here.
func (s *session) undelivered() uint64 {
	first := s.next
	for it := range s.queue.All() {
		first = min(first, it.Seq)
	}
	for seq, cl := range s.closing {
		if cl.work.letter != nil { // perhaps not stored; what is only not acknowledged was delivered
			first = min(first, seq)
		}
	}
	return first
}

func (s *session) held() int { return s.queue.Len() + len(s.closing) }

func (s *session) busy() bool {
	for _, cl := range s.closing {
		if cl.busy {
			return true
		}
	}
	return false
}

// arrive takes a message in.
func (s *session) arrive(ctx context.Context, w work) {
	if pin := w.msg.Header.Get(headerPin); pin != s.pin {
		s.pin = pin
		s.recover()
	} else if w.meta.Sequence.Consumer != s.numbered+1 {
		s.recover()
	}
	s.numbered = w.meta.Sequence.Consumer
	s.pending = w.meta.NumPending
	s.noticeHole(w.meta)
	if w.meta.Timestamp.After(s.seen) {
		s.seen = w.meta.Timestamp.Add(-1) // there may be another one of that very time
	}
	s.next = max(s.next, w.seq()+1)

	if cl, ok := s.closing[w.seq()]; ok {
		cl.work.msg = w.msg
		if !cl.busy {
			s.request(ctx, cl)
		}
		return
	}
	if w.letter != nil {
		s.close(ctx, w)
		return
	}
	w.unwanted = !s.c.Hook.Filter.Wants(w.event)
	flap := s.mayFlap(w.event)
	if w.unwanted && !flap {
		s.close(ctx, w)
		return
	}
	var at time.Time
	if h, ok := s.c.attempts[w.seq()]; ok {
		at = h.at
	} else if flap && w.event.Type == events.PeerDisconnected {
		w.until = w.meta.Timestamp.Add(s.c.Hook.Policy.Hold)
		at = w.until.Add(mirrorLag)
		if latest := time.Now().Add(s.c.Hook.Policy.Hold + mirrorLag); at.After(latest) { // by two clocks
			at = latest
		}
		w.wake = at
	}
	w.key = w.event.PartitionKey
	if s.unordered() {
		w.key = strconv.FormatUint(w.seq(), 10)
	}
	s.queue.Push(w.key, w.seq(), w, at)
	if flap {
		s.withhold(ctx, w.key)
	}
}

// unordered reports whether a failed delivery holds up nothing: then each message is a key of its own. What waits for its retry is held and kept un-acked
// here, as it is in order. NakWithDelay would win nothing, because what was NAKed counts against MaxAckPending just the same, and would give away when it
// comes back and how many attempts it has had.
func (s *session) unordered() bool { return s.c.Hook.Policy.Order == Unordered }

// recover holds deliveries back until every message that the server has delivered and that is not acknowledged is here, so that the queue can put
// them in order. Some may still be with a former owner, or lost on the way: they come back when their AckWait is over, in any order.
func (s *session) recover() {
	now := time.Now()
	s.recovering = true
	s.missing = 0
	s.recoverBy = now.Add(s.c.ackWait + recoverMargin)
	s.askAt = now
	s.stale = s.asking
}

// compare ends recovery when nothing is missing. What is in the queue is un-acked at the server too, so equal numbers mean equal sets. Messages that
// came after the server answered have higher sequences and are left out, and those that are being closed may be acknowledged or not: they are not
// counted, and if they still count there, the next answer will tell.
func (s *session) compare(a answer) {
	s.asking = false
	now := time.Now()
	if s.stale || a.err != nil {
		s.stale = false
		s.askAt = now
		if a.err != nil {
			s.askAt = now.Add(tryAgain)
		}
		return
	}
	s.auditAt = now.Add(s.c.audit)
	s.noticeDropped(a)
	if here := a.info.TimeStamp.Add(-mirrorLag); a.info.NumPending == 0 && a.info.Delivered.Stream < s.next && here.After(s.seen) {
		s.seen = here
	}
	if !s.recovering {
		return
	}
	here := 0
	for it := range s.queue.All() {
		if it.Seq <= a.info.Delivered.Stream {
			here++
		}
	}
	if here < a.info.NumAckPending {
		s.askAt = now.Add(recoverPoll)
		if s.missing = a.info.NumAckPending - here; s.pulling {
			s.missing = 0 // they may be on their way
		}
		return
	}
	s.recovered()
}

func (s *session) recovered() {
	s.recovering = false
	// What others delivered meanwhile does not come back.
	for seq := range s.c.attempts {
		if !s.queue.Has(seq) && s.closing[seq] == nil {
			delete(s.c.attempts, seq)
		}
	}
}

// ask requests the consumer's state.
func (s *session) ask(ctx context.Context) {
	s.asking = true
	go func() {
		ctx, cancel := context.WithTimeout(ctx, requestWait)
		defer cancel()
		var a answer
		stream, err := s.c.JetStream.Stream(ctx, s.c.Source.Stream)
		if err == nil {
			a.first = stream.CachedInfo().State.FirstSeq
			a.info, err = s.cons.Info(ctx)
		}
		a.err = err
		s.answers <- a
	}()
}

// hear takes in when the server said something. An owner hears it several times within PinnedTTL; one that did not may have been followed by another, who
// has delivered what is held here and more, and the server would not even say so once that one is gone, too.
func (s *session) hear(at time.Time) {
	s.lapse(at)
	s.heard = later(s.heard, at)
}

// lapse ends an ownership of which the server has said nothing for too long.
func (s *session) lapse(now time.Time) {
	if s.pin != "" && !now.Before(s.heard.Add(s.c.pinnedTTL)) {
		s.c.Log.Warn("the broker is silent, another notifier may have the hook by now: it is handed back", "held", s.held())
		s.lose()
	}
}

// tick does what is due.
func (s *session) tick(ctx context.Context, now time.Time) {
	s.lapse(now)
	if s.recovering && !now.Before(s.recoverBy) {
		s.c.Log.Warn("messages that others have had do not come back, deliveries go on without them")
		s.recovered()
	}
	if !s.asking && !now.Before(s.nextAsk()) {
		s.ask(ctx)
	}
	if !s.expireAt.IsZero() && !now.Before(s.expireAt) {
		s.expire(ctx, now)
	}
	if !s.closeAt.IsZero() && !now.Before(s.closeAt) {
		s.closeAt = time.Time{}
		for _, cl := range s.closing {
			if !cl.busy {
				s.request(ctx, cl)
			}
		}
	}
}

// nextAsk returns when the consumer's state is asked for again: soon while recovering, and now and then in any case.
func (s *session) nextAsk() time.Time {
	if s.recovering {
		return s.askAt
	}
	return later(s.auditAt, s.askAt)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// idle returns how long nothing is due.
func (s *session) idle(now time.Time) time.Duration {
	wake := now.Add(time.Hour)
	earlier := func(t time.Time) {
		if t.Before(wake) {
			wake = t
		}
	}
	if s.pin != "" {
		earlier(s.heard.Add(s.c.pinnedTTL))
	}
	if s.recovering {
		earlier(s.recoverBy)
	}
	if !s.asking {
		earlier(s.nextAsk())
	}
	if !s.closeAt.IsZero() {
		earlier(s.closeAt)
	}
	if !s.expireAt.IsZero() {
		earlier(s.expireAt)
	}
	if s.mayDeliver() {
		if at, ok := s.queue.NextWake(); ok {
			earlier(at)
		}
		if !s.late.IsZero() {
			earlier(s.late)
		}
	}
	return wake.Sub(now)
}

func (s *session) mayDeliver() bool {
	return s.pin != "" && (!s.recovering || s.unordered()) && s.queue.Working() < s.concurrency
}

// dispatch begins the attempts that may be made now.
func (s *session) dispatch(ctx context.Context, now time.Time) {
	s.late = time.Time{}
	for s.mayDeliver() {
		it, ok := s.queue.Peek(now)
		if !ok && s.hastenTrial(now) {
			continue
		}
		if !ok {
			return
		}
		w := it.Value
		if s.undecided(w) {
			s.queue.Next(now)
			if now.Before(w.wake) {
				s.queue.Retry(it.Key, w.wake)
				continue
			}
			s.queue.Retry(it.Key, now.Add(recoverPoll))
			if !s.asking && !now.Before(s.askAt) {
				s.ask(ctx)
			}
			continue
		}
		if w.unwanted {
			s.close(ctx, s.queue.Drop(it.Key, it.Seq))
			continue
		}
		trial := s.c.breaker.Open()
		if due := s.due(w); trial && now.Before(due) {
			s.late = due
			return
		}
		if l := s.c.limiter; l != nil && !l.AllowN(now, 1) {
			s.late = now.Add(time.Duration((1 - l.TokensAt(now)) / float64(l.Limit()) * float64(time.Second)))
			return
		}
		if trial && s.trial == 0 {
			s.trial = it.Seq
		}
		s.queue.Next(now)
		s.attempts.start(w)
	}
}

// hastenTrial has a trial made with what failed already, when there is nothing else: all that comes may belong behind it, and its own time be hours away. It
// returns false while no trial is due, or none can be made so. A disconnection that is held waits for something else.
func (s *session) hastenTrial(now time.Time) bool {
	it, ok := s.queue.Soonest()
	if !ok || !s.c.breaker.Open() || s.trial != 0 || s.c.attempts[it.Seq] == nil {
		return false
	}
	if at := s.c.breaker.TrialAt(); now.Before(at) {
		s.late = at
		return false
	}
	s.queue.HastenSoonest()
	return true
}

// due returns when a message may be tried although the hook counts as broken: when it is time for a trial and there is none, and in any case when the
// message is so old that a failure gives it up. So what grows too old gets its attempt and its dead letter before the stream drops it.
func (s *session) due(w work) time.Time {
	old := w.meta.Timestamp.Add(s.c.Hook.Retry.GiveUp)
	if at := s.c.breaker.TrialAt(); s.trial == 0 && at.Before(old) {
		return at
	}
	return old
}

// circuit returns the state for the metric.
func (s *session) circuit() Circuit {
	switch {
	case !s.c.breaker.Open():
		return Closed
	case s.trial != 0:
		return Testing
	default:
		return Open
	}
}

// pull asks for messages, as soon as there is room for half of what is fetched ahead: small requests cost as much as large ones. While recovering
// everything un-acked must come, and up to maxAckPending it can. It asks for as many as are missing, no more: new ones may come in their place.
//
// While the hook counts as broken, the backlog waits in the stream: a message is pulled when none is at hand that may be tried, so that a trial need not
// be one of those that failed already. A retried head and its followers stay un-acked all the time, as many as were pulled until then. Where all that
// comes belongs behind such heads, holdLimit ends it, as it does for a hook that fails for some peers only and is never broken, and a head is the trial.
func (s *session) pull() {
	if s.pulling {
		return
	}
	s.noticeStuck()
	full, limit := prefetch*s.concurrency, holdLimit
	n := full - s.queue.Ready()
	switch {
	case s.recovering:
		full, n, limit = 0, min(s.missing, recoverBatch), maxAckPending
		s.missing -= n
	case s.c.breaker.Open():
		if s.queue.Ready() == 0 && s.held() < limit {
			s.pulling = true
			s.credit <- 1
		}
		return
	}
	if 2*n < full {
		return
	}
	if n = min(n, limit-s.held()); n > 0 {
		s.pulling = true
		s.credit <- n
	}
}

// attempt tries to deliver a message. When ctx ends, it ends early.
func (s *session) attempt(ctx context.Context, w work) {
	o := outcome{work: w}
	req, err := s.c.Hook.Format(w.event, w.msg.Data)
	if err != nil {
		o.unrenderable = err
	} else {
		o.result = s.c.sender.Send(ctx, w.event.ID, req)
	}
	s.outcomes <- o
}

// conclude draws the consequence of an attempt.
func (s *session) conclude(ctx context.Context, o outcome) {
	e, res, now := o.work.event, o.result, time.Now()
	key, trial := o.work.key, s.trial == o.work.seq()
	if trial {
		s.trial = 0
	}
	bury := func(l deadletter.Letter) {
		w := s.queue.Done(key)
		w.letter = &l
		s.close(ctx, w)
	}
	if o.unrenderable != nil {
		bury(deadletter.Letter{Class: deadletter.Unrenderable, Reason: o.unrenderable.Error(), EventID: e.ID})
		return
	}
	if res.Class == deliver.Canceled {
		s.queue.Retry(key, time.Time{})
		return
	}

	h := s.c.attempts[o.work.seq()]
	if h == nil {
		h = &history{first: now.Add(-res.Latency)}
		s.c.attempts[o.work.seq()] = h
	}
	h.attempts++
	h.last = now.Add(-res.Latency)
	h.lastStatus = res.Status
	s.c.Observer.Attempted(Attempt{
		Hook:        s.c.Hook.Name,
		Event:       e,
		Number:      h.attempts,
		Result:      res,
		SinceStored: max(0, now.Sub(o.work.meta.Timestamp)), // by two clocks
	})
	letter := deadletter.Letter{
		Class: deadletter.OfAttempt(res.Class), Reason: res.Reason, EventID: e.ID,
		Attempts: h.attempts, LastStatus: h.lastStatus, First: h.first, Last: h.last,
	}
	verdict := res.Class.Verdict()
	if s.c.Hook.RetryRejected && res.Class == deliver.Rejected {
		verdict = deliver.Retry
	}
	switch verdict {
	case deliver.Done:
		if s.c.breaker.Succeeded() {
			s.c.Log.Info("hook works again, its events are delivered")
			s.queue.Hasten()
		}
		s.close(ctx, s.queue.Done(key))
	case deliver.Dead:
		if res.Class == deliver.Gone {
			if s.hookGone { // one letter says it: the others wait with the rest
				s.queue.Retry(key, time.Time{})
				return
			}
			s.hookGone = true
		}
		s.c.breaker.Answered()
		bury(letter)
	case deliver.Retry:
		if s.c.breaker.Failed(s.c.Hook.Retry, trial, now, rand.Float64(), res.RetryAfter) {
			s.c.Log.Warn("hook is broken, its events wait in the stream", "class", res.Class, "reason", res.Reason, "next_trial", s.c.breaker.TrialAt())
		}
		at, giveUp := s.c.Hook.Retry.Next(h.attempts, o.work.meta.Timestamp, now, rand.Float64(), res.RetryAfter)
		if giveUp {
			letter.Reason = fmt.Sprintf("given up %s after the event was stored: %s", s.c.Hook.Retry.GiveUp, res.Reason)
			bury(letter)
			return
		}
		s.c.Log.Debug("delivery failed", "event_id", e.ID, "attempt", h.attempts, "class", res.Class, "reason", res.Reason, "answer", res.Answer, "next", at)
		h.at = at
		s.queue.Retry(key, at)
		if s.pin == "" {
			s.surrender()
		}
	}
}

// close has w acknowledged, or buried when it has a letter. Its key is free: what comes next need not wait for the server.
func (s *session) close(ctx context.Context, w work) {
	cl := &closing{work: w}
	s.closing[w.seq()] = cl
	s.request(ctx, cl)
}

func (s *session) request(ctx context.Context, cl *closing) {
	if s.closing[cl.after] != nil {
		return // its confirmation asks
	}
	cl.busy = true
	w := cl.work
	if w.letter == nil {
		// As DoubleAck does, but without a goroutine for each: there may be hundreds.
		cl.by = time.Now().Add(requestWait)
		if s.expireAt.IsZero() {
			s.expireAt = cl.by
		}
		err := ctx.Err()
		if err == nil {
			err = s.c.JetStream.Conn().PublishRequest(w.msg.Reply, s.acks+strconv.FormatUint(w.seq(), 10), []byte("+ACK"))
		}
		if err != nil {
			s.confirm(ctx, confirmation{w.seq(), err})
		}
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, requestWait)
		defer cancel()
		s.confirmations <- confirmation{w.seq(), deadletter.Bury(ctx, s.c.JetStream, s.c.Hook.Name, w.msg, *w.letter)}
	}()
}

// confirmationIn reads the server's answer to an acknowledgement.
func (s *session) confirmationIn(msg *nats.Msg) (c confirmation) {
	c.seq, _ = strconv.ParseUint(strings.TrimPrefix(msg.Subject, s.acks), 10, 64) // the server answers on the subject it was given
	if msg.Header.Get("Status") == "503" {
		c.err = nats.ErrNoResponders
	}
	return c
}

// expire ends the acknowledgements that were not confirmed by now.
func (s *session) expire(ctx context.Context, now time.Time) {
	s.expireAt = time.Time{}
	for seq, cl := range s.closing {
		switch {
		case !cl.busy || cl.work.letter != nil:
		case !now.Before(cl.by):
			s.confirm(ctx, confirmation{seq, nats.ErrTimeout})
		case s.expireAt.IsZero() || cl.by.Before(s.expireAt):
			s.expireAt = cl.by
		}
	}
}

// confirm ends a closing. One that failed is asked for again: the message is not delivered again, not even when it comes back.
func (s *session) confirm(ctx context.Context, c confirmation) {
	cl := s.closing[c.seq]
	if cl == nil {
		return // it was asked for twice
	}
	if c.err != nil {
		cl.busy = false
		if s.closeAt.IsZero() {
			s.closeAt = time.Now().Add(tryAgain)
		}
		if !s.failing {
			s.failing = true
			s.c.Log.Warn("delivered or dead messages cannot be acknowledged, they are held", "error", c.err)
		}
		return
	}
	s.failing = false
	delete(s.closing, c.seq)
	delete(s.c.attempts, c.seq)
	if next := s.closing[cl.before]; next != nil && !next.busy {
		s.request(ctx, next)
	}
	if l := cl.work.letter; l != nil {
		s.c.Observer.Buried(s.c.Hook.Name, l.Class)
		s.c.Log.Warn("event is dead", "event_id", l.EventID, "stream_sequence", c.seq, "class", l.Class, "reason", l.Reason, "attempts", l.Attempts)
	}
}

// keep tells the server that what is held is being worked on. A message that misses it comes back and takes the place that it has.
func (s *session) keep() {
	for it := range s.queue.All() {
		s.tell(it.Value.msg, "+WPI")
	}
	for _, cl := range s.closing {
		s.tell(cl.work.msg, "+WPI")
	}
}

// lose ends an ownership that is over. The next owner finds out for itself whether the hook is broken.
func (s *session) lose() {
	s.c.breaker = retry.Breaker{}
	if s.pin != "" && !s.recovering {
		s.start = s.undelivered()
	}
	s.surrender()
}

// surrender gives up the ownership and hands back what waits, so that the next owner need not wait for AckWait. How the attempts went is kept, for
// the case that the next owner is this one.
func (s *session) surrender() {
	s.pin = ""
	s.recovering = false
	for _, it := range s.queue.DropWaiting() {
		s.handBack(it.Value.msg)
	}
}

// handBack has a message delivered again at once. The server stores a NAK with a delay, and forgets one without when it is restarted, as the embedded
// one is with its notifier: the message would come back when its AckWait is over, as it does when the NAK is lost.
func (s *session) handBack(msg *nats.Msg) {
	s.tell(msg, fmt.Sprintf(`-NAK {"delay": %d}`, time.Millisecond))
	s.handedBack = msg.Reply
}

// tell says something about a message to its consumer. Nothing depends on it: what is lost makes the message come back when its AckWait is over.
func (s *session) tell(msg *nats.Msg, what string) {
	_ = s.c.JetStream.Conn().Publish(msg.Reply, []byte(what))
}

// unpin releases the consumer, so that the next owner need not wait for PinnedTTL. It returns false when the broker was asked and does not answer.
func (s *session) unpin(ctx context.Context) bool {
	if s.pin == "" || !s.c.JetStream.Conn().IsConnected() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, tryAgain)
	defer cancel()
	err := s.c.stream.UnpinConsumer(ctx, Durable(s.c.Hook.Name), group)
	if err != nil {
		s.c.Log.Warn("hook is not released, the next owner may have to wait", "wait", s.c.pinnedTTL, "error", err)
	}
	return err == nil
}

// flush waits until the consumer knows what was handed back. A PONG would say only that the server has read it, and an embedded server ends next. The
// consumer takes acknowledgements in their order, and answers one of a kind that it does not know without doing anything.
func (s *session) flush(ctx context.Context) {
	nc := s.c.JetStream.Conn()
	if s.handedBack == "" || !nc.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tryAgain)
	defer cancel()
	_, _ = nc.RequestWithContext(ctx, s.handedBack, []byte("+SYNC")) // what is lost comes back later
}
