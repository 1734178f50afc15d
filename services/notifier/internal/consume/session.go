package consume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/order"
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
	work work // buried when it has a letter, acknowledged otherwise
	busy bool // a request is under way
}

// confirmation is the end of such a request.
type confirmation struct {
	seq uint64
	err error
}

// answer is the consumer's state at the server.
type answer struct {
	info *jetstream.ConsumerInfo
	err  error
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

	queue   *order.Queue[work]
	closing map[uint64]*closing // by stream sequence
	closeAt time.Time           // when to ask again for failed closings; zero for none
	failing bool                // closings fail, and it was said

	pin      string // who owns the consumer, as the last message said; empty when it is not we
	numbered uint64 // consumer sequence of the last message
	start    uint64 // first stream sequence that was not acknowledged when the session began
	next     uint64 // first stream sequence that was not received yet
	pending  uint64 // messages at the server, as the last message said
	pulling  bool   // a request for messages is under way

	handedBack string // where the message that was handed back last is acknowledged

	recovering bool
	recoverBy  time.Time
	askAt      time.Time // when to ask for the consumer's state
	asking     bool      // a request for it is under way
	stale      bool      // its answer is from before recovery began anew

	credit        chan int
	arrivals      chan work
	ended         chan pulled
	jobs          chan work
	outcomes      chan outcome
	confirmations chan confirmation
	answers       chan answer
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
		credit:        make(chan int, 1), // never more than one
		arrivals:      make(chan work),
		ended:         make(chan pulled),
		jobs:          make(chan work, n),    // never more than n
		outcomes:      make(chan outcome, n), // never more than n
		confirmations: make(chan confirmation),
		answers:       make(chan answer),
	}
}

// run serves the hook until ctx ends or the consumer is gone. It returns the first stream sequence that was not delivered.
func (s *session) run(ctx context.Context) (resume uint64) {
	// What is under way when ctx ends may go on for a while.
	late, cancelLate := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelLate()
	pullCtx, cancelPull := context.WithCancel(late)
	defer cancelPull()

	p := &puller{c: s.c, cons: s.cons, credit: s.credit, out: s.arrivals, ended: s.ended}
	pulls := make(chan struct{})
	go func() {
		defer close(pulls)
		p.run(pullCtx)
	}()
	var workers sync.WaitGroup
	for range s.concurrency {
		workers.Go(func() { s.work(late) })
	}

	gone := s.serve(ctx, late)
	owner := s.pin != ""
	if gone {
		cancelLate() // without a consumer nothing can be acknowledged
	} else {
		s.unpin(late)
		s.surrender()
	}
	s.stop(late, cancelLate, cancelPull, pulls)
	close(s.jobs)
	workers.Wait()

	resume = s.next
	if !owner || s.recovering {
		resume = min(resume, s.start)
	}
	for it := range s.queue.All() {
		resume = min(resume, it.Seq)
	}
	for seq, cl := range s.closing {
		if cl.work.letter != nil { // perhaps not stored; what is only not acknowledged was delivered
			resume = min(resume, seq)
		}
	}
	s.surrender()
	s.flush(ctx)
	if gone && !owner {
		// The owner knows better where the consumer was, and makes it again.
		sleep(ctx, s.c.pinnedTTL)
	}
	return resume
}

// serve runs the session until ctx ends, or returns true when the consumer is gone.
func (s *session) serve(ctx, late context.Context) (gone bool) {
	progress := time.NewTicker(s.c.ackWait / 3)
	defer progress.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		s.tick(late, now)
		s.dispatch(now)
		s.pull()
		s.c.Observer.Loaded(s.c.Hook.Name, Load{Pending: s.pending, Held: s.held(), InFlight: s.queue.Working()})
		timer.Reset(s.idle(now))

		select {
		case <-ctx.Done():
			return false
		case w := <-s.arrivals:
			s.arrive(late, w)
		case end := <-s.ended:
			s.pulling = s.pulling && !end.credit
			switch {
			case errors.Is(end.err, errGone):
				return true
			case errors.Is(end.err, jetstream.ErrPinIDMismatch):
				s.c.Log.Info("hook is handed back", "held", s.held())
				s.surrender()
			}
		case o := <-s.outcomes:
			s.conclude(late, o)
		case c := <-s.confirmations:
			s.confirm(c)
		case a := <-s.answers:
			s.compare(a)
		case <-progress.C:
			s.keep()
		case <-timer.C:
		}
	}
}

// stop ends what is under way, within stopGrace.
func (s *session) stop(late context.Context, cancelLate, cancelPull context.CancelFunc, pulls <-chan struct{}) {
	// Messages sent before the pin was released are still on their way. Whatever is not caught here is missing until AckWait is over.
	quiet := time.NewTimer(50 * time.Millisecond)
	defer quiet.Stop()
	deadline := time.NewTimer(stopGrace)
	defer deadline.Stop()
	for pulls != nil || s.queue.Working() > 0 || s.asking || s.busy() {
		select {
		case <-quiet.C:
			cancelPull()
		case <-deadline.C:
			cancelLate()
		case <-pulls:
			pulls = nil
		case w := <-s.arrivals:
			if s.queue.Has(w.seq()) || s.closing[w.seq()] != nil {
				continue
			}
			s.next = max(s.next, w.seq()+1)
			s.handBack(w.msg)
		case <-s.ended:
		case o := <-s.outcomes:
			s.conclude(late, o)
		case c := <-s.confirmations:
			s.confirm(c)
		case <-s.answers:
			s.asking = false
		}
	}
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
	if pin := w.msg.Headers().Get(headerPin); pin != s.pin {
		s.pin = pin
		s.recover()
	} else if w.meta.Sequence.Consumer != s.numbered+1 {
		s.recover()
	}
	s.numbered = w.meta.Sequence.Consumer
	s.pending = w.meta.NumPending
	s.next = max(s.next, w.seq()+1)

	if cl, ok := s.closing[w.seq()]; ok {
		cl.work.msg = w.msg
		if !cl.busy {
			s.request(ctx, cl)
		}
		return
	}
	switch {
	case w.letter != nil, !s.c.Hook.Filter.Wants(w.event):
		s.close(ctx, w)
	default:
		var at time.Time
		if h, ok := s.c.attempts[w.seq()]; ok {
			at = h.at
		}
		s.queue.Push(w.event.PartitionKey, w.seq(), w, at)
	}
}

// recover holds deliveries back until every message that the server has delivered and that is not acknowledged is here, so that the queue can put
// them in order. Some may still be with a former owner, or lost on the way: they come back when their AckWait is over, in any order.
func (s *session) recover() {
	now := time.Now()
	s.recovering = true
	s.recoverBy = now.Add(s.c.ackWait + recoverMargin)
	s.askAt = now
	s.stale = s.asking
}

// compare ends recovery when nothing is missing. What is in the queue is un-acked at the server too, so equal numbers mean equal sets. Messages that
// came after the server answered have higher sequences and are left out, and those that are being closed may be acknowledged or not: they are not
// counted, and if they still count there, the next answer will tell.
func (s *session) compare(a answer) {
	s.asking = false
	if !s.recovering {
		return
	}
	now := time.Now()
	if s.stale || a.err != nil {
		s.stale = false
		s.askAt = now
		if a.err != nil {
			s.askAt = now.Add(tryAgain)
		}
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
		info, err := s.cons.Info(ctx)
		s.answers <- answer{info, err}
	}()
}

// tick does what is due.
func (s *session) tick(ctx context.Context, now time.Time) {
	if s.recovering && !now.Before(s.recoverBy) {
		s.c.Log.Warn("messages that others have had do not come back, deliveries go on without them")
		s.recovered()
	}
	if s.recovering && !s.asking && !now.Before(s.askAt) {
		s.ask(ctx)
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

// idle returns how long nothing is due.
func (s *session) idle(now time.Time) time.Duration {
	wake := now.Add(time.Hour)
	earlier := func(t time.Time) {
		if t.Before(wake) {
			wake = t
		}
	}
	if s.recovering {
		earlier(s.recoverBy)
		if !s.asking {
			earlier(s.askAt)
		}
	}
	if !s.closeAt.IsZero() {
		earlier(s.closeAt)
	}
	if s.mayDeliver() {
		pace := s.nextPace(now)
		if at, ok := s.queue.NextWake(); ok && at.After(pace) && s.queue.Ready() == 0 {
			earlier(at)
		} else if ok || s.queue.Ready() > 0 {
			earlier(pace)
		}
	}
	return wake.Sub(now)
}

func (s *session) mayDeliver() bool {
	return s.pin != "" && !s.recovering && s.queue.Working() < s.concurrency
}

// nextPace returns when the hook's rate lets an attempt begin.
func (s *session) nextPace(now time.Time) time.Time {
	if s.c.pace == nil {
		return now
	}
	missing := max(0, 1-s.c.pace.TokensAt(now))
	return now.Add(time.Duration(math.Ceil(missing / float64(s.c.pace.Limit()) * float64(time.Second))))
}

// dispatch gives the workers what they can take.
func (s *session) dispatch(now time.Time) {
	for s.mayDeliver() && !s.nextPace(now).After(now) {
		it, ok := s.queue.Next(now)
		if !ok {
			return
		}
		if s.c.pace != nil {
			s.c.pace.AllowN(now, 1)
		}
		s.jobs <- it.Value
	}
}

// pull asks for messages, as many as there are workers, as soon as half of the workers have nothing more to come: small requests cost as much as
// large ones. While recovering everything un-acked must come, and up to maxAckPending it can.
func (s *session) pull() {
	if s.pulling {
		return
	}
	n, limit := min(s.concurrency, 2*s.concurrency-s.queue.Working()-s.queue.Ready()), holdLimit
	if s.recovering {
		n, limit = 100, maxAckPending
	}
	if 2*n < s.concurrency {
		return
	}
	if n = min(n, limit-s.held()); n > 0 {
		s.pulling = true
		s.credit <- n
	}
}

// work makes attempts until there are no more jobs. When ctx ends, attempts end early.
func (s *session) work(ctx context.Context) {
	for w := range s.jobs {
		o := outcome{work: w}
		req, err := s.c.Hook.Format(w.event, w.msg.Data())
		if err != nil {
			o.unrenderable = err
		} else {
			o.result = s.c.sender.Send(ctx, w.event.ID, req)
		}
		s.outcomes <- o
	}
}

// conclude draws the consequence of an attempt.
func (s *session) conclude(ctx context.Context, o outcome) {
	e, res, now := o.work.event, o.result, time.Now()
	bury := func(l deadletter.Letter) {
		w := s.queue.Done(e.PartitionKey)
		w.letter = &l
		s.close(ctx, w)
	}
	if o.unrenderable != nil {
		bury(deadletter.Letter{Class: deadletter.Unrenderable, Reason: o.unrenderable.Error(), EventID: e.ID})
		return
	}
	if res.Class == deliver.Canceled {
		s.queue.Retry(e.PartitionKey, time.Time{})
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
		s.close(ctx, s.queue.Done(e.PartitionKey))
	case deliver.Dead:
		bury(letter)
	case deliver.Retry:
		at, giveUp := s.c.Hook.Retry.Next(h.attempts, o.work.meta.Timestamp, now, rand.Float64(), res.RetryAfter)
		if giveUp {
			letter.Reason = fmt.Sprintf("given up %s after the event was stored: %s", s.c.Hook.Retry.GiveUp, res.Reason)
			bury(letter)
			return
		}
		s.c.Log.Debug("delivery failed", "event_id", e.ID, "attempt", h.attempts, "class", res.Class, "reason", res.Reason, "answer", res.Answer, "next", at)
		h.at = at
		s.queue.Retry(e.PartitionKey, at)
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
	cl.busy = true
	w := cl.work
	go func() {
		ctx, cancel := context.WithTimeout(ctx, requestWait)
		defer cancel()
		var err error
		if w.letter != nil {
			err = deadletter.Bury(ctx, s.c.JetStream, s.c.Hook.Name, w.msg, *w.letter)
		} else {
			err = w.msg.DoubleAck(ctx)
		}
		s.confirmations <- confirmation{w.seq(), err}
	}()
}

// confirm ends a closing. One that failed is asked for again: the message is not delivered again, not even when it comes back.
func (s *session) confirm(c confirmation) {
	cl := s.closing[c.seq]
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
	if l := cl.work.letter; l != nil {
		s.c.Observer.Buried(s.c.Hook.Name, l.Class)
		s.c.Log.Warn("event is dead", "event_id", l.EventID, "stream_sequence", c.seq, "class", l.Class, "reason", l.Reason, "attempts", l.Attempts)
	}
}

// keep tells the server that what is held is being worked on. A message that misses it comes back and takes the place that it has.
func (s *session) keep() {
	for it := range s.queue.All() {
		_ = it.Value.msg.InProgress()
	}
	for _, cl := range s.closing {
		_ = cl.work.msg.InProgress()
	}
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
func (s *session) handBack(msg jetstream.Msg) {
	_ = msg.NakWithDelay(time.Millisecond)
	s.handedBack = msg.Reply()
}

// unpin releases the consumer, so that the next owner need not wait for PinnedTTL.
func (s *session) unpin(ctx context.Context) {
	if s.pin == "" || !s.c.JetStream.Conn().IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tryAgain)
	defer cancel()
	stream, err := s.c.JetStream.Stream(ctx, s.c.Source.Stream)
	if err == nil {
		err = stream.UnpinConsumer(ctx, Durable(s.c.Hook.Name), group)
	}
	if err != nil {
		s.c.Log.Warn("hook is not released, the next owner waits", "wait", s.c.pinnedTTL, "error", err)
	}
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
