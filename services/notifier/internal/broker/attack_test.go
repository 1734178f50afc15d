package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
)

// Neither the reply subject of a request nor the deliver subject of a consumer is held against a client's permissions: the server itself publishes there, in the
// account of the client, with rights of its own. So each identity tries here all that it may ask for, with every such subject that would destroy or forge
// something if it were taken for a request.

// external is a nats-server of two probes that are bound to their nodes.
type external struct {
	*server.Server
	dir string
}

const probe1, probe2 = Probe + "-1", Probe + "-2" // of vpn-1 and vpn-2

func (e external) URL() string                     { return e.ClientURL() }
func (e external) IdentityFile(name string) string { return IdentityFile(e.dir, name) }

// startExternal runs it with its streams for the length of the test, after change had its way with the configuration.
func startExternal(t testing.TB, change func(conf string) string) external {
	t.Helper()
	e := serveExternal(t, change)
	p := e.provisioners(t)
	if _, err := Provision(t.Context(), p, false, discard); err != nil {
		t.Fatal(err)
	}
	if err := AwaitMirrors(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return e
}

// serveExternal is startExternal without streams.
func serveExternal(t testing.TB, change func(conf string) string) external {
	t.Helper()
	e := external{dir: t.TempDir()}
	chmod(t, e.dir)
	opts := e.configure(t, change, probe1, probe2)
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(startTimeout) {
		t.Fatal("the broker does not start")
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	e.Server = s
	return e
}

func (e external) provisioners(t testing.TB) Provisioners {
	return Provisioners{login(t, e, WGProvisioner).Conn, login(t, e, HooksProvisioner).Conn, login(t, e, ReadersProvisioner).Conn}
}

// configure writes a configuration with these probes and returns it as the server reads it.
func (e external) configure(t testing.TB, change func(conf string) string, probes ...string) *server.Options {
	t.Helper()
	keys, err := EnsureIdentities(e.dir, append(Identities(), probes...)...)
	if err != nil {
		t.Fatal(err)
	}
	c := ServerConfig{
		Listen: "127.0.0.1:0", StoreDir: filepath.Join(e.dir, "jetstream"),
		WGProvisioner: keys[WGProvisioner], HooksProvisioner: keys[HooksProvisioner], ReadersProvisioner: keys[ReadersProvisioner],
		Notifiers: []string{keys[Notifier]}, Operators: []string{keys[Operator]}, Readers: []string{keys[Reader]},
	}
	for _, p := range probes {
		name := strings.TrimPrefix(p, Probe+"-")
		c.Probes = append(c.Probes, ProbeUser{Name: name, Node: "vpn-" + name, Key: keys[p]})
	}
	text, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	conf := string(text)
	if change != nil {
		conf = change(conf)
	}
	file := filepath.Join(e.dir, "nats.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, conf)
	}
	opts.NoSigs, opts.NoLog = true, true
	return opts
}

// holdings are the streams of each account, with the identity that may ask about them.
var holdings = []struct {
	identity string
	streams  []string
}{
	{WGProvisioner, names(truth())}, {HooksProvisioner, names(hookStreams(true))}, {ReadersProvisioner, names(readerStreams())},
}

// attack is a broker with something to lose in each stream.
type attack struct {
	*testing.T
	e      site
	owners []client
}

func newAttack(t *testing.T, e site, probe client) *attack {
	a := &attack{T: t, e: e}
	for _, h := range holdings {
		a.owners = append(a.owners, login(t, e, h.identity))
	}
	publish(t, probe, "wg.peer.connected", "true")
	publish(t, probe, "$KV.WG_PEERS.vpn-1.wg0.peer", "true")
	publish(t, login(t, e, Notifier), SubjectDead+"a", "")
	publish(t, login(t, e, Notifier), SubjectAttempt+"a", "")
	publish(t, login(t, e, Operator), SubjectRetry+"a", "")
	a.wantStored("WG_EVENTS", 1)
	a.wantStored("KV_WG_PEERS", 1)
	return a
}

// census counts the messages of every stream; one that is gone is missing.
func (a *attack) census() map[string]uint64 {
	a.Helper()
	counts := map[string]uint64{}
	for i, h := range holdings {
		for _, stream := range h.streams {
			s, err := a.owners[i].js.Stream(a.Context(), stream)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				continue
			}
			if err != nil {
				a.Fatalf("%s asks about %s: %v", h.identity, stream, err)
			}
			counts[strings.TrimSuffix(h.identity, "-provisioner")+" "+stream] = s.CachedInfo().State.Msgs
		}
	}
	return counts
}

// wantStored waits until a stream and its mirrors have that many messages.
func (a *attack) wantStored(stream string, n uint64) {
	a.Helper()
	waitFor(a, func() bool {
		for i, h := range holdings {
			for _, s := range h.streams {
				if s == stream && streamMessages(a.T, a.owners[i], s) != n {
					return false
				}
			}
		}
		return true
	})
}

// wantIntact fails unless every stream holds what it held, and more where it is said.
func (a *attack) wantIntact(before map[string]uint64, more map[string]uint64) {
	a.Helper()
	for stream, n := range more {
		before[stream] += n
	}
	var diff string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) { // mirrors come after
		if diff = cmp.Diff(before, a.census()); diff == "" || time.Now().After(end) {
			break
		}
	}
	if diff != "" {
		a.Errorf("messages (-want +have):\n%s", diff)
	}
	// What came about late, if anything.
	time.Sleep(50 * time.Millisecond)
	if diff := cmp.Diff(before, a.census()); diff != "" {
		a.Errorf("messages, a little later (-want +have):\n%s", diff)
	}
}

// harmful are the subjects that no answer may be delivered to.
func harmful() []string {
	list := []string{
		"wg.peer.forged", "wg.interface.forged", "$KV.WG_PEERS.vpn-2.wg0.forged", "$KV.WG_PEERS.vpn-1.wg0.peer",
		"wgmirror.x", "JS.WG.API.CONSUMER.CREATE.WG_EVENTS", "$JS.API.STREAM.CREATE.X",
	}
	for _, stream := range names(hookStreams(true)) {
		for _, verb := range []string{"STREAM.DELETE", "STREAM.PURGE", "STREAM.UPDATE", "STREAM.MSG.DELETE", "STREAM.RESTORE"} {
			list = append(list, "$JS.API."+verb+"."+stream)
		}
	}
	return list
}

// request is something that an identity may ask for.
type request struct{ subject, body string }

// ask sends each request with each harmful reply subject and returns how many times each was sent.
func (a *attack) ask(c client, requests ...request) uint64 {
	a.Helper()
	for _, r := range requests {
		for _, reply := range harmful() {
			if err := c.PublishRequest(r.subject, reply, []byte(r.body)); err != nil {
				a.Fatal(err)
			}
		}
	}
	c.wantAllowed(a.T)
	return uint64(len(harmful()))
}

func TestProbeCannotDestroyOrForgeByAReplySubject(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		start    func(testing.TB) site
		identity string
	}{
		"embedded broker":  {func(t testing.TB) site { return startBroker(t) }, Probe},
		"bound to a node":  {func(t testing.TB) site { return startExternal(t, nil) }, probe1},
		"beside a mapping": {func(t testing.TB) site { return startExternal(t, withoutRefusals) }, probe1}, // its account alone is enough
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := tt.start(t)
			probe := login(t, e, tt.identity)
			a := newAttack(t, e, probe)
			before := a.census()
			n := a.ask(probe, request{"wg.peer.connected", "true"}, request{"wg.interface.up", ""}, request{"$KV.WG_PEERS.vpn-1.wg0.peer", "true"})
			a.wantIntact(before, map[string]uint64{"wg WG_EVENTS": 2 * n, "hooks WG_EVENTS": 2 * n, "readers WG_EVENTS": 2 * n}) // what it may publish
		})
	}
}

// withoutRefusals takes the lines out of a configuration that lead requests to delete or purge nowhere.
func withoutRefusals(conf string) string {
	var kept []string
	for line := range strings.Lines(conf) {
		if !strings.Contains(line, "wgherald.refused") {
			kept = append(kept, line)
		} else if strings.HasSuffix(strings.TrimSpace(line), "} }") {
			kept = append(kept, "} }\n")
		}
	}
	return strings.Join(kept, "")
}

func TestNotifierCannotDestroyByAReplyOrDeliverSubject(t *testing.T) {
	t.Parallel()
	e := startExternal(t, nil)
	probe, notifier := login(t, e, probe1), login(t, e, Notifier)
	a := newAttack(t, e, probe)
	hookConsumer(t, notifier)
	createConsumer(t, notifier, StreamRetry, "pull", `"ack_policy":"explicit"`)
	before := a.census()

	n := a.ask(notifier,
		request{"$JS.API.STREAM.INFO.WG_DEAD", ""}, request{"$JS.API.CONSUMER.INFO.WG_EVENTS.hook-a", ""},
		request{"$JS.API.CONSUMER.MSG.NEXT.WG_EVENTS.hook-a", `{"batch":1,"group":"hook","no_wait":true}`}, // its answers have no body where nothing is left
		request{"$JS.API.CONSUMER.MSG.NEXT.WG_RETRY.pull", `{"batch":1,"no_wait":true}`},                   // a message without a body
		request{"$JS.ACK.WG_EVENTS.hook-a.1.1.1.1.1", "+WPI"}, request{SubjectDead + "a", ""}, request{SubjectAttempt + "a", ""},
	)
	for i, target := range harmful() {
		// Of a message, the headers alone are delivered: its body is then as empty as that of a request to delete.
		createConsumer(t, notifier, events.StreamEvents, fmt.Sprint("headers-", i), `"ack_policy":"none","headers_only":true,"deliver_subject":"`+target+`"`)
		createConsumer(t, notifier, events.StreamEvents, fmt.Sprint("whole-", i), `"ack_policy":"none","deliver_subject":"`+target+`"`)
	}
	a.wantIntact(before, map[string]uint64{"hooks WG_DEAD": n, "hooks WG_ATTEMPTS": n}) // what it may publish
	notifier.wantAllowed(t)
}

func TestOperatorCannotDestroyByAReplySubject(t *testing.T) {
	t.Parallel()
	e := startExternal(t, nil)
	a := newAttack(t, e, login(t, e, probe1))
	operator := login(t, e, Operator)
	before := a.census()
	n := a.ask(operator,
		request{"$JS.API.STREAM.INFO.WG_DEAD", ""}, request{"$JS.API.STREAM.MSG.GET.WG_DEAD", `{"seq":1}`}, request{"$JS.API.STREAM.MSG.GET.WG_DEAD", `{"seq":1000}`},
		request{"$JS.API.STREAM.MSG.GET.WG_ATTEMPTS", `{"seq":1}`}, request{"$JS.API.STREAM.MSG.GET.WG_DEAD", "no JSON"},
		request{"$JS.API.STREAM.MSG.DELETE.WG_DEAD", `{"seq":1000}`}, request{SubjectRetry + "a", ""},
	)
	a.wantIntact(before, map[string]uint64{"hooks WG_RETRY": n})
}

func TestReaderCannotDestroyByAReplyOrDeliverSubject(t *testing.T) {
	t.Parallel()
	e := startExternal(t, nil)
	a := newAttack(t, e, login(t, e, probe1))
	reader := login(t, e, Reader)
	createConsumer(t, reader, events.StreamEvents, "pull", `"ack_policy":"none"`)
	before := a.census()
	a.ask(reader,
		request{"$JS.API.STREAM.INFO.WG_EVENTS", ""}, request{"$JS.API.DIRECT.GET.KV_WG_PEERS", `{"seq":1000}`}, request{"$JS.API.DIRECT.GET.WG_EVENTS", `{"seq":1}`},
		request{"$JS.API.CONSUMER.MSG.NEXT.WG_EVENTS.pull", `{"batch":1,"no_wait":true}`}, request{"$JS.API.CONSUMER.INFO.WG_EVENTS.pull", ""},
	)
	for i, target := range harmful() {
		createConsumer(t, reader, events.StreamState, fmt.Sprint("headers-", i), `"ack_policy":"none","headers_only":true,"deliver_subject":"`+target+`"`)
	}
	a.wantIntact(before, nil)
	reader.wantAllowed(t)
}

// The controls: without the two lines, one reply subject destroys a stream. (A deliver subject does not: a message keeps its own subject on the way into another
// account, and JetStream goes by it.)
func TestWithoutTheRefusalsAStreamCanBeDestroyed(t *testing.T) {
	t.Parallel()
	gone := func(t *testing.T, c client, stream string) {
		t.Helper()
		waitFor(t, func() bool {
			_, err := c.js.Stream(t.Context(), stream)
			return errors.Is(err, jetstream.ErrStreamNotFound)
		})
	}
	t.Run("by the reply subject of a direct get", func(t *testing.T) {
		t.Parallel()
		reader := login(t, startExternal(t, withoutRefusals), Reader)
		if err := reader.PublishRequest("$JS.API.DIRECT.GET.KV_WG_PEERS", "$JS.API.STREAM.DELETE.WG_EVENTS", []byte(`{"seq":1000}`)); err != nil {
			t.Fatal(err)
		}
		gone(t, reader, events.StreamEvents)
	})
	t.Run("by the reply subject of a pull", func(t *testing.T) {
		t.Parallel()
		notifier := login(t, startExternal(t, withoutRefusals), Notifier)
		createConsumer(t, notifier, events.StreamEvents, "x", `"ack_policy":"none"`)
		if err := notifier.PublishRequest("$JS.API.CONSUMER.MSG.NEXT.WG_EVENTS.x", "$JS.API.STREAM.DELETE.WG_DEAD", []byte(`{"batch":1,"no_wait":true}`)); err != nil {
			t.Fatal(err)
		}
		gone(t, notifier, StreamDead)
	})
}

// Whoever asks, and however rightfully: there is no such request.
func TestNobodyDeletesOrPurgesAStream(t *testing.T) {
	t.Parallel()
	e := startExternal(t, nil)
	a := newAttack(t, e, login(t, e, probe1))
	before := a.census()
	for i, h := range holdings {
		for _, stream := range h.streams {
			for _, verb := range []string{"DELETE", "PURGE"} {
				_, err := a.owners[i].Request("$JS.API.STREAM."+verb+"."+stream, nil, 5*time.Second)
				if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, nats.ErrTimeout) {
					t.Errorf("%s asks to %s %s: %v", h.identity, verb, stream, err)
				}
			}
		}
	}
	a.wantIntact(before, nil)
}

func TestProbeIsBoundToItsNode(t *testing.T) {
	t.Parallel()
	e := startExternal(t, nil)
	one, two := login(t, e, probe1), login(t, e, probe2)
	a := newAttack(t, e, one)
	before := a.census()
	for _, subject := range []string{"$KV.WG_PEERS.vpn-2.wg0.peer", "$KV.WG_PEERS.vpn-11.wg0.peer", "$KV.WG_PEERS.vpn-1"} {
		if err := one.Publish(subject, []byte("forged")); err != nil {
			t.Fatal(err)
		}
		one.wantDenied(t, subject)
	}
	// Each has an account of its own: neither hears what is sent to the other, nor reaches it.
	inbox, err := two.SubscribeSync(InboxPrefix(Probe) + ".>")
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := one.PublishRequest("wg.peer.connected", InboxPrefix(Probe)+".guessed", []byte("true")); err != nil {
		t.Fatal(err)
	}
	publish(t, one, "wg.peer.connected", "true") // its ack has come, and the one before it went
	if err := two.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _, err := inbox.Pending(); n != 0 || err != nil {
		t.Errorf("one probe got %d acks of another, %v", n, err)
	}
	a.wantIntact(before, map[string]uint64{"wg WG_EVENTS": 2, "hooks WG_EVENTS": 2, "readers WG_EVENTS": 2})
}

// A broker that has the streams and not what their mirrors need, because its configuration was not read again.
func TestProvisionNamesAMirrorThatDoesNotRun(t *testing.T) {
	t.Parallel()
	e := serveExternal(t, func(conf string) string {
		return strings.ReplaceAll(conf, `to: "JS.WG.API.CONSUMER.CREATE.KV_WG_PEERS`, `to: "nowhere.KV_WG_PEERS`)
	})
	p := e.provisioners(t)
	if _, err := Provision(t.Context(), p, false, discard); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errors.New("not within 3 s"))
	defer cancel()
	err := AwaitMirrors(ctx, p)
	for _, want := range []string{"KV_WG_PEERS", "HOOKS", "not within 3 s", "notifier keys"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

func TestPublishLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	e := startExternal(t, nil)
	probe := login(t, e, probe1)
	wg, err := e.LookupAccount("WG")
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		publish(t, probe, "wg.peer.connected", "true")
	}
	// The server forgets an answer when it has been sent, a moment after it arrives; one that never comes, after 10 s.
	n := wg.NumPendingAllResponses()
	for end := time.Now().Add(5 * time.Second); n != 0 && time.Now().Before(end); n = wg.NumPendingAllResponses() {
		time.Sleep(5 * time.Millisecond)
	}
	if n != 0 {
		t.Errorf("%d answers are kept", n)
	}
}

// A probe that is added or removed while everything goes on. A server that reads its configuration again (2.15) does not start the imports of an account that is new
// to it; it does when it reads it once more.
func TestProbesComeAndGoWithoutARestart(t *testing.T) {
	t.Parallel()
	e := startExternal(t, nil)
	one, two, reader, notifier := login(t, e, probe1), login(t, e, probe2), login(t, e, Reader), login(t, e, Notifier)
	reload := func(probes ...string) {
		t.Helper()
		for range 2 {
			if err := e.ReloadOptions(e.configure(t, nil, probes...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	live, err := reader.SubscribeSync("wg.peer.*")
	if err != nil {
		t.Fatal(err)
	}
	const probe3 = Probe + "-3"
	reload(probe1, probe2, probe3)
	three := login(t, e, probe3)
	for _, c := range []client{one, two, three} {
		publish(t, c, "wg.peer.connected", c.identity)
		if msg, err := live.NextMsg(5 * time.Second); err != nil || string(msg.Data) != c.identity {
			t.Errorf("a reader hears %v of %s, %v", msg, c.identity, err)
		}
	}
	publish(t, three, "$KV.WG_PEERS.vpn-3.wg0.peer", "{}")
	waitFor(t, func() bool { return streamMessages(t, notifier, events.StreamEvents) == 3 })

	reload(probe1, probe3)
	waitFor(t, func() bool { return !two.IsConnected() })
	for _, c := range []client{one, three} {
		publish(t, c, "wg.peer.connected", c.identity)
	}
	waitFor(t, func() bool { return streamMessages(t, notifier, events.StreamEvents) == 5 })
	opt, err := nats.NkeyOptionFromSeed(e.IdentityFile(probe2))
	if err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect(e.URL(), opt); !errors.Is(err, nats.ErrAuthorization) {
		nc.Close()
		t.Errorf("a removed probe logs in: %v", err)
	}
	if one.Stats().Reconnects+three.Stats().Reconnects+notifier.Stats().Reconnects+reader.Stats().Reconnects != 0 {
		t.Error("the others lost their connections")
	}
}

// BenchmarkPublish compares a probe, whose publishes and acks cross accounts, with a login inside the account of the stream: one by one, and 64 in flight.
func BenchmarkPublish(b *testing.B) {
	e := startExternal(b, func(conf string) string { // the provisioner stands in for such a login
		return strings.Replace(conf, `publish: { allow: [ "$JS.API.STREAM.*.WG_EVENTS"`, `publish: { allow: [ "wg.peer.*", "$JS.API.STREAM.*.WG_EVENTS"`, 1)
	})
	body := make([]byte, 500)
	for name, identity := range map[string]string{"account of its own": probe1, "account of the stream": WGProvisioner} {
		c := login(b, e, identity)
		b.Run("one by one/"+name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := c.js.Publish(b.Context(), "wg.peer.connected", body); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
		})
		b.Run("64 in flight/"+name, func(b *testing.B) {
			js, err := jetstream.New(c.Conn, jetstream.WithPublishAsyncMaxPending(64))
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := js.PublishAsync("wg.peer.connected", body, jetstream.WithStallWait(time.Minute)); err != nil {
					b.Fatal(err)
				}
			}
			<-js.PublishAsyncComplete()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
