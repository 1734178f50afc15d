package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wgherald/wgherald/lab/internal/crowd"
)

const (
	floodPeers = 100
	floodFor   = 10 * time.Second
	// leadFor is for how long there is a flood before the one that is measured: what the first of a kind makes the probe take and keep is no growth.
	leadFor = 3 * time.Second

	aimFloodConnect = time.Second
	// aimFloodGrowth is how much more may be resident after a flood to call the memory flat: what Go's garbage collector leaves from one time to the next.
	aimFloodGrowth = 4 * mib
)

// flood measures the probe while its host gets packets that look like initiations, and whether it still tells of a peer that connects meanwhile.
func (c *crowded) flood(ctx context.Context) error {
	rows := []string{cells("", "packets/s", "CPU of the probe", "", "resident before → after", "", "first data packet → stored", "", "taken by others")}
	for i, f := range []struct {
		name   string
		flood  crowd.Flood
		aimCPU float64 // of a core
	}{
		{"mac1 wrong", crowd.Flood{Rate: 20_000, Sources: 1}, 0.10},
		{"mac1 right, one source", crowd.Flood{Rate: 5_000, Sources: 1, MAC1: true}, 0.30},
		{"mac1 right, 20,000 sources", crowd.Flood{Rate: 5_000, Sources: 20_000, MAC1: true}, 0.30},
	} {
		f.flood.For = floodFor
		// The first of two peers connects before: the probe has room for all it does, and what follows is the flood's.
		scout, err := c.connect(2 * i)
		if err != nil {
			return err
		}
		if err := c.awaitSoon(ctx, scout); err != nil {
			return err
		}
		if scout.stored.IsZero() {
			return fmt.Errorf("%s: the probe does not tell of a peer that connects before the flood", f.name)
		}
		lead := f.flood
		lead.For = leadFor
		if _, err := c.crowd.Flood(ctx, lead); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err := sleep(ctx, settleFor); err != nil {
			return err
		}
		before, err := c.probeSizes("VmRSS")
		if err != nil {
			return err
		}
		var rate float64
		var amid *rareConnect
		u, err := c.account(ctx, func() error {
			connected := make(chan error, 1)
			flooding, stop := context.WithCancel(ctx)
			defer stop()
			go func() {
				err := sleep(flooding, floodFor/2)
				if err == nil {
					amid, err = c.connect(2*i + 1)
				}
				connected <- err
			}()
			var err error
			if rate, err = c.crowd.Flood(flooding, f.flood); err != nil {
				stop()
			}
			return errors.Join(err, <-connected)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err := c.awaitSoon(ctx, amid); err != nil {
			return err
		}
		if c.crowd.LastHandshake(2*i + 1).IsZero() {
			return fmt.Errorf("%s: the packets of the peer did not reach the device", f.name)
		}
		if err := sleep(ctx, settleFor); err != nil {
			return err
		}
		after, err := c.probeSizes("VmRSS")
		if err != nil {
			return err
		}
		share := u.share(u.probe)
		told, inTime := "never", false
		if took := amid.stored.Sub(amid.sent); !amid.stored.IsZero() {
			told, inTime = ms(took)+" ms", took <= aimFloodConnect
		}
		rows = append(rows, cells(f.name, fmt.Sprintf("%.0f", rate),
			fmt.Sprintf("%.1f %%", 100*share), fmt.Sprintf("aim: < %.0f %%  %s", 100*f.aimCPU, met(share < f.aimCPU)),
			inMiB(before[0])+" → "+inMiB(after[0]), "aim: flat  "+met(after[0] <= before[0]+aimFloodGrowth),
			told, fmt.Sprintf("aim: ≤ %v  %s", aimFloodConnect, met(inTime)),
			fmt.Sprintf("%.0f %% of a core", 100*u.share(u.machine-u.ours))))
	}
	table(c.out, fmt.Sprintf("%d peers configured, packets like initiations for %v each, after %v of the same; flat: at most %d MiB more", floodPeers, floodFor, leadFor, aimFloodGrowth/mib), rows...)
	return nil
}

// awaitSoon awaits a connect's event, for as long as an event may take. It fails only when ctx ends.
func (c *crowded) awaitSoon(ctx context.Context, r *rareConnect) error {
	wait, cancel := context.WithTimeout(ctx, scaleGiveUp)
	defer cancel()
	c.await(wait, r)
	return ctx.Err()
}
