package retry

import "time"

const (
	// breakAfter is the number of failures in a row after which a hook counts as broken.
	breakAfter = 5
	// trialMax bounds the wait for a trial: a hook that works again is found out that soon, whatever the retries' own bound is, unless it asked for more.
	trialMax = 10 * time.Minute
)

// Breaker tells whether a hook counts as broken, and when it is tried. The zero Breaker is closed.
//
//	         5 failures in a row
//	closed ──────────────────────► open ──┐ a trial fails: the next
//	   ▲                            │  ▲  │ one is after a longer wait
//	   └────────────────────────────┘  └──┘
//	             a success
//
// Trials wait as retries do, but no longer than 10 min, or than the hook asked for. Attempts that were under way when it opened count as little as they
// can: a success closes it, a failure puts off the next trial where the hook asked for that, and changes nothing else.
type Breaker struct {
	failures int       // in a row
	trials   int       // that failed since it opened
	at       time.Time // of the next trial; zero while closed
}

// Open reports whether the hook counts as broken.
func (b *Breaker) Open() bool { return !b.at.IsZero() }

// TrialAt returns when the next trial may begin; zero while closed.
func (b *Breaker) TrialAt() time.Time { return b.at }

// Failed takes in a failure that a repetition may mend, and reports whether the breaker opened by it. trial says that it was the trial's. random and
// hint are as for Policy.Next.
func (b *Breaker) Failed(p Policy, trial bool, now time.Time, random float64, hint time.Duration) (opened bool) {
	b.failures++
	switch {
	case b.Open() && trial:
		b.trials++
	case b.Open():
		if at := now.Add(min(hint, p.Max)); hint > 0 && at.After(b.at) {
			b.at = at
		}
		return false
	case b.failures < breakAfter:
		return false
	default:
		opened = true
	}
	p.Max = min(p.Max, max(trialMax, p.Initial, hint))
	b.at = now.Add(p.wait(b.trials+1, random, hint))
	return opened
}

// Answered takes in an answer that is final without being a success: it ends a row of failures, and proves too little to close the breaker.
func (b *Breaker) Answered() { b.failures = 0 }

// Succeeded closes the breaker, and reports whether it was open.
func (b *Breaker) Succeeded() (closed bool) {
	closed = b.Open()
	*b = Breaker{}
	return closed
}
