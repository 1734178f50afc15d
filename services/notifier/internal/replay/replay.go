// Package replay delivers what an operator has sent to one hook once more: the messages of WG_RETRY, one subject for each hook.
//
// It is the hook's own consumer (package consume) on another stream, so that a replayed event is verified, signed, tried again and buried as any other, with the
// same id. It is out of order by nature: what happened after it was delivered long ago, and receivers tell by the event's time and sequence. Only replays of one
// peer keep their order among each other. They run beside the hook's events, neither waits for the other, both together within the hook's rate. Neither the hook's
// filter nor its hold is asked, because the operator was.
package replay

import (
	"cmp"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
)

// concurrency is the number of replays of one hook that are sent at a time, beside its events, or fewer where it allows fewer events.
const concurrency = 4

// New returns the task for the replays of the hook that c is for. With the Config of that hook's Consumer, both share its rate.
func New(c consume.Config) (*consume.Consumer, error) {
	c.Source = consume.Source{Stream: broker.StreamRetry, Subject: deadletter.RetrySubject(c.Hook.Name)}
	c.Hook.Filter = route.Filter{}
	c.Hook.Target.Concurrency = min(concurrency, cmp.Or(c.Hook.Target.Concurrency, concurrency))
	c.Hook.Policy.Hold = 0 // who has a disconnect sent again wants it sent
	c.Observer = loadless{c.Observer}
	c.Log = c.Log.With("stream", broker.StreamRetry)
	return consume.New(c)
}

// loadless leaves the load out: what a hook has to do is told of its events.
type loadless struct{ consume.Observer }

func (loadless) Loaded(string, consume.Load) {}
