package capture

import "time"

const (
	// pacedAbove is the interval between packets down to which each is handled as it comes, however long that lasts: 500 a second, far more than ten
	// thousand peers send that renew their keys every two minutes.
	pacedAbove = 2 * time.Millisecond
	// paceBurst is how many packets may come faster than that before there is a pause.
	paceBurst = 256
	// maxPause is the longest pause. At 50,000 packets a second, 250 gather meanwhile, a small part of what readBuffer holds.
	maxPause = 5 * time.Millisecond
)

// pacer limits how often packets are waited for, since to be woken costs far more than to read a packet. It adds nothing while packets come slowly or a
// few come at once. Under a flood it leaves them waiting after each reading, so that the next one finds many, as a network card under load delays its
// interrupts.
type pacer struct {
	due time.Time // when the packets so far would have come, had they been pacedAbove apart
}

// pause returns for how long to leave packets waiting after a reading that ended now and has emptied the queue, with so many packets read since the last.
func (p *pacer) pause(now time.Time, packets int) time.Duration {
	if idle := now.Add(-paceBurst * pacedAbove); p.due.Before(idle) {
		p.due = idle
	}
	p.due = p.due.Add(time.Duration(packets) * pacedAbove)
	if longest := now.Add(maxPause); p.due.After(longest) {
		p.due = longest
	}
	return max(0, p.due.Sub(now))
}
