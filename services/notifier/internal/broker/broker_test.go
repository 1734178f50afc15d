package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
)

var discard = slog.New(slog.NewTextHandler(io.Discard, nil))

// startBroker runs an embedded broker for the length of the test.
func startBroker(t testing.TB) *Embedded {
	t.Helper()
	e, err := StartEmbedded(t.Context(), EmbeddedOptions{
		StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", Log: discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	return e
}

// client is a logged-in identity.
type client struct {
	identity string
	*nats.Conn
	js     jetstream.JetStream
	denied chan error // what the broker refused, which reaches a client only asynchronously
}

// site is a broker that runs: the embedded one, or one of broker.ServerConfig.
type site interface {
	URL() string
	IdentityFile(name string) string
}

func login(t testing.TB, e site, identity string) client {
	t.Helper()
	role := identity
	if strings.HasPrefix(identity, Probe+"-") {
		role = Probe
	}
	denied := make(chan error, 64)
	opt, err := nats.NkeyOptionFromSeed(e.IdentityFile(identity))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(e.URL(), opt, nats.CustomInboxPrefix(InboxPrefix(role)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				denied <- err
			}
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return client{identity, nc, js, denied}
}

// wantDenied fails unless the broker refused something that names subject.
func (c client) wantDenied(t *testing.T, subject string) {
	t.Helper()
	select {
	case err := <-c.denied:
		if !strings.Contains(err.Error(), `"`+subject+`"`) {
			t.Errorf("refused %v, want a refusal of %q", err, subject)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("no refusal of %q", subject)
	}
}

// wantAllowed fails if the broker refused anything so far. Refusals come in order, before the answer to a flush.
func (c client) wantAllowed(t *testing.T) {
	t.Helper()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-c.denied:
		t.Error(err)
	default:
	}
}

func publish(t testing.TB, c client, subject, body string) *jetstream.PubAck {
	t.Helper()
	ack, err := c.js.Publish(t.Context(), subject, []byte(body))
	if err != nil {
		t.Fatalf("publish %s: %v", subject, err)
	}
	return ack
}

// hookConsumer is the consumer that a hook has on the mirror.
func hookConsumer(t testing.TB, c client) jetstream.Consumer {
	t.Helper()
	cons, err := c.js.CreateOrUpdateConsumer(t.Context(), events.StreamEvents, jetstream.ConsumerConfig{
		Durable: "hook-a", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Minute, MaxDeliver: -1, MaxAckPending: 1000,
		PriorityPolicy: jetstream.PriorityPolicyPinned, PinnedTTL: 30 * time.Second, PriorityGroups: []string{"hook"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return cons
}

// createConsumer asks for a consumer without the checks of the library.
func createConsumer(t *testing.T, c client, stream, name, config string) {
	t.Helper()
	resp, err := c.Request("$JS.API.CONSUMER.CREATE."+stream+"."+name, fmt.Appendf(nil,
		`{"stream_name":%q,"config":{"name":%q,"durable_name":%q,"deliver_policy":"all",%s}}`, stream, name, name, config), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(resp.Data), `"error"`) {
		t.Fatalf("consumer %s: %s", name, resp.Data)
	}
}

func streamMessages(t *testing.T, c client, stream string) uint64 {
	t.Helper()
	s, err := c.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

func TestEventReachesTheNotifierThroughTheMirror(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	probe, notifier := login(t, e, Probe), login(t, e, Notifier)

	ack := publish(t, probe, "wg.peer.connected", "event")
	if ack.Stream != events.StreamEvents {
		t.Errorf("stored in %s", ack.Stream)
	}
	cons := hookConsumer(t, notifier)
	msgs, err := cons.Messages(jetstream.PullPriorityGroup("hook"), jetstream.PullMaxMessages(16))
	if err != nil {
		t.Fatal(err)
	}
	defer msgs.Stop()
	msg, err := msgs.Next(jetstream.NextContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if msg.Subject() != "wg.peer.connected" || string(msg.Data()) != "event" {
		t.Errorf("received %s %q", msg.Subject(), msg.Data())
	}
	meta, err := msg.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	if meta.Sequence.Stream != ack.Sequence {
		t.Errorf("the mirror has it as %d, the stream as %d", meta.Sequence.Stream, ack.Sequence)
	}
	if err := msg.InProgress(); err != nil {
		t.Error(err)
	}
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Errorf("double ack: %v", err)
	}
	info, err := cons.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.AckFloor.Stream != ack.Sequence || info.NumAckPending != 0 {
		t.Errorf("ack floor %d with %d pending, want %d with 0", info.AckFloor.Stream, info.NumAckPending, ack.Sequence)
	}
	notifier.wantAllowed(t)
}

func TestWhatEachIdentityMayDo(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	probe, notifier := login(t, e, Probe), login(t, e, Notifier)
	operator, reader := login(t, e, Operator), login(t, e, Reader)

	t.Run("probe publishes events and the peers' state", func(t *testing.T) {
		for _, subject := range []string{"wg.peer.connected", "wg.interface.up", "wg.probe.started"} {
			publish(t, probe, subject, "{}")
		}
		key := events.StateKey("vpn-1.example", "wg0", events.Key{1})
		if ack := publish(t, probe, "$KV.WG_PEERS."+key, "{}"); ack.Stream != events.StreamState {
			t.Errorf("state stored in %s", ack.Stream)
		}
		gone := nats.NewMsg("$KV.WG_PEERS." + key)
		gone.Header.Set("KV-Operation", "DEL")
		gone.Header.Set("Nats-TTL", "24h")
		if _, err := probe.js.PublishMsg(t.Context(), gone); err != nil {
			t.Errorf("mark a removed peer: %v", err)
		}
		rollup := nats.NewMsg("$KV.WG_PEERS." + key)
		rollup.Header.Set("Nats-Rollup", "all")
		if _, err := probe.js.PublishMsg(t.Context(), rollup); err == nil {
			t.Error("a roll-up emptied the bucket")
		}
		probe.wantAllowed(t)
	})
	t.Run("reader reads peers' state from its mirror", func(t *testing.T) {
		publish(t, probe, events.StateSubject(events.StateKey("vpn-1", "wg0", events.Key{2})), "online")
		waitFor(t, func() bool { return streamMessages(t, reader, events.StreamState) > 1 })
		kv, err := reader.js.KeyValue(t.Context(), events.StateBucket)
		if err != nil {
			t.Fatal(err)
		}
		gone, there := events.StateKey("vpn-1.example", "wg0", events.Key{1}), events.StateKey("vpn-1", "wg0", events.Key{2})
		if _, err := kv.Get(t.Context(), gone); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("get a deleted key: %v", err) // the marker itself has come, so the answer is the mirror's
		}
		if entry, err := kv.Get(t.Context(), there); err != nil || string(entry.Value()) != "online" {
			t.Errorf("get a key: %v, %v", entry, err)
		}
		watcher, err := kv.WatchAll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for entry := range watcher.Updates() {
			if entry == nil {
				break // all that there was
			}
			keys = append(keys, entry.Key()+" "+entry.Operation().String())
		}
		if diff := cmp.Diff([]string{gone + " KeyValueDeleteOp", there + " KeyValuePutOp"}, keys); diff != "" {
			t.Errorf("keys (-want +have):\n%s", diff)
		}
		if err := watcher.Stop(); err != nil {
			t.Error(err)
		}
		reader.wantAllowed(t)
	})
	t.Run("reader follows its mirror of the events with a durable consumer", func(t *testing.T) {
		cons, err := reader.js.CreateOrUpdateConsumer(t.Context(), events.StreamEvents, jetstream.ConsumerConfig{
			Durable: "inventory", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "wg.peer.*",
		})
		if err != nil {
			t.Fatal(err)
		}
		msg, err := cons.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := msg.DoubleAck(t.Context()); err != nil || msg.Subject() != "wg.peer.connected" {
			t.Errorf("%s, %v", msg.Subject(), err)
		}
		s, err := reader.js.Stream(t.Context(), events.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.GetMsg(t.Context(), 1); err != nil {
			t.Errorf("read the first event: %v", err)
		}
		if err := s.DeleteConsumer(t.Context(), "inventory"); err != nil {
			t.Error(err)
		}
		reader.wantAllowed(t)
	})
	t.Run("notifier writes dead letters and attempts", func(t *testing.T) {
		for subject, stream := range map[string]string{SubjectDead + "a": StreamDead, SubjectAttempt + "a": StreamAttempt} {
			if ack := publish(t, notifier, subject, "{}"); ack.Stream != stream {
				t.Errorf("%s stored in %s", subject, ack.Stream)
			}
		}
		for _, stream := range []string{events.StreamEvents, StreamRetry, StreamDead, StreamAttempt} {
			if _, err := notifier.js.Stream(t.Context(), stream); err != nil {
				t.Errorf("info of %s: %v", stream, err)
			}
		}
		notifier.wantAllowed(t)
	})
	t.Run("notifier manages its consumers", func(t *testing.T) {
		cons := hookConsumer(t, notifier)
		hookConsumer(t, notifier) // again, which updates
		if _, err := cons.Info(t.Context()); err != nil {
			t.Error(err)
		}
		s, err := notifier.js.Stream(t.Context(), events.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		names := s.ConsumerNames(t.Context())
		if got := slices.Collect(chanSeq(names.Name())); !slices.Contains(got, "hook-a") || names.Err() != nil {
			t.Errorf("consumers %v, %v", got, names.Err())
		}
		// nobody is pinned, which the broker says; what matters is that it answers
		if err := s.UnpinConsumer(t.Context(), "hook-a", "hook"); errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := s.DeleteConsumer(t.Context(), "hook-a"); err != nil {
			t.Error(err)
		}
		notifier.wantAllowed(t)
	})
	t.Run("operator replays to a hook, which takes it", func(t *testing.T) {
		publish(t, operator, SubjectRetry+"a", "{}")
		cons, err := notifier.js.CreateOrUpdateConsumer(t.Context(), StreamRetry, jetstream.ConsumerConfig{
			Durable: "hook-a", FilterSubject: SubjectRetry + "a", AckPolicy: jetstream.AckExplicitPolicy,
		})
		if err != nil {
			t.Fatal(err)
		}
		msg, err := cons.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Error(err)
		}
		operator.wantAllowed(t)
		notifier.wantAllowed(t)
	})
	t.Run("operator reads and deletes dead letters", func(t *testing.T) {
		ack := publish(t, notifier, SubjectDead+"b", "dead")
		s, err := operator.js.Stream(t.Context(), StreamDead)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.GetLastMsgForSubject(t.Context(), SubjectDead+"b"); err != nil {
			t.Error(err)
		}
		if msg, err := s.GetMsg(t.Context(), 1, jetstream.WithGetMsgSubject(SubjectDead+"b")); err != nil || string(msg.Data) != "dead" {
			t.Errorf("read %v, %v", msg, err)
		}
		if err := s.DeleteMsg(t.Context(), ack.Sequence); err != nil {
			t.Error(err)
		}
		publish(t, notifier, SubjectAttempt+"b", "attempt")
		attempts, err := operator.js.Stream(t.Context(), StreamAttempt)
		if err != nil {
			t.Fatal(err)
		}
		if msg, err := attempts.GetMsg(t.Context(), 1, jetstream.WithGetMsgSubject(SubjectAttempt+"b")); err != nil || string(msg.Data) != "attempt" {
			t.Errorf("read %v, %v", msg, err)
		}
		operator.wantAllowed(t)
	})
	t.Run("reader sees live events", func(t *testing.T) {
		for _, filter := range []string{"wg.peer.*", "wg.interface.*", "wg.probe.*"} {
			sub, err := reader.SubscribeSync(filter)
			if err != nil {
				t.Fatal(err)
			}
			reader.wantAllowed(t)
			publish(t, probe, strings.Replace(filter, "*", "changed", 1), "live")
			if msg, err := sub.NextMsg(5 * time.Second); err != nil || string(msg.Data) != "live" {
				t.Errorf("%s: %v, %v", filter, msg, err)
			}
		}
		reader.wantAllowed(t)
	})
}

func TestWhatNoIdentityMayDo(t *testing.T) {
	t.Parallel()
	e := startBroker(t)

	publishes := map[string][]string{
		Probe: {
			"wg.dead.a", "wg.attempt.a", "wg.retry.a", "$KV.OTHER.a", "wg.peer.connected.more", "$JS.API.INFO", "$JS.API.STREAM.INFO.WG_EVENTS",
			"$JS.API.STREAM.PURGE.WG_EVENTS", "$JS.API.STREAM.DELETE.WG_EVENTS", "$JS.API.STREAM.UPDATE.WG_EVENTS", "$JS.API.STREAM.CREATE.X",
			"$JS.API.CONSUMER.CREATE.WG_EVENTS.x", "$JS.API.CONSUMER.MSG.NEXT.WG_EVENTS.x", "$JS.API.DIRECT.GET.KV_WG_PEERS.x", "$JS.ACK.WG_EVENTS.x",
			"wgmirror.x", "_INBOX_notifier.x",
		},
		Notifier: {
			"wg.peer.connected", "wg.interface.up", "wg.probe.started", "wg.retry.a", "$KV.WG_PEERS.a.b.c",
			"JS.WG.API.CONSUMER.CREATE.WG_EVENTS", "JS.WG.API.CONSUMER.CREATE.WG_EVENTS.x", "JS.WG.API.CONSUMER.DELETE.WG_EVENTS.x",
			"JS.WG.API.CONSUMER.CREATE.KV_WG_PEERS.x", "JS.WG.ACK.WG_EVENTS.x", "$JS.FC.WG_EVENTS.x", "wgmirror.x",
			"$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.WG_EVENTS", "$JS.API.STREAM.DELETE.WG_EVENTS", "$JS.API.STREAM.PURGE.WG_EVENTS",
			"$JS.API.STREAM.MSG.DELETE.WG_EVENTS", "$JS.API.STREAM.DELETE.WG_DEAD", "$JS.API.STREAM.MSG.DELETE.WG_DEAD",
			"$JS.API.CONSUMER.CREATE.KV_WG_PEERS.x", "$JS.API.DIRECT.GET.KV_WG_PEERS", "$JS.API.DIRECT.GET.KV_WG_PEERS.x", "$JS.API.STREAM.SNAPSHOT.WG_EVENTS", "$JS.API.STREAM.RESTORE.WG_EVENTS",
		},
		Operator: {
			"wg.peer.connected", "wg.interface.up", "wg.probe.started", "wg.dead.a", "wg.attempt.a", "$KV.WG_PEERS.a.b.c",
			"$JS.API.STREAM.DELETE.WG_DEAD", "$JS.API.STREAM.PURGE.WG_DEAD", "$JS.API.STREAM.UPDATE.WG_DEAD", "$JS.API.STREAM.CREATE.X",
			"$JS.API.STREAM.DELETE.WG_EVENTS", "$JS.API.STREAM.DELETE.WG_RETRY", "$JS.API.STREAM.DELETE.WG_ATTEMPTS",
			"$JS.API.STREAM.MSG.DELETE.WG_EVENTS", "$JS.API.STREAM.MSG.DELETE.WG_ATTEMPTS", "$JS.API.STREAM.MSG.DELETE.WG_RETRY",
			"$JS.API.STREAM.INFO.WG_EVENTS", "$JS.API.STREAM.MSG.GET.WG_EVENTS",
			"$JS.API.STREAM.INFO.KV_WG_PEERS", "$JS.API.STREAM.MSG.GET.KV_WG_PEERS", "$JS.API.DIRECT.GET.KV_WG_PEERS", "$JS.API.DIRECT.GET.KV_WG_PEERS.x",
			"$JS.API.CONSUMER.CREATE.WG_EVENTS.x", "$JS.API.CONSUMER.CREATE.WG_DEAD.x", "$JS.API.CONSUMER.DELETE.WG_EVENTS.hook-a",
			"$JS.API.CONSUMER.MSG.NEXT.WG_DEAD.x", "$JS.API.DIRECT.GET.WG_DEAD", "$JS.ACK.WG_EVENTS.x",
			"JS.WG.API.CONSUMER.CREATE.WG_EVENTS", "JS.WG.API.CONSUMER.DELETE.WG_EVENTS.x", "wgmirror.x",
		},
		Reader: {
			"wg.peer.connected", "wg.interface.up", "anything", "$JS.API.INFO", "$KV.WG_PEERS.a.b.c", "wg.retry.a", "wg.dead.a",
			"JS.WG.API.CONSUMER.CREATE.WG_EVENTS", "JS.WG.API.CONSUMER.CREATE.WG_EVENTS.x", "JS.WG.ACK.WG_EVENTS.x", "wgmirror.x",
			"$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.WG_EVENTS", "$JS.API.STREAM.DELETE.WG_EVENTS", "$JS.API.STREAM.PURGE.KV_WG_PEERS",
			"$JS.API.STREAM.MSG.DELETE.WG_EVENTS", "$JS.API.STREAM.SNAPSHOT.WG_EVENTS", "$JS.API.STREAM.INFO.WG_DEAD",
		},
		WGProvisioner:      {"wg.peer.connected", "$KV.WG_PEERS.a.b.c", "$JS.API.STREAM.DELETE.OTHER"},
		ReadersProvisioner: {"wg.peer.connected", "JS.WG.API.CONSUMER.CREATE.WG_EVENTS.x", "$JS.API.STREAM.DELETE.OTHER"},
		HooksProvisioner:   {"wg.dead.a", "wg.retry.a", "JS.WG.API.CONSUMER.CREATE.WG_EVENTS.x", "$JS.API.STREAM.DELETE.OTHER"},
	}
	subscribes := map[string][]string{
		Probe:              {">", "wg.peer.*", "$KV.>", "_INBOX.>", "_INBOX_wg-provisioner.>", "$JS.API.>"},
		Notifier:           {">", "wg.peer.*", "wgmirror.>", "_INBOX.>", "_INBOX_operator.>", "JS.WG.>"},
		Operator:           {">", "wg.dead.*", "_INBOX_notifier.>"},
		Reader:             {">", "wg.>", "wg.dead.*", "$KV.>", "wgmirror.>", "_INBOX_probe.>"},
		WGProvisioner:      {">", "wg.peer.*"},
		HooksProvisioner:   {">", "wgmirror.>"},
		ReadersProvisioner: {">", "wgmirror.>", "wg.peer.*"},
	}
	for _, identity := range Identities() {
		c := login(t, e, identity)
		for _, subject := range publishes[identity] {
			if err := c.PublishRequest(subject, c.NewInbox(), nil); err != nil {
				t.Fatal(err)
			}
			c.wantDenied(t, subject)
		}
		for _, subject := range subscribes[identity] {
			sub, err := c.SubscribeSync(subject)
			if err != nil {
				t.Fatal(err)
			}
			c.wantDenied(t, subject)
			_ = sub.Unsubscribe() // already closed by the refusal
		}
	}
}

func TestAnonymousConnectionIsRefused(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	nc, err := nats.Connect(e.URL())
	if !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("connected %v, error %v, want %v", nc != nil, err, nats.ErrAuthorization)
	}
}

// The ways to have the server itself publish on somebody's behalf. None may leave a trace in the event stream or in the peers' state.
func TestNotifierCannotForgeAnEvent(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	probe, notifier, owner := login(t, e, Probe), login(t, e, Notifier), login(t, e, WGProvisioner)
	publish(t, probe, "wg.peer.connected", "true")
	hookConsumer(t, notifier)
	waitFor(t, func() bool { return streamMessages(t, notifier, events.StreamEvents) == 1 })

	ask := func(t *testing.T, subject, reply, body string) {
		t.Helper()
		if err := notifier.PublishRequest(subject, reply, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	targets := []string{"wg.peer.connected", "$KV.WG_PEERS.vpn-1.wg0.forged"}

	t.Run("reply subject of a pull", func(t *testing.T) {
		for _, target := range targets {
			ask(t, "$JS.API.CONSUMER.MSG.NEXT.WG_EVENTS.hook-a", target, `{"batch":1,"group":"hook"}`)
		}
	})
	t.Run("deliver subject of a consumer on the mirror", func(t *testing.T) {
		for i, target := range targets {
			createConsumer(t, notifier, events.StreamEvents, fmt.Sprintf("push-%d", i), `"ack_policy":"none","deliver_subject":"`+target+`"`)
		}
	})
	// The answer about a consumer has the shape of a request to create one, and a reply subject may be the import that the mirror works through: there the
	// notifier may not publish, but the server may. It is tried directly and by way of a stream of the notifier's own account. What stops it is that a message
	// keeps its subject across the import, where the API goes by it, and that a service answers into no second import.
	t.Run("answer of the API as a request to the other account", func(t *testing.T) {
		for i, target := range targets {
			name := fmt.Sprintf("launder-%d", i)
			createConsumer(t, notifier, events.StreamEvents, name, `"ack_policy":"none","deliver_subject":"`+target+`"`)
			imports := []string{"JS.WG.API.CONSUMER.CREATE.WG_EVENTS." + name, "JS.WG.API.CONSUMER.CREATE.WG_EVENTS", "JS.WG.API.CONSUMER.DELETE.WG_EVENTS.x"}
			for _, to := range imports {
				ask(t, "$JS.API.CONSUMER.INFO.WG_EVENTS."+name, to, "")
				ask(t, "$JS.API.CONSUMER.MSG.NEXT.WG_EVENTS.hook-a", to, `{"batch":1,"group":"hook"}`)
			}
			ask(t, "$JS.API.CONSUMER.INFO.WG_EVENTS."+name, SubjectRetry+"a", "")
		}
		waitFor(t, func() bool { return streamMessages(t, notifier, StreamRetry) == 2 })
		createConsumer(t, notifier, StreamRetry, "pull", `"ack_policy":"explicit"`)
		for i := range targets {
			ask(t, "$JS.API.CONSUMER.MSG.NEXT.WG_RETRY.pull", fmt.Sprintf("JS.WG.API.CONSUMER.CREATE.WG_EVENTS.launder-%d", i), "")
		}
		waitFor(t, func() bool { // the server did send them there
			c, err := notifier.js.Consumer(t.Context(), StreamRetry, "pull")
			return err == nil && c.CachedInfo().Delivered.Consumer == 2
		})
	})
	if err := notifier.Flush(); err != nil {
		t.Fatal(err)
	}
	publish(t, probe, "wg.peer.disconnected", "true") // gives a forged consumer something to deliver
	waitFor(t, func() bool { return streamMessages(t, notifier, events.StreamEvents) == 2 })

	if got := streamMessages(t, owner, events.StreamEvents); got != 2 {
		t.Errorf("the event stream holds %d messages, want the 2 of the probe", got)
	}
	if got := streamMessages(t, owner, events.StreamState); got != 0 {
		t.Errorf("the peers' state holds %d messages, want none", got)
	}
	s, err := owner.js.Stream(t.Context(), events.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	for info := range s.ListConsumers(t.Context()).Info() {
		if !strings.HasPrefix(info.Config.DeliverSubject, "wgmirror.") {
			t.Errorf("a consumer on the event stream delivers to %q", info.Config.DeliverSubject)
		}
	}
	// The control: inside the account a reply subject does store what nobody published.
	createConsumer(t, owner, events.StreamEvents, "control", `"ack_policy":"none"`)
	if err := owner.PublishRequest("$JS.API.CONSUMER.INFO.WG_EVENTS.control", targets[1], nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return streamMessages(t, owner, events.StreamState) == 1 })
}

// Each request that the operator may make, with a reply subject that would destroy a stream or forge an event if the server published there with its own
// rights.
func TestOperatorCannotBorrowTheServersRights(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	probe, notifier, operator := login(t, e, Probe), login(t, e, Notifier), login(t, e, Operator)
	publish(t, probe, "wg.peer.connected", "true")
	for _, subject := range []string{SubjectDead + "a", SubjectDead + "a", SubjectAttempt + "a"} {
		publish(t, notifier, subject, "") // an empty body is what a request to delete a stream has
	}
	publish(t, operator, SubjectRetry+"a", "")
	waitFor(t, func() bool { return streamMessages(t, notifier, events.StreamEvents) == 1 })
	count := func() map[string]uint64 {
		counts := map[string]uint64{}
		for _, stream := range []string{events.StreamEvents, events.StreamState, StreamRetry, StreamDead, StreamAttempt} {
			counts[stream] = streamMessages(t, notifier, stream)
		}
		return counts
	}
	before := count()
	requests := []struct{ subject, body string }{
		{"$JS.API.STREAM.INFO.WG_DEAD", ""}, {"$JS.API.STREAM.INFO.WG_ATTEMPTS", ""},
		{"$JS.API.STREAM.MSG.GET.WG_DEAD", `{"seq":2}`}, {"$JS.API.STREAM.MSG.GET.WG_DEAD", `{"seq":1000}`}, {"$JS.API.STREAM.MSG.GET.WG_ATTEMPTS", `{"seq":1}`},
		{"$JS.API.STREAM.MSG.GET.WG_DEAD", "no JSON"}, {"$JS.API.STREAM.MSG.DELETE.WG_DEAD", `{"seq":1000}`}, {"wg.retry.a", ""},
	}
	replies := []string{"wg.peer.connected", "$KV.WG_PEERS.vpn-1.wg0.forged", "JS.WG.API.CONSUMER.CREATE.WG_EVENTS"}
	for _, stream := range []string{events.StreamEvents, events.StreamState, StreamRetry, StreamDead, StreamAttempt} {
		replies = append(replies, "$JS.API.STREAM.DELETE."+stream, "$JS.API.STREAM.PURGE."+stream, "$JS.API.CONSUMER.DELETE."+stream+".x")
	}
	for _, r := range requests {
		for _, reply := range replies {
			if err := operator.PublishRequest(r.subject, reply, []byte(r.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	before[StreamRetry] += uint64(len(replies)) // which the operator may
	waitFor(t, func() bool { return streamMessages(t, notifier, StreamRetry) == before[StreamRetry] })
	// The answers come in the order of the requests, and after them this one.
	if _, err := operator.js.Stream(t.Context(), StreamDead); err != nil {
		t.Fatal(err)
	}
	operator.wantAllowed(t)
	if diff := cmp.Diff(before, count()); diff != "" {
		t.Errorf("messages (-want +have):\n%s", diff)
	}
}

func TestProvision(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	wg, hooks, readers := login(t, e, WGProvisioner), login(t, e, HooksProvisioner), login(t, e, ReadersProvisioner)
	provision := func(dryRun bool) []Change {
		t.Helper()
		changes, err := Provision(t.Context(), Provisioners{wg.Conn, hooks.Conn, readers.Conn}, dryRun, discard)
		if err != nil {
			t.Fatal(err)
		}
		return changes
	}
	want := []Change{
		{"WG", events.StreamEvents, Unchanged, nil}, {"WG", events.StreamState, Unchanged, nil},
		{"HOOKS", events.StreamEvents, Unchanged, nil}, {"HOOKS", events.StreamState, Unchanged, nil},
		{"HOOKS", StreamRetry, Unchanged, nil}, {"HOOKS", StreamDead, Unchanged, nil}, {"HOOKS", StreamAttempt, Unchanged, nil},
		{"READERS", events.StreamEvents, Unchanged, nil}, {"READERS", events.StreamState, Unchanged, nil},
	}
	if got := provision(false); len(got) != 0 {
		t.Errorf("second run: %v, want no change", got)
	}
	if diff := cmp.Diff(want, provision(true)); diff != "" {
		t.Errorf("dry run (-want +got):\n%s", diff)
	}
	s, err := wg.js.Stream(t.Context(), events.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.MaxAge = time.Hour
	cfg.Description = "the operator's own"
	if _, err := wg.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	want[0] = Change{"WG", events.StreamEvents, Updated, []string{"MaxAge: 1h0m0s → 168h0m0s"}}
	for range 2 { // asking changes nothing
		if diff := cmp.Diff(want, provision(true)); diff != "" {
			t.Errorf("dry run (-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff(want[:1], provision(false)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if err := refresh(t, s); err != nil {
		t.Fatal(err)
	}
	if c := s.CachedInfo().Config; c.MaxAge != 7*day || c.Description != "the operator's own" {
		t.Errorf("max age %v, description %q", c.MaxAge, c.Description)
	}
	wg.wantAllowed(t)
	hooks.wantAllowed(t)
	readers.wantAllowed(t)
}

func refresh(t *testing.T, s jetstream.Stream) error {
	_, err := s.Info(t.Context())
	return err
}

func TestStreamsAreAsDesigned(t *testing.T) {
	t.Parallel()
	e := startBroker(t)
	wg, hooks, readers := login(t, e, WGProvisioner), login(t, e, HooksProvisioner), login(t, e, ReadersProvisioner)
	for _, tt := range []struct {
		c      client
		stream string
		ok     func(jetstream.StreamConfig) bool
	}{
		{wg, events.StreamEvents, func(c jetstream.StreamConfig) bool {
			return c.DenyDelete && c.DenyPurge && !c.AllowRollup && c.Duplicates == time.Hour && c.MaxAge == 168*time.Hour && c.MaxBytes == 1<<30
		}},
		{wg, events.StreamState, func(c jetstream.StreamConfig) bool {
			return c.DenyPurge && !c.AllowRollup && c.AllowMsgTTL && c.MaxMsgsPerSubject == 1 && c.SubjectDeleteMarkerTTL == 0
		}},
		{hooks, events.StreamEvents, func(c jetstream.StreamConfig) bool {
			return c.Mirror != nil && len(c.Subjects) == 0 && c.DenyDelete && c.DenyPurge && c.MaxAge == 168*time.Hour
		}},
		{hooks, events.StreamState, func(c jetstream.StreamConfig) bool {
			return c.Mirror != nil && len(c.Subjects) == 0 && c.DenyPurge && c.MaxMsgsPerSubject == 1 && c.AllowMsgTTL
		}},
		{readers, events.StreamEvents, func(c jetstream.StreamConfig) bool {
			return c.Mirror != nil && len(c.Subjects) == 0 && c.MaxAge == 168*time.Hour && c.MaxBytes == 256<<20
		}},
		{readers, events.StreamState, func(c jetstream.StreamConfig) bool {
			return c.Mirror != nil && c.MaxMsgsPerSubject == 1 && c.AllowMsgTTL
		}},
		{hooks, StreamRetry, func(c jetstream.StreamConfig) bool { return c.Retention == jetstream.WorkQueuePolicy }},
		{hooks, StreamDead, func(c jetstream.StreamConfig) bool {
			return c.MaxAge == 720*time.Hour && c.MaxBytes == 256<<20 && c.Discard == jetstream.DiscardOld && !c.AllowDirect
		}},
		{hooks, StreamAttempt, func(c jetstream.StreamConfig) bool {
			return c.MaxAge == 168*time.Hour && c.MaxBytes == 64<<20 && !c.AllowDirect && c.PersistMode == jetstream.AsyncPersistMode
		}},
	} {
		s, err := tt.c.js.Stream(t.Context(), tt.stream)
		if err != nil {
			t.Errorf("%s: %v", tt.stream, err)
			continue
		}
		if c := s.CachedInfo().Config; !tt.ok(c) || c.Storage != jetstream.FileStorage {
			t.Errorf("%s: %+v", tt.stream, c)
		}
	}
}

func TestBrokerVersion(t *testing.T) {
	t.Parallel()
	for version, ok := range map[string]bool{
		"2.15.2": true, "2.11.0": true, "3.0.0": true, "v2.11.1": true, "2.12.0-RC.1": true,
		"2.10.29": false, "2.9.10": false, "1.4.1": false, "": false, "unknown": false,
	} {
		if err := CheckVersion(version); (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}

func TestRestartKeepsDataAndKeys(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	start := func() *Embedded {
		e, err := StartEmbedded(t.Context(), EmbeddedOptions{StateDir: dir, Listen: "127.0.0.1:0", Log: discard})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := start()
	before := readTree(t, dir, "identities", "keyring")
	publish(t, login(t, e, Probe), "wg.peer.connected", "{}")
	hookConsumer(t, login(t, e, Notifier))
	e.Shutdown()

	e = start()
	defer e.Shutdown()
	if diff := cmp.Diff(before, readTree(t, dir, "identities", "keyring")); diff != "" {
		t.Errorf("files changed (-before +after):\n%s", diff)
	}
	notifier := login(t, e, Notifier)
	waitFor(t, func() bool { return streamMessages(t, notifier, events.StreamEvents) == 1 })
	if _, err := notifier.js.Consumer(t.Context(), events.StreamEvents, "hook-a"); err != nil {
		t.Error(err)
	}
}

func TestEmbeddedRefusals(t *testing.T) {
	t.Parallel()
	running := startBroker(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()

	for name, tt := range map[string]struct {
		dir, listen string
		want        []string
	}{
		"port in use":                 {t.TempDir(), taken.Addr().String(), []string{taken.Addr().String(), "in use", "NOTIFIER_LISTEN"}},
		"all addresses":               {t.TempDir(), "0.0.0.0:4222", []string{"0.0.0.0:4222", "loopback", "NATS_URL"}},
		"an address others can reach": {t.TempDir(), "192.0.2.1:4222", []string{"NOTIFIER_LISTEN", "loopback"}},
		"every address, unnamed":      {t.TempDir(), ":4222", []string{"loopback"}},
		"a name that is not loopback": {t.TempDir(), "example.org:4222", []string{"loopback"}},
		"no port":                     {t.TempDir(), "127.0.0.1", []string{"NOTIFIER_LISTEN", "host:port"}},
		"state in use":                {running.stateDir, "127.0.0.1:0", []string{running.stateDir, "another notifier", "NOTIFIER_STATE"}},
		"state that cannot be made":   {"/dev/null/state", "127.0.0.1:0", []string{"/dev/null/state", "not a directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			chmod(t, tt.dir)
			e, err := StartEmbedded(t.Context(), EmbeddedOptions{StateDir: tt.dir, Listen: tt.listen, Log: discard})
			if err == nil {
				e.Shutdown()
				t.Fatal("it started")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

func TestFailedStartLetsGoOfTheStateDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := StartEmbedded(t.Context(), EmbeddedOptions{StateDir: dir, Listen: taken.Addr().String(), Log: discard}); err == nil {
		t.Fatal("it started on a port in use")
	}
	e, err := StartEmbedded(t.Context(), EmbeddedOptions{StateDir: dir, Listen: "127.0.0.1:0", Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	e.Shutdown()
}

// waitFor polls a condition that the broker reaches by itself and announces to nobody.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 10 s")
		}
	}
}

// BenchmarkPublishToMirrorConsumer measures, for one event at a time, from the probe's publish to the notifier having it from its consumer on the mirror, and to
// the probe having its ack; each write is synced to disk. It prints p50 and p99 beside the mean.
func BenchmarkPublishToMirrorConsumer(b *testing.B) {
	e := startBroker(b)
	probe, notifier := login(b, e, Probe), login(b, e, Notifier)
	msgs, err := hookConsumer(b, notifier).Messages(jetstream.PullPriorityGroup("hook"), jetstream.PullMaxMessages(16))
	if err != nil {
		b.Fatal(err)
	}
	defer msgs.Stop()
	body := strings.Repeat("x", 500)
	var acked, received []time.Duration
	for b.Loop() {
		start := time.Now()
		future, err := probe.js.PublishAsync("wg.peer.connected", []byte(body))
		if err != nil {
			b.Fatal(err)
		}
		ackAt := make(chan time.Duration, 1)
		go func() {
			<-future.Ok()
			ackAt <- time.Since(start)
		}()
		msg, err := msgs.Next(jetstream.NextContext(b.Context()))
		if err != nil {
			b.Fatal(err)
		}
		received = append(received, time.Since(start))
		acked = append(acked, <-ackAt)
		if err := msg.DoubleAck(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	for name, d := range map[string][]time.Duration{"stored": acked, "received": received} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), name+"-p99-µs")
	}
}

// BenchmarkMessages reads a thousand messages as the operator does.
func BenchmarkMessages(b *testing.B) {
	e := startBroker(b)
	notifier, operator := login(b, e, Notifier), login(b, e, Operator)
	const n = 1000
	for range n {
		publish(b, notifier, SubjectDead+"a", strings.Repeat("x", 500))
	}
	stream, err := operator.js.Stream(b.Context(), StreamDead)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for _, err := range Messages(b.Context(), stream, SubjectDead+"*", 1) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "messages/s")
}
