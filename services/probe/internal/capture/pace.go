package capture

import "time"

const (
	// wakeInterval is the mean time between two readings under a flood. At 50,000 packets a second, 150 wait meanwhile, a small part of what
	// readBuffer holds.
	wakeInterval = 3 * time.Millisecond
	// wakeBurst is how many readings may follow each other without a pause. Peers that all come back at once after an outage fit in.
	wakeBurst = 128
)

// pacer limits how often packets are waited for, for to be woken costs far more than to read a packet. While packets come slower than one per
// wakeInterval, it adds nothing; when wakeBurst more have come, each reading leaves the next packets to gather for a while, as a network card under
// load delays its interrupts.
type pacer struct {
	due time.Time // when the readings so far would have ended, had they been wakeInterval apart
}

// pause returns for how long to leave packets waiting, after a reading that ended now.
func (p *pacer) pause(now time.Time) time.Duration {
	if idle := now.Add(-wakeBurst * wakeInterval); p.due.Before(idle) {
		p.due = idle
	}
	p.due = p.due.Add(wakeInterval)
	return max(0, p.due.Sub(now))
}
