package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
)

// soakAim is what is aimed at for the peers of one kind.
type soakAim struct {
	p50, p99 time.Duration // of the detection; no p50 is aimed at when it is 0
	noFalse  bool
}

// soakTable prints the peers with one kind of path, those that are idle beside those with return traffic.
func soakTable(w io.Writer, title string, idle, traffic tally, idleAim, trafficAim soakAim) {
	names := []string{
		"", "departures: unplugged, frozen", "  not counted: no session, or called before", "called silent", "called unreachable", "called expired",
		"called for another reason", "  of these after the return, before the peer was heard", "departure → detected: p50, p99, max",
		"  of those away ≥ 190 s: p50, p99, max", "missed: away ≥ 190 s, not called", "short, not called", "false: called while there",
		"called connected while away", "connected after a call: resumed, anew, never", "return → connected: p50, p99, max",
	}
	left, right := soakColumn("idle", idle, idleAim), soakColumn("return traffic", traffic, trafficAim)
	rows := make([]string, len(names))
	for i, name := range names {
		rows[i] = cells(name, left[i], right[i])
	}
	table(w, title+"; times in seconds", rows...)
}

// soakColumn has a value and an aim in each row.
func soakColumn(title string, t tally, aim soakAim) []string {
	otherwise := 0
	for reason, n := range t.called {
		if reason != events.Silent && reason != events.Unreachable && reason != events.Expired {
			otherwise += n
		}
	}
	falseAim := ""
	if aim.noFalse {
		falseAim = "none: " + met(t.falsely == 0)
	}
	missed := met(t.missed == 0)
	if t.missed+len(t.long) == 0 {
		missed = "nobody was away for so long"
	}
	return []string{
		cells(title, "aim"),
		cells(fmt.Sprintf("%d, %d", t.absences[unplugged], t.absences[frozen]), ""),
		cells(t.uncounted, ""),
		cells(t.called[events.Silent], ""), cells(t.called[events.Unreachable], ""), cells(t.called[events.Expired], ""), cells(otherwise, ""),
		cells(t.late, ""),
		cells(spans(t.detection), ""),
		cells(spans(t.long), aim.detection(t.long)),
		cells(fmt.Sprintf("%d of %d", t.missed, t.missed+len(t.long)), "none: "+missed),
		cells(t.short, ""),
		cells(t.falsely, falseAim),
		cells(t.ghosts, ""),
		cells(fmt.Sprintf("%d, %d, %d", t.resumed, t.anew, t.unconnected), ""),
		cells(spans(t.returned), ""),
	}
}

// detection says what is aimed at and whether that was reached.
func (a soakAim) detection(took []time.Duration) string {
	var aims []string
	if a.p50 > 0 {
		aims = append(aims, fmt.Sprintf("p50 ≤ %.0f", a.p50.Seconds()))
	}
	text := strings.Join(append(aims, fmt.Sprintf("p99 ≤ %.0f", a.p99.Seconds())), ", ")
	if len(took) == 0 {
		return text + ": nothing to judge by"
	}
	sorted := slices.Sorted(slices.Values(took))
	return text + ": " + met((a.p50 == 0 || quantile(sorted, 0.5) <= a.p50) && quantile(sorted, 0.99) <= a.p99)
}

// spans is how long something took.
func spans(took []time.Duration) string {
	if len(took) == 0 {
		return "–"
	}
	sorted := slices.Sorted(slices.Values(took))
	return fmt.Sprintf("%.1f, %.1f, %.1f", quantile(sorted, 0.5).Seconds(), quantile(sorted, 0.99).Seconds(), sorted[len(sorted)-1].Seconds())
}
