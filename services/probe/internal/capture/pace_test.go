package capture

import (
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	t.Parallel()
	const reading = 10 * time.Microsecond // what one takes
	for _, tt := range []struct {
		name     string
		every    time.Duration // between packets
		packets  int
		maxDelay time.Duration // of a packet
		maxReads int
		maxQueue int
	}{
		{"a lone packet", time.Hour, 10, 0, 10, 1},
		{"a busy server, 300 packets a second", time.Second / 300, 3_000, 0, 3_000, 1},
		{"a hundred peers at once", 0, 100, 0, 100, 100},
		{"a hundred peers in quick succession", 20 * time.Microsecond, 100, 0, 100, 1},
		{"a flood of 5,000 a second for ten seconds", 200 * time.Microsecond, 50_000, wakeInterval, 3_500, 16},
		{"a flood of 20,000 a second for ten seconds", 50 * time.Microsecond, 200_000, wakeInterval, 3_500, 61},
		{"a flood of 50,000 a second for ten seconds", 20 * time.Microsecond, 500_000, wakeInterval, 3_500, 151},
	} {
		var p pacer
		var delay time.Duration
		var reads, queue int
		now := time.Unix(1_000_000_000, 0)
		arrival := now
		for left := tt.packets; left > 0; {
			if arrival.After(now) {
				now = arrival // woken by it
			}
			delay = max(delay, now.Sub(arrival))
			n := 0
			for ; left > 0 && !arrival.After(now); left, n = left-1, n+1 {
				arrival = arrival.Add(tt.every)
			}
			reads++
			queue = max(queue, n)
			now = now.Add(reading)
			now = now.Add(p.pause(now))
		}
		if delay > tt.maxDelay+reading || reads > tt.maxReads || queue > tt.maxQueue {
			t.Errorf("%s: a packet waited %v, %d readings, %d packets in one; want at most %v, %d, %d",
				tt.name, delay, reads, queue, tt.maxDelay, tt.maxReads, tt.maxQueue)
		}
	}
}

// TestPacerForgetsAFlood checks that the first packet after a flood, and the next ones, are not delayed.
func TestPacerForgetsAFlood(t *testing.T) {
	t.Parallel()
	var p pacer
	now := time.Unix(1_000_000_000, 0)
	for range 10_000 {
		now = now.Add(p.pause(now))
	}
	if p.pause(now) == 0 {
		t.Fatal("a flood is not paced")
	}
	now = now.Add(wakeBurst * wakeInterval)
	for i := range wakeBurst / 2 {
		if d := p.pause(now); d != 0 {
			t.Errorf("packet %d after the flood is delayed by %v", i, d)
		}
	}
}
