package consume

import (
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The stream drops what is too old or too much, whether it was delivered or not. What a hook lost by that is reported, once: by the hole that it leaves in
// the stream's numbering where the consumer's has none, and, while nothing arrives, by looking. Messages that are held here are not lost, although the
// stream has dropped them. What an owner held that was killed, and the stream dropped before there was another one, leaves no trace: the server takes it
// for terminated.

// sequences returns the last delivery of a consumer, by the numbers of the stream and its own. The server moves its place beyond what was dropped even when
// it then finds nobody to deliver to; the floor of what was acknowledged stays.
func sequences(info *jetstream.ConsumerInfo) jetstream.SequenceInfo {
	if info.NumAckPending == 0 {
		return jetstream.SequenceInfo{Stream: min(info.AckFloor.Stream, info.Delivered.Stream), Consumer: info.Delivered.Consumer}
	}
	return jetstream.SequenceInfo{Stream: info.Delivered.Stream, Consumer: info.Delivered.Consumer}
}

// noticeHole reports what the server passed over right before this message.
func (s *session) noticeHole(meta *nats.MsgMetadata) {
	at := meta.Sequence.Stream
	for _, before := range []jetstream.SequenceInfo{s.tail, s.overtaken} {
		if meta.Sequence.Consumer == before.Consumer+1 && at > before.Stream {
			s.lost(before.Stream, at-1)
		}
	}
	s.tail = jetstream.SequenceInfo{Stream: max(s.tail.Stream, meta.Sequence.Stream), Consumer: meta.Sequence.Consumer}
}

// noticeDropped reports what the stream does not hold any more and the consumer has not delivered. While others own the hook, that is how the numbers
// are kept up to date.
func (s *session) noticeDropped(a answer) {
	if a.first > 0 {
		s.lost(sequences(a.info).Stream, a.first-1)
	}
	if now := sequences(a.info); s.pin == "" && now != s.tail {
		s.overtaken, s.tail = s.tail, now
	}
}

// lost reports the sequences after delivered up to last, as far as they were not reported already.
func (s *session) lost(delivered, last uint64) {
	from := max(delivered, s.c.dropped)
	if last <= from || s.c.Source.Subject != "" { // what is missing there may be on another subject
		return
	}
	s.c.dropped = last
	s.c.Log.Error("events were dropped by the stream before they were delivered", "count", last-from, "first_sequence", from+1, "last_sequence", last)
	s.c.Observer.Lost(s.c.Hook.Name, last-from)
}
