package capture

import (
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	t.Parallel()
	const reading = 10 * time.Microsecond // what one takes
	for _, tt := range []struct {
		name    string
		every   time.Duration // between packets
		packets int
		// What is allowed: a packet's delay, the number of readings, and the packets in one of them.
		delay           time.Duration
		readings, queue int
	}{
		{"a packet an hour", time.Hour, 10, 0, 10, 1},
		{"a busy server, 400 packets a second", time.Second / 400, 4_000, 0, 4_000, 1},
		{"two hundred peers at once", 0, 200, 0, 200, 200},
		{"two hundred peers in quick succession", 20 * time.Microsecond, 200, 0, 200, 1},
		{"somewhat too many, 600 a second for ten seconds", time.Second / 600, 6_000, maxPause, 6_000, 4},
		{"a flood of 5,000 a second for ten seconds", 200 * time.Microsecond, 50_000, maxPause, 2_300, 26},
		{"a flood of 20,000 a second for ten seconds", 50 * time.Microsecond, 200_000, maxPause, 2_300, 101},
		{"a flood of 50,000 a second for ten seconds", 20 * time.Microsecond, 500_000, maxPause, 2_300, 251},
	} {
		var p pacer
		var delay time.Duration
		var readings, queue int
		now := time.Unix(1_000_000_000, 0)
		arrival := now
		for left := tt.packets; left > 0; readings++ {
			if arrival.After(now) {
				now = arrival // woken by it
			}
			delay = max(delay, now.Sub(arrival))
			n := 0
			for ; left > 0 && !arrival.After(now); left, n = left-1, n+1 {
				arrival = arrival.Add(tt.every)
			}
			queue = max(queue, n)
			now = now.Add(reading)
			now = now.Add(p.pause(now, n))
		}
		if delay > tt.delay+reading || readings > tt.readings || queue > tt.queue {
			t.Errorf("%s: a packet waited %v, %d readings, %d packets in one; want at most %v, %d, %d",
				tt.name, delay, readings, queue, tt.delay, tt.readings, tt.queue)
		}
	}
}

// TestPacerForgetsAFlood checks that the packets after a flood are not delayed, a few of them soon, many a little later.
func TestPacerForgetsAFlood(t *testing.T) {
	t.Parallel()
	var p pacer
	now := time.Unix(1_000_000_000, 0)
	for range 10_000 {
		now = now.Add(p.pause(now, 1000))
	}
	if p.pause(now, 1000) == 0 {
		t.Fatal("a flood is not paced")
	}
	now = now.Add(2 * maxPause)
	if d := p.pause(now, 1); d != 0 {
		t.Errorf("the first packet after the flood is followed by a pause of %v", d)
	}
	now = now.Add(paceBurst * pacedAbove)
	for i := range paceBurst {
		if d := p.pause(now, 1); d != 0 {
			t.Errorf("packet %d, long after the flood, is followed by a pause of %v", i, d)
		}
	}
}
