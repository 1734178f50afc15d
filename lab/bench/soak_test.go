package main

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/pkg/events"
)

func TestPlan(t *testing.T) {
	t.Parallel()
	for _, soak := range []time.Duration{minSoak, 6 * time.Minute, 30 * time.Minute, 3 * time.Hour} {
		from, to := firstTrips(soak)
		if full := soak >= 28*time.Minute; full != (from == learning) {
			t.Errorf("%v: the first departures come after %v", soak, from)
		}
		var trips, long, freezes int
		for seed := range uint64(100) {
			there := time.Duration(0)
			for i, trip := range plan(rand.New(rand.NewPCG(1, seed)), soak) {
				if i == 0 && (trip.after < from || trip.after >= to) {
					t.Errorf("%v: the first departure after %v, want %v to %v", soak, trip.after, from, to)
				}
				if stay := trip.after - there; i > 0 && (stay < minStay || stay >= maxStay) {
					t.Errorf("%v: stays %v", soak, stay)
				}
				if trip.after+trip.lasts+settle > soak {
					t.Errorf("%v: back after %v", soak, trip.after+trip.lasts)
				}
				switch {
				case trip.lasts >= minLong && trip.lasts < maxLong:
					long++
				case trip.lasts < minShort || trip.lasts >= maxShort:
					t.Errorf("%v: away for %v", soak, trip.lasts)
				}
				if trip.how == frozen {
					freezes++
				}
				trips++
				there = trip.after + trip.lasts
			}
		}
		if trips < 50 || freezes < trips/3 || freezes > 2*trips/3 || soak > 10*time.Minute && (long < trips/3 || long > 2*trips/3) {
			t.Errorf("%v: 100 peers have %d trips, %d of them long, %d frozen", soak, trips, long, freezes)
		}
	}
}

func TestTally(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	// Away from one second to another, and heard of from a third on; 0 for never.
	away := func(left, back, heard int) absence {
		a := absence{how: frozen, session: true, left: at(left), back: at(back)}
		if heard > 0 {
			a.heard = at(heard)
		}
		return a
	}
	gone := func(s int, r events.Reason) call { return call{at: at(s), reason: r} }
	came := func(s int) call { return call{at: at(s), connected: true} }
	resumed := func(s int) call { return call{at: at(s), connected: true, resumed: true} }
	secs := func(s ...int) (d []time.Duration) {
		for _, n := range s {
			d = append(d, time.Duration(n)*time.Second)
		}
		return d
	}
	one := [2]int{frozen: 1}
	for _, tt := range []struct {
		name     string
		absences []absence
		calls    []call
		want     tally
	}{
		{"always there", nil, []call{came(1)}, tally{}},
		{"called falsely", nil, []call{came(1), gone(50, events.Silent), resumed(60)}, tally{falsely: 1}},
		{
			"short, called silent, back in its session", []absence{away(100, 190, 195)}, []call{came(1), gone(170, events.Silent), resumed(196)},
			tally{absences: one, called: map[events.Reason]int{events.Silent: 1}, detection: secs(70), resumed: 1, returned: secs(6)},
		},
		{
			"long, expired, a new session", []absence{away(100, 300, 301)}, []call{came(1), gone(250, events.Expired), came(301)},
			tally{absences: one, called: map[events.Reason]int{events.Expired: 1}, detection: secs(150), long: secs(150), anew: 1, returned: secs(1)},
		},
		{"short, not called", []absence{away(100, 289, 290)}, []call{came(1)}, tally{absences: one, short: 1}},
		{"long enough to be called, missed", []absence{away(100, 290, 291)}, []call{came(1)}, tally{absences: one, missed: 1}},
		{
			"called 2 s after the return, although heard at once", []absence{away(100, 170, 170)}, []call{gone(172, events.Silent), resumed(175)},
			tally{absences: one, called: map[events.Reason]int{events.Silent: 1}, late: 1, detection: secs(72), resumed: 1, returned: secs(5)},
		},
		{"called 3 s after the return, although heard at once", []absence{away(100, 170, 170)}, []call{gone(173, events.Silent)}, tally{absences: one, short: 1, falsely: 1}},
		{
			"called after the return, before it was heard", []absence{away(100, 160, 185)}, []call{gone(180, events.Silent), resumed(186)},
			tally{absences: one, called: map[events.Reason]int{events.Silent: 1}, late: 1, detection: secs(80), resumed: 1, returned: secs(26)},
		},
		{
			"never heard again", []absence{away(100, 160, 0)}, []call{gone(280, events.Expired)},
			tally{absences: one, called: map[events.Reason]int{events.Expired: 1}, late: 1, detection: secs(180), unconnected: 1},
		},
		{
			"connected before its call is told of another time", []absence{away(100, 160, 185)}, []call{came(162), gone(180, events.Silent)},
			tally{absences: one, called: map[events.Reason]int{events.Silent: 1}, late: 1, detection: secs(80), unconnected: 1},
		},
		{
			"the session was just confirmed when it left", []absence{away(100, 300, 301)}, []call{came(102), gone(282, events.Expired), came(302)},
			tally{absences: one, called: map[events.Reason]int{events.Expired: 1}, detection: secs(182), long: secs(182), anew: 1, returned: secs(2)},
		},
		{
			"said to be connected while away, and called twice", []absence{away(100, 300, 301)},
			[]call{gone(140, events.Unreachable), resumed(150), gone(250, events.Expired), came(301)},
			tally{absences: one, called: map[events.Reason]int{events.Unreachable: 1}, detection: secs(40), long: secs(40), ghosts: 1, anew: 1, returned: secs(1)},
		},
		{
			"left without a session", []absence{{left: at(100), back: at(300), heard: at(301)}}, []call{came(301)},
			tally{uncounted: 1},
		},
		{
			"called falsely and not back when it left", []absence{away(100, 300, 301)}, []call{came(1), gone(95, events.Silent), came(301)},
			tally{uncounted: 1, falsely: 1},
		},
		{
			"twice away, each has its own events", []absence{away(100, 300, 301), away(500, 560, 561)},
			[]call{came(1), gone(180, events.Silent), came(302), gone(550, events.Unreachable), resumed(563)},
			tally{
				absences: [2]int{frozen: 2}, called: map[events.Reason]int{events.Silent: 1, events.Unreachable: 1},
				detection: secs(80, 50), long: secs(80), resumed: 1, anew: 1, returned: secs(2, 3),
			},
		},
		{
			"called only in its next absence", []absence{away(100, 300, 0), away(500, 560, 561)}, []call{gone(540, events.Silent), resumed(562)},
			tally{absences: [2]int{frozen: 2}, called: map[events.Reason]int{events.Silent: 1}, missed: 1, detection: secs(40), resumed: 1, returned: secs(2)},
		},
	} {
		if tt.want.called == nil {
			tt.want.called = map[events.Reason]int{}
		}
		var got tally
		got.add(tt.absences, tt.calls)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(tally{})); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestTalliesOfPeersAddUp(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	absences := []absence{{session: true, left: begin, back: begin.Add(time.Minute)}, {session: true, left: begin.Add(time.Hour), back: begin.Add(2 * time.Hour)}}
	var got tally
	got.add(absences, nil)
	got.add(absences, nil)
	want := tally{absences: [2]int{unplugged: 4}, called: map[events.Reason]int{}, short: 2, missed: 2}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(tally{})); diff != "" {
		t.Error(diff)
	}
}

func TestHeard(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := wgtypes.Peer{LastHandshakeTime: at, ReceiveBytes: 1000}
	for name, tt := range map[string]struct {
		after wgtypes.Peer
		want  bool
	}{
		"nothing came":          {before, false},
		"a keepalive":           {wgtypes.Peer{LastHandshakeTime: at, ReceiveBytes: 1032}, true},
		"initiations only":      {wgtypes.Peer{LastHandshakeTime: at, ReceiveBytes: 1000 + 3*148}, false},
		"initiation, keepalive": {wgtypes.Peer{LastHandshakeTime: at, ReceiveBytes: 1000 + 148 + 32}, true},
		"a new session":         {wgtypes.Peer{LastHandshakeTime: at.Add(time.Second), ReceiveBytes: 1000 + 148}, true},
	} {
		if got := heard(before, tt.after); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

func TestSoakAim(t *testing.T) {
	t.Parallel()
	took := []time.Duration{80 * time.Second, 60 * time.Second, 70 * time.Second}
	for _, tt := range []struct {
		name string
		aim  soakAim
		took []time.Duration
		want string
	}{
		{"met", soakAim{p50: 75 * time.Second, p99: 95 * time.Second}, took, "p50 ≤ 75, p99 ≤ 95: met"},
		{"the median is missed", soakAim{p50: 65 * time.Second, p99: 95 * time.Second}, took, "p50 ≤ 65, p99 ≤ 95: missed"},
		{"the tail is missed", soakAim{p50: 75 * time.Second, p99: 79 * time.Second}, took, "p50 ≤ 75, p99 ≤ 79: missed"},
		{"no median is aimed at", soakAim{p99: 185 * time.Second}, took, "p99 ≤ 185: met"},
		{"nothing was measured", soakAim{p99: 185 * time.Second}, nil, "p99 ≤ 185: nothing to judge by"},
	} {
		if got := tt.aim.detection(tt.took); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
