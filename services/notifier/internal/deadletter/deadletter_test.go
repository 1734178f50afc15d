package deadletter_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

func newBroker(t *testing.T) jetstream.JetStream {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker does not start")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestBuryTwiceStoresOneLetterAndEndsTheMessage(t *testing.T) {
	t.Parallel()
	js := newBroker(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "E", Subjects: []string{"e"}}); err != nil {
		t.Fatal(err)
	}
	cons, err := js.CreateConsumer(t.Context(), "E", jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "e", []byte("body")); err != nil {
		t.Fatal(err)
	}
	msg, err := js.Conn().Request("$JS.API.CONSUMER.MSG.NEXT.E.c", nil, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}

	letter := deadletter.Letter{Class: deadletter.Undecodable, Reason: "two\r\nlines"}
	if err := deadletter.Bury(t.Context(), js, "h", msg, letter); err == nil {
		t.Fatal("buried without a stream for dead letters")
	}
	if info, err := cons.Info(t.Context()); err != nil || info.NumAckPending != 1 {
		t.Fatalf("the message of a letter that was not stored is ended: %+v %v", info, err)
	}
	dead, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: deadletter.Stream, Subjects: []string{"wg.dead.*"}, Duplicates: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := deadletter.Bury(t.Context(), js, "h", msg, letter); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := cons.Info(t.Context()); err != nil || info.NumAckPending != 0 {
		t.Errorf("the message is not ended: %+v %v", info, err)
	}
	info, err := dead.Info(t.Context())
	if err != nil || info.State.Msgs != 1 {
		t.Fatalf("letters: %+v %v, want 1", info, err)
	}
	stored, err := dead.GetMsg(t.Context(), info.State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	if have := stored.Header.Get(deadletter.HeaderReason); string(stored.Data) != "body" || have != "two  lines" {
		t.Errorf("letter %q with reason %q", stored.Data, have)
	}
}

func TestALetterGoesWhenItsMessageIsSafeAndNotBefore(t *testing.T) {
	t.Parallel()
	js := newBroker(t)
	dead, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: deadletter.Stream, Subjects: []string{"wg.dead.*"}})
	if err != nil {
		t.Fatal(err)
	}
	letter := &nats.Msg{Subject: "wg.dead.chat", Data: []byte("body"), Header: nats.Header{
		deadletter.HeaderClass: {"rejected"}, deadletter.HeaderSubject: {"wg.peer.connected"}, deadletter.HeaderSequence: {"42"}, events.HeaderSignature: {"sig"},
	}}
	for _, msg := range []*nats.Msg{letter, {Subject: "wg.dead.chat", Data: []byte("an answer of the API")}, letter} {
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	letters := func() (list []deadletter.Stored) {
		for l, err := range deadletter.Letters(t.Context(), dead, deadletter.Selection{}) {
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, l)
		}
		return list
	}
	first := letters()[0]
	if err := deadletter.Replay(t.Context(), js, dead, first); err == nil || len(letters()) != 2 {
		t.Fatalf("replayed without a stream for it: %v, %d letters", err, len(letters()))
	}
	again, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "WG_RETRY", Subjects: []string{"wg.retry.*"}, Duplicates: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	// A crash before the letter was removed: the second time it is still there.
	if err := deadletter.Replay(t.Context(), js, dead, first); err != nil {
		t.Fatal(err)
	}
	if err := deadletter.Replay(t.Context(), js, dead, first); err == nil {
		t.Error("a letter that is gone was removed")
	}
	left := letters()
	if len(left) != 1 || left[0].Sequence != 3 {
		t.Fatalf("left: %+v", left)
	}
	if err := deadletter.Discard(t.Context(), dead, left[0].Sequence); err != nil || len(letters()) != 0 {
		t.Errorf("discard: %v, %d letters", err, len(letters()))
	}
	info, err := again.Info(t.Context())
	if err != nil || info.State.Msgs != 1 {
		t.Fatalf("%+v, %v, want one message", info, err)
	}
	msg, err := again.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if h := msg.Header; msg.Subject != "wg.retry.chat" || string(msg.Data) != "body" || h.Get(events.HeaderSignature) != "sig" || h.Get(deadletter.HeaderSequence) != "42" {
		t.Errorf("sent: %s %q %v", msg.Subject, msg.Data, h)
	}
}
