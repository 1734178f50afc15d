package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

// HeaderTest is set to true in the request of Try, and in no other.
const HeaderTest = "Webhook-Test"

// testKey is the public key of the peer in Try's event, d2doZXJhbGQtdGVzdC1wZWVyLW5vdC1hLXJlYWwtaWQ= as wg(8) prints it: the bytes say what it is.
var testKey = events.Key([]byte("wgherald-test-peer-not-a-real-id"))

// Try sends a test event to one of the configured hooks, once, in its format and signed as any other, whatever its filter: a wg.peer.connected with a fresh id,
// about the peer "wgherald test" of a node that is none. It needs no broker. An error says that the hook is not configured; how the attempt went is the result.
func Try(ctx context.Context, cfg config.Config, version, hook string) (deliver.Result, error) {
	i := slices.IndexFunc(cfg.Hooks, func(h config.Hook) bool { return h.Name == hook })
	if i < 0 {
		return deliver.Result{}, noSuchHook(cfg, hook)
	}
	c, err := newConsumer(nil, cfg.Hooks[i], version, nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return deliver.Result{}, err
	}
	now := time.Now()
	place := events.Sequence{Epoch: uint64(now.UnixMilli()), N: 1 + rand.Uint64N(1<<32)} // another one, and so another id, even within the millisecond
	e := events.New(&events.Connected{
		Common:  events.Common{Node: "wgherald-test", Interface: "wg0", DetectedAt: now},
		Peer:    events.Peer{PublicKey: testKey, Name: "wgherald test"},
		Session: events.Session{StartedAt: now, LastHandshakeAt: now, LastSeen: events.Interval{After: now, Before: now}},
	}, now, place)
	body, err := e.Encode()
	if err != nil {
		return deliver.Result{}, err
	}
	req, err := c.Hook.Format(e, body)
	if err != nil {
		return deliver.Result{}, fmt.Errorf("hook %s: %w", hook, err)
	}
	req.Header = maps.Clone(req.Header)
	req.Header[HeaderTest] = "true"
	sender, err := deliver.New(c.Hook.Target, version)
	if err != nil {
		return deliver.Result{}, fmt.Errorf("hook %s: %w", hook, err)
	}
	defer sender.Close()
	return sender.Send(ctx, e.ID, req), nil
}

func noSuchHook(cfg config.Config, hook string) error {
	names := HookNames(cfg)
	switch known := config.Suggest(hook, names); {
	case len(names) == 0:
		return errors.New("no hook is configured: set NOTIFIER_HOOKS or WEBHOOK_URL as the notifier has them")
	case known != "":
		return fmt.Errorf("no hook is named %.40q: did you mean %s?", hook, known)
	}
	return fmt.Errorf("no hook is named %.40q: there are %s", hook, strings.Join(names, ", "))
}
