package consume

import (
	"log/slog"
	"strings"
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

func TestAHookThatIsHeldUpByOneEventSaysSoOnce(t *testing.T) {
	t.Parallel()
	const said = "hook holds as many events as it may"
	now := time.Now()
	for _, tt := range []struct {
		name    string
		held    int
		failed  bool // the head was tried
		other   bool // there is an event of another peer
		changed func(*session)
		want    int
	}{
		{"all behind one that fails", holdLimit, true, false, nil, 1},
		{"there is room", holdLimit - 1, true, false, nil, 0},
		{"another one may go", holdLimit, true, true, nil, 0},
		{"behind a held disconnection", holdLimit, false, false, nil, 0},
		{"recovering", holdLimit, true, false, func(s *session) { s.recovering = true }, 0},
		{"all fail, without order", holdLimit, true, false, func(s *session) { s.c.Hook.Policy.Order = Unordered }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			log := &lockedBuffer{}
			s := &session{c: &Consumer{Config: Config{Log: slog.New(slog.NewTextHandler(log, nil))}, attempts: map[uint64]*history{}}, queue: order.New[work]()}
			for i := range tt.held {
				s.queue.Push("alice", uint64(i+1), work{}, now.Add(time.Hour))
			}
			if tt.failed {
				s.c.attempts[1] = &history{at: now.Add(time.Hour)}
			}
			if tt.other {
				s.queue.Push("bob", 5000, work{}, time.Time{})
			}
			if tt.changed != nil {
				tt.changed(s)
			}
			for range 2 {
				s.noticeStuck()
			}
			if got := strings.Count(log.String(), said); got != tt.want {
				t.Errorf("said %d times, want %d: %s", got, tt.want, log.String())
			}
			if tt.want == 0 {
				return
			}
			if advised := strings.Contains(log.String(), "order: none"); advised == s.unordered() {
				t.Errorf("order: none is advised: %t, and the hook has it: %t", advised, s.unordered())
			}
			all := s.queue.DropWaiting()
			s.noticeStuck()
			for _, it := range all {
				s.queue.Push(it.Key, it.Seq, it.Value, now.Add(time.Hour))
			}
			s.noticeStuck()
			if got := strings.Count(log.String(), said); got != 2 {
				t.Errorf("said %d times after it was over in between, want twice", got)
			}
		})
	}
}
