package consume

import (
	"bytes"
	"hash/maphash"
	"sync"

	"github.com/wgherald/wgherald/pkg/events"
)

// Bounds of Known. Hooks that keep up are at the same event, and hooks that work off a backlog go side by side.
const (
	knownEvents = 2048
	knownBytes  = 4 << 20 // of bodies; what they say takes about four times as much
)

// Known remembers what the last events say, so that each is read and its signature checked once, however many hooks get it. Only whole bodies that are equal,
// with the same signature, under the same keyring, say the same. The zero Known is empty; it is safe for concurrent use.
type Known struct {
	mu     sync.Mutex
	events map[uint64]known // by the hash of the body
	oldest []uint64         // the keys of events, in the order they came
	bytes  int
}

type known struct {
	body      []byte
	signature string
	ring      *events.Keyring
	event     *events.Event
}

// bodies is the seed of the hashes: nobody can make bodies that collide.
var bodies = maphash.MakeSeed()

// Read is events.Verify, or events.Decode where ring is nil. The event is not to be changed, nor is body from now on.
func (k *Known) Read(body []byte, signature string, ring *events.Keyring) (*events.Event, error) {
	key := maphash.Bytes(bodies, body)
	k.mu.Lock()
	have, ok := k.events[key]
	k.mu.Unlock()
	if ok && have.ring == ring && have.signature == signature && bytes.Equal(have.body, body) {
		return have.event, nil
	}
	var e *events.Event
	var err error
	if ring == nil {
		e, err = events.Decode(body)
	} else {
		e, err = events.Verify(body, signature, *ring)
	}
	if err == nil {
		k.keep(key, known{body, signature, ring, e})
	}
	return e, err
}

func (k *Known) keep(key uint64, n known) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.events == nil {
		k.events = map[uint64]known{}
	}
	was, ok := k.events[key]
	if !ok {
		k.oldest = append(k.oldest, key)
	}
	k.events[key] = n
	k.bytes += len(n.body) - len(was.body)
	for len(k.oldest) > knownEvents || k.bytes > knownBytes {
		k.bytes -= len(k.events[k.oldest[0]].body)
		delete(k.events, k.oldest[0])
		k.oldest = k.oldest[1:]
	}
}
