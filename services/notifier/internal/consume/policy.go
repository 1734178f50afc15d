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
	MaxBacklog = 30 * 24 * time.Hour
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
	// Rate bounds the attempts per second; 0 is no bound. Burst is how many may go at once after a pause; 0 is a tenth of a second's, at least one.
	Rate  float64
	Burst int
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
	if p.Burst < 0 || p.Burst > MaxRate {
		wrong("burst is %d, want 1 to %d", p.Burst, MaxRate)
	}
	if p.Burst > 0 && p.Rate == 0 {
		wrong("burst is given without rate")
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

func (p Policy) burst() int {
	if p.Burst > 0 {
		return p.Burst
	}
	return max(1, int(p.Rate/10))
}
