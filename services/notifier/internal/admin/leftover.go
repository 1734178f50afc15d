package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
)

// Leftover is the consumer of a hook that is not configured: its place in a stream.
type Leftover struct {
	Stream  string
	Hook    string
	Backlog uint64 // messages that it has not acknowledged
	InUse   bool   // another notifier, with other hooks, serves it
}

// FindLeftovers returns the consumers of hooks that are not among those configured. Consumers that are nobody's hook are left out.
func FindLeftovers(ctx context.Context, js jetstream.JetStream, configured []string) ([]Leftover, error) {
	var list []Leftover
	for _, name := range []string{events.StreamEvents, broker.StreamRetry} {
		stream, err := js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		consumers := stream.ListConsumers(ctx)
		for info := range consumers.Info() {
			hook, ours := strings.CutPrefix(info.Name, consume.Durable(""))
			if !ours || slices.Contains(configured, hook) {
				continue
			}
			served := func(g jetstream.PriorityGroupState) bool { return g.PinnedClientID != "" }
			list = append(list, Leftover{
				Stream: name, Hook: hook, Backlog: info.NumPending + uint64(info.NumAckPending),
				InUse: info.NumWaiting > 0 || slices.ContainsFunc(info.PriorityGroups, served),
			})
		}
		if err := consumers.Err(); err != nil {
			return nil, fmt.Errorf("consumers of stream %s: %w", name, err)
		}
	}
	return list, nil
}

// Remove deletes a leftover, and with it its place in the stream. One that is gone already is no error.
func Remove(ctx context.Context, js jetstream.JetStream, l Leftover) error {
	err := js.DeleteConsumer(ctx, l.Stream, consume.Durable(l.Hook))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete the consumer of hook %s on %s: %w", l.Hook, l.Stream, err)
	}
	return nil
}
