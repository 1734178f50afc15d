package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
)

const (
	clockInterval = time.Minute // between two looks at the broker's clock
	maxSkew       = time.Minute // that is nobody's concern

	clocksApart = "the clocks of this machine and of the broker are more than a minute apart, set both right: events are given up (give_up) too early or too late by as much, " +
		"and where this one is wrong, receivers may refuse the times in signatures"
	clocksAgree = "the clocks of this machine and of the broker agree again"
)

// clocks compares this machine's clock with the broker's, by which the age of an event is reckoned.
type clocks struct {
	log   *slog.Logger
	apart bool // and it was said
}

// watch looks at the broker's clock now and then, until ctx ends. A broker that does not answer has said nothing of it.
func (c *clocks) watch(ctx context.Context, js jetstream.JetStream) error {
	ticks := time.NewTicker(clockInterval)
	defer ticks.Stop()
	for {
		asked := time.Now()
		if stream, err := js.Stream(ctx, events.StreamEvents); err == nil && !stream.CachedInfo().TimeStamp.IsZero() { // an old broker tells none
			c.compare(asked, stream.CachedInfo().TimeStamp, time.Now())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
	}
}

// compare takes in a time that the broker told in answer to a question, between two times of ours.
func (c *clocks) compare(asked, broker, answered time.Time) {
	var skew time.Duration // of the broker, at the least
	switch {
	case broker.Before(asked.Add(-maxSkew)):
		skew = broker.Sub(asked)
	case broker.After(answered.Add(maxSkew)):
		skew = broker.Sub(answered)
	}
	switch apart := skew != 0; {
	case apart && !c.apart:
		c.log.Warn(clocksApart, "here", answered.UTC(), "broker", broker.UTC(), "broker_ahead_by", skew.Round(time.Second))
	case !apart && c.apart:
		c.log.Info(clocksAgree, "here", answered.UTC(), "broker", broker.UTC())
	}
	c.apart = skew != 0
}
