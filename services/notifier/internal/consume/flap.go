package consume

import (
	"context"

	"github.com/wgherald/wgherald/pkg/events"
)

// A disconnection is held until it is certain that the stream has no connection of the same peer within Policy.Hold after it. Both ends of that time are
// times of storage, by the broker's clock, and nothing is sent before everything stored until then has arrived (session.seen), for which a mirror has a moment
// (mirrorLag). So the decision is a function of the stream, and the next owner after a crash decides the same: it never withholds the connection of a peer whose
// disconnection was sent.
// Only where no more is pulled, because too much is held or the hook counts as broken, does a disconnection go without that certainty.
//
// Until it is decided, everything of the peer stays un-acked, and kept so by InProgress. The pair is acknowledged one after the other, disconnection first:
// a crash in between repeats that the peer is connected, which is true.

// mayFlap reports whether e, by itself, begins or ends a hold. The filter may want only one of the pair: what the peer did is the same.
func (s *session) mayFlap(e *events.Event) bool {
	if s.c.Hook.Policy.Hold == 0 {
		return false
	}
	switch d := e.Data.(type) {
	case *events.Connected:
	case *events.Disconnected:
		if d.Reason == events.PeerWasRemoved || d.Reason == events.InterfaceIsDown {
			return false
		}
	default:
		return false
	}
	on, off := *e, *e
	on.Type, off.Type = events.PeerConnected, events.PeerDisconnected
	return s.c.Hook.Filter.Wants(&on) || s.c.Hook.Filter.Wants(&off)
}

// undecided reports whether w is a disconnection that may yet be taken back.
func (s *session) undecided(w work) bool {
	return s.seen.Before(w.until) && s.held() < holdLimit && !s.c.breaker.Open()
}

// withhold acknowledges the disconnections of key that a connection has taken back, and these connections, unsent.
func (s *session) withhold(ctx context.Context, key string) {
	items := s.queue.Waiting(key)
	for i := range items {
		off := items[i].Value
		if off.until.IsZero() || s.c.attempts[off.seq()] != nil {
			continue
		}
		for _, it := range items[i+1:] {
			on := it.Value
			if on.event.Type == events.PeerDisconnected {
				break
			}
			if on.event.Type != events.PeerConnected {
				continue
			}
			if s.c.attempts[on.seq()] == nil && !on.meta.Timestamp.After(off.until) {
				s.closing[on.seq()] = &closing{work: s.queue.Drop(key, on.seq()), after: off.seq()}
				s.closing[off.seq()] = &closing{work: s.queue.Drop(key, off.seq()), before: on.seq()}
				s.request(ctx, s.closing[off.seq()])
				s.c.Observer.Withheld(s.c.Hook.Name, 2)
			}
			break
		}
	}
}
