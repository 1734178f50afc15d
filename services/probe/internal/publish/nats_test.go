package publish_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
)

// serve starts a broker on loopback with its store in dir; port -1 is any.
func serve(t *testing.T, dir string, port int, change func(*server.Options)) *server.Server {
	t.Helper()
	opts := &server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true, SyncAlways: true}
	if change != nil {
		change(opts)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the broker does not start")
	}
	t.Cleanup(func() { end(s) })
	return s
}

func end(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// provision makes the streams as the product does, and returns a connection.
func provision(t *testing.T, s *server.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []jetstream.StreamConfig{
		{Name: events.StreamEvents, Subjects: []string{"wg.peer.*", "wg.interface.*", "wg.probe.*"}, Duplicates: time.Hour},
		{Name: events.StreamState, Subjects: []string{events.StateSubject(">")}, MaxMsgsPerSubject: 1, AllowDirect: true, DenyPurge: true, AllowMsgTTL: true},
	} {
		if _, err := js.CreateOrUpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	return js
}

// lines collects log lines.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// publisher runs a publisher against a broker as the probe does, until the test or stop ends it.
func publisher(t *testing.T, b *bench, c config.NATS, id publish.Identity) (stop func(), log *lines) {
	t.Helper()
	log = &lines{}
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	nc, reconnected, err := publish.Connect(t.Context(), c, "vpn-1", id, func() {}, func(d publish.Denied) { b.denied.Store(int32(d)) }, logger)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- publish.New(publish.JetStream(js), b.outbox, id.Key, reconnected, &b.counts, logger).Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		nc.Close()
	})
	t.Cleanup(stop)
	return stop, log
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen: " + what)
		}
	}
}

// all reads a stream from its beginning.
func all(t *testing.T, js jetstream.JetStream, stream string) []*jetstream.RawStreamMsg {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []*jetstream.RawStreamMsg
	for n := info.State.FirstSeq; n <= info.State.LastSeq; n++ {
		m, err := s.GetMsg(t.Context(), n)
		if err != nil {
			continue // replaced by a newer one of its subject
		}
		list = append(list, m)
	}
	return list
}

// TestRealBroker: what arrives in the stream is byte for byte what the outbox stored, with the headers of the contract, and proves its origin.
func TestRealBroker(t *testing.T) {
	t.Parallel()
	id, err := publish.LoadIdentity(filepath.Join(t.TempDir(), "probe.nk"), true)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := events.ParseKeyring("vpn-1 " + id.Public)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, t.TempDir(), -1, nil)
	js := provision(t, s)
	b := newBench(t, nil)
	b.commit(true, "A", "B", "C")
	records, err := b.outbox.Queued(0, 10)
	if err != nil {
		t.Fatal(err)
	}
	stop, _ := publisher(t, b, config.NATS{URL: s.ClientURL()}, id)
	eventually(t, "all is sent", func() bool { return b.outbox.Depth() == 0 && len(all(t, js, events.StreamState)) == 3 })
	stop()

	var bodies [][]byte
	for _, m := range all(t, js, events.StreamEvents) {
		e, err := events.Verify(m.Data, m.Header.Get(events.HeaderSignature), ring)
		if err != nil {
			t.Fatal(err)
		}
		want := nats.Header{
			"Content-Type":         {"application/cloudevents+json"},
			"Nats-Msg-Id":          {e.ID},
			"Nats-Expected-Stream": {"WG_EVENTS"},
			"Wg-Signature":         {m.Header.Get(events.HeaderSignature)},
		}
		if diff := cmp.Diff(want, m.Header); diff != "" || m.Subject != string(e.Type) {
			t.Errorf("on subject %s, headers (-want +got):\n%s", m.Subject, diff)
		}
		bodies = append(bodies, m.Data)
	}
	for _, r := range records {
		if !slices.ContainsFunc(bodies, func(b []byte) bool { return bytes.Equal(b, r.Body) }) {
			t.Errorf("not in the stream as it was stored: %s", r.Body)
		}
	}
	if b.counts != (counts{published: 3, states: 3}) {
		t.Errorf("counted: %+v", b.counts)
	}
	for _, m := range all(t, js, events.StreamState) {
		state, err := events.DecodeState(m.Data)
		if err != nil || m.Subject != events.StateSubject(events.StateKey(state.Node, state.Interface, state.Peer.PublicKey)) {
			t.Errorf("state on %s: %v, %v", m.Subject, state, err)
		}
	}

	// A crash before the acks reached the file: the same bytes are sent again, and the broker drops them.
	again := newBench(t, nil)
	again.commit(false, "A", "B", "C")
	again.counts = counts{}
	stop, _ = publisher(t, again, config.NATS{URL: s.ClientURL()}, id)
	eventually(t, "all is sent again", func() bool { return again.outbox.Depth() == 0 })
	stop()
	if again.counts != (counts{published: 3, duplicates: 3}) || len(all(t, js, events.StreamEvents)) != 3 {
		t.Errorf("sent again: %+v, %d events in the stream", again.counts, len(all(t, js, events.StreamEvents)))
	}
}

// TestBrokerRestarts: the broker is away at first, then comes, and is stopped and started while events go on. None is lost, and each peer's are in order.
func TestBrokerRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, dir, -1, nil)
	port := s.Addr().(*net.TCPAddr).Port
	js := provision(t, s)
	end(s)

	b := newBench(t, nil)
	b.commit(true, "A", "B")
	stop, log := publisher(t, b, config.NATS{URL: fmt.Sprintf("nats://127.0.0.1:%d", port)}, publish.Identity{Key: testKey})
	committed := make(chan int)
	quit := make(chan struct{})
	go func() {
		n := 2
		for ; ; n += 2 {
			select {
			case <-quit:
				committed <- n
				return
			case <-time.After(2 * time.Millisecond):
				b.commit(true, fmt.Sprint("peer", n%7), fmt.Sprint("peer", n%11+20))
			}
		}
	}()
	eventually(t, "the probe notices that the broker is away", func() bool { return strings.Contains(log.String(), "not reached, trying on; events are kept") })
	for range 3 {
		s = serve(t, dir, port, nil)
		sent := b.outbox.Depth()
		eventually(t, "events are sent", func() bool { return b.outbox.Depth() < max(sent, 20) })
		end(s)
		before := b.outbox.Depth()
		eventually(t, "events wait", func() bool { return b.outbox.Depth() > before+100 })
	}
	serve(t, dir, port, nil)
	close(quit)
	want := <-committed
	eventually(t, "all is sent", func() bool { return b.outbox.Depth() == 0 })
	stop()

	last := map[string]uint64{}
	seen := map[string]bool{}
	for _, m := range all(t, js, events.StreamEvents) {
		e, err := events.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		name := e.Peer().Name
		if e.Sequence.N <= last[name] || seen[e.ID] {
			t.Errorf("of %s, event %d is stored after %d", name, e.Sequence.N, last[name])
		}
		last[name], seen[e.ID] = e.Sequence.N, true
	}
	if len(seen) != want {
		t.Errorf("%d events are stored, %d were committed", len(seen), want)
	}
	for _, m := range all(t, js, events.StreamState) {
		state, err := events.DecodeState(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if n := last[state.Peer.Name]; state.Sequence.N != n {
			t.Errorf("the state of %s tells of event %d, its last is %d", state.Peer.Name, state.Sequence.N, n)
		}
	}
}

// TestKeyOfAnotherNode: the broker takes the events of a probe whose key is another node's, and nobody believes them; but it refuses its states, and so the probe knows.
func TestKeyOfAnotherNode(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "probe.nk")
	id, err := publish.LoadIdentity(file, true)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, t.TempDir(), -1, func(o *server.Options) {
		o.Users, o.NoAuthUser = []*server.User{{Username: "provisioner", Password: "p"}}, "provisioner"
		o.Nkeys = []*server.NkeyUser{{Nkey: id.Public, Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"wg.peer.*", "wg.interface.*", "wg.probe.*", "$KV.WG_PEERS.vpn-2.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_probe.>"}},
		}}}
	})
	provision(t, s)
	b := newBench(t, nil)
	b.commit(true, "A")
	_, log := publisher(t, b, config.NATS{URL: s.ClientURL(), NkeyFile: file}, id)
	eventually(t, "it is told", func() bool { return publish.Denied(b.denied.Load()) == publish.DeniesStates })
	for _, part := range []string{"refuses the states of this node", "key is another node's", "PROBE_NODE", "`notifier keys -list`"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log does not say %q:\n%s", part, log)
		}
	}
	if strings.Contains(log.String(), "not reached") {
		t.Errorf("the broker was reached:\n%s", log)
	}
}

// TestKeyOfNoProbe: who has a reader's key, say, in place of a probe's is connected, and told nothing by its acks but that there are none.
func TestKeyOfNoProbe(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "reader.nk")
	id, err := publish.LoadIdentity(file, true)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, t.TempDir(), -1, func(o *server.Options) {
		o.Nkeys = []*server.NkeyUser{{Nkey: id.Public, Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"$JS.API.STREAM.INFO.WG_EVENTS"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"wg.peer.*", "_INBOX_reader.>"}},
		}}}
	})
	b := newBench(t, nil)
	b.commit(true, "A")
	_, log := publisher(t, b, config.NATS{URL: s.ClientURL(), NkeyFile: file}, id)
	eventually(t, "it is told", func() bool { return publish.Denied(b.denied.Load()) == publish.DeniesEvents })
	for _, part := range []string{"refuses events of this login", "not a probe's", "NATS_NKEY_FILE", "probe.nk"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log does not say %q:\n%s", part, log)
		}
	}
}
