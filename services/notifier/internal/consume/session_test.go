package consume

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/order"
)

func TestAnAcknowledgementThatIsNotConfirmedIsAskedForAgain(t *testing.T) {
	t.Parallel()
	now := time.Now()
	letter := work{letter: &deadletter.Letter{}}
	s := &session{c: &Consumer{Config: Config{Log: slog.New(slog.DiscardHandler)}}, closing: map[uint64]*closing{
		1: {busy: true, by: now.Add(-time.Second)},
		2: {busy: true, by: now.Add(2 * time.Second)},
		3: {busy: true, by: now.Add(time.Second)},
		4: {busy: true, work: letter}, // has a time-out of its own
		5: {},
	}, acks: "inbox."}
	s.expire(t.Context(), now)
	if s.closing[1].busy || s.closeAt.IsZero() {
		t.Error("the one whose time is over is not asked for again")
	}
	if !s.closing[2].busy || !s.closing[3].busy || !s.closing[4].busy {
		t.Error("one is asked for again before its time")
	}
	if want := now.Add(time.Second); !s.expireAt.Equal(want) {
		t.Errorf("the next look is at %s, want %s", s.expireAt, want)
	}
	s.confirm(t.Context(), s.confirmationIn(&nats.Msg{Subject: "inbox.3", Header: nats.Header{"Status": {"503"}}}))
	if s.closing[3].busy {
		t.Error("nobody took the acknowledgement, and it is not asked for again")
	}
	for range 2 { // the first one was late, and the second answers the second request
		s.confirm(t.Context(), s.confirmationIn(&nats.Msg{Subject: "inbox.1"}))
	}
	if s.closing[1] != nil {
		t.Error("it is confirmed, and held")
	}
}

// The stream may be a mirror, into which what was stored comes a little later: a connection that takes a disconnection back may be on its way although nothing
// is pending. A disconnection that is sent then, and whose owner is killed before it is acknowledged, would be withheld with it by the next owner.
func TestNothingPendingIsBelievedOfAMomentAgo(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := &session{c: &Consumer{Config: Config{Log: slog.New(slog.DiscardHandler)}}, queue: order.New[work](), next: 8}
	s.compare(answer{info: &jetstream.ConsumerInfo{TimeStamp: now, Delivered: jetstream.SequenceInfo{Stream: 7}}})
	if want := now.Add(-mirrorLag); !s.seen.Equal(want) {
		t.Errorf("everything until %s is taken for arrived, want %s", s.seen, want)
	}
}

// Whoever lets everything go that waits for its time, as when a broken hook works again, does not have held disconnections asked for again and again.
func TestAHeldDisconnectionThatIsHastenedWaitsOn(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := &session{c: &Consumer{Config: Config{Log: slog.New(slog.DiscardHandler)}}, queue: order.New[work](), pin: "pin", concurrency: 1}
	decided := now.Add(20 * time.Second)
	s.queue.Push("alice", 7, work{until: decided, wake: decided}, decided)
	for range 2 {
		s.queue.Hasten()
		s.dispatch(t.Context(), now)
		if at, ok := s.queue.NextWake(); !ok || !at.Equal(decided) || s.asking {
			t.Fatalf("it is looked at again at %s, want %s; asked: %v", at, decided, s.asking)
		}
	}
	// Its time is over by our clock, and the broker has not shown yet that nothing came.
	s.asking = true
	s.dispatch(t.Context(), decided)
	if at, ok := s.queue.NextWake(); !ok || !at.Equal(decided.Add(recoverPoll)) {
		t.Errorf("it is looked at again at %s, want %s", at, decided.Add(recoverPoll))
	}
}
