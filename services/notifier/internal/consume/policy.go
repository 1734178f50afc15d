package consume

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of a Policy.
const (
	minRate    = 1.0 / 3600
	MaxRate    = 10_000
	MaxHold    = 10 * time.Minute
	MaxBacklog = 7 * 24 * time.Hour // which is how long the stream keeps events
)

// Order says what a failed delivery holds up.
type Order string

// The orders. The empty one is PerPeer.
const (
	PerPeer   Order = "peer" // everything later of its partition key
	Unordered Order = "none" // nothing
)

// Policy is how a hook is served. The zero Policy is the default: in order, as fast as the hook takes it, nothing withheld, beginning with new events.
type Policy struct {
	Order Order
	// Rate bounds the attempts per second, in bursts of at most a tenth of a second's worth, one at least; 0 is no bound.
	Rate float64
	// Hold is for how long a disconnection is held back. When the same peer connects within it, neither is delivered; everything later of the peer waits
	// behind it. Peers that were removed, and those whose interface went down, are told at once. 0 is off. It needs order.
	Hold time.Duration
	// From is what a hook begins with that has no consumer yet; one that has goes on where it was.
	From From
}

// From is a place in the stream. The zero From is its end.
type From struct {
	All bool          // the first event that is still there
	Ago time.Duration // what was stored within this time
}

// Validate names every field that makes no policy.
func (p Policy) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch p.Order {
	case "", PerPeer, Unordered:
	default:
		wrong("order is %.40q, want %s or %s", p.Order, PerPeer, Unordered)
	}
	if !(p.Rate >= 0 && p.Rate <= MaxRate) || p.Rate > 0 && p.Rate < minRate { // written so that NaN fails
		wrong("rate is %g, want one an hour to %d a second, or 0 for no limit", p.Rate, MaxRate)
	}
	if p.Hold < 0 || p.Hold > MaxHold {
		wrong("hold is %s, want 0 to %s", p.Hold, MaxHold)
	}
	if p.Hold > 0 && p.Order == Unordered {
		wrong("hold needs order: %s", PerPeer)
	}
	if p.From.Ago < 0 || p.From.Ago > MaxBacklog {
		wrong("from is %s, want 0 to %s", p.From.Ago, MaxBacklog)
	}
	if p.From.All && p.From.Ago != 0 {
		wrong("from is everything and %s", p.From.Ago)
	}
	return errors.Join(errs...)
}

// burst is how many attempts may begin at once after a pause.
func (p Policy) burst() int { return max(1, int(p.Rate/10)) }
