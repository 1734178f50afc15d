package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/wgherald/wgherald/pkg/events"
)

// memory is how many ids are remembered. A repetition comes soon after the first copy, or after the probe has reconnected: then with what it had in
// flight, at most 64 events.
const memory = 4096

// reader turns messages into events that are worth believing, each once.
type reader struct {
	ring  events.Keyring // nil: nothing is verified
	seen  recent
	holes holes
}

func newReader() *reader {
	return &reader{seen: recent{known: map[string]bool{}, ring: make([]string, memory)}, holes: holes{}}
}

// read returns the event in a message, nil when it has been returned before.
func (r *reader) read(subject string, body []byte, signature string) (e *events.Event, err error) {
	if r.ring != nil {
		e, err = events.Verify(body, signature, r.ring)
	} else {
		e, err = events.Decode(body)
	}
	if err != nil {
		return nil, err
	}
	if string(e.Type) != subject {
		return nil, fmt.Errorf("an event of type %s was published to %s", e.Type, subject)
	}
	if r.seen.before(e.ID) {
		return nil, nil
	}
	return e, nil
}

// state returns the state that a key of the bucket holds. It is not signed: the broker lets a probe write the keys of its own node alone, so what it says must be
// about the peer of its key.
func (r *reader) state(key string, value []byte) (*events.State, error) {
	s, err := events.DecodeState(value)
	if err != nil {
		return nil, err
	}
	if want := events.StateKey(s.Node, s.Interface, s.Peer.PublicKey); want != key {
		return nil, fmt.Errorf("the state of %s was written to %s", want, key)
	}
	r.seen.before(s.EventID)
	return s, nil
}

// recent remembers the last ids, as many as its ring has room for.
type recent struct {
	known map[string]bool
	ring  []string // the oldest is at next
	next  int
}

// before reports whether an id is remembered, and remembers it.
func (r *recent) before(id string) bool {
	if r.known[id] {
		return true
	}
	delete(r.known, r.ring[r.next])
	r.known[id] = true
	r.ring[r.next] = id
	r.next = (r.next + 1) % len(r.ring)
	return false
}

// window is how many events of a source may arrive before an earlier one of another peer: a probe has no more than that in flight.
const window = 64

// holes finds what is missing of each source. It is of use only to who subscribes to all events of a source; wg.peer.* is all of "/nodes/N/interfaces/I".
type holes map[string]*numbering

// numbering is how far a source has counted.
type numbering struct {
	epoch uint64
	next  uint64          // everything before it has come, or was given up
	early map[uint64]bool // what came after it
}

// note takes a new event's place in its source and returns how many events before it will not come any more.
func (h holes) note(source string, s events.Sequence) (missing uint64) {
	n := h[source]
	if n == nil || n.epoch != s.Epoch {
		// A source starts wherever it is when we come. A new epoch counts from 1, but the first may be late.
		n = &numbering{epoch: s.Epoch, next: s.N, early: map[uint64]bool{}}
		h[source] = n
	}
	if s.N < n.next {
		return 0
	}
	n.early[s.N] = true
	for n.early[n.next] || len(n.early) > window {
		if !n.early[n.next] {
			first := slices.Min(slices.Collect(maps.Keys(n.early)))
			missing += first - n.next
			n.next = first
		}
		delete(n.early, n.next)
		n.next++
	}
	return missing
}
