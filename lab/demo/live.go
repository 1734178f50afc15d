package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	pause     = 15 * time.Second // between two things that happen after the story
	heartbeat = 3 * time.Second  // between two pings of everybody meanwhile
)

// live goes on after the story until ctx ends: the interface comes back, and from then on something happens now and then.
func (s *story) live(ctx context.Context) error {
	s.say("wg0 comes up again, and the peers come back")
	if err := s.act(ctx, func(context.Context) error { return s.lab.Hub.SetLink(true) },
		want{events.InterfaceUp, lab.Interface, func(*events.Event) error { return nil }}); err != nil {
		return err
	}
	for _, c := range s.lab.Clients {
		if c == s.carol() {
			continue
		}
		if err := errors.Join(c.Down(), s.connect(ctx, c)); err != nil {
			return err
		}
	}
	awake := []*lab.Client{s.alice(), s.bob(), s.lab.Clients[3]} // those who ping

	left := s.lab.Sink.Len()
	if err := s.erin().Down(); err != nil {
		return err
	}
	s.say("erin-router goes without a word (WireGuard has none): unreachable when nobody answers the hub, or gone when the keys expire, after 180 s")

	return cycle(ctx, []happening{
		{"carol-desktop is configured again", func(ctx context.Context) error {
			awake = append(awake, s.carol())
			return s.addAgain(ctx, s.carol())
		}},
		{"bob-phone comes home from the other network", func(ctx context.Context) error { return s.roam(ctx, s.bob()) }},
		{"carol-desktop is taken out of the configuration", func(ctx context.Context) error {
			awake = slices.DeleteFunc(awake, func(c *lab.Client) bool { return c == s.carol() })
			return s.remove(ctx, s.carol())
		}},
		{"bob-phone moves to another network", func(ctx context.Context) error { return s.roam(ctx, s.bob()) }},
	}, func(ctx context.Context) (*happening, error) {
		if err := s.rest(ctx, awake); err != nil {
			return nil, err
		}
		if !s.gone(s.erin(), left) {
			return nil, nil
		}
		return &happening{"erin-router comes back, and goes without a word again", func(ctx context.Context) error {
			if err := s.connect(ctx, s.erin()); err != nil {
				return err
			}
			left = s.lab.Sink.Len()
			return s.erin().Down()
		}}, nil
	}, s.say)
}

// happening is something that is done to the lab, and said before.
type happening struct {
	text string
	do   func(context.Context) error
}

// cycle does one of round after another, over and over, until something fails. Before each it asks between, which rests and may come up with
// something else: that comes first, and none of round is left out for it, for each builds on the one before.
func cycle(ctx context.Context, round []happening, between func(context.Context) (*happening, error), say func(string)) error {
	for i := 0; ; {
		h, err := between(ctx)
		if err != nil {
			return err
		}
		if h == nil {
			h = &round[i%len(round)]
			i++
		}
		say(h.text)
		if err := h.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", h.text, err)
		}
	}
}

// rest lets some time pass, in which those who are awake ping.
func (s *story) rest(ctx context.Context, awake []*lab.Client) error {
	over := time.NewTimer(pause)
	defer over.Stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		for _, c := range awake {
			if err := ping(ctx, c); err != nil && ctx.Err() == nil {
				s.say(err.Error())
			}
		}
		select {
		case <-beat.C:
		case <-over.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func ping(ctx context.Context, c *lab.Client) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	return c.Ping(ctx)
}

// addAgain configures a client that was removed, and lets it connect.
func (s *story) addAgain(ctx context.Context, c *lab.Client) error {
	if err := c.Down(); err != nil {
		return err
	}
	if err := s.act(ctx, func(context.Context) error { return s.lab.Configure(c) },
		want{events.PeerAdded, c.PublicKey().String(), func(*events.Event) error { return nil }}); err != nil {
		return err
	}
	return s.connect(ctx, c)
}

// gone reports whether a client's disconnection has been delivered, not looking at the first from requests.
func (s *story) gone(c *lab.Client, from int) bool {
	for _, d := range s.lab.Sink.All()[from:] {
		if d.OK() && d.Event.Type == events.PeerDisconnected && d.Event.Subject == c.PublicKey().String() {
			return true
		}
	}
	return false
}
