package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// connect is when the stages of one connection happened, by this machine's one clock.
type connect struct {
	initiation time.Time // just before the initiation was handed to the socket
	handshake  time.Time // last_handshake, as the device reports it
	event      time.Time // a reader of the broker had the event
	webhook    time.Time // the webhook receiver had read the request
}

// latencies is a table of how long connections took to be told.
func latencies(connects []connect) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  %-33s %20s   %20s\n", fmt.Sprintf("latency of %d connections", len(connects)), "to the event", "to the webhook")
	fmt.Fprintf(&b, "  %-33s %10s %9s   %10s %9s\n", "", "p50", "max", "p50", "max")
	for _, from := range []struct {
		text string
		at   func(connect) time.Time
	}{
		{"from the initiation on the wire", func(c connect) time.Time { return c.initiation }},
		{"from last_handshake", func(c connect) time.Time { return c.handshake }},
	} {
		var event, webhook []time.Duration
		for _, c := range connects {
			event = append(event, c.event.Sub(from.at(c)))
			webhook = append(webhook, c.webhook.Sub(from.at(c)))
		}
		fmt.Fprintf(&b, "  %-33s %10s %9s   %10s %9s\n", from.text, ms(median(event)), ms(slices.Max(event)), ms(median(webhook)), ms(slices.Max(webhook)))
	}
	return b.String()
}

// median is the smallest value that at least half of them do not exceed. There must be one.
func median(d []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(d))[(len(d)-1)/2]
}

// ms writes a latency.
func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
