package broker

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/nats-io/nats.go/jetstream"
)

// Messages returns what a stream holds of a subject, from a place in the stream on, the oldest first, and ends with the last one that is there. It asks the API
// for one message at a time, because that is all that an operator may (4,000 a second: BenchmarkMessages).
func Messages(ctx context.Context, s jetstream.Stream, subject string, from uint64) iter.Seq2[*jetstream.RawStreamMsg, error] {
	return func(yield func(*jetstream.RawStreamMsg, error) bool) {
		for seq := max(from, 1); ; {
			msg, err := s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("read stream %s: %w", s.CachedInfo().Config.Name, err))
				return
			}
			if !yield(msg, nil) {
				return
			}
			seq = msg.Sequence + 1
		}
	}
}
