package main

import (
	"time"

	"github.com/wgherald/wgherald/pkg/events"
)

const (
	// mustCall is how long an absence lasts that has to be called: the session's keys are past use after 180 s, and a look is at most 10 s away.
	mustCall = 190 * time.Second
	// grace is how much an event may lag behind what it is about: called so soon after the return, an absence was called while it lasted.
	grace = 2 * time.Second
)

// absence is what is true: a peer was away from left to back.
type absence struct {
	how     manner
	session bool // it had one when it left
	left    time.Time
	back    time.Time
	// heard is when the hub first had a packet from it again, by a look each second; zero if it never had. A peer without anything to say is back before it
	// is heard of, and nobody can tell.
	heard time.Time
}

// call is what the probe said of a peer.
type call struct {
	at        time.Time // detectedAt
	connected bool      // or disconnected
	reason    events.Reason
	resumed   bool
}

// tally is what came of the absences of some peers. Durations are unsorted.
type tally struct {
	absences  [2]int // by manner
	uncounted int    // the peer had no session, or was called disconnected when it left: nothing was left to call
	called    map[events.Reason]int
	late      int             // of them, called after the return and before the peer was heard
	detection []time.Duration // of those called, from left
	long      []time.Duration // of those that lasted for mustCall or more: here no return came first
	missed    int             // lasted for mustCall or more, and not called
	short     int             // lasted for less, and not called
	falsely   int             // disconnected while the peer was there
	ghosts    int             // connected while the peer was away

	resumed, anew int             // came back connected after a call, in the same session or not
	unconnected   int             // came back after a call, and no connected followed
	returned      []time.Duration // from back to connected, after a call
}

// add counts one peer's absences, which lie apart, against what was said of it, both in order of time.
func (t *tally) add(absences []absence, calls []call) {
	if t.called == nil {
		t.called = map[events.Reason]int{}
	}
	explained := make([]bool, len(calls))
	for i, a := range absences {
		var next time.Time // the peer's next departure, zero for none
		if i+1 < len(absences) {
			next = absences[i+1].left
		}
		unheard := func(at time.Time) bool {
			return a.heard.IsZero() || !at.After(a.heard) || !at.After(a.back.Add(grace))
		}
		disconnected, connected, known := -1, -1, false
		for j, c := range calls {
			switch {
			case c.at.Before(a.left):
				known = !c.connected
			case !next.IsZero() && !c.at.Before(next):
			case c.connected && c.at.After(a.left.Add(grace)) && c.at.Before(a.back):
				t.ghosts++
			case c.connected && c.at.After(a.back) && connected < 0 && disconnected >= 0:
				connected = j
			case !c.connected && unheard(c.at):
				explained[j] = true
				if disconnected < 0 {
					disconnected = j
				}
			}
		}
		if !a.session || known {
			t.uncounted++
			continue
		}
		t.absences[a.how]++
		if disconnected < 0 {
			if a.back.Sub(a.left) >= mustCall {
				t.missed++
			} else {
				t.short++
			}
			continue
		}
		c := calls[disconnected]
		t.called[c.reason]++
		t.detection = append(t.detection, c.at.Sub(a.left))
		if a.back.Sub(a.left) >= mustCall {
			t.long = append(t.long, c.at.Sub(a.left))
		}
		if c.at.After(a.back) {
			t.late++
		}
		if connected < 0 {
			t.unconnected++
			continue
		}
		if calls[connected].resumed {
			t.resumed++
		} else {
			t.anew++
		}
		t.returned = append(t.returned, calls[connected].at.Sub(a.back))
	}
	for j, c := range calls {
		if !c.connected && !explained[j] {
			t.falsely++
		}
	}
}
