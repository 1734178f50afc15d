package app

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/capture"
	"github.com/wgherald/wgherald/services/probe/internal/limit"
	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

const (
	// heardBacklog is how many messages may wait for the engine. Beyond it they are dropped, and a look makes up for them.
	heardBacklog = 1024
	// maxInitiators bounds the senders of initiations whose first data packet is listened for; the oldest is forgotten first.
	maxInitiators = 4096
	// skippedInterval is how often the engine is told of handshake messages that nobody had the time for.
	skippedInterval = 250 * time.Millisecond
)

// ear is the part of the engine that runs in the listener's goroutine: it finds out whom a message is for and, of an initiation, whom it is from. It
// throws away what concerns nobody here, the cheap tests first: anyone may send messages, at any rate.
type ear struct {
	metrics *telemetry.Metrics
	targets atomic.Pointer[[]target]
	out     chan<- heard
	missed  chan struct{} // gets a value when a message was dropped

	began      time.Time // of the gate's clock
	gate       *limit.Gate
	initiators *simplelru.LRU[netip.AddrPort, struct{}]
	found      []target             // used again for each message
	skipped    map[string]time.Time // by interface: when the engine was told last
}

// target is what tells whether a handshake message is for a watched interface, and opens it.
type target struct {
	name      string
	port      int
	responder *wgmsg.Responder
}

// note says what was heard.
type note int

const (
	noteInitiation note = iota // opened and proven: key and stamp are set
	noteUnopened               // an initiation that may be for several interfaces; without a source, messages that nobody had the time for
	noteResponse
	noteFirstData // it may be for any interface
)

// heard is a message that concerns one interface, or, for data, any.
type heard struct {
	note  note
	name  string
	src   netip.AddrPort
	key   events.Key
	stamp wgmsg.Timestamp
}

func newEar(metrics *telemetry.Metrics, out chan<- heard) *ear {
	initiators, err := simplelru.NewLRU[netip.AddrPort, struct{}](maxInitiators, nil)
	if err != nil {
		panic(err) // the size is positive
	}
	e := &ear{metrics: metrics, out: out, missed: make(chan struct{}, 1), began: time.Now(), gate: limit.NewGate(), initiators: initiators, skipped: map[string]time.Time{}}
	e.targets.Store(&[]target{})
	return e
}

// hear takes in a message. Calls come one at a time.
func (e *ear) hear(p capture.Packet) {
	switch p.Kind {
	case wgmsg.Initiation:
		e.initiation(p)
	case wgmsg.Response:
		if found := e.addressees(p); len(found) > 0 && e.admit(p, found) {
			for _, t := range found {
				e.pass(heard{note: noteResponse, name: t.name, src: p.Src})
			}
		}
	case wgmsg.Data:
		// Once for each initiation: a look that the first one has brought forward gains nothing by more, and there is no bucket for these.
		if e.initiators.Remove(p.Src) {
			e.metrics.Message(p.Kind)
			e.pass(heard{note: noteFirstData, src: p.Src})
		}
	case wgmsg.CookieReply:
		e.metrics.Message(p.Kind)
	}
}

// addressees returns the interfaces that a handshake message may be for. There is more than one only where several have the same key and the port does
// not decide, as behind a port forward.
func (e *ear) addressees(p capture.Packet) []target {
	e.found = addressees(e.found[:0], *e.targets.Load(), p)
	if len(e.found) == 0 {
		e.metrics.Foreign()
	} else {
		e.metrics.Message(p.Kind)
	}
	return e.found
}

// addressees appends to an empty list.
func addressees(found, targets []target, p capture.Packet) []target {
	for _, t := range targets {
		if !t.responder.Addressed(p.Payload) {
			continue
		}
		if t.port == int(p.Dst.Port()) {
			return append(found[:0], t)
		}
		found = append(found, t)
	}
	return found
}

// admit reports whether there is time for a handshake message. Otherwise, the engine is told now and then to look what came of it.
func (e *ear) admit(p capture.Packet, found []target) bool {
	if e.gate.Allow(p.At.Sub(e.began), p.Src.Addr()) {
		return true
	}
	for _, t := range found {
		if p.At.Sub(e.skipped[t.name]) >= skippedInterval {
			e.skipped[t.name] = p.At
			e.pass(heard{note: noteUnopened, name: t.name})
		}
	}
	return false
}

func (e *ear) initiation(p capture.Packet) {
	found := e.addressees(p)
	if len(found) == 0 {
		return
	}
	if !e.admit(p, found) {
		e.metrics.Initiation(telemetry.Skipped)
		return
	}
	if len(found) > 1 {
		e.metrics.Initiation(telemetry.Ambiguous)
		e.initiators.Add(p.Src, struct{}{})
		for _, t := range found {
			e.pass(heard{note: noteUnopened, name: t.name, src: p.Src})
		}
		return
	}
	t := found[0]
	claim, ok := t.responder.Open(p.Payload)
	if !ok {
		e.metrics.Initiation(telemetry.Unopened)
		return
	}
	stamp, ok := t.responder.Prove(&claim)
	if !ok {
		e.metrics.Initiation(telemetry.Unproven)
		return
	}
	e.initiators.Add(p.Src, struct{}{})
	e.pass(heard{note: noteInitiation, name: t.name, src: p.Src, key: events.Key(claim.Static), stamp: stamp})
}

// pass hands a message to the engine, which never waits for it.
func (e *ear) pass(h heard) {
	select {
	case e.out <- h:
	default:
		e.metrics.Overflow()
		select {
		case e.missed <- struct{}{}:
		default: // a value that says the same waits there
		}
	}
}
