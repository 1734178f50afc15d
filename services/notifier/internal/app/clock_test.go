package app

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

// TestClocks: clocks that are apart are told once, and again when they agree.
func TestClocks(t *testing.T) {
	t.Parallel()
	here := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name   string
		broker []time.Duration // against the clock here, in looks one after another; an answer takes 2 s
		apart  []string        // by how much, as it is told
		again  int
	}{
		{"the same", []time.Duration{0, time.Second}, nil, 0},
		{"a little apart", []time.Duration{59 * time.Second, -59 * time.Second}, nil, 0},
		{"an answer that was slow is no other clock", []time.Duration{61 * time.Second}, nil, 0},
		{"the broker is ahead", []time.Duration{time.Hour, time.Hour, 2 * time.Hour}, []string{"59m58s"}, 0},
		{"the broker is behind", []time.Duration{-time.Hour, -time.Hour}, []string{"-1h0m0s"}, 0},
		{"set right, and wrong again", []time.Duration{-time.Hour, 0, 0, 2 * time.Minute}, []string{"-1h0m0s", "1m58s"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := &logs{}
			c := clocks{log: l.logger()}
			for _, d := range tt.broker {
				c.compare(here, here.Add(d), here.Add(2*time.Second))
			}
			var told []string
			for _, r := range l.records(t, clocksApart) {
				if r["here"] == nil || r["broker"] == nil {
					t.Errorf("a clock is missing: %v", r)
				}
				told = append(told, time.Duration(r["broker_ahead_by"].(float64)).String())
			}
			equal(t, "told apart", tt.apart, told)
			equal(t, "told to agree", tt.again, len(l.records(t, clocksAgree)))
		})
	}
}

func TestTheBrokersClockIsAskedFor(t *testing.T) {
	t.Parallel()
	b := newExternal(t, &server.Options{Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir()}).start()
	url := fmt.Sprintf("nats://127.0.0.1:%d", b.opts.Port)
	provisionTwice(t, ProvisionOptions{URL: url}, singleAccount)
	l := &logs{}
	c := clocks{log: l.logger(), apart: true}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	js := login(t, url, "", broker.Notifier)
	go func() { ended <- c.watch(ctx, js) }()
	eventually(t, "the clocks agree", func() bool { return len(l.records(t, clocksAgree)) == 1 })
	cancel()
	equal(t, "watch", nil, <-ended)
}
