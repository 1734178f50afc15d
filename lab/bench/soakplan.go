package main

import (
	"math/rand/v2"
	"time"
)

const (
	// minSoak has room for one short absence of most peers.
	minSoak = 3 * time.Minute

	// learning is how long every peer stays at first: the probe learns a cadence from no fewer than 16 keepalives, which take 400 s.
	learning = 7 * time.Minute
	// spread is how far apart the first departures lie.
	spread = 150 * time.Second

	// A short absence ends inside the session, a long one after its keys are past use (180 s).
	minShort, maxShort = 40 * time.Second, 100 * time.Second
	minLong, maxLong   = 200 * time.Second, 300 * time.Second
	minStay, maxStay   = 150 * time.Second, 300 * time.Second

	// settle is what stays after the last return: a keepalive interval until the peer's next packet, and time for what follows from it.
	settle = 40 * time.Second
)

// manner is how a peer goes away.
type manner int

const (
	unplugged manner = iota // its link is down
	frozen                  // its process is stopped
)

// trip is an absence to come.
type trip struct {
	after time.Duration // since the soak began
	lasts time.Duration
	how   manner
}

// firstTrips is the time between which peers first go away. A short soak cannot wait until their cadence is learned.
func firstTrips(soak time.Duration) (from, to time.Duration) {
	from = min(learning, soak/4)
	return from, from + min(spread, soak/6)
}

// plan makes the trips of one peer that fit into a soak. Half of them are long, while there is the time.
func plan(random *rand.Rand, soak time.Duration) (trips []trip) {
	between := func(from, to time.Duration) time.Duration { return from + time.Duration(random.Int64N(int64(to-from))) }
	for after := between(firstTrips(soak)); ; {
		t := trip{after: after, lasts: between(minShort, maxShort), how: manner(random.IntN(2))}
		if long := between(minLong, maxLong); random.IntN(2) == 0 && after+long+settle <= soak {
			t.lasts = long
		}
		after += t.lasts + between(minStay, maxStay)
		if t.after+t.lasts+settle > soak {
			return trips
		}
		trips = append(trips, t)
	}
}
