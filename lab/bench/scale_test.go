package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
)

func TestTally(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	const wg0, node = "/nodes/lab/interfaces/wg0", "/nodes/lab"
	ev := func(source string, n uint64, typ events.Type, subject string, after int) stored {
		return stored{
			event: &events.Event{Source: source, Type: typ, Subject: subject, Sequence: events.Sequence{Epoch: 1, N: n}},
			at:    at.Add(time.Duration(after) * time.Second),
		}
	}
	for _, tt := range []struct {
		name         string
		all          []stored
		peers        []string
		again, holes int
		last         int
	}{
		{
			"each peer once, out of order, others between", []stored{
				ev(wg0, 8, events.PeerConnected, "b", 1), ev(wg0, 7, events.PeerConnected, "a", 2), ev(node, 3, events.InterfaceUp, "wg0", 3), ev(wg0, 9, events.PeerRoamed, "a", 4),
			}, []string{"a", "b"}, 0, 0, 2,
		},
		{"an event that is missing", []stored{ev(wg0, 1, events.PeerConnected, "a", 1), ev(wg0, 4, events.PeerConnected, "b", 2)}, []string{"a", "b"}, 0, 2, 2},
		{"the same event twice", []stored{ev(wg0, 1, events.PeerConnected, "a", 1), ev(wg0, 1, events.PeerConnected, "a", 2)}, []string{"a"}, 1, 0, 2},
		{"a peer told of twice", []stored{ev(wg0, 1, events.PeerConnected, "a", 1), ev(wg0, 2, events.PeerConnected, "a", 2)}, []string{"a"}, 1, 0, 2},
	} {
		got := outcomeOf(tt.all)
		var peers []string
		for p := range got.connected {
			peers = append(peers, p)
		}
		slices.Sort(peers)
		if diff := cmp.Diff(tt.peers, peers); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		if got.again != tt.again || got.holes != tt.holes || !got.last.Equal(at.Add(time.Duration(tt.last)*time.Second)) {
			t.Errorf("%s: %d again, %d holes, last at %v", tt.name, got.again, got.holes, got.last)
		}
	}
}

func TestEvery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var at []time.Duration
		err := every(t.Context(), 10*time.Millisecond, 4, func(i int) error {
			at = append(at, time.Since(began))
			if i == 1 {
				time.Sleep(25 * time.Millisecond)
			}
			return nil
		})
		const msec = time.Millisecond
		if diff := cmp.Diff([]time.Duration{0, 10 * msec, 35 * msec, 35 * msec}, at); diff != "" || err != nil {
			t.Errorf("what is late is done at once: %v %s", err, diff)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		calls := 0
		call := func(int) error { calls++; return nil }
		if err := every(ctx, 300*time.Millisecond, -1, call); err != nil || calls != 4 {
			t.Errorf("until its context ends: %d calls, %v", calls, err)
		}
		if err := every(ctx, time.Second, 3, call); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cut short: %v", err)
		}
		failed := errors.New("failed")
		if err := every(t.Context(), time.Second, -1, func(int) error { return failed }); !errors.Is(err, failed) {
			t.Errorf("what fails ends it: %v", err)
		}
	})
}

func TestRareRow(t *testing.T) {
	t.Parallel()
	sent := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	after := func(took ...time.Duration) []*rareConnect {
		var list []*rareConnect
		for _, d := range took {
			r := &rareConnect{sent: sent}
			if d != 0 {
				r.stored = sent.Add(d)
			}
			list = append(list, r)
		}
		return list
	}
	const msec = time.Millisecond
	for _, tt := range []struct {
		name     string
		connects []*rareConnect
		want     string
	}{
		{"as aimed at", after(500*msec, 3*msec, 4*msec), "x\t4.0\t500.0\t500.0\t0\tmet"},
		{"one late", after(501*msec, 3*msec, 4*msec), "x\t4.0\t501.0\t501.0\t0\tmissed"},
		{"one missing", after(0, 3*msec, 4*msec), "x\t3.0\t4.0\t4.0\t1\tmissed"},
		{"all missing", after(0, 0), "x\t\t\t\t2\tnothing came"},
	} {
		got := rareRow("x", tt.connects, func(r *rareConnect) time.Time { return r.stored })
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}
