package tracker

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// naiveNext is what Next returns, by a walk over all that is waited for.
func naiveNext(s *Schedule) time.Duration {
	next := min(s.deadline, s.soon, s.again)
	for _, w := range s.waiting {
		next = min(next, w.next)
	}
	return min(max(next, s.notBefore), s.sample)
}

// TestNextIsThatOfAWalk: whatever is heard and seen, the head of the queue is the next question of all.
func TestNextIsThatOfAWalk(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		addr := func() netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(40))}), 1)
		}
		now := time.Hour
		s := NewSchedule(now, true)
		for range 2000 {
			now += time.Duration(r.Int64N(int64(20 * time.Millisecond)))
			asked := now - time.Duration(r.Int64N(int64(20*time.Millisecond)))
			switch r.IntN(8) {
			case 0, 1, 2:
				s.Initiation(now, addr())
			case 3, 4:
				s.FirstData(now, addr())
			case 5:
				s.Response(now, addr())
			case 6:
				s.Looked(asked, now, now-asked, Seen{Handshakes: []netip.AddrPort{addr(), addr()}})
			case 7:
				s.Failed(asked, now)
			}
			if got, want := s.Next(), naiveNext(s); got != want || len(s.queue) != len(s.waiting) {
				t.Fatalf("seed %d: next %v of %d, want %v of %d", seed, got, len(s.queue), want, len(s.waiting))
			}
		}
	}
}

// TestMessageCostsNoWalk counts: a message moves no more ladders than the heap is high, even where each is for the next that is due, and Next reads
// one.
func TestMessageCostsNoWalk(t *testing.T) {
	t.Parallel()
	const height = 13 // of a heap of 4096
	s := NewSchedule(0, true)
	addr := func(n int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)}), 1)
	}
	for n := range maxWaiting {
		s.Initiation(time.Duration(n), addr(n))
	}
	before := make([]*wait, maxWaiting)
	for n := range maxWaiting {
		copy(before, s.queue)
		s.Response(time.Duration(maxWaiting-n), addr(n))
		moved := 0
		for i, w := range s.queue {
			if before[i] != w {
				moved++
			}
		}
		if moved > height {
			t.Fatalf("message %d moved %d ladders, want %d at most", n, moved, height)
		}
	}
	s.sample = never
	want := s.Next()
	clear(s.queue[1:])
	clear(s.waiting)
	if got := s.Next(); got != want {
		t.Errorf("next %v with the head alone, want %v", got, want)
	}
}
