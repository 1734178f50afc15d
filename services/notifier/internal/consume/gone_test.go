package consume

import (
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

// Every notifier asks once, and finds out for itself; what it had in flight and in hand waits for whoever comes when the hook is back.
func TestAHookThatIsGoneCostsEachNotifierOneEvent(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	var back, open atomic.Bool
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		for !open.Load() { // so that as many as may are under way when the first is answered
			time.Sleep(time.Millisecond)
		}
		if back.Load() {
			return http.StatusOK
		}
		return http.StatusGone
	})
	one := run(t, b, s)
	var ids, peers []string
	for _, peer := range []string{"alice", "bob", "carol", "dave"} {
		peers = append(peers, peer, peer, peer)
		ids = append(ids, b.publish(peer, peer, peer)...)
	}
	eventually(t, "a request for each peer is under way", func() bool { return len(s.requests()) == 4 })
	two := run(t, b, s)
	open.Store(true)
	for _, n := range []*notifier{one, two} {
		select {
		case <-n.done:
		case <-time.After(patience):
			t.Fatal("a notifier goes on with a hook that is gone")
		}
		if !errors.Is(n.err, ErrHookGone) {
			t.Errorf("run: %v", n.err)
		}
	}
	var buried []string
	for _, l := range b.letters() {
		buried = append(buried, l.Header.Get(deadletter.HeaderEventID))
	}
	if len(buried) != 2 {
		t.Errorf("%d dead letters, want one of each notifier", len(buried))
	}

	back.Store(true)
	run(t, b, s)
	s.take(t, "", len(ids)-len(buried))
	for i := 0; i < len(ids); i += 3 {
		want := slices.DeleteFunc(ids[i:i+3:i+3], func(id string) bool { return slices.Contains(buried, id) })
		same(t, "order of "+peers[i], want, s.accepted(peers[i]))
	}
}
