package app

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/wgherald/wgherald/services/probe/internal/health"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
)

// condition is how the engine is.
type condition struct {
	watched    []string
	unreadable []string // those of watched whose last look failed
}

// condition is for the engine's goroutine.
func (e *engine) condition() condition {
	c := condition{watched: slices.Sorted(maps.Keys(e.watched))}
	for _, name := range c.watched {
		if e.watched[name].failing {
			c.unreadable = append(c.unreadable, name)
		}
	}
	return c
}

// answerIn bounds how long the engine may take to say how it is.
const answerIn = health.Patience / 2

// report asks the engine how it is, from another goroutine, until ctx ends, which is after answerIn. An engine that answers also stores: it does both in
// one goroutine, at least once in tracker.StoreInterval, and a store that fails ends the probe. A broker that is away makes nobody ill, for the probe stores.
//
// A broker that denies the probe this node does: what it stores then is lost on who verifies. So does one that denies it events: none is told until somebody
// gives the probe another key.
func report(ctx context.Context, e *engine, connected bool, denied publish.Denied, waiting int) health.Report {
	reply := make(chan condition, 1)
	select {
	case e.asked <- reply:
	case <-ctx.Done():
		return health.Report{Text: fmt.Sprintf("the engine has taken in nothing for %v: its state directory may be too slow, or the machine overloaded", answerIn)}
	}
	c := <-reply
	parts := []string{cmp.Or(strings.Join(c.watched, ", "), "no WireGuard interface yet")}
	parts[0] = "watches " + parts[0]
	if len(c.unreadable) > 0 {
		parts = append(parts, "cannot read "+strings.Join(c.unreadable, ", "))
	}
	broker := "the broker is connected"
	switch {
	case !connected:
		denied = 0 // whoever is away refuses nothing
		broker = "the broker is not connected, events are kept"
	case denied == publish.DeniesEvents:
		broker = "the broker refuses events of this login, which are kept: the key is not a probe's (NATS_NKEY_FILE)"
	case denied == publish.DeniesStates:
		broker = "the broker refuses the states of this node: the key is another node's (PROBE_NODE), and nobody who verifies believes its events"
	}
	parts = append(parts, broker, fmt.Sprintf("%d events wait for it", waiting))
	return health.Report{
		Well: denied == 0 && (len(c.watched) == 0 || len(c.unreadable) < len(c.watched)),
		Text: strings.Join(parts, "; "),
	}
}
