package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
	"github.com/wgherald/wgherald/pkg/events"
)

// patience is how long a step may take until its event has been delivered. The probe samples every 10 s, a little less often on a busy machine, and
// WireGuard repeats a lost initiation after 5 s.
const patience = 20 * time.Second

// story is what happens to the peers, step by step, and the check that each step was told as it had to be.
type story struct {
	lab *lab.Lab
	say func(text string)

	expected map[string][]events.Type // by subject, in order
	connects []connect

	mu          sync.Mutex
	initiations map[*lab.Client]time.Time // the first since the client came up
}

func newStory() *story {
	return &story{expected: map[string][]events.Type{}, initiations: map[*lab.Client]time.Time{}}
}

// sent is lab.Options.OnSend.
func (s *story) sent(c *lab.Client, p wgpeer.Sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.initiations[c]; !known && p.Kind == wgpeer.Initiation {
		s.initiations[c] = p.At
	}
}

// The cast.
func (s *story) alice() *lab.Client { return s.lab.Clients[0] }
func (s *story) bob() *lab.Client   { return s.lab.Clients[1] }
func (s *story) carol() *lab.Client { return s.lab.Clients[2] }
func (s *story) erin() *lab.Client  { return s.lab.Clients[4] }

// tell is the story up to taking the interface down. Its error names the step and what did not happen.
func (s *story) tell(ctx context.Context) error {
	steps := []struct {
		text string
		do   func(context.Context) error
	}{
		{"the probe says what it watches", s.introduce},
		{"five peers come up, each with one ping", s.comeUp},
		{"bob-phone moves to another network: no handshake, so the next sample sees it, within 10 s",
			func(ctx context.Context) error { return s.roam(ctx, s.bob()) }},
		{"carol-desktop is taken out of the configuration: the next sample sees that, too",
			func(ctx context.Context) error { return s.remove(ctx, s.carol()) }},
		{"carol-desktop knocks all the same, and is turned away: her handshake names her", func(ctx context.Context) error { return s.knock(ctx, s.carol()) }},
		{"wg0 is taken down, and every session with it", s.takeDown},
		{"the webhook receiver's ledger is checked: signatures, order, nothing missing, nothing more", s.audit},
	}
	for i, step := range steps {
		s.say(fmt.Sprintf("%d. %s", i+1, step.text))
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, step.text, err)
		}
	}
	return nil
}

func (s *story) introduce(ctx context.Context) error {
	ctx, cancel := withPatience(ctx)
	defer cancel()
	return s.want(ctx, 0, 0,
		want{events.ProbeStarted, lab.Node, func(e *events.Event) error {
			return equal("trigger", e.Data.(*events.Started).Trigger, events.TriggerPackets)
		}},
		want{events.InterfaceUp, lab.Interface, func(e *events.Event) error {
			return equal("peers", e.Data.(*events.Up).Peers, len(s.lab.Clients))
		}},
	)
}

func (s *story) comeUp(ctx context.Context) error {
	for _, c := range s.lab.Clients {
		if err := s.connect(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// connect brings a client up and waits for its connection to be told.
func (s *story) connect(ctx context.Context, c *lab.Client) error {
	s.mu.Lock()
	delete(s.initiations, c)
	s.mu.Unlock()
	return s.act(ctx, func(ctx context.Context) error { return c.Connect(ctx) },
		want{events.PeerConnected, c.PublicKey().String(), func(e *events.Event) error {
			d := e.Data.(*events.Connected)
			return errors.Join(
				equal("name", d.Peer.Name, c.Name),
				equal("address", address(d.Peer.Endpoint), c.Outside()),
				equal("inferred", d.Inferred, false),
			)
		}})
}

func (s *story) roam(ctx context.Context, c *lab.Client) error {
	from := c.Outside()
	return s.act(ctx, func(ctx context.Context) error {
		if err := c.Roam(); err != nil {
			return err
		}
		return c.Ping(ctx)
	}, want{events.PeerRoamed, c.PublicKey().String(), func(e *events.Event) error {
		d := e.Data.(*events.Roamed)
		return errors.Join(equal("from", address(d.From), from), equal("to", address(d.To), c.Outside()))
	}})
}

func (s *story) remove(ctx context.Context, c *lab.Client) error {
	return s.act(ctx, func(context.Context) error { return s.lab.Remove(c) },
		s.disconnected(c, events.PeerWasRemoved),
		want{events.PeerRemoved, c.PublicKey().String(), func(e *events.Event) error {
			return equal("name", e.Data.(*events.Removed).Peer.Name, c.Name)
		}},
	)
}

// knock has a client that is not configured begin anew. It sends an initiation every 5 s, and is told of once.
func (s *story) knock(ctx context.Context, c *lab.Client) error {
	return s.act(ctx, func(context.Context) error {
		c.Keepalive = 25 * time.Second // so that it knocks by itself
		return errors.Join(c.Down(), c.Up())
	}, want{events.PeerRejected, c.PublicKey().String(), func(e *events.Event) error {
		d := e.Data.(*events.Rejected)
		return errors.Join(equal("key", d.PublicKey, c.PublicKey()), equal("address", address(d.Endpoint), c.Outside()), equal("count", d.Count, 1))
	}})
}

func (s *story) takeDown(ctx context.Context) error {
	wants := []want{{events.InterfaceDown, lab.Interface, func(e *events.Event) error {
		return equal("reason", e.Data.(*events.Down).Reason, events.SetDown)
	}}}
	for _, c := range s.lab.Clients {
		if c != s.carol() {
			wants = append(wants, s.disconnected(c, events.InterfaceIsDown))
		}
	}
	return s.act(ctx, func(context.Context) error { return s.lab.Hub.SetLink(false) }, wants...)
}

func (s *story) disconnected(c *lab.Client, reason events.Reason) want {
	return want{events.PeerDisconnected, c.PublicKey().String(), func(e *events.Event) error {
		d := e.Data.(*events.Disconnected)
		return errors.Join(equal("name", d.Peer.Name, c.Name), equal("reason", d.Reason, reason))
	}}
}

// want is an event that has to come.
type want struct {
	Type    events.Type
	Subject string
	check   func(*events.Event) error // what else must be true of it
}

func withPatience(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
}

// act does something and waits until what follows from it has been told.
func (s *story) act(ctx context.Context, do func(context.Context) error, wants ...want) error {
	ctx, cancel := withPatience(ctx)
	defer cancel()
	published, delivered := s.lab.Events.Len(), s.lab.Sink.Len()
	if err := do(ctx); err != nil {
		return err
	}
	return s.want(ctx, published, delivered, wants...)
}

// want waits for events on NATS and at the webhook receiver, not looking at the first ones there, and checks that both are the same and right.
func (s *story) want(ctx context.Context, published, delivered int, wants ...want) error {
	for _, w := range wants {
		s.expected[w.Subject] = append(s.expected[w.Subject], w.Type)
		m, err := s.lab.Published(ctx, published, w.Type, w.Subject)
		if err != nil {
			return because(ctx, err)
		}
		d, err := s.lab.Delivered(ctx, delivered, w.Type, w.Subject)
		if err != nil {
			return because(ctx, err)
		}
		if m.Event.ID != d.Event.ID {
			return fmt.Errorf("%s of %s: NATS had event %s, the webhook %s", w.Type, subject(d.Event), m.Event.ID, d.Event.ID)
		}
		if err := w.check(d.Event); err != nil {
			return fmt.Errorf("%s of %s: %w", w.Type, subject(d.Event), err)
		}
		if c, ok := d.Event.Data.(*events.Connected); ok {
			s.connects = append(s.connects, connect{s.initiation(w.Subject), c.Session.LastHandshakeAt, m.At, d.At})
		}
	}
	return nil
}

// because says why ctx ended, when that is the error.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ctx.Err()) {
		return fmt.Errorf("%s: %w", strings.TrimSuffix(err.Error(), ": "+ctx.Err().Error()), cause)
	}
	return err
}

func (s *story) initiation(key string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, at := range s.initiations {
		if c.PublicKey().String() == key {
			return at
		}
	}
	return time.Time{}
}

func (s *story) audit(context.Context) error {
	var published []*events.Event
	for _, m := range s.lab.Events.All() {
		if m.Err != nil {
			return fmt.Errorf("on NATS, subject %q: %w", m.Subject, m.Err)
		}
		published = append(published, m.Event)
	}
	return audit(s.lab.Sink.All(), published, s.expected)
}

// audit reads the whole ledger of the webhook receiver: each request was a verified event, they are the ones that were published, and the expected ones of
// each subject, in order; of each source none is missing. A repetition is allowed, that is at least once.
func audit(deliveries []sink.Delivery, published []*events.Event, expected map[string][]events.Type) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	seen := map[string]bool{}
	got := map[string][]events.Type{}
	last := map[string]events.Sequence{} // by partition key
	count, highest := map[string]uint64{}, map[string]uint64{}
	for i, d := range deliveries {
		if !d.OK() {
			fail("request %d was answered %d: %w", i+1, d.Status, d.Err)
			continue
		}
		e := d.Event
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		got[e.Subject] = append(got[e.Subject], e.Type)
		if e.Sequence.Compare(last[e.PartitionKey]) <= 0 {
			fail("%s of %s came out of order", e.Type, subject(e))
		}
		last[e.PartitionKey] = e.Sequence
		count[e.Source]++
		highest[e.Source] = max(highest[e.Source], e.Sequence.N)
	}
	for source, n := range highest {
		if count[source] != n {
			fail("source %s counted to %d, %d events were delivered", source, n, count[source])
		}
	}
	for _, e := range published {
		if !seen[e.ID] {
			fail("%s of %s was published and not delivered", e.Type, subject(e))
		}
		delete(seen, e.ID)
	}
	for id := range seen {
		fail("event %s was delivered and not published", id)
	}
	for about, want := range expected {
		if have := got[about]; fmt.Sprint(have) != fmt.Sprint(want) {
			fail("of %s came %v, expected was %v", about, have, want)
		}
	}
	for about, have := range got {
		if _, ok := expected[about]; !ok {
			fail("of %s came %v, expected was nothing", about, have)
		}
	}
	return errors.Join(errs...)
}

// equal is an error unless both are the same.
func equal[T comparable](what string, have, want T) error {
	if have != want {
		return fmt.Errorf("%s is %v, want %v", what, have, want)
	}
	return nil
}

// address is the address in an endpoint, invalid when there is none.
func address(endpoint string) netip.Addr {
	ap, err := netip.ParseAddrPort(endpoint)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}

// summary is what there is to say at the end; what was audited may be claimed.
func (s *story) summary(audited bool) string {
	published, delivered := s.lab.Events.Len(), s.lab.Sink.Len()
	text := ""
	if len(s.connects) > 0 {
		text = latencies(s.connects) + "\n"
	}
	claim := ""
	if audited {
		claim = "; every one signed, in order, none missing"
	}
	return text + fmt.Sprintf("  %d events published, %d webhooks delivered%s\n", published, delivered, claim)
}
