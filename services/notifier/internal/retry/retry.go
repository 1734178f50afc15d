// Package retry tells when a failed delivery is tried again, and when it is given up.
//
// It is pure: time and randomness come in as values, so a schedule is a function and a test is a table. It does not wait, count or remember; the
// attempts live with the consumer. The exponential comes from cenkalti/backoff, the jitter from here, because a library's jitter cannot be
// replayed.
package retry

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Policy is a hook's retry schedule.
type Policy struct {
	Initial time.Duration // wait after the first attempt
	Factor  float64       // each further wait is this many times the last, 1 or more
	Max     time.Duration // no wait, and no hint, counts for more
	Jitter  float64       // a wait varies by this share of itself, 0 to 1
	GiveUp  time.Duration // since the event was stored; no attempt is planned beyond it
}

// Default waits 5 s, 15 s, 45 s and so on up to 6 h, each ±20 %, and gives up 72 h after the event was stored.
func Default() Policy {
	return Policy{Initial: 5 * time.Second, Factor: 3, Max: 6 * time.Hour, Jitter: 0.2, GiveUp: 72 * time.Hour}
}

// Validate names every field that makes no schedule.
func (p Policy) Validate() error {
	var errs []error
	if p.Initial <= 0 {
		errs = append(errs, fmt.Errorf("initial is %s, want more than 0", p.Initial))
	}
	if !(p.Factor >= 1 && p.Factor <= 100) { // written so that NaN fails
		errs = append(errs, fmt.Errorf("factor is %g, want 1 to 100", p.Factor))
	}
	if p.Max < p.Initial {
		errs = append(errs, fmt.Errorf("max is %s, want at least initial (%s)", p.Max, p.Initial))
	}
	if !(p.Jitter >= 0 && p.Jitter <= 1) {
		errs = append(errs, fmt.Errorf("jitter is %g, want 0 to 1", p.Jitter))
	}
	if p.GiveUp <= 0 {
		errs = append(errs, fmt.Errorf("give up is %s, want more than 0", p.GiveUp))
	}
	return errors.Join(errs...)
}

// Next returns when to try again after attempt (1 is the first) failed at now, or true when there is no further attempt: the next would come
// later than GiveUp after stored. As it is asked only after an attempt, every event gets at least one, however old it is.
//
// random is uniform in [0,1) and spreads the wait. hint is what the receiver asked for, or 0: the larger of hint and schedule counts, up to Max,
// and jitter then only adds, so that nobody is asked earlier than they said.
func (p Policy) Next(attempt int, stored, now time.Time, random float64, hint time.Duration) (time.Time, bool) {
	at := now.Add(p.wait(attempt, random, hint))
	return at, at.After(stored.Add(p.GiveUp))
}

// wait returns the wait after an attempt, with jitter.
func (p Policy) wait(attempt int, random float64, hint time.Duration) time.Duration {
	wait := p.interval(attempt)
	spread := 2*random - 1
	if hint > 0 {
		wait = min(max(wait, hint), p.Max)
		spread = random
	}
	return wait + time.Duration(p.Jitter*spread*float64(wait))
}

// interval returns the wait after an attempt without jitter.
func (p Policy) interval(attempt int) time.Duration {
	b := backoff.ExponentialBackOff{
		InitialInterval:     p.Initial,
		RandomizationFactor: 0,
		Multiplier:          p.Factor,
		MaxInterval:         p.Max,
		MaxElapsedTime:      0, // the library would count from its own clock
		Clock:               noClock{},
	}
	b.Reset()
	wait := b.NextBackOff()
	// Attempts are counted in memory and by hundreds at most; once at Max the interval stays.
	for range attempt - 1 {
		if wait >= p.Max {
			break
		}
		wait = b.NextBackOff()
	}
	return min(wait, p.Max)
}

// noClock keeps the library from reading the time, which only MaxElapsedTime would need.
type noClock struct{}

func (noClock) Now() time.Time { return time.Time{} }

// The forms of an HTTP-date (RFC 9110, section 5.6.7). They are parsed here because net/http does I/O.
var dateForms = []string{"Mon, 02 Jan 2006 15:04:05 GMT", "Monday, 02-Jan-06 15:04:05 GMT", time.ANSIC}

// ParseAfter reads a Retry-After field (RFC 9110, section 10.2.3), whole seconds or an HTTP-date, as the wait from now. It returns 0 for a field
// that is missing, malformed or in the past: then the schedule alone counts. What no Duration holds is the longest one.
func ParseAfter(field string, now time.Time) time.Duration {
	field = strings.TrimSpace(field)
	switch seconds, err := strconv.ParseUint(field, 10, 32); {
	case err == nil:
		return time.Duration(seconds) * time.Second
	case errors.Is(err, strconv.ErrRange):
		return math.MaxInt64
	}
	for _, form := range dateForms {
		if at, err := time.Parse(form, field); err == nil {
			return max(0, at.Sub(now))
		}
	}
	return 0
}
