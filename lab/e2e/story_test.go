package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/testreq"
	"github.com/wgherald/wgherald/lab/internal/watch"
	"github.com/wgherald/wgherald/pkg/events"
)

// Where the services serve metrics, in the laboratory's namespace.
const (
	probeMetrics    = "127.0.0.1:9586"
	notifierMetrics = "127.0.0.1:9587"
)

// patience bounds a story in which nothing waits by design but the 10 s until a device is looked at again, which is when a change shows that no packet tells
// of. It is far longer than that: all these tests run at the same time.
const patience = 2 * time.Minute

// story is a laboratory and what is told of it.
type story struct {
	*lab.Lab
	t   *testing.T
	ctx context.Context // bounds the whole story
	log transcript

	names   map[string]string // what the test calls a subject that has no other name
	refused map[string]bool   // ids of the events that the receiver refuses for good
}

// transcript keeps what the services say.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *transcript) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// begin makes a laboratory whose story may take as long as limit. No service is running.
func begin(t *testing.T, limit time.Duration, opts lab.Options) *story {
	t.Helper()
	if unavailable != nil {
		testreq.Skip(t, testreq.E2E, unavailable.Error())
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	s := &story{t: t, ctx: ctx, names: map[string]string{}, refused: map[string]bool{}}
	opts.Log = &s.log
	opts.ProbeEnv = append([]string{"PROBE_METRICS=" + probeMetrics}, opts.ProbeEnv...)
	opts.NotifierEnv = append([]string{"NOTIFIER_METRICS=" + notifierMetrics}, opts.NotifierEnv...)
	var err error
	if s.Lab, err = lab.New(bins, opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the laboratory: %v", err)
		}
		if t.Failed() {
			t.Logf("the services said:\n%s", s.log.String())
			t.Logf("the receiver got:\n%s", s.deliveries())
		}
	})
	for _, c := range s.Clients {
		s.names[c.PublicKey().String()] = c.Name
	}
	return s
}

// told begins a story with everything running.
func told(t *testing.T, limit time.Duration, opts lab.Options) *story {
	t.Helper()
	s := begin(t, limit, opts)
	s.must(s.Start(s.ctx))
	return s
}

func (s *story) must(errs ...error) {
	s.t.Helper()
	for _, err := range errs {
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// connect makes sessions of clients that are down, and returns when they are told.
func (s *story) connect(clients ...*lab.Client) {
	s.t.Helper()
	from := s.Sink.Len()
	for _, c := range clients {
		s.must(c.Connect(s.ctx))
	}
	for _, c := range clients {
		s.await(from, events.PeerConnected, c.PublicKey().String())
	}
}

// await waits for an accepted delivery, not looking at the first from requests.
func (s *story) await(from int, t events.Type, subject string) *events.Event {
	s.t.Helper()
	d, err := s.Delivered(s.ctx, from, t, subject)
	s.must(err)
	return d.Event
}

// awaitRequest waits for a request that matches, accepted or not.
func (s *story) awaitRequest(what string, match func(sink.Delivery) bool) sink.Delivery {
	s.t.Helper()
	d, err := s.Sink.Wait(s.ctx, match)
	if err != nil {
		s.t.Fatalf("no request: %s: %v", what, err)
	}
	return d
}

// expect does something and waits for what is told of it.
func (s *story) expect(t events.Type, subject string, act func() error) *events.Event {
	s.t.Helper()
	from := s.Sink.Len()
	s.must(act())
	return s.await(from, t, subject)
}

// about reports whether a request is about a client.
func about(c *lab.Client) func(sink.Delivery) bool {
	key := c.PublicKey().String()
	return func(d sink.Delivery) bool { return d.Event != nil && d.Event.Subject == key }
}

// device is a client as the hub shows it.
func (s *story) device(c *lab.Client) wgtypes.Peer {
	s.t.Helper()
	d, err := s.Hub.Observe()
	s.must(err)
	i := slices.IndexFunc(d.Peers, func(p wgtypes.Peer) bool { return p.PublicKey == wgtypes.Key(c.PublicKey()) })
	if i < 0 {
		s.t.Fatalf("the hub does not have %s", c.Name)
	}
	return d.Peers[i]
}

// eventually repeats a check until it passes, for what nobody announces.
func (s *story) eventually(check func() error) {
	s.t.Helper()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-s.ctx.Done():
			s.t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// scrape returns a service's metrics.
func (s *story) scrape(address string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, network, addr string) (net.Conn, error) { return s.NS.Dial(network, addr) },
	}}
	resp, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// awaitMetric waits until a service shows a line of metrics.
func (s *story) awaitMetric(address, line string) {
	s.t.Helper()
	s.eventually(func() error {
		text, err := s.scrape(address)
		if err == nil && !strings.Contains("\n"+text, "\n"+line+"\n") {
			err = fmt.Errorf("%s does not show %s", address, line)
		}
		return err
	})
}

// jetStream logs in as one of the identities.
func (s *story) jetStream(identity string) jetstream.JetStream {
	s.t.Helper()
	nc, err := s.Connect(identity)
	s.must(err)
	js, err := jetstream.New(nc)
	s.must(err)
	return js
}

// stored reads the whole stream of events, as the hooks see it.
func (s *story) stored() []jetstream.Msg {
	s.t.Helper()
	stream, err := s.jetStream("wg-provisioner").Stream(s.ctx, events.StreamEvents)
	s.must(err)
	last := stream.CachedInfo().State.LastSeq
	c, err := s.jetStream("notifier").OrderedConsumer(s.ctx, events.StreamEvents, jetstream.OrderedConsumerConfig{})
	s.must(err)
	var msgs []jetstream.Msg
	for uint64(len(msgs)) < last {
		msg, err := c.Next(jetstream.FetchContext(s.ctx))
		s.must(err)
		msgs = append(msgs, msg)
	}
	return msgs
}

// end stops the probe, if it runs, and compares: the stream with what is wanted, and the receiver's ledger with the stream.
//
// What is wanted is, for each subject, what is told of it, in order. Events that the test itself has put into the stream are left out by their place there.
func (s *story) end(want map[string][]string, forged ...uint64) {
	s.t.Helper()
	if s.Probe != nil {
		s.awaitMetric(probeMetrics, "wgherald_probe_events_waiting 0")
		s.must(s.StopProbe())
	}
	told := map[string]*events.Event{} // by id
	bodies := map[string][]byte{}
	last := map[string]events.Sequence{} // by partition key
	numbers := map[string][]uint64{}     // by source
	up := false                          // the interface, as who reads the stream knows
	for i, msg := range s.stored() {
		if slices.Contains(forged, uint64(i+1)) {
			continue
		}
		e, err := events.Decode(msg.Data())
		if err != nil {
			s.t.Fatalf("message %d of the stream: %v", i+1, err)
		}
		if told[e.ID] != nil {
			s.t.Errorf("%s is in the stream twice", describe(e))
		}
		if e.Sequence.Compare(last[e.PartitionKey]) <= 0 {
			s.t.Errorf("%s of %s has sequence %s and comes after %s", e.Type, s.who(e), e.Sequence, last[e.PartitionKey])
		}
		switch d := e.Data.(type) {
		case *events.Up:
			up = true
		case *events.Down:
			up = false
		case *events.Connected, *events.Roamed:
			if !up {
				s.t.Errorf("%s: %s stands in the stream while the interface is down", s.who(e), describe(e))
			}
		case *events.Disconnected:
			if up == (d.Reason == events.InterfaceIsDown) {
				s.t.Errorf("%s: %s stands in the stream while the interface's up is %t", s.who(e), describe(e), up)
			}
		}
		told[e.ID], bodies[e.ID], last[e.PartitionKey] = e, msg.Data(), e.Sequence
		numbers[e.Source] = append(numbers[e.Source], e.Sequence.N)
	}
	for source, have := range numbers {
		slices.Sort(have)
		for i, n := range have {
			if n != uint64(i+1) {
				s.t.Errorf("%s: event %d is missing, the stream has %v", source, i+1, have)
				break
			}
		}
	}
	if diff := cmp.Diff(want, s.history(slices.Collect(maps.Values(told))), cmpopts.EquateEmpty()); diff != "" {
		s.t.Errorf("what is told (-want +got):\n%s", diff)
	}
	s.compareDeliveries(told, bodies)
}

// compareDeliveries waits until the receiver has every event, and checks what it got: those and no others, the same bytes, in order.
func (s *story) compareDeliveries(told map[string]*events.Event, bodies map[string][]byte) {
	s.t.Helper()
	missing := maps.Clone(told)
	for id := range s.refused {
		delete(missing, id)
	}
	_, err := s.Sink.Wait(s.ctx, func(d sink.Delivery) bool {
		if d.OK() {
			delete(missing, d.Event.ID)
		}
		return len(missing) == 0
	})
	if err != nil {
		for _, e := range missing {
			s.t.Errorf("never delivered: %s %s", s.who(e), describe(e))
		}
	}
	last := map[string]events.Sequence{}
	seen := map[string]bool{}
	for _, d := range s.Sink.All() {
		if d.Err != nil {
			s.t.Errorf("a request that is no verified event: %v", d.Err)
			continue
		}
		if !bytes.Equal(d.Body, bodies[d.Event.ID]) {
			s.t.Errorf("the body of %s is not what the stream has", describe(d.Event))
		}
		if s.refused[d.Event.ID] && d.Attempt > 1 {
			s.t.Errorf("%s was refused and is sent again", describe(d.Event))
		}
		if !d.OK() || seen[d.Event.ID] {
			continue
		}
		seen[d.Event.ID] = true
		if key := d.Event.PartitionKey; d.Event.Sequence.Compare(last[key]) <= 0 {
			s.t.Errorf("%s: delivered out of order: %s", s.who(d.Event), describe(d.Event))
		} else {
			last[key] = d.Event.Sequence
		}
	}
}

// who is what the test calls what an event is about.
func (s *story) who(e *events.Event) string {
	if name, ok := s.names[e.Subject]; ok {
		return name
	}
	return e.Subject
}

// history tells events in words, for each subject in the order of their sequence.
func (s *story) history(list []*events.Event) map[string][]string {
	slices.SortFunc(list, func(a, b *events.Event) int { return a.Sequence.Compare(b.Sequence) })
	h := map[string][]string{}
	for _, e := range list {
		h[s.who(e)] = append(h[s.who(e)], describe(e))
	}
	return h
}

// deliveries is the receiver's ledger in words.
func (s *story) deliveries() string {
	var b strings.Builder
	for _, d := range s.Sink.All() {
		fmt.Fprintf(&b, "%s attempt %d, answered %d: ", d.At.Format("15:04:05.000"), d.Attempt, d.Status)
		if d.Event == nil {
			fmt.Fprintln(&b, d.Err)
			continue
		}
		fmt.Fprintf(&b, "%s %s (%s) %s\n", s.who(d.Event), describe(d.Event), d.Event.Sequence, d.Event.Time.Format("15:04:05.000"))
	}
	return b.String()
}

// describe tells an event in words, without what differs from run to run.
func describe(e *events.Event) string {
	var text string
	switch d := e.Data.(type) {
	case *events.Started:
		text = "started, " + string(d.Trigger)
	case *events.Stopped:
		text = "stopped"
	case *events.Up:
		text = fmt.Sprintf("up, %d peers", d.Peers)
	case *events.Down:
		text = "down: " + string(d.Reason)
	case *events.DeviceChanged:
		text = "changed"
		if c := d.Changes.ListenPort; c != nil {
			text += fmt.Sprintf(" port from %d to %d", c.From, c.To)
		}
		if d.Changes.PublicKey != nil {
			text += " key"
		}
	case *events.Connected:
		text = "connected from " + host(d.Peer.Endpoint)
		if d.Session.Resumed {
			text += ", resumed"
		}
	case *events.Disconnected:
		text = "disconnected: " + string(d.Reason)
	case *events.Roamed:
		text = "roamed from " + host(d.From) + " to " + host(d.To)
		if host(d.From) == host(d.To) {
			text = "roamed to another port of " + host(d.To)
		}
	case *events.Stalled:
		text = "stalled"
	case *events.Rejected:
		text = "rejected from " + host(d.Endpoint)
	case *events.Added:
		text = "added"
	case *events.Removed:
		text = "removed"
	case *events.Changed:
		var what []string
		if c := d.Changes.AllowedIPs; c != nil {
			what = append(what, fmt.Sprintf("allowed IPs from %v to %v", c.From, c.To))
		}
		if c := d.Changes.KeepaliveSeconds; c != nil {
			what = append(what, fmt.Sprintf("keepalive from %d to %d", c.From, c.To))
		}
		if c := d.Changes.PresharedKey; c != "" {
			what = append(what, "preshared key "+string(c))
		}
		text = "changed: " + strings.Join(what, ", ")
	default:
		text = string(e.Type)
	}
	if e.Common().Inferred {
		text += ", inferred"
	}
	return text
}

func host(endpoint string) string {
	ap, err := netip.ParseAddrPort(endpoint)
	if err != nil {
		return endpoint
	}
	return ap.Addr().String()
}

// nth matches the message of a client's event that is the nth of its type.
func nth(n int, t events.Type, c *lab.Client) func(watch.Message) bool {
	key := c.PublicKey().String()
	return func(m watch.Message) bool {
		if m.Event != nil && m.Event.Type == t && m.Event.Subject == key {
			n--
		}
		return n == 0
	}
}
